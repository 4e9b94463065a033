"""Run the jobs of a comparison: learn an operator, or train a target for a fraction of the budget.

Input: an `Experiment`, its data splits, the source's folder, a folder for training states.
Output: a dictionary of plain values per job. A job's result depends only on the job, so jobs run in any order and in any process.
A stopped job resumes from its saved state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ligo_convert.checkpoints.writer import rehash, safetensors_pieces
from ligo_convert.comparison.dropping import DRAWS, token_drop
from ligo_convert.comparison.experiment import Experiment, start_of
from ligo_convert.comparison.methods import SCRATCH, FitRates, Method
from ligo_convert.comparison.scheduler import TrainingJob, operator_name, shared_state_name
from ligo_convert.comparison.strategies import depends_on_run_length
from ligo_convert.comparison.trainer import RunSpec, Teacher, Tensors, TrainSetup, schedule_of, train_run
from ligo_convert.data.examples import DataSplits, Examples
from ligo_convert.environment import compute_threads
from ligo_convert.families.flops import step_flops
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.new_parameters import added_parts
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import describe, read_operator, stored_arrays
from ligo_convert.hub.resolve import open_source
from ligo_convert.io.files import write_file
from ligo_convert.training.fit import (
    FitSettings,
    GrownTarget,
    autocast_pays,
    fetch_from,
    fit,
    named_source,
    stacked_source,
)
from ligo_convert.training.functional_model import LibraryModel, Objective, backward_in_parts, mean_loss
from ligo_convert.training.loop import StateStore
from ligo_convert.training.pretrain import drawn_model
from ligo_convert.training.state import FolderState
from ligo_convert.training.tasks import on_device

PROBE_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class _BranchedState:
    """A training state that starts from the shared state of a shorter run."""

    own: FolderState
    trunk: FolderState

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        self.own.save(arrays, text)

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        return self.own.load() or self.trunk.load()

    def discard(self, why: str) -> None:
        (self.own if self.own.path.exists() else self.trunk).discard(why)


class JobRunner:
    """Runs the jobs of a comparison.

    Args:
        experiment: the plan of the comparison.
        slices: the data splits.
        source: folder of the source checkpoint.
        work: folder of this comparison for training states and operators.
        device: torch device.
        key: identifies the comparison and its source; training states of another key are discarded.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        slices: DataSplits,
        source: Path,
        work: Path,
        device: str,
        key: str = "",
    ) -> None:
        self.experiment, self.slices, self.source, self.work, self.device = experiment, slices, source, work, device
        self.key, self._warnings = key, list[str]()
        self.plan, self.family = experiment.plan, experiment.plan.family
        fit_settings = self.plan.recipe.fit
        assert fit_settings is not None
        self.settings = fit_settings
        width = self.family.sizes(self.plan.start.target)[self.family.norm.stream]
        self.setup = TrainSetup(
            family=self.family,
            slices=slices,
            batch_size=experiment.batch_size,
            micro_batch_size=min(self.plan.micro_batch, experiment.batch_size),
            sequence_length=experiment.length,
            evaluate_every=experiment.evaluate_every,
            device=device,
            autocast=autocast_pays(device, fit_settings.precision, width=width),
        )

    def run(self, job: TrainingJob, on_step: Callable[[float, str], None] | None = None) -> dict[str, Any]:
        """Run a job. `on_step` receives the fraction done and a short note."""
        # Not a share of the cores: the result must not depend on how many workers there are.
        with compute_threads(self.experiment.settings.threads):
            result = _KINDS[job.kind](self, job, on_step or (lambda part, note: None))
        warnings, self._warnings = self._warnings, []
        return {**result, "warnings": warnings} if warnings else result

    # The source.

    @cached_property
    def stacked(self) -> Tensors:
        with open_source(str(self.source), base=self.source) as source:
            rows = self.family.rows_for(self.plan.start.target)
            return stacked_source(
                source.read, self.family, self.plan.inventory, rows, device=self.device, dtype=torch.float32
            )

    @cached_property
    def teacher(self) -> Teacher:
        config = self.plan.start.source
        return Teacher(
            model=LibraryModel(self.plan.inventory.family, config, device=self.device),
            parameters=named_source(self.plan.inventory, self.stacked),
            config=config,
        )

    # Starts.

    def operator(self, method: Method, seed: int) -> Operator:
        """Return a method's operator: the learned one, which an earlier `fit` job has stored, or else the one of its initialisation."""
        if method.learns_operator:
            return read_operator(self._operator_file(method, seed))
        return initial_operator(start_of(self.plan, method, seed))

    def _operator_file(self, method: Method, seed: int) -> Path:
        return self.work / "operators" / f"{operator_name(method, seed)}.safetensors"

    def run_of(self, job: TrainingJob, steps: int) -> RunSpec:
        entry = self.experiment.entries[job.method]
        method = entry.method
        config = start_of(self.plan, method, job.seed).target
        start, added = None, None
        if not method.random_init:
            operator = self.operator(method, job.seed)
            grower = Grower(
                operator, self.family, device=self.device, dtype=torch.float32, fetch=fetch_from(self.stacked)
            )
            start = GrownTarget(grower, self.family.rows_for(config), self.stacked).tensors()
            if entry.added:
                added = {name: part.mask() for name, part in added_parts(self.family, operator).items()}
        return RunSpec(
            config=config,
            start=start,
            added=added,
            stages=entry.stages,
            steps=steps,
            warmup=self.experiment.warmup,
            budget=self.experiment.steps,
            learning_rate=job.learning_rate,
            shape=job.shape,
            seed=job.seed,
            dropping=self.experiment.dropping(job.method),
            examples=self.slices.test,
        )

    def state(self, name: str) -> FolderState:
        path = self.work / "states" / f"{name}.safetensors"
        return FolderState(path, owner=f"{self.key}/{name}", warn=lambda text: self._warnings.append(text))

    def measured(self, parameters: Mapping[str, torch.Tensor], what: Objective, examples: Examples) -> float:
        """Return the mean of an objective over held-out examples."""
        return mean_loss(
            what,
            parameters,
            examples,
            batch_size=self.setup.micro_batch_size,
            device=self.device,
            dtype=torch.float32,
            autocast=self.setup.autocast,
        )

    def accuracy(self, model: LibraryModel, parameters: Mapping[str, torch.Tensor]) -> float | None:
        """Return the top-1 accuracy on the test split; None if the task has no accuracy."""
        share = model.task.accuracy
        if share is None:
            return None
        found = self.measured(parameters, lambda given, batch: share(model(given, batch), batch), self.slices.test)
        return round(found, 6)


# Kinds of jobs.

ReportProgress = Callable[[float, str], None]


def _probe(runner: JobRunner, job: TrainingJob, report: ReportProgress) -> dict[str, Any]:
    """Measure FLOPs per second of training the target, over a few steps."""
    experiment, family = runner.experiment, runner.family
    config = experiment.entries[SCRATCH].start.target
    model = LibraryModel(family, config, device=runner.device)
    parameters = {
        name: torch.nn.Parameter(torch.tensor(values, device=runner.device))
        for name, values in drawn_model(family, config, seed=0).items()
    }
    seconds = []
    for step in range(PROBE_STEPS):
        batch = on_device(
            runner.slices.batch(step, batch_size=experiment.batch_size, seed=0), runner.device, torch.float32
        )
        began = time.monotonic()
        backward_in_parts(
            model.loss,
            parameters,
            batch,
            micro_batch_size=runner.setup.micro_batch_size,
            device=runner.device,
            autocast=runner.setup.autocast,
        )
        seconds.append(time.monotonic() - began)
        report((step + 1) / PROBE_STEPS, "")
    _try_dropping(runner, model, parameters)
    flops = step_flops(family, config, tokens=experiment.tokens, sequence_length=experiment.length)
    return {"flops_a_second": flops / min(seconds)}


def _try_dropping(runner: JobRunner, model: LibraryModel, parameters: Mapping[str, torch.Tensor]) -> None:
    """Try token dropping once if a method uses it, so that an unsupported model fails early. Raises RecipeError."""
    for name in runner.experiment.entries:
        dropping = runner.experiment.dropping(name)
        if dropping.tokens:
            batch = on_device(runner.slices.batch(0, batch_size=1, seed=0), runner.device, torch.float32)
            batch[DRAWS] = torch.rand((1, runner.experiment.length), dtype=torch.float64, device=runner.device)
            with torch.no_grad(), token_drop(model, runner.family.depth_axes[0], dropping, batch):
                model(parameters, batch)
            return


def _source(runner: JobRunner, job: TrainingJob, report: ReportProgress) -> dict[str, Any]:
    """Measure the source's loss on the test split."""
    teacher = runner.teacher
    return {
        "loss": _finite(round(runner.measured(teacher.parameters, teacher.model.loss, runner.slices.test), 6)),
        "accuracy": runner.accuracy(teacher.model, teacher.parameters),
    }


def _fit(runner: JobRunner, job: TrainingJob, report: ReportProgress) -> dict[str, Any]:
    """Learn a method's operator; the validation split selects the best step."""
    method, settings, plan = runner.experiment.entries[job.method].method, runner.settings, runner.plan
    start = start_of(plan, method, job.seed)
    initial = initial_operator(start)
    rates = method.fit_rates or FitRates(
        width_rate=settings.learning_rate.width, depth_rate=settings.learning_rate.depth
    )

    def on_step(step: int, line: Mapping[str, Any]) -> None:
        report(step / settings.steps, f"fit, loss {line['loss']:.3f}")

    operator, outcome = fit(
        initial,
        runner.family,
        plan.inventory,
        runner.stacked,
        runner.slices,
        FitSettings(
            steps=settings.steps,
            batch_size=settings.batch_size,
            micro_batch_size=min(plan.micro_batch, settings.batch_size),
            tokens_a_step=settings.batch_size * runner.experiment.length,
            width_rate=rates.width_rate,
            depth_rate=rates.depth_rate,
            weight_decay=settings.weight_decay,
            warmup_steps=plan.required_fit.warmup_steps,
            seed=job.seed,
            evaluate_every=settings.evaluate_every,
            autocast=runner.setup.autocast,
        ),
        device=runner.device,
        store=runner.state(f"{job.name}.fit"),
        on_step=on_step,
    )
    learned = operator if outcome.best_step else initial
    file = runner._operator_file(method, job.seed)
    write_file(file, safetensors_pieces(stored_arrays(learned), describe(learned)), replace=True)
    return {
        "best_step": outcome.best_step,
        "validation_loss": _finite(outcome.best_loss),
        "steps": settings.steps,
        "operator": {"file": file.relative_to(runner.work).as_posix(), "sha256": rehash(file)},
    }


def _train(runner: JobRunner, job: TrainingJob, report: ReportProgress) -> dict[str, Any]:
    """Train for a fraction of the budget, resuming from a shorter run where possible; evaluate on the test split."""
    experiment = runner.experiment
    steps = experiment.steps_of(job.budget_fraction)
    run = runner.run_of(job, steps)
    single = not depends_on_run_length(run.stages)
    own = runner.state(f"{job.name}.0")

    def store(stage: int) -> StateStore:
        if stage or not single or not job.resume_from:
            return runner.state(f"{job.name}.{stage}")
        return _BranchedState(own=own, trunk=runner.state(shared_state_name(job, job.resume_from)))

    milestone = None
    if single and job.shape == "stable" and job.budget_fraction < 1:
        turn = schedule_of(run).turn
        milestone = (turn, runner.state(shared_state_name(job, job.budget_fraction)))
    points, tensors = train_run(
        runner.setup,
        run,
        teacher=runner.teacher if _is_taught(run) else None,
        store=store,
        milestone=milestone,
        on_step=lambda step, flops: report(step / steps, f"step {step} of {steps}"),
    )
    model = LibraryModel(runner.family, run.config, device=runner.device)
    fitted = experiment.fit_flops(job.method)
    curve = [
        {"step": point["step"], "flops": point["flops"] + fitted, "loss": _finite(point["loss"])} for point in points
    ]
    return {
        "curve": curve,
        "final": {
            "step": steps,
            "flops": curve[-1]["flops"],
            "loss": curve[-1]["loss"],
            "accuracy": runner.accuracy(model, tensors),
            "budget_fraction": job.budget_fraction,
        },
        # Learning rates are chosen by this loss; the curve uses the test split.
        "validation_loss": _finite(runner.measured(tensors, model.loss, runner.slices.validation)),
    }


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def _is_taught(run: RunSpec) -> bool:
    return any(stage.teacher for stage in run.stages)


_KINDS: dict[str, Callable[[JobRunner, TrainingJob, ReportProgress], dict[str, Any]]] = {
    "probe": _probe,
    "source": _source,
    "fit": _fit,
    "train": _train,
}

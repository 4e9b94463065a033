"""Where the jobs of a comparison are done: an operator learned, a target trained to a horizon.

What comes in: a contest, its data, where the source lies, a folder for states. What goes out: plain figures for every job. A job depends on
nothing but what it says, so jobs run in any order and in any process, and one that was stopped goes on from its state.
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

from ligo_convert.checkpoints.writer import safetensors_pieces
from ligo_convert.comparison.dropping import DRAWS, token_drop
from ligo_convert.comparison.experiment import Experiment, start_of
from ligo_convert.comparison.methods import SCRATCH, Fitting, Method
from ligo_convert.comparison.scheduler import TrainingJob, operator_name, trunk_name
from ligo_convert.comparison.strategies import stretches
from ligo_convert.comparison.trainer import StageRun, Teacher, Tensors, TrainSetup, schedule_of, train_run
from ligo_convert.conversion.learn import warmup_steps
from ligo_convert.data.examples import DataSplits, Examples
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
class _Branch:
    """A state that begins where another run left the common stretch."""

    own: FolderState
    trunk: FolderState

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        self.own.save(arrays, text)

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        return self.own.load() or self.trunk.load()


class JobRunner:
    """Does jobs.

    Args:
        source: folder of the source. work: folder for states and operators, this comparison's own. threads: of torch; 0 for its choice.
    """

    def __init__(
        self, *, contest: Experiment, slices: DataSplits, source: Path, work: Path, device: str, threads: int = 0
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.contest, self.slices, self.source, self.work, self.device = contest, slices, source, work, device
        self.plan, self.family = contest.plan, contest.plan.family
        fit_settings = self.plan.recipe.fit
        assert fit_settings is not None
        self.settings = fit_settings
        width = self.family.sizes(self.plan.start.target)[self.family.norm.stream]
        self.arena = TrainSetup(
            family=self.family,
            slices=slices,
            batch_size=contest.batch_size,
            micro_batch_size=min(self.plan.micro_batch, contest.batch_size),
            sequence_length=contest.length,
            evaluate_every=contest.evaluate_every,
            device=device,
            autocast=autocast_pays(device, fit_settings.precision, width=width),
        )

    def do(self, job: TrainingJob, on_step: Callable[[float, str], None] | None = None) -> dict[str, Any]:
        """Do a job. `on_step` is told the part that is done, and a word."""
        return _KINDS[job.kind](self, job, on_step or (lambda part, note: None))

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
        """A method's operator: learned where it learns one (its job has been done before), else its start's."""
        if method.fits:
            return read_operator(self._operator_file(method, seed))
        return initial_operator(start_of(self.plan, method, seed))

    def _operator_file(self, method: Method, seed: int) -> Path:
        return self.work / "operators" / f"{operator_name(method, seed)}.safetensors"

    def run_of(self, job: TrainingJob, steps: int) -> StageRun:
        entry = self.contest.entries[job.method]
        method = entry.contender
        config = start_of(self.plan, method, job.seed).target
        start, added = None, None
        if not method.drawn:
            operator = self.operator(method, job.seed)
            grower = Grower(
                operator, self.family, device=self.device, dtype=torch.float32, fetch=fetch_from(self.stacked)
            )
            start = GrownTarget(grower, self.family.rows_for(config), self.stacked).tensors()
            if entry.added:
                added = {name: part.mask() for name, part in added_parts(self.family, operator).items()}
        return StageRun(
            config=config,
            start=start,
            added=added,
            stages=entry.stages,
            steps=steps,
            warmup=self.contest.warmup,
            budget=self.contest.steps,
            learning_rate=job.learning_rate,
            shape=job.shape,
            seed=job.seed,
            dropping=self.contest.dropping(job.method),
            examples=self.slices.test,
        )

    def state(self, name: str) -> FolderState:
        return FolderState(self.work / "states" / f"{name}.safetensors")

    def measured(self, parameters: Mapping[str, torch.Tensor], what: Objective, examples: Examples) -> float:
        """A mean over held-out examples."""
        return mean_loss(
            what,
            parameters,
            examples,
            batch_size=self.arena.micro_batch_size,
            device=self.device,
            dtype=torch.float32,
            autocast=self.arena.autocast,
        )

    def accuracy(self, model: LibraryModel, parameters: Mapping[str, torch.Tensor]) -> float | None:
        """Top-1 on the test slice; None where the task has no such figure."""
        share = model.task.accuracy
        if share is None:
            return None
        found = self.measured(parameters, lambda given, batch: share(model(given, batch), batch), self.slices.test)
        return round(found, 6)


# Kinds of jobs.

Told = Callable[[float, str], None]


def _probe(shop: JobRunner, job: TrainingJob, told: Told) -> dict[str, Any]:
    """Operations a second of training the target here, by a few steps."""
    contest, family = shop.contest, shop.family
    config = contest.entries[SCRATCH].start.target
    model = LibraryModel(family, config, device=shop.device)
    parameters = {
        name: torch.nn.Parameter(torch.tensor(values, device=shop.device))
        for name, values in drawn_model(family, config, seed=0).items()
    }
    seconds = []
    for step in range(PROBE_STEPS):
        batch = on_device(shop.slices.batch(step, batch_size=contest.batch_size, seed=0), shop.device, torch.float32)
        began = time.monotonic()
        backward_in_parts(
            model.loss,
            parameters,
            batch,
            micro_batch_size=shop.arena.micro_batch_size,
            device=shop.device,
            autocast=shop.arena.autocast,
        )
        seconds.append(time.monotonic() - began)
        told((step + 1) / PROBE_STEPS, "")
    _try_dropping(shop, model, parameters)
    flops = step_flops(family, config, tokens=contest.tokens, sequence_length=contest.length)
    return {"flops_a_second": flops / min(seconds)}


def _try_dropping(shop: JobRunner, model: LibraryModel, parameters: Mapping[str, torch.Tensor]) -> None:
    """Leave out tokens once where a method will: a model that cannot is told now, not after hours. Raises RecipeError."""
    for name in shop.contest.entries:
        dropping = shop.contest.dropping(name)
        if dropping.tokens:
            batch = on_device(shop.slices.batch(0, batch_size=1, seed=0), shop.device, torch.float32)
            batch[DRAWS] = torch.rand((1, shop.contest.length), dtype=torch.float64, device=shop.device)
            with torch.no_grad(), token_drop(model, shop.family.depth_axes[0], dropping, batch):
                model(parameters, batch)
            return


def _source(shop: JobRunner, job: TrainingJob, told: Told) -> dict[str, Any]:
    """The source's loss on the slice that curves are read on."""
    teacher = shop.teacher
    return {
        "loss": _finite(round(shop.measured(teacher.parameters, teacher.model.loss, shop.slices.test), 6)),
        "accuracy": shop.accuracy(teacher.model, teacher.parameters),
    }


def _fit(shop: JobRunner, job: TrainingJob, told: Told) -> dict[str, Any]:
    """Learn a method's operator, choosing on the validation slice."""
    method, settings, plan = shop.contest.entries[job.method].contender, shop.settings, shop.plan
    start = start_of(plan, method, job.seed)
    initial = initial_operator(start)
    rates = method.fitting or Fitting(width_rate=settings.learning_rate.width, depth_rate=settings.learning_rate.depth)

    def on_step(step: int, line: Mapping[str, Any]) -> None:
        told(step / settings.steps, f"fit, loss {line['loss']:.3f}")

    operator, outcome = fit(
        initial,
        shop.family,
        plan.inventory,
        shop.stacked,
        shop.slices,
        FitSettings(
            steps=settings.steps,
            batch_size=settings.batch_size,
            micro_batch_size=min(plan.micro_batch, settings.batch_size),
            tokens_a_step=settings.batch_size * shop.contest.length,
            width_rate=rates.width_rate,
            depth_rate=rates.depth_rate,
            weight_decay=settings.weight_decay,
            warmup_steps=warmup_steps(settings),
            seed=job.seed,
            evaluate_every=settings.evaluate_every,
            autocast=shop.arena.autocast,
        ),
        device=shop.device,
        store=shop.state(f"{job.name}.fit"),
        on_step=on_step,
    )
    learned = operator if outcome.best_step else initial
    write_file(
        shop._operator_file(method, job.seed),
        safetensors_pieces(stored_arrays(learned), describe(learned)),
        replace=True,
    )
    return {"best_step": outcome.best_step, "validation_loss": _finite(outcome.best_loss), "steps": settings.steps}


def _train(shop: JobRunner, job: TrainingJob, told: Told) -> dict[str, Any]:
    """Train to a horizon, from the common stretch of a shorter run where there is one; read on the test slice."""
    contest = shop.contest
    steps = contest.steps_of(job.horizon)
    run = shop.run_of(job, steps)
    single = not stretches(run.stages)
    own = shop.state(f"{job.name}.0")

    def store(stage: int) -> StateStore:
        if stage or not single or not job.before:
            return shop.state(f"{job.name}.{stage}")
        return _Branch(own=own, trunk=shop.state(trunk_name(job, job.before)))

    milestone = None
    if single and job.shape == "stable" and job.horizon < 1:
        turn = schedule_of(run).turn
        milestone = (turn, shop.state(trunk_name(job, job.horizon)))
    points, tensors = train_run(
        shop.arena,
        run,
        teacher=shop.teacher if _is_taught(run) else None,
        store=store,
        milestone=milestone,
        on_step=lambda step, flops: told(step / steps, f"step {step} of {steps}"),
    )
    model = LibraryModel(shop.family, run.config, device=shop.device)
    fitted = contest.fit_flops(job.method)
    curve = [
        {"step": point["step"], "flops": point["flops"] + fitted, "loss": _finite(point["loss"])} for point in points
    ]
    return {
        "curve": curve,
        "final": {
            "step": steps,
            "flops": curve[-1]["flops"],
            "loss": curve[-1]["loss"],
            "accuracy": shop.accuracy(model, tensors),
            "horizon": job.horizon,
        },
        # By which rates are chosen: the curve is read on another slice.
        "validation_loss": _finite(shop.measured(tensors, model.loss, shop.slices.validation)),
    }


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def _is_taught(run: StageRun) -> bool:
    return any(stage.teacher for stage in run.stages)


_KINDS: dict[str, Callable[[JobRunner, TrainingJob, Told], dict[str, Any]]] = {
    "probe": _probe,
    "source": _source,
    "fit": _fit,
    "train": _train,
}

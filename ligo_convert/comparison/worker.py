"""Run the jobs of a comparison: read the source, learn an operator, or train a piece of a run.

Input: an `Experiment`, its data splits, the source's folder, a folder for training states.
Output: a dictionary of plain values per job, and the state at its end. A job's result depends only on the job, so jobs run in any order and
in any process. A stopped job resumes from its saved state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ligo_convert.comparison.experiment import SECOND_ORDER, Experiment, start_of
from ligo_convert.comparison.methods import FitRates
from ligo_convert.comparison.scheduler import TrainingJob
from ligo_convert.data.examples import Batch, DataSplits, Examples, head
from ligo_convert.environment import compute_threads
from ligo_convert.errors import LigoError
from ligo_convert.families.flops import step_flops
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.new_parameters import added_parts
from ligo_convert.hub.resolve import open_source
from ligo_convert.training.drop_hooks import DRAWS, token_drop
from ligo_convert.training.fit import FitSettings, autocast_pays, fit, named_source, stacked_source
from ligo_convert.training.functional_model import LibraryModel, Objective, backward_in_parts, mean_loss
from ligo_convert.training.optimizers import matching_moments
from ligo_convert.training.pretrain import drawn_model
from ligo_convert.training.ring_fit import fit_ring
from ligo_convert.training.run_trainer import (
    RunState,
    Teacher,
    Tensors,
    TrainSetup,
    begin_stage,
    drawn_state,
    grown_state,
    stacked_state,
    train_segment,
)
from ligo_convert.training.runs import DRAWN, Run
from ligo_convert.training.schedules import default_warmup
from ligo_convert.training.state import FolderState, state_of
from ligo_convert.training.tasks import frequency_loss, on_device

PROBE_STEPS = 3


class JobRunner:
    """Runs the jobs of a comparison.

    Args:
        experiment: the plan of the comparison.
        slices: the data splits.
        source: folder of the source checkpoint; None where the comparison trains the source.
        work: folder of this comparison for training states and operators.
        device: torch device.
        key: identifies the comparison and its source; training states of another key are discarded.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        slices: DataSplits,
        source: Path | None,
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
        # What fits into memory is known from a forward pass of the target, whatever the batches are.
        self.micro_batch = experiment.settings.micro_batch_size or self.plan.micro_batch
        self.setup = TrainSetup(
            family=self.family,
            slices=slices,
            micro_batch_size=min(self.micro_batch, experiment.batch_size),
            sequence_length=experiment.length,
            evaluate_every=experiment.evaluate_every,
            examples=slices.test,
            device=device,
            autocast=autocast_pays(device, fit_settings.precision, width=width),
            compiled=experiment.settings.compile,
        )

    def run(self, job: TrainingJob, on_step: Callable[[float, str], None] | None = None) -> dict[str, Any]:
        """Run a job. `on_step` receives the fraction done and a short note."""
        # Not a share of the cores: the result must not depend on how many workers there are.
        with compute_threads(self.experiment.settings.threads):
            result = _KINDS[job.kind](self, job, on_step or (lambda part, note: None))
        warnings, self._warnings = self._warnings, []
        return {**result, "warnings": warnings} if warnings else result

    # The source.

    def saved(self, name: str) -> RunState:
        """Return the state that an earlier job has stored."""
        stored = self.state(name).load()
        if stored is None:
            raise LigoError(f"the training state {name} is missing", hint="run the same command again")
        return RunState.read(*stored, device=self.device)

    def stacked(self, state: RunState) -> Tensors:
        """Return the tensors of a source, stacked by row as growth takes them."""
        return stacked_state(self.family, state, self.plan.start.target)

    def teacher(self, run: Run) -> Teacher | None:
        """Return the model that teaches a run; None if there is none."""
        if not run.teacher:
            return None
        state = self.saved(run.teacher)
        return Teacher(
            model=LibraryModel(self.plan.inventory.family, state.config, device=self.device),
            parameters=dict(state.tensors),
            config=state.config,
        )

    def state(self, name: str) -> FolderState:
        return state_of(self.work, name, key=self.key, warn=self._warnings.append)

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
    """Measure FLOPs per second of training the target, over a few steps, and the loss of knowing no more than frequencies."""
    experiment, family = runner.experiment, runner.family
    config = experiment.baseline.planned[0].stage.config
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
    frequencies = frequency_loss(model.task, runner.slices.test)
    assert frequencies is not None, "a comparison has a loss"
    return {"flops_a_second": flops / min(seconds), "frequency_loss": round(frequencies, 6)}


def _try_dropping(runner: JobRunner, model: LibraryModel, parameters: Mapping[str, torch.Tensor]) -> None:
    """Try token dropping once if a method uses it, so that an unsupported model fails early. Raises RecipeError."""
    for entry in runner.experiment.entries.values():
        dropping = runner.experiment.dropping(entry.method)
        if dropping.tokens:
            batch = on_device(runner.slices.batch(0, batch_size=1, seed=0), runner.device, torch.float32)
            batch[DRAWS] = torch.rand((1, runner.experiment.length), dtype=torch.float64, device=runner.device)
            with torch.no_grad(), token_drop(model, runner.family.depth_axes[0], dropping, batch):
                model(parameters, batch)
            return


def _source(runner: JobRunner, job: TrainingJob, report: ReportProgress) -> dict[str, Any]:
    """Read the source's checkpoint and measure its loss on the test split."""
    plan, family = runner.plan, runner.plan.inventory.family
    assert runner.source is not None, "a recipe that trains its source has no checkpoint"
    with open_source(str(runner.source), base=runner.source) as source:
        rows = runner.family.rows_for(plan.start.target)
        stacked = stacked_source(
            source.read, runner.family, plan.inventory, rows, device=runner.device, dtype=torch.float32
        )
    tensors = {
        row.name(layer): stacked[row.pattern][row.index(layer)]
        for row in dict.fromkeys((*plan.inventory.rows, *rows))
        if row.pattern in stacked
        for layer in family.layers(row, plan.start.source)
    }
    state = RunState(config=dict(plan.start.source), tensors=tensors, moments={})
    runner.state(job.name).save(*state.arrays())
    model = LibraryModel(family, plan.start.source, device=runner.device)
    own = named_source(plan.inventory, stacked)
    return {
        "loss": _finite(round(runner.measured(own, model.loss, runner.slices.test), 6)),
        "accuracy": runner.accuracy(model, own),
    }


@dataclass(frozen=True, kw_only=True)
class _FitData:
    """The data of a fit in a comparison: few held-out examples decide, because looking at them is charged."""

    slices: DataSplits
    examples: int

    @property
    def validation(self) -> Examples:
        return head(self.slices.validation, self.examples)

    def batch(self, step: int, *, batch_size: int, seed: int) -> Batch:
        return self.slices.batch(step, batch_size=batch_size, seed=seed, order=SECOND_ORDER)


def _fit(runner: JobRunner, job: TrainingJob, report: ReportProgress) -> dict[str, Any]:
    """Learn a method's operator or rings and store the grown target; the start stays where learning does not improve it."""
    experiment, settings, plan = runner.experiment, runner.settings, runner.plan
    entry = experiment.entries[job.entry]
    method, steps = entry.method, experiment.fit_steps(entry)
    assert method is not None
    start = start_of(plan, method, job.seed)
    initial = initial_operator(start)
    rates = method.fit_rates or FitRates(
        width_rate=settings.learning_rate.width, depth_rate=settings.learning_rate.depth
    )
    source = runner.saved(job.parent)

    def on_step(step: int, line: Mapping[str, Any]) -> None:
        report(step / steps, f"fit, loss {line['loss']:.3f}")

    data = _FitData(slices=runner.slices, examples=experiment.settings.fit_examples)
    chosen = FitSettings(
        steps=steps,
        batch_size=settings.batch_size,
        micro_batch_size=min(runner.micro_batch, settings.batch_size),
        tokens_a_step=settings.batch_size * experiment.length,
        width_rate=rates.width_rate,
        depth_rate=rates.depth_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=min(plan.required_fit.warmup_steps, default_warmup(steps)),
        seed=job.seed,
        evaluate_every=steps,
        autocast=runner.setup.autocast,
    )
    stacked, store = runner.stacked(source), runner.state(f"{job.name}.steps")
    if method.ring:
        tensors, outcome = fit_ring(
            initial,
            runner.family,
            stacked,
            data,
            chosen,
            rank=method.ring,
            device=runner.device,
            store=store,
            on_step=on_step,
        )
        grown = RunState(config=dict(initial.target), tensors=tensors, moments={})
    else:
        operator, outcome = fit(
            initial,
            runner.family,
            plan.inventory,
            stacked,
            data,
            chosen,
            device=runner.device,
            store=store,
            on_step=on_step,
        )
        learned = operator if outcome.best_step else initial
        grown = grown_state(runner.family, source, learned, policy="reset", device=runner.device)
    if any(entry.added for entry in experiment.entries.values()):
        # Methods that share this fit may train only what growth added.
        grown = replace(grown, added={name: part.mask() for name, part in added_parts(runner.family, initial).items()})
    runner.state(job.name).save(*grown.arrays())
    runner.state(f"{job.name}.steps").remove()
    return {"best_step": outcome.best_step, "validation_loss": _finite(outcome.best_loss), "steps": steps}


def _train(runner: JobRunner, job: TrainingJob, report: ReportProgress) -> dict[str, Any]:
    """Train a piece of a run from the state of the piece before it; measure the model where the run ends."""
    run, family = job.run, runner.family
    assert run is not None
    stage = run.stage_at(job.first)
    if job.parent == DRAWN:
        state = drawn_state(family, stage.config, seed=run.seed, device=runner.device)
    else:
        state = runner.saved(job.parent)
        if job.first == 0:
            # The training of a source is charged on its own.
            state = replace(state, flops=0.0)
            # A method may have an optimizer of its own. What another one has left in the source is of no use to it.
            state = replace(state, moments=matching_moments(state.moments, family, state.config, run.optimizer))
    if stage.begin == job.first:
        state = begin_stage(family, state, stage, device=runner.device)
    span = range(job.first, job.last)
    points, end = train_segment(
        runner.setup,
        run,
        state,
        span,
        teacher=runner.teacher(run),
        store=runner.state(f"{job.name}.steps"),
        on_step=lambda step, line: report((step - span.start) / len(span), f"step {step} of {run.steps}"),
    )
    runner.state(job.name).save(*end.arrays())
    runner.state(f"{job.name}.steps").remove()
    found: dict[str, Any] = {
        "curve": [{**point, "loss": _finite(point["loss"])} for point in points],
        "flops": end.flops,
    }
    if job.ends:
        model = LibraryModel(family, end.config, device=runner.device)
        found |= {
            "loss": _finite(points[-1]["loss"]),
            "accuracy": runner.accuracy(model, end.tensors),
            # Settings are chosen by this loss; the curve uses the test split.
            "validation_loss": _finite(runner.measured(end.tensors, model.loss, runner.slices.validation)),
        }
    return found


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


_KINDS: dict[str, Callable[[JobRunner, TrainingJob, ReportProgress], dict[str, Any]]] = {
    "probe": _probe,
    "source": _source,
    "fit": _fit,
    "train": _train,
}

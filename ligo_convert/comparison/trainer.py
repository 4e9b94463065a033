"""Train one run of a comparison: a target from its initial weights, stage by stage, with its held-out loss against FLOPs.

Input: settings that all runs share (`TrainSetup`), the run (`RunSpec`).
Output: the points of the loss curve and the trained tensors.
A run executes the stages of its strategy. Each stage is one call of `training.loop.train`, so a stopped run resumes in the stage where it
stopped. A longer run can start from the state that a shorter run saved at the end of their common steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ligo_convert.comparison.dropping import DRAWS, layer_drop, token_drop
from ligo_convert.comparison.step_costs import Config, Step, with_layers
from ligo_convert.comparison.strategies import TEMPERATURE, Dropping, Stage, dropped_layers
from ligo_convert.data.examples import Examples
from ligo_convert.families.schema import Family
from ligo_convert.growth.verdict import generator
from ligo_convert.training.fit import SplitSource
from ligo_convert.training.functional_model import LibraryModel, backward_in_parts, mean_loss
from ligo_convert.training.loop import Group, StateStore, train
from ligo_convert.training.pretrain import WEIGHT_DECAY, drawn_model
from ligo_convert.training.schedules import Schedule
from ligo_convert.training.tasks import IGNORED, on_device

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainSetup:
    """Settings that all runs of a comparison share.

    Attributes:
        family: model family of the target.
        slices: training split.
        batch_size: examples per step.
        micro_batch_size: examples per forward and backward pass; the gradients of a batch are accumulated.
        sequence_length: tokens per example; for an image, its patches.
        evaluate_every: steps between two points of a curve.
        device: torch device.
        autocast: whether passes run in bfloat16 autocast.
    """

    family: Family
    slices: SplitSource
    batch_size: int
    micro_batch_size: int
    sequence_length: int
    evaluate_every: int
    device: str
    autocast: bool

    @property
    def tokens(self) -> int:
        """Return the tokens per step."""
        return self.batch_size * self.sequence_length


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The source as a teacher: its model, its tensors by canonical name, and its config."""

    model: LibraryModel
    parameters: Tensors
    config: Config


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Settings of one run.

    Attributes:
        config: config of the target.
        start: initial tensors by canonical name; None for random weights.
        added: name -> bool mask with the tensor's shape, true for entries that growth added; None where all entries learn.
        stages: stages of the strategy.
        steps: steps of this run.
        warmup: steps in which the learning rate rises.
        budget: steps of the whole budget, which determine the layer dropping schedule.
        learning_rate: peak learning rate.
        shape: name of the learning rate schedule.
        seed: determines random weights, batches, sub-models and dropping.
        dropping: layers and tokens to skip.
        examples: examples on which the loss curve is evaluated.
    """

    config: Config
    start: Tensors | None
    added: Mapping[str, np.ndarray] | None
    stages: tuple[Stage, ...]
    steps: int
    warmup: int
    budget: int
    learning_rate: float
    shape: str
    seed: int
    dropping: Dropping
    examples: Examples

    @cached_property
    def spans(self) -> tuple[range, ...]:
        """Return the range of steps of each stage. Every stage has at least one step."""
        assert self.steps >= len(self.stages)
        ends, done = [0], 0.0
        for number, stage in enumerate(self.stages, start=1):
            done += stage.share
            last = self.steps - (len(self.stages) - number)
            ends.append(min(last, max(ends[-1] + 1, round(done * self.steps))))
        ends[-1] = self.steps
        return tuple(range(first, last) for first, last in itertools.pairwise(ends))


def add_layers(family: Family, tensors: Tensors, config: Config, old: int, new: int, layers_from: str) -> Tensors:
    """Return the tensors of a model grown from `old` to `new` layers: the whole stack repeated, or its top layers copied on top."""
    added = new - old
    sources = {
        "stack": [layer % old for layer in range(new)],
        "top": [layer if layer < old else max(0, layer - added) % old for layer in range(new)],
    }[layers_from]
    found = {}
    axis = family.depth_axes[0]
    for row in family.rows_for(config):
        for layer in family.layers(row, config):
            taken = sources[layer] if row.depth == axis and layer is not None else layer
            found[row.name(layer)] = tensors[row.name(taken)]
    return found


def schedule_of(run: RunSpec) -> Schedule:
    """Return one schedule over all stages. Each later stage starts with a new warmup of at most a fifth of the stage."""
    begins = {span.start: max(1, min(run.warmup, len(span) // 5)) for span in run.spans[1:]}
    return Schedule(steps=run.steps, warmup=run.warmup, shape=run.shape, begins=begins)


def train_run(
    setup: TrainSetup,
    run: RunSpec,
    *,
    teacher: Teacher | None,
    store: Callable[[int], StateStore | None],
    milestone: tuple[int, StateStore] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[list[dict[str, float]], Tensors]:
    """Train one run through all its stages.

    Args:
        setup: settings that all runs share.
        run: settings of this run.
        teacher: the source as a teacher; None if the strategy uses none.
        store: stage number -> storage for its training state, or None.
        milestone: number of steps and storage for the state after them, from which a longer run resumes; only for single-stage runs.
        on_step: called with the steps done and the FLOPs so far.

    Returns:
        The curve as a list of `step`, `flops` (training only) and `loss`; and the final tensors by canonical name.
    """
    family, schedule = setup.family, schedule_of(run)
    points: list[dict[str, float]] = []
    whole = family.sizes(run.config)[family.depth_axes[0]]
    layers, tensors = 0, run.start
    for number, (stage, span) in enumerate(zip(run.stages, run.spans, strict=True)):
        height = stage.layers or whole
        config = with_layers(family, run.config, height)
        if tensors is None:
            drawn = drawn_model(family, config, seed=run.seed)
            tensors = {name: torch.tensor(values, device=setup.device) for name, values in drawn.items()}
        elif layers and height != layers:
            tensors = add_layers(family, tensors, config, layers, height, stage.layers_from)
        layers = height
        trainer = _StageTrainer(
            setup=setup, run=run, stage=stage, span=span, config=config, teacher=teacher, start=tensors
        )
        begun = points[-1]["flops"] if points else 0.0
        log = trainer.train(
            schedule,
            flops=begun,
            store=store(number),
            milestones={milestone[0]: milestone[1]} if milestone is not None else None,
            on_step=on_step,
        )
        tensors = trainer.tensors()
        for line in log:
            if "validation_loss" in line and (line["step"] > span.start or not points):
                flops = line.get("flops", begun)
                points.append({"step": line["step"], "flops": flops, "loss": line["validation_loss"]})
    assert tensors is not None
    return points, tensors


class _StageTrainer:
    """Trains one stage of a run."""

    def __init__(
        self,
        *,
        setup: TrainSetup,
        run: RunSpec,
        stage: Stage,
        span: range,
        config: Config,
        teacher: Teacher | None,
        start: Tensors,
    ) -> None:
        self.setup, self.run, self.stage, self.span, self.config = setup, run, stage, span, config
        self.family = setup.family
        self.axis = self.family.depth_axes[0]
        self.layers = self.family.sizes(config)[self.axis]
        self.teacher = teacher if stage.teacher else None
        self.rows = {
            row.name(layer): (row, layer)
            for row in self.family.rows_for(config)
            for layer in self.family.layers(row, config)
        }
        # Fused optimizer kernels and restored states require contiguous tensors.
        self.start = {name: start[name].detach().contiguous() for name in self.rows}
        self.step = Step(
            family=self.family,
            config=config,
            stage=stage,
            tokens=setup.tokens,
            length=setup.sequence_length,
            added={name for name, mask in (run.added or {}).items() if mask.any()},
            dropping=run.dropping,
            teacher=teacher.config if teacher is not None else None,
        )
        learns = {
            name
            for name, (row, layer) in self.rows.items()
            if any(
                self.step.learns(row, layer, height, late=stage.until_fraction < 1)
                for height in stage.submodels or (self.layers,)
            )
        }
        self.parameters = {name: torch.nn.Parameter(self.start[name].clone()) for name in sorted(learns)}
        self.masks = {
            name: torch.from_numpy(run.added[name]).to(setup.device)
            for name in self.parameters
            if stage.trains == "added" and run.added is not None
        }
        self.models = {
            height: LibraryModel(self.family, with_layers(self.family, config, height), device=setup.device)
            for height in dict.fromkeys((self.layers, *stage.submodels))
        }
        self._flops: dict[tuple[int, tuple[int, ...], bool], int] = {}

    def tensors(self) -> Tensors:
        """Return the current tensors, detached."""
        with torch.no_grad():
            return {name: tensor.detach() for name, tensor in self._given(self.layers, late=True).items()}

    def _given(self, height: int, *, late: bool) -> Tensors:
        """Return the tensors of the sub-model with `height` layers; those that learn carry gradients."""
        found: Tensors = {}
        for name, (row, layer) in self.rows.items():
            if row.depth == self.axis and layer is not None and layer >= height:
                continue
            parameter = self.parameters.get(name)
            if parameter is None:
                found[name] = self.start[name]
            elif name in self.masks:
                found[name] = torch.where(self.masks[name], parameter, self.start[name])
            elif not self.step.learns(row, layer, height, late=late):
                found[name] = parameter.detach()
            else:
                found[name] = parameter
        return found

    def train(
        self,
        schedule: Schedule,
        *,
        flops: float,
        store: StateStore | None,
        milestones: Mapping[int, StateStore] | None,
        on_step: Callable[[int, float], None] | None,
    ) -> list[dict[str, Any]]:
        setup, run = self.setup, self.run
        matrices = {name: parameter for name, parameter in self.parameters.items() if parameter.ndim > 1}
        vectors = {name: parameter for name, parameter in self.parameters.items() if parameter.ndim == 1}
        groups = [
            Group(name="matrices", parameters=matrices, learning_rate=run.learning_rate, weight_decay=WEIGHT_DECAY),
            Group(name="vectors", parameters=vectors, learning_rate=run.learning_rate),
        ]
        spent = {self.span.start: flops}

        def cost(step: int) -> float:
            """Return the FLOPs up to and including this step."""
            done = max(at for at in spent if at <= step + 1)
            for at in range(done, step + 1):
                spent[at + 1] = spent.pop(at) + self._step_flops(at)
            return spent[step + 1]

        def measured() -> float:
            return mean_loss(
                self.models[self.layers].loss,
                self.tensors(),
                run.examples,
                batch_size=setup.micro_batch_size,
                device=setup.device,
                dtype=torch.float32,
                autocast=setup.autocast,
            )

        def told(step: int, line: dict[str, Any]) -> None:
            if on_step is not None:
                on_step(step, line["flops"])

        outcome = train(
            [group for group in groups if group.parameters],
            self._gradients,
            schedule=schedule,
            tokens_a_step=setup.tokens,
            validate=measured,
            validate_every=setup.evaluate_every,
            chooses=False,
            steps=self.span,
            partial=True,
            fused=True,
            facts=lambda step: {"flops": cost(step)},
            store=store,
            milestones=milestones,
            on_step=told,
        )
        return outcome.log

    def _step_flops(self, step: int) -> int:
        """Return the FLOPs of one step as executed: the sub-model drawn, the skipped layers, the trained tensors, the teacher."""
        height, dropped, late = key = (self._height(step), self._dropped(step), self._late(step))
        if key not in self._flops:
            self._flops[key] = self.step.flops(height, dropped, late=late)
        return self._flops[key]

    def _early_steps(self) -> int:
        """Return the number of steps of this stage in which its sub-models, teacher and frozen tensors apply."""
        return round(self.stage.until_fraction * len(self.span))

    def _late(self, step: int) -> bool:
        return step - self.span.start >= self._early_steps()

    def _height(self, step: int) -> int:
        submodels = self.stage.submodels
        if not submodels or self._late(step):
            return self.layers
        return submodels[int(generator(self.run.seed, "exit", str(step)).integers(len(submodels)))]

    def _dropped(self, step: int) -> tuple[int, ...]:
        if not self.run.dropping.layers:
            return ()
        return dropped_layers(
            self.run.dropping, layers=self._height(step), step=step, steps=self.run.budget, seed=self.run.seed
        )

    def _gradients(self, step: int) -> float:
        setup, height = self.setup, self._height(step)
        late = self._late(step)
        model, tensors = self.models[height], self._given(height, late=late)
        drawn = setup.slices.batch(step, batch_size=setup.batch_size, seed=self.run.seed)
        batch = on_device(drawn, setup.device, torch.float32)
        if self.run.dropping.tokens:
            # Draw for the whole batch, so that the draws do not depend on the micro-batch size. Models ignore this key.
            draws = generator(self.run.seed, "tokens dropped", str(step)).random(
                (setup.batch_size, setup.sequence_length)
            )
            batch = {**batch, DRAWS: torch.from_numpy(draws).to(setup.device)}

        def objective(given: Mapping[str, torch.Tensor], part: Mapping[str, torch.Tensor]) -> torch.Tensor:
            with ExitStack() as stack:
                dropped = self._dropped(step)
                if dropped:
                    stack.enter_context(layer_drop(model, self.axis, dropped))
                if self.run.dropping.tokens:
                    stack.enter_context(token_drop(model, self.axis, self.run.dropping, part))
                logits = model(given, part)
            assert model.task.loss is not None
            own = model.task.loss(logits, part)
            if self.teacher is None or late:
                return own
            weight = 1 - (step - self.span.start) / self._early_steps()
            return (1 - weight) * own + weight * _distillation_loss(self.teacher, logits, part)

        return backward_in_parts(
            objective,
            tensors,
            batch,
            micro_batch_size=setup.micro_batch_size,
            device=setup.device,
            autocast=setup.autocast,
        )


def _distillation_loss(teacher: Teacher, logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return tau^2 KL(teacher || student) at temperature tau, the mean over labelled positions (arXiv:2105.13880, section 3)."""
    with torch.no_grad():
        given = teacher.model(teacher.parameters, batch)
    student, other = logits.float(), given.float()
    labels = batch.get("labels")
    if labels is not None and labels.ndim == 2:
        student, other = student[labels != IGNORED], other[labels != IGNORED]
    divergence = torch.nn.functional.kl_div(
        torch.log_softmax(student / TEMPERATURE, -1),
        torch.log_softmax(other / TEMPERATURE, -1),
        log_target=True,
        reduction="none",
    )
    return TEMPERATURE**2 * divergence.sum(-1).mean()

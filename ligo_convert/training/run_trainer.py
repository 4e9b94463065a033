"""Train a run, segment by segment, with its held-out loss against FLOPs.

Input: settings that runs share (`TrainSetup`), a `Run`, the state at the beginning of a segment.
Output: the points of the loss curve and the state at its end. A segment lies within one stage. A stage begins with growth: the weights
by the growth operator, the optimizer's state by `growth.moments`. A segment that was stopped goes on where it was saved, with the same
bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ligo_convert.data.examples import IGNORED, Batch, Examples
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.moments import grown_moments
from ligo_convert.growth.new_parameters import added_parts
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.stream import Read
from ligo_convert.growth.verdict import generator
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.training.drop_hooks import DRAWS, layer_drop, token_drop
from ligo_convert.training.dropping import dropped_layers
from ligo_convert.training.fit import GrownTarget, fetch_from, stacked_source
from ligo_convert.training.functional_model import LibraryModel, backward_in_parts, mean_loss
from ligo_convert.training.loop import StateStore, TrainResult, train
from ligo_convert.training.optimizers import Moments, parameter_groups, read_moments, stored_moments
from ligo_convert.training.pretrain import drawn_model
from ligo_convert.training.processes import Processes
from ligo_convert.training.runs import Config, Run, Stage, growth_plan_of
from ligo_convert.training.step_costs import Step, shared_layer, with_layers
from ligo_convert.training.tasks import on_device

Tensors = dict[str, torch.Tensor]

TEMPERATURE = 2.0  # softmax temperature of teacher and student, arXiv:2105.13880


class TrainData(Protocol):
    """The part of `DataSplits` that a run trains on."""

    def batch(self, step: int, *, batch_size: int, seed: int, order: str = "batches") -> Batch: ...


@dataclass(frozen=True, kw_only=True)
class TrainSetup:
    """Settings that runs share and that do not decide their result.

    Attributes:
        family: model family.
        slices: training split.
        micro_batch_size: examples per forward and backward pass; the gradients of a batch are accumulated.
        sequence_length: tokens per example; for an image, its patches.
        evaluate_every: steps between two points of a curve.
        examples: examples on which the curve is evaluated.
        device: torch device.
        autocast: whether passes run in bfloat16 autocast.
        compiled: whether torch.compile compiles the model; never one that drops layers or tokens.
        processes: the processes that share every batch; None for one.
    """

    family: Family
    slices: TrainData
    micro_batch_size: int
    sequence_length: int
    evaluate_every: int
    examples: Examples
    device: str
    autocast: bool
    compiled: bool = False
    processes: Processes | None = None


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The source as a teacher: its model, its tensors by canonical name, and its config."""

    model: LibraryModel
    parameters: Tensors
    config: Config


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A model in training.

    Attributes:
        config: config of the model.
        tensors: its tensors by canonical name.
        moments: state of the optimizer.
        added: name -> mask of the entries that the last growth added: bool, of the tensor's shape. Empty before any growth.
        flops: FLOPs of the training so far.
    """

    config: Config
    tensors: Tensors
    moments: Moments
    added: Mapping[str, np.ndarray] = field(default_factory=dict)
    flops: float = 0.0

    def arrays(self) -> tuple[dict[str, np.ndarray], str]:
        """Return the state as arrays and a text, for a `StateStore`."""
        arrays, steps = stored_moments(self.moments)
        for name, mask in self.added.items():
            arrays[f"added/{name}"] = mask.astype(np.float32)
        for name, tensor in self.tensors.items():
            arrays[f"parameter/{name}"] = tensor.detach().cpu().numpy()
        return arrays, json.dumps({"config": dict(self.config), "steps": steps, "flops": self.flops})

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], text: str, *, device: str) -> RunState:
        """Return the state that `arrays` made."""
        data = json.loads(text)
        parts: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "added": {}}
        for label, array in arrays.items():
            kind, _, name = label.partition("/")
            if kind in parts:
                parts[kind][name] = array
        return cls(
            config=data["config"],
            tensors={name: torch.from_numpy(array).to(device) for name, array in parts["parameter"].items()},
            moments=read_moments(arrays, data["steps"]),
            added={name: array != 0 for name, array in parts["added"].items()},
            flops=data["flops"],
        )


def drawn_state(family: Family, config: Config, *, seed: int, device: str) -> RunState:
    """Return a model with weights as the library draws them."""
    drawn = drawn_model(family, config, seed=seed)
    tensors = {name: torch.tensor(values, device=device) for name, values in drawn.items()}
    return RunState(config=config, tensors=tensors, moments={})


def source_state(
    read: Read, family: Family, inventory: Inventory, config: Config, target: Config, *, device: str
) -> RunState:
    """Return a checkpoint's model in float32, with the rows that only its target has and that it can fill.

    Args:
        read: name on disk -> bytes of the tensor.
        family: narrowed to the target's class.
        config: config of the checkpoint.
        target: config of the model that it grows into.
    """
    rows = family.rows_for(target)
    stacked = stacked_source(read, family, inventory, rows, device=device, dtype=torch.float32)
    tensors = {
        row.name(layer): stacked[row.pattern][row.index(layer)]
        for row in dict.fromkeys((*inventory.rows, *rows))
        if row.pattern in stacked
        for layer in family.layers(row, config)
    }
    return RunState(config=dict(config), tensors=tensors, moments={})


def stacked_state(family: Family, state: RunState, target: Config) -> Tensors:
    """Return the tensors of a model stacked by row, as growth takes them: row pattern -> [layers, ...].

    Args:
        target: config of the model that it grows into, which may have rows of its own.
    """
    rows = {row.pattern: row for row in (*family.rows_for(state.config), *family.rows_for(target))}
    stacked = {}
    for pattern, row in rows.items():
        names = [row.name(layer) for layer in family.layers(row, state.config)]
        if names and all(name in state.tensors for name in names):
            stacked[pattern] = torch.stack([state.tensors[name].detach() for name in names])
    return stacked


def grown_state(
    family: Family, state: RunState, operator: Operator, *, policy: str, device: str, added: bool = False
) -> RunState:
    """Return a model grown by an operator, with its optimizer's state.

    Args:
        policy: what becomes of the optimizer's state, a key of `growth.moments.POLICIES`.
        added: whether the masks of the added entries are needed.
    """
    stacked = stacked_state(family, state, operator.target)
    grower = Grower(operator, family, device=device, dtype=torch.float32, fetch=fetch_from(stacked))
    tensors = GrownTarget(grower, family.rows_for(operator.target), stacked).tensors()
    return RunState(
        config=dict(operator.target),
        tensors=tensors,
        moments=grown_moments(operator, family, state.moments, policy=policy, device=device),
        added={name: part.mask() for name, part in added_parts(family, operator).items()} if added else {},
        flops=state.flops,
    )


def begin_stage(family: Family, state: RunState, stage: Stage, *, device: str) -> RunState:
    """Return the model with which a stage begins. A stage without growth goes on with the model as it is."""
    if stage.growth is None:
        return state
    plan = growth_plan_of(family, stage.growth, state.config, stage.asked or {}, where="growth")
    # Compared as JSON: a stored state has its config from there, whose keys are strings.
    assert sha256_of(dict(plan.target)) == sha256_of(dict(stage.config)), (
        "a stage begins with another model than planned"
    )
    operator = initial_operator(plan)
    return grown_state(family, state, operator, policy=stage.growth.state, device=device, added=stage.trains == "added")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A trained segment of a run.

    Attributes:
        log: lines of `training.loop.train`: the state at the beginning of a stage, then every step with a held-out loss, and the run's
            first step.
        end: the model at its end.
    """

    log: list[dict[str, Any]]
    end: RunState


def train_segment(
    setup: TrainSetup,
    run: Run,
    state: RunState,
    steps: range,
    *,
    teacher: Teacher | None = None,
    store: StateStore | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[list[dict[str, float]], RunState]:
    """Train a run as `run_segment` does.

    Returns:
        The curve as a list of `step`, `flops` (training only) and `loss`: at the beginning of the run, every `evaluate_every` steps, and
        where a stage ends; and the state at the end.
    """
    made = run_segment(setup, run, state, steps, teacher=teacher, store=store, on_step=on_step)
    points = [
        {"step": line["step"], "flops": line.get("flops", state.flops), "loss": line["validation_loss"]}
        for line in made.log
        if "validation_loss" in line and (line["step"] > steps.start or steps.start == 0)
    ]
    return points, made.end


def run_segment(
    setup: TrainSetup,
    run: Run,
    state: RunState,
    steps: range,
    *,
    teacher: Teacher | None = None,
    store: StateStore | None = None,
    save_every: int | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> Segment:
    """Train a run from step `steps.start` to `steps.stop`, which lie in one stage.

    Args:
        setup: settings that runs share.
        state: the model after `steps.start` steps; after a growth that begins there. Its moments are taken over and change.
        teacher: the source as a teacher; None if the stage uses none.
        store: storage of the state within the segment.
        save_every: steps between two saved states; None for a share of the time.
        on_step: called with the steps done and the line of the log, which has the FLOPs so far.
    """
    trainer = _SegmentTrainer(setup=setup, run=run, state=state, steps=steps, teacher=teacher)
    result = trainer.train(store=store, save_every=save_every, on_step=on_step)
    end = RunState(
        config=state.config,
        tensors=trainer.tensors(),
        moments=result.moments,
        added=state.added,
        flops=trainer.flops_until(steps.stop),
    )
    return Segment(log=result.log, end=end)


class _SegmentTrainer:
    """Trains one segment of a run."""

    def __init__(self, *, setup: TrainSetup, run: Run, state: RunState, steps: range, teacher: Teacher | None) -> None:
        self.setup, self.run, self.state, self.steps = setup, run, state, steps
        self.family, self.stage = setup.family, run.stage_at(steps.start)
        assert run.stage_at(steps.stop - 1) is self.stage, "a segment lies in one stage"
        config = self.stage.config
        self.axis = self.family.depth_axes[0]
        self.layers = self.family.sizes(config)[self.axis]
        self.teacher = teacher if self.stage.teacher else None
        self.rows = {
            row.name(layer): (row, layer)
            for row in self.family.rows_for(config)
            for layer in self.family.layers(row, config)
        }
        # Fused optimizer kernels and restored states require contiguous tensors.
        self.start = {name: state.tensors[name].detach().contiguous() for name in self.rows}
        self.step = Step(
            family=self.family,
            stage=self.stage,
            tokens=run.batch_size * setup.sequence_length,
            length=setup.sequence_length,
            added={name for name, mask in state.added.items() if mask.any()},
            dropping=run.dropping,
            teacher=teacher.config if teacher is not None else None,
        )
        learns = {
            name
            for name, (row, layer) in self.rows.items()
            if any(
                self.step.learns(row, layer, height, late=self.stage.until is not None)
                for height in self.stage.submodels or (self.layers,)
            )
        }
        self.parameters = {name: torch.nn.Parameter(self.start[name].clone()) for name in sorted(learns)}
        self.masks = {
            name: torch.from_numpy(state.added[name]).to(setup.device)
            for name in self.parameters
            if self.stage.trains == "added"
        }
        self.models = {
            height: LibraryModel(self.family, with_layers(self.family, config, height), device=setup.device)
            for height in dict.fromkeys((self.layers, *self.stage.submodels))
        }
        # Drops are hooks that come and go from step to step: each would be compiled anew.
        if setup.compiled and not (run.dropping.layers or run.dropping.tokens):
            for model in self.models.values():
                model.module.compile()
        self._flops: dict[tuple[int, tuple[int, ...], bool], int] = {}
        self._spent = {steps.start: state.flops}

    def tensors(self) -> Tensors:
        """Return the current tensors, detached."""
        with torch.no_grad():
            return {name: tensor.detach() for name, tensor in self._given(self.layers, late=True).items()}

    def flops_until(self, step: int) -> float:
        """Return the FLOPs of the run's first `step` steps, as executed: sub-models, skipped layers, trained tensors, teacher."""
        done = max(at for at in self._spent if at <= step)
        for at in range(done, step):
            self._spent[at + 1] = self._spent.pop(at) + self._step_flops(at)
        return self._spent[step]

    def _given(self, height: int, *, late: bool) -> Tensors:
        """Return the tensors of the sub-model with `height` layers; those that learn carry gradients."""
        found: Tensors = {}
        config = self.models[height].config
        for row in self.family.rows_for(config):
            for layer in self.family.layers(row, config):
                own = layer
                if layer is not None and row.depth == self.axis:
                    own = shared_layer(layer, self.layers, height)
                found[row.name(layer)] = self._tensor(row, own, height, late=late)
        return found

    def _tensor(self, row: Row, layer: int | None, height: int, *, late: bool) -> torch.Tensor:
        name = row.name(layer)
        parameter = self.parameters.get(name)
        if parameter is None:
            return self.start[name]
        if name in self.masks:
            return torch.where(self.masks[name], parameter, self.start[name])
        return parameter if self.step.learns(row, layer, height, late=late) else parameter.detach()

    def train(
        self,
        *,
        store: StateStore | None,
        save_every: int | None,
        on_step: Callable[[int, dict[str, Any]], None] | None,
    ) -> TrainResult:
        setup, run = self.setup, self.run
        groups = parameter_groups(
            self.family, self.stage.config, self.parameters, run.optimizer, learning_rate=run.learning_rate
        )

        def measured() -> float:
            if setup.processes is not None and not setup.processes.leads:
                return 0.0
            return mean_loss(
                self.models[self.layers].loss,
                self.tensors(),
                setup.examples,
                batch_size=setup.micro_batch_size,
                device=setup.device,
                dtype=torch.float32,
                autocast=setup.autocast,
            )

        return train(
            groups,
            self._gradients,
            schedule=run,
            tokens_a_step=run.batch_size * setup.sequence_length,
            optimizer=run.optimizer,
            begin={name: state for name, state in self.state.moments.items() if name in self.parameters},
            validate=measured,
            validate_every=setup.evaluate_every,
            # Where a run is cut within a stage, nothing is read.
            validates_ends=(
                self.steps.start == self.stage.begin,
                any(span.stop == self.steps.stop for span in run.spans),
            ),
            chooses=False,
            steps=self.steps,
            partial=True,
            fused=True,
            facts=lambda step: {"flops": self.flops_until(step + 1)},
            store=store,
            save_every=save_every,
            on_step=on_step,
        )

    def _step_flops(self, step: int) -> int:
        height, dropped, late = key = (self._height(step), self._dropped(step), self.stage.is_late(step))
        if key not in self._flops:
            self._flops[key] = self.step.flops(height, dropped, late=late)
        return self._flops[key]

    def _height(self, step: int) -> int:
        submodels = self.stage.submodels
        if not submodels or self.stage.is_late(step):
            return self.layers
        return submodels[int(generator(self.run.seed, "exit", str(step)).integers(len(submodels)))]

    def _dropped(self, step: int) -> tuple[int, ...]:
        if not self.run.dropping.layers:
            return ()
        return dropped_layers(self.run.dropping, layers=self._height(step), step=step, seed=self.run.seed)

    def _gradients(self, step: int) -> float:
        setup, run, height, late = self.setup, self.run, self._height(step), self.stage.is_late(step)
        model, tensors = self.models[height], self._given(height, late=late)
        drawn = setup.slices.batch(step, batch_size=run.batch_size, seed=run.seed, order=run.order)
        batch = on_device(drawn, setup.device, torch.float32)
        if run.dropping.tokens:
            # Draw for the whole batch, so that the draws do not depend on the micro-batch size. Models ignore this key.
            draws = generator(run.seed, "tokens dropped", str(step)).random((run.batch_size, setup.sequence_length))
            batch = {**batch, DRAWS: torch.from_numpy(draws).to(setup.device)}

        def objective(given: Mapping[str, torch.Tensor], part: Mapping[str, torch.Tensor]) -> torch.Tensor:
            with ExitStack() as stack:
                dropped = self._dropped(step)
                if dropped:
                    stack.enter_context(layer_drop(model, self.axis, dropped))
                if run.dropping.tokens:
                    stack.enter_context(token_drop(model, self.axis, run.dropping, part))
                logits = model(given, part)
            assert model.task.loss is not None
            own = model.task.loss(logits, part)
            if self.teacher is None or late:
                return own
            weight = self._teacher_weight(step)
            return (1 - weight) * own + weight * _distillation_loss(self.teacher, logits, part)

        loss = backward_in_parts(
            objective,
            tensors,
            batch,
            micro_batch_size=setup.micro_batch_size,
            device=setup.device,
            autocast=setup.autocast,
            rows=None if setup.processes is None else setup.processes.rows(run.batch_size),
        )
        return loss if setup.processes is None else setup.processes.sum_gradients(self.parameters, loss)

    def _teacher_weight(self, step: int) -> float:
        """Return the weight of the teacher's loss: it falls from one to zero over the early steps of the stage."""
        span = next(span for span in self.run.spans if step in span)
        early = len(span) if self.stage.until is None else self.stage.until - span.start
        return 1 - (step - span.start) / early


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

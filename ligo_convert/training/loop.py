"""The training loop for an operator, a source or a target.

Input: parameter groups, a function that fills their gradients, a schedule, a store for the training state.
Output: the parameters after the last step and, with validation, those of the best step. An interrupted run resumes from its last
saved step and ends with the same bits as an uninterrupted one. So does a run that starts from a milestone of another run whose
steps up to there are the same.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ligo_convert.training.optimizers import STORED, Group, Moments, Optimizers, read_moments, stored_moments
from ligo_convert.training.runs import OptimizerSettings

SAVE_EVERY_SECONDS = 10.0

_SLOW_SAVE = (
    0.5  # seconds; where saving takes longer, the pause grows with it, so that it takes at most a twentieth of the time
)


class Rates(Protocol):
    """A learning rate schedule: the number of steps, and the factor of the peak rate at each."""

    @property
    def steps(self) -> int: ...

    def factor(self, step: int) -> float: ...


class StateStore(Protocol):
    """Storage for a training state: arrays by name, and a text."""

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None: ...

    def load(self) -> tuple[dict[str, np.ndarray], str] | None: ...

    def discard(self, why: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        log: one line per step; with `chooses=False` those of the first step and of evaluations alone.
        best_step: step with the lowest validation loss; 0 is the initial state. Without validation, the last step.
        best_loss: its validation loss; None without validation.
        best: parameters at that step; empty if none are kept.
        moments: state of the optimizer after the last step.
    """

    log: list[dict[str, Any]]
    best_step: int
    best_loss: float | None
    best: dict[str, torch.Tensor]
    moments: Moments


def train(
    groups: Sequence[Group],
    gradients: Callable[[int], float],
    *,
    schedule: Rates,
    tokens_a_step: int,
    optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008  frozen
    begin: Moments | None = None,
    validate: Callable[[], float] | None = None,
    validate_every: int = 10,
    validates_ends: tuple[bool, bool] = (True, True),
    chooses: bool = True,
    steps: range | None = None,
    partial: bool = False,
    fused: bool = False,
    facts: Callable[[int], dict[str, Any]] | None = None,
    store: StateStore | None = None,
    save_every: int | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train `groups` for `schedule.steps` steps, each with the optimizer of its rule.

    Args:
        gradients: step -> loss; fills `.grad` of every parameter. Earlier gradients are cleared before each call.
        tokens_a_step: tokens of one step, for the log.
        optimizer: settings of the optimizers.
        begin: state of the optimizer before the first step; None for a fresh one.
        validate: returns the validation loss of the current parameters. Called every `validate_every` steps, before the first step and
            after the last one.
        validates_ends: whether it is called before the first step, and after the last one if that is not among the others.
        chooses: whether to keep the parameters of the step with the best validation loss. If not, the log holds only the first step and
            those with a validation loss.
        steps: the part of the schedule to train; None for all of it.
        partial: whether a step may leave parameters without a gradient; such parameters do not change.
        fused: whether to use torch's fused AdamW, which is faster but differs in the last bits.
        facts: step -> additional fields of its log line.
        store: receives the state every `save_every` steps, and after the last step.
        save_every: steps between two saved states; None for at most every ten seconds, and a twentieth of the time.
        on_step: called after every step with the number of finished steps and the log line.
    """
    steps = range(schedule.steps) if steps is None else steps
    optimizers = Optimizers(groups, optimizer, fused=fused)
    optimizers.set_moments(begin or {})
    run = _Run(groups=groups, optimizers=optimizers, store=store, steps=steps, chooses=chooses)
    run.resume()
    first: float | None = None
    if validate is not None and validates_ends[0] and run.best_loss is None and run.step == steps.start:
        first = run.consider(steps.start, validate())
        if not chooses:
            run.log.append({"step": steps.start, "validation_loss": round(first, 6)})
    saved, pause = time.monotonic(), SAVE_EVERY_SECONDS
    for step in range(run.step, steps.stop):
        began = time.monotonic()
        factor = schedule.factor(step)
        optimizers.zero_grad()
        loss = gradients(step)
        unused = [name for name, parameter in run.parameters.items() if parameter.grad is None]
        assert partial or not unused, f"no gradient reaches {unused[:3]}"
        norm = torch.nn.utils.clip_grad_norm_(run.parameters.values(), optimizer.clip)
        optimizers.step(factor)
        with torch.no_grad():
            for group in groups:
                for name, start in (group.anchor or {}).items():
                    group.parameters[name].lerp_(start, group.learning_rate * factor * group.weight_decay)
        line: dict[str, Any] = {
            "step": step + 1,
            "loss": round(loss, 6),
            "learning_rate": {group.name: group.learning_rate * factor for group in groups},
            "gradient_norm": round(float(norm), 6),
            "tokens": tokens_a_step * (step + 1),
            **(facts(step) if facts is not None else {}),
        }
        if first is not None and chooses and step == steps.start:
            line["initial_validation_loss"] = round(first, 6)
        last = step + 1 == steps.stop
        if validate is not None and ((last and validates_ends[1]) or (step + 1) % validate_every == 0):
            line["validation_loss"] = round(run.consider(step + 1, validate()), 6)
        line["seconds"] = round(time.monotonic() - began, 3)
        run.step = step + 1
        # The log of a long run holds only its first step and the points of its curve.
        if chooses or "validation_loss" in line or step == 0:
            run.log.append(line)
        due = time.monotonic() - saved > pause if save_every is None else (step + 1) % save_every == 0
        if due or last:
            began = time.monotonic()
            run.save(store)
            saved = time.monotonic()
            pause = SAVE_EVERY_SECONDS * max(1.0, (saved - began) / _SLOW_SAVE)
        if on_step is not None:
            on_step(step + 1, line)
    if run.best_loss is None and chooses:
        run.keep(run.step)
    return TrainResult(
        log=run.log, best_step=run.best_step, best_loss=run.best_loss, best=run.best, moments=optimizers.moments()
    )


class _Run:
    """State of a training run: parameters, moments, best parameters so far, log."""

    def __init__(
        self,
        *,
        groups: Sequence[Group],
        optimizers: Optimizers,
        store: StateStore | None,
        steps: range,
        chooses: bool,
    ) -> None:
        self.parameters = {name: parameter for group in groups for name, parameter in group.parameters.items()}
        self.optimizers, self.store, self.chooses = optimizers, store, chooses
        self.steps, self.step, self.log = steps, steps.start, list[dict[str, Any]]()
        self.best_step, self.best_loss, self.best = 0, None, dict[str, torch.Tensor]()  # type: tuple[int, float | None, dict[str, torch.Tensor]]

    def keep(self, step: int) -> None:
        self.best_step = step
        self.best = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def consider(self, step: int, loss: float) -> float:
        # NaN is never the best loss.
        if self.best_loss is None or loss < self.best_loss or (math.isnan(self.best_loss) and not math.isnan(loss)):
            self.best_loss = loss
            if self.chooses:
                self.keep(step)
        return loss

    def save(self, store: StateStore | None) -> None:
        if store is None:
            return
        arrays, steps = stored_moments(self.optimizers.moments())
        for name, parameter in self.parameters.items():
            arrays[f"parameter/{name}"] = parameter.detach().cpu().numpy()
            if name in self.best:
                arrays[f"best/{name}"] = self.best[name].cpu().numpy()
        text = {
            "step": self.step,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "log": self.log,
            "steps": steps,
        }
        store.save(arrays, json.dumps(text))

    def resume(self) -> None:
        state = self.store.load() if self.store is not None else None
        if state is None:
            return
        arrays, text = state
        data = self._checked(arrays, text)
        if data is None:
            assert self.store is not None
            self.store.discard("it does not fit this training")
            return
        self.step, self.log = data["step"], data["log"]
        self.best_step, self.best_loss = data["best_step"], data["best_loss"]
        self.optimizers.set_moments(read_moments(arrays, data["steps"]))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(arrays[f"parameter/{name}"]))
                if f"best/{name}" in arrays:
                    self.best[name] = torch.from_numpy(arrays[f"best/{name}"]).to(parameter.device)

    def _checked(self, arrays: Mapping[str, np.ndarray], text: str) -> dict[str, Any] | None:
        """Return the text of a state as data; None if text and arrays are not a state of these parameters."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            return None
        match data:
            case {
                "step": int(step),
                "best_step": int(),
                "best_loss": int() | float() | None,
                "log": list(log),
                "steps": dict(steps),
            }:
                pass
            case _:
                return None
        if not self.steps.start <= step <= self.steps.stop or not all(
            isinstance(count, float) for count in steps.values()
        ):
            return None
        for line in log:
            match line:
                case {"step": int(), "loss": int() | float()} | {"step": int(), "validation_loss": int() | float()}:
                    pass
                case _:
                    return None
        if self.chooses and len(log) != step - self.steps.start:
            return None
        stateful = {label.partition("/")[2]: label for label in arrays if label.partition("/")[0] in STORED}
        if not {*steps, *stateful} <= set(self.parameters):
            return None
        for name, parameter in self.parameters.items():
            needed = [f"parameter/{name}", *([f"first/{name}", f"second/{name}"] if name in steps else [])]
            needed += [f"momentum/{name}"] if name in stateful and name not in steps else []
            if self.chooses and data["best_loss"] is not None:
                needed.append(f"best/{name}")
            for key in needed:
                if key not in arrays or arrays[key].shape != tuple(parameter.shape):
                    return None
                if torch.from_numpy(arrays[key]).dtype != parameter.dtype:
                    return None
        return dict(data)

"""One training loop, for whatever is trained here: an operator, a small source, later a target.

What comes in: parameter groups, a function that fills their gradients for a step, a schedule, a place to keep the state. What goes
out: the parameters after the last step, and, where a validation loss is given, those of the best step. A run that is stopped goes on
from its last saved step and ends with the same bits as one that was not; so does one that begins from a milestone of another, where
both are the same up to there.
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

from ligo_convert.training.schedules import Schedule

SAVE_EVERY_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that share a learning rate. Decay draws them to `anchor` where it is given, else to zero."""

    name: str
    parameters: dict[str, torch.nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0
    anchor: dict[str, torch.Tensor] | None = None


class StateStore(Protocol):
    """Where a training state survives a stop: arrays by name, and a text."""

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None: ...

    def load(self) -> tuple[dict[str, np.ndarray], str] | None: ...


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training run ended with. `best_*` are of the lowest validation loss, step 0 being the start."""

    log: list[dict[str, Any]]
    best_step: int
    best_loss: float | None
    best: dict[str, torch.Tensor]


def train(
    groups: Sequence[Group],
    gradients: Callable[[int], float],
    *,
    schedule: Schedule,
    tokens_a_step: int,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 1.0,
    validate: Callable[[], float] | None = None,
    validate_every: int = 10,
    chooses: bool = True,
    steps: range | None = None,
    partial: bool = False,
    fused: bool = False,
    facts: Callable[[int], dict[str, Any]] | None = None,
    store: StateStore | None = None,
    milestones: Mapping[int, StateStore] | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> TrainResult:
    """AdamW over `groups` for `schedule.steps` steps.

    Args:
        gradients: step -> loss, having filled `.grad` of every parameter (earlier gradients are cleared before).
        validate: loss of the parameters as they are; asked before the first step, every `validate_every` steps and after the last.
        chooses: whether the parameters of the best validated step are kept; without it validation is only looked at, and the log
            holds the steps alone after which it was.
        steps: the steps of the schedule that are trained here; None for all.
        partial: whether a step may leave parameters without a gradient, and so as they are.
        fused: torch's fused AdamW: faster, and not the same to the last bit.
        facts: what a step's log line tells beside.
        store: kept at most every ten seconds and after the last step.
        milestones: the state after so many steps is kept here, too.
        on_step: told after every step (steps done, log line).
    """
    steps = range(schedule.steps) if steps is None else steps
    optimizer = torch.optim.AdamW(
        [
            {
                "params": list(group.parameters.values()),
                "lr": group.learning_rate,
                "weight_decay": 0.0 if group.anchor is not None else group.weight_decay,
            }
            for group in groups
        ],
        betas=betas,
        fused=fused,
    )
    run = _Run(groups=groups, optimizer=optimizer, store=store, step=steps.start, chooses=chooses, fused=fused)
    run.resume()
    if validate is not None and run.best_loss is None:
        first = run.consider(steps.start, validate())
        if not chooses:
            run.log.append({"step": steps.start, "validation_loss": round(first, 6)})
    saved = time.monotonic()
    for step in range(run.step, steps.stop):
        began = time.monotonic()
        factor = schedule.factor(step)
        for group, settings in zip(groups, optimizer.param_groups, strict=True):
            settings["lr"] = group.learning_rate * factor
        optimizer.zero_grad(set_to_none=True)
        loss = gradients(step)
        unused = [name for name, parameter in run.parameters.items() if parameter.grad is None]
        assert partial or not unused, f"no gradient reaches {unused[:3]}"
        norm = torch.nn.utils.clip_grad_norm_(run.parameters.values(), clip)
        optimizer.step()
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
        last = step + 1 == steps.stop
        if validate is not None and (last or (step + 1) % validate_every == 0):
            line["validation_loss"] = round(run.consider(step + 1, validate()), 6)
        line["seconds"] = round(time.monotonic() - began, 3)
        run.step = step + 1
        # A long run keeps what its curve is made of alone.
        if chooses or "validation_loss" in line:
            run.log.append(line)
        # First, so that a stop between the two finds it there.
        run.save((milestones or {}).get(step + 1))
        if time.monotonic() - saved > SAVE_EVERY_SECONDS or last:
            run.save(store)
            saved = time.monotonic()
        if on_step is not None:
            on_step(step + 1, line)
    if run.best_loss is None:
        run.keep(run.step)
    return TrainResult(log=run.log, best_step=run.best_step, best_loss=run.best_loss, best=run.best)


class _Run:
    """The state of a run: parameters, moments, the best so far, the log."""

    def __init__(
        self,
        *,
        groups: Sequence[Group],
        optimizer: torch.optim.Optimizer,
        store: StateStore | None,
        step: int,
        chooses: bool,
        fused: bool,
    ) -> None:
        self.parameters = {name: parameter for group in groups for name, parameter in group.parameters.items()}
        self.optimizer, self.store, self.chooses, self.fused = optimizer, store, chooses, fused
        self.step, self.log = step, list[dict[str, Any]]()
        self.best_step, self.best_loss, self.best = 0, None, dict[str, torch.Tensor]()  # type: tuple[int, float | None, dict[str, torch.Tensor]]

    def keep(self, step: int) -> None:
        self.best_step = step
        self.best = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def consider(self, step: int, loss: float) -> float:
        # A loss that is no number never becomes the best.
        if self.best_loss is None or loss < self.best_loss or (math.isnan(self.best_loss) and not math.isnan(loss)):
            self.best_loss = loss
            if self.chooses:
                self.keep(step)
        return loss

    def save(self, store: StateStore | None) -> None:
        if store is None:
            return
        arrays = {}
        steps = {}
        for name, parameter in self.parameters.items():
            arrays[f"parameter/{name}"] = parameter.detach().cpu().numpy()
            # A parameter that no step has reached yet has no moments.
            state = self.optimizer.state.get(parameter)
            if state:
                arrays[f"first/{name}"] = state["exp_avg"].cpu().numpy()
                arrays[f"second/{name}"] = state["exp_avg_sq"].cpu().numpy()
                steps[name] = float(state["step"])
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
        found = self.store.load() if self.store is not None else None
        if found is None:
            return
        arrays, text = found
        data = json.loads(text)
        self.step, self.log = data["step"], data["log"]
        self.best_step, self.best_loss = data["best_step"], data["best_loss"]
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(arrays[f"parameter/{name}"]))
                if name in data["steps"]:
                    self.optimizer.state[parameter] = {
                        # Fused kernels read it where the parameter lies.
                        "step": torch.tensor(data["steps"][name], device=parameter.device if self.fused else "cpu"),
                        "exp_avg": torch.from_numpy(arrays[f"first/{name}"]).to(parameter.device),
                        "exp_avg_sq": torch.from_numpy(arrays[f"second/{name}"]).to(parameter.device),
                    }
                if f"best/{name}" in arrays:
                    self.best[name] = torch.from_numpy(arrays[f"best/{name}"]).to(parameter.device)

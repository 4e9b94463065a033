"""What growth did to the function: the preservation certificate, and losses on a held-out slice.

What comes in: the source and the grown target, in memory, and examples. What goes out: plain numbers. Exact means logits within
1e-4 * max(1, logit scale), near a loss within 0.01 nats, lossy the rest; all in float32. Where there is no loss, near is a hundredth of
the mean square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ligo_convert.data.examples import Examples
from ligo_convert.families.schema import Family
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.operator import Operator
from ligo_convert.training.functional_model import LibraryModel
from ligo_convert.training.tasks import on_device, weight

EXACT = 1e-4

NEAR = 0.01

# Hidden states carry larger values than logits and no softmax tames them: this much of their scale is a departure.
DEPARTS = 1e-3

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A library model with the weights it runs on."""

    library: LibraryModel
    parameters: Tensors


def certificate(
    source: MeasuredModel,
    target: MeasuredModel,
    operator: Operator,
    depths: Mapping[str, tuple[int, ...]],
    examples: Examples,
    *,
    batch_size: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Compare the grown target with its source.

    Where both have the same head its logits are compared. A model without a head, or with a new one, is compared by what its last layer
    puts out, the source's widened as the stream is.

    Args:
        depths: depth axis -> for every new layer, the old layer it takes.

    Returns:
        verdict, compared, max_logit_difference, mean_logit_difference, logit_scale, loss_difference, departs_at (the first new layer,
        counted over all depth axes, whose output is not the grown output of the old layer it takes; None where all are), tokens, images.
    """
    tasks = {model.library.family.task for model in (source, target)}
    same_head = not operator.drawn_rows and len(tasks) == 1 and tasks != {"encoder"}
    found = _Sums(compared="logits" if same_head else "hidden states")
    device, counts = source.library.device, {"tokens": 0, "images": 0}
    widen = _hidden_map(operator, target.library, dtype)
    for first in range(0, len(examples), batch_size):
        rows = range(first, min(first + batch_size, len(examples)))
        batch = on_device(examples.take(rows), device, dtype)
        counts["tokens"] += batch["input_ids"].numel() if "input_ids" in batch else 0
        counts["images"] += len(rows) if "pixel_values" in batch else 0
        with torch.no_grad():
            old, old_layers = source.library.hidden(source.parameters, batch)
            new, new_layers = target.library.hidden(target.parameters, batch)
            if same_head:
                loss = source.library.task.loss
                found.add(old, new, weight(batch), (float(loss(old, batch)), float(loss(new, batch))) if loss else None)
            elif widen is not None:
                axis = target.library.family.depth_axes[-1]
                found.add(widen(old_layers[axis][-1]), new_layers[axis][-1], weight(batch), None)
        if widen is not None:
            found.compare_layers(old_layers, new_layers, widen, depths, operator, target.library.family)
    return {**found.result(), **counts}


class _Sums:
    """Running figures over batches."""

    def __init__(self, compared: str) -> None:
        self.compared = compared
        self.most, self.total, self.count, self.scale = 0.0, 0.0, 0, 0.0
        self.squares = [0.0, 0.0]
        self.losses, self.weight = [0.0, 0.0], 0.0
        self.apart: dict[int, float] = {}

    def add(self, old: torch.Tensor, new: torch.Tensor, weight: float, losses: tuple[float, float] | None) -> None:
        difference = (old - new).abs()
        # A logit that is no number is no small difference: max() of a tensor with NaN is NaN, and NaN fails every comparison below.
        self.most = _worse(self.most, float(difference.max()))
        self.total += float(difference.sum(dtype=torch.float64))
        self.count += difference.numel()
        self.scale = max(self.scale, float(old.abs().max()))
        self.squares[0] += float(difference.square().sum(dtype=torch.float64))
        self.squares[1] += float(old.square().sum(dtype=torch.float64))
        if losses is not None:
            self.losses = [total + loss * weight for total, loss in zip(self.losses, losses, strict=True)]
            self.weight += weight

    def compare_layers(
        self,
        old: Mapping[str, list[torch.Tensor]],
        new: Mapping[str, list[torch.Tensor]],
        widen: Any,
        depths: Mapping[str, tuple[int, ...]],
        operator: Operator,
        family: Family,
    ) -> None:
        # Where the last norm of a layer only normalises, its gain and shift follow at a later layer: there is nothing to compare.
        units = {
            row.depth: operator.unit_layers.get(row.pattern, ())
            for row in family.rows
            if row.module == family.norm.after_mlp
        }
        at = 0
        for axis, sources in depths.items():
            for layer, source in enumerate(sources):
                if layer not in units.get(axis, ()):
                    expected, there = widen(old[axis][source]), new[axis][layer]
                    if "mean-preserving" in operator.rewrites:
                        # New entries that carry the mean hold what the source has nowhere.
                        written = widen(torch.ones_like(old[axis][source][0, 0])) != 0
                        expected, there = expected[..., written], there[..., written]
                    apart = float((expected - there).abs().max() / expected.abs().max().clamp_min(1e-12))
                    self.apart[at] = _worse(self.apart.get(at, 0.0), apart)
                at += 1

    def result(self) -> dict[str, Any]:
        departing = [layer for layer, apart in sorted(self.apart.items()) if not apart <= DEPARTS]
        loss_difference = (self.losses[1] - self.losses[0]) / self.weight if self.weight else None
        relative = self.squares[0] / self.squares[1] if self.squares[1] else math.nan
        near = abs(loss_difference) <= NEAR if loss_difference is not None else relative <= NEAR
        exact = bool(self.count) and self.most <= EXACT * max(1.0, self.scale)
        return {
            "verdict": "exact" if exact else "near" if near else "lossy",
            "compared": self.compared,
            "max_logit_difference": self.most if self.count else math.nan,
            "mean_logit_difference": self.total / self.count if self.count else math.nan,
            "logit_scale": self.scale,
            "loss_difference": loss_difference,
            "departs_at": None if exact or not departing else departing[0],
        }


def _worse(first: float, second: float) -> float:
    """The larger of two figures, a NaN being the worst of all."""
    return second if not second <= first else first


def _hidden_map(operator: Operator, library: LibraryModel, dtype: torch.dtype) -> Any:
    """Hidden states of the source -> what they are in the target where the stream is written by one map."""
    if len(operator.terms) != 1:
        return None
    family = library.family
    # No row is grown here: only the maps are asked for.
    grower = Grower(operator, family, device=library.device, dtype=dtype)
    factors = operator.stream(operator.terms[0], family.norm.stream, None, None, None)
    maps = [grower.map_of(axis.write) for axis in factors]
    centred = "centre" in operator.rewrites and family.norm.placement == "pre"

    def widen(hidden: torch.Tensor) -> torch.Tensor:
        if centred:
            hidden = hidden - hidden.mean(-1, keepdim=True)
        for found in maps:
            hidden = found.apply(hidden, hidden.ndim - 1)
        return hidden

    return widen


def rounding(
    target: MeasuredModel, dtype: torch.dtype, examples: Examples, *, batch_size: int, wide: torch.dtype
) -> dict[str, float | None]:
    """What storing the target as `dtype` costs, measured on the same examples: it is reported beside the map's verdict."""
    rounded = {name: tensor.to(dtype).to(tensor.dtype) for name, tensor in target.parameters.items()}
    most, loss, count = 0.0, 0.0, 0.0
    measure = target.library.task.loss
    for first in range(0, len(examples), batch_size):
        rows = range(first, min(first + batch_size, len(examples)))
        batch = on_device(examples.take(rows), target.library.device, wide)
        with torch.no_grad():
            exact = target.library(target.parameters, batch)
            narrow = target.library(rounded, batch)
            most = _worse(most, float((exact - narrow).abs().max()))
            if measure is not None:
                loss += (float(measure(narrow, batch)) - float(measure(exact, batch))) * weight(batch)
        count += weight(batch)
    return {"max_logit_difference": most, "loss_difference": loss / count if measure is not None else None}

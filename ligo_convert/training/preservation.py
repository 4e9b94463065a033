"""Measure how far growth preserves the source's function.

Input: the source and the grown target, in memory or streamed, and examples.
Output: plain numbers and a verdict, all in float32 or wider. "exact": logits within 1e-4 * max(1, logit scale). "near": loss within
0.01 nats; without a loss, a mean squared difference within 1 % of the mean square. "lossy": everything else. A source whose output is
constant, or not finite, cannot be measured. `judged` joins what was measured with what the method claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from ligo_convert.data.examples import Examples
from ligo_convert.errors import WrongResult
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import HEADLESS
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.growth_plan import GrowthPlan
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.stream import Read
from ligo_convert.growth.verdict import Verdict, certified
from ligo_convert.training.functional_model import LibraryModel
from ligo_convert.training.streamed import rounded, streamed_source, streamed_target
from ligo_convert.training.tasks import on_device, weight

EXACT = 1e-4

NEAR = 0.01

# A layer departs where its hidden states differ by more than this fraction of their largest value. Hidden states are larger than
# logits, so this is looser than EXACT.
DEPARTS = 1e-3

# Outputs of a source that vary less than this fraction of their largest value are constant: float32 carries no more.
CONSTANT = 1e-6

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A library model with the weights it runs on, in memory or streamed (`training.streamed`)."""

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
    stored: Mapping[str, torch.dtype] | None = None,
) -> dict[str, Any]:
    """Compare the grown target with its source.

    Models with the same head are compared by their logits. A model without a head, or with a new one, is compared by the hidden
    states of its last layer, with the source's states widened by the stream's write map.

    Args:
        depths: depth axis -> source layer of every target layer.
        stored: canonical name -> dtype of the target's tensor in its file; None to leave out the cost of storing it so.

    Returns:
        The measured fields of `outputs.metrics.Preservation`; `rounding` only where a tensor is stored in a narrower dtype than `dtype`.
    """
    tasks = {model.library.family.task for model in (source, target)}
    same_head = not operator.drawn_rows and len(tasks) == 1 and tasks.isdisjoint(HEADLESS)
    sums = _Sums(compared="logits" if same_head else "hidden states")
    device, counts = source.library.device, {"tokens": 0, "images": 0}
    widen = _hidden_map(operator, target.library, dtype)
    cost = _RoundingCost(target, stored or {}, dtype)
    for first in range(0, len(examples), batch_size):
        rows = range(first, min(first + batch_size, len(examples)))
        batch = on_device(examples.take(rows), device, dtype)
        counts["tokens"] += batch["input_ids"].numel() if "input_ids" in batch else 0
        counts["images"] += len(rows) if "pixel_values" in batch else 0
        # A model without a head reads the tokens that labels hide from one with a head. Here both read the same.
        seen = batch if same_head else {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad():
            layers = _Layers(source, target, operator, depths, widen, sums)
            old = source.library.watched(source.parameters, seen, layers.keep)
            new = target.library.watched(target.parameters, seen, layers.compare)
            if same_head:
                loss = source.library.task.loss
                sums.add(old, new, weight(batch), (float(loss(old, batch)), float(loss(new, batch))) if loss else None)
            elif widen is not None and layers.states:
                sums.add(widen(layers.last_of_source), layers.last, weight(batch), None)
            del layers
            cost.add(new, seen if target.library.task.loss is None else batch)
    found = {**sums.result(), **counts}
    return found if found["verdict"] is None else {**found, **cost.result()}


def in_float64(
    source: LibraryModel,
    target: LibraryModel,
    plan: GrowthPlan,
    inventory: Inventory,
    read: Read,
    examples: Examples,
    *,
    batch_size: int,
) -> dict[str, Any]:
    """Return the certificate of the initial growth in float64, whatever the dtype of the models. Weights are streamed.

    Args:
        source: the source's model without weights.
        target: the target's model without weights.
        plan: the growth.
        inventory: the source's tensors.
        read: name on disk -> bytes of the source's tensor.
    """
    dtype, device = torch.float64, source.device
    operator = initial_operator(plan, dtype=np.float64)
    old = streamed_source(read, inventory, device=device, dtype=dtype)
    new = streamed_target(read, plan.family, inventory, operator, device=device, dtype=dtype)
    return certificate(
        MeasuredModel(library=source, parameters=old),
        MeasuredModel(library=target, parameters=new),
        operator,
        {axis: found.source for axis, found in plan.depths.items()},
        examples,
        batch_size=batch_size,
        dtype=dtype,
    )


def judged(
    measured: Mapping[str, Any],
    planned: Verdict,
    *,
    dtype: torch.dtype,
    data: bool,
    again: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the certificate of a growth: what was measured, how, and the verdict that follows from it and from the method's claim.

    Args:
        measured: the result of `certificate`.
        planned: the verdict that the method claims.
        dtype: dtype of the arithmetic.
        data: whether the examples are the user's data; if not, they are random.
        again: measures in float64. It is called where float32 shows a difference that the mathematics rule out: in a model with
            large activations, the rounding of float32 alone can be as large.

    Raises:
        WrongResult: a growth that is exact by mathematics is not.
    """
    if planned == "exact" and measured["verdict"] not in ("exact", None) and dtype != torch.float64:
        measured, dtype = {**measured, **again()}, torch.float64
    found: Verdict | None = measured["verdict"]
    how = {"measured": found, "dtype": str(dtype).removeprefix("torch."), "inputs": "data" if data else "random"}
    if found is None:
        return {**measured, **how}
    if planned == "exact" and found != "exact":
        raise WrongResult(
            f"growth preserves the function by its mathematics, and the {measured['compared']} of the grown model differ",
            where="preservation",
            expected=f"at most {EXACT * max(1.0, measured['logit_scale']):.1e}",
            found=f"{measured['max_logit_difference']:.1e}, measured in {how['dtype']}",
            hint="nothing was written; please report it with the recipe and the source's config.json",
        )
    return {**measured, **how, "verdict": certified(planned, found)}


class _Sums:
    """Running sums over batches."""

    def __init__(self, compared: str) -> None:
        self.compared = compared
        self.most, self.total, self.count, self.scale = 0.0, 0.0, 0, 0.0
        self.finite, self.rows = True, 0
        self.lowest, self.highest = torch.tensor(math.inf), torch.tensor(-math.inf)
        self.squares = [0.0, 0.0]
        self.losses, self.weight = [0.0, 0.0], 0.0
        self.apart: dict[int, float] = {}

    def add(self, old: torch.Tensor, new: torch.Tensor, weight: float, losses: tuple[float, float] | None) -> None:
        difference = (old - new).abs()
        # max() of a tensor with NaN is NaN, and NaN fails every comparison in `result`, so NaN never counts as preserved.
        self.most = _worse(self.most, float(difference.max()))
        self.total += float(difference.sum(dtype=torch.float64))
        self.count += difference.numel()
        self.scale = max(self.scale, float(old.abs().max()))
        self.finite = self.finite and bool(torch.isfinite(old).all())
        flat = old.flatten(0, -2)
        self.rows += len(flat)
        self.lowest = torch.minimum(self.lowest.to(flat), flat.amin(0))
        self.highest = torch.maximum(self.highest.to(flat), flat.amax(0))
        self.squares[0] += float(difference.square().sum(dtype=torch.float64))
        self.squares[1] += float(old.square().sum(dtype=torch.float64))
        if losses is not None:
            self.losses = [total + loss * weight for total, loss in zip(self.losses, losses, strict=True)]
            self.weight += weight

    def compare_layer(self, layer: int, apart: float) -> None:
        """Take the relative difference after one target layer, counted over all depth axes."""
        self.apart[layer] = _worse(self.apart.get(layer, 0.0), apart)

    def _why_unmeasured(self) -> str | None:
        """Return why the outputs show nothing; None where they do."""
        if not self.count:
            return "the method maps hidden states in several ways, so source and target have none to compare"
        if not self.finite:
            return f"the source's {self.compared} are not finite"
        if self.rows > 1 and float((self.highest - self.lowest).max()) <= CONSTANT * self.scale:
            return f"the source's {self.compared} are constant: they do not depend on the input"
        return None

    def result(self) -> dict[str, Any]:
        unmeasured = self._why_unmeasured()
        if unmeasured is not None:
            return {"verdict": None, "compared": self.compared, "unmeasured": unmeasured}
        departing = [layer for layer, apart in sorted(self.apart.items()) if not apart <= DEPARTS]
        loss_difference = (self.losses[1] - self.losses[0]) / self.weight if self.weight else None
        relative = self.squares[0] / self.squares[1] if self.squares[1] else math.nan
        near = abs(loss_difference) <= NEAR if loss_difference is not None else relative <= NEAR
        exact = self.most <= EXACT * max(1.0, self.scale)
        return {
            "verdict": "exact" if exact else "near" if near else "lossy",
            "compared": self.compared,
            "max_logit_difference": self.most,
            "mean_logit_difference": self.total / self.count,
            "logit_scale": self.scale,
            "loss_difference": loss_difference,
            "departs_at": None if exact or not departing else departing[0],
        }


def _worse(first: float, second: float) -> float:
    """Return the larger of two figures; NaN counts as the largest."""
    return second if not second <= first else first


def _hidden_map(operator: Operator, library: LibraryModel, dtype: torch.dtype) -> Any:
    """Return a function that widens hidden states of the source to the target's; None where the stream has several write maps."""
    if len(operator.terms) != 1:
        return None
    family = library.family
    # Only the grower's maps are used; it grows no row here.
    grower = Grower(operator, family, device=library.device, dtype=dtype)
    factors = operator.stream(operator.terms[0], family.norm.stream, None, None, None)
    maps = [grower.map_of(axis.write) for axis in factors]
    centred = "centre" in operator.rewrites and family.norm.placement == "pre"

    def widen(hidden: torch.Tensor) -> torch.Tensor:
        if centred:
            hidden = hidden - hidden.mean(-1, keepdim=True)
        for axis_map in maps:
            hidden = axis_map.apply(hidden, hidden.ndim - 1)
        return hidden

    return widen


class _Layers:
    """Compare the target's hidden states with the source's after every layer, while the target runs.

    The source's states are kept in one block of memory for every depth axis, so that weights which come and go leave no gaps. The
    target's are compared at once and only the last are kept.

    Args:
        depths: depth axis -> source layer of every target layer.
        widen: maps states of the source to the target's; None where there is no such map.
        sums: takes the differences.
    """

    def __init__(
        self,
        source: MeasuredModel,
        target: MeasuredModel,
        operator: Operator,
        depths: Mapping[str, tuple[int, ...]],
        widen: Any,
        sums: _Sums,
    ) -> None:
        self.sizes = source.library.family.sizes(source.library.config)
        self.axes = target.library.family.depth_axes
        self.depths, self.widen, self.sums = depths, widen, sums
        self.carries_mean = "mean-preserving" in operator.rewrites
        family = target.library.family
        # A layer with a unit last norm gets its gain and shift at a later layer, so its own output does not compare.
        self.units = {
            row.depth: operator.unit_layers.get(row.pattern, ())
            for row in family.rows
            if row.module == family.norm.after_mlp
        }
        self.before = dict(
            zip(depths, accumulate((len(layers) for layers in depths.values()), initial=0), strict=False)
        )
        self.states: dict[str, torch.Tensor] = {}
        self.last: torch.Tensor

    @property
    def last_of_source(self) -> torch.Tensor:
        """The source's states after its last layer."""
        return self.states[self.axes[-1]][-1]

    def keep(self, axis: str, layer: int, states: torch.Tensor) -> None:
        """Keep the source's states after a layer."""
        if self.widen is None:
            return
        if axis not in self.states:
            self.states[axis] = states.new_empty((self.sizes[axis], *states.shape))
        self.states[axis][layer] = states

    def compare(self, axis: str, layer: int, there: torch.Tensor) -> None:
        """Compare the target's states after a layer with those of its source layer."""
        self.last = there
        # A source without layers has no states to compare.
        if self.widen is None or axis not in self.states or layer in self.units.get(axis, ()):
            return
        states = self.states[axis][self.depths[axis][layer]]
        expected = self.widen(states)
        if self.carries_mean:
            # New entries that carry the mean have no counterpart in the source.
            written = self.widen(torch.ones_like(states[0, 0])) != 0
            expected, there = expected[..., written], there[..., written]
        apart = float((expected - there).abs().max() / expected.abs().max().clamp_min(1e-12))
        self.sums.compare_layer(self.before[axis] + layer, apart)


class _RoundingCost:
    """What storing the target changes, on the same examples. It is reported beside the verdict and never changes it.

    Args:
        target: the grown target.
        stored: canonical name -> dtype in the file; empty where this is not asked for.
        wide: dtype of the arithmetic.
    """

    def __init__(self, target: MeasuredModel, stored: Mapping[str, torch.dtype], wide: torch.dtype) -> None:
        self.narrowest = min(stored.values(), key=lambda dtype: torch.finfo(dtype).bits, default=wide)
        self.is_measured = torch.finfo(self.narrowest).bits < torch.finfo(wide).bits
        self.library, self.measure = target.library, target.library.task.loss
        self.parameters = rounded(target.parameters, stored) if self.is_measured else {}
        self.most, self.loss, self.count = 0.0, 0.0, 0.0

    def add(self, exact: torch.Tensor, batch: Tensors) -> None:
        """Run the rounded target on a batch. `exact` is the output of the target that is not rounded."""
        if not self.is_measured:
            return
        narrow = self.library(self.parameters, batch)
        self.most = _worse(self.most, float((exact - narrow).abs().max()))
        if self.measure is not None:
            self.loss += (float(self.measure(narrow, batch)) - float(self.measure(exact, batch))) * weight(batch)
        self.count += weight(batch)

    def result(self) -> dict[str, Any]:
        if not self.is_measured:
            return {}
        return {
            "rounding": {
                "dtype": str(self.narrowest).removeprefix("torch."),
                "max_logit_difference": self.most,
                "loss_difference": self.loss / self.count if self.measure is not None else None,
            }
        }

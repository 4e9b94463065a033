"""Read finished runs at equal loss and at equal budget.

Input: the ends of one entry and one seed: what each run cost, and the loss that it ended with.
Output: readings. A reading outside the measured range is a bound; nothing is extrapolated.

Runs of one entry with different lengths lie on a curve that is close to a line in (log FLOPs, loss), so a reading between two ends is
interpolated there. Bounds pass through every calculation: a saving derived from a bound is a bound.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Bound = Literal["at least", "at most", "mixed"]

OPPOSITE: dict[Bound | None, Bound | None] = {
    "at least": "at most",
    "at most": "at least",
    "mixed": "mixed",
    None: None,
}


@dataclass(frozen=True, kw_only=True)
class End:
    """A finished run: it was trained to its own end, and its learning rate decayed.

    Attributes:
        steps: steps of the run.
        flops: training FLOPs from the entry's own beginning: with stages before growth and the fit, without the source's training.
        loss: loss on the test split, in nats; None if it is not finite.
        accuracy: fraction of correct predictions on the test split; None if it is not measured.
        learning_rate: peak learning rate of the run.
    """

    steps: int
    flops: float
    loss: float | None
    accuracy: float | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.flops) and self.flops > 0):
            raise ValueError(
                f"a run of {self.steps} steps has a cost of {self.flops} FLOPs: expected a positive number"
            )
        if self.loss is not None and not math.isfinite(self.loss):
            object.__setattr__(self, "loss", None)


@dataclass(frozen=True)
class Reading:
    """A figure read from measured runs.

    Attributes:
        value: the figure; None if nothing was measured, or if seeds bound it from different sides.
        bound: None if the value is inside the measured range; `at least` or `at most` if the value is only a bound; `mixed` if some seeds
            bound it from below and others from above.
    """

    value: float | None
    bound: Bound | None = None

    def opposite(self, value: float) -> Reading:
        """Return a reading of `value`, a figure that falls while this one rises."""
        return Reading(value, OPPOSITE[self.bound])

    @property
    def at_least(self) -> float | None:
        """Return the value if the figure is certainly not below it; None otherwise."""
        return self.value if self.bound in (None, "at least") else None

    @property
    def at_most(self) -> float | None:
        """Return the value if the figure is certainly not above it; None otherwise."""
        return self.value if self.bound in (None, "at most") else None


NOTHING = Reading(None)


class Frontier:
    """The lowest loss that one entry has for its FLOPs, from its finished runs with one seed.

    A run that costs more and ends higher than another is no reason to pay more, so losses are the minimum over the runs up to a cost.
    """

    def __init__(self, ends: Iterable[End]) -> None:
        """Read finished runs, in any order. Runs without a finite loss are left out."""
        points: list[tuple[float, float]] = []
        for flops, loss in sorted((end.flops, end.loss) for end in ends if end.loss is not None):
            if points and points[-1][0] == flops:
                continue  # of two runs with the same cost, the better one comes first
            points.append((flops, min(loss, points[-1][1]) if points else loss))
        self.points: tuple[tuple[float, float], ...] = tuple(points)

    @classmethod
    def of_record(cls, ends: Iterable[Mapping[str, Any]]) -> Frontier:
        """Read the ends of one seed as compare.json holds them."""
        return cls(End(steps=end["step"], flops=end["flops"], loss=end["loss"]) for end in ends)

    def loss_at(self, flops: float, *, tolerance: float = 0.0) -> Reading:
        """Return the loss at a cost. Below the cheapest run it is at least that run's; above the dearest one at most that run's.

        Args:
            flops: the cost.
            tolerance: a cost outside the runs by no more than this fraction of it counts as that of the nearest run.
        """
        if not self.points:
            return NOTHING
        (first, highest), (last, lowest) = self.points[0], self.points[-1]
        if flops < first:
            return Reading(highest, None if flops >= first * (1 - tolerance) else "at least")
        if flops > last:
            return Reading(lowest, None if flops <= last * (1 + tolerance) else "at most")
        for (low, above), (high, below) in pairwise(self.points):
            if flops <= high:
                part = math.log(flops / low) / math.log(high / low)
                return Reading(above + part * (below - above))
        return Reading(lowest)

    def flops_at(self, loss: float) -> Reading:
        """Return the lowest cost at which the entry has a loss. Outside the measured losses it is a bound."""
        if not self.points:
            return NOTHING
        (first, highest), (last, lowest) = self.points[0], self.points[-1]
        if loss > highest:
            return Reading(first, "at most")
        if loss < lowest:
            return Reading(last, "at least")
        for (low, above), (high, below) in pairwise(self.points):
            if loss == above:
                return Reading(low)
            if below <= loss < above:
                part = (above - loss) / (above - below)
                return Reading(high if part == 1 else low * (high / low) ** part)
        return Reading(last)


def saved(cost: float, scratch: Reading) -> Reading:
    """Return the FLOPs saved, in per cent of the FLOPs that scratch needs for the same loss.

    Args:
        cost: FLOPs that were spent.
        scratch: FLOPs of scratch at the same loss, as `Frontier.flops_at` reads them.
    """
    if scratch.value is None:
        return NOTHING
    return Reading(100 * (1 - cost / scratch.value), scratch.bound)


def saved_by(cost: Reading, scratch: float) -> Reading:
    """Return the FLOPs saved where the cost is a reading and scratch's FLOPs are known, in per cent."""
    return NOTHING if cost.value is None else cost.opposite(100 * (1 - cost.value / scratch))


def gap(loss: float | None, scratch: Reading) -> Reading:
    """Return a loss minus scratch's loss at equal cost; negative where scratch is worse."""
    if loss is None or scratch.value is None:
        return NOTHING
    return scratch.opposite(loss - scratch.value)


def mean(readings: Sequence[Reading]) -> Reading:
    """Return the mean over seeds: nothing unless every seed has the figure; a bound if one of them is a bound.

    >>> mean([Reading(40.0), Reading(44.0, "at least")])
    Reading(value=42.0, bound='at least')
    """
    values = [reading.value for reading in readings if reading.value is not None]
    bounds = {reading.bound for reading in readings} - {None}
    if bounds == {"at least", "at most"} or "mixed" in bounds:
        return Reading(None, "mixed")
    if not values or len(values) < len(readings):
        return NOTHING
    return Reading(statistics.fmean(values), next(iter(bounds), None))


def spread(readings: Sequence[Reading]) -> float | None:
    """Return the standard deviation over seeds; None for one seed, or if a seed has no figure or only a bound."""
    known = [reading.value for reading in readings if reading.value is not None and reading.bound is None]
    return statistics.stdev(known) if len(known) == len(readings) and len(known) > 1 else None


def finite(value: object) -> float | None:
    """Return `value` as a float; None for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)

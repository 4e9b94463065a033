"""Learning-rate schedules: a step in, the part of the peak rate out; the shapes in one table.

Warmup-stable-decay is Hu et al., arXiv:2404.06395.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _stable(done: float) -> float:
    return min(1.0, 5 * (1 - done))


# Part of the steps after warmup that is done -> factor. `stable` ends with a linear last fifth.
SHAPES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "stable": _stable}
STABLE_PART = 0.8  # of `stable`, at the peak


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factor by step: linear warmup, then one of `SHAPES`.

    Attributes:
        begins: steps at which the model changes and the moments begin anew: the rate rises again over `warmup` steps from there.
    """

    steps: int
    warmup: int
    shape: str = "cosine"
    begins: tuple[int, ...] = ()

    def factor(self, step: int) -> float:
        """The factor of step `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = max(1, self.steps - self.warmup)
        again = [(step - first + 1) / self.warmup for first in self.begins if 0 <= step - first < self.warmup]
        return SHAPES[self.shape]((step - self.warmup) / left) * min([*again, 1.0])

    @property
    def turn(self) -> int:
        """The step up to which a run of more steps has the same factors: where `stable` begins to fall; never for others."""
        if self.shape != "stable":
            return 0
        return self.warmup + math.floor(STABLE_PART * max(1, self.steps - self.warmup))

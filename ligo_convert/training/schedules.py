"""Learning-rate schedules: a step in, the part of the peak rate out; the shapes in one table.

Warmup-stable-decay is Hu et al., arXiv:2404.06395.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _stable(done: float) -> float:
    return min(1.0, 5 * (1 - done))


# Part of the steps after warmup that is done -> factor. `stable` ends with a linear last fifth.
SHAPES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "stable": _stable}

STABLE_PART = 0.8  # of `stable`, at the peak


def default_warmup(steps: int) -> int:
    """Return the warmup steps of a fit that names none: a tenth of its steps, at most ten."""
    return min(10, steps // 10)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factor by step: linear warmup, then one of `SHAPES`.

    Attributes:
        begins: step -> steps over which the rate rises again from there, as the model changes and the moments begin anew.
    """

    steps: int
    warmup: int
    shape: str = "cosine"
    begins: Mapping[int, int] = field(default_factory=dict)

    def factor(self, step: int) -> float:
        """The factor of step `step`, counted from 0."""
        again = min(
            ((step - first + 1) / over for first, over in self.begins.items() if 0 <= step - first < over), default=1.0
        )
        if step < self.warmup:
            return (step + 1) / self.warmup * again
        left = max(1, self.steps - self.warmup)
        return SHAPES[self.shape]((step - self.warmup) / left) * again

    @property
    def turn(self) -> int:
        """The step up to which a run of more steps has the same factors: where `stable` begins to fall; never for others."""
        if self.shape != "stable":
            return 0
        return self.warmup + math.floor(STABLE_PART * max(1, self.steps - self.warmup))

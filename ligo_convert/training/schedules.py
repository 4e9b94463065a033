"""Learning-rate schedules, as factors of the peak rate by step.

`stable` is warmup-stable-decay (Hu et al., arXiv:2404.06395).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _stable(done: float) -> float:
    return min(1.0, 5 * (1 - done))


# Name -> function of the completed fraction of the steps after warmup. `stable` decays linearly over the last fifth.
SHAPES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "stable": _stable}


def default_warmup(steps: int) -> int:
    """Return the warmup steps of a fit that names none: a tenth of its steps, at most ten."""
    return min(10, steps // 10)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factor by step: linear warmup, then one of `SHAPES`.

    Attributes:
        steps: all optimiser steps, warmup included.
        warmup: steps of the linear warmup.
        shape: key of `SHAPES`.
    """

    steps: int
    warmup: int
    shape: str = "cosine"

    def factor(self, step: int) -> float:
        """Return the factor of step `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = max(1, self.steps - self.warmup)
        return SHAPES[self.shape]((step - self.warmup) / left)

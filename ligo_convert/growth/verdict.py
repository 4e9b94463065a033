"""Preservation verdicts, the claims that methods make, and named random generators."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["exact", "near", "lossy"]


class CannotPreserve(ValueError):
    """A preserving method cannot preserve the function at these sizes. The message states the reason."""


def generator(seed: int, *names: str) -> np.random.Generator:
    """Return a generator keyed by the seed and the names, so that a new draw elsewhere changes no other draw."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The effect of a width method on one axis, predicted from sizes alone.

    Attributes:
        verdict: how well the map preserves the function.
        reason: one clause for the plan and the model card.
        epsilon: factor on the norm's epsilon in the target's config.
        head: factor on the gain and shift of the norm that feeds a tied head.
    """

    verdict: Verdict
    reason: str
    epsilon: float = 1.0
    head: float = 1.0

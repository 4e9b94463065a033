"""TODO: one sentence."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["exact", "near", "lossy"]


class CannotPreserve(ValueError):
    """A start that promises the function cannot keep the promise here; the message is the reason."""


def generator(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for every purpose: adding one draw changes no other."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a width start promises for one axis.

    Attributes:
        verdict, reason: of the map. epsilon: factor on the norm's epsilon in the target's config.
        head: factor on the norm that feeds a tied head.
    """

    verdict: Verdict
    reason: str
    epsilon: float = 1.0
    head: float = 1.0

"""Preservation verdicts, the claims that methods make, and named random generators."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["exact", "near", "lossy"]

# Verdicts by how little they preserve.
RANK: dict[Verdict, int] = {"exact": 0, "near": 1, "lossy": 2}


def worst(*verdicts: Verdict) -> Verdict:
    """Return the verdict that preserves least."""
    return max(verdicts, key=RANK.__getitem__, default="exact")


def certified(planned: Verdict, measured: Verdict) -> Verdict:
    """Return the verdict of a growth from what its method claims and what was measured.

    `exact` needs both: a measurement shows how far outputs differ on some inputs, and only the mathematics covers all inputs. A
    method that claims less is at best `near`, however small the measured difference is.
    """
    return measured if planned == "exact" else worst("near", measured)


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

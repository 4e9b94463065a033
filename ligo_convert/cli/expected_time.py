"""Estimate how long the training of a plan takes on the processor of this machine.

Input: FLOPs and threads. Output: the shortest and the longest time to expect, in seconds.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ligo_convert.environment import cores

# The part of the speed of a large matrix product that trainings reach, set around the 0.20 and 0.27 measured for the quickstart
# (docs/development/log.md). Small models spend their time between products, large ones in them.
SLOWEST, FASTEST = 0.1, 0.6

_SIZE, _TRIES = 768, 5  # rows of the matrices of a trial; trials, of which the fastest counts

# Where it exists, models run on a GPU, whose speed a plan does not measure.
_GPU = Path("/dev/nvidia0")


def expected_seconds(flops: float, *, threads: int) -> tuple[float, float] | None:
    """Return the shortest and the longest time to expect, in seconds; None where a GPU is likely to be used.

    Args:
        flops: floating-point operations of all trainings.
        threads: CPU threads that they use.
    """
    if _GPU.exists():
        return None
    speed = product_speed() * min(1.0, threads / cores())
    return flops / (FASTEST * speed), flops / (SLOWEST * speed)


def product_speed() -> float:
    """Return the FLOPs per second of a product of float32 matrices on all cores. The matrices are small, so that a plan stays fast."""
    matrix = np.ones((_SIZE, _SIZE), dtype=np.float32)
    result = np.empty_like(matrix)
    seconds = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        np.matmul(matrix, matrix, out=result)
        seconds.append(time.perf_counter() - began)
    return float(2 * _SIZE**3 / max(min(seconds), 1e-9))

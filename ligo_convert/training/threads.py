"""Choose the number of threads that a model is trained and measured with.

The number decides the last bits of sums, and so the bytes of a fitted operator and of a trained source. It therefore follows from the
recipe, never from the machine: on fewer cores the threads take turns, on more cores some of those stay idle.
"""

from __future__ import annotations

# Threads, and the operations of a training step from which on so many are worth their overhead (docs/guide/reproducibility.md).
_STEPS = ((8, 10**12), (4, 2 * 10**9))


def default_threads(step_flops: int) -> int:
    """Return the number of threads for a model, from the operations of one training step.

    >>> [default_threads(flops) for flops in (10**8, 10**10, 10**13)]
    [1, 4, 8]
    """
    return next((threads for threads, least in _STEPS if step_flops >= least), 1)

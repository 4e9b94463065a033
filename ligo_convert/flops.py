"""Floating-point operations, counted from a family's table and a config alone.

A forward pass multiplies every weight that is read and written once a token (2 operations each), and attention takes 2 products of
2 * sequence * width operations a token and layer; backward costs twice forward. Lookups, norms, softmax and biases are left out, as
is usual. The head counts, tied or not. An image is a sequence of its patches; what is applied to one token of a sequence alone (class
attention, classifiers) counts once a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ligo_convert.family import Family


def forward_flops(family: Family, config: Mapping[str, object], *, tokens: int, sequence_length: int) -> int:
    """Operations of one forward pass over `tokens` tokens in sequences of `sequence_length`."""
    sizes = family.sizes(config)
    total = 0
    for row in family.rows:
        if not row.present(family.complete(config)) or len(row.layout.dims) < 2:
            continue
        reads = [dim for dim in row.layout.dims if dim.role == "read"]
        # What reads nothing is added; what reads ids is looked up.
        if not reads or any(set(dim.parts) <= set(family.lookups) for dim in reads):
            continue
        count = tokens // sequence_length if row.module in family.pooled_modules else tokens
        total += 2 * math.prod(family.shape(row, sizes)) * count * (sizes[row.depth] if row.depth else 1)
    for stream, _ in family.products:
        for axis in dict.fromkeys(row.depth for row in family.rows if row.depth and stream in row.layout.streams):
            writers = [row.module for row in family.rows if row.depth == axis and stream in row.layout.streams]
            count = tokens // sequence_length if set(writers) <= family.pooled_modules else tokens
            total += 4 * sequence_length * sizes[stream] * count * sizes[axis]
    return total


def step_flops(family: Family, config: Mapping[str, object], *, tokens: int, sequence_length: int) -> int:
    """Operations of one training step: forward and backward."""
    return 3 * forward_flops(family, config, tokens=tokens, sequence_length=sequence_length)


def growth_flops(family: Family, source: Mapping[str, object], target: Mapping[str, object]) -> int:
    """Operations of growing every tensor once by dense maps: along each dim that grows, then over the layers.

    Widening comes first, as the source has fewer layers; `fixed` axes are not multiplied.
    """
    old, new = family.sizes(source), family.sizes(target)
    total = 0
    for row in family.rows_for(target):
        layers = old[row.depth] if row.depth else 1
        for _, dims in row.layout.pieces():
            current = [old.get(dim.parts[0], 1) for dim in dims]
            for position, dim in enumerate(dims):
                factors = [axis for axis in family.factors(dim.parts[0]) if axis in old and axis not in family.fixed]
                before = math.prod(old[axis] for axis in factors)
                after = math.prod(new[axis] for axis in factors)
                if before != after:
                    total += 2 * layers * after * math.prod(current)
                current[position] = new.get(dim.parts[0], 1)
            if row.depth:
                total += 2 * layers * new[row.depth] * math.prod(current)
    return total


def fit_flops(
    family: Family,
    source: Mapping[str, object],
    target: Mapping[str, object],
    *,
    steps: int,
    tokens: int,
    sequence_length: int,
) -> int:
    """Operations of a whole fit: at every step the target's training step, and growth four times over.

    Growth runs once for the weights and once more for its gradient, whose backward pass costs two.
    """
    step = step_flops(family, target, tokens=tokens, sequence_length=sequence_length)
    return steps * (step + 4 * growth_flops(family, source, target))

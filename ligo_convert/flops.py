"""Floating-point operations, counted from a family's table and a config alone.

A forward pass multiplies every weight that is read and written once a token (2 operations each), and attention takes 2 products of
2 * sequence * width operations a token and layer; backward costs twice forward. Lookups, norms, softmax and biases are left out, as
is usual. The head counts, tied or not.
"""

from __future__ import annotations

from collections.abc import Mapping

from ligo_convert.family import Family
from ligo_convert.operator import Operator


def forward_flops(family: Family, config: Mapping[str, object], *, tokens: int, sequence_length: int) -> int:
    """Operations of one forward pass over `tokens` tokens in sequences of `sequence_length`."""
    sizes = family.sizes(config)
    total = 0
    for row in family.rows:
        if not row.present(family.complete(config)) or len(row.layout.dims) < 2:
            continue
        looked_up = any(dim.role == "read" and set(dim.parts) <= set(family.kept) for dim in row.layout.dims)
        if looked_up:
            continue
        elements = 1
        for size in family.shape(row, sizes):
            elements *= size
        total += 2 * elements * tokens * (sizes[row.depth] if row.depth else 1)
    for stream, _ in family.products:
        layers = next(row.depth for row in family.rows if stream in row.layout.streams)
        assert layers is not None
        total += 4 * sequence_length * sizes[stream] * tokens * sizes[layers]
    return total


def step_flops(family: Family, config: Mapping[str, object], *, tokens: int, sequence_length: int) -> int:
    """Operations of one training step: forward and backward."""
    return 3 * forward_flops(family, config, tokens=tokens, sequence_length=sequence_length)


def growth_flops(operator: Operator, family: Family) -> int:
    """Operations of applying a learned operator once: the dense rows of its maps and its depth matrices."""
    old, new = family.sizes(operator.source), family.sizes(operator.target)
    total = 0
    for row in family.rows_for(operator.target):
        layers = old[row.depth] if row.depth else 1
        for (_, dims), key in zip(row.layout.pieces(), row.piece_keys(), strict=True):
            shape = [old.get(dim.parts[0], 1) for dim in dims]
            for term in operator.terms:
                current = list(shape)
                for position, dim in enumerate(dims):
                    for axis in operator.stream(term, dim.parts[0], row.depth, 0, 0):
                        found = axis.role(dim.role)
                        rest = 1
                        for size in current:
                            rest *= size
                        total += 2 * layers * int(found.tail.shape[0]) * rest
                    current[position] = new.get(dim.parts[0], 1)
                if row.depth:
                    elements = 1
                    for size in current:
                        elements *= size
                    total += 2 * int(term.depths[key].size) * elements
    return total

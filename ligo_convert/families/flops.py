"""Floating-point operations, counted from a family's table and a config alone.

A forward pass multiplies every weight that is read and written once a token (2 operations each), and attention takes 2 products of
2 * sequence * width operations a token and layer; backward costs twice forward: once for what goes in, once for the weights. Lookups,
norms, softmax, biases and the optimizer are left out, as is usual. The head counts, tied or not. An image is a sequence of its patches;
what is applied to one token of a sequence alone (class attention, classifiers) counts once a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ligo_convert.families.schema import Family, Row

CONVENTION = (
    "A forward pass counts 2 operations for every weight of a matrix that a token passes, and 4 * sequence * width a token and layer for"
    " attention; a backward pass counts as much again for what goes in and as much again for the weights, where they are computed at all."
    " Lookups, norms, softmax, biases, the optimizer and every measurement are left out. A step of learning the operator counts a step of"
    " the target and four growths, and the forward passes by which its best step is found are counted with it."
    " `paper` counts the fit and leaves the source's training out, as arXiv:2303.00980 does; `net` charges it."
)

EVERYTHING = 1.0


@dataclass(frozen=True, kw_only=True)
class Product:
    """What one matrix, or the attention of one layer, costs in a forward pass.

    Attributes:
        pattern: of the matrix's row; "" for attention, which has no weights. axis, layer: where it stands; None outside the layers.
        below: whether it comes before the layers. flops: operations. power: 2 where they grow with the square of the tokens.
    """

    pattern: str
    axis: str | None
    layer: int | None
    below: bool
    flops: int
    power: int = 1


def products(family: Family, config: Mapping[str, object], *, tokens: int, sequence_length: int) -> tuple[Product, ...]:
    """Every matrix product of one forward pass over `tokens` tokens in sequences of `sequence_length`."""
    return tuple(_products(family, config, tokens, sequence_length))


def _products(family: Family, config: Mapping[str, object], tokens: int, sequence_length: int) -> Iterator[Product]:
    sizes = family.sizes(config)
    for row in family.rows:
        if not row.present(family.complete(config)) or len(row.layout.dims) < 2:
            continue
        reads = [dim for dim in row.layout.dims if dim.role == "read"]
        # What reads nothing is added; what reads ids is looked up.
        if not reads or any(set(dim.parts) <= set(family.lookup_axes) for dim in reads):
            continue
        count = tokens // sequence_length if row.module in family.pooled_modules else tokens
        flops = 2 * math.prod(family.shape(row, sizes)) * count
        below = is_below(family, row)
        for layer in family.layers(row, config):
            yield Product(pattern=row.pattern, axis=row.depth, layer=layer, below=below, flops=flops)
    for stream, _ in family.dot_products:
        for axis in dict.fromkeys(row.depth for row in family.rows if row.depth and stream in row.layout.streams):
            writers = [row.module for row in family.rows if row.depth == axis and stream in row.layout.streams]
            count = tokens // sequence_length if set(writers) <= family.pooled_modules else tokens
            flops, power = 4 * sequence_length * sizes[stream] * count, 2 if count == tokens else 1
            for layer in range(sizes[axis]):
                yield Product(pattern="", axis=axis, layer=layer, below=False, flops=flops, power=power)


def is_below(family: Family, row: Row) -> bool:
    """Whether a row outside the layers comes before them: embeddings, what is added to them, and patches."""
    if row.depth is not None or row.pattern in family.pooled_modules:
        return False
    given = {*family.never_grown, *family.lookup_axes, family.vocabulary, family.positions}
    reads = {part for dim in row.layout.dims if dim.role == "read" for part in dim.parts}
    if reads:
        return reads <= given
    # Norms and biases: above where they are the head's or belong to what is.
    if family.feeds_head(row):
        return False
    beside = [other for other in family.rows if other.module == row.module and other is not row]
    return all(
        {part for dim in other.layout.dims if dim.role == "read" for part in dim.parts} <= given for other in beside
    ) and not any(row.module == name or row.module.startswith(f"{name}.") for name in _head_modules(family, given))


def _head_modules(family: Family, given: set[str]) -> set[str]:
    """The modules outside the layers that read a stream, and those that they lie in."""
    found = set()
    for row in family.rows:
        reads = {part for dim in row.layout.dims if dim.role == "read" for part in dim.parts}
        if row.depth is None and reads and not reads <= given:
            found |= {row.module, row.module.rpartition(".")[0]}
    return found - {""}


def forward_flops(family: Family, config: Mapping[str, object], *, tokens: int, sequence_length: int) -> int:
    """Operations of one forward pass over `tokens` tokens in sequences of `sequence_length`."""
    return sum(found.flops for found in products(family, config, tokens=tokens, sequence_length=sequence_length))


def step_flops(family: Family, config: Mapping[str, object], *, tokens: int, sequence_length: int) -> int:
    """Operations of one training step: forward and backward."""
    return 3 * forward_flops(family, config, tokens=tokens, sequence_length=sequence_length)


Trained = Callable[[Row, int | None], bool]  # whether a row's tensor (of a layer) learns

Share = Callable[[str, int], float]  # (depth axis, layer) -> the part of the tokens that pass it


def partial_step_flops(
    family: Family,
    config: Mapping[str, object],
    *,
    tokens: int,
    sequence_length: int,
    trained: Trained | None = None,
    share: Share | None = None,
) -> int:
    """Operations of a training step in which some tensors do not learn, and some tokens pass by some layers.

    Gradients go down to the lowest layer in which something learns, and weights that do not learn need none.
    """
    lowest = _lowest(family, config, trained)
    patterns = {row.pattern: row for row in family.rows}
    total = 0.0
    for found in products(family, config, tokens=tokens, sequence_length=sequence_length):
        part = EVERYTHING
        if share is not None and found.axis is not None and found.layer is not None:
            part = share(found.axis, found.layer) ** found.power
        times = 1
        reached = _height(family, found.axis, found.layer, found.below) >= lowest
        if found.pattern == "":
            times += 2 * reached
        else:
            times += reached + (trained is None or trained(patterns[found.pattern], found.layer))
        total += times * part * found.flops
    return round(total)


def _height(family: Family, axis: str | None, layer: int | None, below: bool) -> tuple[int, int]:
    """Where something stands between input and output."""
    if axis is None:
        return (-1, 0) if below else (len(family.depth_axes), 0)
    assert layer is not None
    return (family.depth_axes.index(axis), layer)


def _lowest(family: Family, config: Mapping[str, object], trained: Trained | None) -> tuple[int, int]:
    if trained is None:
        return (-1, 0)
    return min(
        (
            _height(family, row.depth, layer, is_below(family, row))
            for row in family.rows_for(config)
            for layer in family.layers(row, config)
            if trained(row, layer)
        ),
        default=(len(family.depth_axes) + 1, 0),
    )


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
                factors = [
                    axis for axis in family.factors(dim.parts[0]) if axis in old and axis not in family.rotary_axes
                ]
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

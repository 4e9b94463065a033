"""Count floating-point operations from a family's table and a config.

A forward pass takes 2 operations for each weight of a matrix and token, and 4 * sequence * width for attention in each layer
and token. A backward pass takes twice as many: once for the inputs, once for the weights. Lookups, norms, softmax, biases and
the optimizer are not counted, as usual. The head counts, tied or not. An image is a sequence of patches. A module applied to
one token of a sequence (class attention, classifiers) counts once per sequence. An expert counts for the tokens that pass it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ligo_convert.families.notation import evaluate
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
    """The cost of one matrix, or of the attention of one layer, in a forward pass.

    Attributes:
        pattern: pattern of the matrix's row; "" for attention, which has no weights.
        axis: depth axis; None outside the layers.
        layer: index along `axis`; None outside the layers.
        below: True if it comes before the layers.
        flops: number of operations.
        power: 2 if the cost grows with the square of the number of tokens, else 1.
    """

    pattern: str
    axis: str | None
    layer: int | None
    below: bool
    flops: int
    power: int = 1


def products(family: Family, config: Mapping[str, object], *, tokens: int, sequence_length: int) -> tuple[Product, ...]:
    """The matrix products of one forward pass over `tokens` tokens in sequences of `sequence_length`."""
    return tuple(_products(family, config, tokens, sequence_length))


def _products(family: Family, config: Mapping[str, object], tokens: int, sequence_length: int) -> Iterator[Product]:
    sizes = family.sizes(config)
    for row in family.rows:
        if not row.present(family.complete(config)) or len(row.layout.dims) < 2:
            continue
        reads = [dim for dim in row.layout.dims if dim.role == "read"]
        # A row without a read dim is added, and one that reads ids is a lookup: neither is a matrix product.
        if not reads or any(set(dim.parts) <= set(family.lookup_axes) for dim in reads):
            continue
        count = tokens // sequence_length if family.is_pooled(row) else tokens
        flops = 2 * math.prod(family.shape(row, sizes)) * count
        if row.expert:
            # A token passes some of the experts. On average each expert has the same share of tokens.
            flops = flops * evaluate(family.experts_used, family.complete(config)) // sizes[family.experts]
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
    """Return whether a row outside the layers comes before them: embeddings, patches, and tensors added to them."""
    if row.depth is not None or row.pattern in family.pooled_modules:
        return False
    given = {*family.never_grown, *family.lookup_axes, family.vocabulary, family.positions}
    reads = {part for dim in row.layout.dims if dim.role == "read" for part in dim.parts}
    if reads:
        return reads <= given
    # Norms and biases come after the layers if they feed the head or belong to a module that does.
    if family.feeds_head(row):
        return False
    if family.norm.after_embeddings and row.layout.dims[0].role in ("gain", "shift"):
        return row.module == family.norm.after_embeddings
    beside = [other for other in family.rows if other.module == row.module and other is not row]
    return all(
        {part for dim in other.layout.dims if dim.role == "read" for part in dim.parts} <= given for other in beside
    ) and not any(row.module == name or row.module.startswith(f"{name}.") for name in _head_modules(family, given))


def _head_modules(family: Family, given: set[str]) -> set[str]:
    """The modules outside the layers that read a stream, and their parent modules."""
    modules = set()
    for row in family.rows:
        reads = {part for dim in row.layout.dims if dim.role == "read" for part in dim.parts}
        if row.depth is None and reads and not reads <= given:
            modules |= {row.module, row.module.rpartition(".")[0]}
    return modules - {""}


def forward_flops(family: Family, config: Mapping[str, object], *, tokens: int, sequence_length: int) -> int:
    """Operations of one forward pass over `tokens` tokens in sequences of `sequence_length`."""
    return sum(product.flops for product in products(family, config, tokens=tokens, sequence_length=sequence_length))


def step_flops(family: Family, config: Mapping[str, object], *, tokens: int, sequence_length: int) -> int:
    """Operations of one training step: forward and backward."""
    return 3 * forward_flops(family, config, tokens=tokens, sequence_length=sequence_length)


Trained = Callable[[Row, int | None], bool]  # (row, layer) -> whether its tensor is trained

Share = Callable[[str, int], float]  # (depth axis, layer) -> the share of tokens that the layer processes


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
    """The position of a product between input and output, for comparison."""
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
    """Operations of growing every tensor once with dense maps: along each dim that grows, then over the layers.

    Width comes first, since the source has fewer layers. Rotary axes are not multiplied.
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
    growth: int | None = None,
) -> int:
    """Operations of a complete fit: in each step, one training step of the target and the cost of four growths.

    The weights are grown once in the forward pass and once more to recompute it; the backward pass costs two.

    Args:
        growth: operations of one growth; None for those of the operator.
    """
    step = step_flops(family, target, tokens=tokens, sequence_length=sequence_length)
    return steps * (step + 4 * (growth_flops(family, source, target) if growth is None else growth))

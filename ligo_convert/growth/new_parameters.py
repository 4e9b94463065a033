"""List the parameters that growth has added: the tensors and entries of the target that continue nothing in the source.

Input: a family and an operator. Output: the old entries of every tensor, as ranges along each stored dim, and the content of
`ligo/new_parameters.json` (docs/guide/new-parameters.md), which lets training treat new entries differently. Only configs and flags are
read, no weights.

In every width method a growing axis keeps its old entries in front. Of the target layers that copy one source layer, one continues it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.operator import Operator

FORMAT = "ligo-new-parameters/1"

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """The old entries of one target tensor. An entry is old if its index lies in the old ranges of every dim.

    Attributes:
        shape: shape of the tensor.
        old: for every stored dim, ranges [begin, end) in rising order. Ranges are not empty and do not touch.
    """

    shape: tuple[int, ...]
    old: tuple[Ranges, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def old_elements(self) -> int:
        return math.prod(sum(end - begin for begin, end in ranges) for ranges in self.old)

    @property
    def kind(self) -> Literal["old", "new", "mixed"]:
        if self.old_elements == self.elements:
            return "old"
        return "mixed" if self.old_elements else "new"

    def mask(self) -> np.ndarray:
        """Return which entries are new: bool of the tensor's shape."""
        old = np.ones(self.shape, dtype=bool)
        for position, ranges in enumerate(self.old):
            along = np.zeros(self.shape[position], dtype=bool)
            for begin, end in ranges:
                along[begin:end] = True
            old &= along.reshape([-1 if dim == position else 1 for dim in range(old.ndim)])
        return ~old


def added_parts(family: Family, operator: Operator) -> dict[str, Part]:
    """Return the old entries of every target tensor, by canonical name (`Row.name`), in the order of the family's table.

    Args:
        family: narrowed to the target's class.
    """
    old, new = family.sizes(operator.source), family.sizes(operator.target)
    taken = {axis: _taken(family, operator, axis, old[axis], new[axis]) for axis in family.depth_axes}
    parts = {}
    for row in family.rows_for(operator.target):
        shape = family.shape(row, new)
        drawn = row.pattern in operator.drawn_rows
        entries = tuple(
            () if drawn else _ranges(np.concatenate([_old_entries(operator, family, row, part) for part in dim.parts]))
            for dim in row.layout.dims
        )
        # Without old entries in one dim the tensor has none.
        whole = entries if all(entries) else ((),) * len(shape)
        continuing = {*_first_copies(operator, family, row, taken[row.depth]).values()} if row.depth else {None}
        for layer in family.layers(row, operator.target):
            parts[row.name(layer)] = Part(shape=shape, old=whole if layer in continuing else ((),) * len(shape))
    return parts


def continued(family: Family, operator: Operator) -> dict[str, tuple[Row, int | None]]:
    """Return, for every target tensor that continues a source tensor, that tensor: target name -> (row, source layer).

    Args:
        family: narrowed to the target's class.
    """
    old, new = family.sizes(operator.source), family.sizes(operator.target)
    taken = {axis: _taken(family, operator, axis, old[axis], new[axis]) for axis in family.depth_axes}
    found: dict[str, tuple[Row, int | None]] = {}
    for row in family.rows_for(operator.target):
        if row.pattern in operator.drawn_rows:
            continue
        if row.depth is None:
            found[row.name(None)] = row, None
            continue
        for source, layer in _first_copies(operator, family, row, taken[row.depth]).items():
            found[row.name(layer)] = row, source
    return found


def new_parameters(family: Family, operator: Operator) -> dict[str, Any]:
    """Return the content of `ligo/new_parameters.json`: tensors by stored name, sorted."""
    parts = {family.written(name): part for name, part in added_parts(family, operator).items()}
    named = {
        kind: sorted(name for name, part in parts.items() if part.kind == kind) for kind in ("old", "new", "mixed")
    }
    kept = sum(part.old_elements for part in parts.values())
    return {
        "format": FORMAT,
        "counts": {"old": kept, "new": sum(part.elements for part in parts.values()) - kept},
        "new": named["new"],
        "mixed": {
            name: {"shape": list(parts[name].shape), "old": [list(map(list, ranges)) for ranges in parts[name].old]}
            for name in named["mixed"]
        },
        "old": named["old"],
    }


def _old_entries(operator: Operator, family: Family, row: Row, part: str) -> np.ndarray:
    """Return which entries of a stream continue the source: [new] bool. These are the old block in front, without drawn entries."""
    old, new = family.sizes(operator.source), family.sizes(operator.target)
    kept = _product(np.arange(new.get(axis, 1)) < old.get(axis, 1) for axis in family.factors(part))
    # All layers draw the same entries, so the flags of the first layer hold for all.
    maps = operator.stream(operator.terms[0], part, row.depth, 0, 0)
    if not maps:
        return kept
    # A learned operator has multiplied factors out, so these factors can differ from the axes above.
    taken = _product(np.ones(axis.new, dtype=bool) if axis.drawn is None else ~axis.drawn for axis in maps)
    return np.asarray(kept & taken)


def _product(flags: Iterable[np.ndarray]) -> np.ndarray:
    """Combine the flags of axes into flags over their product, slowest first. A flag is set if all factors set it."""
    along = np.ones(1, dtype=bool)
    for factor in flags:
        along = np.logical_and.outer(along, factor).reshape(-1)
    return along


def _ranges(flags: np.ndarray) -> Ranges:
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _taken(family: Family, operator: Operator, axis: str, old: int, new: int) -> tuple[int | None, ...]:
    """Return, for every target layer of a depth axis, the source layer that its rows copy; None where no row copies any."""
    if old == new:
        return tuple(range(new))
    depths: Mapping[str, Any] = operator.terms[0].depths
    # Learned matrices are dense and differ by row. The source layer with the largest total weight counts as copied.
    total = np.zeros((new, old))
    for row in family.rows_for(operator.target):
        if row.depth == axis:
            for key in row.piece_keys():
                total += np.asarray(depths[key]) if key in depths else 0
    return tuple(None if weights.max(initial=0) <= 0 else int(weights.argmax()) for weights in total)


def _first_copies(operator: Operator, family: Family, row: Row, taken: tuple[int | None, ...]) -> dict[int, int]:
    """Return source layer -> the target layer in which this row continues it: the first copy that is not silent.

    In post-norm models the affine of a norm moves to a silent layer (`Operator.unit_layers`). That layer continues the norm.
    """
    silent = operator.silent_layers.get(row.depth or "", ())
    units = operator.unit_layers.get(row.pattern, ())
    first: dict[int, int] = {}
    for layer, source in enumerate(taken):
        quiet = bool(silent) and silent[layer] and not units
        draws = operator.draws(family, row, layer)
        if source is not None and not quiet and not draws and layer not in units:
            first.setdefault(source, layer)
    return first

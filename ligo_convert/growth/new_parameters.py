"""What growth has added: which tensors of a target, and which entries of them, continue nothing of the source.

What comes in: a family and an operator. What goes out: for every tensor its old entries, as ranges along each stored dim, and the same as
plain data for `ligo/new_parameters.json` (docs/guide/new-parameters.md), by which training may treat what is new apart from what was there.
Configs and flags decide; no weight is read.

An axis that grows keeps its old entries in front, in every start, and of the layers that take one old layer one continues it.
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
    """One tensor of the target: an entry is old where its index lies in the old ranges of every dim, and else new.

    Attributes:
        old: for every stored dim, ranges [begin, end) in rising order that neither touch nor are empty.
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
        """[shape] bool: True where an entry is new."""
        old = np.ones(self.shape, dtype=bool)
        for position, ranges in enumerate(self.old):
            along = np.zeros(self.shape[position], dtype=bool)
            for begin, end in ranges:
                along[begin:end] = True
            old &= along.reshape([-1 if at == position else 1 for at in range(old.ndim)])
        return ~old


def added_parts(family: Family, operator: Operator) -> dict[str, Part]:
    """Every tensor of the target by its canonical name (`Row.name`), in the order of the family's table.

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
        # A dim without old entries leaves none in the others, either.
        whole = entries if all(entries) else ((),) * len(shape)
        continuing = _continuing(operator, row, taken[row.depth]) if row.depth else {None}
        for layer in family.layers(row, operator.target):
            parts[row.name(layer)] = Part(shape=shape, old=whole if layer in continuing else ((),) * len(shape))
    return parts


def new_parameters(family: Family, operator: Operator) -> dict[str, Any]:
    """What `ligo/new_parameters.json` holds: tensors by the names under which they are stored, sorted."""
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


# Width.


def _old_entries(operator: Operator, family: Family, row: Row, part: str) -> np.ndarray:
    """[new] bool: the entries of a stream that continue the source's: the old block in front, less what is drawn of it."""
    old, new = family.sizes(operator.source), family.sizes(operator.target)
    kept = _product(np.arange(new.get(axis, 1)) < old.get(axis, 1) for axis in family.factors(part))
    # All layers draw the same entries, so the first one's flags serve.
    maps = operator.stream(operator.terms[0], part, row.depth, 0, 0)
    if not maps:
        return kept
    # Learning multiplies factors out, so these may be other factors than the axes above.
    taken = _product(np.ones(axis.new, dtype=bool) if axis.drawn is None else ~axis.drawn for axis in maps)
    return np.asarray(kept & taken)


def _product(flags: Iterable[np.ndarray]) -> np.ndarray:
    """Flags over a product of axes, slowest first: set where each factor's is."""
    along = np.ones(1, dtype=bool)
    for found in flags:
        along = np.logical_and.outer(along, found).reshape(-1)
    return along


def _ranges(flags: np.ndarray) -> Ranges:
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


# Depth.


def _taken(family: Family, operator: Operator, axis: str, old: int, new: int) -> tuple[int | None, ...]:
    """For every new layer of a depth axis the old layer it takes; None for a layer that takes none."""
    drawn = operator.drawn_layers.get(axis, ()) or (False,) * new
    if old == new:
        return tuple(None if flag else layer for layer, flag in enumerate(drawn))
    depths: Mapping[str, Any] = operator.terms[0].depths
    # Learned matrices are dense, and differ by row: a layer takes the one that has most weight in all of them together.
    total = np.zeros((new, old))
    for row in family.rows_for(operator.target):
        if row.depth == axis:
            for key in row.piece_keys():
                total += np.asarray(depths[key]) if key in depths else 0
    return tuple(
        None if flag or weights.max() <= 0 else int(weights.argmax())
        for flag, weights in zip(drawn, total, strict=True)
    )


def _continuing(operator: Operator, row: Row, taken: tuple[int | None, ...]) -> set[int | None]:
    """The layers whose tensor of this row continues the source's: for every old layer the first that takes it and speaks.

    Where silence moves a norm to a silent layer (`Operator.unit_layers`), the norm continues there, and a new one is left behind.
    """
    silent = operator.silent_layers.get(row.depth or "", ())
    units = operator.unit_layers.get(row.pattern, ())
    first: dict[int, int] = {}
    for layer, source in enumerate(taken):
        quiet = bool(silent) and silent[layer] and not units
        if source is not None and not quiet and layer not in units:
            first.setdefault(source, layer)
    return {*first.values()}

"""Find entries that training cannot tell apart or cannot reach, and choose the entries of silent layers that growth parts.

**Twins** are entries of one axis with equal incoming and equal outgoing parameters: they get equal gradients at every step, so they stay
equal. A **dead** entry has zero incoming and zero outgoing parameters, and what it holds is zero: no parameter of it gets a gradient.
Both are properties of the maps, so they are known without weights.

In a layer that starts silent (`DepthMap.silent`) the branch ends are zero, whatever reads a width method chose for them. So copies are
twins there even where uneven reads part them in every other layer. But the function does not depend on the inner rows of a silent layer
either: growth may give them any values. `parted_entries` chooses the rows; `growth.apply` changes them.

Input: the maps of the axes. Output: counts for `plan`, and the entries to part. docs/reference/exact-starts.md derives both.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ligo_convert.families.schema import Family
from ligo_convert.growth.maps import Axis, Map

# The key of a map's row without a coefficient.
EMPTY: Hashable = ()


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """Entries of a start that training cannot use as they are, and those that growth has parted. Counts are by axis.

    Attributes:
        twins: entries that equal another entry in every incoming and outgoing parameter of a layer that is not silent.
        dead: entries whose incoming and outgoing parameters are zero and get no gradient.
        steep: entries of queries that start as zeros in front of a norm, whose derivative is 1 / sqrt(epsilon) there.
        parted: entries that growth parts in silent layers; without that they would be twins, or dead.
        layers: depth axis -> the silent layers.
        sizes: axis -> its size in the target.
    """

    twins: Mapping[str, int] = field(default_factory=dict)
    dead: Mapping[str, int] = field(default_factory=dict)
    steep: Mapping[str, int] = field(default_factory=dict)
    parted: Mapping[str, int] = field(default_factory=dict)
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def row_keys(found: Map) -> list[Hashable]:
    """Return a key for every row of a map. Equal rows have equal keys; `EMPTY` is the key of a row of zeros."""
    keys: list[Hashable] = [
        (int(column), float(weight)) if weight else EMPTY
        for column, weight in zip(found.index, found.weight, strict=True)
    ]
    keys += [_dense_key(row) for row in np.asarray(found.tail)]
    return keys


def _dense_key(row: np.ndarray) -> Hashable:
    used = np.count_nonzero(row)
    if used > 1:
        return hashlib.blake2b(row.tobytes(), digest_size=16).digest()
    column = int(np.argmax(row != 0))
    return (column, float(row[column])) if used else EMPTY


def symmetry_of(
    family: Family,
    terms: Sequence[Mapping[str, Axis]],
    silent: Mapping[str, Sequence[bool]],
    *,
    drawn: bool = False,
) -> Symmetry:
    """Count the twins and dead entries of a start.

    Args:
        terms: the maps of every axis, for each term of the operator.
        silent: depth axis -> which target layers are silent copies.
        drawn: True if any layer is drawn. Its rows read the copies of an entry of the stream apart.
    """
    counts: dict[str, dict[str, int]] = {"twins": {}, "dead": {}, "steep": {}}
    parted = parted_entries(family, terms[0], silent)
    for axis in terms[0]:
        if axis in family.never_grown or axis in family.depth_axes or axis not in family.axes:
            continue
        read_apart = axis == family.norm.stream and (bool(parted) or drawn)
        axes = [term[axis] for term in terms if axis in term]
        for kind, count in _kinds(family, axis, axes, read_apart=read_apart).items():
            if count:
                counts[kind][axis] = count
    return Symmetry(
        **counts,
        parted={axis: int((origin >= 0).sum()) for axis, origin in parted.items()},
        layers={axis: tuple(np.flatnonzero(silent[axis]).tolist()) for axis in silent if any(silent[axis])},
        sizes={axis: found.new for axis, found in terms[0].items()},
    )


def _kinds(family: Family, axis: str, terms: Sequence[Axis], *, read_apart: bool) -> dict[str, int]:
    """Return how many entries of one axis are twins, dead, or steep.

    Args:
        read_apart: True if parted or drawn rows read the axis: their columns differ for copies, unless both are empty.
    """
    normed = axis == family.norm.stream
    roles = ("write", "read", "gain", "shift") if normed else ("write", "read")
    kept = [number for number in range(terms[0].new) if terms[0].drawn is None or not terms[0].drawn[number]]
    keys = list(zip(*(row_keys(found.role(role)) for found in terms for role in roles), strict=True))
    rows = [keys[number] for number in kept]
    empty = (EMPTY,) * len(keys[0]) if keys else ()
    nothing = sum(row == empty for row in rows)
    # LayerNorm gives an entry of zeros a gradient through its mean and variance: the same to all of them.
    dead = not (normed and family.norm.kind == "layernorm") and not _has_live_content(family, axis)
    shared = Counter(row for row in rows if (row == empty and not dead) or (row != empty and not read_apart))
    return {
        "twins": sum(count for count in shared.values() if count > 1),
        "dead": nothing if dead else 0,
        "steep": nothing if not dead and not normed and _is_normed_inside(family, axis) else 0,
    }


def _has_live_content(family: Family, axis: str) -> bool:
    """Return True if an entry of the axis without weights still mixes old values: a new query in a group with an old value."""
    return any(
        axis in family.factors(stream) and axis not in family.factors(content)
        for stream, content in family.content_of.items()
    )


def _is_normed_inside(family: Family, axis: str) -> bool:
    """Return True if a stream along the axis is normalised over another of its factors, as queries over each head."""
    gains = {stream for stream, roles in family.roles.items() if "gain" in roles and stream != family.norm.stream}
    return any(axis in family.factors(stream) and gains & set(family.factors(stream)) for stream in family.streams)


def parted_entries(
    family: Family, axes: Mapping[str, Axis], silent: Mapping[str, Sequence[bool]]
) -> dict[str, np.ndarray]:
    """Choose the entries of inner axes that growth parts in silent layers.

    Args:
        axes: the maps of every axis.
        silent: depth axis -> which target layers are silent.

    Returns:
        axis -> [new] int64. For an entry that is parted, the entry whose rows it takes: itself if it is a copy, an old one if the width
        method leaves it empty. -1 for an entry that stays as it is.
    """
    inner = {
        axis
        for row in family.rows
        if row.depth is not None and any(silent.get(row.depth, ()))
        for dim in row.layout.dims
        if dim.role == "write"
        for part in dim.parts
        if part != "1" and part != family.norm.stream
        for axis in family.factors(part)
    }
    found = {}
    for axis in family.axes:
        if axis in inner and axis in axes and axis not in family.never_grown and axes[axis].new != axes[axis].old:
            origin = _origins(axes[axis])
            if (origin >= 0).any():
                found[axis] = origin
    return found


def _origins(axis: Axis) -> np.ndarray:
    seen: set[Hashable] = set()
    origin = np.full(axis.new, -1, dtype=np.int64)
    for entry, key in enumerate(row_keys(axis.write)):
        if axis.drawn is not None and axis.drawn[entry]:
            continue
        if key == EMPTY:
            origin[entry] = entry % axis.old
        elif key in seen:
            origin[entry] = entry
        seen.add(key)
    return origin

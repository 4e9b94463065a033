"""Decide which maps the state of an optimizer follows when a model grows: the policies as data, and the maps of gradients.

Input: the growth operator of the weights, a family. Output: `POLICIES`, and for `scale` an `Operator` that maps gradients. Arrays are
numpy arrays; nothing here imports torch. `growth.moments` applies the maps.

Gradients do not follow the maps of the weights. Let theta' = M theta keep the function. Then the gradient g of the source and the
gradient g' of the target satisfy g = M^T g'. M is not square, so this does not determine g'. What does, where no norm mixes entries, is
where a gradient comes from. The gradient of a matrix is (gradient of its output) x (its input)^T. Inputs are activations, and those grow by
the maps of what writes them. The gradient of an activation comes from its readers, and grows by the maps of what reads it. So the two maps
of a stream change places:

    W' = B_out W A_in^T      G' = A_out G B_in^T      with  A^T B = I,  so that  B_out^T G' A_in = G

For whole tiles with evenly divided reads these are the factors of Staged Training (arXiv:2203.06211, section 3). Behind a norm the input is
the norm's output, which grows by the map of the shift. A learned map has no such partner; its gradients follow the pseudo-inverse, the
smallest g' with g = M^T g'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np

from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.maps import ROLES, Axis, Map, dense
from ligo_convert.growth.operator import Operator, Term


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What becomes of the state of an optimizer.

    Attributes:
        maps: `none`: no state. `old`: old entries keep theirs. `weights`: the maps of the weights. `gradients`: those of the gradients.
        new_alone: whether the maps decide new entries and new layers alone, and old entries keep their state.
        summary: one line for the command line and the docs.
    """

    maps: Literal["none", "old", "weights", "gradients"]
    summary: str
    new_alone: bool = False


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "reset": Policy(maps="none", summary="no state: the optimizer starts afresh"),
        "carry": Policy(maps="old", summary="old entries keep their state; new entries and new layers start afresh"),
        "copy": Policy(maps="weights", summary="by the maps of the weights, squared for second moments"),
        "scale": Policy(maps="gradients", summary="by the maps that gradients follow, squared for second moments"),
        "copy-new": Policy(
            maps="weights",
            new_alone=True,
            summary="old entries keep their state; new entries and new layers as by copy",
        ),
        "scale-new": Policy(
            maps="gradients",
            new_alone=True,
            summary="old entries keep their state; new entries and new layers as by scale",
        ),
    }
)

# docs/guide/optimizer-state.md says what it was measured against.
DEFAULT_POLICY = "carry"


def gradient_operator(operator: Operator, family: Family) -> Operator:
    """Return the operator by which gradients grow where the weights grow by `operator`.

    Only the first term counts: a second term (AKI) adds the difference between two layers to copies that the first term has made.
    Silent layers get no gradient here. Their inner tensors have none at first, and nothing in the source tells that of their ends.

    Args:
        family: narrowed to the target's class.
    """
    first = operator.terms[0]
    done: dict[int, tuple[Axis, ...]] = {}
    widths: dict[str, tuple[Axis, ...]] = {}
    for key, factors in first.widths.items():
        if id(factors) not in done:
            done[id(factors)] = tuple(_gradient_axis(axis) for axis in factors)
        widths[key] = done[id(factors)]
    depths = {
        key: _gradient_depth(np.asarray(first.depths[key]), row, operator)
        for row in family.rows_for(operator.target)
        for key in row.piece_keys()
        if key in first.depths
    }
    return replace(
        operator,
        terms=(Term(widths=widths, depths=depths),),
        tie=None,
        drawn_layers={},
        silent_layers={},
        unit_layers={},
        rewrites=(),
        parted={},
    )


def squared(operator: Operator) -> Operator:
    """Return the operator with every coefficient squared: the map of second moments, for entries whose gradients are independent."""
    return operator.map_arrays(lambda _, array: np.asarray(array) ** 2)


def _gradient_depth(matrix: np.ndarray, row: Row, operator: Operator) -> np.ndarray:
    """Return the depth matrix of gradients: the transposed pseudo-inverse, without the layers that are silent."""
    kept = matrix.astype(np.float64)
    silent = operator.silent_layers.get(row.depth or "", ())
    # The norms of a post-norm model move to a silent layer, which then has their gradients, too.
    if any(silent) and not operator.unit_layers.get(row.pattern):
        kept[np.asarray(silent, dtype=bool)] = 0.0
    return np.asarray(np.linalg.pinv(kept).T, dtype=matrix.dtype)


def _gradient_axis(axis: Axis) -> Axis:
    """Return the maps of gradients along one axis, by the role of the tensor that the gradient belongs to."""
    if axis.is_identity:
        return axis
    if not _paired(axis):
        done: dict[int, Map] = {}
        for role in ROLES:
            found = axis.role(role)
            done.setdefault(id(found), _pseudo_inverse(found))
        return Axis(**{role: done[id(axis.role(role))] for role in ROLES})
    # Per old entry, what the copies of an activation give together when they are read: 1 where the function is kept.
    index, old = axis.read.index, axis.old
    read, active = (np.asarray(found.weight, dtype=np.float64) for found in (axis.read, axis.shift))
    total = np.bincount(index, weights=read * active, minlength=old)
    share = _ratio(active, total[index])

    def copies(role: str, tail: np.ndarray | None = None) -> Map:
        """Return the map for a parameter whose entries are copied with the weights of `role`."""
        weight = np.asarray(axis.role(role).weight, dtype=np.float64)
        ratio = _ratio(share, weight)
        rest = axis.new - len(index)
        below = np.zeros((rest, old)) if tail is None else tail * (ratio[ratio != 0].mean() if ratio.any() else 0.0)
        return _like(axis.read, weight=read * ratio, tail=below)

    read_tail = np.asarray(axis.read.tail, dtype=np.float64)
    active_tail = np.asarray(axis.shift.tail, dtype=np.float64)
    # Gains and scales multiply the normalised entry, which is zero or unknown where an entry is no copy.
    return Axis(
        write=copies("write", read_tail),
        read=_like(axis.read, weight=share, tail=active_tail),
        gain=copies("gain"),
        shift=copies("shift", read_tail),
        scale=copies("scale") if _aligned(axis.read, axis.scale) else _pseudo_inverse(axis.scale),
    )


def _paired(axis: Axis) -> bool:
    """Return True if entries of the axis are copies, and every role copies the same ones. A learned map holds no copies."""
    others = (axis.write, axis.gain, axis.shift)
    return len(axis.read.index) > 0 and all(_aligned(axis.read, found) for found in others)


def _aligned(first: Map, second: Map) -> bool:
    return bool(np.array_equal(first.index, second.index))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return a / b, and 0 where b is 0."""
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below != 0))


def _like(found: Map, *, weight: np.ndarray, tail: np.ndarray) -> Map:
    dtype = found.tail.dtype
    return Map(index=found.index, weight=weight.astype(dtype), tail=tail.astype(dtype))


def _pseudo_inverse(found: Map) -> Map:
    """Return the map whose matrix is the transposed pseudo-inverse."""
    if found.is_identity:
        return found
    if not len(found.tail):
        weight = np.asarray(found.weight, dtype=np.float64)
        total = np.bincount(found.index, weights=weight**2, minlength=found.old)
        return _like(found, weight=_ratio(weight, total[found.index]), tail=np.zeros((0, found.old)))
    return dense(np.linalg.pinv(found.matrix().astype(np.float64)).T.astype(found.tail.dtype))

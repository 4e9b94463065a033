"""Width maps as data: M [new, old], stored as selected rows above dense rows, and the maps of one axis.

Input: sizes and numpy arrays. Output: data that `growth.operator` stores and `growth.apply` applies. Every width method in the literature
is a selection (copied, scaled or empty rows) above a small dense tail, so growing by it costs about as much as a copy. A learned map
is all tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

ROLES = ("write", "read", "gain", "shift", "scale")

Array = Any  # numpy.ndarray; torch.Tensor in operators that are being learned


@dataclass(frozen=True, kw_only=True)
class Map:
    """A linear map y = M x along one dim.

    Row i < len(index) of M is `weight[i]` at column `index[i]` and zero elsewhere; the rows of `tail` follow.

    Attributes:
        index: [selected] int64, columns of the selected rows.
        weight: [selected] float, their coefficients; 0 makes an empty row.
        tail: [new - selected, old] float, dense rows.
    """

    index: Array
    weight: Array
    tail: Array

    @property
    def old(self) -> int:
        return int(self.tail.shape[1])

    @property
    def new(self) -> int:
        return int(self.index.shape[0] + self.tail.shape[0])

    def matrix(self) -> np.ndarray:
        """Return M as one dense array: [new, old]."""
        dense = np.zeros((self.new, self.old), dtype=self.tail.dtype)
        selected = len(self.index)
        dense[np.arange(selected), self.index] = self.weight
        dense[selected:] = self.tail
        return dense

    def scaled(self, factor: float) -> Map:
        """Return the map times a number."""
        return Map(index=self.index, weight=self.weight * factor, tail=self.tail * factor)

    @property
    def is_identity(self) -> bool:
        return (
            self.new == self.old == len(self.index)
            and bool(np.array_equal(self.index, np.arange(self.old)))
            and bool((self.weight == 1).all())
        )


def selection(index: Array, old: int, weight: Array | None = None, *, tail: Array | None = None) -> Map:
    """Return a map of rows that select the columns `index` (times `weight`, default 1) above the dense rows `tail`."""
    index = np.asarray(index, dtype=np.int64)
    weight = np.ones(len(index)) if weight is None else np.asarray(weight, dtype=np.float64)
    return Map(index=index, weight=weight, tail=np.zeros((0, old)) if tail is None else np.asarray(tail))


def identity(size: int) -> Map:
    """Return the identity map."""
    return selection(np.arange(size), size)


def dense(matrix: Array) -> Map:
    """Return a map that is all tail. `matrix` is a numpy array or a torch tensor."""
    return Map(index=np.zeros(0, dtype=np.int64), weight=np.zeros(0, dtype=np.float64), tail=matrix)


def corner(old: int, new: int) -> Map:
    """Return [I; 0]: the old entries, followed by empty rows."""
    index = np.concatenate([np.arange(old), np.zeros(new - old, dtype=np.int64)])
    return selection(index, old, np.concatenate([np.ones(old), np.zeros(new - old)]))


def kronecker(maps: list[Map]) -> np.ndarray:
    """Return the dense map of a stream from the maps of its factors, slowest first: [prod new, prod old]."""
    result = maps[0].matrix()
    for factor in maps[1:]:
        result = np.kron(result, factor.matrix())
    return result


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The maps of one axis, or of one whole stream: one map for every role.

    A width is exact if read^T . norm'(write . x) = norm(x) for all x, where each side has its own gain, shift and epsilon. Without a norm
    between writer and reader the condition is read^T . write = I.

    Attributes:
        write: map of tensors that write the axis.
        read: map of tensors that read the axis.
        gain: map of the norm's gain.
        shift: map of the norm's shift.
        scale: map of a LayerScale; mixed entries take a mean of absolute values (`growth.apply`).
        drawn: [new] bool, entries that are initialised randomly as the library does it; None for none.
    """

    write: Map
    read: Map
    gain: Map
    shift: Map
    scale: Map
    drawn: Array | None = None

    @property
    def old(self) -> int:
        return self.write.old

    @property
    def new(self) -> int:
        return self.write.new

    @property
    def is_identity(self) -> bool:
        return all(self.role(role).is_identity for role in ROLES) and self.drawn is None

    def role(self, role: str) -> Map:
        """Return the map of one role of `ROLES`."""
        result = getattr(self, role)
        assert isinstance(result, Map)
        return result


def plain_axis(write: Map, read: Map, *, drawn: Array | None = None) -> Axis:
    """Return an axis whose norm parameters, if any, are mapped by the write map."""
    return Axis(write=write, read=read, gain=write, shift=write, scale=scale_like(write, drawn), drawn=drawn)


def scale_like(write: Map, drawn: Array | None = None) -> Map:
    """Return the map of a LayerScale for a stream that is written by `write`.

    A copied entry keeps its scale. An empty or mixed entry takes the mean of all scales, because a scale of zero would block it and weights
    are divided by the scale. A drawn entry gets the library's initial value elsewhere.
    """
    old, selected = write.old, len(write.index)
    if write.is_identity:
        return write
    copied = np.asarray(write.weight) != 0
    if copied.all() and write.new == selected:
        return selection(write.index, old)
    keep = np.ones(write.new, dtype=bool) if drawn is None else ~np.asarray(drawn, dtype=bool)
    first = int(np.argmin(copied)) if not copied.all() else selected
    # A view, which takes no memory until a row differs: this map is as large as a weight, and most axes have no LayerScale.
    tail: np.ndarray = np.broadcast_to(np.where(keep[first:, None], 1.0 / old, 0.0), (write.new - first, old))
    late = np.flatnonzero(copied[first:])
    if len(late):
        tail = tail.copy()
        tail[late] = 0.0
        tail[late, np.asarray(write.index)[first + late]] = 1.0
    return selection(write.index[:first], old, tail=tail)


def identity_axis(size: int) -> Axis:
    """Return an axis that does not grow."""
    return plain_axis(identity(size), identity(size))


# New entries that preserve the mean of a post-norm stream (`growth.mean_preserving`).


def mean_preserving_cells(norms: int, new: int) -> np.ndarray | None:
    """Return the cell of every new entry: [new] int64. Entries of one cell hold the same value.

    Args:
        norms: number of norms that the stream passes.
        new: number of entries that the stream gains.

    Returns:
        None if there are too few entries to preserve the mean.
    """
    cells = 1 << norms.bit_length()
    return np.arange(new) % cells if new >= cells else None


def mean_preserving_signs(norms: int, new: int) -> np.ndarray:
    """Return signs +1 and -1: [norms, new]. The product of any run of consecutive rows sums to zero over whole sets of cells.

    Row n is q_n q_(n+1), where the q are distinct rows of Sylvester's Hadamard matrix and the last one is the row of ones. A run
    telescopes to the product of two different rows, which is a row other than the row of ones.
    """
    cells = mean_preserving_cells(norms, new)
    assert cells is not None
    rows = np.array([*range(1, norms + 1), 0])
    common = rows[:, None] & cells[None, :]
    parity = np.zeros_like(common)
    while common.any():
        parity ^= common & 1
        common >>= 1
    hadamard = 1 - 2 * parity
    return np.asarray(hadamard[:-1] * hadamard[1:], dtype=np.float64)


def mean_preserving_weight(norms: int) -> float:
    """Return the weight c of the second term of a new entry.

    Rounding errors grow by 1/c at every norm, and the approximation error shrinks with c^2. c lets rounding errors grow tenfold in all.
    """
    return float(10 ** (-1 / norms))

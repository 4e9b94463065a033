"""Width maps as data: M [new, old] held as selected rows above dense rows, and the four maps of one axis.

What comes in are sizes and numpy arrays; what goes out is data that `operator` stores and `growth` applies. Every start of
the literature is a selection (copied, scaled or empty rows) over a small dense tail, so that growing by it costs about as
much as a copy; a learned map is all tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

ROLES = ("write", "read", "gain", "shift", "scale")

Array = Any  # numpy.ndarray here; growth and fit hold torch tensors in the same places


@dataclass(frozen=True, kw_only=True)
class Map:
    """y = M x along one dim.

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
        """M as one dense array [new, old]."""
        dense = np.zeros((self.new, self.old), dtype=self.tail.dtype)
        selected = len(self.index)
        dense[np.arange(selected), self.index] = self.weight
        dense[selected:] = self.tail
        return dense

    def scaled(self, factor: float) -> Map:
        return Map(index=self.index, weight=self.weight * factor, tail=self.tail * factor)

    @property
    def is_identity(self) -> bool:
        return (
            self.new == self.old == len(self.index)
            and bool(np.array_equal(self.index, np.arange(self.old)))
            and bool((self.weight == 1).all())
        )


def selection(index: Array, old: int, weight: Array | None = None, *, tail: Array | None = None) -> Map:
    """The map whose first rows pick columns `index` (times `weight`, 1 by default), over the dense rows `tail`."""
    index = np.asarray(index, dtype=np.int64)
    weight = np.ones(len(index)) if weight is None else np.asarray(weight, dtype=np.float64)
    return Map(index=index, weight=weight, tail=np.zeros((0, old)) if tail is None else np.asarray(tail))


def identity(size: int) -> Map:
    return selection(np.arange(size), size)


def dense(matrix: Array) -> Map:
    """A map that is all tail; works for numpy arrays and, through their own slicing, for torch tensors."""
    return Map(index=np.zeros(0, dtype=np.int64), weight=np.zeros(0, dtype=np.float64), tail=matrix)


def corner(old: int, new: int) -> Map:
    """[I; 0]: the old entries first, empty rows after them."""
    index = np.concatenate([np.arange(old), np.zeros(new - old, dtype=np.int64)])
    return selection(index, old, np.concatenate([np.ones(old), np.zeros(new - old)]))


def kronecker(maps: list[Map]) -> np.ndarray:
    """The dense map of a stream from the maps of its factors, slowest first: [prod new, prod old]."""
    result = maps[0].matrix()
    for factor in maps[1:]:
        result = np.kron(result, factor.matrix())
    return result


@dataclass(frozen=True, kw_only=True)
class Axis:
    """How one axis (or one whole stream) grows: the maps of the four roles.

    The law of every exact width: read^T . norm'(write . x) = norm(x) for all x, each side with its own gain, shift and
    epsilon; where no norm stands between them, read^T . write = I.

    Attributes:
        write: entries of the grown stream as mixtures of the old ones.
        read: weights that a consumer of the grown stream puts on its entries.
        gain, shift: the norm's scale and offset.
        scale: a LayerScale's entries; applied to their absolute values where entries are mixed (`growth`).
        drawn: [new] bool, entries whose weights are drawn afresh as the library initialises; None for none.
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
        found = getattr(self, role)
        assert isinstance(found, Map)
        return found


def plain_axis(write: Map, read: Map, *, drawn: Array | None = None) -> Axis:
    """An axis whose norm parameters, if it has any, are mapped as it is written."""
    return Axis(write=write, read=read, gain=write, shift=write, scale=scale_like(write, drawn), drawn=drawn)


def scale_like(write: Map, drawn: Array | None = None) -> Map:
    """How a LayerScale follows a stream that is written by `write`.

    A copied entry takes its scale along. An entry that is empty or a mixture has none of its own: it takes the mean of all, so that
    it is neither dead nor divided by nothing. A drawn one is the library's to set.
    """
    old, selected = write.old, len(write.index)
    if write.is_identity:
        return write
    copied = np.asarray(write.weight) != 0
    if copied.all() and write.new == selected:
        return selection(write.index, old)
    keep = np.ones(write.new, dtype=bool) if drawn is None else ~np.asarray(drawn, dtype=bool)
    first = int(np.argmin(copied)) if not copied.all() else selected
    tail = np.where(keep[first:, None], 1.0 / old, 0.0) * np.ones((write.new - first, old))
    for row in range(first, selected):
        if copied[row]:
            tail[row - first] = np.eye(old)[write.index[row]]
    return selection(write.index[:first], old, tail=tail)


def identity_axis(size: int) -> Axis:
    return plain_axis(identity(size), identity(size))


# New entries that carry the mean of a post-norm stream (`mean_preserving` says how).


def mean_preserving_cells(norms: int, new: int) -> np.ndarray | None:
    """[new] int64: new entries with the same number hold the same. None where there are too few of them to carry the mean.

    Args:
        norms: how many norms the stream passes. new: how many entries it gains.
    """
    cells = 1 << norms.bit_length()
    return np.arange(new) % cells if new >= cells else None


def mean_preserving_signs(norms: int, new: int) -> np.ndarray:
    """[norms, new] of +1 and -1: every run of consecutive rows, multiplied, sums to zero over whole sets of cells.

    Row n is q_n q_(n+1), of distinct rows q of Sylvester's Hadamard matrix and the row of ones at the end: a run telescopes to a
    product of two different rows, which is another one than that of ones.
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
    """c: rounding grows by 1/c at every norm, and what is left out shrinks with c^2. The rounding may grow tenfold in all."""
    return float(10 ** (-1 / norms))

"""The full map of Mango: every matrix of a target's layers from all matrices of the source's layers, as a tensor ring.

Mango (arXiv:2310.10699) stacks the matrices of all layers in one tensor M [B, I, O, L]: B modules, each I x O, in L layers. A module of
k times the width is cut into k slices. The target's tensor is

    M'[c, z, x, y] = sum over p, q, r, s and b, i, o, l of
        S_B[p, b, c, q] S_O[q, o, x, r] S_L[r, l, y, s] S_I[s, i, z, p] M[b, i, o, l]

Here `i` runs along the residual stream and `o` along the inner stream of a module (queries, values, MLP), whichever of the two the
matrix writes. Ours, because the families differ more than those of the paper:

* Matrices whose inner stream is no whole multiple of the residual stream, or of another multiple in the target, have a ring of their
  own, with all matrices of the same two sizes. So have the layers of every depth axis.
* A ring of small rank has one map for all modules, so it cannot hold a start that keeps the function, where reads differ from writes.
  The ring is therefore added to the start's matrices. S_B begins at zero: the target begins as the start, and S_B has a gradient.
* What is no matrix between the two streams (embeddings, norms, biases, LayerScale, talking heads) stays as the start grows it.

Input: a family and two configs. Output: which matrices make each ring, its cores as numpy arrays, and its cost. `training.ring_fit`
learns them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.depth_methods import interpolate
from ligo_convert.growth.verdict import generator

# The names of the cores, in the order of the ring.
CORES = ("module", "inner", "layer", "stream")

# Deviation of the noise on the cores of a ring of rank two and more, times the root of the core's old size.
NOISE = 0.1


@dataclass(frozen=True, kw_only=True)
class Module:
    """One matrix in every layer: a row, or a piece of a fused row.

    Attributes:
        row: the row of the family's table.
        piece: number of the piece in storage order.
        slices: number of slices along the inner stream.
        transposed: True if the matrix is stored as [residual stream, inner stream].
    """

    row: Row
    piece: int
    slices: int
    transposed: bool


@dataclass(frozen=True, kw_only=True)
class Ring:
    """The matrices that are mapped together, and the sizes of their tensor.

    Attributes:
        name: depth axis and sizes, which name the ring's parameters.
        modules: the matrices, in the order of the table.
        old: (stream, inner, layers) in the source; `inner` is the height of one slice.
        new: the same in the target.
    """

    name: str
    modules: tuple[Module, ...]
    old: tuple[int, int, int]
    new: tuple[int, int, int]

    @property
    def slices(self) -> int:
        """Return B, the number of slices of all modules."""
        return sum(module.slices for module in self.modules)

    def flops(self, rank: int) -> int:
        """Return the operations of one contraction with the cores, in the order of `training.ring_fit.contracted`."""
        (stream, inner, layers), (new_stream, new_inner, new_layers) = self.old, self.new
        steps = (
            rank**2 * self.slices**2 * stream * inner * layers,
            rank**3 * self.slices * stream * inner * layers * new_inner,
            rank**3 * self.slices * stream * new_inner * layers * new_layers,
            rank**2 * self.slices * stream * new_inner * new_layers * new_stream,
        )
        return 2 * sum(steps)


def rings_of(family: Family, source: Mapping[str, object], target: Mapping[str, object]) -> tuple[Ring, ...]:
    """Return the rings of a growth, from configs alone.

    Args:
        family: narrowed to the target's class.
    """
    old, new, stream = family.sizes(source), family.sizes(target), family.norm.stream
    found: dict[tuple[str, int, int], list[Module]] = {}
    for row in family.rows_for(target):
        if row.depth is None or not old[row.depth] or len(row.layout.dims) != 2:
            continue
        for number, (_, dims) in enumerate(row.layout.pieces()):
            parts = [dim.parts[0] for dim in dims]
            if parts.count(stream) != 1 or "1" in parts:
                continue
            inner = parts[1 - parts.index(stream)]
            times = old[inner] // old[stream]
            whole = times > 0 and (old[inner], new[inner]) == (times * old[stream], times * new[stream])
            slices = times if whole else 1
            module = Module(row=row, piece=number, slices=slices, transposed=parts[0] == stream)
            found.setdefault((row.depth, old[inner] // slices, new[inner] // slices), []).append(module)
    return tuple(
        Ring(
            name=f"{axis}.{before}.{after}",
            modules=tuple(modules),
            old=(old[stream], before, old[axis]),
            new=(new[stream], after, new[axis]),
        )
        for (axis, before, after), modules in found.items()
    )


def ring_flops(family: Family, source: Mapping[str, object], target: Mapping[str, object], *, rank: int) -> int:
    """Return the operations of growing a target once by its rings."""
    return sum(ring.flops(rank) for ring in rings_of(family, source, target))


def initial_cores(ring: Ring, *, rank: int, seed: int) -> dict[str, np.ndarray]:
    """Return the cores that learning begins at, by name of `CORES`: [rank, old, new, rank] each.

    S_B is zero. The other cores copy: entries in order, those of the stream divided by the number of copies, and layers as `interpolate`
    does. Beyond rank one, noise makes the steps of the ring differ.
    """
    (stream, inner, layers), (new_stream, new_inner, new_layers) = ring.old, ring.new
    split = 1.0 / np.bincount(np.arange(new_stream) % stream, minlength=stream)
    maps = {
        "module": np.zeros((ring.slices, ring.slices)),
        "inner": _copies(np.arange(new_inner) % inner, inner),
        "layer": _copies(np.asarray(interpolate(layers, new_layers).source), layers),
        "stream": split[:, None] * _copies(np.arange(new_stream) % stream, stream),
    }
    cores = {}
    for name in CORES:
        old, new = maps[name].shape
        core = np.zeros((rank, old, new, rank))
        for number in range(rank):
            core[number, :, :, number] = maps[name]
        if rank > 1 and name != "module":
            rng = generator(seed, "ring", ring.name, name)
            core += rng.normal(0.0, NOISE / math.sqrt(old), size=core.shape)
        cores[name] = core
    return cores


def _copies(source: np.ndarray, old: int) -> np.ndarray:
    """Return the map that copies the old entries `source`: [old, new]."""
    return np.asarray(np.arange(old)[:, None] == source[None, :], dtype=np.float64)

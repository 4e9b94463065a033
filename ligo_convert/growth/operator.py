"""The growth operator as data: width maps by stream, depth weights by module, drawn constants by name; load and save.

    W'_i = constant_i + sum over terms of  sum_j D[i, j] B_j W_j A_j^T        keying source (LiGO, arXiv:2303.00980, eq. 6 and 7)
                                           B_i (sum_j D[i, j] W_j) A_i^T      keying target (the paper's published code)
                                           B (sum_j D[i, j] W_j) A^T          keying shared

B is the write map, A the read map of the streams that a tensor's dims lie along. Nothing is applied here (see `growth`), and
nothing imports torch: arrays are numpy's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ligo_convert.growth.maps import ROLES, Array, Axis, Map

Keying = Literal["source", "target", "shared"]

MAP_FIELDS = ("index", "weight", "tail")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One product of the sum.

    Attributes:
        widths: `stream`, or `stream@axis.k` where maps are kept by layer -> the maps of the stream's factors, slowest first.
        depths: piece (`pattern` or `pattern/part`) -> D [new layers, old layers]; [1, 1] for a row without a depth axis.
    """

    widths: Mapping[str, tuple[Axis, ...]]
    depths: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Everything needed to grow a checkpoint of the given shape.

    Attributes:
        family: its name. head: the name of the library's class that the target is of. source, target: the configs it leads from and to.
        keying, tie: how width maps are kept (see above); `paper` ties reads, gains and shifts to writes.
        terms: the sum. drawn_layers: depth axis -> new layers that are drawn. seed: of what is drawn.
        silent_layers: depth axis -> new layers whose branch ends begin at zero, so that nothing is drawn there either.
        drawn_rows: patterns of rows that are drawn whole: a new head. They have no depth weights.
        unit_layers: pattern of a norm's row -> new layers where the norm only normalises: a gain of ones, a shift of zeros, as the
            old stream has them (post-norm models, whose affine has moved to a later layer).
        rewrites: names of the exact changes that are made to the source before it grows (`rewrites`).
        notes: what the operator was made from, for provenance; plain JSON values.
    """

    family: str
    head: str
    source: Mapping[str, object]
    target: Mapping[str, object]
    keying: Keying
    tie: Literal["paper"] | None
    terms: tuple[Term, ...]
    drawn_layers: Mapping[str, tuple[bool, ...]]
    silent_layers: Mapping[str, tuple[bool, ...]]
    seed: int
    drawn_rows: tuple[str, ...] = ()
    unit_layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    notes: Mapping[str, object] = field(default_factory=dict)

    def stream(self, term: Term, stream: str, axis: str | None, old: int | None, new: int | None) -> tuple[Axis, ...]:
        """The maps of `stream` in a row of depth axis `axis`, at source layer `old` or target layer `new`; () where it is passed on."""
        if axis is not None and stream not in term.widths:
            layer = old if self.keying == "source" else new
            return term.widths.get(f"{stream}@{axis}.{layer}", ())
        return term.widths.get(stream, ())

    def map_arrays(self, change: Callable[[str, Array], Array]) -> Operator:
        """The same operator with every float array replaced by `change(name, array)`; what is shared stays shared."""
        done: dict[int, Map] = {}
        depths: dict[int, Array] = {}
        names = self.map_names()

        def changed_depth(name: str, array: Array) -> Array:
            if id(array) not in depths:
                depths[id(array)] = change(name, array)
            return depths[id(array)]

        def changed(found: Map) -> Map:
            if id(found) not in done:
                name = names[id(found)]
                done[id(found)] = replace(
                    found, weight=change(f"{name}.weight", found.weight), tail=change(f"{name}.tail", found.tail)
                )
            return done[id(found)]

        terms = tuple(
            Term(
                widths={
                    key: tuple(replace(axis, **{role: changed(axis.role(role)) for role in ROLES}) for axis in factors)
                    for key, factors in term.widths.items()
                },
                depths={key: changed_depth(f"{number}/depth/{key}", array) for key, array in term.depths.items()},
            )
            for number, term in enumerate(self.terms)
        )
        return replace(self, terms=terms)

    def map_names(self) -> dict[int, str]:
        """id(map) -> its name: term, stream, factor and role of its first use."""
        names: dict[int, str] = {}
        for number, term in enumerate(self.terms):
            for key, factors in term.widths.items():
                for position, axis in enumerate(factors):
                    for role in ROLES:
                        names.setdefault(id(axis.role(role)), f"{number}/width/{key}/{position}/{role}")
        return names

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every stored array with its name; a map that is used in several places is there once."""
        names = self.map_names()
        seen: set[str] = set()
        for number, term in enumerate(self.terms):
            for key, factors in term.widths.items():
                for position, axis in enumerate(factors):
                    for role in ROLES:
                        found = axis.role(role)
                        name = names[id(found)]
                        if name not in seen:
                            seen.add(name)
                            for part in MAP_FIELDS:
                                yield f"{name}.{part}", getattr(found, part)
                    if axis.drawn is not None:
                        yield f"{number}/width/{key}/{position}/drawn", axis.drawn.astype(np.uint8)
            for key, array in term.depths.items():
                yield f"{number}/depth/{key}", array

    @property
    def parameters(self) -> int:
        """Coefficients of the operator: every number of a width map or depth matrix that is not an index."""
        return sum(array.size for name, array in self.arrays() if not name.endswith((".index", "/drawn")))

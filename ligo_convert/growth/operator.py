"""The growth operator as data: width maps by stream, depth matrices by module, flags of randomly initialised parts.

    W'_i = constant_i + sum over terms of  sum_j D[i, j] B_j W_j A_j^T        keying source (LiGO, arXiv:2303.00980, eq. 6 and 7)
                                           B_i (sum_j D[i, j] W_j) A_i^T      keying target (the paper's published code)
                                           B (sum_j D[i, j] W_j) A^T          keying shared

B is the write map and A the read map of the streams along a tensor's dims. `growth.apply` applies an operator and
`growth.operator_file` stores it. This module does not import torch; arrays are numpy arrays, or torch parameters during learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.maps import ROLES, Array, Axis, Map

Keying = Literal["source", "target", "shared"]

MAP_FIELDS = ("index", "weight", "tail")

# Beginning of the name of a stored array of `Operator.parted`; the axis follows.
PARTED = "parted/"


def draws_row(family: Family, row: Row, *, drawn: bool, silent: bool) -> bool:
    """Return True if a row is initialised randomly in a layer with these flags.

    In a silent layer the ends of the branches are zero, and the norms after a sum (post-norm) are those that keep the function.
    """
    return drawn and not (silent and (family.is_residual_output(row) or family.is_post_norm(row)))


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of the sum.

    Attributes:
        widths: stream -> the maps of its factors, slowest first. The key is `stream`, or `stream@axis.k` for maps of layer k.
        depths: piece (`pattern` or `pattern/part`) -> D [new layers, old layers]; [1, 1] for a row without a depth axis.
    """

    widths: Mapping[str, tuple[Axis, ...]]
    depths: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Everything needed to grow a checkpoint of the given shape.

    Attributes:
        family: name of the family.
        head: name of the library class of the target.
        source: config of the source.
        target: config of the target.
        keying: which layers own width maps (see the equations above).
        tie: `paper` ties read, gain and shift maps to write maps.
        terms: the terms of the sum.
        drawn_layers: depth axis -> [new layers] True for a randomly initialised layer.
        silent_layers: depth axis -> [new layers] True for a layer whose residual branches end in zeros; nothing is drawn there.
            A layer can be drawn and silent (`draws_row`).
        seed: seed of random initialisation.
        drawn_rows: patterns of rows that are initialised randomly as a whole (a new head). They have no depth matrices.
        unit_layers: pattern of a norm's row -> target layers in which the norm has a gain of ones and a shift of zeros, because
            its affine has moved to a later layer (post-norm).
        rewrites: names of the changes made to the source before it grows (`growth.rewrites`).
        parted: axis -> [new] int64: the entries whose rows are parted in silent layers (`growth.twins`). The value is the entry whose rows
            an entry takes, -1 for an entry that stays as it is.
        notes: origin of the operator, for provenance; plain JSON values.
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
    parted: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)

    def stream(self, term: Term, stream: str, axis: str | None, old: int | None, new: int | None) -> tuple[Axis, ...]:
        """Return the maps of a stream's factors; () if the stream does not grow.

        Args:
            axis: depth axis of the row; None for a row without one.
            old: source layer, used where maps belong to source layers.
            new: target layer, used where maps belong to target layers.
        """
        if axis is not None and stream not in term.widths:
            layer = old if self.keying == "source" else new
            return term.widths.get(f"{stream}@{axis}.{layer}", ())
        return term.widths.get(stream, ())

    def draws(self, family: Family, row: Row, layer: int | None) -> bool:
        """Return True if a target tensor is initialised randomly as a whole."""
        if row.pattern in self.drawn_rows:
            return True
        if layer is None or row.depth is None or not self.drawn_layers.get(row.depth):
            return False
        silent = self.silent_layers.get(row.depth)
        return draws_row(family, row, drawn=self.drawn_layers[row.depth][layer], silent=bool(silent and silent[layer]))

    def map_arrays(self, change: Callable[[str, Array], Array]) -> Operator:
        """Return the operator with every float array replaced by `change(name, array)`. Shared arrays stay shared."""
        done: dict[int, Map] = {}
        depths: dict[int, Array] = {}
        names = self.map_names()

        def changed_depth(name: str, array: Array) -> Array:
            if id(array) not in depths:
                depths[id(array)] = change(name, array)
            return depths[id(array)]

        def changed(width: Map) -> Map:
            if id(width) not in done:
                name = names[id(width)]
                done[id(width)] = replace(
                    width, weight=change(f"{name}.weight", width.weight), tail=change(f"{name}.tail", width.tail)
                )
            return done[id(width)]

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
        """Return id(map) -> name, made of the term, stream, factor and role of its first use."""
        names: dict[int, str] = {}
        for number, term in enumerate(self.terms):
            for key, factors in term.widths.items():
                for position, axis in enumerate(factors):
                    for role in ROLES:
                        names.setdefault(id(axis.role(role)), f"{number}/width/{key}/{position}/{role}")
        return names

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every stored array with its name. A map that is used in several places is yielded once."""
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
        for name, origin in self.parted.items():
            yield f"{PARTED}{name}", origin

    @property
    def parameters(self) -> int:
        """Return the number of coefficients in width maps and depth matrices. Indices do not count."""
        return sum(
            array.size
            for name, array in self.arrays()
            if not name.endswith((".index", "/drawn")) and not name.startswith(PARTED)
        )

"""Streaming: source tensors in, target tensors out, one row of the table at a time.

What comes in: a reader of source bytes, the inventory that names them, an operator. What goes out: (name, bytes) in the order of the
family's table, layer by layer. Peak memory is the source tensors that one row needs plus one target tensor; a row that is only
copied never becomes a tensor at all, and a conversion of nothing but such rows never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ligo_convert.checkpoints.tensors import FLOAT_DTYPES, TensorSpec
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.operator import Operator

if TYPE_CHECKING:
    import torch

    from ligo_convert.growth.apply import Grower

Read = Callable[[str], Any]  # name on disk -> buffer


def source_name(family: Family, inventory: Inventory, row: Row, layer: int | None) -> TensorSpec:
    """The stored tensor that `row` takes at a source layer; an untied head that the source ties is its embedding."""
    name = row.name(layer)
    return inventory.stored[name if name in inventory.stored else family.tied[name]]


def stored_dtypes(family: Family, inventory: Inventory, row: Row) -> set[str]:
    """The dtypes that `row` has in the source; none where the source lacks it."""
    if row.layout.part not in ("", *inventory.family.chosen.parts):
        return set()
    return {source_name(family, inventory, row, layer).dtype for layer in family.layers(row, inventory.config)}


def target_specs(
    family: Family, inventory: Inventory, operator_target: Any, *, dtype: str | None
) -> tuple[TensorSpec, ...]:
    """Every tensor of the target in streaming order; `dtype` None keeps the widest that the row has in the source."""
    specs = []
    kept: dict[str, str] = {}
    everywhere = {spec.dtype for spec in inventory.stored.values()}
    for row, _, spec in family.tensors_of(family.rows_for(operator_target), operator_target, dtype="F32"):
        if row.pattern not in kept:
            # A new head is stored as the rest is.
            stored = stored_dtypes(family, inventory, row) or everywhere
            # No 16-bit format holds the other's values.
            widest = "F32" if stored == {"F16", "BF16"} else min(stored, key=FLOAT_DTYPES.index)
            kept[row.pattern] = dtype or widest
        specs.append(TensorSpec(name=family.written(spec.name), dtype=kept[row.pattern], shape=spec.shape))
    return tuple(specs)


def copied_from(operator: Operator, family: Family, row: Row, layer: int | None) -> tuple[bool, int | None]:
    """(True, source layer) where a target tensor is a source tensor, byte for byte but for its dtype."""
    if len(operator.terms) != 1:
        return False, None
    (term,) = operator.terms
    if row.pattern in operator.drawn_rows or operator.unit_layers.get(row.pattern):
        return False, None
    if row.depth is not None and any(operator.drawn_layers.get(row.depth, ())):
        return False, None
    # A stream without maps is passed on; layers grow alike, so the first one's maps tell.
    if any(operator.stream(term, stream, row.depth, 0, 0) for stream in row.layout.streams):
        return False, None
    found: set[int] = set()
    for key in row.piece_keys():
        weights = np.asarray(term.depths[key])[layer or 0]
        used = np.flatnonzero(weights)
        if len(used) != 1 or weights[used[0]] != 1:
            return False, None
        found.add(int(used[0]))
    if len(found) != 1:
        return False, None
    return True, None if row.depth is None else found.pop()


def grow(
    read: Read,
    family: Family,
    inventory: Inventory,
    operator: Operator,
    specs: tuple[TensorSpec, ...],
    *,
    wanted: frozenset[str] | None = None,
    device: str = "cpu",
) -> Iterator[tuple[str, Any]]:
    """Every target tensor as bytes, in the order of `specs`; only those in `wanted` where it is given."""
    by_name = {spec.name: spec for spec in specs}
    grower: Grower | None = None
    for row in family.rows_for(operator.target):
        loader: _Loader | None = None
        for layer in family.layers(row, operator.target):
            spec = by_name[family.written(row.name(layer))]
            if wanted is not None and spec.name not in wanted:
                continue
            copies, source = copied_from(operator, family, row, layer)
            if copies:
                stored = source_name(family, inventory, row, source)
                if stored.dtype == spec.dtype:
                    yield spec.name, read(stored.name)
                    continue
            if grower is None:
                grower = _grower(operator, family, inventory, read, device)
            if loader is None:
                loader = _Loader(row=row, grower=grower)
            yield spec.name, loader.grown(layer, spec)


def compute_dtype(inventory: Inventory) -> str:
    """float32, or float64 where the source holds any."""
    return "F64" if any(spec.dtype == "F64" for spec in inventory.stored.values()) else "F32"


def _grower(operator: Operator, family: Family, inventory: Inventory, read: Read, device: str) -> Grower:
    from ligo_convert.checkpoints.torch_io import TORCH_DTYPES, tensor_from_bytes
    from ligo_convert.growth.apply import Grower

    dtype = TORCH_DTYPES[compute_dtype(inventory)]
    rows = {row.pattern: row for row in family.table}

    def fetch(pattern: str, layer: int | None) -> torch.Tensor:
        stored = source_name(family, inventory, rows[pattern], layer)
        return tensor_from_bytes(read(stored.name), stored).to(device=device, dtype=dtype)

    return Grower(operator, family, device=device, dtype=dtype, fetch=fetch)


class _Loader:
    """The source tensors of one row, read when first asked for and dropped when no later layer can ask."""

    def __init__(self, *, row: Row, grower: Grower) -> None:
        self.row, self.grower = row, grower
        self.held: dict[int | None, torch.Tensor] = {}
        self.cache: dict[tuple[int, int], dict[int, torch.Tensor]] = {}
        # Where every new layer has one source, only the last tensor is worth keeping.
        self.one_hot = all(
            int((np.asarray(term.depths[key]) != 0).sum(axis=1).max()) <= 1
            for term in grower.operator.terms
            for key in row.piece_keys()
            if key in term.depths
        )

    def load(self, layer: int | None) -> torch.Tensor:
        if layer not in self.held:
            if self.one_hot and len(self.grower.operator.terms) == 1:
                self.held.clear()
            self.held[layer] = self.grower.fetch(self.row.pattern, layer)
        return self.held[layer]

    def grown(self, layer: int | None, spec: TensorSpec) -> memoryview:
        from ligo_convert.checkpoints.torch_io import tensor_to_bytes

        return tensor_to_bytes(self.grower.grow_layer(self.row, layer, self.load, self.cache), spec)

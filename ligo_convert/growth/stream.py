"""Stream source tensors through an operator, one row of the family's table at a time.

Input: a reader of source bytes, the inventory of the source, an operator. Output: (name, bytes) of every target tensor, in the order of
the family's table, layer by layer. Peak memory is the source tensors that one row needs, plus one target tensor. A tensor that is only
copied stays bytes, and a conversion of nothing but copies does not import torch.

One path: `Loader` reads and casts, `Growth` prepares and grows, `tensor_to_bytes` casts to the stored dtype. `training.streamed` grows the
tensors of a model that runs without being in memory by the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ligo_convert.checkpoints.tensors import FLOAT_DTYPES, TensorSpec
from ligo_convert.environment import compute_threads
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.operator import Operator

if TYPE_CHECKING:
    import torch

    from ligo_convert.growth.apply import Grower, RowSource

Read = Callable[[str], Any]  # name on disk -> buffer


def source_name(family: Family, inventory: Inventory, row: Row, layer: int | None) -> TensorSpec:
    """Return the stored tensor of a row at a source layer. An untied head takes the embedding of a source that ties it."""
    name = row.name(layer)
    return inventory.stored[name if name in inventory.stored else family.tied[name]]


def stored_dtypes(family: Family, inventory: Inventory, row: Row) -> set[str]:
    """Return the stored dtypes of a row in the source; empty if the source has no such row."""
    if row.layout.part not in ("", *inventory.family.chosen.parts):
        return set()
    return {source_name(family, inventory, row, layer).dtype for layer in family.layers(row, inventory.config)}


def target_specs(
    family: Family, inventory: Inventory, operator_target: Any, *, dtype: str | None
) -> tuple[TensorSpec, ...]:
    """Return every tensor of the target in streaming order.

    Args:
        dtype: stored dtype of all tensors; None keeps the widest dtype that each row has in the source.
    """
    specs = []
    kept: dict[str, str] = {}
    everywhere = {spec.dtype for spec in inventory.stored.values()}
    for row, _, spec in family.tensors_of(family.rows_for(operator_target), operator_target, dtype="F32"):
        if row.pattern not in kept:
            # A new head takes the widest dtype of the whole source.
            stored = stored_dtypes(family, inventory, row) or everywhere
            # Neither 16-bit format can hold the values of the other.
            widest = "F32" if stored == {"F16", "BF16"} else min(stored, key=FLOAT_DTYPES.index)
            kept[row.pattern] = dtype or widest
        specs.append(TensorSpec(name=family.written(spec.name), dtype=kept[row.pattern], shape=spec.shape))
    return tuple(specs)


def copied_from(operator: Operator, family: Family, row: Row, layer: int | None) -> tuple[bool, int | None]:
    """Decide whether a target tensor equals a source tensor, apart from its dtype.

    Returns:
        (True, source layer), where the layer is None for a row without a depth axis; (False, None) if the tensor must be grown.
    """
    if len(operator.terms) != 1:
        return False, None
    (term,) = operator.terms
    if row.pattern in operator.drawn_rows or operator.unit_layers.get(row.pattern):
        return False, None
    if row.depth is not None and any(operator.drawn_layers.get(row.depth, ())):
        return False, None
    # A stream without maps does not grow. All layers have maps or none has, so the first layer decides.
    if any(operator.stream(term, stream, row.depth, 0, 0) for stream in row.layout.streams):
        return False, None
    sources: set[int] = set()
    for key in row.piece_keys():
        weights = np.asarray(term.depths[key])[layer or 0]
        used = np.flatnonzero(weights)
        if len(used) != 1 or weights[used[0]] != 1:
            return False, None
        sources.add(int(used[0]))
    if len(sources) != 1:
        return False, None
    return True, None if row.depth is None else sources.pop()


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
    """Yield every target tensor as (name, bytes), in the order of `specs`.

    Args:
        specs: the target's tensors (`target_specs`).
        wanted: names to yield; None for all.
        device: where tensors are grown.
    """
    by_name = {spec.name: spec for spec in specs}
    growth: Growth | None = None
    for row in family.rows_for(operator.target):
        if growth is not None:
            growth.release()
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
            if growth is None:
                growth = Growth(Loader(read, family, inventory, device), operator)
            yield spec.name, _stored_bytes(growth.tensor(row, layer), spec)


def _stored_bytes(tensor: torch.Tensor, spec: TensorSpec) -> memoryview:
    from ligo_convert.checkpoints.torch_io import tensor_to_bytes

    return tensor_to_bytes(tensor, spec)


def compute_dtype(inventory: Inventory) -> str:
    """Return the dtype of the arithmetic: F32, or F64 if the source holds any float64 tensor."""
    return "F64" if any(spec.dtype == "F64" for spec in inventory.stored.values()) else "F32"


class Loader:
    """Read source tensors and cast them to the dtype of the arithmetic: `dtype`, or else the one of `compute_dtype`."""

    def __init__(
        self, read: Read, family: Family, inventory: Inventory, device: str, *, dtype: torch.dtype | None = None
    ) -> None:
        from ligo_convert.checkpoints.torch_io import TORCH_DTYPES

        self.read, self.family, self.inventory, self.device = read, family, inventory, device
        self.dtype = dtype or TORCH_DTYPES[compute_dtype(inventory)]
        # Where parts share a name, the row of the chosen class.
        self.rows = {row.pattern: row for row in (*family.table, *family.rows)}

    def load(self, pattern: str, layer: int | None) -> torch.Tensor:
        """Return the tensor of a row at a source layer."""
        from ligo_convert.checkpoints.torch_io import tensor_from_bytes

        stored = source_name(self.family, self.inventory, self.rows[pattern], layer)
        return tensor_from_bytes(self.read(stored.name), stored).to(device=self.device, dtype=self.dtype)


class Growth:
    """Grow target tensors one after the other, keeping only the source tensors that the current row still needs."""

    def __init__(self, loader: Loader, operator: Operator) -> None:
        from ligo_convert.growth.apply import Grower

        self.loader = loader
        self.grower: Grower = Grower(
            operator, loader.family, device=loader.device, dtype=loader.dtype, fetch=loader.load
        )
        self.row: Row | None = None
        self.source: RowSource

    def release(self) -> None:
        """Drop the source tensors of the last grown row: rows that are only copied may follow."""
        from ligo_convert.growth.apply import RowSource

        self.row, self.source = None, RowSource()

    def tensor(self, row: Row, layer: int | None) -> torch.Tensor:
        """Return one target tensor in the dtype of the arithmetic. The row's source tensors stay until `release` or another row."""
        from ligo_convert.growth.apply import RowSource

        # The order of a sum, and so its last bits, depends on the number of threads. One thread is the same on every machine.
        with compute_threads(1):
            if row is not self.row:
                self.row, self.source = row, RowSource()
            self._load_sources(row, layer)
            return self.grower.grow_layer(row, layer, self.source)

    def _load_sources(self, row: Row, layer: int | None) -> None:
        """Load and prepare every source layer that a target layer needs and that is not in memory yet."""
        needed, pieces = self.grower.source_layers(row, layer), self.source.pieces
        if not self.grower.reuses_layers(row):
            for old in set(pieces) - set(needed):
                del pieces[old]
        for old in needed:
            if old not in pieces:
                pieces[old] = self.grower.prepare(row, old, self.loader.load(row.pattern, old))

"""Apply a growth operator to weights: W' = constant + sum over terms of sum_j D[i, j] B_j W_j A_j^T, in torch.

Input: an operator, a family, source tensors. Output: target tensors. Nothing here reads files: callers load the source.

Source: LiGO, arXiv:2303.00980, equations 6 to 8, extended as `growth.operator` describes. The Kronecker product of the paper's M
is never built. A dim of `heads*head_dim` is unflattened and each factor is contracted alone; selected rows of a map are gathered
instead of multiplied. Maps have the shape [..., new, old], where `old` and `new` are sizes in the source and in the target.
Weights have the shape of the row's layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ligo_convert.families.notation import Dim
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.maps import ROLES, Axis, Map
from ligo_convert.growth.mean_preserving import MeanPreserver
from ligo_convert.growth.operator import Operator, Term
from ligo_convert.growth.rewrites import Fetch, along, rewritten, written_dim
from ligo_convert.growth.verdict import generator


@dataclass(frozen=True, kw_only=True)
class TorchMap:
    """A `maps.Map` on a device.

    Attributes:
        index: [selected] int64, the columns of the selected rows.
        weight: [selected], the coefficients of the selected rows.
        tail: [new - selected, old], the dense rows.
        identity: True if the map changes nothing and is not learned.
        plain: True if all weights are 1 and are not learned, so that selecting is enough.
    """

    index: torch.Tensor
    weight: torch.Tensor
    tail: torch.Tensor
    identity: bool
    plain: bool

    @property
    def old(self) -> int:
        return self.tail.shape[1]

    def apply(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Apply the map along one dim: [..., old, ...] -> [..., new, ...]."""
        if self.identity:
            return tensor
        parts = []
        if self.index.numel():
            selected = tensor.index_select(dim, self.index)
            if not self.plain:
                shape = [1] * tensor.ndim
                shape[dim] = -1
                selected = selected * self.weight.view(shape)
            parts.append(selected)
        if self.tail.shape[0]:
            if dim == tensor.ndim - 1:
                parts.append(tensor @ self.tail.T)
            elif dim == tensor.ndim - 2:
                parts.append(self.tail @ tensor)
            else:
                parts.append(torch.tensordot(self.tail, tensor, dims=([1], [dim])).movedim(0, dim))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


Factors = tuple[Mapping[str, TorchMap], ...]

Pieces = list[torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """The source tensors of one row that are in memory while its target layers are grown one after the other.

    Attributes:
        pieces: source layer -> the unfused pieces of `Grower.prepare`; None is the key of a row without a depth axis.
        widened: (piece, term) -> source layer -> the widened piece, kept for later target layers.
    """

    pieces: dict[int | None, Pieces] = field(default_factory=dict)
    widened: dict[tuple[int, int], dict[int, torch.Tensor]] = field(default_factory=dict)


class Grower:
    """An operator on a device, ready to grow rows.

    Args:
        operator: its arrays are numpy arrays, or torch parameters while the operator is learned.
        family: the operator's family, narrowed to the target's class.
        device: where tensors are grown.
        dtype: dtype of the arithmetic, float32 or wider.
        fetch: returns any source tensor, for rows that depend on the tensors of other rows (LayerScale, post-norm). These are vectors.
        keep_drawn: keep random tensors and signs in memory instead of drawing them again at every use.
    """

    def __init__(
        self,
        operator: Operator,
        family: Family,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        fetch: Fetch | None = None,
        keep_drawn: bool = False,
    ) -> None:
        self.operator, self.family, self.device, self.dtype = operator, family, device, dtype
        self._fetch = fetch
        self.old, self.new = family.sizes(operator.source), family.sizes(operator.target)
        self._maps: dict[int, TorchMap] = {}
        self._factors: dict[int, Factors] = {}
        self._keep: list[object] = []
        self._kept_drawn: dict[str, torch.Tensor] | None = {} if keep_drawn else None
        self._kept_flips: dict[str, torch.Tensor] | None = {} if keep_drawn else None
        self._drawn_rows = {row.pattern: self._row_is_drawn(row) for row in family.rows}
        self._mean_preserver = self._make_mean_preserver() if "mean-preserving" in operator.rewrites else None

    def _tensor(self, array: object, dtype: torch.dtype) -> torch.Tensor:
        if isinstance(array, torch.Tensor):
            return array
        return torch.tensor(np.asarray(array), dtype=dtype, device=self.device)

    def map_of(self, found: Map) -> TorchMap:
        """Return a map on the device. Each map is converted once."""
        if id(found) not in self._maps:
            learned = isinstance(found.tail, torch.Tensor) or isinstance(found.weight, torch.Tensor)
            self._keep.append(found)  # ids stay unique while the object lives
            self._maps[id(found)] = TorchMap(
                index=self._tensor(found.index, torch.int64),
                weight=self._tensor(found.weight, self.dtype),
                tail=self._tensor(found.tail, self.dtype),
                identity=not learned and found.is_identity,
                plain=not learned and bool(np.all(np.asarray(found.weight) == 1)),
            )
        return self._maps[id(found)]

    def _torch_factors(self, factors: tuple[Axis, ...]) -> Factors:
        if id(factors) not in self._factors:
            self._keep.append(factors)
            self._factors[id(factors)] = tuple(
                {role: self.map_of(axis.role(role)) for role in ROLES} for axis in factors
            )
        return self._factors[id(factors)]

    def depth_matrix(self, term: Term, key: str) -> torch.Tensor:
        """Return the depth matrix D of one piece: [new layers, old layers]."""
        return self._tensor(term.depths[key], self.dtype)

    # Width.

    def widen(
        self, term: Term, row: Row, dims: tuple[Dim, ...], tensor: torch.Tensor, old: int | None, new: int | None
    ) -> torch.Tensor:
        """Return B W A^T of one unfused piece.

        Args:
            dims: the dims of the piece.
            tensor: the source tensor; leading dims beyond `dims` (stacked layers) are kept.
            old: source layer that selects the maps, where maps belong to source layers.
            new: target layer that selects the maps, where maps belong to target layers.
        """
        lead = tensor.ndim - len(dims)
        for position, dim in enumerate(dims):
            (part,) = dim.parts
            factors = self._torch_factors(self.operator.stream(term, part, row.depth, old, new)) if part != "1" else ()
            maps = [factor[dim.role] for factor in factors]
            if all(factor.identity for factor in maps):
                continue
            first = lead + position
            if len(maps) == 1:
                tensor = maps[0].apply(tensor, first)
                continue
            shape = tensor.shape
            tensor = tensor.reshape(*shape[:first], *(factor.old for factor in maps), *shape[first + 1 :])
            for offset, factor in enumerate(maps):
                tensor = factor.apply(tensor, first + offset)
            tensor = tensor.flatten(first, first + len(maps) - 1)
        return tensor

    # Rows.

    def pieces(self, row: Row, tensor: torch.Tensor) -> Pieces:
        """Split a source tensor into its unfused pieces, in storage order."""
        fused = row.layout.fused_dim
        if fused is None:
            return [tensor]
        sizes = [self.old[part] for part in row.layout.dims[fused].parts]
        return list(torch.split(tensor, sizes, dim=fused - len(row.layout.dims)))

    def join(self, row: Row, pieces: Pieces) -> torch.Tensor:
        """Join the grown pieces into one tensor."""
        fused = row.layout.fused_dim
        return pieces[0] if fused is None else torch.cat(pieces, fused - len(row.layout.dims))

    def grow_stacked(self, row: Row, stacked: torch.Tensor) -> torch.Tensor:
        """Grow all layers of a row at once: [old layers, ...] -> [new layers, ...]. A row without a depth axis has one layer.

        Layers are widened before they are mixed where maps belong to source layers or are shared, because there are fewer source
        layers. They are mixed first where maps belong to target layers.
        """
        grown = self._grow_stacked(row, stacked)
        if not row.layout.less_one:
            return grown
        ones = self._grow_stacked(row, torch.ones_like(stacked))
        kept = [self._kept(row, layer) for layer in self.family.layers(row, self.operator.target)]
        return grown + (ones - 1) * torch.stack(kept)

    def _kept(self, row: Row, layer: int | None) -> torch.Tensor:
        """Return 1 for the entries of a target tensor that growth makes, and 0 for those that are drawn, in the dtype of the arithmetic."""
        if not self._drawn_rows[row.pattern]:
            return torch.ones(self.family.shape(row, self.new), dtype=self.dtype, device=self.device)
        return self._tensor(~self._drawn_mask(row, layer, self.family.shape(row, self.new)), self.dtype)

    def _grow_stacked(self, row: Row, stacked: torch.Tensor) -> torch.Tensor:
        if row.pattern in self.operator.drawn_rows:
            return torch.stack([self.drawn(row, layer) for layer in self.family.layers(row, self.operator.target)])
        if row.depth is not None and self.old[row.depth] <= row.first:
            # The model has no layers to grow from.
            layers = self.family.layers(row, self.operator.target)
            return torch.stack([self._grow_layer(row, layer, RowSource()) for layer in layers])
        if self.family.is_scale(row):
            layers = self.family.layers(row, self.operator.target)
            return torch.stack([self._with_drawn(row, self.scale(row, layer), layer) for layer in layers])
        if self._is_rewritten(row):
            old = self.family.layers(row, self.operator.source)
            stacked = torch.stack(
                [self._rewritten(row, layer, tensor) for layer, tensor in zip(old, stacked, strict=True)]
            )
        out = []
        for (_, dims), key, piece in zip(row.layout.pieces(), row.piece_keys(), self.pieces(row, stacked), strict=True):
            total = None
            for term in self.operator.terms:
                # Without the layers that lack the row.
                matrix = self.depth_matrix(term, key)[row.first :, row.first :]
                grown = self._stacked_term(term, row, dims, piece, matrix)
                total = grown if total is None else total + grown
            assert total is not None
            out.append(total)
        grown = self.join(row, out)
        below = self._mean_preserving_stacked(row, stacked)
        if below is not None:
            grown = grown + below
        layers = self.family.layers(row, self.operator.target)
        if self._parts(row):
            grown = torch.stack(
                [self.with_parted(row, tensor, layer) for layer, tensor in zip(layers, grown, strict=True)]
            )
        if self.operator.unit_layers.get(row.pattern):
            grown = torch.stack(
                [self._with_unit(row, tensor, layer) for layer, tensor in zip(layers, grown, strict=True)]
            )
        if self.family.scale_row(row, self.operator.source) is not None:
            grown = torch.stack(
                [self._unscaled(row, tensor, layer) for layer, tensor in zip(layers, grown, strict=True)]
            )
        return self._with_drawn(row, grown, None)

    def _stacked_term(
        self, term: Term, row: Row, dims: tuple[Dim, ...], piece: torch.Tensor, matrix: torch.Tensor
    ) -> torch.Tensor:
        keyed = row.depth is not None and self.operator.keying != "shared"
        if not keyed:
            return _mix(matrix, self.widen(term, row, dims, piece, None, None))
        if self.operator.keying == "source":
            wide = [self.widen(term, row, dims, layer, number, None) for number, layer in enumerate(piece, row.first)]
            return _mix(matrix, torch.stack(wide))
        mixed = _mix(matrix, piece)
        return torch.stack(
            [self.widen(term, row, dims, layer, None, number) for number, layer in enumerate(mixed, row.first)]
        )

    def source_layers(self, row: Row, layer: int | None) -> tuple[int | None, ...]:
        """Return the source layers whose tensor of this row `grow_layer` needs, in rising order.

        Args:
            layer: target layer; None for a row without a depth axis.

        Returns:
            `(None,)` for a row without a depth axis that reads its source tensor; `()` for a row that reads none.
        """
        if row.pattern in self.operator.drawn_rows or self.family.is_scale(row):
            return ()
        used = {
            source
            for term in self.operator.terms
            for key in row.piece_keys()
            for source in torch.nonzero(self.depth_matrix(term, key)[layer or 0]).flatten().tolist()
            if source >= row.first
        }
        if row.depth is None:
            return (None,) if used else ()
        return tuple(sorted(used))

    def reuses_layers(self, row: Row) -> bool:
        """Return False if every target layer has one source layer under one term, so that only the last one is worth keeping."""
        if len(self.operator.terms) != 1:
            return True
        return any(
            int((np.asarray(term.depths[key]) != 0).sum(axis=1).max()) > 1
            for term in self.operator.terms
            for key in row.piece_keys()
            if key in term.depths
        )

    def prepare(self, row: Row, layer: int | None, tensor: torch.Tensor) -> Pieces:
        """Apply the operator's rewrites to a source tensor and cut it into its unfused pieces.

        Args:
            layer: source layer. tensor: as the source has it, in the dtype of the arithmetic.
        """
        return self.pieces(row, self._rewritten(row, layer, tensor))

    def grow_layer(self, row: Row, layer: int | None, source: RowSource) -> torch.Tensor:
        """Grow one target tensor.

        Args:
            layer: target layer; None for a row without a depth axis.
            source: holds the pieces of every layer in `source_layers(row, layer)`. Widened pieces are added for later layers.
        """
        grown = self._grow_layer(row, layer, source)
        if not row.layout.less_one:
            return grown
        # G(w + 1) - 1 = G(w) + (G(1) - 1): where growth copies, nothing is rounded.
        pieces = {old: [torch.ones_like(piece) for piece in found] for old, found in source.pieces.items()}
        ones = self._grow_layer(row, layer, RowSource(pieces=pieces))
        return grown + (ones - 1) * self._kept(row, layer)

    def _grow_layer(self, row: Row, layer: int | None, source: RowSource) -> torch.Tensor:
        if row.pattern in self.operator.drawn_rows:
            return self.drawn(row, layer)
        if self.family.is_scale(row):
            return self._with_drawn(row, self.scale(row, layer), layer)
        out = []
        for number, ((_, dims), key) in enumerate(zip(row.layout.pieces(), row.piece_keys(), strict=True)):
            total = torch.zeros([self.new.get(dim.parts[0], 1) for dim in dims], dtype=self.dtype, device=self.device)
            for position, term in enumerate(self.operator.terms):
                weights = self.depth_matrix(term, key)[layer or 0]
                used = [old for old in torch.nonzero(weights).flatten().tolist() if old >= row.first]
                if used:
                    tensors = {old: source.pieces[None if row.depth is None else old][number] for old in used}
                    widened = source.widened.setdefault((number, position), {})
                    grown = self._grow_piece(term, row, dims, tensors, weights, layer, widened)
                    total = grown if len(self.operator.terms) == 1 else total + grown
            out.append(total)
        grown = self.join(row, out)
        if self._mean_preserver is not None:
            grown = self._with_mean_preserving(row, grown, layer, source)
        grown = self.with_parted(row, grown, layer)
        grown = self._with_unit(row, grown, layer)
        return self._with_drawn(row, self._unscaled(row, grown, layer), layer)

    def _grow_piece(
        self,
        term: Term,
        row: Row,
        dims: tuple[Dim, ...],
        tensors: Mapping[int, torch.Tensor],
        weights: torch.Tensor,
        layer: int | None,
        widened: dict[int, torch.Tensor],
    ) -> torch.Tensor:
        """Return one piece under one term: the widened sum over source layers, weighted by one row of the depth matrix.

        Args:
            tensors: source layer -> piece, for every layer with a nonzero weight. weights: [old layers].
            layer: target layer. widened: source layer -> piece widened for an earlier target layer; updated.
        """
        used = list(tensors)
        keying = "shared" if row.depth is None else self.operator.keying
        if keying == "target" or (keying == "shared" and len(used) > 1):
            mixed = tensors[used[0]] * weights[used[0]]
            for old in used[1:]:
                mixed = mixed + tensors[old] * weights[old]
            return self.widen(term, row, dims, mixed, None, layer)
        if len(used) == 1:
            # A one-hot depth matrix needs one source layer at a time: only the last is worth keeping.
            for old in set(widened) - set(used):
                del widened[old]
        total = None
        for old in used:
            if old not in widened:
                widened[old] = self.widen(term, row, dims, tensors[old], old, layer)
            grown = widened[old] if weights[old] == 1 else widened[old] * weights[old]
            total = grown if total is None else total + grown
        assert total is not None
        return total

    # Rows that depend on the tensors of other rows.

    def _fetched(self, pattern: str, layer: int | None) -> torch.Tensor:
        assert self._fetch is not None, "this operator needs other tensors of the source: give `fetch`"
        return self._fetch(pattern, layer)

    def _is_rewritten(self, row: Row) -> bool:
        return bool(self.operator.rewrites) or self.family.scale_row(row, self.operator.source) is not None

    def _rewritten(self, row: Row, layer: int | None, tensor: torch.Tensor) -> torch.Tensor:
        if not self._is_rewritten(row):
            return tensor
        return rewritten(self.family, self.operator.source, self.operator.rewrites, row, layer, tensor, self._fetched)

    def _with_unit(self, row: Row, grown: torch.Tensor, layer: int | None) -> torch.Tensor:
        """Set the gain of a unit norm to one in every entry. Its shift is zero already."""
        if layer is None or layer not in self.operator.unit_layers.get(row.pattern, ()):
            return grown
        (dim,) = row.layout.dims
        if dim.role != "gain":
            return grown
        # Randomly initialised entries of a gain are ones already.
        drawn = self.drawn(row, layer) if self._drawn_rows[row.pattern] else torch.zeros_like(grown)
        return grown + 1 - drawn

    # Silent layers.

    def _parts(self, row: Row) -> bool:
        """Return True if growth parts entries of a row in silent layers: its written stream is an inner one that grows."""
        return (
            bool(self.operator.parted)
            and any(self.operator.silent_layers.get(row.depth or "", ()))
            and any(
                not set(self.operator.parted).isdisjoint(self.family.factors(part))
                for dim in row.layout.dims
                if dim.role == "write"
                for part in dim.parts
                if part != "1"
            )
        )

    def with_parted(self, row: Row, grown: torch.Tensor, layer: int | None) -> torch.Tensor:
        """Part the rows of copied entries, and fill those of empty ones, in a silent layer (`growth.twins`).

        A parted row takes the magnitudes of the row that it copies and draws the sign of every coefficient: it has the same scale, and is
        independent of the copy. Changing signs is exact in every dtype. Biases keep the values that they copy.
        """
        if layer is None or not self._parts(row) or not self.operator.silent_layers[row.depth or ""][layer]:
            return grown
        for position, dim in enumerate(row.layout.dims):
            if dim.role != "write":
                continue
            origin = self._origin(dim.parts)
            parted = origin >= 0
            taken = np.where(parted, origin, np.arange(len(origin)))
            if not np.array_equal(taken, np.arange(len(origin))):
                grown = grown.index_select(position, self._tensor(taken, torch.int64))
            if grown.ndim > 1:
                grown = torch.where(self._flipped(row, layer, grown.shape, position, parted), -grown, grown)
        return grown

    def _origin(self, parts: tuple[str, ...]) -> np.ndarray:
        """Return the entry whose rows each entry of a written dim takes, -1 if it is not parted: [new] int64."""
        origins: list[np.ndarray] = []
        for part in parts:
            taken, parted = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool)
            for axis in self.family.factors(part):
                along = self.operator.parted.get(axis, np.full(self.new[axis], -1, dtype=np.int64))
                own = np.where(along >= 0, along, np.arange(len(along)))
                taken = np.add.outer(taken * len(along), own).reshape(-1)
                parted = np.logical_or.outer(parted, along >= 0).reshape(-1)
            origins.append(np.where(parted, taken + sum(map(len, origins)), -1))
        return np.concatenate(origins)

    def _flipped(self, row: Row, layer: int, shape: torch.Size, position: int, parted: np.ndarray) -> torch.Tensor:
        """Return which coefficients of a target tensor change their sign: bool of the tensor's shape."""
        name = row.name(layer)
        if self._kept_flips is not None and name in self._kept_flips:
            return self._kept_flips[name]
        rng = generator(self.operator.seed, "parted", name)
        bits = np.frombuffer(rng.bytes(-(-math.prod(shape) // 8)), dtype=np.uint8)
        flips = np.unpackbits(bits, count=math.prod(shape)).astype(bool).reshape(shape)
        view = [1] * len(shape)
        view[position] = -1
        flips &= parted.reshape(view)
        made = torch.tensor(flips, device=self.device)
        if self._kept_flips is not None:
            self._kept_flips[name] = made
        return made

    # New entries that preserve the mean of a post-norm stream.

    def _make_mean_preserver(self) -> MeanPreserver:
        stream = self.family.norm.stream
        tiles, rest = divmod(self.new[stream], self.old[stream])
        return MeanPreserver(
            family=self.family,
            source=self.operator.source,
            new=rest,
            scale=math.sqrt(tiles * self.old[stream] / self.new[stream]),
            fetch=self._fetched,
        )

    def _mean_preserving_entries(
        self, row: Row, tensor: torch.Tensor, source: int | None, old: int | None, new: int | None
    ) -> torch.Tensor | None:
        """Return the contribution of one source tensor to the mean-preserving entries, as large as the target tensor.

        Args:
            tensor: after rewrites. source: source layer. old, new: layers that select the maps of the other dims.

        Returns:
            None for rows without such entries.
        """
        if self._mean_preserver is None or len(row.layout.pieces()) > 1:
            return None
        below, dim = self._mean_preserver.rows(row, source, tensor), self._mean_preserver.dim(row)
        if below is None or dim is None:
            return None
        others = tuple(
            replace(other, parts=("1",)) if position == dim else other for position, other in enumerate(row.layout.dims)
        )
        wide = self.widen(self.operator.terms[0], row, others, below, old, new)
        full = list(wide.shape)
        full[dim] = self.new[self.family.norm.stream] - self._mean_preserver.new
        return torch.cat([torch.zeros(full, dtype=self.dtype, device=self.device), wide], dim)

    def _with_mean_preserving(
        self, row: Row, grown: torch.Tensor, layer: int | None, source: RowSource
    ) -> torch.Tensor:
        if len(row.layout.pieces()) > 1:
            return grown
        weights = self.depth_matrix(self.operator.terms[0], row.piece_keys()[0])[layer or 0]
        for used in torch.nonzero(weights).flatten().tolist():
            old = None if row.depth is None else int(used)
            below = self._mean_preserving_entries(row, source.pieces[old][0], old, old, layer)
            if below is None:
                break
            grown = grown + weights[used] * below
        return grown

    def _mean_preserving_stacked(self, row: Row, stacked: torch.Tensor) -> torch.Tensor | None:
        """Return the mean-preserving entries of all layers: [new layers, ...]; None for rows without such entries."""
        if self._mean_preserver is None or self._mean_preserver.dim(row) is None:
            return None
        matrix = self.depth_matrix(self.operator.terms[0], row.piece_keys()[0])
        sources = self.family.layers(row, self.operator.source)

        def entries(layer: int | None) -> torch.Tensor | None:
            """[old layers, ...], with the maps of one target layer."""
            parts = [
                self._mean_preserving_entries(row, tensor, old, old, layer)
                for old, tensor in zip(sources, stacked, strict=True)
            ]
            return torch.stack([part for part in parts if part is not None]) if parts[0] is not None else None

        if row.depth is None or self.operator.keying != "target":
            below = entries(None)
            return None if below is None else _mix(matrix, below)
        layers = []
        for layer in self.family.layers(row, self.operator.target):
            below = entries(layer)
            if below is None:
                return None
            number = layer or 0
            layers.append(_mix(matrix[number : number + 1], below)[0])
        return torch.stack(layers)

    def scale(self, row: Row, layer: int | None) -> torch.Tensor:
        """Return a LayerScale of the target. Copied entries keep their scale; the others take the mean of absolute values.

        A mean of values of both signs can be close to zero, and weights are divided by it (`_unscaled`).
        """
        (dim,) = row.layout.dims
        weights = self.depth_matrix(self.operator.terms[0], row.pattern)[layer or 0]
        total = torch.zeros(self.old[dim.parts[0]], dtype=self.dtype, device=self.device)
        for source in torch.nonzero(weights).flatten().tolist():
            total = total + weights[source] * self._fetched(row.pattern, None if row.depth is None else source)
        for factor in self._torch_factors(
            self.operator.stream(self.operator.terms[0], dim.parts[0], row.depth, 0, layer)
        ):
            scale = factor["scale"]
            if not scale.identity:
                total = torch.cat([total[scale.index] * scale.weight, scale.tail @ total.abs()])
        return total

    def _unscaled(self, row: Row, grown: torch.Tensor, layer: int | None) -> torch.Tensor:
        """Divide a branch's output weights by the target's LayerScale; the rewrite has multiplied them by the source's."""
        scale, dim = self.family.scale_row(row, self.operator.source), written_dim(self.family, row)
        if scale is None or dim is None:
            return grown
        values = self.scale(scale, layer)
        # A scale of zero blocks the branch whatever its weights are.
        return grown / along(torch.where(values == 0, torch.ones_like(values), values), row, dim)

    # Random initialisation.

    def _row_is_drawn(self, row: Row) -> bool:
        if row.pattern in self.operator.drawn_rows:
            return True
        if row.depth is not None and any(self.operator.drawn_layers.get(row.depth, ())):
            return True
        return any(bool(self._drawn_along(row, stream).any()) for stream in row.layout.streams)

    def _drawn_along(self, row: Row, part: str) -> np.ndarray:
        """Return which entries of a stream are drawn: [new] bool. The flags of the first layer hold for all layers."""
        factors = self.operator.stream(self.operator.terms[0], part, row.depth, 0, 0) if part != "1" else ()
        along = np.zeros(1, dtype=bool)
        for axis in factors:
            flags = axis.drawn if axis.drawn is not None else np.zeros(axis.new, dtype=bool)
            along = np.logical_or.outer(along, flags).reshape(-1)
        return along if factors else np.zeros(self.new.get(part, 1), dtype=bool)

    def _with_drawn(self, row: Row, grown: torch.Tensor, layer: int | None) -> torch.Tensor:
        if not self._drawn_rows[row.pattern]:
            return grown
        if layer is not None or grown.ndim == len(row.layout.dims):
            return grown + self.drawn(row, layer)
        layers = (None,) if row.depth is None else range(grown.shape[0])
        return grown + torch.stack([self.drawn(row, number) for number in layers])

    def drawn(self, row: Row, layer: int | None) -> torch.Tensor:
        """Return the random entries of a target tensor, initialised as the library does it; the other entries are zero."""
        name = row.name(layer)
        if self._kept_drawn is not None and name in self._kept_drawn:
            return self._kept_drawn[name]
        shape = self.family.shape(row, self.new)
        values = drawn_values(self.family, self.operator.target, row, layer, shape, self.operator.seed)
        values = np.where(self._drawn_mask(row, layer, shape), values, np.float32(0))
        drawn = torch.tensor(values, dtype=self.dtype, device=self.device)
        if self._kept_drawn is not None:
            self._kept_drawn[name] = drawn
        return drawn

    def _drawn_mask(self, row: Row, layer: int | None, shape: tuple[int, ...]) -> np.ndarray:
        """Return which entries of a target tensor are drawn: bool of the tensor's shape."""
        if self.operator.draws(self.family, row, layer):
            return np.ones(shape, dtype=bool)
        mask = np.zeros(shape, dtype=bool)
        silent = self.operator.silent_layers.get(row.depth or "", ())
        if layer is not None and silent and silent[layer] and self.family.is_residual_output(row):
            return mask
        for position, dim in enumerate(row.layout.dims):
            along = np.concatenate([self._drawn_along(row, part) for part in dim.parts])
            view = [1] * len(shape)
            view[position] = -1
            mask |= along.reshape(view)
        return mask


def _mix(matrix: torch.Tensor, stacked: torch.Tensor) -> torch.Tensor:
    """Return sum_j D[i, j] W_j: [new, old] x [old, ...] -> [new, ...]."""
    mixed: torch.Tensor = torch.tensordot(matrix, stacked, dims=([1], [0]))
    return mixed


def drawn_values(
    family: Family, config: Mapping[str, object], row: Row, layer: int | None, shape: tuple[int, ...], seed: int
) -> np.ndarray:
    """Return a tensor initialised as the library does it, from a generator keyed by the seed and the tensor's name.

    Gains are ones. Shifts and biases are zeros. A LayerScale takes the config's value. Weights are normal with the family's standard
    deviation, divided by sqrt(2 * layers) where the library does so.
    """
    role, complete = row.layout.dims[0].role, family.complete(config)
    if role == "gain":
        return np.full(shape, 0.0 if row.layout.less_one else 1.0, dtype=np.float32)
    if role == "scale":
        return np.full(shape, _number(complete[family.scale_init]), dtype=np.float32)
    if role == "shift" or len(shape) == 1:
        return np.zeros(shape, dtype=np.float32)
    chosen = family.initializer
    deviation = _number(complete[chosen] if isinstance(chosen, str) else chosen)
    if roots := family.root_of(row):
        sizes = family.sizes(config)
        deviation = math.prod(sizes[stream] for stream in roots) ** -0.5
    if row.depth is not None and family.has_residual_init(row):
        deviation = deviation / math.sqrt(2 * family.sizes(config)[row.depth])
    rng = generator(seed, "drawn", row.name(layer))
    values: np.ndarray = rng.standard_normal(size=shape, dtype=np.float32)
    values *= np.float32(deviation)
    return values


def _number(value: object) -> float:
    assert isinstance(value, (int, float)), value
    return float(value)

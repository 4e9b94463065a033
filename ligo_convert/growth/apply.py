"""Growth: W' = constant + sum over terms of sum_j D[i, j] B_j W_j A_j^T, factor by factor, in torch.

What comes in: an operator (data), a family's rows, source tensors. What goes out: target tensors. LiGO, arXiv:2303.00980, eq. 6
to 8, with what `operator` adds to it. The Kronecker product of the paper's M is never built: a dim of `heads*head_dim` is
unflattened and each factor contracted by itself, and selected rows of a map are gathered instead of multiplied.

Shapes are written [..., new, old] for maps and as the row's layout for weights; `old`, `new` are sizes of source and target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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
    """A `maps.Map` on a device, with what decides the cheapest way to apply it."""

    index: torch.Tensor  # [selected] int64
    weight: torch.Tensor  # [selected]
    tail: torch.Tensor  # [new - selected, old]
    identity: bool
    plain: bool  # all weights are 1 and are not learned

    @property
    def old(self) -> int:
        return self.tail.shape[1]

    def apply(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """M along one dim: [..., old, ...] -> [..., new, ...]."""
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

Cache = dict[tuple[int, int], dict[int, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """One unfused piece of a row under one term, while its layers are grown one after the other."""

    grower: Grower
    row: Row
    term: Term
    dims: tuple[Dim, ...]
    number: int
    load: Callable[[int | None], torch.Tensor]

    def grow(
        self, used: list[int], weights: torch.Tensor, layer: int | None, wide: dict[int, torch.Tensor]
    ) -> torch.Tensor:
        """sum over `used` source layers; `wide` holds what was widened for earlier layers."""
        keying = "shared" if self.row.depth is None else self.grower.operator.keying
        if keying == "target" or (keying == "shared" and len(used) > 1):
            mixed = self._source(used[0]) * weights[used[0]]
            for source in used[1:]:
                mixed = mixed + self._source(source) * weights[source]
            return self._widen(mixed, None, layer)
        if len(used) == 1:
            # One-hot depth asks for one source after the other: only the last is worth keeping.
            for source in set(wide) - set(used):
                del wide[source]
        total = None
        for source in used:
            if source not in wide:
                wide[source] = self._widen(self._source(source), source, layer)
            grown = wide[source] if weights[source] == 1 else wide[source] * weights[source]
            total = grown if total is None else total + grown
        assert total is not None
        return total

    def _source(self, source: int) -> torch.Tensor:
        layer = None if self.row.depth is None else source
        return self.grower.pieces(self.row, self.grower.prepared(self.row, layer, self.load(layer)))[self.number]

    def _widen(self, tensor: torch.Tensor, old: int | None, new: int | None) -> torch.Tensor:
        return self.grower.widen(self.term, self.row, self.dims, tensor, old, new)


class Grower:
    """An operator on a device, ready to grow rows.

    Args:
        operator: its arrays may be numpy's, or torch tensors (parameters that are being learned).
        family: the operator's family, narrowed to the target's class. dtype: of the arithmetic, float32 or wider.
        fetch: any tensor of the source, for what looks at another tensor than its own (LayerScale, post-norm).
        keep_drawn: hold what is drawn in memory instead of drawing it each time it is asked for.
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
        self._drawn_rows = {row.pattern: self._row_is_drawn(row) for row in family.rows}
        self._mean_preserver = self._make_mean_preserver() if "mean-preserving" in operator.rewrites else None

    # Maps on the device.

    def _tensor(self, array: object, dtype: torch.dtype) -> torch.Tensor:
        if isinstance(array, torch.Tensor):
            return array
        return torch.tensor(np.asarray(array), dtype=dtype, device=self.device)

    def map_of(self, found: Map) -> TorchMap:
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
        """D [new layers, old layers] of one piece."""
        return self._tensor(term.depths[key], self.dtype)

    # Width.

    def widen(
        self, term: Term, row: Row, dims: tuple[Dim, ...], tensor: torch.Tensor, old: int | None, new: int | None
    ) -> torch.Tensor:
        """B W A^T of one unfused piece; leading dims of `tensor` beyond the layout's (stacked layers) are kept."""
        lead = tensor.ndim - len(dims)
        for position, dim in enumerate(dims):
            (part,) = dim.parts
            factors = self._torch_factors(self.operator.stream(term, part, row.depth, old, new)) if part != "1" else ()
            maps = [factor[dim.role] for factor in factors]
            if all(found.identity for found in maps):
                continue
            at = lead + position
            if len(maps) == 1:
                tensor = maps[0].apply(tensor, at)
                continue
            shape = tensor.shape
            tensor = tensor.reshape(*shape[:at], *(found.old for found in maps), *shape[at + 1 :])
            for offset, found in enumerate(maps):
                tensor = found.apply(tensor, at + offset)
            tensor = tensor.flatten(at, at + len(maps) - 1)
        return tensor

    # Rows.

    def pieces(self, row: Row, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The unfused pieces of a source tensor, in storage order."""
        at = row.layout.fused_dim
        if at is None:
            return [tensor]
        sizes = [self.old[part] for part in row.layout.dims[at].parts]
        return list(torch.split(tensor, sizes, dim=at - len(row.layout.dims)))

    def join(self, row: Row, pieces: list[torch.Tensor]) -> torch.Tensor:
        at = row.layout.fused_dim
        return pieces[0] if at is None else torch.cat(pieces, at - len(row.layout.dims))

    def grow_stacked(self, row: Row, stacked: torch.Tensor) -> torch.Tensor:
        """All layers of a row at once: [old layers, ...] -> [new layers, ...] (one layer for a row without a depth axis).

        Widens first where maps belong to source layers or are shared (there are fewer of those), mixes first where they belong to
        target layers.
        """
        if row.pattern in self.operator.drawn_rows:
            return torch.stack([self.drawn(row, layer) for layer in self.family.layers(row, self.operator.target)])
        if self.family.is_scale(row):
            layers = self.family.layers(row, self.operator.target)
            return torch.stack([self._with_drawn(row, self.scale(row, layer), layer) for layer in layers])
        if self._is_rewritten(row):
            old = self.family.layers(row, self.operator.source)
            stacked = torch.stack(
                [self.prepared(row, layer, tensor) for layer, tensor in zip(old, stacked, strict=True)]
            )
        out = []
        for (_, dims), key, piece in zip(row.layout.pieces(), row.piece_keys(), self.pieces(row, stacked), strict=True):
            total = None
            for term in self.operator.terms:
                matrix = self.depth_matrix(term, key)
                grown = self._stacked_term(term, row, dims, piece, matrix)
                total = grown if total is None else total + grown
            assert total is not None
            out.append(total)
        grown = self.join(row, out)
        added = self._mean_preserving_stacked(row, stacked)
        if added is not None:
            grown = grown + added
        layers = self.family.layers(row, self.operator.target)
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
            wide = [self.widen(term, row, dims, layer, number, None) for number, layer in enumerate(piece)]
            return _mix(matrix, torch.stack(wide))
        mixed = _mix(matrix, piece)
        return torch.stack([self.widen(term, row, dims, layer, None, number) for number, layer in enumerate(mixed)])

    def grow_layer(
        self, row: Row, layer: int | None, load: Callable[[int | None], torch.Tensor], cache: Cache
    ) -> torch.Tensor:
        """One target tensor, asking only for the source layers that it needs.

        Args:
            layer: of the target; None for a row without a depth axis. load: source layer -> tensor.
            cache: an empty dict of the caller's, kept over one row: widened pieces that later layers use again.
        """
        if row.pattern in self.operator.drawn_rows:
            return self.drawn(row, layer)
        if self.family.is_scale(row):
            return self._with_drawn(row, self.scale(row, layer), layer)
        out = []
        for number, ((_, dims), key) in enumerate(zip(row.layout.pieces(), row.piece_keys(), strict=True)):
            total = torch.zeros([self.new.get(dim.parts[0], 1) for dim in dims], dtype=self.dtype, device=self.device)
            for position, term in enumerate(self.operator.terms):
                weights = self.depth_matrix(term, key)[layer or 0]
                used = [int(source) for source in torch.nonzero(weights).flatten()]
                if used:
                    piece = _Piece(grower=self, row=row, term=term, dims=dims, number=number, load=load)
                    grown = piece.grow(used, weights, layer, cache.setdefault((number, position), {}))
                    total = grown if len(self.operator.terms) == 1 else total + grown
            out.append(total)
        grown = self.join(row, out)
        if self._mean_preserver is not None:
            grown = self._with_mean_preserving(row, grown, layer, load)
        grown = self._with_unit(row, grown, layer)
        return self._with_drawn(row, self._unscaled(row, grown, layer), layer)

    # What looks at more than its own row.

    def fetch(self, pattern: str, layer: int | None) -> torch.Tensor:
        assert self._fetch is not None, "this operator looks at other tensors of the source"
        return self._fetch(pattern, layer)

    def _is_rewritten(self, row: Row) -> bool:
        return bool(self.operator.rewrites) or self.family.scale_row(row, self.operator.source) is not None

    def prepared(self, row: Row, layer: int | None, tensor: torch.Tensor) -> torch.Tensor:
        """A source tensor after the operator's rewrites."""
        if not self._is_rewritten(row):
            return tensor
        return rewritten(self.family, self.operator.source, self.operator.rewrites, row, layer, tensor, self.fetch)

    def _with_unit(self, row: Row, grown: torch.Tensor, layer: int | None) -> torch.Tensor:
        """Where a norm only normalises, its gain is one for all entries: the next norm then finds what this one left. Its shift is zero."""
        if layer is None or layer not in self.operator.unit_layers.get(row.pattern, ()):
            return grown
        (dim,) = row.layout.dims
        if dim.role != "gain":
            return grown
        # What is drawn of a gain is ones already.
        drawn = self.drawn(row, layer) if self._drawn_rows[row.pattern] else torch.zeros_like(grown)
        return grown + 1 - drawn

    # New entries that carry the mean of a post-norm stream.

    def _make_mean_preserver(self) -> MeanPreserver:
        stream = self.family.norm.stream
        tiles, rest = divmod(self.new[stream], self.old[stream])
        return MeanPreserver(
            family=self.family,
            source=self.operator.source,
            new=rest,
            scale=math.sqrt(tiles * self.old[stream] / self.new[stream]),
            fetch=self.fetch,
        )

    def _mean_preserving_entries(
        self, row: Row, tensor: torch.Tensor, source: int | None, old: int | None, new: int | None
    ) -> torch.Tensor | None:
        """What one source tensor puts into the new entries, along its other dims as wide as the target; None for other rows."""
        if self._mean_preserver is None or len(row.layout.pieces()) > 1:
            return None
        below, dim = self._mean_preserver.rows(row, source, tensor), self._mean_preserver.dim(row)
        if below is None or dim is None:
            return None
        others = tuple(replace(found, parts=("1",)) if at == dim else found for at, found in enumerate(row.layout.dims))
        wide = self.widen(self.operator.terms[0], row, others, below, old, new)
        full = list(wide.shape)
        full[dim] = self.new[self.family.norm.stream] - self._mean_preserver.new
        return torch.cat([torch.zeros(full, dtype=self.dtype, device=self.device), wide], dim)

    def _with_mean_preserving(
        self, row: Row, grown: torch.Tensor, layer: int | None, load: Callable[[int | None], torch.Tensor]
    ) -> torch.Tensor:
        weights = self.depth_matrix(self.operator.terms[0], row.piece_keys()[0])[layer or 0]
        for used in torch.nonzero(weights).flatten().tolist():
            source = None if row.depth is None else int(used)
            added = self._mean_preserving_entries(row, self.prepared(row, source, load(source)), source, source, layer)
            if added is None:
                break
            grown = grown + weights[used] * added
        return grown

    def _mean_preserving_stacked(self, row: Row, stacked: torch.Tensor) -> torch.Tensor | None:
        if self._mean_preserver is None or self._mean_preserver.dim(row) is None:
            return None
        matrix = self.depth_matrix(self.operator.terms[0], row.piece_keys()[0])
        sources = self.family.layers(row, self.operator.source)
        if row.depth is None or self.operator.keying != "target":
            parts = [
                self._mean_preserving_entries(row, tensor, at, at, None)
                for at, tensor in zip(sources, stacked, strict=True)
            ]
            return (
                _mix(matrix, torch.stack([part for part in parts if part is not None]))
                if parts[0] is not None
                else None
            )
        layers = []
        for layer in self.family.layers(row, self.operator.target):
            parts = [
                self._mean_preserving_entries(row, tensor, at, at, layer)
                for at, tensor in zip(sources, stacked, strict=True)
            ]
            if parts[0] is None:
                return None
            at = layer or 0
            layers.append(_mix(matrix[at : at + 1], torch.stack([part for part in parts if part is not None]))[0])
        return torch.stack(layers)

    def scale(self, row: Row, layer: int | None) -> torch.Tensor:
        """A LayerScale of the target: copied entries keep theirs, the others take a mean of absolute values.

        A mean of values of both signs may be next to nothing, and what is divided by it would be anything.
        """
        (dim,) = row.layout.dims
        weights = self.depth_matrix(self.operator.terms[0], row.pattern)[layer or 0]
        total = torch.zeros(self.old[dim.parts[0]], dtype=self.dtype, device=self.device)
        for source in torch.nonzero(weights).flatten().tolist():
            total = total + weights[source] * self.fetch(row.pattern, None if row.depth is None else source)
        for factor in self._torch_factors(
            self.operator.stream(self.operator.terms[0], dim.parts[0], row.depth, 0, layer)
        ):
            found = factor["scale"]
            if not found.identity:
                total = torch.cat([total[found.index] * found.weight, found.tail @ total.abs()])
        return total

    def _unscaled(self, row: Row, grown: torch.Tensor, layer: int | None) -> torch.Tensor:
        """What a branch writes, divided by the LayerScale that will multiply it; the rewritten source was multiplied by its own."""
        scale, dim = self.family.scale_row(row, self.operator.source), written_dim(self.family, row)
        if scale is None or dim is None:
            return grown
        found = self.scale(scale, layer)
        # A scale of nothing lets nothing through, whatever is written.
        return grown / along(torch.where(found == 0, torch.ones_like(found), found), row, dim)

    # What is drawn.

    def _row_is_drawn(self, row: Row) -> bool:
        if row.pattern in self.operator.drawn_rows:
            return True
        if row.depth is not None and any(self.operator.drawn_layers.get(row.depth, ())):
            return True
        return any(bool(self._drawn_along(row, stream).any()) for stream in row.layout.streams)

    def _drawn_along(self, row: Row, part: str) -> np.ndarray:
        """[new] bool: the entries of a stream that are drawn. All layers draw the same entries, so the first one's flags serve."""
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
        """What the library's initialisation puts where nothing is taken from the source; zero elsewhere."""
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
        flags = self.operator.drawn_layers.get(row.depth or "", ())
        if row.pattern in self.operator.drawn_rows or (layer is not None and flags and flags[layer]):
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
    """sum_j D[i, j] W_j: [new, old] x [old, ...] -> [new, ...]."""
    mixed: torch.Tensor = torch.tensordot(matrix, stacked, dims=([1], [0]))
    return mixed


def drawn_values(
    family: Family, config: Mapping[str, object], row: Row, layer: int | None, shape: tuple[int, ...], seed: int
) -> np.ndarray:
    """A tensor as the library initialises it, drawn by a generator of its own (its seed and its name).

    Gains are ones, shifts and biases zeros, a LayerScale what the config says, weights normal with the family's deviation, divided by
    sqrt(2 * layers) where the library does so.
    """
    role, complete = row.layout.dims[0].role, family.complete(config)
    if role == "gain":
        return np.ones(shape, dtype=np.float32)
    if role == "scale":
        return np.full(shape, _number(complete[family.scale_init]), dtype=np.float32)
    if role == "shift" or len(shape) == 1:
        return np.zeros(shape, dtype=np.float32)
    chosen = family.initializer
    deviation = _number(complete[chosen] if isinstance(chosen, str) else chosen)
    if row.depth is not None and family.has_residual_init(row):
        deviation = deviation / math.sqrt(2 * family.sizes(config)[row.depth])
    rng = generator(seed, "drawn", row.name(layer))
    values: np.ndarray = rng.standard_normal(size=shape, dtype=np.float32)
    values *= np.float32(deviation)
    return values


def _number(value: object) -> float:
    assert isinstance(value, (int, float)), value
    return float(value)

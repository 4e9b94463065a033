"""Compute new entries that preserve the mean of a post-norm stream, so that LayerNorms keep the statistics of the old entries.

A norm of a wider stream sees the old statistics if every new entry holds the mean of the old entries. In a post-norm model the skip
connection carries the norm's output, and the mean of that output is a different linear function of the norm's input. A new entry that
holds only the mean has lost this function. So each new entry holds the mean and, with its own sign, what the next norms need:

    t_n = mean(u) + c s_n x~_n.u        x_n = gamma_n / D + c s_(n+1) gamma_n o x~_(n+1),   x_last = 0,   x~ = x - mean(x)
    gain' = sqrt(kappa) s_n / c          shift' = mean(beta_n) + c s_(n+1) x~_(n+1).beta_n

The signs s_n are products of rows of a Hadamard matrix (`maps.mean_preserving_signs`). Every run s_n s_(n+1) ... s_m sums to zero over
the new entries, so the mean of the wide stream equals the old mean, and its variance differs by the square of a small number.
docs/reference/exact-starts.md derives the formulas.

Input: a family, the source's config and its norms. Output: the rows that are written below the old entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.maps import mean_preserving_signs, mean_preserving_weight
from ligo_convert.growth.rewrites import Fetch, written_dim


@dataclass(frozen=True, kw_only=True)
class MeanPreserver:
    """The contents of the new entries of the residual stream, for every norm of the source.

    Attributes:
        family: a post-norm family.
        source: the source's config.
        new: number of new entries beyond the whole tiles.
        scale: sqrt(kappa) of the width map.
        fetch: returns any tensor of the source.
    """

    family: Family
    source: Mapping[str, object]
    new: int
    scale: float
    fetch: Fetch

    @cached_property
    def norms(self) -> tuple[tuple[str, int | None], ...]:
        """Return every norm of the stream in the order of the forward pass: (module, source layer)."""
        norm = self.family.norm
        (axis,) = self.family.depth_axes
        layers = range(self.family.sizes(self.source)[axis])
        return (
            (norm.after_embeddings, None),
            *((module, layer) for layer in layers for module in (norm.after_attention, norm.after_mlp)),
        )

    @cached_property
    def signs(self) -> torch.Tensor:
        """Return the sign of every new entry at every norm: [norms, new]."""
        return torch.tensor(mean_preserving_signs(len(self.norms), self.new), dtype=torch.float64)

    @property
    def weight(self) -> float:
        """Return c."""
        return mean_preserving_weight(len(self.norms))

    @cached_property
    def written(self) -> tuple[torch.Tensor, ...]:
        """Return, for every norm, the map from the old entries to the new entries that it reads: [new, old] float64."""
        mixed: list[torch.Tensor] = []
        for number in reversed(range(len(self.norms))):
            gain = self._parameter(number, "weight")
            functional = torch.zeros(self.new, len(gain), dtype=torch.float64)
            if mixed:
                # `mixed[0]` is what the next norm reads: 1/D + c s x~.
                functional = gain * mixed[0]
            functional = functional - functional.mean(1, keepdim=True)
            mixed.insert(0, 1 / len(gain) + self.weight * self.signs[number][:, None] * functional)
        return tuple(mixed)

    def _parameter(self, number: int, name: str) -> torch.Tensor:
        module, layer = self.norms[number]
        return self.fetch(f"{module}.{name}", layer).to("cpu", torch.float64)

    def rows(self, row: Row, layer: int | None, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the new entries of a source tensor along `dim(row)`; None for rows of other streams.

        Args:
            layer: source layer.
            tensor: one source tensor after rewrites, without leading dims.
        """
        role = row.layout.dims[0].role
        if role in ("gain", "shift"):
            if (row.module, layer) not in self.norms:
                return None
            number = self.norms.index((row.module, layer))
            if number + 1 == len(self.norms):
                return torch.zeros(self.new).to(tensor)  # no norm reads the last states
            if role == "gain":
                return (self.scale / self.weight * self.signs[number]).to(tensor)
            return self.written[number + 1].to(tensor) @ tensor
        dim = self.dim(row)
        if dim is None:
            return None
        number = 0 if layer is None else self.norms.index((self._read_by(row), layer))
        mixed = self.written[number].to(tensor)
        return torch.tensordot(mixed, tensor, dims=([1], [dim])).movedim(0, dim) if tensor.ndim > 1 else mixed @ tensor

    def dim(self, row: Row) -> int | None:
        """Return the stored dim along which a row has mean-preserving entries; None if it has none."""
        role = row.layout.dims[0].role
        if role in ("gain", "shift"):
            norm = self.family.norm
            return 0 if row.module in (norm.after_embeddings, norm.after_attention, norm.after_mlp) else None
        if row.depth is not None:
            return written_dim(self.family, row)
        return next(
            (
                position
                for position, dim in enumerate(row.layout.dims)
                if dim.role == "write" and dim.parts[0] in self.family.norm.summed_streams
            ),
            None,
        )

    def _read_by(self, row: Row) -> str:
        """Return the module of the norm that reads the output of a residual branch."""
        ends = self.family.residual_output_modules
        return self.family.norm.after_attention if ends.index(row.module) == 0 else self.family.norm.after_mlp

"""New entries of a post-norm stream that carry its mean, so that every LayerNorm normalises the old entries as it did.

A norm of a wider stream sees the old statistics where every new entry holds the mean of the old ones. Behind a post-norm what rides the
skip is the norm's own output, entry by entry, whose mean is another linear function of what was normalised: a new entry that is the
mean has lost it. So each new entry holds the mean and, with a sign of its own, what the next norms will need:

    t_n = mean(u) + c s_n x~_n.u        x_n = gamma_n / D + c s_(n+1) gamma_n o x~_(n+1),   x_last = 0,   x~ = x - mean(x)
    gain' = sqrt(kappa) s_n / c          shift' = mean(beta_n) + c s_(n+1) x~_(n+1).beta_n

The signs s_n are rows of a Hadamard matrix whose runs s_n s_(n+1) ... s_m all sum to zero over the new entries: the mean of the wide
stream is then the old mean exactly, and its variance is off by the square of a small number. docs/reference/exact-starts.md derives it.

What comes in: a family, the source's config and its norms. What goes out: the rows that are written below the old ones.
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
    """What the new entries of the residual stream hold, norm by norm of the source.

    Attributes:
        family: post-norm. source: its config. new: new entries beyond the whole tiles. scale: sqrt(kappa) of the width map.
        fetch: any tensor of the source.
    """

    family: Family
    source: Mapping[str, object]
    new: int
    scale: float
    fetch: Fetch

    @cached_property
    def norms(self) -> tuple[tuple[str, int | None], ...]:
        """Every norm of the stream in the order of the forward pass: module and source layer."""
        norm = self.family.norm
        (axis,) = self.family.depth_axes
        layers = range(self.family.sizes(self.source)[axis])
        return (
            (norm.after_embeddings, None),
            *((module, layer) for layer in layers for module in (norm.after_attention, norm.after_mlp)),
        )

    @cached_property
    def signs(self) -> torch.Tensor:
        """[norms, new]"""
        return torch.tensor(mean_preserving_signs(len(self.norms), self.new), dtype=torch.float64)

    @property
    def weight(self) -> float:
        return mean_preserving_weight(len(self.norms))

    @cached_property
    def written(self) -> tuple[torch.Tensor, ...]:
        """For every norm, how the new entries that it reads are mixed from the old ones: [new, old] float64."""
        mixed: list[torch.Tensor] = []
        for number in reversed(range(len(self.norms))):
            gain = self._parameter(number, "weight")
            functional = torch.zeros(self.new, len(gain), dtype=torch.float64)
            if mixed:
                # What the next norm reads beyond the mean: `mixed` holds 1/D + c s x~.
                functional = gain * mixed[0]
            functional = functional - functional.mean(1, keepdim=True)
            mixed.insert(0, 1 / len(gain) + self.weight * self.signs[number][:, None] * functional)
        return tuple(mixed)

    def _parameter(self, number: int, name: str) -> torch.Tensor:
        module, layer = self.norms[number]
        return self.fetch(f"{module}.{name}", layer).to("cpu", torch.float64)

    def rows(self, row: Row, layer: int | None, tensor: torch.Tensor) -> torch.Tensor | None:
        """What stands below a source tensor's old entries, along the dim that it writes or scales; None for rows of other streams.

        Args:
            layer: of the source. tensor: as growth takes it, without further leading dims.
        """
        role = row.layout.dims[0].role
        if role in ("gain", "shift"):
            found = next((number for number, at in enumerate(self.norms) if at == (row.module, layer)), None)
            if found is None:
                return None
            if found + 1 == len(self.norms):
                return torch.zeros(self.new).to(tensor)  # nobody needs the mean of the last states
            if role == "gain":
                return (self.scale / self.weight * self.signs[found]).to(tensor)
            return self.written[found + 1].to(tensor) @ tensor
        dim = self.dim(row)
        if dim is None:
            return None
        number = 0 if layer is None else self.norms.index((self._read_by(row), layer))
        mixed = self.written[number].to(tensor)
        return torch.tensordot(mixed, tensor, dims=([1], [dim])).movedim(0, dim) if tensor.ndim > 1 else mixed @ tensor

    def dim(self, row: Row) -> int | None:
        """The stored dim along which a row has new entries that carry; None where it has none."""
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
        """The norm that reads what a branch end writes."""
        ends = self.family.residual_output_modules
        return self.family.norm.after_attention if ends.index(row.module) == 0 else self.family.norm.after_mlp

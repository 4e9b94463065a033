"""Exact changes to a source before it grows: tensors in, tensors out, and no output of the source model moves.

A growth map is the same whatever the weights are; what must look at the weights is done here, named in the operator, and done again for
whatever source is given.

    scale    what a LayerScale multiplies is taken times it, as it arrives in the stream; the target's is divided out again (`growth`)
    centre   what is written into a stream that only LayerNorms read loses its mean over the stream, which they cannot see. In a post-norm
             model the shift of the norm whose output goes on beside a branch is met by that branch's bias.

A third rewrite, `mean-preserving`, leaves the source tensors unchanged and computes the new entries from the source's norms
(`growth.mean_preserving`). docs/reference/exact-starts.md proves when each rewrite is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ligo_convert.families.schema import Family, Row

Fetch = Callable[[str, int | None], torch.Tensor]  # pattern, source layer -> the tensor as the source has it


def written_dim(family: Family, row: Row) -> int | None:
    """The stored dim along which a row writes into the normalised stream; None where it does not."""
    for position, dim in enumerate(row.layout.dims):
        if dim.role == "write" and dim.parts == (family.norm.stream,):
            return position
    return None


def along(values: torch.Tensor, row: Row, dim: int) -> torch.Tensor:
    """A vector [embed] in a shape that multiplies a tensor of `row` along `dim`."""
    return values.view([-1 if position == dim else 1 for position in range(len(row.layout.dims))])


def is_centred(family: Family, row: Row) -> bool:
    """Whether `centre` takes the mean from what `row` writes: from branches, and under pre-norm from embeddings, too."""
    return written_dim(family, row) is not None and (family.is_residual_output(row) or family.norm.placement == "pre")


def rewritten(
    family: Family,
    config: Mapping[str, object],
    names: tuple[str, ...],
    row: Row,
    layer: int | None,
    tensor: torch.Tensor,
    fetch: Fetch,
) -> torch.Tensor:
    """A source tensor as growth takes it.

    Args:
        config: the source's. names: the operator's rewrites. layer: of the source.
    """
    dim = written_dim(family, row)
    if dim is None:
        return tensor
    scale = family.scale_row(row, config)
    if scale is not None:
        tensor = tensor * along(fetch(scale.pattern, layer), row, dim)
    if "centre" in names and is_centred(family, row):
        tensor = tensor - tensor.mean(dim, keepdim=True)
        shift = _shift_beside(family, row, layer)
        if shift is not None:
            tensor = tensor - fetch(*shift).mean()
    return tensor


def _shift_beside(family: Family, row: Row, layer: int | None) -> tuple[str, int | None] | None:
    """The shift of the norm whose output goes on beside the branch that the bias `row` ends; None for weights, and under pre-norm."""
    norm = family.norm
    if norm.placement != "post" or layer is None or len(row.layout.dims) != 1:
        return None
    if row.module != family.residual_output_modules[0]:
        return f"{norm.after_attention}.bias", layer
    return (f"{norm.after_mlp}.bias", layer - 1) if layer else (f"{norm.after_embeddings}.bias", None)

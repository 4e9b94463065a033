"""Rewrite source tensors before they grow, without changing what the source model computes.

A width map does not depend on the weights. Changes that do depend on them are made here. The operator stores their names, and they are
computed again for every source that the operator is applied to.

    scale    a branch's output weights are multiplied by the LayerScale behind them; `growth.apply` divides them by the target's
    centre   weights that write a stream read by LayerNorms only lose their mean over the stream, which LayerNorm ignores. In a
             post-norm model the bias of the branch also compensates the shift of the norm on the skip connection beside it.

A third rewrite, `mean-preserving`, leaves the source tensors unchanged and computes the new entries from the source's norms
(`growth.mean_preserving`). docs/reference/exact-starts.md proves when each rewrite is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ligo_convert.families.schema import Family, Row

Fetch = Callable[[str, int | None], torch.Tensor]  # (pattern, source layer) -> the source tensor


def written_dim(family: Family, row: Row) -> int | None:
    """Return the stored dim along which a row writes the normalised stream; None if it does not write it."""
    for position, dim in enumerate(row.layout.dims):
        if dim.role == "write" and dim.parts == (family.norm.stream,):
            return position
    return None


def along(values: torch.Tensor, row: Row, dim: int) -> torch.Tensor:
    """Reshape a vector [embed] so that it broadcasts along `dim` of a tensor of `row`."""
    return values.view([-1 if position == dim else 1 for position in range(len(row.layout.dims))])


def is_centred(family: Family, row: Row) -> bool:
    """Return True if `centre` changes the row: outputs of residual branches, and under pre-norm also embeddings."""
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
    """Return a source tensor after the operator's rewrites.

    Args:
        config: the source's config.
        names: the operator's rewrites.
        layer: source layer.
        fetch: returns any tensor of the source.
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
    """Return (pattern, layer) of the norm shift on the skip connection beside the branch that ends in the bias `row`.

    Returns:
        None for weights, and under pre-norm.
    """
    norm = family.norm
    if norm.placement != "post" or layer is None or len(row.layout.dims) != 1:
        return None
    if row.module != family.residual_output_modules[0]:
        return f"{norm.after_attention}.bias", layer
    return (f"{norm.after_mlp}.bias", layer - 1) if layer else (f"{norm.after_embeddings}.bias", None)

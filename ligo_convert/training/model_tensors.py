"""Convert between the tensors of a family's files and the parameters of the library's model, where their names or forms differ.

Input: tensors by canonical name, or parameters by their names in the model. Output: the other. Both ways copy values and nothing else, and
gradients flow through them. `families.parameters` says what belongs to what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ligo_convert.families.parameters import Parameter

Tensors = Mapping[str, torch.Tensor]


def parameters_of(parameters: Iterable[Parameter], tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the parameters of a model.

    Args:
        parameters: all parameters of the model.
        tensors: canonical name -> tensor.
    """
    return {found.name: _joined(found, tensors) for found in parameters}


def _joined(parameter: Parameter, tensors: Tensors) -> torch.Tensor:
    blocks = []
    for block in parameter.shares:
        pieces = []
        for share in block:
            tensor = tensors[share.tensor]
            whole = (share.begin, share.end) == (0, len(tensor))
            pieces.append(tensor if whole else tensor[share.begin : share.end])
        blocks.append(torch.stack(pieces) if parameter.stacked else pieces[0])
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, int(parameter.stacked))


def tensors_of(parameters: Iterable[Parameter], values: Tensors) -> dict[str, torch.Tensor]:
    """Return canonical name -> tensor: what `parameters_of` makes the parameters of.

    Args:
        parameters: all parameters of the model.
        values: the parameters by their names in the model.
    """
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for found in parameters:
        value, along = values[found.name], int(found.stacked)
        sizes = [block[0].end - block[0].begin for block in found.shares]
        for block, part in zip(found.shares, torch.split(value, sizes, dim=along), strict=True):
            for number, share in enumerate(block):
                pieces.setdefault(share.tensor, {})[share.begin] = part[number] if found.stacked else part
    joined = {}
    for name, found_pieces in pieces.items():
        ordered = [found_pieces[begin] for begin in sorted(found_pieces)]
        joined[name] = ordered[0] if len(ordered) == 1 else torch.cat(ordered)
    return joined

"""What an operator is learned by where a model has no head and so no loss of its own: agreement with the source it grew from.

What comes in: the source with its weights, the target's model, a batch. What goes out: a scalar that is zero where the target tells what
the source told. docs/development/log.md says which was chosen, and by what figures.

    reconstruct   the source's hidden states, read back from the target's by the pseudo-inverse of the map that the stream is written
                  with: mean square of the difference over mean square
    relations     the cosines between the mean-pooled sequences of a batch, which know no basis: mean square of their difference
    both          their sum: nearer in both respects than either alone
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import normalize

from ligo_convert.growth.maps import kronecker
from ligo_convert.growth.operator import Operator
from ligo_convert.training.functional_model import LibraryModel, Objective, Tensors
from ligo_convert.training.preservation import MeasuredModel

Compare = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]  # source's, target's states, read-back map -> scalar


def reconstruct(old: torch.Tensor, new: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """old [batch, sequence, old width], new [batch, sequence, new width], back [old width, new width]."""
    return (new @ back.T - old).square().sum() / old.square().sum()


def relations(old: torch.Tensor, new: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """As `reconstruct`; `back` is not used."""
    first, second = (normalize(states.mean(1), dim=-1) for states in (old, new))
    return (first @ first.T - second @ second.T).square().mean()


def both(old: torch.Tensor, new: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """As `reconstruct`: the sum of the two."""
    return reconstruct(old, new, back) + relations(old, new, back)


OBJECTIVES: dict[str, Compare] = {"reconstruct": reconstruct, "relations": relations, "both": both}

DEFAULT_OBJECTIVE = "both"


def objective_of(
    target: LibraryModel, source: MeasuredModel, start: Operator, *, dtype: torch.dtype, name: str = DEFAULT_OBJECTIVE
) -> Objective:
    """The loss that a target is learned by: its task's own, or, without a head, agreement with its source.

    Args:
        start: the operator that learning begins at; its map says how the source's stream lies in the target's.
    """
    if target.task.loss is not None:
        return target.loss
    compare, back = OBJECTIVES[name], read_back(start, target, dtype)

    def objective(parameters: Tensors, batch: Tensors) -> torch.Tensor:
        with torch.no_grad():
            old = source.library.states(source.parameters, batch)
        new = target.states(parameters, batch)
        return compare(old.float(), new.float(), back.float())

    return objective


def read_back(start: Operator, target: LibraryModel, dtype: torch.dtype) -> torch.Tensor:
    """The pseudo-inverse of the write map of the residual stream: [old width, new width]."""
    family = target.family
    factors = start.stream(start.terms[0], family.norm.stream, None, None, None)
    old = family.sizes(start.source)[family.norm.stream]
    written = kronecker([axis.write for axis in factors]) if factors else np.eye(old)
    return torch.tensor(np.linalg.pinv(written), dtype=dtype, device=target.device)

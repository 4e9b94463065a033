"""Fitting objectives for models without a task loss: agreement of the target with its source.

Input: the source with its weights, the target's model, a batch.
Output: a scalar that is zero where the target reproduces the source. docs/development/log.md records how the default was chosen.

    reconstruct   map the target's hidden states back to the source's width by the pseudo-inverse of the map of the last norm's output:
                  mean squared difference divided by the mean square of the source's states
    relations     mean squared difference of the cosine similarities between the mean-pooled sequences of a batch;
                  independent of the basis of the hidden states
    both          the sum of the two, which measured better in both respects than either alone
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import normalize

from ligo_convert.growth.maps import kronecker
from ligo_convert.growth.operator import Operator
from ligo_convert.training.functional_model import LibraryModel, Objective, Tensors
from ligo_convert.training.preservation import MeasuredModel

Compare = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]  # (source states, target states, read-back map) -> scalar


def reconstruct(old: torch.Tensor, new: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """Relative reconstruction error.

    Args:
        old: source states [batch, sequence, old width].
        new: target states [batch, sequence, new width].
        back: read-back map [old width, new width].
    """
    return (new @ back.T - old).square().sum() / old.square().sum()


def relations(old: torch.Tensor, new: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of pairwise cosines. Arguments as in `reconstruct`; `back` is not used."""
    first, second = (normalize(states.mean(1), dim=-1) for states in (old, new))
    return (first @ first.T - second @ second.T).square().mean()


def both(old: torch.Tensor, new: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """Sum of `reconstruct` and `relations`."""
    return reconstruct(old, new, back) + relations(old, new, back)


OBJECTIVES: dict[str, Compare] = {"reconstruct": reconstruct, "relations": relations, "both": both}

DEFAULT_OBJECTIVE = "both"


def objective_of(
    target: LibraryModel, source: MeasuredModel, start: Operator, *, dtype: torch.dtype, name: str = DEFAULT_OBJECTIVE
) -> Objective:
    """Return the loss that the operator is fitted with: the task's loss, or, without one, agreement with the source.

    Args:
        start: the initial operator; its maps relate the residual streams of source and target.
        name: key of `OBJECTIVES`, for a model without a task loss.
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
    """Return the pseudo-inverse of the map of the last hidden states: [old width, new width].

    The states are the output of the last norm. The map of its shift, a term of that output, is the map of the output, too. Where the norm
    follows the sum, the output is the residual stream, which grows by its write map.
    """
    family = target.family
    factors = start.stream(start.terms[0], family.norm.stream, None, None, None)
    old = family.sizes(start.source)[family.norm.stream]
    role: Literal["write", "shift"] = "shift" if family.norm.placement == "pre" else "write"
    grown = kronecker([axis.role(role) for axis in factors]) if factors else np.eye(old)
    # By torch, whose threads are set (`environment.compute_threads`), unlike numpy's.
    inverse: torch.Tensor = torch.linalg.pinv(torch.tensor(grown, dtype=torch.float64))
    return inverse.to(dtype=dtype, device=target.device)

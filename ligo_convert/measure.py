"""What growth did to the function: the preservation certificate, and losses on a held-out slice.

What comes in: the source and the grown target, in memory, and token blocks. What goes out: plain numbers. Exact means logits within
1e-4 * max(1, logit scale), near a loss within 0.01 nats, lossy the rest; all in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ligo_convert.growth import Grower
from ligo_convert.models import LibraryModel
from ligo_convert.operator import Operator

EXACT = 1e-4
NEAR = 0.01
# Hidden states carry larger values than logits and no softmax tames them: this much of their scale is a departure.
DEPARTS = 1e-3

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A library model with the weights it runs on."""

    library: LibraryModel
    parameters: Tensors


def certificate(
    source: Model,
    target: Model,
    operator: Operator,
    depths: Mapping[str, tuple[int, ...]],
    blocks: Any,
    *,
    batch_size: int,
) -> dict[str, Any]:
    """Compare the grown target with its source on token blocks [blocks, sequence].

    Args:
        depths: depth axis -> for every new layer, the old layer it takes.

    Returns:
        verdict, max_logit_difference, mean_logit_difference, logit_scale, loss_difference, departs_at (the first new layer whose output
        is not the grown output of the old layer it takes; None where all are), tokens.
    """
    found = _Sums()
    device = source.library.device
    widen = _hidden_map(operator, source.library, next(iter(source.parameters.values())).dtype)
    for first in range(0, len(blocks), batch_size):
        tokens = torch.as_tensor(np.asarray(blocks[first : first + batch_size]).astype(np.int64), device=device)
        with torch.no_grad():
            old = source.library(source.parameters, input_ids=tokens, labels=tokens, output_hidden_states=True)
            new = target.library(target.parameters, input_ids=tokens, labels=tokens, output_hidden_states=True)
        found.add(old, new, len(tokens))
        if widen is not None:
            found.compare_layers(old.hidden_states, new.hidden_states, widen, next(iter(depths.values())))
    return found.result(tokens=int(np.asarray(blocks).size))


class _Sums:
    """Running figures over batches."""

    def __init__(self) -> None:
        self.most, self.total, self.count, self.scale = 0.0, 0.0, 0, 0.0
        self.losses, self.blocks = [0.0, 0.0], 0
        self.apart: dict[int, float] = {}

    def add(self, old: Any, new: Any, blocks: int) -> None:
        difference = (old.logits - new.logits).abs()
        # A logit that is no number is no small difference: max() of a tensor with NaN is NaN, and NaN fails every comparison below.
        self.most = _worse(self.most, float(difference.max()))
        self.total += float(difference.sum(dtype=torch.float64))
        self.count += difference.numel()
        self.scale = max(self.scale, float(old.logits.abs().max()))
        self.losses[0] += float(old.loss) * blocks
        self.losses[1] += float(new.loss) * blocks
        self.blocks += blocks

    def compare_layers(self, old: Any, new: Any, widen: Any, sources: tuple[int, ...]) -> None:
        # hidden_states[0] is the embedding, [i + 1] the output of layer i; the last one has been through the final norm, so the last
        # layer is judged by the logits.
        for layer, source in enumerate(sources[:-1]):
            if source + 1 >= len(old) - 1:
                continue
            expected = widen(old[source + 1])
            apart = float((expected - new[layer + 1]).abs().max() / expected.abs().max().clamp_min(1e-12))
            self.apart[layer] = _worse(self.apart.get(layer, 0.0), apart)

    def result(self, *, tokens: int) -> dict[str, Any]:
        loss_difference = (self.losses[1] - self.losses[0]) / self.blocks
        departing = [layer for layer, apart in sorted(self.apart.items()) if not apart <= DEPARTS]
        exact = self.most <= EXACT * max(1.0, self.scale)
        return {
            "verdict": "exact" if exact else "near" if abs(loss_difference) <= NEAR else "lossy",
            "max_logit_difference": self.most,
            "mean_logit_difference": self.total / self.count,
            "logit_scale": self.scale,
            "loss_difference": loss_difference,
            "departs_at": None if exact or not departing else departing[0],
            "tokens": tokens,
        }


def _worse(first: float, second: float) -> float:
    """The larger of two figures, a NaN being the worst of all."""
    return second if not second <= first else first


def _hidden_map(operator: Operator, library: LibraryModel, dtype: torch.dtype) -> Any:
    """Hidden states of the source -> what they are in the target where the stream is written by one map."""
    if len(operator.terms) != 1:
        return None
    family = library.family
    grower = Grower(operator, family, device=library.device, dtype=dtype)
    factors = operator.stream(operator.terms[0], family.norm.stream, None, None, None)
    maps = [grower.map_of(axis.write) for axis in factors]

    def widen(hidden: torch.Tensor) -> torch.Tensor:
        for found in maps:
            hidden = found.apply(hidden, hidden.ndim - 1)
        return hidden

    return widen


def rounding(target: Model, dtype: torch.dtype, blocks: Any, *, batch_size: int) -> dict[str, float]:
    """What storing the target as `dtype` costs, measured on the same blocks: it is reported beside the map's verdict."""
    rounded = {name: tensor.to(dtype).to(tensor.dtype) for name, tensor in target.parameters.items()}
    most, loss, count = 0.0, 0.0, 0
    device = target.library.device
    for first in range(0, len(blocks), batch_size):
        tokens = torch.as_tensor(np.asarray(blocks[first : first + batch_size]).astype(np.int64), device=device)
        with torch.no_grad():
            wide = target.library(target.parameters, input_ids=tokens, labels=tokens)
            narrow = target.library(rounded, input_ids=tokens, labels=tokens)
        most = _worse(most, float((wide.logits - narrow.logits).abs().max()))
        loss += (float(narrow.loss) - float(wide.loss)) * len(tokens)
        count += len(tokens)
    return {"max_logit_difference": most, "loss_difference": loss / count}

"""Which layers and tokens a training run skips, by seed and step alone.

Input: strengths of the dropping, sizes, a step.
Output: layers to skip, tokens to keep. This module does not import torch; `training.drop_hooks` skips them in a model.

Sources: progressive layer dropping (Zhang and He, arXiv:2010.13369), token dropping (Hou et al., arXiv:2203.13240; at random, as
random-LTD, arXiv:2211.11586).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ligo_convert.growth.verdict import generator

STEEPNESS = 100.0  # gamma times steps in the schedule theta(t) of layer dropping, arXiv:2010.13369


@dataclass(frozen=True, kw_only=True)
class Dropping:
    """Strength of layer and token dropping.

    Attributes:
        layers: final probability of skipping the highest layer.
        tokens: fraction of the tokens that skip the middle layers.
        steps: steps of the whole budget, which scale the probability.
    """

    layers: float = 0.0
    tokens: float = 0.0
    steps: int = 1


NOTHING = Dropping()


def dropped_layers(dropping: Dropping, *, layers: int, step: int, seed: int) -> tuple[int, ...]:
    """Return the layers to skip in a step: layer l of L is kept with probability 1 - l / L * (1 - theta(t)).

    Args:
        dropping: strength of the dropping.
        layers: number of layers L.
        step: index of the step t.
        seed: determines the draws, together with the step.
    """
    kept = dropping.layers * math.exp(-STEEPNESS * step / dropping.steps) + 1 - dropping.layers
    draws = generator(seed, "layers dropped", str(step)).random(layers)
    return tuple(layer for layer in range(layers) if draws[layer] < (layer + 1) / layers * (1 - kept))


def skipped_layers(layers: int) -> range:
    """Return the layers that dropped tokens skip: the upper half without the last layer."""
    return range(layers // 2, layers - 1)


def kept_tokens(dropping: Dropping, length: int) -> int:
    """Return how many of `length` tokens pass all layers."""
    return length - math.floor(dropping.tokens * length)

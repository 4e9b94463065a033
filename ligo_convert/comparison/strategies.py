"""Training strategies as plain data: the stages in which a target is trained after its initialisation.

Input: the number of layers of the target.
Output: the stages in order: fraction of the steps, number of layers, trained tensors. `trainer` executes them, `step_costs` counts them.
This module knows no model family.

Sources: StackBERT (Gong et al., ICML 2019, section 4), MSLT (Yang et al., arXiv:2011.13635, section 3), bert2BERT (arXiv:2110.07143,
section 3.4 and algorithm 1), knowledge inheritance (Qin et al., arXiv:2105.13880, section 3), LLaMA-Pro (arXiv:2401.02415), progressive
layer dropping (Zhang and He, arXiv:2010.13369), token dropping (Hou et al., arXiv:2203.13240; at random, as random-LTD,
arXiv:2211.11586).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ligo_convert.growth.verdict import generator

INHERITED = 0.5  # fraction of a run in which the teacher's loss is used

TEMPERATURE = 2.0  # softmax temperature of teacher and student, arXiv:2105.13880

SUBMODELS = 0.125  # fraction of a run in which sub-models are trained: 5 of 40 epochs, arXiv:2110.07143

JOINT = 0.2  # fraction of a run in which all layers are trained, at the end, arXiv:2011.13635


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        share: fraction of the run's steps.
        layers: number of layers along the first depth axis; 0 for all layers of the target.
        layers_from: source of the weights of added layers: the whole `stack` again, or its `top` layers.
        trains: trained parameters: `all`; the `top` layers and everything above them; or the entries that growth `added`.
        top: number of layers that count as the top.
        submodels: depths of sub-models; each step trains one of them, drawn at random.
        teacher: whether the source teaches, with a weight that falls from one to zero.
        until_fraction: fraction of the stage during which `submodels`, `teacher` and `trains` apply. After it the whole model trains
            alone and keeps its optimizer moments.
    """

    share: float
    layers: int = 0
    layers_from: Literal["stack", "top"] = "stack"
    trains: Literal["all", "top", "added"] = "all"
    top: int = 0
    submodels: tuple[int, ...] = ()
    teacher: bool = False
    until_fraction: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A training strategy.

    Attributes:
        stages: function from the number of layers of the target to its stages, with shares that sum to one.
        paper: source in the literature.
        summary: description for users.
        cost: cost of a step relative to a plain step, in words.
    """

    stages: Callable[[int], tuple[Stage, ...]]
    paper: str
    summary: str
    cost: str


def depends_on_run_length(stages: tuple[Stage, ...]) -> bool:
    """Return whether steps depend on the length of the run, so that runs of different length share no steps."""
    return len(stages) > 1 or stages[0].until_fraction < 1


def plain(layers: int) -> tuple[Stage, ...]:
    return (Stage(share=1.0),)


def stacking(layers: int) -> tuple[Stage, ...]:
    """StackBERT: a quarter, half and all of the layers, in the proportions of BERT-Base (50, 70 and 280 thousand steps)."""
    quarter, half = math.ceil(layers / 4), math.ceil(layers / 2)
    found = [(0.125, quarter), (0.175, half), (0.7, layers)]
    return tuple(Stage(share=share, layers=height) for share, height in found)


def layerwise(layers: int) -> tuple[Stage, ...]:
    """MSLT: each stage adds a quarter of the layers, copied from the top, and trains only those; the last stage trains all layers."""
    heights = sorted({math.ceil(layers * part / 4) for part in (1, 2, 3, 4)})
    share = (1 - JOINT) / len(heights)
    first = Stage(share=share, layers=heights[0], layers_from="top")
    grown = [
        Stage(share=share, layers=height, layers_from="top", trains="top", top=height - before)
        for before, height in itertools.pairwise(heights)
    ]
    return (first, *grown, Stage(share=JOINT, layers=layers))


def two_stage(layers: int) -> tuple[Stage, ...]:
    """bert2BERT: first train the top layers and head of sub-models of the lowest layers, one drawn per step; then train all layers."""
    block = math.ceil(layers / 4)
    depths = tuple(sorted({min(layers, block * number) for number in range(1, 5)}))
    return (Stage(share=1.0, trains="top", top=block, submodels=depths, until_fraction=SUBMODELS),)


def inherit(layers: int) -> tuple[Stage, ...]:
    return (Stage(share=1.0, teacher=True, until_fraction=INHERITED),)


def added_only(layers: int) -> tuple[Stage, ...]:
    return (Stage(share=1.0, trains="added"),)


STRATEGIES: dict[str, Strategy] = {
    "plain": Strategy(
        stages=plain,
        paper="-",
        summary="the whole target from the first step to the last",
        cost="a forward and a backward pass",
    ),
    "stacking": Strategy(
        stages=stacking,
        paper="StackBERT, Gong et al., ICML 2019",
        summary="a quarter of the layers for 12.5 % of the steps, half for 17.5 %, then all; each time the stack is put on itself",
        cost="a quarter, half, all of a plain step",
    ),
    "layerwise": Strategy(
        stages=layerwise,
        paper="MSLT, Yang et al., arXiv:2011.13635",
        summary="a quarter of the layers more each time, copied from the top; they alone learn, for the last fifth of the steps all do",
        cost="a forward pass, a backward pass through the top layers alone",
    ),
    "two-stage": Strategy(
        stages=two_stage,
        paper="bert2BERT, arXiv:2110.07143, algorithm 1",
        summary="for 12.5 % of the steps sub-models of the lowest layers, drawn by step, of which the top quarter learns; then all",
        cost="for those steps the sub-model's forward pass, a backward pass through its top layers alone",
    ),
    "inherit": Strategy(
        stages=inherit,
        paper="KI, Qin et al., arXiv:2105.13880",
        summary="the source teaches: KL from its logits at temperature 2, its weight falling from one to zero over half of the steps",
        cost="for those steps the source's forward pass beside",
    ),
    "added-only": Strategy(
        stages=added_only,
        paper="LLaMA-Pro, arXiv:2401.02415; progressive networks, arXiv:1606.04671",
        summary="old weights frozen, what growth has added learns (ligo/new_parameters.json)",
        cost="no gradients below the lowest added part, nor of old tensors",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option that can be added to any method, such as `layer-drop` in `ligo+layer-drop`.

    Attributes:
        paper: source in the literature.
        summary: description for users.
        cost: cost that the option adds or saves, in words.
        strategy: name of the strategy that replaces the method's; None to keep it.
        learns_operator: whether the operator is learned before training.
        drops_layers: whether training skips layers.
        drops_tokens: whether training skips tokens.
    """

    paper: str
    summary: str
    cost: str
    strategy: str | None = None
    learns_operator: bool = False
    drops_layers: bool = False
    drops_tokens: bool = False


OPTIONS: dict[str, Option] = {
    "fit": Option(
        paper="LiGO, arXiv:2303.00980",
        summary="the operator is learned first, from the method's start",
        cost="the fit's steps, each a target's and four growths",
        learns_operator=True,
    ),
    "layer-drop": Option(
        paper="Zhang and He, arXiv:2010.13369",
        summary="layers are left out at random, the more the later the step and the higher the layer",
        cost="less by what is left out",
        drops_layers=True,
    ),
    "token-drop": Option(
        paper="Hou et al., arXiv:2203.13240; random-LTD, arXiv:2211.11586",
        summary="tokens drawn at random skip the middle layers; those that a masked language model is asked for never do",
        cost="less by what is left out",
        drops_tokens=True,
    ),
    "staged": Option(
        paper="bert2BERT, arXiv:2110.07143, as LiGO's section 4.3 adds it",
        summary="trained by two-stage",
        cost="as two-stage",
        strategy="two-stage",
    ),
}


# Layers and tokens that options skip.

STEEPNESS = 100.0  # gamma times steps in the schedule theta(t) of layer dropping, arXiv:2010.13369


@dataclass(frozen=True, kw_only=True)
class Dropping:
    """Strength of layer and token dropping.

    Attributes:
        layers: final probability of skipping the highest layer.
        tokens: fraction of the tokens that skip the middle layers.
    """

    layers: float = 0.0
    tokens: float = 0.0


NOTHING = Dropping()


def dropped_layers(dropping: Dropping, *, layers: int, step: int, steps: int, seed: int) -> tuple[int, ...]:
    """Return the layers to skip in a step: layer l of L is kept with probability 1 - l / L * (1 - theta(t)).

    Args:
        dropping: strength of the dropping.
        layers: number of layers L.
        step: index of the step t.
        steps: steps of the whole budget, which scale theta.
        seed: determines the draws, together with the step.
    """
    kept = dropping.layers * math.exp(-STEEPNESS * step / steps) + 1 - dropping.layers
    draws = generator(seed, "layers dropped", str(step)).random(layers)
    return tuple(layer for layer in range(layers) if draws[layer] < (layer + 1) / layers * (1 - kept))


def skipped_layers(layers: int) -> range:
    """Return the layers that dropped tokens skip: the upper half without the last layer."""
    return range(layers // 2, layers - 1)


def kept_tokens(dropping: Dropping, length: int) -> int:
    """Return how many of `length` tokens pass all layers."""
    return length - math.floor(dropping.tokens * length)

"""Training strategies as plain data: the stages in which a target is trained after its initialisation.

Input: the number of layers of the target.
Output: the parts of a run in order: where each begins, its number of layers, how new layers come, what is trained. `experiment` turns them
into the stages of `training.runs`, which `training.run_trainer` executes and `training.step_costs` counts. This module knows no model
family.

Sources: StackBERT (Gong et al., ICML 2019, section 4), MSLT (Yang et al., arXiv:2011.13635, section 3), bert2BERT (arXiv:2110.07143,
section 3.4 and algorithm 1), knowledge inheritance (Qin et al., arXiv:2105.13880, section 3), LLaMA-Pro (arXiv:2401.02415), gradual
stacking and MIDAS (Saunshi et al., arXiv:2409.19044, section 2), G_stack (Du et al., arXiv:2405.15319), Deep Progressive Training
(arXiv:2511.04981), Apollo (Pan et al., arXiv:2401.09192).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

INHERITED = 0.5  # share of a run in which the teacher's loss is used

SUBMODELS = 0.125  # share of a run in which sub-models are trained: 5 of 40 epochs, arXiv:2110.07143

JOINT = 0.2  # share of a run in which all layers are trained, at the end, arXiv:2011.13635

SHARED = 0.6  # share of a run in which layers are shared

BLOCKS = 4  # number of blocks in which gradual stacking and MIDAS add the layers, arXiv:2409.19044


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a run.

    Attributes:
        at: share of the run's steps at which it begins.
        layers: number of layers along the first depth axis; 0 for all layers of the target.
        depth: depth method that adds the layers.
        state: what becomes of the optimizer's state when layers are added, a key of `growth.moments.POLICIES`.
        trains: trained parameters: `all`; the `top` layers and everything above them; or the entries that growth `added`.
        top: number of layers that count as the top.
        submodels: depths of sub-models; each step trains one of them, drawn at random.
        teacher: whether the source teaches, with a weight that falls from one to zero.
        until_share: share of the part during which `submodels`, `teacher` and `trains` apply. After it the whole model trains alone.
        warms: whether the learning rate rises again from zero.
    """

    at: float
    layers: int = 0
    depth: str = "stack"
    state: str = "reset"
    trains: Literal["all", "top", "added"] = "all"
    top: int = 0
    submodels: tuple[int, ...] = ()
    teacher: bool = False
    until_share: float = 1.0
    warms: bool = False


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A training strategy.

    Attributes:
        parts: function from the number of layers of the target to its parts.
        paper: source in the literature.
        summary: description for users.
        cost: cost of a step relative to a plain step, in words.
    """

    parts: Callable[[int], tuple[Part, ...]]
    paper: str
    summary: str
    cost: str


def plain(layers: int) -> tuple[Part, ...]:
    return (Part(at=0),)


def stacking(layers: int) -> tuple[Part, ...]:
    """StackBERT: a quarter, half and all of the layers, in the proportions of BERT-Base (50, 70 and 280 thousand steps)."""
    quarter, half = math.ceil(layers / 4), math.ceil(layers / 2)
    found = [(0.0, quarter), (0.125, half), (0.3, layers)]
    return tuple(Part(at=at, layers=height, warms=at > 0) for at, height in found)


def layerwise(layers: int) -> tuple[Part, ...]:
    """MSLT: each part adds a quarter of the layers, copied from the top, and trains only those; the last part trains all layers."""
    heights = _quarters(layers)
    share = (1 - JOINT) / len(heights)
    grown = [
        Part(at=number * share, layers=height, depth="top", trains="top", top=height - before, warms=True)
        for number, (before, height) in enumerate(itertools.pairwise(heights), start=1)
    ]
    return (Part(at=0, layers=heights[0]), *grown, Part(at=1 - JOINT, layers=layers, warms=True))


def two_stage(layers: int) -> tuple[Part, ...]:
    """bert2BERT: first train the top layers and head of sub-models of the lowest layers, one drawn per step; then train all layers."""
    block = math.ceil(layers / 4)
    depths = tuple(sorted({min(layers, block * number) for number in range(1, 5)}))
    return (Part(at=0, trains="top", top=block, submodels=depths, until_share=SUBMODELS),)


def inherit(layers: int) -> tuple[Part, ...]:
    return (Part(at=0, teacher=True, until_share=INHERITED),)


def added_only(layers: int) -> tuple[Part, ...]:
    return (Part(at=0, trains="added"),)


def gradual(layers: int) -> tuple[Part, ...]:
    """Gradual stacking: parts of equal length, each adds a copy of the top block (arXiv:2409.19044, PROP-1 schedule, section 2)."""
    return _blocks(layers, "top")


def midas(layers: int) -> tuple[Part, ...]:
    """MIDAS: as gradual stacking, each part adds a copy of the middle block (arXiv:2409.19044, algorithm 1)."""
    return _blocks(layers, "middle")


def early_stack(layers: int) -> tuple[Part, ...]:
    """G_stack: a quarter of the layers for a tenth of the steps, then the whole stack four times (arXiv:2405.15319)."""
    return (Part(at=0, layers=math.ceil(layers / 4)), Part(at=0.1, layers=layers, depth="stack"))


def progressive(layers: int) -> tuple[Part, ...]:
    """Deep Progressive Training: one layer for most of the steps, then all layers, the new ones drawn (arXiv:2511.04981)."""
    return (Part(at=0, layers=1), Part(at=0.6, layers=layers, depth="drawn", state="carry"))


def late(layers: int) -> tuple[Part, ...]:
    """Half of the layers for half of the steps, then copies between them: in a long decay copies lead (docs/development/log.md)."""
    return (Part(at=0, layers=math.ceil(layers / 2)), Part(at=0.5, layers=layers, depth="interpolate", state="carry"))


def shared(layers: int) -> tuple[Part, ...]:
    """Apollo: few layers that are trained as models of many depths, then layers interpolated (arXiv:2401.09192).

    The depths are drawn with probabilities that fall with the square of the depth, which is ours: the paper's own sampling prefers low
    depths as well.
    """
    heights = _quarters(layers)
    found = []
    for number, height in enumerate(heights):
        depths = tuple(
            depth for depth in range(height, layers + 1) for _ in range(max(1, round((layers / depth) ** 2)))
        )
        at = SHARED * number / max(1, len(heights) - 1)
        last = height == layers
        found.append(Part(at=at, layers=height, depth="interpolate", state="copy", submodels=() if last else depths))
    return tuple(found)


def _blocks(layers: int, depth: str) -> tuple[Part, ...]:
    """Return parts that add a block each, the part of k blocks taking a share proportional to k."""
    heights = _quarters(layers)
    whole = sum(range(1, len(heights) + 1))
    found, at = [], 0
    for number, height in enumerate(heights, start=1):
        found.append(Part(at=at / whole, layers=height, depth=depth, state="copy"))
        at += number
    return tuple(found)


def _quarters(layers: int) -> list[int]:
    return sorted({math.ceil(layers * part / BLOCKS) for part in range(1, BLOCKS + 1)})


STRATEGIES: dict[str, Strategy] = {
    "plain": Strategy(
        parts=plain,
        paper="-",
        summary="the whole target from the first step to the last",
        cost="a forward and a backward pass",
    ),
    "stacking": Strategy(
        parts=stacking,
        paper="StackBERT, Gong et al., ICML 2019",
        summary="a quarter of the layers for 12.5 % of the steps, half for 17.5 %, then all; each time the stack is put on itself",
        cost="a quarter, half, all of a plain step",
    ),
    "layerwise": Strategy(
        parts=layerwise,
        paper="MSLT, Yang et al., arXiv:2011.13635",
        summary="a quarter of the layers more each time, copied from the top; they alone learn, for the last fifth of the steps all do",
        cost="a forward pass, a backward pass through the top layers alone",
    ),
    "two-stage": Strategy(
        parts=two_stage,
        paper="bert2BERT, arXiv:2110.07143, algorithm 1",
        summary="for 12.5 % of the steps sub-models of the lowest layers, drawn by step, of which the top quarter learns; then all",
        cost="for those steps the sub-model's forward pass, a backward pass through its top layers alone",
    ),
    "inherit": Strategy(
        parts=inherit,
        paper="KI, Qin et al., arXiv:2105.13880",
        summary="the source teaches: KL from its logits at temperature 2, its weight falling from one to zero over half of the steps",
        cost="for those steps the source's forward pass beside",
    ),
    "added-only": Strategy(
        parts=added_only,
        paper="LLaMA-Pro, arXiv:2401.02415; progressive networks, arXiv:1606.04671",
        summary="old weights frozen, what growth has added learns (ligo/new_parameters.json)",
        cost="no gradients below the lowest added part, nor of old tensors",
    ),
    "gradual": Strategy(
        parts=gradual,
        paper="gradual stacking, as in arXiv:2409.19044",
        summary="a quarter of the layers more each time, a copy of the top block; all learn; part k takes a share proportional to k",
        cost="a quarter, half, three quarters, all of a plain step",
    ),
    "midas": Strategy(
        parts=midas,
        paper="MIDAS, arXiv:2409.19044",
        summary="as gradual, a copy of the middle block",
        cost="a quarter, half, three quarters, all of a plain step",
    ),
    "early-stack": Strategy(
        parts=early_stack,
        paper="G_stack, arXiv:2405.15319",
        summary="a quarter of the layers for a tenth of the steps, then that stack four times",
        cost="a quarter, all of a plain step",
    ),
    "progressive": Strategy(
        parts=progressive,
        paper="Deep Progressive Training, arXiv:2511.04981",
        summary="one layer for 60 % of the steps, then all, the new ones drawn; the optimizer's state stays",
        cost="one layer, all of a plain step",
    ),
    "shared": Strategy(
        parts=shared,
        paper="Apollo, arXiv:2401.09192",
        summary="a quarter of the layers more each time, trained as models of all depths above that share them; all layers for 40 %",
        cost="that of the depth drawn, low depths more often",
    ),
    "late": Strategy(
        parts=late,
        paper="-",
        summary="half of the layers for half of the steps, then copies between them; the optimizer's state stays",
        cost="half, all of a plain step",
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
        from_source: whether a method that grows on the way starts from the trained source.
        state: what becomes of the optimizer's state at every growth; None to keep the method's policy.
        warms: whether the learning rate rises again from zero at every growth on the way.
        shape: learning rate schedule; None for warmup-stable-decay.
        optimizer: optimizer, with the learning rates that scratch has found for it; None for the one that is best for scratch.
        share_of: setting that the share after `@` replaces, as in `lemon+decay@0.4`: `decay` or `warmup`; None for an option without one.
    """

    paper: str
    summary: str
    cost: str
    strategy: str | None = None
    learns_operator: bool = False
    drops_layers: bool = False
    drops_tokens: bool = False
    from_source: bool = False
    state: str | None = None
    warms: bool = False
    shape: Literal["cosine"] | None = None
    optimizer: Literal["adamw", "muon"] | None = None
    share_of: Literal["decay", "warmup"] | None = None


_OWN_OPTIMIZERS: tuple[tuple[Literal["adamw", "muon"], str, str], ...] = (
    ("adamw", "AdamW", "arXiv:1711.05101"),
    ("muon", "Muon", "Jordan et al., 2024; arXiv:2502.16982"),
)

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
    "source": Option(
        paper="-",
        summary="a method that grows on the way (WIDTH/DEPTH@SHARE) starts from the trained source, which is trained on until it grows",
        cost="steps of the source until it grows",
        from_source=True,
    ),
    "staged": Option(
        paper="bert2BERT, arXiv:2110.07143, as LiGO's section 4.3 adds it",
        summary="trained by two-stage",
        cost="as two-stage",
        strategy="two-stage",
    ),
    **{
        policy: Option(paper=paper, summary=f"at every growth, {summary}", cost="nothing", state=policy)
        for policy, paper, summary in (
            ("reset", "-", "the optimizer's state is reset"),
            ("carry", "SPARKLING, arXiv:2602.02472", "old entries keep their optimizer state, new ones start fresh"),
            ("copy", "Staged Training, arXiv:2203.06211", "the optimizer's state grows by the maps of the weights"),
            ("scale", "Staged Training, arXiv:2203.06211", "the optimizer's state grows by the maps of gradients"),
            ("copy-new", "-", "old entries keep their optimizer state, new ones get it by the maps of the weights"),
            ("scale-new", "-", "old entries keep their optimizer state, new ones get it by the maps of gradients"),
        )
    },
    "warm": Option(
        paper="SPARKLING, arXiv:2602.02472",
        summary="after every growth on the way the learning rate rises again from zero",
        cost="nothing",
        warms=True,
    ),
    "cosine": Option(
        paper="arXiv:1608.03983; LEMON, arXiv:2310.07999",
        summary="the learning rate falls by a cosine from the end of the warmup, so that runs of different length share no steps",
        cost="nothing",
        shape="cosine",
    ),
    **{
        optimizer: Option(
            paper=paper,
            summary=f"trained with {title}, whatever is best for scratch",
            cost="nothing",
            optimizer=optimizer,
        )
        for optimizer, title, paper in _OWN_OPTIMIZERS
    },
    "decay": Option(
        paper="arXiv:2405.18392",
        summary="the learning rate falls to zero over the share of the run after `@`, whatever is best for scratch",
        cost="nothing",
        share_of="decay",
    ),
    "warmup": Option(
        paper="-",
        summary="the learning rate rises over the share of the budget after `@` instead of compare.warmup_fraction",
        cost="nothing",
        share_of="warmup",
    ),
}

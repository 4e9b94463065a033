"""What comparisons measured, as the card and the plan of a growth advise it.

`measured.json` lies beside this module. `scripts/make_results.py` writes it from the finished comparisons of docs/results/results.md, so
that no figure of it is written by hand. A kind of model (causal language models, ...) without a finished comparison has no entry.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.units import amount

FILE = Path(__file__).with_name("measured.json")

RESULTS = "ligo-convert's docs/results/results.md"


@dataclass(frozen=True, kw_only=True)
class MeasuredSource:
    """What growing from a source of one strength saved, by its best method.

    Attributes:
        share: FLOPs of training the source, as a share of training the target from scratch.
        method: the method of `compare` that saves most with the source left out.
        rate_factors: (FLOPs of a run as a share of training from scratch, its learning rate divided by the best one from scratch).
        paper, net: per cent of scratch's FLOPs saved, the source left out and charged. `net` is None where there is only an upper bound.
        targets: targets that pay the source back; None for never, and where it is not known.
        never: whether no number of targets pays the source back.
        at_least: whether `paper` and `net` are lower bounds, and `targets` an upper one.
    """

    share: float
    method: str
    rate_factors: tuple[tuple[float, float], ...]
    paper: float
    net: float | None
    targets: int | None
    never: bool = False
    at_least: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A comparison, condensed.

    Attributes:
        model: `model_type` of the models.
        parameters: size of the target.
        seeds: seeds of every figure.
        tokens_per_parameter: budget of scratch, in tokens (patches) per parameter of the target.
        batch: sequences or images of a step, in words.
        warmup: share of the budget in which the learning rate rises.
        optimizer, decay, weight_decay: what was best for scratch, or set for it.
        tried: lists of the optimizers and decays that scratch tried, and of the rate factors that all others tried.
        sources: one for every strength of the source, the weakest first.
        ahead: `net`, `paper` -> where the best method that grows a trained source was ahead of scratch: first and last share of the budget
            of each range. Nothing was measured between neighbouring budgets.
        smaller_wins: at how many costs a smaller model that never grew was as good as every method, and how many were decided.
    """

    model: str
    parameters: int
    seeds: int
    tokens_per_parameter: float
    batch: str
    warmup: float
    optimizer: str
    decay: float
    weight_decay: float
    tried: Mapping[str, list[Any]]
    sources: tuple[MeasuredSource, ...]
    ahead: Mapping[str, list[list[float]]]
    smaller_wins: tuple[int, int]

    @property
    def scale(self) -> str:
        """Return the scale of the comparison, in words."""
        seeds = f"{self.seeds} seed{'' if self.seeds == 1 else 's'}"
        trained = f"{self.tokens_per_parameter:.3g} {self.passing} per parameter"
        return f"a {self.model} of {amount(self.parameters)} parameters, {trained}, {seeds}"

    @property
    def passing(self) -> str:
        """Return what is counted of a sequence: tokens of a text, patches of an image."""
        return "patches" if self.batch.endswith("images") else "tokens"


@functools.cache
def measured_by_task() -> Mapping[str, Measured]:
    """Return task -> the comparison of its models."""
    found = json.loads(FILE.read_bytes())["tasks"]
    return {task: read_measured(entry) for task, entry in found.items()}


def read_measured(entry: Mapping[str, Any]) -> Measured:
    """Return an entry of `measured.json`."""
    length = entry["sequence_length"]
    return Measured(
        **{key: entry[key] for key in ("model", "seeds", "tokens_per_parameter", "optimizer", "decay")},
        **{key: entry[key] for key in ("weight_decay", "tried", "ahead")},
        parameters=entry["parameters"]["target"],
        batch=f"{entry['batch_size']:,} " + ("images" if length is None else f"sequences of {length:,} tokens"),
        warmup=entry["warmup_steps"] / entry["steps"],
        sources=tuple(
            MeasuredSource(
                share=source["share_of_scratch"],
                rate_factors=tuple((share, factor) for share, factor in source["rate_factors"]),
                **{key: source[key] for key in ("method", "paper", "net", "targets", "never", "at_least")},
            )
            for source in entry["sources"]
        ),
        smaller_wins=(entry["smaller_wins"][0], entry["smaller_wins"][1]),
    )

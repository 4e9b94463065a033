"""Records of comparisons, assembled by the real code from runs whose savings are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ligo_convert.comparison.frontier import End
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.record import Entry, SeedRuns, Setup, comparison_record

# Scratch and methods lie on lines in (log FLOPs, loss), so that their savings are known in closed form.

BUDGET = 4e13  # FLOPs of scratch
TARGET_STEPS = 4000
SHARES = (0.25, 0.4, 0.63, 1.0)  # of the budget: scratch's ends
FINAL = 3.3  # scratch's loss after the whole budget
SLOPE = 0.2  # nats that scratch gains where its FLOPs double


def scratch_law(flops: float) -> float:
    """Scratch's loss at a cost: a line in (log FLOPs, loss), so that readings between ends are exact."""
    return FINAL + SLOPE * math.log2(BUDGET / flops)


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A method that has, at any cost, the loss that scratch has at cost / (1 - paper / 100).

    Attributes:
        paper: per cent saved with the source left out, at every end.
        source: name of its source; None for random weights.
        shares: its ends, as shares of scratch's budget.
        spread: points by which the saving differs from one seed to the next.
        above: nats by which its losses lie above that law.
        base: name without the source.
    """

    paper: float
    source: str | None = "small"
    shares: Sequence[float] = SHARES
    spread: float = 0.0
    above: float = 0.0
    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class Control:
    """A smaller model that never grows: its loss at a quarter of the budget and at the whole, a line in (log FLOPs, loss) between them."""

    quarter: float
    whole: float
    shares: Sequence[float] = SHARES


SOURCES: Mapping[str, tuple[float | None, float]] = {"small": (0.15, 3.9)}  # name -> share of scratch's FLOPs, loss
GROWN: Mapping[str, Grown] = {
    "ligo": Grown(paper=40.0, spread=1.0),
    "lemon": Grown(paper=30.0),
    "stackbert": Grown(paper=10.0, source=None),
}
CONTROLS: Mapping[str, Control] = {"4 layers": Control(quarter=3.62, whole=3.5)}


def _runs(ends: Sequence[tuple[float, float | None]], *, step: float, seed: int) -> SeedRuns:
    found = [
        End(
            steps=round(flops / step),
            flops=flops,
            loss=None if loss is None else loss + 0.006 * seed,
            learning_rate=2e-2,
        )
        for flops, loss in ends
    ]
    last = found[-1]
    at = [last.flops * part / 20 for part in range(1, 21)]
    points = [{"step": round(flops / step), "flops": flops, "loss": 7.0 - 3.0 * flops / last.flops} for flops in at]
    return SeedRuns(ends=found, curve=points)


def measured(
    grown: Mapping[str, Grown] = GROWN,
    controls: Mapping[str, Control] = CONTROLS,
    *,
    sources: Mapping[str, tuple[float | None, float]] = SOURCES,
    seeds: Sequence[int] = (0,),
    replaced: Mapping[str, Mapping[int, SeedRuns]] | None = None,
    grows: Mapping[str, bool] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A record of methods and controls.

    Args:
        replaced: other runs for some entries. grows: False for methods that do not grow. more: replaces keys of the setup.
    """
    step = BUDGET / TARGET_STEPS
    costs = {name: None if share is None else share * BUDGET for name, (share, _) in sources.items()}
    entries: dict[str, Entry] = {
        SCRATCH: Entry(kind="scratch", summary="drawn weights", learning_rate=2e-2, optimizer="muon", decay=0.4, step_flops=step)
    }  # fmt: skip
    runs: dict[str, dict[int, SeedRuns]] = {
        SCRATCH: {
            seed: _runs([(share * BUDGET, scratch_law(share * BUDGET)) for share in SHARES], step=step, seed=seed)
            for seed in seeds
        }
    }
    for name, method in grown.items():
        entries[name] = Entry(
            kind="method",
            base=method.base,
            source=method.source,
            source_flops=0.0 if method.source is None else costs[method.source],
            summary=f"what {name} does, in a line",
            paper="StackBERT, Gong et al., ICML 2019",
            preserving="no",
            start=None if method.source is None else {"width": "net2net", "depth": "stack"},
            strategy="plain",
            options=name.split("+")[1:],
            learning_rate=2e-2,
            optimizer="muon",
            decay=0.4,
            grows=(grows or {}).get(name, True),
            fit_flops=1.5e11 if name.startswith("ligo") else 0.0,
            step_flops=step,
        )
        runs[name] = {}
        for number, seed in enumerate(seeds):
            left = 1 - (method.paper + method.spread * (number - (len(seeds) - 1) / 2)) / 100
            ends = [(share * BUDGET, scratch_law(share * BUDGET / left) + method.above) for share in method.shares]
            runs[name][seed] = _runs(ends, step=step, seed=seed)
    for name, control in controls.items():
        entries[name] = Entry(
            kind="control", summary=f"{name}, never grown", learning_rate=2e-2, optimizer="muon", decay=0.4,
            step_flops=step / 2, config={"n_layer": 4},
        )  # fmt: skip
        fall = (control.quarter - control.whole) / 2  # where its FLOPs double
        ends = [(share * BUDGET, control.whole - fall * math.log2(share)) for share in control.shares]
        runs[name] = {seed: _runs(ends, step=step / 2, seed=seed) for seed in seeds}
    run = {"decay": 0.4, "schedule": "stable", "steps": 1000}
    setup: dict[str, Any] = {
        "recipe": "gpt2.yaml",
        "key": "0" * 64,
        "family": "gpt2",
        "architecture": "GPT2LMHeadModel",
        "task": "causal-lm",
        "parameters": {"source": 261000, "target": 770000},
        "budget": {
            "steps": TARGET_STEPS,
            "batch_size": 16,
            "sequence_length": 128,
            "examples": TARGET_STEPS * 16 * 128,
            "unit": "tokens",
            "tokens_per_parameter": 10.64,
            "flops": BUDGET,
        },
        "chosen": {"name": "muon", "learning_rate": 2e-2, "decay": 0.4, "schedule": "stable"},
        "tried": [
            {"optimizer": "muon", "learning_rate": 2e-2, "validation_loss": 4.056, **run},
            {"optimizer": "muon", "learning_rate": 4e-2, "validation_loss": None, **run},
            {"optimizer": "adamw", "learning_rate": 2e-3, "validation_loss": 4.669, **run},
            {"optimizer": "adamw", "learning_rate": 4e-3, "validation_loss": 4.701, **run},
        ],
        "sources": [
            {
                "name": name,
                "steps": 900,
                "flops": costs[name],
                "fraction_of_scratch": share,
                "tokens_per_parameter": None if share is None else 100 * share,
                "loss": loss,
                "accuracy": None,
            }
            for name, (share, loss) in sources.items()
        ],
        "seeds": list(seeds),
        "data": {"digest": "0", "tokens": {"train": 8_000_000, "validation": 65_536, "test": 65_536}},
        "warmup_steps": 60,
        "skipped": {"aki": "it needs a width that is a multiple of the source's"},
        "fairness_warnings": [],
        "flops_convention": "A multiplication and an addition are two operations; a backward pass costs two forward ones.",
        "versions": {"torch": "2.8.0", "transformers": "5.0.0"},
    }
    return comparison_record(Setup(**(setup | more)), entries, {**runs, **(replaced or {})})

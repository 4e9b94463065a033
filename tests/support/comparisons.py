"""A comparison as `compare.json` holds it, to draw and to report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ligo_convert.comparison.frontier import End
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.record import Entry, SeedRuns, Setup, comparison_record

STEPS, STEP_FLOPS, SOURCE_FLOPS = 3760, 1.1e10, 6e12

# name -> (loss at the first step, loss at the last, whether it begins from the source)
METHODS: Mapping[str, tuple[float, float, bool]] = {
    "scratch": (7.1, 3.30, False),
    "stack": (6.4, 3.24, True),
    "net2net": (4.3, 3.22, True),
    "lemon": (3.9, 3.21, True),
    "ligo": (3.8, 3.15, True),
}
MANY: Mapping[str, tuple[float, float, bool]] = METHODS | {
    "ligo+layer-drop": (3.8, 3.17, True),
    "bert2bert": (4.2, 3.20, True),
    "hypercloning": (3.9, 3.19, True),
    "interpolate": (6.0, 3.26, True),
    "identity": (5.0, 3.25, True),
    "random-subspace": (6.9, 3.31, False),
    "scratch+layer-drop": (7.0, 3.34, False),
    "staged": (5.2, 3.28, True),
    "distil": (7.0, 3.29, True),
    "distil+warm-start": (6.5, 3.27, True),
    "msg": (5.4, 3.235, True),
    "mango": (5.0, 3.215, True),
    "ft-growth": (4.9, 3.262, True),
    "zero-init": (6.2, 3.305, True),
    "lightning-bert": (6.0, 3.282, True),
}


def curve(
    first: float, last: float, *, seed: int = 0, points: int = 48, fit: float = 0.0, step: float = STEP_FLOPS
) -> list[dict[str, Any]]:
    """A loss that falls as losses fall: fast, then slowly, and a little uneven."""
    found = []
    for number in range(points):
        part = number / (points - 1)
        fall = 0.65 * (1 - part) * math.exp(-12 * part) + 0.35 * (1 - part) ** 2
        uneven = 0.004 * math.sin(5 * number + 3 * seed) * (part < 1) + 0.006 * seed * (part > 0)
        at = round(part * STEPS)
        found.append({"step": at, "flops": fit + at * step, "loss": last + (first - last) * fall + uneven})
    return found


def _saved(points: Sequence[Mapping[str, Any]], level: float, source: float, scratch: float) -> dict[str, float | None]:
    at = next((point["flops"] for point in points if point["loss"] <= level + 1e-9), None)
    if at is None:
        return {"paper": None, "net": None}
    return {"paper": 100 * (1 - at / scratch), "net": 100 * (1 - (at + source) / scratch)}


def comparison(
    methods: Mapping[str, tuple[float, float, bool]] = METHODS,
    *,
    seeds: Sequence[int] = (0,),
    charged: bool = True,
    **more: Any,
) -> dict[str, Any]:
    """The contents of compare.json for these methods; `more` replaces its keys."""
    scratch, found = STEPS * STEP_FLOPS, {}
    for name, (first, last, source) in methods.items():
        fit = 1.5e12 if name.startswith("ligo") else 0.0
        cost = (SOURCE_FLOPS if charged else None) if source else 0
        runs = {}
        for seed in seeds:
            points = curve(first, last, seed=seed, fit=fit)
            level = methods["scratch"][1] + 0.006 * seed
            saved = _saved(points, level, cost or 0.0, scratch)
            if cost is None:
                saved["net"] = None
            runs[str(seed)] = {
                "curve": points,
                "final": {**points[-1], "accuracy": None, "budget_fraction": 1.0},
                "savings": saved,
            }
        one = runs[str(seeds[0])]
        several = len(seeds) > 1
        found[name] = {
            "summary": f"what {name} does, in a line",
            "paper": "StackBERT, Gong et al., ICML 2019",
            "preserving": "no",
            "start": {"width": "net2net", "depth": "stack"} if source else None,
            "strategy": "plain",
            "options": name.split("+")[1:],
            "needs_source": source,
            "learning_rate": 2e-3,
            "schedule": "stable",
            "tuning_runs": [
                {"learning_rate": 1e-3, "schedule": "stable", "validation_loss": 4.1},
                {"learning_rate": 2e-3, "schedule": "stable", "validation_loss": 3.9},
                {"learning_rate": 4e-3, "schedule": "stable", "validation_loss": None},
            ],
            "flops": {"fit": fit, "step": STEP_FLOPS, "source": cost},
            **one,
            "seeds": runs,
            "std": {"loss": 0.004 if several else None, "paper": 1.2 if several else None, "net": 1.2 if several else None},
        }  # fmt: skip
    return {
        "format": "ligo-comparison/2",
        "recipe": "gpt2.yaml",
        "family": "gpt2",
        "architecture": "GPT2LMHeadModel",
        "task": "causal-lm",
        "parameters": {"source": 261000, "target": 770000},
        "budget": {
            "steps": STEPS,
            "batch_size": 16,
            "sequence_length": 128,
            "examples": 7700000,
            "unit": "tokens",
            "tokens_per_parameter": 10.0,
            "flops": scratch,
        },
        "source": {
            "label": "gpt2-small",
            "flops": SOURCE_FLOPS if charged else None,
            "fraction_of_scratch": SOURCE_FLOPS / scratch if charged else None,
            "loss": 3.9,
        },
        "schedule": "stable",
        "grid": {
            "learning_rates": [1e-3, 2e-3, 4e-3],
            "schedules": ["stable", "cosine"],
            "tuning_fraction": 0.1,
            "budget_fractions": [0.25, 0.5, 0.75, 1.0],
        },
        "seeds": list(seeds),
        "methods": found,
        "skipped": {"aki": "it needs a width that is a multiple of the source's"},
        "fairness_warnings": [],
        "flops_convention": "A multiplication and an addition are two operations; a backward pass costs two forward ones.",
        "versions": {"torch": "2.8.0", "transformers": "5.0.0"},
    } | more  # fmt: skip


def broken(name: str, losses: Sequence[float | None], **more: Any) -> dict[str, Any]:
    """A comparison in which the run of one method has these losses, the last ones of its curve."""
    data = comparison(**more)
    method = data["methods"][name]
    for point, loss in zip(method["curve"][-len(losses) :], losses, strict=True):
        point["loss"] = loss
    method["final"]["loss"] = losses[-1]
    method["savings"] = {"paper": None, "net": None}
    return data


# Records of the format `ligo-comparison/3`, assembled by the real code from runs whose savings are known in closed form.

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
        End(steps=round(flops / step), flops=flops, loss=None if loss is None else loss + 0.006 * seed)
        for flops, loss in ends
    ]
    last = found[-1]
    points = curve(7.1, last.loss or 4.0, points=24, step=step)
    scale = last.flops / points[-1]["flops"]
    return SeedRuns(
        ends=found,
        curve=[{"step": round(at["step"] * scale), "flops": at["flops"] * scale, "loss": at["loss"]} for at in points],
    )


def measured(
    grown: Mapping[str, Grown] = GROWN,
    controls: Mapping[str, Control] = CONTROLS,
    *,
    sources: Mapping[str, tuple[float | None, float]] = SOURCES,
    seeds: Sequence[int] = (0,),
    replaced: Mapping[str, Mapping[int, SeedRuns]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A record of methods and controls; `replaced` are other runs for some entries, `more` replaces keys of the setup."""
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

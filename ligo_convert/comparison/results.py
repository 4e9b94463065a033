"""Judge finished runs and assemble compare.json: savings, means and deviations over seeds, and the full record.

Input: an `Experiment` and the curves of its runs.
Output: plain values in the format `FORMAT`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ligo_convert.comparison.experiment import Experiment
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.families.flops import CONVENTION

FORMAT = "ligo-comparison/2"


# Judging.


def first_point_at(curve: Sequence[Mapping[str, Any]], loss: float | None) -> Mapping[str, Any] | None:
    """Return the first point of a curve at or below a loss; None if there is none."""
    if loss is None:
        return None
    return next((point for point in curve if point["loss"] is not None and point["loss"] <= loss), None)


def savings(
    experiment: Experiment, name: str, curve: Sequence[Mapping[str, Any]], *, scratch: Mapping[str, Any]
) -> dict[str, float | None]:
    """Return the saving at scratch's final loss, in per cent of scratch's FLOPs, without (`paper`) and with (`net`) the source.

    Args:
        experiment: the plan of the comparison.
        name: name of the method.
        curve: the method's curve; its FLOPs include the fit and exclude the source.
        scratch: last point of scratch's curve.
    """
    if name == SCRATCH:
        return {"paper": 0.0, "net": 0.0}
    there = first_point_at(curve, scratch["loss"])
    if there is None:
        return {"paper": None, "net": None}
    source = experiment.source_flops if experiment.entries[name].method.needs_source else 0.0
    paper = 100 * (1 - there["flops"] / scratch["flops"])
    net = None if source is None else 100 * (1 - (there["flops"] + source) / scratch["flops"])
    return {"paper": round(paper, 2), "net": None if net is None else round(net, 2)}


def std(values: Sequence[float | None]) -> float | None:
    """Return the standard deviation over seeds; None for one seed or if a value is missing."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return round(statistics.stdev(known), 4) if len(known) == len(values) and len(known) > 1 else None


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean over seeds; None if a value is missing."""
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 6) if known and len(known) == len(values) else None


def grid_edge_warnings(experiment: Experiment, tuned: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return warnings for methods with their best learning rate at the edge of the grid: a better one may lie outside."""
    rates = sorted(set(experiment.settings.learning_rates))
    if len(rates) < 2:
        return []
    found = []
    for text, rate in (("highest", rates[-1]), ("lowest", rates[0])):
        at = [name for name, chosen in tuned.items() if chosen["learning_rate"] == rate]
        if at:
            found.append(
                {
                    "rule": "learning-rate-at-grid-edge",
                    "text": f"the best learning rate is the {text} one tried, {rate:g}: a better one may lie outside the grid",
                    "methods": at,
                }
            )
    return found


def method_record(
    experiment: Experiment,
    name: str,
    *,
    tuned: Mapping[str, Any],
    tuning_runs: Sequence[Mapping[str, Any]],
    runs: Mapping[int, Mapping[str, Any]],
    scratch: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the record of one method.

    Args:
        experiment: the plan of the comparison.
        name: name of the method.
        tuned: the chosen learning rate and schedule.
        tuning_runs: learning rate, schedule and validation loss of each tuning run.
        runs: seed -> `curve`, `final` and `finals`.
        scratch: seed -> last point of scratch's curve.
    """
    entry = experiment.entries[name]
    method = entry.method
    by_seed = {
        str(seed): {**run, "savings": savings(experiment, name, run["curve"], scratch=scratch[seed])}
        for seed, run in runs.items()
    }
    first = next(iter(by_seed.values()))
    source = experiment.source_flops if method.needs_source else 0
    saved = {way: [run["savings"][way] for run in by_seed.values()] for way in ("paper", "net")}
    losses = [run["final"]["loss"] for run in by_seed.values()]
    return {
        "summary": method.summary,
        "paper": method.paper,
        "preserving": method.preserves,
        "verdict": None if method.random_init else entry.start.verdict,
        "start": None if method.random_init else {"width": method.width, "depth": method.depth},
        "strategy": method.strategy,
        "options": list(method.options),
        "needs_source": method.needs_source,
        "learning_rate": tuned["learning_rate"],
        "schedule": tuned["schedule"],
        "tuning_runs": list(tuning_runs),
        "flops": {
            "fit": experiment.fit_flops(name),
            "step": round((first["final"]["flops"] - experiment.fit_flops(name)) / first["final"]["step"]),
            "source": source,
        },
        "curve": first["curve"],
        "final": {**first["final"], "loss": mean(losses)},
        "savings": {way: mean(values) for way, values in saved.items()},
        "seeds": by_seed,
        "std": {"loss": std(losses), **{way: std(values) for way, values in saved.items()}},
    }


def comparison_record(
    experiment: Experiment,
    methods: Mapping[str, Mapping[str, Any]],
    *,
    key: str,
    source: Mapping[str, Any],
    data: Mapping[str, Any],
    versions: Mapping[str, str],
    fairness_warnings: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the contents of compare.json."""
    plan, images = experiment.plan, experiment.plan.family.reads == "images"
    flops, scratch = experiment.source_flops, experiment.scratch_flops
    return {
        "format": FORMAT,
        "recipe": plan.recipe.path.name,
        "key": key,
        "family": plan.family.name,
        "architecture": plan.family.architecture,
        "task": plan.family.task,
        "parameters": plan.parameters,
        "budget": {
            "steps": experiment.steps,
            "batch_size": experiment.batch_size,
            "sequence_length": experiment.length,
            "examples": experiment.examples if images else experiment.steps * experiment.tokens,
            "unit": "images" if images else "tokens",
            "tokens_per_parameter": round(experiment.tokens_per_parameter, 2),
            "flops": scratch,
        },
        "source": {
            **source,
            "flops": flops,
            "fraction_of_scratch": None if flops is None else round(flops / scratch, 4),
        },
        "schedule": methods[SCRATCH]["schedule"],
        "grid": {
            "learning_rates": list(experiment.settings.learning_rates),
            "schedules": list(experiment.settings.schedules),
            "tuning_fraction": experiment.settings.tuning_fraction,
            "budget_fractions": list(experiment.budget_fractions),
        },
        "warmup_steps": experiment.warmup,
        "seeds": list(experiment.seeds),
        "data": dict(data),
        "methods": dict(methods),
        "skipped": dict(experiment.skipped),
        "fairness_warnings": list(fairness_warnings),
        "flops_convention": CONVENTION,
        "versions": dict(versions),
    }

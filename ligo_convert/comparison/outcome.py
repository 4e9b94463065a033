"""Turn the finished jobs of a comparison into the contents of compare.json.

Input: an `Experiment` and its `Scheduler`, with every job done.
Output: the record of `comparison.record`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ligo_convert.comparison.experiment import Experiment, ExperimentEntry
from ligo_convert.comparison.frontier import End
from ligo_convert.comparison.record import Entry, SeedRuns, Setup, comparison_record
from ligo_convert.comparison.scheduler import Scheduler
from ligo_convert.families.flops import CONVENTION


def outcome(
    scheduler: Scheduler, *, key: str, label: str, data: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """Return the record of a finished comparison.

    Args:
        key: digest of everything that determines the result.
        label: where the source comes from.
        data: digest and sizes of the data.
        versions: versions of the libraries.
    """
    experiment = scheduler.experiment
    entries = {name: _entry(scheduler, entry) for name, entry in experiment.entries.items()}
    runs = {
        name: {
            seed: SeedRuns(
                ends=[
                    End(**{key: end[key] for key in ("steps", "flops", "loss", "accuracy", "learning_rate")})
                    for end in found["ends"]
                ],
                curve=found["curve"],
            )
            for seed, found in seeds.items()
        }
        for name, seeds in scheduler.finished_runs().items()
    }
    return comparison_record(_setup(scheduler, key=key, label=label, data=data, versions=versions), entries, runs)


def _setup(
    scheduler: Scheduler, *, key: str, label: str, data: Mapping[str, Any], versions: Mapping[str, str]
) -> Setup:
    experiment = scheduler.experiment
    plan, images = experiment.plan, experiment.family.reads == "images"
    choice = scheduler.choice()
    assert choice is not None
    return Setup(
        recipe=plan.recipe.path.name,
        key=key,
        family=plan.family.name,
        architecture=plan.family.architecture,
        task=plan.family.task,
        parameters=plan.parameters,
        budget={
            "steps": experiment.steps,
            "batch_size": experiment.batch_size,
            "sequence_length": experiment.length,
            "examples": experiment.steps * (experiment.batch_size if images else experiment.tokens),
            "unit": "images" if images else "tokens",
            "tokens_per_parameter": round(experiment.tokens_per_parameter, 2),
            "flops": experiment.scratch_flops,
        },
        chosen={
            "name": choice.optimizer,
            "learning_rate": choice.learning_rate,
            "decay": choice.decay,
            "schedule": "stable",
            "weight_decay": experiment.settings.weight_decay,
        },
        tried=[{**run, "schedule": "stable"} for run in scheduler.tried()],
        sources=[_source(experiment, found, label) for found in scheduler.strengths()],
        seeds=experiment.seeds,
        data=data,
        warmup_steps=experiment.warmup,
        skipped=experiment.skipped,
        fairness_warnings=[*experiment.fairness_warnings(), *_edge_warnings(scheduler)],
        flops_convention=CONVENTION,
        versions=versions,
        settings=experiment.settings.model_dump(mode="json"),
        more={
            "grid": {
                "optimizers": list(experiment.settings.optimizers),
                "learning_rates": list(experiment.settings.learning_rates),
                "rate_factors": list(experiment.settings.rate_factors),
                "decays": list(experiment.settings.decays),
                "tuning_fraction": experiment.settings.tuning_fraction,
                "scratch_fractions": list(experiment.scratch_fractions),
                "budget_fractions": list(experiment.budget_fractions),
            }
        },
    )


def _source(experiment: Experiment, found: Mapping[str, Any], label: str) -> dict[str, Any]:
    flops, steps, seeds = found["flops"], found["steps"], found["seeds"]
    losses = [seed["loss"] for seed in seeds.values()]
    accuracies = [seed["accuracy"] for seed in seeds.values()]
    small = experiment.plan.parameters["source"]
    return {
        "name": found["name"],
        "label": label,
        "steps": steps,
        "flops": flops,
        "fraction_of_scratch": None if flops is None else round(flops / experiment.scratch_flops, 4),
        "tokens_per_parameter": None if steps is None else round(steps * experiment.tokens / small, 2),
        "loss": _mean(losses),
        "accuracy": _mean(accuracies),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _entry(scheduler: Scheduler, entry: ExperimentEntry) -> Entry:
    experiment, method = scheduler.experiment, entry.method
    choice = scheduler.choice_at_end(entry)
    assert choice is not None
    steps = experiment.ends(entry)[-1]
    run = experiment.make_run(entry, choice, seed=experiment.seeds[0], steps=steps)
    last = experiment.run_flops(entry, steps)
    return Entry(
        kind=entry.kind,
        base=method.name if method is not None else None,
        source=entry.source,
        source_flops=experiment.source_flops(entry),
        summary=method.summary if method is not None else "never grown",
        paper=method.paper if method is not None else "-",
        preserving=method.preserves if method is not None else None,
        verdict=entry.growth.verdict if entry.growth is not None else None,
        start=None
        if method is None or method.random_init
        else {"width": method.width, "depth": method.depth, "grows_at": method.grows_at},
        strategy=method.strategy if method is not None else "plain",
        options=method.options if method is not None else (),
        learning_rate=choice.learning_rate,
        optimizer=choice.optimizer,
        decay=choice.decay,
        fit_flops=experiment.extra_flops(entry),
        step_flops=round(last / steps),
        config=dict(entry.asked) if entry.kind == "control" else None,
        stages=[{key: value for key, value in asdict(stage).items() if key != "config"} for stage in run.stages],
        tried=scheduler.tried_by(entry),
        grows=entry.begins != "drawn" or bool(entry.starts) or any(stage.growth is not None for stage in run.stages),
        chose={str(seed): scheduler.start_losses(entry, seed) for seed in experiment.seeds if entry.starts},
    )


def _edge_warnings(scheduler: Scheduler) -> list[dict[str, Any]]:
    """Return a warning if scratch's best learning rate is the highest or the lowest that was tried: a better one may lie beyond."""
    choice = scheduler.choice()
    assert choice is not None
    rates = sorted({run["learning_rate"] for run in scheduler.tried() if run["optimizer"] == choice.optimizer})
    found = []
    for text, rate in (("highest", rates[-1]), ("lowest", rates[0])):
        if len(rates) > 1 and choice.learning_rate == rate:
            found.append(
                {
                    "rule": "learning-rate-at-grid-edge",
                    "text": f"scratch's best learning rate is the {text} one tried, {rate:g}: a better one may lie outside the grid",
                    "methods": ["scratch"],
                }
            )
    return found

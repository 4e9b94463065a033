"""Run a comparison: train the target with several methods under equal conditions, and report what each method saves.

Input: a recipe, method names, a budget.
Output: a directory with `compare.json`, a plot of loss against FLOPs, one of savings against the source's cost, and a report.
Order of the work: scratch's tuning runs, scratch at its whole budget, the tuning runs of the others, the sources, then all runs to all
budgets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ligo_convert.comparison.costs import comparison_costs
from ligo_convert.comparison.experiment import Experiment, make_experiment
from ligo_convert.comparison.outcome import outcome
from ligo_convert.comparison.record import FORMAT
from ligo_convert.comparison.scheduler import Scheduler
from ligo_convert.comparison.study import Study, StudyResult, carry_out
from ligo_convert.conversion.plan import make_plan, open_planned
from ligo_convert.io.staging import Staging
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import Recipe

RECORD = "compare.json"

PICTURE = "compare.png"

SOURCES_PICTURE = "sources.png"

REPORT = "report.html"


def plan_comparison(
    recipe: Recipe,
    *,
    methods: Sequence[str] | None = None,
    steps: int | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return what a comparison would cost (`comparison.costs`). Reads no weights and no data, and trains nothing."""
    with contextlib.ExitStack() as stack:
        source = open_planned(recipe, weights=False)
        if source is not None:
            stack.enter_context(source)
        # Another machine may carry it out.
        plan = make_plan(recipe, source, check_disk=False, runs=False, here=False)
        return comparison_costs(make_experiment(plan, methods=methods, steps=steps, seeds=seeds))


def compare(
    recipe: Recipe,
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    steps: int | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int = 0,
    device: str = "auto",
    reuse: Sequence[Path] = (),
    progress: Progress | None = None,
) -> StudyResult:
    """Run a comparison, or resume one that was stopped.

    Args:
        methods: method names; overrides the recipe.
        steps: the budget; overrides the recipe.
        seeds: overrides the recipe.
        jobs: worker processes; 0 for one per core, or one on a GPU.
        reuse: output directories of finished comparisons with the same recipe and budget; their jobs are not done again.

    Raises:
        LigoError: a subclass that describes the failure. The output directory is then absent or unchanged.
    """
    study = Study(
        noun="comparison",
        record=RECORD,
        format=FORMAT,
        make=lambda plan: make_experiment(plan, methods=methods, steps=steps, seeds=seeds),
        scheduler=Scheduler,
        settings=lambda experiment: {},
        announce=_announce,
        conclude=outcome,
        write=_write,
        keeps_jobs=True,
    )
    return carry_out(study, recipe, out, jobs=jobs, device=device, reuse=reuse, progress=progress)


def _announce(experiment: Experiment, progress: Progress) -> None:
    for warning in experiment.fairness_warnings():
        progress.warn(f"fairness: {warning['text']}")
    progress.say(_cost_message(experiment))


def _cost_message(experiment: Experiment) -> str:
    """Describe the number of entries and the cost, before anything is trained."""
    scratch = experiment.scratch_flops
    kinds = [entry.kind for entry in experiment.entries.values()]
    times = Scheduler.expected_flops(experiment) / scratch
    return (
        f"{kinds.count('method')} methods, {kinds.count('control')} controls, seeds: {len(experiment.seeds)};"
        f" scratch: {experiment.steps} steps, {scratch:.3g} FLOPs, {experiment.tokens_per_parameter:.1f} tokens per parameter;"
        f" total: about {times:.1f} times scratch"
    )


def _write(record: Mapping[str, Any], staging: Staging) -> None:
    from ligo_convert.comparison.page import comparison_html
    from ligo_convert.comparison.picture import comparison_png, sources_png

    staging.write_bytes(PICTURE, comparison_png(record))
    savings = sources_png(record)
    if savings is not None:
        staging.write_bytes(SOURCES_PICTURE, savings)
    staging.write_bytes(REPORT, comparison_html(record).encode())

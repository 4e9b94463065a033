"""Choose how to grow: try candidates for a short while, project them to the budget, and say which one to take.

Input: a recipe, candidates, a budget.
Output: a directory with `choose.json`, and where asked a recipe with the choice filled in.
A staging directory holds the result of every finished trial until the output is complete; the same command resumes from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ligo_convert.comparison.advice import FORMAT, advice
from ligo_convert.comparison.experiment import Experiment
from ligo_convert.comparison.study import Study, StudyResult, carry_out
from ligo_convert.comparison.trials import Trials, TrialScheduler, make_trials
from ligo_convert.io.staging import Staging
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import Recipe

RECORD = "choose.json"


def choose(
    recipe: Recipe,
    out: Path,
    *,
    candidates: Sequence[str] | None = None,
    steps: int | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> StudyResult:
    """Run the trials, or resume them after a stop.

    Args:
        candidates: method names; overrides the recipe.
        steps: the budget that the choice is for, in steps of training from scratch; overrides the recipe.
        seeds: overrides the recipe.
        jobs: worker processes; 0 for one per core, or one on a GPU.

    Raises:
        LigoError: a subclass that describes the failure. The output directory is then absent or unchanged.
    """
    study = Study(
        noun="choice",
        record=RECORD,
        format=FORMAT,
        make=lambda plan: make_trials(plan, candidates=candidates, steps=steps, seeds=seeds),
        scheduler=TrialScheduler,
        settings=_settings,
        announce=_announce,
        conclude=advice,
        write=_write,
    )
    return carry_out(study, recipe, out, jobs=jobs, device=device, progress=progress)


def _settings(experiment: Experiment) -> dict[str, Any]:
    trials = cast(Trials, experiment)
    return {"rounds": trials.rounds, "source_factors": trials.source_factors}


def _announce(experiment: Experiment, progress: Progress) -> None:
    trials = cast(Trials, experiment)
    share = TrialScheduler.expected_flops(trials) / trials.scratch_flops
    rounds = ", ".join(f"{part:.1%}" for part in trials.rounds)
    progress.say(
        f"{len(trials.entries)} candidates, trials of {rounds} of the budget ({trials.steps} steps of training from scratch,"
        f" {trials.scratch_flops:.3g} FLOPs); all trials: about {share:.0%} of the budget"
    )


def _write(record: Mapping[str, Any], staging: Staging) -> None:
    """Stage nothing: the record says all."""

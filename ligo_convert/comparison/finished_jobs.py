"""Keep the results of the jobs of a finished study, so that a larger one goes on from them.

A job is named by the history that it trains, so two studies that train the same history name it alike. What decides a result beside its
history (the *ground*: recipe, data, source, settings, versions) is stored with the results, and must be equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from ligo_convert.comparison.experiment import Experiment
from ligo_convert.environment import versions
from ligo_convert.errors import LigoError, RecipeError
from ligo_convert.families.registry import family_digests
from ligo_convert.io.strict_json import sha256_of, strict_json

JOBS = "ligo/jobs.json"

FORMAT = "ligo-jobs/1"

# Keys of `compare` that say which runs are wanted. No result of a job depends on them: what a run takes from them is part of its history.
_SELECT = (
    *("methods", "seeds", "optimizers", "learning_rates", "rate_factors", "decays", "tuning_fraction", "choose_fraction"),
    *("scratch_fractions", "budget_fractions", "controls", "source_strengths"),
)  # fmt: skip

# Part of the ground -> its digest or value. The keys are shown in messages.
Ground = Mapping[str, Any]


def ground_of(experiment: Experiment, *, recipe: str, split: str, device: str) -> Ground:
    """Return what decides the results of all jobs, beside their histories.

    Args:
        recipe: digest of the recipe, its source and its data.
        split: digest of the data splits. The training split is as large as the longest run needs, so it depends on the methods.
        device: torch device.
    """
    # Without defaults, a key that a later version adds leaves the ground as it was.
    settings = experiment.settings.model_dump(mode="json", exclude_defaults=True)
    return {
        "recipe, source and data": recipe,
        "training split": split,
        **{f"compare.{key}": value for key, value in settings.items() if key not in (*_SELECT, "steps")},
        "compare.steps": experiment.steps,
        "device": device,
        "versions": versions(),
        "family files": family_digests(),
    }


def finished_jobs(jobs: Mapping[str, Mapping[str, Any]], ground: Ground) -> dict[str, Any]:
    """Return the content of the file, with its own digest."""
    content = {"format": FORMAT, "ground": ground, "jobs": jobs}
    return {**content, "sha256": sha256_of(content)}


def read_finished(folders: Iterable[Path], ground: Ground, *, noun: str) -> dict[str, dict[str, Any]]:
    """Return the results of the jobs of finished studies, by job name.

    Raises:
        RecipeError: a folder is no finished study, its file was changed, or it stands on another ground.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        path = folder / JOBS
        try:
            content = strict_json(path.read_bytes(), label=path.name)
        except OSError as error:
            raise _unusable(path, noun, error.strerror or "cannot be read") from None
        except LigoError as error:
            raise _unusable(path, noun, error.what) from None
        if content.get("format") != FORMAT:
            raise _unusable(path, noun, f"not of format {FORMAT}")
        own = content.pop("sha256", None)
        if own != sha256_of(content):
            raise RecipeError(
                f"the finished jobs of the {noun} changed since they were written",
                where=path,
                expected=str(own),
                found=sha256_of(content),
                hint="do not reuse this directory",
            )
        _require_same(cast(Ground, content["ground"]), ground, path, noun)
        found.update(cast(dict[str, dict[str, Any]], content["jobs"]))
    return found


def _unusable(path: Path, noun: str, why: str) -> RecipeError:
    return RecipeError(
        f"no finished jobs to reuse: {why}", where=path, hint=f"name the output directory of a finished {noun}"
    )


def _require_same(found: Ground, wanted: Ground, path: Path, noun: str) -> None:
    plain = json.loads(json.dumps(wanted))
    other = [name for name in dict.fromkeys((*plain, *found)) if found.get(name) != plain.get(name)]
    if other:
        raise RecipeError(
            f"the {noun} cannot be reused: it differs in {', '.join(other)}",
            where=path,
            expected="; ".join(f"{name}: {plain.get(name, 'default')}" for name in other),
            found="; ".join(f"{name}: {found.get(name, 'default')}" for name in other),
            hint="leave out --reuse to train everything",
        )

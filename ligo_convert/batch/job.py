"""Convert one entry of a manifest, in any process that an engine chooses.

Input: an `Assignment`, plain data that can be pickled. Output: a result record, also plain data. A failure is a result like any other,
so one entry cannot break the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.conversion.run import run_operator, run_recipe
from ligo_convert.environment import forget_peak_rss
from ligo_convert.errors import LigoError, MachineError
from ligo_convert.families.registry import load_family_file
from ligo_convert.io.cache import ResultCache
from ligo_convert.outputs.privacy import without_places
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import Recipe, load_recipe
from ligo_convert.recipes.schema import PublishConfig

DONE, FAILED = "done", "failed"

# Keys of a run's report that the batch report repeats.
_REPORTED = ("out", "family", "changed", "parameters", "loss", "preservation", "seconds", "peak_rss_bytes", "published")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Everything a process needs to convert an entry. All paths are absolute.

    Attributes:
        name: the entry's name.
        recipe: the recipe's file, or None when a stored operator is applied.
        overrides: `KEY=VALUE` settings, as `load_recipe` takes them.
        source: a directory or Hub id that replaces the recipe's source.
        operator: a learned operator's file, applied to `source` when there is no recipe.
        out: the output directory, or None to use the recipe's.
        publish: a recipe's `publish` section as plain data.
        cache: the folder of results shared with other entries.
        device: `auto`, `cpu` or `cuda`.
        threads: number of compute threads; 0 uses every core.
        family_files: files named with `--family`, which a worker process loads first.
    """

    name: str
    recipe: str | None
    overrides: tuple[str, ...]
    source: str | None
    operator: str | None
    out: str | None
    publish: Mapping[str, Any] | None
    cache: str
    device: str
    threads: int
    family_files: tuple[str, ...] = ()


def recipe_of(assignment: Assignment) -> Recipe:
    """Load the recipe of an assignment that has one."""
    assert assignment.recipe is not None
    recipe = load_recipe(
        Path(assignment.recipe), overrides=assignment.overrides, source=assignment.source, out=assignment.out
    )
    if assignment.publish is not None:
        # The manifest's section takes precedence over the recipe's.
        return recipe.model_copy(update={"publish": PublishConfig.model_validate(dict(assignment.publish))})
    return recipe


def output_of(assignment: Assignment) -> Path:
    """Return the absolute output directory of an assignment. Raises LigoError if its recipe, which decides it, cannot be read."""
    return Path(assignment.out if assignment.out is not None else recipe_of(assignment).output.dir).absolute()


def run_assignment(assignment: Assignment, progress: Progress) -> dict[str, Any]:
    """Convert an entry.

    Returns a record with `state`, `code`, `why` and `report`. Raises only what stops the process.
    """
    try:
        return {"state": DONE, "code": 0, "why": None, "report": _convert(assignment, progress)}
    except Exception as error:  # noqa: BLE001  any error fails this entry; the other entries continue
        return failure(error)


def failure(error: Exception) -> dict[str, Any]:
    """Convert an exception to a result record. Unexpected exceptions are reported as out-of-memory or as a bug."""
    if isinstance(error, MemoryError):
        error = MachineError("out of memory", hint="lower --jobs, or use a machine with more memory")
    elif not isinstance(error, LigoError):
        error = LigoError(f"a bug in ligo-convert: {type(error).__name__}: {error}", hint="please report it")
    # The record of the result is in a folder that others share.
    return {"state": FAILED, "code": error.exit_code, "why": without_places(str(error)), "report": None}


def _convert(assignment: Assignment, progress: Progress) -> dict[str, Any]:
    _use_threads(assignment.threads)
    forget_peak_rss()
    for file in assignment.family_files:
        load_family_file(Path(file))
    if assignment.recipe is not None:
        cache = ResultCache(Path(assignment.cache))
        result = run_recipe(recipe_of(assignment), device=assignment.device, progress=progress, cache=cache)
    else:
        assert assignment.operator is not None
        assert assignment.source is not None
        assert assignment.out is not None
        result = run_operator(
            Path(assignment.operator),
            assignment.source,
            Path(assignment.out),
            publish=None if assignment.publish is None else PublishConfig.model_validate(dict(assignment.publish)),
            progress=progress,
        )
    report = result.json()
    return {key: report[key] for key in _REPORTED if key in report}


def _use_threads(count: int) -> None:
    """Limit the compute threads of this process, because several processes share the machine. 0: no limit."""
    if count:
        import torch

        torch.set_num_threads(count)

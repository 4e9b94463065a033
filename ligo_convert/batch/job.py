"""One entry of a manifest, done: in whatever process an engine has for it.

What comes in: an `Assignment`, plain data that goes through any pipe. What goes out: plain data, too, whatever happened: a failure is a
result like any other, so that it harms nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.conversion.run import run_operator, run_recipe
from ligo_convert.errors import LigoError, MachineError
from ligo_convert.io.cache import ResultCache
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import Recipe, load_recipe
from ligo_convert.recipes.schema import PublishConfig

DONE, FAILED = "done", "failed"

# What a summary keeps of a run's report.
_KEPT = ("out", "family", "changed", "parameters", "loss", "preservation", "seconds", "peak_rss_bytes", "published")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a process needs to know to do an entry. Places are absolute.

    Attributes:
        recipe, overrides, source, out: as `load_recipe` takes them. operator: applied to `source` where there is no recipe.
        publish: a recipe's section in plain data. shelf: the folder of what is shared. threads: to compute with; 0: as many as there are.
    """

    name: str
    recipe: str | None
    overrides: tuple[str, ...]
    source: str | None
    operator: str | None
    out: str | None
    publish: Mapping[str, Any] | None
    shelf: str
    device: str
    threads: int


def recipe_of(assignment: Assignment) -> Recipe:
    """The recipe of an assignment that has one."""
    assert assignment.recipe is not None
    recipe = load_recipe(
        Path(assignment.recipe), overrides=assignment.overrides, source=assignment.source, out=assignment.out
    )
    if assignment.publish is not None:
        # What the manifest says of it, over what the recipe says.
        return recipe.model_copy(update={"publish": PublishConfig.model_validate(dict(assignment.publish))})
    return recipe


def carry_out(assignment: Assignment, progress: Progress) -> dict[str, Any]:
    """Do an entry. Returns `state`, `code`, `why` and `report`; nothing is raised but what stops the process."""
    try:
        return {"state": DONE, "code": 0, "why": None, "report": _do(assignment, progress)}
    except Exception as error:  # noqa: BLE001  whatever it is, it is this entry's failure; the others go on
        return failure(error)


def failure(error: Exception) -> dict[str, Any]:
    """An error as a result. What is none of ours is told as what it is: short of memory, or a bug."""
    if isinstance(error, MemoryError):
        error = MachineError("out of memory", hint="give fewer --jobs, or more memory")
    elif not isinstance(error, LigoError):
        error = LigoError(f"a bug in ligo-convert: {type(error).__name__}: {error}", hint="please report it")
    return {"state": FAILED, "code": error.exit_code, "why": str(error), "report": None}


def _do(assignment: Assignment, progress: Progress) -> dict[str, Any]:
    _use_threads(assignment.threads)
    shelf = ResultCache(Path(assignment.shelf))
    if assignment.recipe is not None:
        delivered = run_recipe(recipe_of(assignment), device=assignment.device, progress=progress, shelf=shelf)
    else:
        assert assignment.operator is not None
        assert assignment.source is not None
        assert assignment.out is not None
        delivered = run_operator(
            Path(assignment.operator),
            assignment.source,
            Path(assignment.out),
            publish=None if assignment.publish is None else PublishConfig.model_validate(dict(assignment.publish)),
            progress=progress,
            shelf=shelf,
        )
    told = delivered.json()
    return {key: told[key] for key in _KEPT if key in told}


def _use_threads(count: int) -> None:
    """Compute with so many threads, which several processes on one machine have to agree on."""
    if count:
        import torch

        torch.set_num_threads(count)

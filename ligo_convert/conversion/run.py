"""Run a recipe or apply a stored operator, and publish the result where that is asked for.

Input: a recipe, or an operator file and a source.
Output: the object that `run --json` prints. Publishing follows verification; if it fails, the output directory is complete, and the
same command only publishes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.conversion.apply import apply_operator
from ligo_convert.conversion.convert import convert
from ligo_convert.conversion.run_record import ConversionResult
from ligo_convert.io.cache import ResultCache
from ligo_convert.outputs.bundle import pack
from ligo_convert.outputs.hub_destination import HubDestination, PublishResult
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.recipes.schema import PublishConfig


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run; `published` is None where no repository is named."""

    outcome: ConversionResult
    published: PublishResult | None

    def json(self) -> dict[str, Any]:
        """Return the object that `run --json` prints."""
        data = self.outcome.json()
        if self.published is not None:
            published = self.published.json()
            data["published"] = {key: published[key] for key in published if key not in ("out", "files")}
        return data


def run_recipe(
    recipe: Recipe, *, device: str = "auto", progress: Progress | None = None, cache: ResultCache | None = None
) -> RunResult:
    """Carry out a recipe, and publish the output if the recipe has a `publish` section. `cache`: see `convert`.

    Raises:
        LigoError: its class names the cause. Conditions for publishing that can be checked early are checked before any work.
    """
    return _run_and_publish(
        lambda: convert(recipe, device=device, progress=progress, cache=cache), recipe.publish, progress
    )


def run_operator(
    operator: Path,
    source: str,
    out: Path,
    *,
    publish: PublishConfig | None,
    progress: Progress | None = None,
) -> RunResult:
    """Apply an operator as `apply_operator` does, and publish the output if `publish` is given. Raises as `run_recipe` does."""
    return _run_and_publish(
        lambda: apply_operator(operator, source, out, publish=publish, progress=progress),
        publish,
        progress,
    )


def _run_and_publish(
    work: Callable[[], ConversionResult], section: PublishConfig | None, progress: Progress | None
) -> RunResult:
    if section is None:
        return RunResult(outcome=work(), published=None)
    progress = progress or Progress()
    settings = section.model_dump()
    license = settings.pop("license")
    destination = HubDestination(**settings)
    destination.check_beforehand(license=license, progress=progress)
    outcome = work()
    packed = pack(outcome.out, license=license, progress=progress)
    return RunResult(outcome=outcome, published=destination.put(packed, progress=progress))

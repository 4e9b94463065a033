"""A recipe, or a stored operator, from one end to the other: converted, and, where it says so, published.

What comes in: a recipe, or an operator and what to apply it to. What goes out: what `run --json` prints. Publishing follows verification,
and a failure of it leaves the finished directory: the same command then only publishes.
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
    """What has come of it; `published` None where no repository is named."""

    outcome: ConversionResult
    published: PublishResult | None

    def json(self) -> dict[str, Any]:
        """As `run --json` prints it."""
        found = self.outcome.json()
        if self.published is not None:
            told = self.published.json()
            found["published"] = {key: told[key] for key in told if key not in ("out", "files")}
        return found


def run_recipe(
    recipe: Recipe, *, device: str = "auto", progress: Progress | None = None, shelf: ResultCache | None = None
) -> RunResult:
    """Carry out a recipe and publish what it says. `shelf`: as of `convert`.

    Raises:
        LigoError: of the class that says what went wrong. What publishing would refuse is found out before any work,
            as far as it can be known by then.
    """
    return _delivered(lambda: convert(recipe, device=device, progress=progress, shelf=shelf), recipe.publish, progress)


def run_operator(
    operator: Path,
    source: str,
    out: Path,
    *,
    publish: PublishConfig | None,
    progress: Progress | None = None,
    shelf: ResultCache | None = None,
) -> RunResult:
    """Apply an operator, as `apply_operator`, and publish what comes of it as a section says. Raises as `run_recipe`."""
    return _delivered(
        lambda: apply_operator(operator, source, out, publish=publish, progress=progress, shelf=shelf),
        publish,
        progress,
    )


def _delivered(
    work: Callable[[], ConversionResult], section: PublishConfig | None, progress: Progress | None
) -> RunResult:
    if section is None:
        return RunResult(outcome=work(), published=None)
    progress = progress or Progress()
    told = section.model_dump()
    stated = told.pop("license")
    destination = HubDestination(**told)
    destination.check_beforehand(license=stated, progress=progress)
    outcome = work()
    packed = pack(outcome.out, license=stated, progress=progress)
    return RunResult(outcome=outcome, published=destination.put(packed, progress=progress))

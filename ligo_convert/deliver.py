"""A recipe, or a stored operator, from one end to the other: converted, and, where it says so, published.

What comes in: a recipe, or an operator and what to apply it to. What goes out: what `run --json` prints. Publishing follows verification,
and a failure of it leaves the finished directory: the same command then only publishes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.apply import apply_operator
from ligo_convert.convert import convert
from ligo_convert.progress import Progress
from ligo_convert.publish import Published, Wanted, check_beforehand, publish
from ligo_convert.recipe import Publish, Recipe
from ligo_convert.record import Outcome
from ligo_convert.shelf import Shelf


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """What has come of it; `published` None where no repository is named."""

    outcome: Outcome
    published: Published | None

    def json(self) -> dict[str, Any]:
        """As `run --json` prints it."""
        found = self.outcome.json()
        if self.published is not None:
            told = self.published.json()
            found["published"] = {key: told[key] for key in told if key not in ("out", "files")}
        return found


def deliver(
    recipe: Recipe, *, device: str = "auto", progress: Progress | None = None, shelf: Shelf | None = None
) -> Delivered:
    """Carry out a recipe and publish what it says. `shelf`: as of `convert`.

    Raises:
        LigoError: of the class that says what went wrong. What publishing would refuse is found out before any work,
            as far as it can be known by then.
    """
    return _delivered(lambda: convert(recipe, device=device, progress=progress, shelf=shelf), recipe.publish, progress)


def deliver_applied(
    operator: Path,
    source: str,
    out: Path,
    *,
    publish: Publish | None,
    progress: Progress | None = None,
    shelf: Shelf | None = None,
) -> Delivered:
    """Apply an operator, as `apply_operator`, and publish what comes of it as a section says. Raises as `deliver`."""
    return _delivered(
        lambda: apply_operator(operator, source, out, publish=publish, progress=progress, shelf=shelf),
        publish,
        progress,
    )


def _delivered(work: Callable[[], Outcome], wanted: Publish | None, progress: Progress | None) -> Delivered:
    if wanted is not None:
        to = Wanted(
            repo=wanted.repo, public=wanted.public, branch=wanted.branch, tag=wanted.tag, replace=wanted.replace
        )
        check_beforehand(to, license=wanted.license, progress=progress or Progress())
    outcome = work()
    published = publish_as(outcome.out, wanted, progress) if wanted is not None else None
    return Delivered(outcome=outcome, published=published)


def publish_as(out: Path, wanted: Publish, progress: Progress | None) -> Published:
    """Publish a directory as a recipe's section says."""
    return publish(
        out,
        wanted.repo,
        public=wanted.public,
        branch=wanted.branch,
        tag=wanted.tag,
        replace=wanted.replace,
        license=wanted.license,
        progress=progress,
    )

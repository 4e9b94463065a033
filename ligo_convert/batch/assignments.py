"""Turn entries of a manifest into assignments, and into requests for the resources that their plans need.

Input: a manifest. Output: plain data for an engine; a plan that refuses an entry raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from ligo_convert.batch.engine import ResourceRequest
from ligo_convert.batch.job import Assignment, recipe_of
from ligo_convert.batch.manifest import BatchEntry, Manifest
from ligo_convert.conversion.plan import Plan, plan_after, plan_recipe
from ligo_convert.families.registry import family_files
from ligo_convert.growth.operator_file import read_operator
from ligo_convert.recipes.recipe import load_recipe

# Bytes that applying an operator needs besides its largest tensors: the libraries themselves.
LEAST_MEMORY = 2_000_000_000


def assignment_of(manifest: Manifest, entry: BatchEntry, *, device: str) -> Assignment:
    """Return an entry as plain data."""
    return Assignment(
        name=entry.name,
        recipe=None if entry.recipe is None else str(entry.recipe),
        overrides=entry.overrides,
        source=entry.source,
        operator=None if entry.operator is None else str(entry.operator),
        out=None if entry.out is None else str(entry.out),
        publish=entry.publish,
        cache=str(manifest.state / "cache"),
        device=device,
        threads=0,
        family_files=tuple(map(str, family_files())),
    )


class EntryPlanner:
    """Check and plan entries before they start.

    Args:
        manifest: the manifest.
        assignments: by name, for the entries of this shard.
        is_local: True if this machine's memory and disk decide what fits.
    """

    def __init__(self, manifest: Manifest, assignments: Iterable[Assignment], *, is_local: bool) -> None:
        self._manifest, self._is_local = manifest, is_local
        self._assignments = {assignment.name: assignment for assignment in assignments}
        self._source_entry = {name: _source_entry(manifest, name) for name in self._assignments}
        # Plans of entries that other entries grow further: what those will start from.
        self._plans: dict[str, Plan] = {}
        self._checked_operators: set[Path] = set()

    def check_ahead(self, name: str) -> None:
        """Check an entry that still waits for others: its recipe, a stored operator, its place in a chain.

        Raises:
            LigoError: the entry cannot succeed.
        """
        assignment = self._assignments[name]
        if assignment.operator is not None:
            if Path(assignment.operator).is_file():
                self._check_operator(Path(assignment.operator))
            return
        assert assignment.recipe is not None
        recipe = load_recipe(
            Path(assignment.recipe),
            overrides=assignment.overrides,
            source=assignment.source,
            out=assignment.out,
            placed=False,
        )
        source_plan = self._plans.get(self._source_entry[name] or "")
        # The target's config may also be one that another entry still has to write.
        if source_plan is not None and recipe.target.model is None:
            self._keep(name, plan_after(recipe, source_plan, here=self._is_local))

    def request(self, name: str) -> ResourceRequest:
        """Plan an entry whose dependencies are done, and return what it needs.

        Raises:
            LigoError: the plan refuses the entry.
        """
        assignment, resources = self._assignments[name], self._manifest.entries[name].resources
        memory = LEAST_MEMORY
        if assignment.operator is not None:
            self._check_operator(Path(assignment.operator))
        else:
            plan = plan_recipe(recipe_of(assignment), here=self._is_local)
            self._keep(name, plan)
            memory = plan.memory
        gpus = resources.gpus or 0.0
        return ResourceRequest(
            assignment=assignment,
            cpus=resources.cpus or 0.0,
            # Only Ray shares a GPU between entries.
            gpus=math.ceil(gpus) if self._is_local else gpus,
            memory=resources.memory if resources.memory is not None else memory,
        )

    def _check_operator(self, file: Path) -> None:
        if file not in self._checked_operators:
            read_operator(file)
            self._checked_operators.add(file)

    def _keep(self, name: str, plan: Plan) -> None:
        if name in self._source_entry.values():
            self._plans[name] = plan


def _source_entry(manifest: Manifest, name: str) -> str | None:
    """Return the entry that makes the source of this one, or None."""
    entry = manifest.entries[name]
    makers = {str(manifest.entries[other].out): other for other in entry.after}
    return makers.get(entry.source or "")

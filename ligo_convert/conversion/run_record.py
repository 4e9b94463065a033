"""The record of a run: what its provenance and its card are made from, in plain values.

What comes in: the plan, the source, the operator, figures. What goes out: a `provenance.Record`, and the `ConversionResult` that a command prints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.writer import rehash
from ligo_convert.conversion.learn import Learned, warmup_steps
from ligo_convert.conversion.plan import Plan
from ligo_convert.conversion.write import Clock, now
from ligo_convert.environment import versions
from ligo_convert.families.registry import family_source
from ligo_convert.growth.growth_plan import GrowthPlan, drawn_names
from ligo_convert.growth.operator import Operator
from ligo_convert.io.staging import Staging
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.outputs.layout import OPERATOR
from ligo_convert.outputs.provenance import Record


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """What a run ends with; `metrics` as `run --json` prints them, `changed` False where the output was there already, whole."""

    out: Path
    family: str
    label: str
    metrics: Mapping[str, Any]
    changed: bool

    def json(self) -> dict[str, Any]:
        """As `run --json` prints it. A figure that is NaN or infinite is null: JSON has no word for it."""
        return {"out": str(self.out), "family": self.family, "changed": self.changed, **finite(self.metrics)}


def finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_key(recipe_digest: str) -> str:
    """What makes two runs the same: the recipe, the contents it names, the versions."""
    return sha256_of({"recipe": recipe_digest, "versions": versions()})


def filled_recipe(plan: Plan) -> dict[str, Any]:
    """The recipe's public form with what the plan chose where the recipe left it open."""
    recipe: dict[str, Any] = plan.recipe.public()
    recipe["growth"]["operator"]["keying"] = plan.start.growth.keying
    if plan.recipe.fit is not None:
        recipe["fit"]["micro_batch_size"] = plan.micro_batch
        recipe["fit"]["warmup_steps"] = warmup_steps(plan.recipe.fit)
    return recipe


def start_names(start: GrowthPlan) -> list[str]:
    """The starts by name and parameters, enough to do them again: `lemon(embed:768->1024)`."""
    old, new = start.family.sizes(start.source), start.family.sizes(start.target)
    names = [
        f"{start.growth.width}({axis}:{old[axis]}->{new[axis]})" for axis in start.requests if old[axis] != new[axis]
    ]
    return names + [
        f"{start.growth.depth}({axis}:{old[axis]}->{new[axis]})" for axis in start.depths if old[axis] != new[axis]
    ]


def source_record(source: CheckpointReader, digests: Mapping[str, str], *, pretrained: bool) -> dict[str, Any]:
    """What the record says of the source."""
    return {
        "label": "a source trained by this recipe" if pretrained else source.label,
        "revision": source.revision,
        "files": dict(digests),
        "pretrained_here": pretrained,
        "license": source.license,
    }


def operator_record(operator: Operator, staging: Staging, starts: list[str]) -> dict[str, Any]:
    """What the record says of the staged operator."""
    count = {"width": 0, "depth": 0}
    for name, array in operator.arrays():
        if name.endswith((".tail", ".weight")):
            count["width"] += int(array.size)
        elif "/depth/" in name and "{" in name:
            count["depth"] += int(array.size)
    return {
        "digest": rehash(staging.path / OPERATOR),
        "head": operator.head,
        "keying": operator.keying,
        "tie": operator.tie,
        "rewrites": list(operator.rewrites),
        "parameters": count,
        "starts": starts,
    }


def family_source_json(family: str) -> dict[str, str] | None:
    """The record's entry for a family that is not built in; None for a built-in one."""
    source = family_source(family)
    return None if source is None else source.json()


def run_record(
    plan: Plan,
    source: CheckpointReader,
    digests: Mapping[str, str],
    recipe_digest: str,
    learned: Learned,
    metrics: Mapping[str, Any],
    staging: Staging,
    clock: Clock,
) -> Record:
    """The record of a recipe that was carried out."""
    recipe = plan.recipe
    pretrained = recipe.source.pretrain is not None
    return Record(
        family=plan.family.name,
        family_source=family_source_json(plan.family.name),
        recipe=filled_recipe(plan),
        recipe_digest=recipe_digest,
        key=run_key(recipe_digest),
        source=source_record(source, digests, pretrained=pretrained),
        data=learned.data,
        operator=operator_record(learned.operator, staging, start_names(plan.start)),
        source_config=plan.start.source,
        target_config=plan.start.target,
        metrics=metrics,
        versions=versions(),
        drawn=drawn_names(plan.start),
        nonfinite_allowed=recipe.source.allow_nonfinite,
        started=clock.started,
        finished=now(),
    )

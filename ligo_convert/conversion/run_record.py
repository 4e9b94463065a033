"""Build the record of a run, from which its provenance and model card are written.

Input: the plan, the source, the operator, the figures.
Output: a `provenance.Record` of plain values, and the `ConversionResult` that a command prints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.conversion.learn import Learned
from ligo_convert.conversion.plan import Plan
from ligo_convert.conversion.write import now
from ligo_convert.environment import versions
from ligo_convert.families.registry import family_source
from ligo_convert.growth.growth_plan import GrowthPlan, drawn_names
from ligo_convert.growth.operator import Operator
from ligo_convert.io.staging import Staging
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.outputs.html import pairs_html
from ligo_convert.outputs.layout import OPERATOR
from ligo_convert.outputs.optimizer_state import TrainingFiles
from ligo_convert.outputs.provenance import Record
from ligo_convert.units import amount


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """The result of a run.

    Attributes:
        label: the source's Hub id or folder name, for messages.
        metrics: `RunMetrics.json()`, of this run or of the run that wrote the output.
        changed: False where the output was already complete.
    """

    out: Path
    family: str
    label: str
    metrics: Mapping[str, Any]
    changed: bool

    def json(self) -> dict[str, Any]:
        """Return the object that `run --json` prints. NaN and infinity become null: JSON cannot spell them."""
        return {"out": str(self.out), "family": self.family, "changed": self.changed, **finite(self.metrics)}

    def _repr_html_(self) -> str:
        """Show the figures in a notebook."""
        preserved, losses, fit = (self.metrics.get(key) for key in ("preservation", "loss", "fit"))
        sizes = self.metrics["parameters"]
        return pairs_html(
            f"{self.label}, {'grown' if preserved else 'trained'}",
            {
                "output": self.out,
                "family": self.family,
                "parameters": f"{amount(sizes['source'])} to {amount(sizes['target'])}",
                "preservation": preserved and (preserved["verdict"] or f"not measured: {preserved['unmeasured']}"),
                **{f"loss, {name.replace('_', ' ')}": value for name, value in (losses or {}).items()},
                "fit": fit and f"best step {fit['best_step']} of {fit['steps']}",
                "written": "now" if self.changed else "by an earlier run",
            },
        )


def finite(value: Any) -> Any:
    """Return plain JSON values with NaN and infinity replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_key(recipe_digest: str) -> str:
    """Return the key that two runs share if recipe, named contents and library versions are the same."""
    return sha256_of({"recipe": recipe_digest, "versions": versions()})


def filled_recipe(plan: Plan) -> dict[str, Any]:
    """Return the recipe's public form, with the plan's choices where the recipe leaves them open."""
    recipe: dict[str, Any] = plan.recipe.public()
    recipe["growth"]["operator"]["keying"] = plan.start.growth.keying
    if plan.fit is not None:
        recipe["fit"]["micro_batch_size"] = plan.micro_batch
        recipe["fit"]["threads"] = plan.threads
        recipe["fit"]["warmup_steps"] = plan.fit.warmup_steps
    return recipe


def start_names(start: GrowthPlan) -> list[str]:
    """Return the growth methods with the axes they grow, such as `lemon(embed:768->1024)`."""
    old, new = start.family.sizes(start.source), start.family.sizes(start.target)
    names = [
        f"{start.growth.width}({axis}:{old[axis]}->{new[axis]})" for axis in start.requests if old[axis] != new[axis]
    ]
    return names + [
        f"{start.growth.depth}({axis}:{old[axis]}->{new[axis]})" for axis in start.depths if old[axis] != new[axis]
    ]


def source_record(source: CheckpointReader, digests: Mapping[str, str], *, pretrained: bool) -> dict[str, Any]:
    """Return the record's entry for the source."""
    return {
        "label": "a source trained by this recipe" if pretrained else source.label,
        "revision": source.revision,
        "files": dict(digests),
        "pretrained_here": pretrained,
        "license": source.license,
    }


def operator_record(operator: Operator, staging: Staging, starts: list[str]) -> dict[str, Any]:
    """Return the record's entry for the staged operator."""
    count = {"width": 0, "depth": 0}
    for name, array in operator.arrays():
        if name.endswith((".tail", ".weight")):
            count["width"] += int(array.size)
        elif "/depth/" in name and "{" in name:
            count["depth"] += int(array.size)
    return {
        "digest": staging.digest(OPERATOR),
        "head": operator.head,
        "keying": operator.keying,
        "tie": operator.tie,
        "rewrites": list(operator.rewrites),
        "parted": {axis: int((origin >= 0).sum()) for axis, origin in operator.parted.items()},
        "parameters": count,
        "starts": starts,
    }


def family_source_json(family: str) -> dict[str, str] | None:
    """Return the record's entry for a family that is not built in; None for a built-in one."""
    source = family_source(family)
    return None if source is None else source.json()


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What identifies one run.

    Attributes:
        digests: SHA-256 of the source's files, by name.
        recipe_digest: SHA-256 of the recipe and the contents that it names.
        key: key of the run, see `run_key`.
        started: UTC, ISO 8601, whole seconds.
    """

    digests: Mapping[str, str]
    recipe_digest: str
    key: str
    started: str


def run_record(
    plan: Plan,
    source: CheckpointReader,
    learned: Learned,
    facts: RunFacts,
    staging: Staging,
    *,
    training: TrainingFiles | None = None,
) -> Record:
    """Return the record of a recipe that was carried out, up to the moment of the call."""
    recipe = plan.recipe
    return Record(
        family=plan.family.name,
        family_source=family_source_json(plan.family.name),
        recipe=filled_recipe(plan),
        recipe_digest=facts.recipe_digest,
        key=facts.key,
        source=source_record(source, facts.digests, pretrained=plan.pretrain is not None),
        data=learned.data,
        operator=operator_record(learned.operator, staging, start_names(plan.start)),
        source_config=plan.start.source,
        target_config=plan.start.target,
        metrics=learned.metrics.json(),
        versions=versions(),
        drawn=drawn_names(plan.start),
        nonfinite_allowed=recipe.source.allow_nonfinite,
        started=facts.started,
        finished=now(),
        training=None if training is None else {"policy": recipe.growth.state, "files": dict(training.sha256)},
    )

"""The plan: all that headers and configs can tell, and every refusal, before a weight is read.

What comes in: a recipe and, where it is at hand, the source's headers. What goes out: a `Plan` of plain values that `convert` carries
out, and that prints. No torch: a plan takes a fraction of a second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import DTYPE_NAMES, TensorSpec
from ligo_convert.checkpoints.writer import ShardPlan, plan_shards
from ligo_convert.conversion.data_checks import check_data_section
from ligo_convert.conversion.memory import choose_micro_batch, estimate_memory, physical_memory
from ligo_convert.conversion.target import family_of_target, left_out_parts, target_changes
from ligo_convert.data.data_source import DataFacts
from ligo_convert.errors import LigoError, MachineError, RecipeError, SourceChanged
from ligo_convert.families.configs import flat_config
from ligo_convert.families.flops import fit_flops, step_flops
from ligo_convert.families.inventory import Inventory, claim_tensors
from ligo_convert.families.registry import find_family
from ligo_convert.families.schema import WITHOUT_LOSS, Family
from ligo_convert.growth.growth_plan import GrowthPlan, GrowthSettings, plan_growth
from ligo_convert.growth.initialize import learned_parameters
from ligo_convert.growth.stream import target_specs
from ligo_convert.hub.licenses import license_to_publish
from ligo_convert.hub.resolve import open_source
from ligo_convert.io.files import check_place, check_room, reporting
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.recipes.schema import MAX_SHARD_BYTES

DEFAULT_KEYING: Final = "shared"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do.

    Attributes:
        label, revision: of the source; the label is a Hub id or a folder's name. at_hand: whether its headers were read.
        inventory: the source's tensors (from config alone where it is not at hand). start: the operator's plan.
        specs, shards: what is written. memory: bytes at the peak, estimated. micro_batch: sequences at a time.
        measures: whether a model is run at all; without it preservation figures are null.
        asked: what the recipe itself changes in the source's config.
    """

    recipe: Recipe
    family: Family
    label: str
    revision: str | None
    at_hand: bool
    inventory: Inventory
    start: GrowthPlan
    specs: tuple[TensorSpec, ...]
    shards: ShardPlan
    data: DataFacts | None
    memory: int
    micro_batch: int
    measures: bool
    warnings: tuple[str, ...]
    asked: Mapping[str, object]

    @property
    def parameters(self) -> dict[str, int]:
        old = self.inventory.family.parameters(self.inventory.rows, self.start.source)
        return {"source": old, "target": sum(spec.elements for spec in self.specs)}

    @property
    def flops(self) -> dict[str, int | None]:
        """Operations of one training step of the target, and of the whole fit."""
        fit = self.recipe.fit
        length = self.family.sequence(self.start.target, fit.sequence_length if fit else 128)
        tokens = fit.batch_size * length if fit else length
        old, new = self.start.source, self.start.target
        return {
            "target_step": step_flops(self.family, new, tokens=tokens, sequence_length=length),
            "fit": fit_flops(
                self.family, old, new, steps=fit.steps if fit else 0, tokens=tokens, sequence_length=length
            ),
        }


def open_planned(recipe: Recipe, *, weights: bool) -> CheckpointReader | None:
    """The recipe's source; None where it is still to be trained, or, for planning, where only its config is known."""
    if recipe.source.model is None:
        return None
    try:
        return open_source(
            recipe.source.model, revision=recipe.source.revision, base=recipe.source_base, weights=weights
        )
    except SourceChanged:
        if weights or recipe.source.config is None:
            raise
        return None


def make_plan(
    recipe: Recipe, source: CheckpointReader | None, *, check_disk: bool = True, runs: bool = True, here: bool = True
) -> Plan:
    """Decide everything that headers and configs decide.

    Args:
        source: as `open_planned` gave it; where None, the recipe's own config stands for it.
        runs: whether the plan is carried out: what a run cannot do without, such as its data, has to be there.
        here: whether it is this machine that carries it out: another's memory and disk are not known.

    Raises:
        RecipeError, SourceError, MachineError: whatever would make the run fail later.
    """
    config, label, warnings = _source_config(recipe, source)
    family = find_family(config, where=f"{label}: config.json")
    inventory = _inventory(family, config, source, label)
    changes, where = target_changes(recipe, family, config)
    target = family.resize(config, changes, where=where)
    family = family_of_target(recipe, inventory)
    growth = GrowthSettings(
        width=recipe.growth.width,
        depth=recipe.growth.depth,
        keying=recipe.growth.operator.keying or DEFAULT_KEYING,
        tie=recipe.growth.operator.tie,
        seed=recipe.growth.seed,
    )
    start = plan_growth(
        family, growth, config, target, asked=changes, where=recipe.where("growth"), source_family=inventory.family
    )
    if recipe.source.pretrain is not None and inventory.family.task in WITHOUT_LOSS:
        raise RecipeError(
            f"source.pretrain: {inventory.family.architecture} has no loss to be trained by",
            where=recipe.where("source", "pretrain", "config"),
            hint=f"leave `architectures` out: a {inventory.family.heads[0].architecture} is trained",
        )
    warnings += left_out_parts(inventory, family)
    dtype = DTYPE_NAMES[recipe.output.dtype] if recipe.output.dtype else None
    specs = target_specs(family, inventory, start.target, dtype=dtype)
    shards = plan_shards(specs, shard_bytes(family, recipe.output.max_shard_size))
    needed = source is not None or (runs and recipe.source.pretrain is not None)
    data = check_data_section(recipe, family, source, start, warnings, needed=needed)
    if source is not None:
        check_apart(Path(recipe.output.dir), source, where=recipe.where("output", "dir"))
    measures = recipe.fit is not None or not start.copies_only
    micro_batch = choose_micro_batch(recipe, family, start)
    memory = estimate_memory(recipe, family, inventory, start, specs, measures=measures, micro_batch=micro_batch)
    installed = physical_memory()
    if here and memory > installed:
        if recipe.fit is not None:
            raise MachineError(
                "the fit needs more memory than this machine has",
                where=recipe.path.name,
                expected=f"{memory / 1e9:.1f} GB",
                found=f"{installed / 1e9:.1f} GB",
                hint="lower fit.micro_batch_size, or leave `fit` out: growing alone streams",
            )
        measures = False
        warnings.append("too little memory to run source and target: preservation is not measured")
        memory = estimate_memory(recipe, family, inventory, start, specs, measures=False, micro_batch=micro_batch)
    if here and check_disk:
        check_room(Path(recipe.output.dir), shards.nbytes + 16_000_000)
    if recipe.publish is not None and (source is not None or recipe.source.pretrain is not None):
        license_to_publish(
            stated=recipe.publish.license,
            inherited=source.license if source is not None else None,
            where=recipe.where("publish"),
        )
    return Plan(
        recipe=recipe,
        family=family,
        label=label,
        revision=source.revision if source else None,
        at_hand=source is not None,
        inventory=inventory,
        start=start,
        specs=specs,
        shards=shards,
        data=data,
        memory=memory,
        micro_batch=micro_batch,
        measures=measures,
        warnings=tuple(warnings),
        asked=changes,
    )


def another_start(plan: Plan, *, width: str, depth: str, tie: str | None, seed: int) -> GrowthPlan:
    """The start of another pair of methods for the same source and target. Raises RecipeError as `plan_growth`."""
    tied = tie == "paper"
    keying = "source" if tied else plan.recipe.growth.operator.keying or DEFAULT_KEYING
    growth = GrowthSettings(width=width, depth=depth, keying=keying, tie=tie, seed=seed)
    inventory = plan.inventory
    target = inventory.family.resize(plan.start.source, plan.asked)
    return plan_growth(
        plan.family,
        growth,
        plan.start.source,
        target,
        asked=plan.asked,
        where=plan.recipe.where("growth"),
        source_family=inventory.family,
    )


def shard_bytes(family: Family, asked: int) -> int:
    """The most bytes of a file of weights. timm reads one file alone, whatever its size."""
    return MAX_SHARD_BYTES if family.library == "timm" else asked


def _source_config(recipe: Recipe, source: CheckpointReader | None) -> tuple[dict[str, object], str, list[str]]:
    stated = recipe.source.config
    if source is None:
        pretrain = recipe.source.pretrain
        if pretrain is not None:
            return (
                flat_config(pretrain.config, where=recipe.where("source", "pretrain", "config")),
                "pretrained source",
                [],
            )
        if stated is None:
            raise LigoError("no source and no config of one")
        label = recipe.source.model or "source.config"
        return (
            flat_config(stated, where=recipe.where("source", "config")),
            label,
            [f"{label} is not at hand: planned from source.config"],
        )
    if stated is not None:
        family = find_family(source.config, where=f"{source.label}: config.json")
        real = family.complete(source.config)
        for key, value in flat_config(stated, where=recipe.where("source", "config")).items():
            # How images are prepared decides no size.
            if key != "pretrained_cfg" and real.get(key) != value:
                raise RecipeError(
                    f"source.config.{key} is not what {source.label} has",
                    where=recipe.where("source", "config", key),
                    expected=real.get(key),
                    found=value,
                )
    return dict(source.config), source.label, list(source.warnings)


def _inventory(family: Family, config: dict[str, object], source: CheckpointReader | None, label: str) -> Inventory:
    if source is not None:
        return claim_tensors(
            family, config, {name: tensor.spec for name, tensor in source.tensors.items()}, label=label
        )
    family.check_config(config, where=label)
    # Which class it is, the config may say; a source that is trained here is of the usual one.
    named = config.get("architectures")
    chosen = family.for_architecture(named[0] if isinstance(named, list) and named else None)
    rows = chosen.rows_for(config)
    specs = {spec.name: spec for _, _, spec in chosen.tensors_of(rows, config, dtype="F32")}
    return claim_tensors(family, config, specs, label=label)


def plan_recipe(recipe: Recipe, *, here: bool = True) -> Plan:
    """Plan a recipe from headers alone. `here`: as of `make_plan`."""
    # Where it is finished nothing more is written.
    check_disk = not check_output(Path(recipe.output.dir))
    source = open_planned(recipe, weights=False)
    if source is None:
        # From a config alone a recipe is looked at, not run here.
        return make_plan(recipe, None, check_disk=check_disk, runs=False, here=here)
    with source:
        return make_plan(recipe, source, check_disk=check_disk, here=here)


def plan_after(recipe: Recipe, first: Plan, *, here: bool = True) -> Plan:
    """Plan a recipe whose source another plan will make, from the config that it will have. `here`: as of `make_plan`."""
    config = dict(first.start.target)
    if first.family.library != "timm":
        config["architectures"] = [first.family.architecture]
    source = recipe.source.model_copy(update={"config": config})
    # How many bytes its tensors take is known when they are there.
    return make_plan(recipe.model_copy(update={"source": source}), None, check_disk=False, runs=False, here=here)


def check_output(out: Path) -> bool:
    """Refuse an output place that a run could not take. Returns whether what is there may be the finished output itself."""
    with reporting(out, "look"):
        finished = (out / "ligo" / "provenance.json").is_file()
    if not finished:
        check_place(out)
    return finished


def check_apart(out: Path, source: CheckpointReader, *, where: str) -> None:
    """Refuse an output inside the source: a conversion must not write to what it reads. Raises RecipeError."""
    inside, root = (Path(os.path.realpath(path)) for path in (out, source.root))
    if inside.is_relative_to(root):
        raise RecipeError(
            f"the output directory lies inside the source, {source.label}",
            where=where,
            found=out,
            hint="name a directory elsewhere",
        )


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as one JSON object."""
    old, new = plan.family.sizes(plan.start.source), plan.family.sizes(plan.start.target)
    return {
        "family": plan.family.name,
        "architecture": plan.family.architecture,
        "source": {"label": plan.label, "revision": plan.revision, "at_hand": plan.at_hand},
        "axes": {axis: {"source": old[axis], "target": new[axis]} for axis in plan.family.axes},
        "parameters": plan.parameters,
        "growth": {
            "width": plan.start.growth.width,
            "depth": plan.start.growth.depth,
            "keying": plan.start.growth.keying,
            "tie": plan.start.growth.tie,
            "learned_parameters": learned_parameters(plan.start) if plan.recipe.fit else 0,
        },
        "preservation": {"verdict": plan.start.verdict, "reasons": list(plan.start.reasons)},
        "config_edits": config_edits(plan),
        "files": [{"name": shard.filename, "nbytes": shard.nbytes} for shard in plan.shards.shards],
        "nbytes": plan.shards.nbytes,
        "memory_bytes": plan.memory,
        "micro_batch_size": plan.micro_batch,
        "flops": plan.flops,
        "ignored": list(plan.inventory.ignored),
        "drawn_rows": list(plan.start.drawn_rows),
        "warnings": list(plan.warnings),
    }


def config_edits(plan: Plan) -> dict[str, dict[str, object]]:
    """Every key of the config that changes: key -> source's and target's value."""
    old, new = plan.family.complete(plan.start.source), plan.family.complete(plan.start.target)
    return {key: {"source": old.get(key), "target": new[key]} for key in new if new[key] != old.get(key)}


def stream_width(plan: Plan, config: Mapping[str, object]) -> int:
    return plan.family.sizes(config)[plan.family.norm.stream]

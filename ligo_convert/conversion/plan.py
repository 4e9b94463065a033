"""Plan a run from headers and configs, and refuse what would fail, before any weight is read.

Input: a recipe and, where the source is available, the headers of its files.
Output: a `Plan` of plain values, which `plan` prints and `convert` carries out. Planning does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ligo_convert.checkpoints.files import PROCESSOR
from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import DTYPE_NAMES, TensorSpec
from ligo_convert.checkpoints.writer import ShardPlan, plan_shards
from ligo_convert.conversion.data_checks import check_data_section
from ligo_convert.conversion.fit_plan import FitPlan, PretrainPlan, plan_fit, plan_pretraining
from ligo_convert.conversion.memory import (
    MARGIN,
    Method,
    ModelLoad,
    choose_micro_batch,
    estimate_memory,
    measuring_reads,
    physical_memory,
    state_memory,
)
from ligo_convert.conversion.source_checks import refuse_other_sources
from ligo_convert.conversion.target import family_of_target, left_out_parts, target_changes
from ligo_convert.environment import require_threads
from ligo_convert.errors import LigoError, MachineError, RecipeError, SourceChanged
from ligo_convert.families.configs import flat_config
from ligo_convert.families.flops import fit_flops, step_flops
from ligo_convert.families.inventory import Inventory, claim_tensors
from ligo_convert.families.registry import find_family
from ligo_convert.families.schema import WITHOUT_LOSS, Family
from ligo_convert.growth.growth_plan import GrowthPlan, GrowthSettings, plan_growth
from ligo_convert.growth.initialize import learned_parameters, symmetry
from ligo_convert.growth.stream import target_specs
from ligo_convert.growth.twins import Symmetry
from ligo_convert.hub.licenses import license_to_publish
from ligo_convert.hub.resolve import open_source
from ligo_convert.io.files import check_place, check_room, reporting
from ligo_convert.io.strict_json import strict_json
from ligo_convert.outputs.advice import Advice, advise
from ligo_convert.outputs.carried import CarriedFiles, carried_files, widths_of
from ligo_convert.outputs.html import pairs_html
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.recipes.schema import MAX_SHARD_BYTES, SEQUENCE_LENGTH
from ligo_convert.training.threads import default_threads
from ligo_convert.units import amount

DEFAULT_KEYING: Final = "shared"

# Bytes reserved for everything an output holds besides weights.
SIDE_FILE_BYTES = 16_000_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do.

    Attributes:
        family: the family, narrowed to the target's class.
        label: the source's Hub id or folder name, for messages.
        revision: the source's commit on the Hub; None for a directory.
        at_hand: whether the headers of the source were read.
        inventory: the source's tensors; derived from its config where its headers were not read.
        start: the plan of the growth operator.
        specs: the target's tensors.
        shards: the weight files to write.
        fit: the fit of the operator; None where the recipe has no `fit` section.
        pretrain: the training of the source; None where the source exists.
        memory: estimated peak resident memory, in bytes.
        read_bytes: bytes of the source that measuring preservation reads.
        micro_batch: sequences or images of one forward pass.
        measuring: how models are run to measure preservation; None where none is run, and the figures are null.
        carried: what becomes of the source's files beside the weights; None where the source is not at hand.
        processor: the source's preprocessor_config.json, for a family that reads images; None where it has none.
        asked: config keys that the recipe changes, with their new values.
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
    fit: FitPlan | None
    pretrain: PretrainPlan | None
    memory: int
    read_bytes: int
    micro_batch: int
    measuring: Method | None
    carried: CarriedFiles | None
    processor: Mapping[str, object] | None
    warnings: tuple[str, ...]
    asked: Mapping[str, object]

    @property
    def required_fit(self) -> FitPlan:
        """The plan of the fit, for work that needs one. Raises LigoError where the recipe has no `fit` section."""
        if self.fit is None:
            raise LigoError("this needs a `fit` section in the recipe", where=self.recipe.path.name)
        return self.fit

    @property
    def advice(self) -> list[Advice]:
        """How to train the grown model, as far as it was measured."""
        return advise(
            self.family,
            self.parameters["target"],
            source_trained_here=self.pretrain is not None,
            carries_state=self.recipe.growth.state is not None,
        )

    def _repr_html_(self) -> str:
        """Show what decides whether to run it in a notebook."""
        old, new = self.family.sizes(self.start.source), self.family.sizes(self.start.target)
        fit, sizes = self.fit, self.parameters
        return pairs_html(
            f"Plan for {self.label}",
            {
                "family": self.family.name,
                "sizes": ", ".join(f"{axis} {old[axis]} to {size}" for axis, size in new.items() if size != old[axis]),
                "method": f"width {self.start.growth.width}, depth {self.start.growth.depth}",
                "preservation": self.start.verdict,
                "parameters": f"{amount(sizes['source'])} to {amount(sizes['target'])}",
                "fit": fit and f"{fit.settings.steps} steps",
                "disk": f"{self.shards.nbytes / 1e9:.2f} GB",
                "memory": f"about {self.memory / 1e9:.2f} GB",
            },
            notes=[*self.start.reasons, *(f"warning: {warning}" for warning in self.warnings)],
        )

    @property
    def fits(self) -> bool:
        """Whether an operator is fitted. A training has a `fit` only for its data and sizes."""
        return self.fit is not None and not self.recipe.trains

    @property
    def uses_library(self) -> bool:
        """Whether the run needs the real library: it measures a model, or computes tensors. Copies alone need none."""
        return self.measures or not self.start.copies_only

    @property
    def parameters(self) -> dict[str, int]:
        """Parameter counts of source and target; a tied matrix counts once."""
        old = self.inventory.family.parameters(self.inventory.rows, self.start.source)
        return {"source": old, "target": sum(spec.elements for spec in self.specs)}

    @property
    def measures(self) -> bool:
        """Whether a model is run; if not, the preservation figures are null."""
        return self.measuring is not None

    @property
    def threads(self) -> int:
        """CPU threads that models are trained and measured with. They follow from the recipe, since they decide the last bits."""
        asked = self.recipe.fit.threads if self.recipe.fit is not None else None
        return asked or default_threads(self.flops["target_step"] or 0)

    @property
    def flops(self) -> dict[str, int | None]:
        """FLOPs of one training step of the target, of the whole fit, and of training the source where the recipe trains it."""
        fit, old, new = self.fit, self.start.source, self.start.target
        length = fit.positions if fit else self.family.sequence(new, SEQUENCE_LENGTH)
        tokens, steps = (fit.tokens_per_step, fit.settings.steps if self.fits else 0) if fit else (length, 0)
        found: dict[str, int | None] = {
            "target_step": step_flops(self.family, new, tokens=tokens, sequence_length=length),
            "fit": fit_flops(self.family, old, new, steps=steps, tokens=tokens, sequence_length=length),
        }
        trained = self.recipe.source.pretrain
        if trained is not None:
            family, length = self.inventory.family, self.inventory.family.sequence(old, trained.sequence_length)
            step = step_flops(family, old, tokens=trained.batch_size * length, sequence_length=length)
            found["pretrain"] = trained.steps * step
        return found


def _processor(source: CheckpointReader) -> dict[str, object] | None:
    """Return the source's preprocessor_config.json; None where it has none. Raises SourceError for one that is no JSON."""
    if PROCESSOR not in source.side_files:
        return None
    return strict_json(source.file_bytes(PROCESSOR), label=f"{source.label}/{PROCESSOR}")


def open_planned(recipe: Recipe, *, weights: bool) -> CheckpointReader | None:
    """Open the recipe's source; None where the recipe trains it, or where a plan has only its config."""
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
        source: the source from `open_planned`; None plans from the config in the recipe.
        check_disk: whether to require free disk space for the output.
        runs: whether the plan is carried out, so that training data must exist.
        here: whether this machine carries it out; memory and disk of another machine are unknown.

    Raises:
        RecipeError, SourceError, MachineError: whatever would make the run fail later.
    """
    refuse_other_sources(
        None if recipe.trains else recipe.growth.state,
        trained=recipe.source.pretrain is not None,
        hub=source is not None and source.revision is not None,
        where=recipe.where("growth", "state"),
    )
    _require_trained_source(recipe)
    config, label, warnings = _source_config(recipe, source)
    inventory, family, start, asked = _plan_growth(recipe, source, config, label)
    warnings += left_out_parts(inventory, family)
    dtype = DTYPE_NAMES[recipe.output.dtype] if recipe.output.dtype else None
    specs = target_specs(family, inventory, start.target, dtype=dtype)
    shards = plan_shards(specs, shard_bytes(family, recipe.output.max_shard_size))
    needed = source is not None or (runs and recipe.source.pretrain is not None)
    data = check_data_section(recipe, family, source, start, warnings, needed=needed)
    fit = plan_fit(recipe, family, start, data)
    if source is not None:
        check_apart(Path(recipe.output.dir), source, where=recipe.where("output", "dir"))
    load = ModelLoad(
        family=family,
        inventory=inventory,
        start=start,
        specs=specs,
        micro_batch=choose_micro_batch(recipe, family, start),
        fit=fit,
    )
    carried = plan_carried(start, source) if source is not None else None
    warnings += carried.warnings() if carried is not None else []
    measuring, memory = _decide_measuring(recipe, load, warnings, here=here)
    if recipe.growth.state is not None and not recipe.trains:
        memory = max(memory, _memory_of_state(recipe, load, here=here))
    if here and check_disk:
        beside = source.model_files.nbytes if source is not None else 0
        check_room(Path(recipe.output.dir), shards.nbytes + SIDE_FILE_BYTES + beside)
    if recipe.publish is not None and (source is not None or recipe.source.pretrain is not None):
        license_to_publish(
            stated=recipe.publish.license,
            inherited=source.license if source is not None else None,
            where=recipe.where("publish"),
        )
    made = Plan(
        recipe=recipe,
        family=family,
        label=label,
        revision=source.revision if source else None,
        at_hand=source is not None,
        inventory=inventory,
        start=start,
        specs=specs,
        shards=shards,
        fit=fit,
        pretrain=plan_pretraining(recipe, fit),
        memory=memory,
        read_bytes=measuring_reads(load, measuring),
        micro_batch=load.micro_batch,
        measuring=measuring,
        carried=carried,
        processor=_processor(source) if source is not None and family.reads == "images" else None,
        warnings=tuple(warnings),
        asked=asked,
    )
    if fit is not None and here and runs:
        require_threads(made.threads)
    return made


def _require_trained_source(recipe: Recipe) -> None:
    """Raise RecipeError for a source that is not trained at all, unless a training grows it on the way."""
    pretrain = recipe.source.pretrain
    if pretrain is not None and not pretrain.steps and not (recipe.trains and recipe.growth.schedule):
        raise RecipeError(
            "source.pretrain.steps: for how many steps the source is trained is missing",
            where=recipe.where("source", "pretrain"),
            expected="steps of training, of 1 or more",
            hint="set it; or use `ligo-convert train` with growth.schedule, which begins with drawn weights",
        )


def plan_carried(start: GrowthPlan, source: CheckpointReader) -> CarriedFiles:
    """Decide what becomes of the source's files beside the weights."""
    return carried_files(source, widths_of(start.family, start.source, start.target, start.rewrites, start.terms))


def _plan_growth(
    recipe: Recipe, source: CheckpointReader | None, config: dict[str, object], label: str
) -> tuple[Inventory, Family, GrowthPlan, dict[str, object]]:
    """Return the source's tensors, the target's family, the growth plan, and the config keys that the recipe changes."""
    family = find_family(config, where=f"{label}: config.json", names=source.tensors if source is not None else ())
    inventory = inventory_of(family, config, source, label)
    changes, where = target_changes(recipe, family, config)
    target = family.resize(config, changes, where=where)
    family = family_of_target(recipe, inventory, target)
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
            f"source.pretrain: {inventory.family.architecture} has no training loss",
            where=recipe.where("source", "pretrain", "config"),
            hint=f"remove `architectures` to train a {inventory.family.heads[0].architecture}",
        )
    return inventory, family, start, changes


def _decide_measuring(recipe: Recipe, load: ModelLoad, warnings: list[str], *, here: bool) -> tuple[Method | None, int]:
    """Return how the run measures models, None where it runs none, and its peak memory in bytes.

    Raises:
        MachineError: a fit needs more memory than this machine has. Growing alone streams its models where they do not fit.
    """
    if load.fit is None and load.start.copies_only:
        return None, estimate_memory(load, measuring=None)
    memory = estimate_memory(load, measuring="in memory")
    installed = physical_memory()
    # What a training needs is checked on its own: it fits no operator.
    if not here or recipe.trains:
        return "in memory", memory
    if load.fit is not None:
        if memory > installed:
            raise MachineError(
                "the fit needs more memory than this machine has",
                where=recipe.path.name,
                expected=f"{memory / 1e9:.1f} GB",
                found=f"{installed / 1e9:.1f} GB",
                hint="lower fit.micro_batch_size, or remove the `fit` section: growing alone streams",
            )
        return "in memory", memory
    if memory * MARGIN <= installed:
        return "in memory", memory
    streamed = estimate_memory(load, measuring="streamed")
    if streamed <= installed:
        return "streamed", streamed
    warnings.append(
        "too little memory to run source and target, even one weight at a time: preservation is not measured"
    )
    return None, estimate_memory(load, measuring=None)


def _memory_of_state(recipe: Recipe, load: ModelLoad, *, here: bool) -> int:
    """Return the memory that growing the optimizer's state takes. Raises MachineError if it is more than this machine has."""
    needed, installed = state_memory(load), physical_memory()
    if here and needed > installed:
        raise MachineError(
            "growing the optimizer's state needs more memory than this machine has",
            where=recipe.where("growth", "state"),
            expected=f"{needed / 1e9:.1f} GB",
            found=f"{installed / 1e9:.1f} GB",
            hint="grow the weights alone, without growth.state and --with-optimizer: they are streamed",
        )
    return needed


def another_start(plan: Plan, *, width: str, depth: str, tie: str | None, seed: int) -> GrowthPlan:
    """Plan the same growth with another pair of methods. Raises RecipeError as `plan_growth` does."""
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
    """Return the largest size of a weight file, in bytes. timm reads only unsharded weights."""
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
            raise LigoError("the recipe names neither a source nor its config")
        label = recipe.source.model or "source.config"
        return (
            flat_config(stated, where=recipe.where("source", "config")),
            label,
            [f"{label} is not available here: planned from source.config"],
        )
    if stated is not None:
        family = find_family(source.config, where=f"{source.label}: config.json", names=source.tensors)
        real = family.complete(source.config)
        for key, value in flat_config(stated, where=recipe.where("source", "config")).items():
            # Image preprocessing does not affect any size.
            if key != "pretrained_cfg" and real.get(key) != value:
                raise RecipeError(
                    f"source.config.{key} differs from the config of {source.label}",
                    where=recipe.where("source", "config", key),
                    expected=real.get(key),
                    found=value,
                )
    return dict(source.config), source.label, list(source.warnings)


def inventory_of(family: Family, config: dict[str, object], source: CheckpointReader | None, label: str) -> Inventory:
    if source is not None:
        return claim_tensors(
            family, config, {name: tensor.spec for name, tensor in source.tensors.items()}, label=label
        )
    family.check_config(config, where=label)
    # A config without `architectures` gets the family's default class.
    named = config.get("architectures")
    chosen = family.for_architecture(named[0] if isinstance(named, list) and named else None).for_config(config)
    rows = chosen.rows_for(config)
    specs = {spec.name: spec for _, _, spec in chosen.tensors_of(rows, config, dtype="F32")}
    return claim_tensors(family, config, specs, label=label)


def plan_recipe(recipe: Recipe, *, here: bool = True) -> Plan:
    """Plan a recipe from headers alone. `here`: see `make_plan`."""
    # A finished output needs no more disk space.
    check_disk = not check_output(Path(recipe.output.dir))
    source = open_planned(recipe, weights=False)
    if source is None:
        # A plan from a config alone is not carried out.
        return make_plan(recipe, None, check_disk=check_disk, runs=False, here=here)
    with source:
        return make_plan(recipe, source, check_disk=check_disk, here=here)


def plan_after(recipe: Recipe, first: Plan, *, here: bool = True) -> Plan:
    """Plan a recipe on the target of another plan, from that target's config. `here`: see `make_plan`."""
    config = dict(first.start.target)
    if first.family.library != "timm":
        config["architectures"] = [first.family.architecture]
    source = recipe.source.model_copy(update={"config": config})
    # The disk check waits until the source exists: its dtypes are not known yet.
    return make_plan(recipe.model_copy(update={"source": source}), None, check_disk=False, runs=False, here=here)


def check_output(out: Path) -> bool:
    """Require that the output directory can be written. Return whether it already holds a finished output."""
    with reporting(out, "look"):
        finished = (out / "ligo" / "provenance.json").is_file()
    if not finished:
        check_place(out)
    return finished


def check_apart(out: Path, source: CheckpointReader, *, where: str) -> None:
    """Require that the output directory is outside the source. Raises RecipeError."""
    inside, root = (Path(os.path.realpath(path)) for path in (out, source.root))
    if inside.is_relative_to(root):
        raise RecipeError(
            f"the output directory lies inside the source, {source.label}",
            where=where,
            found=out,
            hint="choose a directory outside the source",
        )


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as one JSON object."""
    old, new = plan.family.sizes(plan.start.source), plan.family.sizes(plan.start.target)
    return {
        "family": plan.family.name,
        "architecture": plan.family.architecture,
        "source": {"label": plan.label, "revision": plan.revision, "at_hand": plan.at_hand},
        "axes": {axis: {"source": old[axis], "target": new[axis]} for axis in plan.family.class_axes},
        "parameters": plan.parameters,
        "growth": {
            "width": plan.start.growth.width,
            "depth": plan.start.growth.depth,
            "keying": plan.start.growth.keying,
            "tie": plan.start.growth.tie,
            "learned_parameters": learned_parameters(plan.start) if plan.fits else 0,
        },
        "preservation": {
            "verdict": plan.start.verdict,
            "reasons": list(plan.start.reasons),
            "method": plan.measuring,
            "read_bytes": plan.read_bytes,
        },
        "symmetry": symmetry_json(symmetry(plan.start)),
        "config_edits": config_edits(plan),
        "files": [{"name": shard.filename, "nbytes": shard.nbytes} for shard in plan.shards.shards],
        "side_files": plan.carried.json() if plan.carried is not None else None,
        "nbytes": plan.shards.nbytes,
        "memory_bytes": plan.memory,
        "micro_batch_size": plan.micro_batch,
        "threads": plan.threads,
        "flops": plan.flops,
        "ignored": list(plan.inventory.ignored),
        "drawn_rows": list(plan.start.drawn_rows),
        "advice": [asdict(one) for one in plan.advice],
        "warnings": list(plan.warnings),
    }


def symmetry_json(found: Symmetry) -> dict[str, Any]:
    """Return the entries that training cannot use as they are, by axis: their number and the size of the axis."""

    def counted(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
        return {axis: {"entries": count, "of": found.sizes[axis]} for axis, count in counts.items()}

    return {
        "twins": counted(found.twins),
        "dead": counted(found.dead),
        "steep": counted(found.steep),
        "parted": counted(found.parted),
        "silent_layers": {axis: list(layers) for axis, layers in found.layers.items()},
    }


def config_edits(plan: Plan) -> dict[str, dict[str, object]]:
    """Return every config key that changes, with the source's and the target's value."""
    old, new = plan.family.complete(plan.start.source), plan.family.complete(plan.start.target)
    return {key: {"source": old.get(key), "target": new[key]} for key in new if new[key] != old.get(key)}


def stream_width(plan: Plan, config: Mapping[str, object]) -> int:
    """Return the width of the residual stream of `config`."""
    return plan.family.sizes(config)[plan.family.norm.stream]

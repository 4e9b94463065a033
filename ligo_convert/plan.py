"""The plan: all that headers and configs can tell, and every refusal, before a weight is read.

What comes in: a recipe and, where it is at hand, the source's headers. What goes out: a `Plan` of plain values that `convert` carries
out, and that prints. No torch: a plan takes a fraction of a second.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ligo_convert.axes import size_keys
from ligo_convert.configs import flat_config
from ligo_convert.corpus import check_data
from ligo_convert.errors import (
    DataMissing,
    LigoError,
    MachineError,
    MissingExtra,
    RecipeError,
    SourceChanged,
    SourceError,
)
from ligo_convert.families import FAMILIES
from ligo_convert.family import WITHOUT_LOSS, Family, Inventory
from ligo_convert.flops import fit_flops, step_flops
from ligo_convert.fs import check_place, check_room, reporting
from ligo_convert.image_files import DataFacts, check_classes, class_folders
from ligo_convert.initial import learned_parameters
from ligo_convert.licensing import license_to_publish
from ligo_convert.recipe import Recipe
from ligo_convert.recipe_sections import MAX_SHARD_BYTES
from ligo_convert.source import Source, open_source, read_config
from ligo_convert.start import Growth, Start, plan_start
from ligo_convert.stream import target_specs
from ligo_convert.tensors import DTYPE_NAMES, TensorSpec
from ligo_convert.tokenization import check_tokenizer
from ligo_convert.writer import ShardPlan, plan_shards

# Resident memory of a process that has imported what a run needs, before it holds a tensor.
BASE_BYTES = 850_000_000
COPY_BASE_BYTES = 120_000_000
# What activations of one micro batch may take; micro batches are chosen by it.
ACTIVATION_BYTES = 1_500_000_000
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
    start: Start
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


def find_family(config: Mapping[str, object], *, where: str) -> Family:
    """The family of a config. Raises SourceError naming what is supported."""
    found = config.get("model_type")
    for family in FAMILIES.values():
        if family.model_type == found:
            return family
    names = ", ".join(sorted(family.model_type for family in FAMILIES.values()))
    near = difflib.get_close_matches(str(found), [family.model_type for family in FAMILIES.values()], n=1)
    raise SourceError(
        f"model_type {found!r} is not supported" if found else "config.json names no model_type",
        where=where,
        expected=f"one of: {names}",
        hint=f"did you mean {near[0]}?" if near else "docs/adding-a-family.md says how a family is added",
    )


def open_planned(recipe: Recipe, *, weights: bool) -> Source | None:
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
    recipe: Recipe, source: Source | None, *, check_disk: bool = True, runs: bool = True, here: bool = True
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
    changes, where = _changes(recipe, family, config)
    target = family.resize(config, changes, where=where)
    family = _target_family(recipe, inventory)
    growth = Growth(
        width=recipe.growth.width,
        depth=recipe.growth.depth,
        keying=recipe.growth.operator.keying or DEFAULT_KEYING,
        tie=recipe.growth.operator.tie,
        seed=recipe.growth.seed,
    )
    start = plan_start(
        family, growth, config, target, asked=changes, where=recipe.where("growth"), source_family=inventory.family
    )
    if recipe.source.pretrain is not None and inventory.family.task in WITHOUT_LOSS:
        raise RecipeError(
            f"source.pretrain: {inventory.family.architecture} has no loss to be trained by",
            where=recipe.where("source", "pretrain", "config"),
            hint=f"leave `architectures` out: a {inventory.family.heads[0].architecture} is trained",
        )
    warnings += _left_out(inventory, family)
    dtype = DTYPE_NAMES[recipe.output.dtype] if recipe.output.dtype else None
    specs = target_specs(family, inventory, start.target, dtype=dtype)
    shards = plan_shards(specs, shard_bytes(family, recipe.output.max_shard_size))
    needed = source is not None or (runs and recipe.source.pretrain is not None)
    data = _check_data(recipe, family, source, start, warnings, needed=needed)
    if source is not None:
        check_apart(Path(recipe.output.dir), source, where=recipe.where("output", "dir"))
    measures = recipe.fit is not None or not start.copies_only
    micro_batch = _micro_batch(recipe, family, start)
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


def another_start(plan: Plan, *, width: str, depth: str, tie: str | None, seed: int) -> Start:
    """The start of another pair of methods for the same source and target. Raises RecipeError as `plan_start`."""
    tied = tie == "paper"
    keying = "source" if tied else plan.recipe.growth.operator.keying or DEFAULT_KEYING
    growth = Growth(width=width, depth=depth, keying=keying, tie=tie, seed=seed)
    inventory = plan.inventory
    target = inventory.family.resize(plan.start.source, plan.asked)
    return plan_start(
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


def _target_family(recipe: Recipe, inventory: Inventory) -> Family:
    """The family narrowed to the target's class: the source's, unless the recipe asks for another head."""
    asked = recipe.target.architecture
    if asked in (None, inventory.family.architecture):
        return inventory.family
    names = [head.architecture for head in inventory.family.heads]
    if asked not in names:
        raise RecipeError(
            f"{inventory.family.name} has no class {asked!r} here",
            where=recipe.where("target", "architecture"),
            expected=" or ".join(dict.fromkeys(names)),
        )
    return inventory.family.for_architecture(asked)


def _left_out(inventory: Inventory, family: Family) -> list[str]:
    """What the source has and the target will not."""
    found = list(inventory.left_out)
    found += [row.pattern for row in inventory.rows if row.layout.part not in ("", *family.chosen.parts)]
    if not found:
        return []
    return [
        f"left out, as {family.architecture} has no place for it: {', '.join(found[:4])}" + ("..." if found[4:] else "")
    ]


def _source_config(recipe: Recipe, source: Source | None) -> tuple[dict[str, object], str, list[str]]:
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


def _inventory(family: Family, config: dict[str, object], source: Source | None, label: str) -> Inventory:
    if source is not None:
        return family.check(config, {name: tensor.spec for name, tensor in source.tensors.items()}, label=label)
    family.check_config(config, where=label)
    # Which class it is, the config may say; a source that is trained here is of the usual one.
    named = config.get("architectures")
    chosen = family.for_architecture(named[0] if isinstance(named, list) and named else None)
    rows = chosen.rows_for(config)
    specs = {spec.name: spec for _, _, spec in chosen.tensors_of(rows, config, dtype="F32")}
    return family.check(config, specs, label=label)


def _changes(recipe: Recipe, family: Family, config: Mapping[str, object]) -> tuple[dict[str, object], str]:
    """What the recipe wants changed in the source's config, and where it says so."""
    if recipe.target.model is None:
        changes = dict(recipe.target.config or {})
        unknown = [key for key in changes if key not in {*config, *family.defaults, *family.size_keys}]
        # What is wrong with sizes is often wrong with several of them together.
        at = unknown[:1] or (list(changes) if len(changes) == 1 else [])
        return changes, recipe.where("target", "config", *at)
    where = recipe.where("target", "model")
    wanted = target_model_config(recipe)
    if find_family(wanted, where=where).name != family.name:
        raise RecipeError(
            "a model grows within its family", where=where, expected=family.model_type, found=wanted.get("model_type")
        )
    complete, old = family.complete(wanted), family.complete(config)
    # The head is the source's: another number of classes is asked for in target.config.
    head = size_keys(family.axes[family.labels]) if family.labels else ()
    keys = [key for key in (*family.size_keys, *family.defaults) if key in wanted or key in family.size_keys]
    keys = [key for key in keys if key not in head]
    # A key that decides a size may be left out by both: the library works it out.
    return {key: complete[key] for key in keys if key in complete and complete[key] != old.get(key)}, where


def target_model_config(recipe: Recipe) -> dict[str, object]:
    """The config of `target.model`: what a name of timm's stands for, or what lies in a directory or on the Hub."""
    name = recipe.target.model
    assert name is not None
    # timm's names have a tag of the weights behind a dot.
    if any(name.partition(".")[0] in known.architectures for known in FAMILIES.values()):
        return flat_config({"architecture": name}, where=recipe.where("target", "model"))
    return read_config(name, revision=recipe.target.revision, base=recipe.base)


def _check_data(
    recipe: Recipe, family: Family, source: Source | None, start: Start, warnings: list[str], *, needed: bool
) -> DataFacts | None:
    """What is known of the data. `needed`: whether it has to be there, and what reads it; else a warning says what a run will need."""
    if recipe.fit is None:
        if recipe.source.pretrain is not None:
            raise RecipeError(
                "source.pretrain trains on fit.data, and there is no `fit`", where=recipe.where("source", "pretrain")
            )
        return None
    facts = None
    try:
        facts = check_data(recipe.fit.data, base=recipe.base, wants=family.reads)
    except MissingExtra as error:
        if needed:
            raise
        warnings.append(f"{error.what}; {error.hint}")
    except DataMissing as error:
        if needed:
            raise _at_data(recipe, error) from None
        warnings.append(f"{error.what}: {recipe.where('fit', 'data')}; a run needs it")
    except RecipeError as error:
        raise _at_data(recipe, error) from None
    positions = family.longest(start.source)
    for name, length in _sequence_lengths(recipe):
        if positions is not None and length > positions:
            raise RecipeError(
                f"{'.'.join(name)}: longer than the positions that the model has",
                where=recipe.where(*name),
                expected=f"at most {positions}",
                found=length,
            )
    warmup = recipe.fit.warmup_steps
    if warmup and warmup >= recipe.fit.steps:
        raise RecipeError(
            "fit.warmup_steps: no step is left after the warmup",
            where=recipe.where("fit", "warmup_steps"),
            expected=f"fewer than fit.steps, {recipe.fit.steps}",
            found=warmup,
        )
    if family.reads == "images":
        if facts is not None:
            _check_classes(recipe, family, start)
        return facts
    if recipe.fit.data.tokenizer is not None:
        place = recipe.base / Path(recipe.fit.data.tokenizer).expanduser()
        if place.is_dir():
            check_tokenizer(place, label=recipe.fit.data.tokenizer)
    elif source is not None:
        check_tokenizer(source.root, label=source.label)
    return facts


def _at_data(recipe: Recipe, error: RecipeError) -> RecipeError:
    """The same error, at its place in the recipe."""
    at, found = recipe.where("fit", "data"), str(error.where)
    error.where = at if found in ("", str(recipe.base)) else f"{at}: {found}"
    return error


def _check_classes(recipe: Recipe, family: Family, start: Start) -> None:
    assert recipe.fit is not None
    assert recipe.fit.data.images is not None
    folder = recipe.base / Path(recipe.fit.data.images).expanduser()
    wanted = family.sizes(start.target)[family.labels]
    try:
        check_classes(class_folders(folder), wanted, where=recipe.fit.data.images)
    except RecipeError as error:
        raise _at_data(recipe, error) from None


def _sequence_lengths(recipe: Recipe) -> list[tuple[tuple[str, ...], int]]:
    lengths: list[tuple[tuple[str, ...], int]] = []
    if recipe.fit is not None:
        lengths.append((("fit", "sequence_length"), recipe.fit.sequence_length))
    if recipe.source.pretrain is not None:
        lengths.append((("source", "pretrain", "sequence_length"), recipe.source.pretrain.sequence_length))
    return lengths


# Memory.


def physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def activation_bytes(family: Family, config: Mapping[str, object], sequence_length: int) -> int:
    """Bytes that one sequence's forward and backward pass hold: logits and their softmax, and what every layer keeps."""
    sizes = family.sizes(config)
    layers = sum(sizes[axis] for axis in family.depth_axes)
    headed = any(
        family.vocabulary in dim.parts and dim.role == "write" for row in family.rows for dim in row.layout.dims
    )
    logits = 4 * 4 * sequence_length * sizes[family.vocabulary] if headed else 0
    inner = sum(sizes[stream] for stream in family.roles if stream in sizes and stream not in family.kept)
    # Kernels for attention do not keep its matrix, unless heads are mixed: then there are six of them a head, with what softmax keeps.
    mixed = [
        row for row in family.rows if len(row.layout.dims) == 2 and row.layout.dims[0].parts == row.layout.dims[1].parts
    ]
    matrices = 6 * max((sizes[row.layout.dims[0].parts[0]] for row in mixed), default=0)
    return logits + layers * (4 * sequence_length * 4 * inner + (8 + 4 * matrices) * sequence_length**2)


def _micro_batch(recipe: Recipe, family: Family, start: Start) -> int:
    fit = recipe.fit
    if fit is None:
        return 4
    least = 2 if family.task in WITHOUT_LOSS else 1
    if fit.micro_batch_size is not None or fit.batch_size < least:
        asked = min(fit.micro_batch_size or fit.batch_size, fit.batch_size)
        if asked < least:
            key = "batch_size" if fit.batch_size < least else "micro_batch_size"
            raise RecipeError(
                f"fit.{key}: a model without a loss of its own is learned by comparing sequences",
                where=recipe.where("fit", key),
                expected="at least 2",
                found=asked,
            )
        return asked
    one = activation_bytes(family, start.target, family.sequence(start.target, fit.sequence_length))
    return max(least, min(fit.batch_size, ACTIVATION_BYTES // one))


def estimate_memory(
    recipe: Recipe,
    family: Family,
    inventory: Inventory,
    start: Start,
    specs: tuple[TensorSpec, ...],
    *,
    measures: bool,
    micro_batch: int,
) -> int:
    """Peak resident bytes of a run: the larger of learning, measuring and writing."""
    largest = max(spec.elements for spec in specs)
    row = max(
        sum(inventory.stored[name].elements for name in _row_names(family, inventory, pattern))
        for pattern in (row.pattern for row in inventory.rows)
    )
    if not measures:
        return COPY_BASE_BYTES + 3 * largest * 4 if start.copies_only else BASE_BYTES + 4 * (row + 3 * largest)
    source = 4 * sum(spec.elements for spec in inventory.stored.values())
    target = 4 * sum(spec.elements for spec in specs)
    fit = recipe.fit
    length = family.sequence(start.target, fit.sequence_length if fit else 128)
    activations = micro_batch * activation_bytes(family, start.target, length)
    if fit is None:
        # What rounding costs is measured on a second copy.
        copies = 2 if any(spec.dtype in ("F16", "BF16") for spec in specs) else 1
        return BASE_BYTES + source + copies * target + activations + 4 * (row + 2 * largest)
    # Parameters, gradients, two moments, the best so far and the start; a saved state is written from them, not copied.
    operator = 4 * 6 * learned_parameters(start)
    return BASE_BYTES + source + 2 * target + operator + activations + 4 * 4 * row


def _row_names(family: Family, inventory: Inventory, pattern: str) -> list[str]:
    row = next(row for row in inventory.rows if row.pattern == pattern)
    return [row.name(layer) for layer in inventory.family.layers(row, inventory.config)]


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


def check_apart(out: Path, source: Source, *, where: str) -> None:
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

"""Match the tensors of a checkpoint with the rows of its family's table.

Input: a family, a config and the checkpoint's tensor list. Output: an `Inventory`, in which one row claims each tensor and every
row is used; otherwise a SourceError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ligo_convert.checkpoints.tensors import FLOAT_DTYPES, TensorSpec
from ligo_convert.errors import SourceError, close_matches, some
from ligo_convert.families.schema import Config, Family, Head, Row

# Canonical name -> the rows that a tensor of this name may belong to: more than one where parts share a name.
_Wanted = Mapping[str, list[Row]]

# A tensor of `Family.resampled` at another size.
_RESAMPLE = (
    "{library} would adapt it to the sizes in config.json, which changes its values; load the model in {library}, save it"
    " again (timm.models.save_for_hf), and grow that"
)

# Names that no family's table has -> what they tell, and what to do.
_FOREIGN = tuple(
    (re.compile(pattern), told)
    for pattern, told in (
        (
            r"^base_model\.model\.|\.lora_(A|B|embedding_[AB]|magnitude_vector)\b|\.base_layer\.",
            "the name is one of a PEFT adapter; merge the adapter into its base model, and grow that:"
            " PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().save_pretrained(DIR)",
        ),
        (
            r"\.(qweight|qzeros|g_idx|scales|biases|absmax|quant_map|quant_state\..*|SCB|weight_scale(_inv)?|weight_packed"
            r"|weight_shape|input_scale)$",
            "the name is one of a quantised model, which cannot grow; use the original checkpoint",
        ),
        (
            r"^(module|_orig_mod|_forward_module|_fsdp_wrapped_module)\.",
            "a training wrapper put the first part before the names, and {library} does not strip it; save the unwrapped model"
            " (model.module.save_pretrained, accelerate's unwrap_model), and grow that",
        ),
    )
)


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """A source checkpoint matched with its family: each tensor is claimed once and every row is used.

    Attributes:
        family: the family, narrowed to the class of the checkpoint.
        config: the source's config.
        rows: the rows that the checkpoint has.
        stored: canonical name -> the tensor on disk, with its name there.
        ignored: names of buffers that no model reads.
        left_out: names of weights of parts that the class of the checkpoint does not have.
        copies: (alias, canonical) names of tied tensors that are both on disk; their bytes must agree.
    """

    family: Family
    config: Config
    rows: tuple[Row, ...]
    stored: Mapping[str, TensorSpec]
    ignored: tuple[str, ...]
    left_out: tuple[str, ...]
    copies: tuple[tuple[str, str], ...]


def claim_tensors(family: Family, config: Config, tensors: Mapping[str, TensorSpec], *, label: str) -> Inventory:
    """Assign each tensor of a source to exactly one row.

    Args:
        family: the family of the source.
        config: config.json of the source.
        tensors: name on disk -> spec.
        label: how errors name the source.

    Raises:
        SourceError: a tensor that no row or two rows claim, an unused row, a wrong shape, a dtype that is not floating-point.
    """
    family.check_config(config, where=f"{label}/config.json")
    family = family.with_experts(config)
    complete = family.complete(config)
    _check_depth(family, config, tensors, label)
    wanted: dict[str, list[Row]] = {}
    for row in family.table:
        if row.present(complete):
            for layer in family.layers(row, config):
                wanted.setdefault(row.name(layer), []).append(row)
    stored, ignored = _match(family, config, tensors, wanted, label)
    _refuse_quantised(config, label)
    bare = not any(spec.name.startswith(family.prefixes) for spec in stored.values())
    sizes = family.sizes(config)
    fitting = {name: _fitting_rows(family, wanted[name], spec, sizes) for name, spec in stored.items()}
    family = family.for_head(_class_of(family, _parts_of(family, config, fitting), config, bare=bare, label=label))
    parts = ("", *family.chosen.parts)
    extra = [name for name in stored if not any(row.layout.part in parts for row in wanted[name])]
    left_out = tuple(stored.pop(name).name for name in extra)
    for name, spec in stored.items():
        (row,) = (row for row in wanted[name] if row.layout.part in parts)
        stored[name] = _checked_shape(family, row, spec, family.shape(row, sizes), label)
    copies = _merge_tied(family, config, stored)
    rows = family.rows_for(config)
    missing = [row.name(layer) for row in rows for layer in family.layers(row, config) if row.name(layer) not in stored]
    if missing:
        raise SourceError(
            f"{len(missing)} tensor(s) that config.json calls for are in no weight file",
            where=label,
            expected=some(missing),
            hint="the checkpoint is incomplete, or config.json is another model's",
        )
    return Inventory(
        family=family, config=config, rows=rows, stored=stored, ignored=ignored, left_out=left_out, copies=copies
    )


# Keys by which libraries mark a quantised checkpoint; `quantization` is MLX's, `compression_config` the older one of compressed-tensors.
_QUANTISED = ("quantization_config", "quantization", "compression_config")


def _quantised_by(config: Config) -> str | None:
    return next((key for key in _QUANTISED if config.get(key)), None)


def _refuse_quantised(config: Config, label: str) -> None:
    """Refuse a config that marks its weights as quantised, even where every tensor is a plain one. Raises SourceError.

    The library would not load such weights as they are stored, and the key cannot be carried over to a grown model.
    """
    key = _quantised_by(config)
    if key is None:
        return
    settings = config[key]
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    raise SourceError(
        f"config.json has a {key}{f' ({method})' if method else ''}: quantised checkpoints cannot grow",
        where=f"{label}/config.json",
        expected="weights in floating point, and no such key",
        hint=f"use the original checkpoint; if these weights are not quantised, remove {key} from config.json",
    )


def _check_depth(family: Family, config: Config, tensors: Mapping[str, TensorSpec], label: str) -> None:
    """Refuse more layers than the checkpoint has tensors, before every tensor of every layer is named. Raises SourceError."""
    sizes = family.sizes(config)
    for axis in family.depth_axes:
        if sizes[axis] > len(tensors):
            raise SourceError(
                f"config.json gives {family.axes[axis]} = {sizes[axis]:,}, and the weight files hold {len(tensors):,} tensors",
                where=label,
                hint="the checkpoint is incomplete, or config.json is another model's",
            )


def _match(
    family: Family, config: Config, tensors: Mapping[str, TensorSpec], wanted: _Wanted, label: str
) -> tuple[dict[str, TensorSpec], tuple[str, ...]]:
    """Canonical name -> tensor, and the names of ignored buffers. Raises SourceError."""
    stored: dict[str, TensorSpec] = {}
    ignored, unclaimed = [], []
    for name, spec in tensors.items():
        canonical = family.canonical(name, wanted)
        if canonical is not None:
            if canonical in stored:
                raise SourceError(
                    "a tensor is stored twice",
                    where=label,
                    found=f"{stored[canonical].name} and {name}",
                    hint="keep one",
                )
            stored[canonical] = _checked_dtype(spec, label)
        elif family.is_ignored(name):
            ignored.append(name)
        else:
            unclaimed.append(name)
    quantised = _quantised_by(config)
    if unclaimed and quantised:
        raise SourceError(
            f"{unclaimed[0]} belongs to a quantised model (config.json has a {quantised})",
            where=label,
            hint="quantised checkpoints cannot grow; use the original checkpoint",
        )
    if unclaimed:
        raise _unclaimed(family, config, unclaimed, label)
    return stored, tuple(ignored)


def _fitting_rows(family: Family, rows: list[Row], spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[Row, ...]:
    """The rows of one name whose shape a tensor has; all of them if it has the shape of none."""
    if len(rows) == 1:
        return (rows[0],)
    return tuple(row for row in rows if family.shape(row, sizes) == spec.shape) or tuple(rows)


def _parts_of(family: Family, config: Config, fitting: Mapping[str, tuple[Row, ...]]) -> set[str]:
    """The parts that the tensors of a checkpoint belong to.

    A tensor whose name and shape fit several parts counts for that of the class which config.json names, or for all of them.
    """
    named = {part for head in family.heads if head.architecture in named_architectures(config) for part in head.parts}
    parts = set()
    for rows in fitting.values():
        own = {row.layout.part for row in rows}
        parts |= own & named if len(own) > 1 and own & named else own
    return parts


def _merge_tied(family: Family, config: Config, stored: dict[str, TensorSpec]) -> tuple[tuple[str, str], ...]:
    """Keep tied tensors in `stored` under their canonical name alone. Returns the names of those stored under both."""
    copies = []
    for alias, pattern in family.tied.items() if family.is_tied(config) else ():
        # Either of the two names is enough: libraries differ in which one they write.
        if alias in stored and pattern in stored:
            copies.append((stored[alias].name, stored[pattern].name))
        elif alias in stored:
            stored[pattern] = stored[alias]
        stored.pop(alias, None)
    return tuple(copies)


def _class_of(family: Family, parts: set[str], config: Config, *, bare: bool, label: str) -> Head:
    """The class with the most of the parts in the checkpoint; among equals the one that config.json names, else the first.

    A part that is tied as a whole is in no file, so it fits any checkpoint and counts for none.

    Args:
        bare: whether all names lack the family's prefix, as those of a class without a head do.

    Raises:
        SourceError: config.json names a class with more parts, and either some of its own are in the checkpoint, or the names have the
            prefix, as those of such a class do.
    """
    tied = set(family.tied) if family.complete(config).get(family.tie_key) else set()
    unstored = {row.layout.part for row in family.table if row.layout.part}
    unstored -= {*parts, *(row.layout.part for row in family.table if row.pattern not in tied)}
    heads = family.heads_for(config)
    fitting = [head for head in heads if (parts | unstored).issuperset(head.parts)]
    if not fitting:
        # Every class lacks a part. The usual class reports the missing tensors.
        return heads[0]
    names = named_architectures(config)
    most = max(len({*head.parts} - unstored) for head in fitting)
    best = [head for head in fitting if len({*head.parts} - unstored) == most]
    chosen = next((head for head in best if head.architecture in names), best[0])
    cut = [head for head in family.heads if head.architecture in names and head not in fitting]
    begun = bool(cut) and bool(parts & {*cut[0].parts} - {*chosen.parts})
    if cut and chosen.architecture not in names and (begun or (chosen.base and not bare)):
        rows = family.for_head(cut[0]).rows_for(config)
        raise SourceError(
            f"config.json names {cut[0].architecture}, and the tensors of its head are in no weight file",
            where=label,
            expected=some([row.pattern for row in rows if row.layout.part and row.layout.part not in parts]),
            hint=f"the checkpoint is incomplete; if it is meant to have no head, set architectures to"
            f' ["{chosen.architecture}"] in its config.json',
        )
    return chosen


def named_architectures(config: Config) -> list[str]:
    """The names of classes in config.json; empty if it names none."""
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _checked_dtype(spec: TensorSpec, label: str) -> TensorSpec:
    """Return a tensor as it is. Raises SourceError unless it is floating-point."""
    if spec.dtype not in FLOAT_DTYPES:
        raise SourceError(
            "a weight is not a floating-point tensor",
            where=f"{label}: {spec.name}",
            expected=" ".join(FLOAT_DTYPES),
            found=spec.dtype,
            hint="quantised checkpoints cannot grow; use the original checkpoint",
        )
    return spec


def _checked_shape(family: Family, row: Row, spec: TensorSpec, shape: tuple[int, ...], label: str) -> TensorSpec:
    """Return a tensor in the shape of its row. Raises SourceError unless it has that shape, or one that the library flattens."""
    fewer = len(spec.shape) < len(shape) and spec.shape[:1] == shape[:1]
    if row.pattern in family.flattened and fewer and spec.elements == math.prod(shape):
        return replace(spec, shape=shape)
    if spec.shape != shape:
        raise SourceError(
            "a tensor does not have the shape that config.json gives",
            where=f"{label}: {spec.name}",
            expected=list(shape),
            found=list(spec.shape),
            hint=_RESAMPLE.format(library=family.library) if row.pattern in family.resampled else "",
        )
    return spec


def _unclaimed(family: Family, config: Config, names: list[str], label: str) -> SourceError:
    """The error for tensors that no row claims: what their names tell, or the row whose name is nearest."""
    more = f" (+{len(names) - 1} more)" if len(names) > 1 else ""
    told = next(filter(None, (_told_by_name(family, config, name) for name in names[:_TELLING])), "")
    return SourceError(
        f"{family.name}: no row claims {names[0]}{more}",
        where=label,
        hint=told or _nearest_row(family, config, names[0]),
    )


# Names that are asked what they tell: each is held against all tensors of the family.
_TELLING = 8


def _told_by_name(family: Family, config: Config, name: str) -> str:
    """What the name of an unclaimed tensor tells about the checkpoint, and what to do; "" if nothing."""
    for pattern, told in _FOREIGN:
        if pattern.search(name):
            return told.format(name=name, library=family.library)
    complete = family.complete(config)
    absent = {row.name(layer): row for row in family.table for layer in family.layers(row, config)}
    canonical = family.canonical(name, absent)
    if canonical is not None:
        failing = absent[canonical].layout.failing(complete)
        assert failing is not None, name
        key = failing.key
        return (
            f"config.json has {key} = {complete.get(key)!r}, so {family.library} builds a model without this tensor\n"
            f"set {key} to {failing.wanted} in its config.json if the tensor belongs to the model"
        )
    supported = [head.architecture for head in family.heads]
    for architecture in named_architectures(config):
        if architecture not in supported:
            bare = any(head.base for head in family.heads)
            body = "\nto grow its body alone: AutoModel.from_pretrained(SOURCE).save_pretrained(DIR)" if bare else ""
            return (
                f"config.json names {architecture}, and the table of {family.name} has no such head; it has those of"
                f" {', '.join(dict.fromkeys(supported))}{body}"
            )
    return ""


def _nearest_row(family: Family, config: Config, name: str) -> str:
    sizes = family.sizes(config)
    patterns = {row.name(0 if row.depth else None): row.pattern for row in family.table}
    near = close_matches(name, list(patterns), n=1, cutoff=0.0)
    depths = ", ".join(f"{axis} = {sizes[axis]}" for axis in family.depth_axes)
    return (
        f"nearest row: {patterns[near[0]] if near else '-'}\nconfig.json gives {depths};"
        f" `ligo-convert describe {family.name}` lists all rows"
    )

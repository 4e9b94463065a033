"""Match the tensors of a checkpoint with the rows of its family's table.

Input: a family, a config and the checkpoint's tensor list. Output: an `Inventory`, in which one row claims each tensor and every
row is used; otherwise a SourceError.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from ligo_convert.checkpoints.tensors import FLOAT_DTYPES, TensorSpec
from ligo_convert.errors import SourceError, some
from ligo_convert.families.notation import expand, matcher
from ligo_convert.families.schema import Config, Family, Head, Row

# Canonical name -> the row and layer of the tensor.
_Wanted = Mapping[str, tuple[Row, int | None]]


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
    complete = family.complete(config)
    wanted = {
        row.name(layer): (row, layer)
        for row in family.table
        if row.present(complete)
        for layer in family.layers(row, config)
    }
    stored, ignored = _match(family, config, tensors, wanted, label)
    family = family.for_head(_class_of(family, {wanted[name][0].layout.part for name in stored}, config))
    parts = ("", *family.chosen.parts)
    extra = [name for name in stored if wanted[name][0].layout.part not in parts]
    left_out = tuple(stored.pop(name).name for name in extra)
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


def _match(
    family: Family, config: Config, tensors: Mapping[str, TensorSpec], wanted: _Wanted, label: str
) -> tuple[dict[str, TensorSpec], tuple[str, ...]]:
    """Canonical name -> tensor, and the names of ignored buffers. Raises SourceError."""
    sizes = family.sizes(config)
    buffers = [matcher(pattern) for name in family.ignored for pattern in expand(name)]
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
            row, _ = wanted[canonical]
            _check_spec(spec, family.shape(row, sizes), label)
            stored[canonical] = spec
        elif any(buffer.match(name) or buffer.match(family.optional_prefix + name) for buffer in buffers):
            ignored.append(name)
        else:
            unclaimed.append(name)
    if unclaimed and config.get("quantization_config"):
        raise SourceError(
            f"{unclaimed[0]} belongs to a quantised model (config.json has a quantization_config)",
            where=label,
            hint="quantised checkpoints cannot grow; use the original checkpoint",
        )
    if unclaimed:
        raise _unclaimed(family, unclaimed, sizes, label)
    return stored, tuple(ignored)


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


def _class_of(family: Family, parts: set[str], config: Config) -> Head:
    """The class with the most of the parts in the checkpoint; among equals the one that config.json names, else the first."""
    fitting = [head for head in family.heads if parts.issuperset(head.parts)]
    if not fitting:
        # Every class lacks a part. The usual class reports the missing tensors.
        return family.heads[0]
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    most = max(len(head.parts) for head in fitting)
    best = [head for head in fitting if len(head.parts) == most]
    return next((head for head in best if head.architecture in names), best[0])


def _check_spec(spec: TensorSpec, shape: tuple[int, ...], label: str) -> None:
    """Raise SourceError unless a tensor is floating-point and has the given shape."""
    if spec.dtype not in FLOAT_DTYPES:
        raise SourceError(
            "a weight is not a floating-point tensor",
            where=f"{label}: {spec.name}",
            expected=" ".join(FLOAT_DTYPES),
            found=spec.dtype,
            hint="quantised checkpoints cannot grow; use the original checkpoint",
        )
    if spec.shape != shape:
        raise SourceError(
            "a tensor does not have the shape that config.json gives",
            where=f"{label}: {spec.name}",
            expected=list(shape),
            found=list(spec.shape),
        )


def _unclaimed(family: Family, names: list[str], sizes: Mapping[str, int], label: str) -> SourceError:
    """The error for tensors that no row claims, with the row whose name is nearest."""
    first = names[0]
    patterns = {row.name(0 if row.depth else None): row.pattern for row in family.table}
    near = difflib.get_close_matches(first, list(patterns), n=1, cutoff=0.0)
    more = f" (+{len(names) - 1} more)" if len(names) > 1 else ""
    depths = ", ".join(f"{axis} = {sizes[axis]}" for axis in family.depth_axes)
    return SourceError(
        f"{family.name}: no row claims {first}{more}",
        where=label,
        hint=f"nearest row: {patterns[near[0]] if near else '-'}\nconfig.json gives {depths};"
        f" `ligo-convert describe {family.name}` lists all rows",
    )

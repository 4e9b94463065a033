"""Read, check and serialise growth operators: arrays as safetensors, all other fields as JSON in the metadata key `ligo`.

Input: a file, or an `Operator`.
Output: an `Operator` that growth can apply, or arrays and metadata for the safetensors writer.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from ligo_convert.checkpoints.config_keys import without_code
from ligo_convert.checkpoints.headers import read_header
from ligo_convert.checkpoints.small_files import open_file, tensor_bytes
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.errors import SourceError
from ligo_convert.families.notation import SizeError
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import Family
from ligo_convert.growth.growth_plan import REWRITES, epsilon_of
from ligo_convert.growth.initialize import stream_keys
from ligo_convert.growth.maps import ROLES, Axis, Map
from ligo_convert.growth.operator import MAP_FIELDS, PARTED, Keying, Operator, Term
from ligo_convert.io.strict_json import short, strict_json


class UnknownFamily(SourceError):
    """The family of an operator is not known here: its file was not named with --family."""


def read_operator(path: Path) -> Operator:
    """Read the growth operator of a file and check that it fits its family.

    Args:
        path: a safetensors file.

    Raises:
        UnknownFamily: no family of the operator's name is known here.
        SourceError: the file holds no operator, or the operator cannot be applied.
    """
    if path.is_dir():
        inside = next(
            (found for found in ("ligo/operator.safetensors", "operator.safetensors") if (path / found).exists()), ""
        )
        raise SourceError(
            "a directory, not an operator file",
            where=path,
            expected="a file that `ligo-convert fit` wrote, or ligo/operator.safetensors of an output",
            hint=f"name {path / inside}" if inside else "`ligo-convert run` grows a checkpoint by a recipe",
        )
    descriptor = open_file(path)
    try:
        header = read_header(descriptor, label=path.name)
        specs: dict[str, TensorSpec] = {name: tensor.spec for name, tensor in header.tensors.items()}

        def read(name: str) -> Any:
            return tensor_bytes(descriptor, header, name, path.name)

        operator = restore(header.metadata, specs, read, label=path.name)
        if operator.family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise UnknownFamily(
                f"an operator of the unknown family {operator.family!r}",
                where=path.name,
                expected=known,
                hint="load its table with --family FILE",
            )
        family = FAMILIES[operator.family]
        if operator.head not in [head.name for head in family.heads]:
            raise SourceError(f"an operator of the unknown class {operator.head!r}", where=path.name)
        try:
            check_operator(operator, family_of(operator), label=path.name)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            # The configs are plain data of any kind. The family's expressions meet a value that no config of it has.
            raise SourceError(
                f"the operator's configs do not fit its family ({type(error).__name__}: {short(error)})",
                where=path.name,
            ) from None
        return operator
    finally:
        os.close(descriptor)


def family_of(operator: Operator) -> Family:
    """Return the family of an operator, narrowed to the class of the target (`operator.head`)."""
    return FAMILIES[operator.family].with_experts(operator.source).for_architecture(operator.head)


def _is_sound(found: Map) -> bool:
    """Return True if index, weight and tail form one map: their shapes match, and the indices are int64 and lie inside the axis."""
    return (
        found.index.ndim == 1
        and found.index.dtype == np.int64
        and found.weight.shape == found.index.shape
        and found.tail.ndim == 2
        and (not len(found.index) or 0 <= int(found.index.min()) <= int(found.index.max()) < found.old)
    )


def check_operator(operator: Operator, family: Family, *, label: str) -> None:
    """Check that growth can apply an operator.

    The configs give valid sizes, every rewrite is known, every map and matrix has the required shape, every index is in range, every stream
    that grows has a width map, and the flags of layers match the target.

    Args:
        operator: the operator to check.
        family: its family, narrowed to the class of the target.
        label: name of the operator in error messages.

    Raises:
        SourceError: a check fails. The message names the part that does not fit.
    """
    try:
        old, new = family.sizes(operator.source), family.sizes(operator.target)
    except SizeError as error:
        raise SourceError(f"the operator's configs do not fit: {error}", where=label) from None
    for config in (operator.source, operator.target):
        # Applying the operator scales the source's epsilon by the quotient of these two.
        if family.norm.epsilon and not LEAST_EPSILON <= epsilon_of(family, config) <= 1:
            raise SourceError(
                f"{family.norm.epsilon} is no epsilon of a norm",
                where=label,
                expected=f"{LEAST_EPSILON:g} to 1",
                found=epsilon_of(family, config),
            )
    unknown = [name for name in operator.rewrites if name not in REWRITES]
    if unknown:
        raise SourceError(
            "a change to the source that is not known here", where=label, expected=REWRITES, found=unknown
        )
    rows = tuple(row for row in family.rows_for(operator.target) if row.pattern not in operator.drawn_rows)
    for number, term in enumerate(operator.terms):
        for key, factors in term.widths.items():
            stream = key.partition("@")[0]
            maps = [axis.role(role) for axis in factors for role in ROLES]
            if not all(map(_is_sound, maps)):
                raise SourceError("a width map that is none", where=f"{label}: {number}/width/{key}")
            sizes = [math.prod(getattr(axis, end) for axis in factors) for end in ("old", "new")]
            if stream not in family.roles or sizes != [old[stream], new[stream]]:
                raise SourceError("a width map of another size", where=f"{label}: {number}/width/{key}", found=sizes)
            if any(
                (axis.role(role).old, axis.role(role).new) != (axis.old, axis.new) for axis in factors for role in ROLES
            ):
                raise SourceError("the maps of one axis differ in size", where=f"{label}: {number}/width/{key}")
        for stream in dict.fromkeys(stream for row in rows for stream in row.layout.streams):
            keys = stream_keys(family, stream, operator.keying, old, new, rows)
            absent = [key for key in keys if key not in term.widths]
            if absent and old[stream] != new[stream]:
                raise SourceError("a stream that grows has no width map", where=f"{label}: {number}/width/{absent[0]}")
        for row in (row for row in rows if row.pattern not in operator.drawn_rows):
            wanted = (new[row.depth], old[row.depth]) if row.depth else (1, 1)
            for key in row.piece_keys():
                found_shape = term.depths[key].shape if key in term.depths else None
                if found_shape != wanted:
                    raise SourceError(
                        "a depth matrix of another shape", where=f"{label}: {key}", expected=wanted, found=found_shape
                    )
    for flags in (operator.drawn_layers, operator.silent_layers):
        if any(axis not in family.depth_axes or len(layers) != new[axis] for axis, layers in flags.items()):
            raise SourceError("layers that the target does not have", where=label, found=dict(flags))
    _check_parted(operator, family, new, label=label)


def _check_parted(operator: Operator, family: Family, new: Mapping[str, int], *, label: str) -> None:
    """Check that every parted entry takes the rows of an entry that the axis has. Raises SourceError."""
    for axis, origin in operator.parted.items():
        if axis not in family.axes or axis in (*family.depth_axes, family.norm.stream):
            raise SourceError("entries of an axis that cannot be parted", where=f"{label}: {PARTED}{axis}")
        if origin.dtype != np.int64 or origin.shape != (new[axis],):
            raise SourceError(
                "parted entries of another shape",
                where=f"{label}: {PARTED}{axis}",
                expected=(new[axis],),
                found=origin.shape,
            )
        if not -1 <= int(origin.min()) <= int(origin.max()) < new[axis]:
            raise SourceError(
                "a parted entry takes the rows of an entry that the axis does not have",
                where=f"{label}: {PARTED}{axis}",
                expected=f"-1 to {new[axis] - 1}",
                found=[int(origin.min()), int(origin.max())],
            )


# Smaller than any that float32 can add to a variance.
LEAST_EPSILON = 1e-40

# Version 3 stores the entries that are parted in silent layers (`Operator.parted`).
FORMAT = "ligo-operator/3"

# An operator of this version parts no entries. It is applied as it was written.
UNPARTED = "ligo-operator/2"

# Rewrites that had another name in version 2.
_RENAMED = {"carry": "mean-preserving"}

_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "U8": np.dtype("u1"),
}

_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


# Storage.


def describe(operator: Operator) -> dict[str, str]:
    """Return the metadata of `operator.safetensors`: all fields except the arrays, as one canonical JSON text."""
    names = operator.map_names()
    terms = [
        {
            "widths": {
                key: [
                    {**{role: names[id(axis.role(role))] for role in ROLES}, "drawn": axis.drawn is not None}
                    for axis in factors
                ]
                for key, factors in term.widths.items()
            },
            "depths": list(term.depths),
        }
        for term in operator.terms
    ]
    data = {
        "format": FORMAT,
        "family": operator.family,
        "head": operator.head,
        "source": operator.source,
        "target": operator.target,
        "keying": operator.keying,
        "tie": operator.tie,
        "terms": terms,
        "drawn_layers": {axis: list(flags) for axis, flags in operator.drawn_layers.items()},
        "silent_layers": {axis: list(flags) for axis, flags in operator.silent_layers.items()},
        "seed": operator.seed,
        "drawn_rows": list(operator.drawn_rows),
        "unit_layers": {pattern: list(layers) for pattern, layers in operator.unit_layers.items()},
        "rewrites": list(operator.rewrites),
        "parted": list(operator.parted),
        "notes": operator.notes,
    }
    return {"format": "pt", "ligo": json.dumps(data, sort_keys=False, separators=(",", ":"), allow_nan=False)}


def stored_arrays(operator: Operator) -> list[tuple[TensorSpec, memoryview]]:
    """Return the arrays of an operator as (spec, bytes) pairs for the safetensors writer."""
    result = []
    for name, array in operator.arrays():
        array = np.ascontiguousarray(array)
        dtype = _NAMES[array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype]
        result.append(
            (TensorSpec(name=name, dtype=dtype, shape=array.shape), memoryview(array.reshape(-1).view(np.uint8).data))
        )
    return result


def restore(
    metadata: Mapping[str, str], specs: Mapping[str, TensorSpec], read: Callable[[str], Any], *, label: str
) -> Operator:
    """Rebuild an operator from the metadata and arrays of a file.

    Args:
        metadata: the metadata of the safetensors header.
        specs: tensor name -> dtype and shape.
        read: returns the bytes of a tensor by name.
        label: name of the file in error messages.

    Raises:
        SourceError: the file holds no operator, or an operator of another format version.
    """
    try:
        data = strict_json(metadata["ligo"].encode("utf-8", "surrogatepass"), label=label)
        if data["format"] not in (FORMAT, UNPARTED):
            raise SourceError(
                "an operator of another version",
                where=label,
                expected=f"{FORMAT} or {UNPARTED}",
                found=data["format"],
                hint="use the version of ligo-convert that wrote it, or make the operator again from its recipe",
            )
        _check_fields(data, label=label)
        # What `apply` writes as config.json comes from these; they name no code, as that of a source does not.
        configs = {
            name: without_code(cast("Mapping[str, object]", data[name]), label=f"{label}: {name}")[0]
            for name in ("source", "target")
        }
        return _restore({**data, **configs}, specs, read)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise SourceError(
            f"this file holds no growth operator ({type(error).__name__}: {short(error)})",
            where=label,
            hint="operators are written by `ligo-convert fit` and lie at ligo/operator.safetensors of every output",
        ) from None


def _each(value: object, kind: type | tuple[type, ...]) -> bool:
    """Return True if all items of a list, or all values of a dict, are of a kind. A bool is no int here."""
    items = value.values() if isinstance(value, dict) else value
    wanted = kind if isinstance(kind, tuple) else (kind,)
    return isinstance(items, Iterable) and all(
        isinstance(item, kind) and (bool in wanted or not isinstance(item, bool)) for item in items
    )


def _is_term(term: object) -> bool:
    match term:
        case {"widths": dict(widths), "depths": list(depths)}:
            factors = [factor for found in widths.values() if isinstance(found, list) for factor in found]
            return (
                _each(widths, list)
                and all(widths.values())
                and _each(depths, str)
                and all(
                    isinstance(factor, dict)
                    and isinstance(factor.get("drawn"), bool)
                    and all(isinstance(factor.get(role), str) for role in ROLES)
                    for factor in factors
                )
            )
    return False


# Field -> what is due, and whether a value is that.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "family": ("a name", lambda value: isinstance(value, str)),
    "head": ("a name", lambda value: isinstance(value, str)),
    "source": ("a config", lambda value: isinstance(value, dict)),
    "target": ("a config", lambda value: isinstance(value, dict)),
    "keying": ("source, target or shared", lambda value: value in get_args(Keying)),
    "tie": ("paper or null", lambda value: value in ("paper", None)),
    "terms": (
        "a list of terms, at least one",
        lambda value: isinstance(value, list) and value != [] and all(map(_is_term, value)),
    ),
    "drawn_layers": ("flags by axis", lambda value: _by_name(value, bool)),
    "silent_layers": ("flags by axis", lambda value: _by_name(value, bool)),
    "seed": ("a whole number", lambda value: _each([value], int) and 0 <= value < 2**63),
    "drawn_rows": ("a list of names", lambda value: isinstance(value, list) and _each(value, str)),
    "unit_layers": ("layers by name", lambda value: _by_name(value, int)),
    "rewrites": ("a list of names", lambda value: isinstance(value, list) and _each(value, str)),
    "parted": ("a list of names", lambda value: isinstance(value, list) and _each(value, str)),
    "notes": (
        "an object, with a list of names under `drawn`",
        lambda value: (
            isinstance(value, dict) and isinstance(value.get("drawn", []), list) and _each(value.get("drawn", []), str)
        ),
    ),
}


def _by_name(value: object, kind: type) -> bool:
    return isinstance(value, dict) and _each(value, list) and all(_each(items, kind) for items in value.values())


def _check_fields(data: Mapping[str, object], *, label: str) -> None:
    """Check that every field is there and of its kind. Raises SourceError."""
    for name, (expected, fits) in _FIELDS.items():
        if name == "parted" and data["format"] == UNPARTED:
            continue
        if not fits(data.get(name)):
            raise SourceError(
                f"the operator's field {name!r} is not what it should be",
                where=label,
                expected=expected,
                found=short(repr(data[name])) if name in data else "nothing",
            )


def _restore(data: Mapping[str, Any], specs: Mapping[str, TensorSpec], read: Callable[[str], Any]) -> Operator:
    def array(name: str) -> np.ndarray:
        spec = specs[name]
        flat: np.ndarray = np.frombuffer(bytes(read(name)), dtype=np.uint8).view(_DTYPES[spec.dtype])
        return flat.reshape(spec.shape)  # a read-only view

    old = data["format"] == UNPARTED
    maps: dict[str, Map] = {}

    def stored_map(name: str) -> Map:
        if name not in maps:
            maps[name] = Map(**{part: array(f"{name}.{part}") for part in MAP_FIELDS})
        return maps[name]

    terms = []
    for number, term in enumerate(data["terms"]):
        widths = {
            key: tuple(
                Axis(
                    **{role: stored_map(factor[role]) for role in ROLES},
                    drawn=array(f"{number}/width/{key}/{position}/drawn").astype(bool) if factor["drawn"] else None,
                )
                for position, factor in enumerate(factors)
            )
            for key, factors in term["widths"].items()
        }
        terms.append(Term(widths=widths, depths={key: array(f"{number}/depth/{key}") for key in term["depths"]}))
    return Operator(
        family=data["family"],
        head=data["head"],
        source=data["source"],
        target=data["target"],
        keying=data["keying"],
        tie=data["tie"],
        terms=tuple(terms),
        drawn_layers={axis: tuple(flags) for axis, flags in data["drawn_layers"].items()},
        silent_layers={axis: tuple(flags) for axis, flags in data["silent_layers"].items()},
        seed=data["seed"],
        drawn_rows=tuple(data["drawn_rows"]),
        unit_layers={pattern: tuple(layers) for pattern, layers in data["unit_layers"].items()},
        rewrites=tuple(_RENAMED.get(name, name) if old else name for name in data["rewrites"]),
        parted={} if old else {axis: array(f"{PARTED}{axis}") for axis in data["parted"]},
        notes=data["notes"],
    )

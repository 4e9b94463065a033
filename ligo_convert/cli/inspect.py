"""List families and methods, and inspect checkpoints, operators and output directories.

Output: plain data that the command line prints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.directory import near_directories
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.comparison.methods import METHODS, SCHEDULE, Method
from ligo_convert.comparison.strategies import OPTIONS, STRATEGIES
from ligo_convert.errors import RecipeError, SourceError, VerificationError, brief, close_matches
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.registry import FAMILIES, find_family
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.operator_file import family_of, read_operator
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.hub.resolve import open_source
from ligo_convert.io.strict_json import strict_json
from ligo_convert.outputs.layout import NEW_PARAMETERS

_NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}


def families_list() -> list[dict[str, str]]:
    """Return name, class, task, norms and a summary of every family."""
    return [
        {
            "name": family.name,
            "architecture": family.architecture,
            "task": family.task,
            "norms": _norms(family),
            "summary": f"{len(family.table)} rows, {_norms(family)}; grows {', '.join(_growing(family))}",
        }
        for family in FAMILIES.values()
    ]


def _norms(family: Family) -> str:
    """Return the kind and place of the norms, and whether LayerScale is used: exact methods depend on these."""
    place = " after the sum" if family.norm.placement == "post" else ""
    return _NORMS[family.norm.kind] + place + (", LayerScale" if family.layer_scales else "")


def _growing(family: Family) -> list[str]:
    return [axis for axis in family.axes if axis not in family.never_grown and axis not in family.rotary_axes]


def methods_list() -> list[dict[str, str]]:
    """Return width and depth methods, training strategies and their options, and the methods of `compare`."""
    return [*starts_list(), *_strategies_list(), *_comparison_methods()]


def methods_named(name: str) -> list[dict[str, str]]:
    """Return every entry of `methods_list` with a name; an option also without its `+`. Raises RecipeError if there is none."""
    known = methods_list()
    found = [entry for entry in known if name in (entry["name"], entry["name"].removeprefix("+"))]
    if not found:
        near = close_matches(name, [entry["name"] for entry in known])
        raise RecipeError(
            f"no method {brief(name)}",
            hint=f"did you mean {near[0]!r}? `methods` lists all" if near else "`ligo-convert methods` lists all",
        )
    return found


def starts_list() -> list[dict[str, str]]:
    """Return the width and depth methods. Using one costs no training."""
    widths = [
        _method("width", name, "yes" if start.preserving else "see plan", start.summary, start.paper, "none")
        for name, start in WIDTHS.items()
    ]
    depths = [
        _method("depth", name, "yes" if start.verdict == "exact" else "no", start.summary, start.paper, "none")
        for name, start in DEPTHS.items()
    ]
    return widths + depths


def _strategies_list() -> list[dict[str, str]]:
    strategies = [
        _method("strategy", name, "-", found.summary, found.paper, found.cost) for name, found in STRATEGIES.items()
    ]
    options = [
        _method("option", f"+{name}", "-", found.summary, found.paper, found.cost) for name, found in OPTIONS.items()
    ]
    return strategies + options


def _comparison_methods() -> list[dict[str, str]]:
    return [
        _method("compare", name, found.preserves, _comparison_summary(found), found.paper, _comparison_cost(found))
        for name, found in {**METHODS, SCHEDULE.name: SCHEDULE}.items()
    ]


def _comparison_summary(found: Method) -> str:
    start = "" if found.random_init else f" ({found.width} + {found.depth})"
    return found.summary + start


def _comparison_cost(found: Method) -> str:
    parts = ["the source's training"] if found.needs_source else []
    parts += ["the fit"] if found.learns_operator else []
    return ", ".join([*parts, f"{found.strategy} training"])


def _method(axis: str, name: str, keeps: str, summary: str, paper: str, cost: str) -> dict[str, str]:
    return {
        "axis": axis,
        "name": name,
        "keeps the function": keeps,
        "summary": summary,
        "paper": paper,
        "cost": cost,
    }


def describe_family(name: str) -> dict[str, Any]:
    """Return the axes, streams and rows of a family at the library's default sizes. Raises RecipeError for an unknown name."""
    if name not in FAMILIES:
        near = close_matches(name, FAMILIES, n=1)
        raise RecipeError(
            f"unknown family {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""),
            hint="`ligo-convert families` lists them",
        )
    family = FAMILIES[name]
    sizes = family.sizes(family.defaults)
    tied = family.is_tied(family.defaults)
    # The definition itself is for one expert.
    whole = family.with_experts(family.defaults)
    return {
        "family": name,
        "architecture": family.architecture,
        "norms": _norms(family),
        "grows": _growing(family),
        "axes": [
            {"axis": axis, "size": sizes[axis], "config": expression, "note": _note(family, axis)}
            for axis, expression in family.axes.items()
        ],
        "streams": [{"stream": key, "size": sizes[key], "product": product} for key, product in family.streams.items()],
        "rows": [
            {
                "pattern": row.pattern,
                "layout": family_layout(family, row.pattern),
                "shape": list(family.shape(row, sizes)),
                "note": _row_note(family, row, sizes, tied=tied),
            }
            for row in family.rows
        ],
        "parameters": whole.parameters(whole.rows_for(family.defaults), family.defaults),
    }


def _row_note(family: Family, row: Row, sizes: Mapping[str, int], *, tied: bool) -> str:
    if row.expert:
        return f"the first of {sizes[family.experts]} experts"
    return f"tied to {family.tied[row.pattern]}" if tied and row.pattern in family.tied else ""


def _note(family: Family, axis: str) -> str:
    if axis in family.never_grown:
        return "does not grow"
    if axis in family.rotary_axes:
        return "keeps its size"
    return "depth" if axis in family.depth_axes else ""


def family_layout(family: Family, pattern: str) -> str:
    """Return the layout of an expanded row as the family's table writes it."""
    from ligo_convert.families.notation import expand

    return next(
        layout
        for key, layout in family.tensors.items()
        if any(pattern in family.of_each_expert(alternative) for alternative in expand(key))
    )


def inspect_path(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, an output directory or an operator file. Raises SourceError."""
    if path.is_file():
        return _inspect_operator(path)
    if not path.exists():
        raise SourceError("no such file or directory", where=path, hint=near_directories(path))
    with open_source(str(path.absolute()), base=path, weights=False) as source:
        specs = {name: tensor.spec for name, tensor in source.tensors.items()}
        found: dict[str, Any] = {
            "kind": "output" if (path / "ligo" / "provenance.json").is_file() else "checkpoint",
            "path": str(path),
            "model_type": source.config.get("model_type"),
            "files": [{"name": file.name, "nbytes": file.size} for file in source.files],
            "tensors": len(specs),
            "parameters": sum(spec.elements for spec in specs.values()),
            **_added(path),
            "dtypes": sorted({spec.dtype for spec in specs.values()}),
            "tokenizer": list(source.tokenizer_files),
            "license": source.license,
            "carried": list(dict.fromkeys((*source.model_files.carried, *source.model_files.module_files))),
            "left_behind": [{"path": left.path, "reason": left.reason} for left in source.model_files.left],
            "warnings": list(source.warnings),
        }
        found.update(_claimed(source.config, specs, source.label))
    if found["kind"] == "output":
        found["provenance"] = _provenance(path)
        # What the growth of this output carried and left, not what another growth of it would.
        grown = found["provenance"].pop("files")
        found |= {"carried": grown["carried"], "rewritten": grown["rewritten"], "left_behind": grown["left_behind"]}
    return found


def _claimed(config: dict[str, object], specs: dict[str, TensorSpec], label: str) -> dict[str, Any]:
    try:
        family = find_family(config, where=f"{label}/config.json", names=specs)
    except SourceError as error:
        return {"family": None, "fits": str(error)}
    try:
        inventory = claim_tensors(family, config, specs, label=label)
    except SourceError as error:
        return {"family": family.name, "fits": str(error)}
    sizes = family.sizes(config)
    return {
        "family": family.name,
        "fits": "every tensor matches one row",
        "axes": {axis: sizes[axis] for axis in inventory.family.class_axes},
        "ignored": list(inventory.ignored),
    }


def _added(path: Path) -> dict[str, int]:
    """Return the number of new parameters of an output; empty for a directory without that file."""
    file = path / NEW_PARAMETERS
    if not file.is_file():
        return {}
    match strict_json(file.read_bytes(), label=NEW_PARAMETERS):
        case {"counts": {"new": int(new)}}:
            return {"new_parameters": new}
    raise SourceError("the number of new parameters is missing", where=NEW_PARAMETERS)


def _provenance(path: Path) -> dict[str, Any]:
    from ligo_convert.outputs.metrics import is_files
    from ligo_convert.outputs.provenance import metrics_of, read_statement

    statement = read_statement((path / "ligo" / "provenance.json").read_bytes(), label="ligo/provenance.json")
    files = metrics_of(statement).get("files") or {"carried": [], "rewritten": [], "left_behind": []}
    if not is_files(files):
        raise VerificationError("the provenance does not hold the lists of files", where="ligo/provenance.json")
    return {"predicate": statement["predicate"], "subjects": len(statement["subject"]), "files": files}


def _inspect_operator(path: Path) -> dict[str, Any]:
    operator = read_operator(path)
    family = family_of(operator)
    old, new = family.sizes(operator.source), family.sizes(operator.target)
    return {
        "kind": "operator",
        "path": str(path),
        "family": operator.family,
        "keying": operator.keying,
        "tie": operator.tie,
        "terms": len(operator.terms),
        "parameters": operator.parameters,
        "axes": {axis: {"source": old[axis], "target": new[axis]} for axis in family.class_axes},
        "streams": sorted({key for term in operator.terms for key in term.widths}),
        "notes": json.loads(json.dumps(dict(operator.notes))),
    }

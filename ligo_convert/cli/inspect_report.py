"""Print what `inspect` found: a summary, not the record. `inspect --json` prints the record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ligo_convert.cli.format import config_edits, make_pairs
from ligo_convert.cli.reports import VERDICT_STYLES, out_console, preservation_lines, print_loading
from ligo_convert.errors import printable, some
from ligo_convert.units import amount, size

_NAMES = 12  # names in a line


def inspect_report(found: Mapping[str, Any]) -> None:
    """Print a summary of a checkpoint, an output directory or an operator file."""
    console = out_console()
    _REPORTS[found["kind"]](console, found)


def _operator(console: Console, found: Mapping[str, Any]) -> None:
    grown = [
        f"{axis} {sizes['source']} -> {sizes['target']}"
        if sizes["source"] != sizes["target"]
        else f"{axis} {sizes['source']}"
        for axis, sizes in found["axes"].items()
    ]
    make_pairs(
        console,
        f"{printable(found['path'])}: an operator for {found['family']}",
        {
            "sizes": ", ".join(grown),
            "coefficients": amount(found["parameters"]),
            "keying": found["keying"] + (", tied as in the paper" if found["tie"] else ""),
            "terms": found["terms"],
            "streams": some(found["streams"], _NAMES),
            **{str(key): _text(value) for key, value in found["notes"].items()},
        },
    )
    _next(console, f"ligo-convert apply {_quoted(found['path'])} SOURCE OUT")


def _checkpoint(console: Console, found: Mapping[str, Any]) -> None:
    make_pairs(console, f"{printable(found['path'])}: a checkpoint, {_what(found)}", _contents(found))
    if found["family"] is not None:
        _next(console, f"ligo-convert init {_quoted(found['path'])}")


def _output(console: Console, found: Mapping[str, Any]) -> None:
    predicate = found["provenance"]["predicate"]
    make_pairs(
        console,
        f"{printable(found['path'])}: {_what(found)}, an output of ligo-convert",
        {**_made(predicate), **_contents(found)},
    )
    print_loading(console, Path(found["path"]))


_REPORTS = {"operator": _operator, "checkpoint": _checkpoint, "output": _output}


def _made(predicate: Mapping[str, Any]) -> dict[str, object]:
    """Return the lines about what an output was made from, and how well it does."""
    definition, run = predicate["buildDefinition"], predicate["runDetails"]
    recipe = definition["externalParameters"].get("recipe") or {}
    parts = {part["name"]: part["annotations"] for part in run["byproducts"]}
    metrics, kept = parts.get("metrics") or {}, parts.get("preservation")
    pairs: dict[str, object] = {"source": _source(definition["resolvedDependencies"], recipe)}
    if metrics.get("parameters"):
        pairs["parameters"] = f"{amount(metrics['parameters']['source'])} -> {amount(metrics['parameters']['target'])}"
    growth = recipe.get("growth") or {}
    if kept is not None and growth:
        pairs["growth"] = f"width {growth['width']}, depth {growth['depth']}"
    edits = definition["internalParameters"].get("config") or {}
    if edits:
        pairs["config"] = config_edits(edits)
    if kept is not None:
        fitted = bool((metrics.get("fit") or {}).get("best_step"))
        for name, line in preservation_lines(kept, fitted=fitted).items():
            pairs[name] = Text(printable(line), style=VERDICT_STYLES.get(kept["verdict"] or "", ""))
    losses = {key: value for key, value in (metrics.get("loss") or {}).items() if isinstance(value, int | float)}
    if losses:
        pairs["loss"] = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in losses.items())
    version = run["builder"]["version"]
    pairs["made"] = (
        f"{run['metadata']['finishedOn'][:10]} with ligo-convert {version['ligo-convert']}, torch {version['torch']}"
    )
    return pairs


def _source(dependencies: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> str:
    for one in dependencies:
        notes = one.get("annotations") or {}
        if notes.get("role") == "source":
            revision = f" @ {notes['revision'][:12]}" if notes.get("revision") else ""
            return f"{notes.get('model', '-')}{revision}, license {notes.get('license') or 'not stated'}"
    return "trained by the recipe" if (recipe.get("source") or {}).get("pretrain") else "-"


def _contents(found: Mapping[str, Any]) -> dict[str, object]:
    """Return the lines about the files of a checkpoint."""
    files = found["files"]
    pairs: dict[str, object] = {
        "weights": f"{some([file['name'] for file in files], 3)}: {size(sum(file['nbytes'] for file in files))},"
        f" {found['tensors']} tensors, {', '.join(found['dtypes'])}",
    }
    if "axes" in found:
        pairs["sizes"] = ", ".join(f"{axis}={value}" for axis, value in found["axes"].items())
    else:
        pairs["family"] = found["fits"]
    if found.get("new_parameters") is not None:
        pairs["new parameters"] = amount(found["new_parameters"])
    pairs["tokenizer"] = some(found["tokenizer"], _NAMES) or "none"
    pairs["license"] = found["license"] or "not stated"
    for key in ("carried", "rewritten", "ignored", "warnings"):
        if found.get(key):
            pairs[key] = some(found[key], _NAMES)
    left = [f"{one['path']}: {one['reason']}" for one in found["left_behind"]]
    for number, line in enumerate([*left[:_NAMES], *([f"{len(left) - _NAMES} more"] if len(left) > _NAMES else [])]):
        pairs["left behind" if not number else " " * number] = line
    return pairs


def _what(found: Mapping[str, Any]) -> str:
    family = found["family"] or f"model_type {found['model_type']}, no known family"
    return f"{printable(family)}, {amount(found['parameters'])} parameters"


def _next(console: Console, command: str) -> None:
    console.print(Text(f"\nNext: {command}"))


def _quoted(path: str) -> str:
    return shlex.quote(printable(path))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

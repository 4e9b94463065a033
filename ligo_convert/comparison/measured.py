"""Condense a comparison to what the card and the plan of a growth advise: rates, decay, optimizer, break-even, each with its scale.

Input: an entry of docs/results/results.json.
Output: plain data, as `outputs.measured` reads it from the package.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from ligo_convert.comparison.equal_budget import equal_budget
from ligo_convert.comparison.headline import certain
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.families.registry import FAMILIES

Data = Mapping[str, Any]

FORMAT = "ligo-measured/2"


def measured_of(figures: Data) -> dict[str, Any]:
    """Return what a comparison measured, for the models of its task."""
    budget, chosen = figures["budget"], figures["optimizer"]["chosen"]
    return {
        "model": FAMILIES[figures["family"]].model_type,
        "parameters": figures["parameters"],
        "seeds": len(figures["seeds"]),
        "tokens_per_parameter": budget["tokens_per_parameter"],
        "steps": budget["steps"],
        "batch_size": budget["batch_size"],
        "sequence_length": None if budget["unit"] == "images" else budget["sequence_length"],
        "warmup_steps": figures["warmup_steps"],
        "optimizer": chosen["name"],
        "decay": chosen["decay"],
        "weight_decay": figures["weight_decay"],
        "tried": _tried(figures),
        "sources": [found for source in figures["sources"] if (found := _source(figures, source)) is not None],
        "ahead": _ahead(figures),
        "smaller_wins": [
            len(figures["verdict"]["never_grown_wins"]),
            sum(row["never_grown"] is not None for row in figures["equal_budget"]),
        ],
    }


def _tried(figures: Data) -> dict[str, list[Any]]:
    """Return what scratch tried: optimizers, decays, and the factors that all others tried."""
    runs = figures["optimizer"]["tried"]
    return {
        "optimizers": sorted({run["optimizer"] for run in runs}),
        "decays": sorted({run["decay"] for run in runs}),
        "rate_factors": sorted(set(figures["rate_factors"])),
    }


def _source(figures: Data, source: Data) -> dict[str, Any] | None:
    """Return the method that saves most from a source, with the source left out, and its learning rate; None if none is certain."""
    found = [
        (name, entry)
        for name, entry in figures["methods"].items()
        if entry["start"] and entry["source"] == source["name"] and certain(entry["headline"]["paper"])
    ]
    if not found:
        return None
    best = figures["optimizer"]["chosen"]["learning_rate"]
    name, entry = max(found, key=lambda pair: pair[1]["headline"]["paper"]["saved"])
    rows = [row for row in figures["break_even"] if row["method"] == name and row["targets"] is not None]
    net = entry["headline"]["net"]
    return {
        "share_of_scratch": source["fraction_of_scratch"],
        "method": entry["base"],
        # Records from before ends had rates of their own: all ends have the entry's.
        "rate_factors": [
            [round(end["flops"] / figures["budget"]["flops"], 2), round(rate / best, 4)]
            for end in entry["ends"]
            if (rate := end.get("learning_rate", entry["learning_rate"])) is not None
        ],
        "paper": entry["headline"]["paper"]["saved"],
        "at_least": entry["headline"]["paper"]["bound"] is not None,
        "net": net["saved"] if certain(net) else None,
        "targets": min((row["targets"] for row in rows), default=None),
        "never": any(row["never"] for row in figures["break_even"] if row["method"] == name),
    }


def _ahead(figures: Data) -> dict[str, list[list[float]]]:
    """Return where the best method that grows a trained source is certainly below scratch: the first and the last cost of each run of
    neighbouring costs, as shares of the budget."""
    methods = {
        name: entry
        for name, entry in figures["methods"].items()
        if name == SCRATCH or (entry["start"] and entry["needs_source"])
    }
    rows = equal_budget({**figures, "methods": methods})
    found: dict[str, list[list[float]]] = {}
    for way in ("net", "paper"):
        ranges: list[list[float]] = []
        for below, run in itertools.groupby(rows, lambda row: _is_below(row[way], row["scratch"])):  # noqa: B023
            shares = [row["share"] for row in run]
            ranges += [[shares[0], shares[-1]]] if below else []
        found[way] = ranges
    return found


def _is_below(method: Data | None, scratch: Data | None) -> bool:
    """Return whether a reading of a method is certainly below one of scratch. A reading may be a bound."""
    if method is None or scratch is None or method["loss"] is None or scratch["loss"] is None:
        return False
    certain = method["bound"] in (None, "at most") and scratch["bound"] in (None, "at least")
    return certain and bool(method["loss"] < scratch["loss"])

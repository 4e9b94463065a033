"""Print what a comparison found: the verdict, and the tables that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ligo_convert.cli.format import make_pairs, make_table, print_table, print_wrapped, text_of
from ligo_convert.comparison.naming import entry_text
from ligo_convert.comparison.tables import Table, break_even, equal_budget, names_of, savings, sources
from ligo_convert.errors import printable
from ligo_convert.units import amount, duration, size

_STYLES = {"scratch": "dim", "control": "yellow", "best": "green"}

# Columns that a terminal does not show, by table: start and learning rate; the methods with their source left out; the cost that one
# target pays back. report.html has them.
_LEFT_OUT: Mapping[str, tuple[int, ...]] = {"savings": (2, 3), "budget": (6, 7), "break-even": (6,)}

# Columns to leave out where the terminal is narrow, by heading.
_SPARE = ("FLOPs", "Source's FLOPs", "Lowest loss")


def print_comparison(record: Mapping[str, Any], out: Path, *, width: int | None = None) -> None:
    """Print a finished comparison on stdout, and its fairness warnings on stderr.

    Args:
        record: contents of compare.json.
        out: output directory.
        width: columns of the terminal; None for the terminal's own.
    """
    console = Console(width=width, soft_wrap=False)
    console.print(Text(_title(record), style="bold"))
    console.print()
    for sentence in record["verdict"]["text"]:
        print_wrapped(console, f"- {sentence}")
    console.print()
    make_pairs(console, "Methods", {printable(name): what for name, what in names_of(record).items()})
    for table in (savings(record), equal_budget(record), sources(record), break_even(record)):
        if table.rows:
            console.print()
            _print_table(console, table)
    console.print()
    pairs: dict[str, object] = {"output": out, "report": f"{out}/report.html"}
    following = _next(record)
    if following is not None:
        pairs["next"] = following
    for name, reason in record["skipped"].items():
        pairs[f"{printable(name)} skipped"] = reason
    make_pairs(console, "", pairs)
    for warning in record["fairness_warnings"]:
        about = f" ({', '.join(map(entry_text, warning['methods']))})" if warning["methods"] else ""
        print_wrapped(Console(stderr=True), f"fairness: {warning['text']}{about}", style="yellow")


def _title(record: Mapping[str, Any]) -> str:
    budget = record["budget"]
    passing = "patches" if budget["unit"] == "images" else "tokens"
    seeds = f", {len(record['seeds'])} seeds" if len(record["seeds"]) > 1 else ""
    return printable(
        f"{record['family']}, {amount(record['parameters']['target'])} parameters, {amount(budget['examples'])} {budget['unit']},"
        f" {budget['tokens_per_parameter']:.1f} {passing} per parameter{seeds}"
    )


def _print_table(console: Console, table: Table) -> None:
    shown = [number for number in range(len(table.columns)) if number not in _LEFT_OUT.get(table.name, ())]
    headings = [table.columns[number][0] for number in shown]
    sourced = headings[:2] == ["Method", "Source"]
    rows = [[row.cells[number] for number in shown] for row in table.rows]
    print_table(
        console,
        table.title,
        headings,
        # The source has a column of its own.
        [[row[0].removesuffix(f" (source {row[1]})"), *row[1:]] for row in rows] if sourced else rows,
        right=[place for place, number in enumerate(shown) if table.columns[number][1] == "figure"],
        spare=[headings.index(heading) for heading in _SPARE if heading in headings[1:]],
        styles=[_STYLES.get(row.kind) for row in table.rows],
    )


def _next(record: Mapping[str, Any]) -> str | None:
    """Return what to type to grow a source at hand by the best method; None if that is no plain growth."""
    best = record["verdict"]["best"]["paper"]
    if best is None:
        return None
    if best["saved"] <= 0:
        never = record["verdict"]["grows_pay"]["paper"] is False
        return "train the target from random weights, or a smaller model: no method saves FLOPs" if never else None
    entry = record["methods"][best["method"]]
    start = entry["start"] or {}
    plain = entry["strategy"] == "plain" and not entry["options"] and not entry["flops"]["fit"]
    if not entry["needs_source"] or not plain or not (start.get("width") and start.get("depth")):
        return None
    return printable(
        f"to grow a source that you have, set `growth: {{width: {start['width']}, depth: {start['depth']}}}` in the recipe, then"
        f" `ligo-convert run {record['recipe']}`"
    )


# FLOPs per second for which times are given: a core, a workstation's GPU, a server's GPU, at the share of their peak that training reaches.
_SPEEDS = {"3e10": 3e10, "5e13": 5e13, "4e14": 4e14}


def print_costs(costs: Mapping[str, Any]) -> None:
    """Print what a comparison would cost (`comparison.costs.comparison_costs`)."""
    console = Console(soft_wrap=False)
    unit = "images" if "images" in costs["budget"] else "tokens"
    scratch = costs["budget"]["flops"]
    table = make_table(
        f"{costs['recipe']}: cost of every entry, all seeds ({len(costs['seeds'])}) and budgets",
        "entry",
        "parameters",
        "steps",
        unit,
        "FLOPs",
        "times scratch",
        right=(1, 2, 3, 4, 5),
    )
    for name, entry in costs["entries"].items():
        table.add_row(
            text_of(entry_text(name)),
            amount(entry["parameters"]),
            f"{entry['steps'][-1]:,}",
            amount(entry[unit]),
            f"{entry['flops']:.2e}",
            f"{entry['flops'] / scratch:.2f}",
        )
    console.print(table)
    total = costs["total_flops"]
    times = ", ".join(f"{duration(total / speed)} at {name} FLOP/s" for name, speed in _SPEEDS.items())
    pairs: dict[str, object] = {
        "scratch": f"{scratch:.2e} FLOPs, {costs['budget']['tokens_per_parameter']:.1f} tokens per parameter",
        "total": f"{total:.2e} FLOPs, {total / scratch:.1f} times scratch: {times}",
        "disk": f"at most {size(costs['disk_bytes'])} of training states and tokens",
    }
    for name, reason in costs["skipped"].items():
        pairs[f"{name} skipped"] = reason
    make_pairs(console, "", pairs)

"""Print what a comparison found: the verdict, and the tables that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ligo_convert.cli.format import amount, make_pairs, make_table, size, text_of
from ligo_convert.comparison.naming import entry_text
from ligo_convert.comparison.tables import Table, break_even, equal_budget, savings, sources
from ligo_convert.errors import printable

_STYLES = {"scratch": "dim", "control": "yellow", "best": "green"}

# Columns that a terminal has no room for, by table: start and learning rate, the methods with their source left out. report.html has them.
_LEFT_OUT: Mapping[str, tuple[int, ...]] = {"savings": (2, 3), "budget": (6, 7)}


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
        console.print(Text(f"- {printable(sentence)}"))
    for table in (savings(record), equal_budget(record), sources(record), break_even(record)):
        if table.rows:
            console.print()
            _print_table(console, table)
    console.print()
    pairs: dict[str, object] = {"output": out, "report": f"{out}/report.html"}
    for name, reason in record["skipped"].items():
        pairs[f"{printable(name)} skipped"] = reason
    make_pairs(console, "", pairs)
    for warning in record["fairness_warnings"]:
        about = f" ({', '.join(map(entry_text, warning['methods']))})" if warning["methods"] else ""
        Console(stderr=True).print(Text(f"fairness: {printable(warning['text'])}{printable(about)}", style="yellow"))


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
    right = [place for place, number in enumerate(shown) if table.columns[number][1] == "figure"]
    made = make_table(table.title, *(table.columns[number][0] for number in shown), right=right)
    for row in table.rows:
        made.add_row(*(text_of(row.cells[number]) for number in shown), style=_STYLES.get(row.kind))
    console.print(made)


# FLOPs per second for which hours are given: a core, a workstation's GPU, a server's GPU, at the share of their peak that training reaches.
_SPEEDS = {"3e10": 3e10, "5e13": 5e13, "4e14": 4e14}


def print_costs(costs: Mapping[str, Any]) -> None:
    """Print what a comparison would cost (`comparison.costs.comparison_costs`)."""
    console = Console(soft_wrap=False)
    unit = "images" if "images" in costs["budget"] else "tokens"
    scratch = costs["budget"]["flops"]
    table = make_table(
        f"{costs['recipe']}: cost of every entry, all {len(costs['seeds'])} seed(s) and budgets",
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
    hours = ", ".join(f"{total / speed / 3600:,.1f} h at {name} FLOP/s" for name, speed in _SPEEDS.items())
    pairs: dict[str, object] = {
        "scratch": f"{scratch:.2e} FLOPs, {costs['budget']['tokens_per_parameter']:.1f} tokens per parameter",
        "total": f"{total:.2e} FLOPs, {total / scratch:.1f} times scratch: {hours}",
        "disk": f"at most {size(costs['disk_bytes'])} of training states and tokens",
    }
    for name, reason in costs["skipped"].items():
        pairs[f"{name} skipped"] = reason
    make_pairs(console, "", pairs)

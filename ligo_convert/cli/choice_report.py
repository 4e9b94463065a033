"""Print what `choose` found: the advice, and the trials that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ligo_convert.cli.format import make_pairs, print_table, print_wrapped
from ligo_convert.errors import printable
from ligo_convert.units import amount, flops


def print_choice(record: Mapping[str, Any], out: Path, *, width: int | None = None) -> None:
    """Print finished trials on stdout.

    Args:
        record: contents of choose.json.
        out: output directory.
        width: columns of the terminal; None for the terminal's own.
    """
    console = Console(width=width, soft_wrap=False)
    budget = record["budget"]
    title = (
        f"{record['family']}, {amount(record['parameters']['source'])} to {amount(record['parameters']['target'])} parameters,"
        f" budget {budget['steps']} steps, {flops(budget['flops'])}"
    )
    console.print(Text(printable(title), style="bold"))
    console.print()
    for sentence in record["text"]:
        command = record["longer"]["command"] if record["longer"] is not None else ""
        print_wrapped(console, f"- {sentence.removesuffix(command)}")
        # A command is copied, so that no line break may stand in it.
        if command and sentence.endswith(command):
            console.print(Text(f"  {printable(command)}"), soft_wrap=True)
    console.print()
    columns = ["candidate", "kind", *(f"at {share:.1%}" for share in record["rounds"]), "projected", "leads"]
    rounds, rows = len(record["rounds"]), record["candidates"]
    print_table(
        console,
        "Loss of the trials, by their share of the budget, and projected to all of it",
        columns,
        [_cells(row, rounds) for row in rows],
        right=range(2, len(columns)),
        spare=range(2, rounds + 1),
        styles=["green" if row["name"] == record["choice"]["name"] else None for row in rows],
    )
    console.print()
    pairs: dict[str, object] = {"output": out}
    following = _next(record)
    if following is not None:
        pairs["next"] = following
    for name, reason in record["skipped"].items():
        pairs[f"{printable(name)} skipped"] = reason
    make_pairs(console, "", pairs)


def _cells(row: Mapping[str, Any], rounds: int) -> list[str]:
    losses = [_number(trial["loss"]) for trial in row["trials"]]
    projected = row["projection"] or {}
    return [
        row["name"],
        row["kind"],
        *losses,
        *["-"] * (rounds - len(losses)),
        _number(projected.get("loss")),
        f"{projected['leads']:.0%}" if projected else "-",
    ]


def _next(record: Mapping[str, Any]) -> str | None:
    """Return what to type to follow the choice; None where no recipe is written of it: the advice says why, and what to do instead."""
    choice = record["choice"]
    if choice["kind"] == "trained on":
        return "`ligo-convert train` with `target: {config: {}}` in the recipe trains the source on"
    if choice["not_written"] is not None:
        return None
    return printable(
        f"`ligo-convert choose {record['recipe']} --write chosen.yaml`, with the options of this command, writes the choice into a recipe;"
        " then `ligo-convert train chosen.yaml`"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

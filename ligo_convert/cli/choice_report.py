"""Print what `choose` found: the advice, and the trials that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ligo_convert.cli.format import amount, make_pairs, make_table, text_of
from ligo_convert.errors import printable


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
        f" budget {budget['steps']} steps, {amount(budget['flops'])} FLOPs"
    )
    console.print(Text(printable(title), style="bold"))
    console.print()
    for sentence in record["text"]:
        # A command is copied, so that no line break may stand in it.
        command = record["longer"] is not None and sentence.endswith(record["longer"]["command"])
        console.print(Text(f"- {printable(sentence)}"), soft_wrap=command)
    console.print()
    rounds = [f"at {share:.1%}" for share in record["rounds"]]
    table = make_table(
        "Loss of the trials, by their share of the budget, and projected to all of it",
        *("candidate", "kind", *rounds, "projected", "leads"),
        right=range(2, len(rounds) + 4),
    )
    for row in record["candidates"]:
        losses = [_number(trial["loss"]) for trial in row["trials"]]
        projected = row["projection"] or {}
        table.add_row(
            text_of(row["name"]),
            text_of(row["kind"]),
            *losses,
            *["-"] * (len(rounds) - len(losses)),
            _number(projected.get("loss")),
            f"{projected['leads']:.0%}" if projected else "-",
            style="green" if row["name"] == record["choice"]["name"] else None,
        )
    console.print(table)
    console.print()
    pairs: dict[str, object] = {"output": out}
    for name, reason in record["skipped"].items():
        pairs[f"{printable(name)} skipped"] = reason
    make_pairs(console, "", pairs)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

"""Format values for the terminal: text and tables.

Everything foreign (names, labels, reasons) passes `printable` and becomes `Text`, never markup.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ligo_convert.cli.wrapping import wrapped
from ligo_convert.errors import printable

# State of a batch entry -> style of rich.
STATE_STYLES = {
    "waiting": "dim",
    "running": "bold cyan",
    "elsewhere": "dim cyan",
    "done": "green",
    "failed": "bold red",
    "skipped": "yellow",
}


def text_of(value: object) -> Text:
    """Return a value as text that cannot control the terminal; `-` for None."""
    return Text(printable("-" if value is None else value))


def print_wrapped(console: Console, text: str, *, style: str = "") -> None:
    """Print foreign text in the width of the console (see `wrapped`)."""
    for line in wrapped(printable(text), console.width):
        console.print(Text(line, style=style), soft_wrap=True)


_GAP = 2  # spaces between two columns


def make_table(title: str, *columns: str, right: Sequence[int] = ()) -> Table:
    """Return a table without rules. `right`: numbers of the columns that are aligned to the right."""
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left", overflow="fold")
    return table


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    spare: Sequence[int] = (),
    styles: Sequence[str | None] = (),
    heading: bool = True,
) -> None:
    """Print a table in the width of the console. No word is broken unless it is wider than what is left for its column.

    Args:
        columns: headings.
        rows: cells of every row, as plain text.
        right: numbers of the columns that are aligned to the right.
        spare: numbers of columns to leave out, in this order, while the others have no room. A line below the table names them.
        styles: one style per row.
        heading: whether to print the headings.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = _widths(columns, cells, console.width, spare)
    table = make_table(title)
    table.show_header = heading
    for number, width in widths.items():
        table.add_column(columns[number], width=width, justify="right" if number in right else "left", overflow="fold")
    for at, row in enumerate(cells):
        shown = (Text(_broken(row[number], width)) for number, width in widths.items())
        table.add_row(*shown, style=styles[at] if styles else None)
    console.print(table)
    left_out = [heading for number, heading in enumerate(columns) if number not in widths]
    if left_out:
        console.print(Text(f"Not shown in {console.width} columns: {', '.join(left_out)}", style="dim"))


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, spare: Sequence[int]) -> dict[int, int]:
    """Return the width of every column that is shown, by its number."""

    def widest(number: int, pattern: str) -> int:
        texts = [row[number] for row in rows]
        parts = [part for text in texts for part in re.split(pattern, text)]
        return max(map(len, [*parts, *columns[number].split()]), default=1) or 1

    shown = list(range(len(columns)))
    least = {number: widest(number, _BREAKS if _is_figure(rows, number) else " ") for number in shown}

    def free() -> int:
        return width - sum(least[number] for number in shown) - _GAP * (len(shown) - 1)

    for number in spare:
        if free() >= 0:
            break
        shown.remove(number)
    found = {number: least[number] for number in shown}
    left = free()
    while left < 0:
        number = max(found, key=lambda one: found[one])
        if found[number] == 1:
            break
        found[number] -= 1
        left += 1
    # What is left goes to the cells first, so that they stand on one line, then to the headings.
    for wanted in (
        {number: widest(number, "$") for number in shown},
        {number: len(columns[number]) for number in shown},
    ):
        for number in sorted(shown, key=lambda one: wanted[one] - found[one]):
            more = max(0, min(left, wanted[number] - found[number]))
            found[number] += more
            left -= more
    return found


def print_lines(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, spare: str) -> None:
    """Print one line for each row. The column `spare` is left out if there is no room for it."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if _natural_width(columns, cells) > console.width:
        kept = [number for number, column in enumerate(columns) if column != spare]
        columns, cells = [columns[number] for number in kept], [[row[number] for number in kept] for row in cells]
    table = make_table("", *columns)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def print_records(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table if every cell stands on one line in the width of the console. Otherwise print each row as a block: its first cell,
    and the others below it. So a name is never broken.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if _natural_width(columns, cells) <= console.width:
        table = make_table(title, *columns)
        for row in cells:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    console.print(Text(title, style="bold"))
    for first, *others in cells:
        console.print(Text(first), soft_wrap=True)
        console.print(Padding(Text("   ".join(other for other in others if other), style="dim"), (0, 0, 0, 4)))


def _natural_width(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Return how wide a table is whose cells stand on one line each."""
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    return sum(widths) + _GAP * len(widths)


# Where a figure may be broken: before its deviation, after the words of a bound.
_BREAKS = r" (?=\+-)|(?<=at least) |(?<=at most) "


def _is_figure(rows: Sequence[Sequence[str]], number: int) -> bool:
    return any(re.match(r"(at (least|most) )?[+-]?\d", row[number]) for row in rows)


def _broken(cell: str, width: int) -> str:
    """Break a figure that is wider than its column where it may be broken."""
    return cell if len(cell) <= width else re.sub(_BREAKS, "\n", cell)


def make_pairs(console: Console, title: str, pairs: Mapping[str, object]) -> None:
    """Print names and values in two columns. A value that is `Text` keeps its style."""
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=False,
    )
    for key, value in pairs.items():
        table.add_row(Text(key, style="dim"), value if isinstance(value, Text) else text_of(value))
    console.print(table)


def config_edits(edits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the changes of a config in one text: key, old and new value; of a list with an entry per layer its kinds and their number."""
    return ", ".join(f"{key} {_value(edit['source'])} -> {_value(edit['target'])}" for key, edit in edits.items())


def _value(value: object) -> str:
    if not isinstance(value, list) or len(value) < 5:
        return str(value)
    counts = Counter(map(str, value))
    return f"[{len(value)} layers: {', '.join(f'{count} {kind}' for kind, count in counts.items())}]"

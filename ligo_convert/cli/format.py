"""Format values for the terminal: text, tables, counts, sizes and percentages.

Everything foreign (names, labels, reasons) passes `printable` and becomes `Text`, never markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

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


def make_table(title: str, *columns: str, right: Sequence[int] = ()) -> Table:
    """Return a table without rules. `right`: numbers of the columns that are aligned to the right."""
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left", overflow="fold")
    return table


def make_pairs(console: Console, title: str, pairs: Mapping[str, object]) -> None:
    """Print names and values in two columns."""
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    for key, value in pairs.items():
        table.add_row(Text(key, style="dim"), text_of(value))
    console.print(table)


def amount(number: float | None) -> str:
    """Return a count with three significant digits and a decimal prefix: 124439808 -> 124M."""
    if number is None:
        return "-"
    for limit, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


def size(nbytes: float) -> str:
    """Return a number of bytes in decimal units: 1500000 -> 1.50 MB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= limit:
            return f"{nbytes / limit:.2f} {unit}"
    return f"{nbytes:.0f} B"


def percent(share: float) -> str:
    """Return a share as a percentage: 0.314 -> 31.4%."""
    return f"{share:.1%}"

"""Show a result as an HTML table, as notebooks do with the value of a cell."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

from ligo_convert.errors import printable


def pairs_html(title: str, pairs: Mapping[str, object], notes: Iterable[str] = ()) -> str:
    """Return a table with a name and a value in each row, and notes below it.

    Args:
        title: caption of the table.
        pairs: name -> value; values that are None are left out.
        notes: sentences.

    >>> pairs_html("Plan", {"verdict": "exact", "fit": None})
    '<table><caption>Plan</caption><tr><th style="text-align:left">verdict</th><td style="text-align:left">exact</td></tr></table>'
    """
    left = ' style="text-align:left"'
    rows = "".join(
        f"<tr><th{left}>{_shown(name)}</th><td{left}>{_shown(value)}</td></tr>"
        for name, value in pairs.items()
        if value is not None
    )
    below = "".join(f"<p>{_shown(note)}</p>" for note in notes)
    return f"<table><caption>{_shown(title)}</caption>{rows}</table>{below}"


def _shown(value: object) -> str:
    return html.escape(printable(value))

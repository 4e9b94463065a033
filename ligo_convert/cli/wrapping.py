"""Break lines of text between words. Imports nothing heavy: errors are shown before anything else is loaded."""

from __future__ import annotations

import textwrap


def wrapped(text: str, width: int) -> list[str]:
    """Return one line in lines of at most `width` columns, broken between words: paths and names stay whole.

    The lines after the first are indented by two more columns than the first.
    """
    indent = text[: len(text) - len(text.lstrip())] + "  "
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [
        text
    ]

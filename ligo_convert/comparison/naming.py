"""Names of entries and sources as readers take them.

Input: a name of compare.json, where sources are called by their strength, such as `4`.
Output: text for tables, pictures and sentences. The names in compare.json stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_STRENGTH = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"


def source_text(name: object) -> str:
    """Return the name of a source. A strength is how many times as long as the recipe says the source was trained.

    >>> source_text("4"), source_text("0.5"), source_text("small")
    ('4x', '0.5x', 'small')
    """
    return f"{name}x" if re.fullmatch(_STRENGTH, str(name)) else str(name)


def entry_text(name: str) -> str:
    """Return the name of an entry.

    >>> entry_text("ligo from 4"), entry_text("source 4"), entry_text("lemon/stack"), entry_text("source small")
    ('ligo (source 4x)', 'source 4x', 'lemon/stack', 'source small')
    """
    grown = re.fullmatch(rf"(.+) from ({_STRENGTH})", name)
    if grown:
        return f"{grown[1]} (source {source_text(grown[2])})"
    alone = re.fullmatch(rf"source ({_STRENGTH})", name)
    return f"source {source_text(alone[1])}" if alone else name


def source_subject(record: Mapping[str, Any], name: str) -> str:
    """Return a source as the subject of a sentence: without its strength where there is no other source."""
    if not re.fullmatch(_STRENGTH, name):
        return f"The source `{name}`"
    return "The source" if len(record["sources"]) == 1 else f"The source trained `{source_text(name)}`"

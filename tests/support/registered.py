"""Leave the registry of families as it was: its order, too, decides what pages and look-ups say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ligo_convert.families import registry
from ligo_convert.families.registry import FAMILIES


@contextmanager
def families_restored() -> Iterator[dict[str, Any]]:
    """Give the table of families to change; afterwards it holds what it held, in the same order."""
    tables: list[dict[Any, Any]] = [FAMILIES, registry._SOURCES, registry._FILES]
    kept = [dict(table) for table in tables]
    try:
        yield FAMILIES
    finally:
        for table, before in zip(tables, kept, strict=True):
            table.clear()
            table.update(before)

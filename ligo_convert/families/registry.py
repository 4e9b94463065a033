"""The families, one file of data each, found by being there. `FAMILIES` is the table that everything else looks in."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping

from ligo_convert.errors import SourceError
from ligo_convert.families import definitions
from ligo_convert.families.schema import Family


def _found() -> dict[str, Family]:
    families: dict[str, Family] = {}
    for module in sorted(found.name for found in pkgutil.iter_modules(definitions.__path__)):
        for value in vars(importlib.import_module(f"{definitions.__name__}.{module}")).values():
            # A module may build on another's table: a family belongs where its name says.
            if isinstance(value, Family) and value.name == module:
                families[module] = value
    return families


FAMILIES: dict[str, Family] = _found()


def find_family(config: Mapping[str, object], *, where: str) -> Family:
    """The family of a config. Raises SourceError naming what is supported."""
    found = config.get("model_type")
    for family in FAMILIES.values():
        if family.model_type == found:
            return family
    names = ", ".join(sorted(family.model_type for family in FAMILIES.values()))
    near = difflib.get_close_matches(str(found), [family.model_type for family in FAMILIES.values()], n=1)
    raise SourceError(
        f"model_type {found!r} is not supported" if found else "config.json names no model_type",
        where=where,
        expected=f"one of: {names}",
        hint=f"did you mean {near[0]}?" if near else "docs/extending/adding-a-family.md says how a family is added",
    )

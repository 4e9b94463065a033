"""The families, one file of data each, found by being there. `FAMILIES` is the table that everything else looks in."""

from __future__ import annotations

import importlib
import pkgutil

from ligo_convert.family import Family


def _found() -> dict[str, Family]:
    families: dict[str, Family] = {}
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__)):
        for value in vars(importlib.import_module(f"{__name__}.{module}")).values():
            # A module may build on another's table: a family belongs where its name says.
            if isinstance(value, Family) and value.name == module:
                families[module] = value
    return families


FAMILIES: dict[str, Family] = _found()

"""ligo-convert: grow a small pretrained transformer into a larger one (LiGO, arXiv:2303.00980).

    import ligo_convert

    grown = ligo_convert.grow(model, {"n_layer": 24, "n_embd": 1024, "n_head": 16}, data=batches)

The names below are the public API; docs/reference/python-api.md describes them. Each is imported when it is first used, so
that `import ligo_convert` imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    # Locks, signals and renames are those of POSIX.
    raise ImportError(
        "ligo-convert runs on Linux and macOS. On Windows, install it in WSL: https://learn.microsoft.com/windows/wsl/install"
    )

if TYPE_CHECKING:
    from ligo_convert.api import (
        apply_operator,
        convert,
        fit_operator,
        load_operator,
        load_recipe,
        plan,
        publish,
        train,
        verify,
    )
    from ligo_convert.errors import (
        LigoError,
        MachineError,
        OutputBusy,
        PublishRefused,
        RecipeError,
        SourceChanged,
        SourceError,
        VerificationError,
    )
    from ligo_convert.families.registry import FAMILIES
    from ligo_convert.families.schema import Family
    from ligo_convert.growth.operator import Operator
    from ligo_convert.in_memory import GrowthReport, grow
    from ligo_convert.recipes.recipe import Recipe

__all__ = [
    "FAMILIES",
    "Family",
    "GrowthReport",
    "LigoError",
    "MachineError",
    "Operator",
    "OutputBusy",
    "PublishRefused",
    "Recipe",
    "RecipeError",
    "SourceChanged",
    "SourceError",
    "VerificationError",
    "apply_operator",
    "convert",
    "fit_operator",
    "grow",
    "load_operator",
    "load_recipe",
    "plan",
    "publish",
    "train",
    "verify",
]

_MODULES = {
    "ligo_convert.api": (
        "apply_operator",
        "convert",
        "fit_operator",
        "load_operator",
        "load_recipe",
        "plan",
        "publish",
        "train",
        "verify",
    ),
    "ligo_convert.errors": (
        "LigoError",
        "MachineError",
        "OutputBusy",
        "PublishRefused",
        "RecipeError",
        "SourceChanged",
        "SourceError",
        "VerificationError",
    ),
    "ligo_convert.families.registry": ("FAMILIES",),
    "ligo_convert.families.schema": ("Family",),
    "ligo_convert.growth.operator": ("Operator",),
    "ligo_convert.in_memory": ("GrowthReport", "grow"),
    "ligo_convert.recipes.recipe": ("Recipe",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

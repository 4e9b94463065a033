"""ligo-convert: grow a small pretrained transformer into a larger one (LiGO, arXiv:2303.00980).

import ligo_convert
grown = ligo_convert.grow(model, {"n_layer": 24, "n_embd": 1024, "n_head": 16}, data=batches)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ligo_convert.api import grow

__all__ = ["grow"]


def __getattr__(name: str) -> Any:
    # torch is imported when somebody grows a model, not when the command line asks for its version.
    if name == "grow":
        from ligo_convert.api import grow

        return grow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The names of wrappers are taken off, and nothing else is."""

from __future__ import annotations

import pytest

from ligo_convert.errors import LigoError, RecipeError, SourceError
from ligo_convert.importing.state_dict import plain_names


@pytest.mark.parametrize(
    ("names", "strip", "expected"),
    [
        (["a.b", "c"], "", ["a.b", "c"]),
        (["module.a", "module.b"], "", ["a", "b"]),
        (["module.a", "b"], "", ["module.a", "b"]),
        (["_orig_mod.module.a", "_orig_mod.module.b"], "", ["a", "b"]),
        (["blocks.0._orig_mod.w", "blocks.1._orig_mod.w"], "", ["blocks.0.w", "blocks.1.w"]),
        (["layer._fsdp_wrapped_module._checkpoint_wrapped_module.w"], "", ["layer.w"]),
        (["my_orig_mod.w"], "", ["my_orig_mod.w"]),
        (["model.a", "model.b"], "", ["model.a", "model.b"]),
        (["module.model.a", "module.model.b"], "model.", ["a", "b"]),
    ],
)
def test_plain_names(names: list[str], strip: str, expected: list[str]) -> None:
    assert list(plain_names(names, strip=strip, label="f").values()) == expected


@pytest.mark.parametrize(
    ("names", "strip", "error"),
    [
        (["a._orig_mod.w", "a.w"], "", SourceError),
        (["model.a", "b"], "model.", RecipeError),
        (["model."], "model.", SourceError),
    ],
)
def test_names_that_cannot_be_told_apart(names: list[str], strip: str, error: type[LigoError]) -> None:
    with pytest.raises(error):
        plain_names(names, strip=strip, label="f")

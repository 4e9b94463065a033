"""An error is a few lines that steer nothing, whatever it is about."""

from __future__ import annotations

from ligo_convert.errors import LigoError


def test_an_error_is_a_few_lines_whatever_it_repeats() -> None:
    long = "x" * 1_000_000
    text = str(LigoError(long, where=long, expected=long, found=[long] * 3))
    assert len(text) < 4_000
    assert len(text.splitlines()) == 3
    assert "x..." in text

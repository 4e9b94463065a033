"""Locate and quote positions of a text that a user wrote, such as a recipe, for error messages."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

from ligo_convert.errors import RecipeError, printable

EXCERPT_COLUMNS = 100  # characters of a line that are shown

MAX_MESSAGE = 200

_SECRET = re.compile(r"hf_[A-Za-z0-9]{16,}|(?<=://)[^/@\s]+(?=@)")

_NAMED = re.compile(r"""(?i)(?<![a-z_])((?:hf_|auth_|use_auth_)?(?:token|password|api_key)["']?\s*[:=]\s*)[^\s,}]+""")


def holds_secret(text: str) -> bool:
    """Return True if `text` contains a Hub access token or a URL with a password."""
    return bool(_SECRET.search(text))


def redacted(text: str) -> str:
    """Replace secrets, and the values of keys such as `token`, with stars: messages end up in logs."""
    return _NAMED.sub(r"\1***", _SECRET.sub("***", text))


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text with its lines numbered as in an editor. Lines and columns start at 1.

    Attributes:
        text: the text.
        label: name of the text in messages.
        single: True for a value of the command line; messages then show no line number.
    """

    text: str
    label: str
    single: bool = False

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer(r"\r\n|\n|\r", self.text))]

    def place(self, index: int) -> tuple[int, int]:
        """Return line and column of the character at `index`."""
        line = bisect.bisect_right(self._starts, index)
        return line, index - self._starts[line - 1] + 1

    def where(self, line: int, column: int) -> str:
        """Return `label:line:column`, or only the label for a value of the command line."""
        return self.label if self.single else f"{self.label}:{line}:{column}"

    def excerpt(self, line: int, column: int, *, end: int | None = None) -> str:
        """Return the line with a caret below the column. Long lines are cut around the column; secrets are replaced with stars.

        Args:
            line: the line.
            column: the column of the caret.
            end: first column that is not shown; None shows the whole line.
        """
        start = self._starts[line - 1]
        stop = self._starts[line] if line < len(self._starts) else len(self.text)
        whole = self.text[start:stop].rstrip("\r\n")
        if end is not None:
            whole = whole[: end - 1] + " ..."
        first = max(0, column - 1 - EXCERPT_COLUMNS // 2)
        # Stars can be shorter than the secret, so replace secrets on both sides of the caret before cutting.
        before = redacted(whole[: column - 1])
        after = redacted(whole[column - 1 :])
        before = ("..." + before[-EXCERPT_COLUMNS // 2 :]) if first else before
        after = after if len(after) <= EXCERPT_COLUMNS // 2 else after[: EXCERPT_COLUMNS // 2] + "..."
        before = printable(before)
        return f"  {before}{printable(after)}\n  {' ' * len(before)}^"

    def fail(self, index: int, what: str, *, hint: str = "") -> NoReturn:
        """Raise a RecipeError that points at the character at `index`."""
        line, column = self.place(index)
        what = what if len(what) <= MAX_MESSAGE else what[:MAX_MESSAGE] + "..."
        raise RecipeError(
            what, where=self.where(line, column), hint="\n".join(filter(None, (self.excerpt(line, column), hint)))
        )

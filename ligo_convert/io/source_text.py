"""Text that a user wrote: an index in, the line and column of it out, and the line itself to show in a message."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

from ligo_convert.errors import RecipeError, printable

EXCERPT_COLUMNS = 100  # of a line that is shown

MAX_MESSAGE = 200

_SECRET = re.compile(r"hf_[A-Za-z0-9]{16,}|(?<=://)[^/@\s]+(?=@)")

_NAMED = re.compile(r"""(?i)(?<![a-z_])((?:hf_|auth_|use_auth_)?(?:token|password|api_key)["']?\s*[:=]\s*)[^\s,}]+""")


def holds_secret(text: str) -> bool:
    """Whether `text` has the form of an access token of the Hub, or a url with a password."""
    return bool(_SECRET.search(text))


def redacted(text: str) -> str:
    """`text` with secrets, and what is given for a key such as `token`, starred out: messages end up in logs."""
    return _NAMED.sub(r"\1***", _SECRET.sub("***", text))


@dataclass(frozen=True, kw_only=True)
class Text:
    """Text with its lines counted as an editor counts them; lines and columns start at 1."""

    text: str
    label: str
    single: bool = False  # a value of the command line: it has a label, and no lines worth counting

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer(r"\r\n|\n|\r", self.text))]

    def place(self, index: int) -> tuple[int, int]:
        """Line and column of the character at `index`."""
        line = bisect.bisect_right(self._starts, index)
        return line, index - self._starts[line - 1] + 1

    def where(self, line: int, column: int) -> str:
        """`label:line:column`, or the label alone for a value of the command line."""
        return self.label if self.single else f"{self.label}:{line}:{column}"

    def excerpt(self, line: int, column: int, *, end: int | None = None) -> str:
        """The line and, below it, a caret; a long line is cut around the column, secrets are starred out.

        Args:
            end: a column from which on nothing is shown.
        """
        start = self._starts[line - 1]
        stop = self._starts[line] if line < len(self._starts) else len(self.text)
        whole = self.text[start:stop].rstrip("\r\n")
        if end is not None:
            whole = whole[: end - 1] + " ..."
        first = max(0, column - 1 - EXCERPT_COLUMNS // 2)
        # Stars may be shorter than what they hide, so both sides of the caret are starred out before they are cut.
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

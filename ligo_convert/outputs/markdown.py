"""Quote foreign text for Markdown, so that it is displayed unchanged and has no effect.

Input: any value. Output: one line of GitHub-flavoured Markdown for running text and table cells, in which the value contains no markup,
HTML, link, formula or control character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from ligo_convert.errors import printable

LONGEST = 200  # characters of one value that are shown

# Characters without a meaning in Markdown, and `_` and `*`, which are escaped.
_PLAIN = re.compile(r"[A-Za-z0-9 ,.;:()'/=+%_*-]*")

# GitHub turns these into links without any markup.
_LINKS = re.compile(r"://|www\.|@|mailto:|xmpp:", re.IGNORECASE)

# At the start of a line these begin a list, a heading or a rule.
_OPENING = re.compile(r"[\s+=*-]|\d+[.)]")


def code(value: object) -> str:
    """Return `value` as a code span: text unchanged, anything else as JSON.

    >>> code("a`b"), code([1, None])
    ('``a`b``', '`[1, null]`')
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    # A bar ends a table cell even in a code span, and escaping it depends on the characters before it: show its code instead.
    text = _cut(printable(text).replace("|", r"\x7c")) if text else '""'
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    # Markdown strips one space from each end if both ends have one, except in a code span of spaces only.
    edges = text[:1] + text[-1:]
    padded = f" {text} " if text.strip() and ("`" in edges or " " in edges) else text
    return fence + padded + fence


def prose(value: object) -> str:
    r"""Return `value` as running text if it is harmless, otherwise as a code span.

    >>> prose("n_embd 768 to 1024"), prose("see http://x.y")
    ('n\\_embd 768 to 1024', '`see http://x.y`')
    """
    text = printable(value)
    harmless = _PLAIN.fullmatch(text) and not _LINKS.search(text) and not _OPENING.match(text)
    if not text or not harmless or len(text) > LONGEST:
        return code(text)
    return re.sub(r"([_*])", r"\\\1", text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text: Collection[int] = (0,)) -> Iterator[str]:
    """Yield the lines of a table. Cells must be Markdown.

    Args:
        text: numbers of the columns that are text, aligned to the left. The others are figures, aligned to the right.
    """
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join(" --- " if number in text else " ---: " for number in range(len(head))) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


def linked(paper: str) -> str:
    """Turn arXiv ids into links."""
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)


def plain_table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> Iterator[str]:
    """Yield the lines of a table with left-aligned text in every column."""
    yield from (f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))

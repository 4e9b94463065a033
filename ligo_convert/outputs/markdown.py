"""Foreign text in Markdown: quoted so that it is shown as it is and does nothing.

What comes in: any value. What goes out: one line of GitHub-flavoured Markdown, for running text and table cells alike, in which the
value is no markup, no HTML, no link, no formula, and no control character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from ligo_convert.errors import printable

LONGEST = 200  # characters shown of one value

# Words and figures that mean nothing to Markdown, but for `_` and `*`, which are escaped. No `://`, `www.` or `@`: links by themselves.
_PLAIN = re.compile(r"[A-Za-z0-9 ,.;:()'/=+%_*-]*")

_LINKS = re.compile(r"://|www\.|@|mailto:|xmpp:", re.IGNORECASE)

# At the start of a line these make a list, a heading or a rule.
_OPENING = re.compile(r"[\s+=*-]|\d+[.)]")


def code(value: object) -> str:
    """`value` as a code span: text as it is, anything else as JSON.

    >>> code("a`b"), code([1, None])
    ('``a`b``', '`[1, null]`')
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    # A bar ends a table cell even in a code span, and how to escape it there depends on what stands before: show it as its code.
    text = _cut(printable(text).replace("|", r"\x7c")) if text else '""'
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    # One space is taken off each end where both have one; a code span of spaces alone is left alone.
    edges = text[:1] + text[-1:]
    padded = f" {text} " if text.strip() and ("`" in edges or " " in edges) else text
    return fence + padded + fence


def prose(value: object) -> str:
    r"""`value` as running text where it is harmless, else as a code span.

    >>> prose("n_embd 768 to 1024"), prose("see http://x.y")
    ('n\\_embd 768 to 1024', '`see http://x.y`')
    """
    text = printable(value)
    harmless = _PLAIN.fullmatch(text) and not _LINKS.search(text) and not _OPENING.match(text)
    if not text or not harmless or len(text) > LONGEST:
        return code(text)
    return re.sub(r"([_*])", r"\\\1", text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table; cells are Markdown already. The first column is text, the others figures."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join([" --- ", *[" ---: "] * (len(head) - 1)]) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


def linked(paper: str) -> str:
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)


def plain_table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> Iterator[str]:
    """A table of words, to the left."""
    yield from (f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))

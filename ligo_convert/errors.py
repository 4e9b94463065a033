"""The exception tree: what went wrong, where, what was expected and found, and what to do.

    LigoError                      70  a bug of ours unless a subclass says otherwise
    |-- RecipeError                 2  the recipe or the command line
    |   `-- DataMissing             2  files that it names are not there
    |-- SourceError                 3  a source checkpoint that cannot be used
    |-- SourceChanged               4  a source out of reach, or changed while it was read
    |   `-- HubUnreachable          4  the Hub out of reach, or failing
    |-- MachineError                5  disk, memory, permission
    |   `-- MissingExtra            5  an optional dependency, with the line that installs it
    |-- OutputBusy                  6  an output directory that is taken
    |   `-- OutputLocked            6  or that another run is writing
    |-- VerificationError           7  what was written is not what was meant
    |-- PublishRefused              8  something that must not be shared
    `-- Interrupted           130/143  SIGINT or SIGTERM

Low-level code raises with what it knows; `cli.py` alone prints, and turns the class into the exit code.
"""

from __future__ import annotations

import signal
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def printable(text: object) -> str:
    r"""`text` on one line with every control, format and bidirectional character shown as an escape.

    Names come from files that others wrote: nothing in them may steer a terminal or a model card.

    >>> printable("a\x1b[2Jb\u202e")
    'a\\x1b[2Jb\\u202e'
    """
    return "".join(
        character
        if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in str(text)
    )


def some(names: Sequence[str], most: int = 4, *, between: str = ", ") -> str:
    """The first of many names, and how many more there are.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class LigoError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        what: one line saying what is wrong.
        where: `file:line:column`, a file, a tensor, or several joined by the caller; empty where it says nothing.
        expected, found: the two sides of a failed comparison.
        hint: what the user can do next.
    """

    exit_code = 70

    def __init__(
        self,
        what: str,
        *,
        where: str | Path = "",
        expected: object = None,
        found: object = None,
        hint: str = "",
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.expected, self.found, self.hint = what, str(where), expected, found, hint

    def __str__(self) -> str:
        first = f"{printable(self.where)}: {printable(self.what)}" if self.where else printable(self.what)
        lines = [first]
        if self.expected is not None:
            lines.append(f"  expected: {printable(self.expected)}")
        if self.found is not None:
            lines.append(f"  found:    {printable(self.found)}")
        # A hint is ours and may hold several lines (a list of names, a command to copy).
        lines += [f"  {printable(line)}" for line in self.hint.splitlines()]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # Constructors differ; what an error says is in its attributes.
        return _again, (type(self), self.args, dict(self.__dict__))


def _again(kind: type[LigoError], args: tuple[Any, ...], attributes: dict[str, Any]) -> LigoError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class RecipeError(LigoError):
    """The recipe, the manifest or the command line asks for something that cannot be."""

    exit_code = 2


class DataMissing(RecipeError):
    """The data that a recipe names is not there: a run cannot do without, a plan can."""


class SourceError(LigoError):
    """The source checkpoint is broken, incomplete, unsupported or unsafe."""

    exit_code = 3


class SourceChanged(LigoError):
    """The source cannot be reached, or its bytes are not the bytes that were digested."""

    exit_code = 4


class HubUnreachable(SourceChanged):
    """The Hub cannot be reached, or goes on failing.

    `passing`: whether trying again may help.
    """

    def __init__(self, what: str, *, passing: bool = False, **said: Any) -> None:
        super().__init__(what, **said)
        self.passing = passing


class MachineError(LigoError):
    """The machine does not give what is needed: disk, memory, permission."""

    exit_code = 5


class MissingExtra(MachineError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, *, extra: str, where: str | Path = "") -> None:
        super().__init__(what, where=where, hint=f"install it with: pip install 'ligo-convert[{extra}]'")


class OutputBusy(LigoError):
    """The output directory is occupied, or another run is writing it."""

    exit_code = 6


class OutputLocked(OutputBusy):
    """Another run is writing it."""

    SAYS = "another run is writing here"

    def __init__(self, where: str | Path) -> None:
        super().__init__(self.SAYS, where=where, hint="wait for it, or choose another output")


class VerificationError(LigoError):
    """A written file does not hold what was meant."""

    exit_code = 7


class PublishRefused(LigoError):
    """Publishing would share what must not be shared."""

    exit_code = 8


class Interrupted(LigoError):
    """A signal asked us to stop; staged work stays and the same command goes on from it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}", hint="run the same command again to go on")
        self.exit_code = 128 + number

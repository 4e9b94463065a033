"""The exceptions of this package and their exit codes.

    LigoError                      70  base class; an internal error unless a subclass has its own code
    |-- RecipeError                 2  invalid recipe, manifest or command line
    |   `-- DataMissing             2  training data not found
    |-- SourceError                 3  unusable source checkpoint
    |-- SourceChanged               4  source unreachable, or changed during the run
    |   `-- HubUnreachable          4  Hub unreachable or failing
    |-- MachineError                5  disk, memory, permission
    |   `-- MissingExtra            5  optional dependency not installed
    |-- OutputBusy                  6  output directory in use
    |   `-- OutputLocked            6  another run holds its lock
    |-- VerificationError           7  written file not as expected
    |   `-- WrongResult             7  result not as the method or the library requires
    |-- PublishRefused              8  publishing refused
    `-- Interrupted           130/143  SIGINT or SIGTERM

Each error says what is wrong, where, what was expected and found, and what to do next. Only `cli/main.py` prints errors and exits.
"""

from __future__ import annotations

import difflib
import itertools
import reprlib
import signal
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def printable(text: object) -> str:
    r"""Return `text` on one line, with control, format and bidirectional characters escaped.

    Names come from untrusted files. They must not control a terminal or the layout of a model card.

    >>> printable("a\x1b[2Jb\u202e")
    'a\\x1b[2Jb\\u202e'
    """
    return "".join(
        character
        if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in str(text)
    )


class _Brief(reprlib.Repr):
    """`reprlib` for values of untrusted files, whose integers may have more digits than Python prints."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 4
        self.maxstring = self.maxlong = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        digits = x.bit_length() * 3 // 10
        return super().repr_int(x, level) if digits < self.maxlong else f"a number of about {digits} digits"


_BRIEF = _Brief()


# Characters of a name, and names, that are compared for a hint: the time grows with the square of the one and with the other.
_COMPARED = 500

# Characters of a line of an error. Names and values come from untrusted files, and one may have megabytes.
_LINE = 600


def _cut(value: object) -> str:
    """Return a value as a line of an error shows it: cut to `_LINE` characters."""
    text = value if isinstance(value, str) else brief(value) if isinstance(value, int) else str(value)
    return printable(text if len(text) <= _LINE else f"{text[:_LINE]}...")


def brief(value: object) -> str:
    """Return the `repr` of `value`, cut to about a line: it may be a list of a million entries.

    >>> brief([1] * 10**6)
    '[1, 1, 1, 1, ...]'
    """
    return _BRIEF.repr(value)


def close_matches(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return at most `n` names of `known` that resemble `name`, best first. Long and many names are cut: this is only a hint."""
    return difflib.get_close_matches(
        name[:_COMPARED], [other[:_COMPARED] for other in itertools.islice(known, _COMPARED)], n=n, cutoff=cutoff
    )


def some(names: Sequence[str], most: int = 4, *, between: str = ", ") -> str:
    """Join the first `most` names and append the number of the remaining ones.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class LigoError(Exception):
    """Base class of all errors that this package raises on purpose.

    Args:
        what: one line that describes the problem.
        where: location of the problem: `file:line:column`, a file or a tensor; empty if unknown.
        expected: the expected side of a failed comparison.
        found: the actual side of a failed comparison.
        hint: what the user can do next.

    Attributes:
        permanent: whether the same work ends the same however often it is tried, so that nothing of it is worth keeping. Work on a
            mended recipe or source is other work.
    """

    exit_code = 70
    permanent = False

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
        first = f"{_cut(self.where)}: {_cut(self.what)}" if self.where else _cut(self.what)
        lines = [first]
        if self.expected is not None:
            lines.append(f"  expected: {_cut(self.expected)}")
        if self.found is not None:
            lines.append(f"  found:    {_cut(self.found)}")
        # Hints are written by this package, so they may span several lines (a list of names, a command to copy).
        lines += [f"  {printable(line)}" for line in self.hint.splitlines()]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses have different constructors, so unpickling restores the attributes instead.
        return _restore, (type(self), self.args, dict(self.__dict__))


def _restore(kind: type[LigoError], args: tuple[Any, ...], attributes: dict[str, Any]) -> LigoError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class RecipeError(LigoError):
    """The recipe, the manifest or the command line is invalid."""

    exit_code = 2
    permanent = True


class DataMissing(RecipeError):
    """Training data named in the recipe was not found. `plan` continues with a warning; `run` stops."""

    permanent = False


class SourceError(LigoError):
    """The source checkpoint is broken, incomplete, unsupported or unsafe."""

    exit_code = 3
    permanent = True


class SourceChanged(LigoError):
    """The source cannot be reached, or its files changed during the run."""

    exit_code = 4


class HubUnreachable(SourceChanged):
    """The Hub cannot be reached, or keeps failing.

    Args:
        what: as in `LigoError`; so are the other keyword arguments.
        passing: True if the failure may be temporary, so that a retry can succeed.
    """

    def __init__(self, what: str, *, passing: bool = False, **details: Any) -> None:
        super().__init__(what, **details)
        self.passing = passing


class MachineError(LigoError):
    """The machine lacks disk space, memory or a permission."""

    exit_code = 5


class MissingExtra(MachineError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, *, extra: str, where: str | Path = "") -> None:
        super().__init__(what, where=where, hint=f"install it with: pip install 'ligo-convert[{extra}]'")


class OutputBusy(LigoError):
    """The output directory already holds something else."""

    exit_code = 6


class OutputLocked(OutputBusy):
    """Another run is writing the output directory."""

    SAYS = "another run is writing here"

    def __init__(self, where: str | Path) -> None:
        super().__init__(self.SAYS, where=where, hint="wait until it ends, or choose another output")


class VerificationError(LigoError):
    """A written file does not have the expected content."""

    exit_code = 7


class WrongResult(VerificationError):
    """A growth that is exact by mathematics changes the function, or the library does not load the output."""

    permanent = True


class PublishRefused(LigoError):
    """Publishing was refused because the output holds something that must stay private."""

    exit_code = 8


class Interrupted(LigoError):
    """A signal stopped the run. The same command resumes from the finished work."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}", hint="run the same command again to resume")
        self.exit_code = 128 + number

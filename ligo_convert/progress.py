"""Progress: what the pipeline tells of itself while it works.

The pipeline talks to `Progress`; the command line shows it with rich on stderr, everything else stays quiet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Task:
    """One stretch of work. `advance` by units done, `note` what a person would like to read beside the bar."""

    def advance(self, amount: float = 1) -> None: ...

    def reach(self, completed: float) -> None: ...

    def note(self, text: str) -> None: ...


class Progress:
    """Says nothing. Subclasses show tasks as they run, and messages."""

    @contextmanager
    def task(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Task]:
        """A stretch of work of `total` units (None: unknown)."""
        yield Task()

    def say(self, text: str) -> None:
        """A line worth keeping."""

    def warn(self, text: str) -> None:
        """A line that should not be missed."""

"""Progress that is recorded, for tests that ask what was said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ligo_convert.progress import Progress, Task


class RecordedProgress(Progress):
    """Progress that records every task, message and warning."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.said: list[str] = []
        self.warned: list[str] = []

    @contextmanager
    def task(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Task]:
        self.tasks.append(name)
        yield Task()

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

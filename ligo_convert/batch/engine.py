"""TODO: one sentence."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from ligo_convert.batch.job import Assignment
from ligo_convert.progress import Progress, Task

TELL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class ResourceRequest:
    """An assignment and what it takes: processor cores (0: an even share), graphics processors, bytes of memory."""

    assignment: Assignment
    cpus: float
    gpus: float
    memory: int

    @property
    def cards(self) -> float:
        """Graphics processors, one where the command line asks for them and the manifest says nothing."""
        if self.assignment.device == "cpu":
            return 0.0
        return self.gpus or (1.0 if self.assignment.device == "cuda" else 0.0)

    @property
    def device(self) -> str:
        """To compute on, for a process that sees those it was given alone."""
        return self.assignment.device if self.cards else "cpu"

    @property
    def name(self) -> str:
        return self.assignment.name


@dataclass(frozen=True, kw_only=True)
class Event:
    """Of an entry: `told` what it is at, `said` a line worth keeping, or `ended` with a result."""

    name: str
    kind: Literal["told", "said", "ended"]
    value: Any


class Engine(Protocol):
    """A context manager; leaving it stops what is running, whose staged work stays.

    Attributes:
        here: whether entries are done on this machine, by whose memory and disk they can be judged.
    """

    here: bool

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def has_room(self, load: ResourceRequest) -> bool:
        """Whether it could be started now."""

    def start(self, load: ResourceRequest) -> None: ...

    def events(self, seconds: float) -> list[Event]:
        """What has happened, after waiting for so long at most."""


class ProgressSender(Progress):
    """Progress that is told as plain text, now and then."""

    def __init__(self, tell: Callable[[Literal["told", "said"], str], None]) -> None:
        self._tell, self._last = tell, 0.0

    @contextlib.contextmanager
    def task(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Task]:
        yield _SentTask(self, name, total)

    def say(self, text: str) -> None:
        self._tell("said", text)

    def warn(self, text: str) -> None:
        self._tell("said", f"warning: {text}")

    def at(self, text: str) -> None:
        if time.monotonic() - self._last > TELL_SECONDS:
            self._last = time.monotonic()
            self._tell("told", text)


class _SentTask(Task):
    def __init__(self, progress: ProgressSender, name: str, total: float | None) -> None:
        self.progress, self.name, self.total, self.done, self.noted = progress, name, total, 0.0, ""
        self._show()

    def advance(self, amount: float = 1) -> None:
        self.reach(self.done + amount)

    def reach(self, completed: float) -> None:
        self.done = completed
        self._show()

    def note(self, text: str) -> None:
        self.noted = text
        self._show()

    def _show(self) -> None:
        part = f" {min(1.0, self.done / self.total):.0%}" if self.total else ""
        self.progress.at(f"{self.name}{part}{f', {self.noted}' if self.noted else ''}")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What the command line says of an engine."""

    jobs: int
    folder: Path
    address: str | None
    tell: Callable[[Event], None]

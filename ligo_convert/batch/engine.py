"""The engine protocol: how a batch starts entries and learns what happens to them.

Input: a `ResourceRequest` for each entry to start. Output: `Event`s. `engines.ENGINES` is the table of implementations.
"""

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

REPORT_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class ResourceRequest:
    """An assignment and the resources it needs.

    Attributes:
        assignment: the entry to convert.
        cpus: processor cores; 0 requests an equal share.
        gpus: GPUs, possibly a fraction of one; 0 if the manifest requests none.
        memory: bytes.
    """

    assignment: Assignment
    cpus: float
    gpus: float
    memory: int

    @property
    def gpu_count(self) -> float:
        """GPUs to reserve: those of the manifest, or one if only the command line asks for a GPU."""
        if self.assignment.device == "cpu":
            return 0.0
        return self.gpus or (1.0 if self.assignment.device == "cuda" else 0.0)

    @property
    def device(self) -> str:
        """The device to compute on, for a process that sees only its reserved GPUs."""
        return self.assignment.device if self.gpu_count else "cpu"

    @property
    def name(self) -> str:
        """The entry's name."""
        return self.assignment.name


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a running entry.

    Attributes:
        name: the entry.
        kind: `progress` (value: the current activity), `message` (value: a line to keep) or `ended` (value: the result record).
        value: see `kind`.
    """

    name: str
    kind: Literal["progress", "message", "ended"]
    value: Any


class Engine(Protocol):
    """A context manager that runs entries. Leaving it stops running entries; their staged work remains.

    Attributes:
        is_local: True if entries run on this machine, so that its memory and disk decide what fits.
    """

    is_local: bool

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def has_room(self, request: ResourceRequest) -> bool:
        """Return True if the entry can be started now."""

    def start(self, request: ResourceRequest) -> None:
        """Start an entry. An exception fails this entry only."""

    def events(self, seconds: float) -> list[Event]:
        """Return what has happened since the last call; wait up to `seconds` for something to happen."""


class ProgressSender(Progress):
    """Progress sent as plain text, at most every `REPORT_SECONDS`.

    Args:
        send: receives an event's kind and its text.
    """

    def __init__(self, send: Callable[[Literal["progress", "message"], str], None]) -> None:
        self._send, self._last = send, 0.0

    @contextlib.contextmanager
    def task(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Task]:
        yield _SentTask(self, name, total)

    def say(self, text: str) -> None:
        self._send("message", text)

    def warn(self, text: str) -> None:
        self._send("message", f"warning: {text}")

    def report(self, text: str) -> None:
        """Send the current activity, unless the last one was sent a moment ago."""
        if time.monotonic() - self._last > REPORT_SECONDS:
            self._last = time.monotonic()
            self._send("progress", text)


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
        self.progress.report(f"{self.name}{part}{f', {self.noted}' if self.noted else ''}")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Command-line options of an engine.

    Attributes:
        jobs: number of entries at a time on this machine.
        logs: folder for what libraries print.
        address: of a cluster, or None.
        on_event: receives events that do not wait for `Engine.events`.
    """

    jobs: int
    logs: Path
    address: str | None
    on_event: Callable[[Event], None]

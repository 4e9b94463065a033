"""Show the progress of a run as lines: plain text or JSON, for logs, pipes and other programs.

A stage has a line when it begins, one every `INTERVAL` seconds while it runs, and, if it ran that long, one when it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from ligo_convert.cli.wrapping import wrapped
from ligo_convert.errors import LigoError, printable
from ligo_convert.progress import Progress, Task
from ligo_convert.units import amount, duration, flops, size

if TYPE_CHECKING:
    from ligo_convert.batch.scheduler import EntryStatus

# Seconds between two lines of a stage.
INTERVAL = 30.0
VERBOSE_INTERVAL = 5.0

# Event -> colour of its first word on a terminal.
COLOURS = {"error": "red", "warning": "yellow"}

# Lines from which the rate is computed: it follows what has changed, and one slow interval does not upset it.
_RATE_LINES = 10

Level = Literal["quiet", "normal", "verbose"]


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What is shown on stderr.

    Attributes:
        level: quiet: warnings and errors only; verbose: a line of a stage every 5 seconds, even on a terminal.
        form: text, or one JSON object a line.
    """

    level: Level = "normal"
    form: Literal["text", "json"] = "text"

    @property
    def interval(self) -> float:
        return VERBOSE_INTERVAL if self.level == "verbose" else INTERVAL


DEFAULT_LOG = LogSettings()


class LogWriter:
    """Writes events as lines.

    Args:
        stream: where to write.
        settings: the form of the lines, and what is left out.
    """

    def __init__(self, stream: TextIO, settings: LogSettings) -> None:
        self.stream, self.settings = stream, settings

    def write(self, event: str, text: str, **fields: Any) -> None:
        """Write one line: `text`, or as JSON the time, the event, the text and the fields that are not None."""
        if self.settings.level == "quiet" and event not in ("warning", "error"):
            return
        if self.settings.form == "json":
            data = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, "text": text}
            line = json.dumps({**data, **{key: value for key, value in fields.items() if value is not None}})
        else:
            parts = [printable(part) for part in text.splitlines()]
            if event in COLOURS and self.stream.isatty():
                parts = [line for part in parts for line in wrapped(part, shutil.get_terminal_size().columns)]
            line = self._coloured(event, "\n".join(parts))
        print(line, file=self.stream, flush=True)

    def _coloured(self, event: str, line: str) -> str:
        """Return a line whose first word has a colour if it is a warning or an error on a terminal."""
        if event not in COLOURS or not self.stream.isatty() or os.environ.get("NO_COLOR"):
            return line
        word, colon, rest = line.partition(":")
        return click.style(word + colon, fg=COLOURS[event], bold=True) + rest

    def error(self, error: LigoError) -> None:
        """Write an error."""
        self.write(
            "error",
            f"error: {error}" if self.settings.form == "text" else error.what,
            where=error.where or None,
            expected=None if error.expected is None else str(error.expected),
            found=None if error.found is None else str(error.found),
            hint=error.hint or None,
            exit_code=error.exit_code,
        )


class LoggedProgress(Progress):
    """Progress as lines.

    Args:
        writer: writes the lines.
        stages: whether to write lines about stages; messages and warnings always are.
    """

    def __init__(self, writer: LogWriter, *, stages: bool = True) -> None:
        self.writer, self.stages = writer, stages

    @contextmanager
    def task(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Task]:
        if not self.stages:
            yield Task()
            return
        task = _LoggedTask(self.writer, name, total, unit)
        task.begin()
        try:
            yield task
        except BaseException:
            task.end("stopped")
            raise
        task.end("done")

    def say(self, text: str) -> None:
        self.writer.write("message", text)

    def warn(self, text: str) -> None:
        self.writer.write("warning", f"warning: {text}" if self.writer.settings.form == "text" else text)


class EntryLines:
    """Lines about the entries of a batch: one for every change of state, and while an entry runs what it does.

    Args:
        write: writes an event, as `LogWriter.write` does.
        interval: seconds between two lines of a running entry.
    """

    def __init__(self, write: Callable[..., None], interval: float) -> None:
        self.write, self.interval = write, interval
        self._states: dict[str, str] = {}
        self._told: dict[str, float] = {}

    def changed(self, name: str, status: EntryStatus) -> None:
        """Receive the status of an entry."""
        now = time.monotonic()
        if status.state != self._states.get(name, ""):
            self._states[name], self._told[name] = status.state, now
            why = f": {status.why}" if status.why else ""
            before = " in an earlier run" if status.reused else ""
            for line in f"{status.state}{before}{why}".splitlines():
                self.write("entry", f"{name}: {line}", entry=name, state=status.state, exit_code=status.code or None)
        elif status.state == "running" and status.activity and now - self._told[name] >= self.interval:
            self._told[name] = now
            self.write("progress", f"{name}: {status.activity}", entry=name, state=status.state)

    def say(self, name: str, text: str) -> None:
        """Receive a line to keep."""
        self.write("warning" if text.startswith("warning: ") else "message", f"{name}: {text}", entry=name)


class _LoggedTask(Task):
    def __init__(self, writer: LogWriter, name: str, total: float | None, unit: str) -> None:
        self.writer, self.name, self.total, self.unit = writer, name, total, unit
        self.completed, self.text = 0.0, ""
        self.began = time.monotonic()
        # Time and completed units of the last lines. A stage that goes on from an earlier run reports what is there at once.
        self.lines: deque[tuple[float, float]] = deque(maxlen=_RATE_LINES)
        self.last = self.began

    def begin(self) -> None:
        total = None if not self.total else _quantity(self.total, self.unit)
        self._write("begin", self.name if total is None else f"{self.name}: {total}", total=self.total)

    def advance(self, amount: float = 1) -> None:
        self.reach(self.completed + amount)

    def reach(self, completed: float) -> None:
        now = time.monotonic()
        self.completed = completed
        if not self.lines:
            self.lines.append((now, completed))
        elif now - self.last >= self.writer.settings.interval:
            self._progress(now)

    def note(self, text: str) -> None:
        self.text = text

    def end(self, how: str) -> None:
        seconds = time.monotonic() - self.began
        # A stage that had no line in between needs none; an error says what stopped it.
        if seconds >= self.writer.settings.interval or self.writer.settings.form == "json":
            self._write(how, f"{self.name}: {how} after {duration(seconds)}", seconds=round(seconds, 3))

    def _progress(self, now: float) -> None:
        (then, before), self.last = self.lines[0], now
        rate = (self.completed - before) / (now - then) if now > then else 0.0
        self.lines.append((now, self.completed))
        left = (self.total - self.completed) / rate if self.total is not None and rate > 0 else None
        parts = []
        if self.total:
            share = min(1.0, self.completed / self.total)
            parts.append(f"{share:.0%}, {_quantity(self.completed, self.unit, of=self.total)}")
        else:
            parts.append(_quantity(self.completed, self.unit))
        if rate > 0:
            parts.append(f"{_quantity(rate, self.unit)}/s")
        if left is not None:
            parts.append(f"{duration(left)} left")
        if self.text:
            parts.append(self.text)
        self._write(
            "progress",
            f"{self.name}: {', '.join(parts)}",
            completed=self.completed,
            total=self.total,
            rate=rate,
            seconds_left=None if left is None else round(left, 1),
            note=self.text or None,
        )

    def _write(self, event: str, text: str, **fields: Any) -> None:
        self.writer.write(event, text, stage=self.name, unit=self.unit or None, **fields)


def _quantity(number: float, unit: str, *, of: float | None = None) -> str:
    """Return an amount with its unit: `340 of 1,000 steps`, `1.20 of 4.10 GB`, `3.1 TFLOPs of 5.2 TFLOPs`."""
    if unit in ("bytes", "B"):
        return size(number) if of is None else f"{size(number)} of {size(of)}"
    if unit == "FLOPs":
        return flops(number) if of is None else f"{flops(number)} of {flops(of)}"
    if number and max(number, of or 0) < 1e6:
        shown = f"{number:,.0f}" if number >= 10 or float(number).is_integer() else f"{number:.2g}"
        whole = "" if of is None else f" of {of:,.0f}"
    else:
        shown, whole = amount(number), "" if of is None else f" of {amount(of)}"
    return f"{shown}{whole} {unit}".rstrip()

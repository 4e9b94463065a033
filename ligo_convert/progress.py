"""The progress interface of the pipeline.

The pipeline reports to `Progress`. The command line subclasses it to show progress bars on stderr; the base class shows nothing. Trainings
also report their measurements, which loggers may keep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol


class MetricLogger(Protocol):
    """Receives the measurements of trainings."""

    def write(self, run: str, step: int, values: Mapping[str, float]) -> None:
        """Write measurements of `run` after `step` steps. A step may come again after a resume; the last values count."""
        ...

    def close(self) -> None: ...


class Task:
    """One task with a progress bar."""

    def advance(self, amount: float = 1) -> None:
        """Add `amount` finished units."""

    def reach(self, completed: float) -> None:
        """Set the number of finished units."""

    def note(self, text: str) -> None:
        """Show a short text beside the bar."""


class Progress:
    """Shows nothing. Subclasses show running tasks and messages.

    Attributes:
        loggers: receive the measurements of trainings.
    """

    loggers: Sequence[MetricLogger] = ()

    @contextmanager
    def task(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Task]:
        """Start a task of `total` units; None if unknown."""
        yield Task()

    def say(self, text: str) -> None:
        """Show one line of information."""

    def warn(self, text: str) -> None:
        """Show one line of warning."""

    def measure(self, run: str, line: Mapping[str, Any]) -> None:
        """Give a line of the log of a training, `step` and measurements, to the loggers. `run` names the training."""
        if self.loggers:
            values = values_of(line)
            for logger in self.loggers:
                logger.write(run, int(line["step"]), values)


def values_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the measurements of a line of a log, by name; nested ones as `learning_rate/width`. What is not finite is left out.

    >>> values_of({"step": 3, "loss": 2.5, "learning_rate": {"width": 0.1}})
    {'loss': 2.5, 'learning_rate/width': 0.1}
    """
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{key}": number for key, number in values_of(value).items()}
        elif name != "step" and isinstance(value, int | float) and math.isfinite(value):
            found[name] = float(value)
    return found

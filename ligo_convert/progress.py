"""The progress interface of the pipeline.

The pipeline reports to `Progress`. The command line subclasses it to show progress bars on stderr; the base class shows nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ligo_convert.outputs.loggers import MetricLogger


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
            from ligo_convert.outputs.loggers import values_of

            values = values_of(line)
            for logger in self.loggers:
                logger.write(run, int(line["step"]), values)

"""Show the progress of a run, and the states of a batch, on stderr."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from ligo_convert.cli.format import STATE_STYLES, make_table, print_wrapped, text_of
from ligo_convert.cli.log_lines import DEFAULT_LOG, EntryLines, LoggedProgress, LogSettings, LogWriter
from ligo_convert.errors import printable
from ligo_convert.progress import Progress, Task

if TYPE_CHECKING:
    from ligo_convert.batch.scheduler import Watcher


class _ShownTask(Task):
    def __init__(self, bars: RichProgress, number: Any, unit: str) -> None:
        self.bars, self.number, self.unit = bars, number, unit

    def advance(self, amount: float = 1) -> None:
        self.bars.advance(self.number, amount)

    def reach(self, completed: float) -> None:
        self.bars.update(self.number, completed=completed)

    def note(self, text: str) -> None:
        self.bars.update(self.number, note=printable(text))


class ShownProgress(Progress):
    """Progress bars on a terminal.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = RichProgress(
            SpinnerColumn(finished_text="[green]v"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
        )

    @contextmanager
    def task(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Task]:
        number = self.bars.add_task(f"{name:<24}", total=total, note="")
        try:
            yield _ShownTask(self.bars, number, unit)
        except BaseException:
            self.bars.update(number, note="stopped")
            self.bars.stop_task(number)
            raise
        ended = self.bars.tasks[self.bars.task_ids.index(number)].total or 1
        self.bars.update(number, total=ended, completed=ended)

    def say(self, text: str) -> None:
        print_wrapped(self.console, text)

    def warn(self, text: str) -> None:
        print_wrapped(self.console, f"warning: {text}", style="yellow")


def message_console() -> Console:
    """Return a console on stderr that does not wrap lines outside a terminal."""
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else Console(stderr=True, highlight=False, width=160)


@contextmanager
def shown_progress(settings: LogSettings = DEFAULT_LOG, *, stages: bool = True) -> Iterator[Progress]:
    """Show progress on stderr while the block runs: bars on a terminal and in a notebook, lines elsewhere.

    Args:
        settings: what is shown, and in which form.
        stages: without a terminal, whether to write lines about stages, and not messages and warnings alone.
    """
    console = Console(stderr=True)
    # rich draws bars in a notebook with ipywidgets.
    notebook = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    if settings == DEFAULT_LOG and (console.is_terminal or notebook):
        bars = ShownProgress(console)
        with bars.bars:
            yield bars
    else:
        yield LoggedProgress(LogWriter(sys.stderr, settings), stages=stages)


@contextmanager
def shown_batch(names: Sequence[str], settings: LogSettings = DEFAULT_LOG) -> Iterator[Watcher]:
    """Show a live table of all entries on a terminal; elsewhere, write a line for every change."""
    from rich.live import Live

    from ligo_convert.batch.scheduler import EntryStatus, Watcher

    console = Console(stderr=True, highlight=False)
    if settings != DEFAULT_LOG or not console.is_terminal:
        lines = EntryLines(LogWriter(sys.stderr, settings).write, settings.interval)
        yield Watcher(on_change=lines.changed, on_message=lines.say)
        return
    statuses = {name: EntryStatus() for name in names}

    def table() -> Table:
        shown = make_table("", "entry", "state", "seconds", "", right=(2,))
        for name, status in statuses.items():
            began = status.started if status.state == "running" else None
            seconds = time.monotonic() - began if began is not None else status.seconds
            what = status.activity if status.state == "running" else (status.why or "").partition("\n")[0]
            shown.add_row(
                text_of(name),
                Text(status.state, style=STATE_STYLES[status.state]),
                f"{seconds:.0f}" if seconds else "",
                text_of(what),
            )
        return shown

    with Live(get_renderable=table, console=console, refresh_per_second=4, transient=True) as live:
        # The table shows what an entry does.
        lines = EntryLines(lambda _, text, **fields: print_wrapped(live.console, text), math.inf)

        def changed(name: str, status: EntryStatus) -> None:
            statuses[name] = status
            lines.changed(name, status)

        yield Watcher(on_change=changed, on_message=lines.say)

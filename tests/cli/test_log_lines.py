"""Progress without a terminal: a line a stage and one every 30 seconds, as text or as JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from ligo_convert.batch.scheduler import EntryStatus
from ligo_convert.cli import log_lines
from ligo_convert.cli.log_lines import EntryLines, LoggedProgress, LogSettings, LogWriter
from ligo_convert.errors import RecipeError

Clock = Callable[[float], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The function that the fixture returns sets the time."""
    now = [100.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(log_lines, "time", Time)

    def at(seconds: float) -> None:
        now[0] = 100.0 + seconds

    return at


def logged(**settings: Any) -> tuple[LoggedProgress, io.StringIO]:
    shown = io.StringIO()
    return LoggedProgress(LogWriter(shown, LogSettings(**settings))), shown


def fit(progress: LoggedProgress, clock: Clock, *, until: int = 7) -> None:
    """A fit of 1,000 steps, 100 steps in 10 seconds, that goes on from step 300 and stops early."""
    with progress.task("fitting the operator", 1000, unit="steps") as task:
        for turn in range(until + 1):
            clock(10 * turn)
            task.note(f"loss {3 - turn / 10:.1f}")
            task.reach(300 + 100 * turn)


def test_a_stage_has_a_line_every_thirty_seconds(clock: Clock) -> None:
    progress, shown = logged()
    fit(progress, clock)
    assert shown.getvalue().splitlines() == [
        "fitting the operator: 1,000 steps",
        # What an earlier run has done does not count as speed.
        "fitting the operator: 60%, 600 of 1,000 steps, 10 steps/s, 40 s left, loss 2.7",
        "fitting the operator: 90%, 900 of 1,000 steps, 10 steps/s, 10 s left, loss 2.4",
        "fitting the operator: done after 1 min 10 s",
    ]


def test_a_short_stage_has_one_line(clock: Clock) -> None:
    progress, shown = logged()
    with progress.task("writing", 2_000_000_000, unit="bytes") as task:
        clock(20)
        task.reach(2_000_000_000)
    with progress.task("checking digests"):
        clock(21)
    assert shown.getvalue().splitlines() == ["writing: 2.00 GB", "checking digests"]


def fail_after(progress: LoggedProgress, clock: Clock, seconds: float) -> None:
    with progress.task("writing"):
        clock(seconds)
        raise KeyError


def test_a_stage_that_stops_says_so(clock: Clock) -> None:
    for seconds, last in ((29, "writing"), (31, "writing: stopped after 31 s")):
        progress, shown = logged()
        clock(0)
        with pytest.raises(KeyError):
            fail_after(progress, clock, seconds)
        assert shown.getvalue().splitlines()[-1] == last


@pytest.mark.parametrize(
    ("total", "unit", "reached", "line"),
    [
        (4.1e9, "bytes", 1.2e9, "work: 29%, 1.20 GB of 4.10 GB, 40.00 MB/s, 1 min 12 s left"),
        (5.2e14, "FLOPs", 3e13, "work: 6%, 30 TFLOPs of 520 TFLOPs, 1 TFLOPs/s, 8 min 10 s left"),
        (4e9, "tokens", 1e9, "work: 25%, 1B of 4B tokens, 33.3M tokens/s, 1 min 30 s left"),
        (None, "tokens", 40_000, "work: 40,000 tokens, 1,333 tokens/s"),
        (4, "", 1, "work: 25%, 1 of 4, 0.033/s, 1 min 30 s left"),
        (10, "steps", 0, "work: 0%, 0 of 10 steps"),
    ],
)
def test_amounts_have_their_unit(total: float | None, unit: str, reached: float, line: str, clock: Clock) -> None:
    progress, shown = logged()
    with progress.task("work", total, unit=unit) as task:
        task.reach(0)
        clock(30)
        task.reach(reached)
    assert shown.getvalue().splitlines()[1] == line


def test_the_rate_follows_what_has_changed(clock: Clock) -> None:
    progress, shown = logged()
    with progress.task("training", 100_000, unit="steps") as task:
        task.reach(0)
        for turn in range(1, 41):
            clock(30 * turn)
            # From the twentieth line on ten times as slow.
            task.reach(3000 * min(turn, 20) + 300 * max(0, turn - 20))
    assert ", 10 steps/s, " in shown.getvalue().splitlines()[-2]


def test_verbose_is_every_five_seconds(clock: Clock) -> None:
    progress, shown = logged(level="verbose")
    fit(progress, clock)
    assert len(shown.getvalue().splitlines()) == 1 + 7 + 1


def test_quiet_leaves_warnings_and_errors(clock: Clock) -> None:
    progress, shown = logged(level="quiet")
    fit(progress, clock)
    progress.say("something")
    progress.warn("careful")
    progress.writer.error(RecipeError("wrong", where="a.yaml:1:2", hint="mend it"))
    assert shown.getvalue() == "warning: careful\nerror: a.yaml:1:2: wrong\n  mend it\n"


def test_errors_have_a_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(**variables: str) -> str:
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        stream = Terminal()
        progress = LoggedProgress(LogWriter(stream, LogSettings()))
        progress.writer.error(RecipeError("wrong\x1b[2J", where="a.yaml:1:2"))
        progress.warn("careful")
        progress.say("a: b")
        return stream.getvalue()

    assert shown() == (
        "\x1b[31m\x1b[1merror:\x1b[0m a.yaml:1:2: wrong\\x1b[2J\n\x1b[33m\x1b[1mwarning:\x1b[0m careful\na: b\n"
    )
    assert "\x1b" not in shown(NO_COLOR="1")


def test_errors_break_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    error = RecipeError(
        "one two three four five six seven", where="a/long-path/of-a-recipe.yaml:1:2", hint="mend " * 12
    )
    narrow, pipe = Terminal(), io.StringIO()
    for stream in (narrow, pipe):
        LogWriter(stream, LogSettings()).error(error)
    assert max(map(len, narrow.getvalue().splitlines())) <= 40
    assert "a/long-path/of-a-recipe.yaml:1:2:" in narrow.getvalue(), "a place in a file stays whole"
    assert narrow.getvalue().split() == pipe.getvalue().split()
    assert len(pipe.getvalue().splitlines()) == 2, "a log has one line for each part"


def test_json_has_one_object_a_line(clock: Clock) -> None:
    progress, shown = logged(form="json")
    fit(progress, clock, until=3)
    progress.warn("careful\x1b[2J")
    progress.writer.error(RecipeError("wrong", where="a.yaml:1:2", expected=3, found=[4], hint="mend it"))
    lines = [json.loads(line) for line in shown.getvalue().splitlines()]
    assert all(line.pop("time").endswith("+00:00") for line in lines)
    stage = {"stage": "fitting the operator", "unit": "steps"}
    assert lines == [
        {"event": "begin", "text": "fitting the operator: 1,000 steps", **stage, "total": 1000},
        {
            "event": "progress",
            "text": "fitting the operator: 60%, 600 of 1,000 steps, 10 steps/s, 40 s left, loss 2.7",
            **stage,
            "completed": 600,
            "total": 1000,
            "rate": 10.0,
            "seconds_left": 40.0,
            "note": "loss 2.7",
        },
        {"event": "done", "text": "fitting the operator: done after 30 s", **stage, "seconds": 30.0},
        {"event": "warning", "text": "careful\x1b[2J"},
        {
            "event": "error",
            "text": "wrong",
            "where": "a.yaml:1:2",
            "expected": "3",
            "found": "[4]",
            "hint": "mend it",
            "exit_code": 2,
        },
    ]


def test_text_cannot_control_the_terminal() -> None:
    progress, shown = logged()
    progress.say("a\x1b[2Jb\nc")
    assert shown.getvalue() == "a\\x1b[2Jb\nc\n"


def test_messages_alone() -> None:
    shown = io.StringIO()
    progress = LoggedProgress(LogWriter(shown, LogSettings()), stages=False)
    with progress.task("writing", 10) as task:
        task.advance()
        progress.say("kept")
    assert shown.getvalue() == "kept\n"


def test_entries_of_a_batch(clock: Clock) -> None:
    shown = io.StringIO()
    lines = EntryLines(LogWriter(shown, LogSettings()).write, 30)
    lines.changed("a", EntryStatus(state="running"))
    for seconds in (10, 29, 31, 50, 62):
        clock(seconds)
        lines.changed("a", EntryStatus(state="running", activity=f"writing {seconds}"))
    lines.say("a", "warning: careful")
    lines.changed("a", EntryStatus(state="failed", code=3, why="bad\n  hint"))
    lines.changed("b", EntryStatus(state="done", reused=True))
    assert shown.getvalue().splitlines() == [
        "a: running",
        "a: writing 31",
        "a: writing 62",
        "a: warning: careful",
        "a: failed: bad",
        "a:   hint",
        "b: done in an earlier run",
    ]


def test_a_table_needs_no_lines_about_what_an_entry_does(clock: Clock) -> None:
    told: list[str] = []
    lines = EntryLines(lambda event, text, **fields: told.append(text), math.inf)
    for seconds in (0, 1000):
        clock(seconds)
        lines.changed("a", EntryStatus(state="running", activity="writing"))
    assert told == ["a: running"]

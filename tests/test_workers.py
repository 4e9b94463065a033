"""Worker processes: results as they come, errors as they were raised, and no worker without its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import ligo_convert
from ligo_convert.errors import LigoError, MachineError, RecipeError
from ligo_convert.workers import WorkerPool

Told = Callable[[float, str], None]
PATIENCE = 60.0  # seconds that a process may take to start or to end; a busy machine is slow


@dataclass(frozen=True, kw_only=True)
class Task:
    what: str = "square"
    number: int = 0


class Bench:
    """What a worker works with here."""

    def __init__(self, *, folder: Path, offset: int = 0, view: Mapping[str, int] | None = None) -> None:
        self.folder, self.offset, self.view, self.count = folder, offset, view, 0

    def do(self, job: Task, on_step: Told | None = None) -> dict[str, Any]:
        self.count += 1
        return getattr(self, job.what)(job, on_step or (lambda part, note: None))  # type: ignore[no-any-return]

    def square(self, job: Task, told: Told) -> dict[str, Any]:
        return {"value": job.number**2 + self.offset, "pid": os.getpid(), "count": self.count}

    def tell(self, job: Task, told: Told) -> dict[str, Any]:
        for step in range(4):
            time.sleep(0.2)
            told((step + 1) / 4, f"step {step + 1}")
        return {}

    def refuse(self, job: Task, told: Told) -> dict[str, Any]:
        raise RecipeError("nothing to do", where="compare", expected=job.number, found=None, hint="do more")

    def break_down(self, job: Task, told: Told) -> dict[str, Any]:
        raise ZeroDivisionError("seven")

    def die(self, job: Task, told: Told) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def last(self, job: Task, told: Told) -> dict[str, Any]:
        """Work without an end, whose pulse can be felt."""
        for step in range(10**9):
            (self.folder / f"{job.number}").write_text(f"{os.getpid()} {step}")
            time.sleep(0.02)
            told(0.5, "")
        raise AssertionError


class Fatal:
    """Whoever unpickles this dies."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def made(folder: Path, offset: int = 0, view: Mapping[str, int] | None = None, beside: object = None) -> Bench:
    return Bench(folder=folder, offset=offset, view=view)


def worked(tasks: list[Task], folder: Path, *, count: int, **arguments: Any) -> tuple[dict[Task, Any], list[Any]]:
    """Results by task, and what was told."""
    results: dict[Task, Any] = {}
    heard: list[Any] = []
    left = list(tasks)
    with WorkerPool[Task](made, {"folder": folder, **arguments}, count=count) as crew:
        crew.run(
            lambda: left.pop(0) if left else None,
            done=lambda job, result: results.update({job: result}),
            told=lambda job, part, note: heard.append((job, part, note)),
        )
    return results, heard


@pytest.mark.parametrize("count", [1, 3])
def test_every_job_is_done_once(count: int, tmp_path: Path) -> None:
    tasks = [Task(number=number) for number in range(20)]
    results, _ = worked(tasks, tmp_path, count=count, offset=5)
    assert {job: result["value"] for job, result in results.items()} == {job: job.number**2 + 5 for job in tasks}
    pids = {result["pid"] for result in results.values()}
    assert len(pids) <= count
    assert (os.getpid() in pids) == (count == 1), "one worker is this process"
    # Each makes its tool once.
    assert sum(max(one["count"] for one in results.values() if one["pid"] == pid) for pid in pids) == 20


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_to_do_is_done_at_once(count: int, tmp_path: Path) -> None:
    assert worked([], tmp_path, count=count) == ({}, [])


def test_read_only_views_travel(tmp_path: Path) -> None:
    """As families have them in their tables."""
    results, _ = worked([Task()], tmp_path, count=2, view=MappingProxyType({"a": 1}))
    assert len(results) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_job_tells_is_heard(count: int, tmp_path: Path) -> None:
    """Here every step; from a process now and then, so that the pipe stays free."""
    task = Task(what="tell")
    _, heard = worked([task], tmp_path, count=count)
    assert heard
    assert {job for job, _, _ in heard} == {task}
    assert [part for _, part, _ in heard] == sorted(part for _, part, _ in heard)
    assert all(note == f"step {round(4 * part)}" for _, part, note in heard)


def test_a_job_may_wait_for_another(tmp_path: Path) -> None:
    """`following` is asked again whenever one has ended: what depends on a result comes after it."""
    results: dict[int, Any] = {}

    def following() -> Task | None:
        if not asked:
            asked.add(0)
            return Task(number=0)
        if 0 in results and 1 not in asked:
            asked.add(1)
            return Task(number=1)
        return None

    asked: set[int] = set()
    with WorkerPool[Task](made, {"folder": tmp_path}, count=2) as crew:
        crew.run(following, done=lambda job, result: results.update({job.number: result}), told=lambda *_: None)
    assert set(results) == {0, 1}


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_ours_is_raised_as_it_was(count: int, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        worked([Task(what="refuse", number=7)], tmp_path, count=count)
    found = error.value
    assert (found.what, found.where, found.expected, found.found, found.hint) == (
        "nothing to do",
        "compare",
        7,
        None,
        "do more",
    )
    assert found.exit_code == 2


def test_a_bug_in_a_worker_is_told_with_its_traceback(tmp_path: Path) -> None:
    """As a bug here is; where it happened is in the cause, for `--debug`."""
    with pytest.raises(LigoError, match="a bug in ligo-convert: ZeroDivisionError: seven") as error:
        worked([Task(what="break_down")], tmp_path, count=2)
    assert error.value.exit_code == 70
    assert "in break_down" in str(error.value.__cause__)


def test_a_worker_that_is_killed_is_the_machines_fault(tmp_path: Path) -> None:
    """As by the kernel where memory is short."""
    with pytest.raises(MachineError, match="a worker process has ended") as error:
        worked([Task(what="die"), Task(number=1)], tmp_path, count=2)
    assert error.value.exit_code == 5
    assert "--jobs" in error.value.hint


def test_a_worker_that_is_killed_before_it_has_begun_is_the_machines_fault(tmp_path: Path) -> None:
    """While it reads what it is to work with: its job then lies in the pipe, unread."""
    with pytest.raises(MachineError, match="a worker process has ended"):
        worked([Task(number=1), Task(number=2)], tmp_path, count=2, beside=Fatal())


def running(pid: int) -> bool:
    """Whether a process is there, and no corpse that waits to be buried."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def until(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.05)
    return False


PARENT = """
import sys
from pathlib import Path
from ligo_convert.workers import WorkerPool
from test_workers import Task, made

if __name__ == "__main__":
    tasks = [Task(what="last", number=0), Task(what="square")]
    def done(job, result):
        Path(sys.argv[1], "idle").write_text(str(result["pid"]))
    with WorkerPool(made, {"folder": Path(sys.argv[1])}, count=2) as crew:
        crew.run(lambda: tasks.pop(0) if tasks else None, done=done, told=lambda *_: None)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here to ask who is alive")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent(number: int, tmp_path: Path) -> None:
    """Neither one in the middle of a job nor one that waits for the next."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    paths = [str(Path(__file__).parent), str(Path(ligo_convert.__file__).parents[1])]
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert until(lambda: (tmp_path / "0").exists() and (tmp_path / "idle").exists())
        assert until(lambda: (tmp_path / "0").read_text() != "")
        pids = [int((tmp_path / "0").read_text().split()[0]), int((tmp_path / "idle").read_text())]
        assert len({*pids, parent.pid}) == 3
        assert all(running(pid) for pid in pids)
        parent.send_signal(number)
        parent.wait(timeout=PATIENCE)
        assert until(lambda: not any(running(pid) for pid in pids))
    finally:
        parent.kill()
        parent.wait()

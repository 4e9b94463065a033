"""Worker processes: results as they arrive, errors as they were raised, and no worker that outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import ligo_convert
from ligo_convert.errors import LigoError, MachineError, RecipeError
from ligo_convert.workers import ChildProcess, WorkerPool

OnStep = Callable[[float, str], None]
PATIENCE = 60.0  # seconds a process may take to start or to end on a busy machine


def put(file: Path, text: str) -> None:
    """Write a file that another process reads meanwhile: it sees the old text or the new one, never a part."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


@dataclass(frozen=True, kw_only=True)
class Task:
    what: str = "square"
    number: int = 0


class Bench:
    """The worker of these tests."""

    def __init__(self, *, folder: Path, offset: int = 0, view: Mapping[str, int] | None = None) -> None:
        self.folder, self.offset, self.view, self.count = folder, offset, view, 0

    def run(self, job: Task, on_step: OnStep | None = None) -> dict[str, Any]:
        self.count += 1
        return getattr(self, job.what)(job, on_step or (lambda part, note: None))  # type: ignore[no-any-return]

    def square(self, job: Task, on_step: OnStep) -> dict[str, Any]:
        return {"value": job.number**2 + self.offset, "pid": os.getpid(), "count": self.count}

    def tell(self, job: Task, on_step: OnStep) -> dict[str, Any]:
        for step in range(4):
            time.sleep(0.2)
            on_step((step + 1) / 4, f"step {step + 1}")
        return {}

    def refuse(self, job: Task, on_step: OnStep) -> dict[str, Any]:
        raise RecipeError("nothing to do", where="compare", expected=job.number, found=None, hint="do more")

    def break_down(self, job: Task, on_step: OnStep) -> dict[str, Any]:
        raise ZeroDivisionError("seven")

    def die(self, job: Task, on_step: OnStep) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def last(self, job: Task, on_step: OnStep) -> dict[str, Any]:
        """Run until killed, and show it in a file."""
        for step in range(10**9):
            put(self.folder / f"{job.number}", f"{os.getpid()} {step}")
            time.sleep(0.02)
            on_step(0.5, "")
        raise AssertionError


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def made(folder: Path, offset: int = 0, view: Mapping[str, int] | None = None, beside: object = None) -> Bench:
    return Bench(folder=folder, offset=offset, view=view)


def worked(tasks: list[Task], folder: Path, *, count: int, **arguments: Any) -> tuple[dict[Task, Any], list[Any]]:
    """Run tasks in a pool. Returns results by task, and the progress that was reported."""
    results: dict[Task, Any] = {}
    reports: list[Any] = []
    left = list(tasks)
    with WorkerPool[Task](made, {"folder": folder, **arguments}, count=count) as pool:
        pool.run(
            lambda: left.pop(0) if left else None,
            on_result=lambda job, result: results.update({job: result}),
            on_progress=lambda job, part, note: reports.append((job, part, note)),
        )
    return results, reports


@pytest.mark.parametrize("count", [1, 3])
def test_every_job_is_done_once(count: int, tmp_path: Path) -> None:
    tasks = [Task(number=number) for number in range(20)]
    results, _ = worked(tasks, tmp_path, count=count, offset=5)
    assert {job: result["value"] for job, result in results.items()} == {job: job.number**2 + 5 for job in tasks}
    pids = {result["pid"] for result in results.values()}
    assert len(pids) <= count
    assert (os.getpid() in pids) == (count == 1), "a pool of one runs in this process"
    # Each process makes its worker once.
    assert sum(max(one["count"] for one in results.values() if one["pid"] == pid) for pid in pids) == 20


@pytest.mark.parametrize("count", [1, 2])
def test_a_pool_without_jobs_ends_at_once(count: int, tmp_path: Path) -> None:
    assert worked([], tmp_path, count=count) == ({}, [])


def test_read_only_views_can_be_pickled(tmp_path: Path) -> None:
    """Family definitions hold them."""
    results, _ = worked([Task()], tmp_path, count=2, view=MappingProxyType({"a": 1}))
    assert len(results) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_job_tells_is_reports(count: int, tmp_path: Path) -> None:
    """Every step in this process; from a worker process at most every REPORT_SECONDS."""
    task = Task(what="tell")
    _, reports = worked([task], tmp_path, count=count)
    assert reports
    assert {job for job, _, _ in reports} == {task}
    assert [part for _, part, _ in reports] == sorted(part for _, part, _ in reports)
    assert all(note == f"step {round(4 * part)}" for _, part, note in reports)


def test_a_job_may_wait_for_another(tmp_path: Path) -> None:
    """`next_job` is called again whenever a job ends, so a job can depend on an earlier result."""
    results: dict[int, Any] = {}

    def next_job() -> Task | None:
        if not started:
            started.add(0)
            return Task(number=0)
        if 0 in results and 1 not in started:
            started.add(1)
            return Task(number=1)
        return None

    started: set[int] = set()
    with WorkerPool[Task](made, {"folder": tmp_path}, count=2) as pool:
        pool.run(
            next_job, on_result=lambda job, result: results.update({job.number: result}), on_progress=lambda *_: None
        )
    assert set(results) == {0, 1}


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_this_package_keeps_its_fields(count: int, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        worked([Task(what="refuse", number=7)], tmp_path, count=count)
    raised = error.value
    assert (raised.what, raised.where, raised.expected, raised.found, raised.hint) == (
        "nothing to do",
        "compare",
        7,
        None,
        "do more",
    )
    assert raised.exit_code == 2


def test_a_bug_in_a_worker_is_raised_with_its_traceback(tmp_path: Path) -> None:
    """The traceback is in the cause, for `--debug`."""
    with pytest.raises(LigoError, match="a bug in ligo-convert: ZeroDivisionError: seven") as error:
        worked([Task(what="break_down")], tmp_path, count=2)
    assert error.value.exit_code == 70
    assert "in break_down" in str(error.value.__cause__)


def test_a_killed_worker_raises_a_machine_error(tmp_path: Path) -> None:
    """The kernel kills a process like this when memory is short."""
    with pytest.raises(MachineError, match="a worker process was killed by SIGKILL") as error:
        worked([Task(what="die"), Task(number=1)], tmp_path, count=2)
    assert error.value.exit_code == 5
    assert "--jobs" in error.value.hint


def test_a_worker_that_ends_before_its_first_job_raises_a_machine_error(tmp_path: Path) -> None:
    """It ends while it unpickles its arguments; its job stays unread in the pipe."""
    with pytest.raises(MachineError, match="a worker process exited with status 9"):
        worked([Task(number=1), Task(number=2)], tmp_path, count=2, beside=Fatal())


def running(pid: int) -> bool:
    """Return True if a process exists and is not a zombie."""
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


def ignore_sigterm(pipe: Connection, seconds: float) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send((os.getpid(), signal.getsignal(signal.SIGINT)))
    time.sleep(seconds)


def test_a_process_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it ignores Ctrl-C from the start."""
    monkeypatch.setattr("ligo_convert.workers.STOP_SECONDS", 0.2)
    child = ChildProcess(multiprocessing.get_context("spawn"), ignore_sigterm, (2 * PATIENCE,))
    pid, handler = child.receive()
    assert handler == signal.SIG_IGN
    began = time.monotonic()
    ChildProcess.stop_all([child])
    assert time.monotonic() - began < PATIENCE
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


PARENT = """
import sys
from pathlib import Path
from ligo_convert.workers import WorkerPool
from test_workers import Task, made, put

if __name__ == "__main__":
    tasks = [Task(what="last", number=0), Task(what="square")]
    def done(job, result):
        put(Path(sys.argv[1], "idle"), str(result["pid"]))
    with WorkerPool(made, {"folder": Path(sys.argv[1])}, count=2) as pool:
        pool.run(lambda: tasks.pop(0) if tasks else None, on_result=done, on_progress=lambda *_: None)
"""


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(),
    reason="without /proc the test cannot tell whether a process that it did not start still runs",
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent(number: int, tmp_path: Path) -> None:
    """Neither a busy worker nor an idle one."""
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
        pids = [int((tmp_path / "0").read_text().split()[0]), int((tmp_path / "idle").read_text())]
        assert len({*pids, parent.pid}) == 3
        assert all(running(pid) for pid in pids)
        parent.send_signal(number)
        parent.wait(timeout=PATIENCE)
        assert until(lambda: not any(running(pid) for pid in pids))
    finally:
        parent.kill()
        parent.wait(timeout=PATIENCE)


def hang_up(pipe: Any) -> None:
    pipe.close()
    time.sleep(60)


def die_at_once(pipe: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_only_hung_up_is_not_said_to_have_been_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kill that ends it is our own, and no cause."""
    monkeypatch.setattr("ligo_convert.workers.STOP_SECONDS", 2.0)
    context = multiprocessing.get_context("spawn")
    for target, words in ((hang_up, "closed its connection"), (die_at_once, "was killed by SIGKILL")):
        with pytest.raises(MachineError, match=words):
            ChildProcess(context, target, ()).receive()

"""Worker processes: start a process with a pipe that ends with its parent, and run jobs in a pool of such processes.

`ChildProcess` is the process itself; `batch` starts one for each entry. `WorkerPool` keeps several and gives each one job after another.
"""

from __future__ import annotations

import copyreg
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from ligo_convert.errors import LigoError, MachineError

REPORT_SECONDS = 0.3

# How long a process that was asked to stop may take. It is killed then.
STOP_SECONDS = 10.0

J = TypeVar("J")


def _view(data: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(data)


# Family definitions hold read-only views, which pickle does not support.
copyreg.pickle(MappingProxyType, lambda view: (_view, (dict(view),)))


# --- one process ------------------------------------------------------------------------------------------------------


class ChildProcess:
    """A process with a pipe to this one. It ignores Ctrl-C and ends when this process ends.

    Args:
        context: a multiprocessing context; it decides the start method.
        target: a module-level function. It is called with its end of the pipe and then `arguments`.
        arguments: picklable.
        name: the process's name.
    """

    def __init__(
        self, context: Any, target: Callable[..., None], arguments: tuple[Any, ...], *, name: str | None = None
    ) -> None:
        self.pipe, theirs = context.Pipe()
        with _interrupts_ignored():
            self._process = context.Process(target=_run_child, args=(target, theirs, arguments), name=name, daemon=True)
            self._process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Send a message to the process. Raises MachineError if the process has ended."""
        try:
            self.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended() from None

    def receive(self) -> Any:
        """Return the next message of the process; wait for it. Raises MachineError if the process has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended() from None

    def close(self) -> None:
        """Wait for a process that has sent its last message."""
        self._end(STOP_SECONDS)

    def _ended(self) -> MachineError:
        stopped_here = self._end(STOP_SECONDS)
        code = self._process.exitcode
        if stopped_here:
            # The kill is this process's own and not the cause.
            how = f"closed its connection, and was stopped after {STOP_SECONDS:g} s,"
        elif code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"exited with status {code}"
        return MachineError(
            f"a worker process {how} before it finished",
            hint="if memory was short, lower --jobs; run again to continue",
        )

    def _end(self, seconds: float) -> bool:
        """Wait for the process. Returns True if it had to be killed because it did not end within `seconds`."""
        self._process.join(max(0.0, seconds))
        killed = bool(self._process.is_alive())
        if killed:
            self._process.kill()
            self._process.join()
        self.pipe.close()
        return killed

    @staticmethod
    def stop_all(processes: Iterable[ChildProcess]) -> None:
        """Ask processes to stop, and kill those that have not stopped after `STOP_SECONDS`."""
        running = list(processes)
        for child in running:
            child._process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in running:
            child._end(deadline - time.monotonic())


def ready_processes(processes: Iterable[ChildProcess], seconds: float | None = None) -> list[ChildProcess]:
    """Wait until a process has sent a message or ended. Returns those that have, or none after `seconds`."""
    by_pipe = {child.pipe: child for child in processes}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe), seconds)]


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start processes with SIGINT ignored from their first instruction.

    The terminal sends Ctrl-C to every process of the group; the parent alone decides what happens to its workers. A child inherits
    "ignored", so nothing can reach it before it sets its own handlers.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_child(target: Callable[..., None], pipe: Connection, arguments: tuple[Any, ...]) -> None:
    # A child of the fork server gets the SIGINT handler that the server was started with.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    target(pipe, *arguments)


def _end_with_parent() -> None:
    """End this process when its parent ends, whatever ends the parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- a pool -----------------------------------------------------------------------------------------------------------


class Worker(Protocol):
    """The object in each process that runs jobs."""

    def run(self, job: Any, on_step: Callable[[float, str], None] | None = None) -> dict[str, Any]:
        """Run a job and return its result. `on_step` takes the finished fraction and a note."""


class WorkerPool(Generic[J]):
    """A pool of processes with one `Worker` each. With a count of one, jobs run in this process.

    Args:
        make: a module-level function that returns a `Worker`; it is pickled by name.
        arguments: its keyword arguments.
        count: number of processes.
    """

    def __init__(self, make: Callable[..., Worker], arguments: Mapping[str, Any], *, count: int) -> None:
        self._make, self._arguments, self._count = make, dict(arguments), count
        self._local: Worker | None = None
        self._processes: list[ChildProcess] = []

    def __enter__(self) -> WorkerPool[J]:
        if self._count > 1:
            context = multiprocessing.get_context("spawn")
            for _ in range(self._count):
                self._processes.append(ChildProcess(context, _run_jobs, (self._make, self._arguments)))
        return self

    def __exit__(self, *_: object) -> None:
        ChildProcess.stop_all(self._processes)

    def run(
        self,
        next_job: Callable[[], J | None],
        *,
        on_result: Callable[[J, dict[str, Any]], None],
        on_progress: Callable[[J, float, str], None],
    ) -> None:
        """Run jobs until none is left.

        Args:
            next_job: returns a job that can start now, or None. It is called again whenever a job ends.
            on_result: receives a job and its result.
            on_progress: receives a job, the finished fraction and a note.

        Raises:
            LigoError: as a job raised it; MachineError if a worker process ended.
        """
        if not self._processes:
            self._run_here(next_job, on_result, on_progress)
            return
        idle, busy = list(self._processes), dict[ChildProcess, J]()
        while True:
            while idle and (job := next_job()) is not None:
                child = idle.pop()
                child.send(job)
                busy[child] = job
            if not busy:
                return
            for child in ready_processes(busy):
                job = busy[child]
                kind, value = child.receive()
                if kind == "progress":
                    on_progress(job, *value)
                elif kind == "failed":
                    error, trace = value
                    raise error from RuntimeError(trace)
                else:
                    del busy[child]
                    idle.append(child)
                    on_result(job, value)

    def _run_here(
        self,
        next_job: Callable[[], J | None],
        on_result: Callable[[J, dict[str, Any]], None],
        on_progress: Callable[[J, float, str], None],
    ) -> None:
        while (job := next_job()) is not None:
            self._local = self._local or self._make(**self._arguments)
            on_result(job, self._local.run(job, lambda part, note, job=job: on_progress(job, part, note)))  # type: ignore[misc]


def _run_jobs(pipe: Connection, make: Callable[..., Worker], arguments: Mapping[str, Any]) -> None:
    """Run one job after another until the pipe closes."""
    last = time.monotonic()

    def on_step(part: float, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            pipe.send(("progress", (part, note)))

    worker = None
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            worker = worker or make(**arguments)
            pipe.send(("done", worker.run(job, on_step)))
        except LigoError as error:
            pipe.send(("failed", (error, traceback.format_exc())))
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:  # noqa: BLE001  the parent reports a bug; nobody reads this process's output
            bug = LigoError(
                f"a bug in ligo-convert: {type(error).__name__}: {error}",
                hint="please report it with what `ligo-convert --debug ...` prints",
            )
            pipe.send(("failed", (bug, traceback.format_exc())))

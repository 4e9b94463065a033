"""Worker processes: jobs in, results out as they come, whatever order they end in.

Each process makes its own tool once (`make`, with arguments that are pickled to it) and does one job after another. None outlives the
process that made it.
"""

from __future__ import annotations

import copyreg
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from ligo_convert.errors import LigoError, MachineError

TELL_EVERY_SECONDS = 0.3

J = TypeVar("J")


def _view(data: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(data)


# A family's tables are read-only views, which pickle does not know.
copyreg.pickle(MappingProxyType, lambda view: (_view, (dict(view),)))


class Worker(Protocol):
    """What a worker works with."""

    def do(self, job: Any, on_step: Callable[[float, str], None] | None = None) -> dict[str, Any]: ...


class WorkerPool(Generic[J]):
    """`count` processes with a tool each; with one, jobs are done here, and no process is made.

    Args:
        make: a function of a module (it is pickled by name). arguments: its keyword arguments.
    """

    def __init__(self, make: Callable[..., Worker], arguments: Mapping[str, Any], *, count: int) -> None:
        self._make, self._arguments, self._count = make, dict(arguments), count
        self._here: Worker | None = None
        self._members: list[tuple[Any, Connection]] = []

    def __enter__(self) -> WorkerPool[J]:
        if self._count > 1:
            context = multiprocessing.get_context("spawn")
            # The terminal's Ctrl-C reaches every process of the group, and the parent decides what becomes of it. A worker is deaf to it
            # from its first moment, as what is ignored stays so in a child.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                for _ in range(self._count):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_work, args=(theirs, self._make, self._arguments), daemon=True)
                    process.start()
                    theirs.close()
                    self._members.append((process, ours))
            finally:
                signal.signal(signal.SIGINT, before)
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self._members:
            connection.close()
            process.terminate()
        for process, _connection in self._members:
            process.join()

    def run(
        self,
        following: Callable[[], J | None],
        *,
        done: Callable[[J, dict[str, Any]], None],
        told: Callable[[J, float, str], None],
    ) -> None:
        """Do jobs until there is none left.

        Args:
            following: the next job that can be begun now, or None; asked again whenever one has ended.
            done: told a job's result. told: told of a job the part that is done, and a word.

        Raises:
            LigoError: as a job raised it; MachineError where a worker has ended.
        """
        if not self._members:
            while (job := following()) is not None:
                self._here = self._here or self._make(**self._arguments)
                done(job, self._here.do(job, lambda part, note, job=job: told(job, part, note)))  # type: ignore[misc]
            return
        idle = [connection for _, connection in self._members]
        busy: dict[Connection, J] = {}
        while True:
            while idle and (job := following()) is not None:
                connection = idle.pop()
                try:
                    connection.send(job)
                except (BrokenPipeError, ConnectionResetError):
                    raise _gone() from None
                busy[connection] = job
            if not busy:
                return
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                job = busy[ready]
                try:
                    kind, value = ready.recv()
                except (EOFError, ConnectionResetError):
                    raise _gone() from None
                if kind == "told":
                    told(job, *value)
                    continue
                if kind == "failed":
                    error, trace = value
                    raise error from RuntimeError(trace)
                del busy[ready]
                idle.append(ready)
                done(job, value)


def _gone() -> MachineError:
    return MachineError(
        "a worker process has ended in the middle of its work",
        hint="where memory was short, give fewer --jobs; run again to go on",
    )


def end_with_parent() -> None:
    """From now on this process ends when the one that made it does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_it, daemon=True).start()


def _work(connection: Connection, make: Callable[..., Worker], arguments: Mapping[str, Any]) -> None:
    """A worker: one job after another, until the pipe closes."""
    end_with_parent()
    last = time.monotonic()

    def on_step(part: float, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > TELL_EVERY_SECONDS:
            last = time.monotonic()
            connection.send(("told", (part, note)))

    tool = None
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            tool = tool or make(**arguments)
            connection.send(("done", tool.do(job, on_step)))
        except LigoError as error:
            connection.send(("failed", (error, traceback.format_exc())))
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:  # noqa: BLE001  a bug of ours belongs to the parent, which says so; here nobody would see it
            bug = LigoError(
                f"a bug in ligo-convert: {type(error).__name__}: {error}",
                hint="please report it with what `ligo-convert --debug ...` prints",
            )
            connection.send(("failed", (bug, traceback.format_exc())))

"""TODO: one sentence."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

from ligo_convert.batch.engine import Event, ProgressSender, ResourceRequest
from ligo_convert.batch.job import Assignment, run_assignment, failure
from ligo_convert.environment import cores, memory_limit, thread_limits
from ligo_convert.errors import MachineError
from ligo_convert.workers import end_with_parent

# Of the machine's memory; the rest is the system's, the page cache's, and this process's own.
MEMORY_SHARE = 0.9

# Imported once, for all workers.
PRELOADED = (
    "torch",
    "transformers",
    "ligo_convert.conversion.convert",
    "ligo_convert.training.fit",
    "ligo_convert.training.pretrain",
    "ligo_convert.batch.job",
)


# --- in this process --------------------------------------------------------------------------------------------------


class InProcessEngine:
    """One entry after another, in this process."""

    here = True

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell, self._ended = tell, deque[Event]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def has_room(self, load: ResourceRequest) -> bool:
        return not self._ended

    def start(self, load: ResourceRequest) -> None:
        name = load.name
        progress = ProgressSender(lambda kind, value: self._tell(Event(name=name, kind=kind, value=value)))
        self._ended.append(Event(name=name, kind="ended", value=run_assignment(load.assignment, progress)))

    def events(self, seconds: float) -> list[Event]:
        if not self._ended:
            time.sleep(seconds)
        found = list(self._ended)
        self._ended.clear()
        return found


# --- in processes of this machine -------------------------------------------------------------------------------------


class ProcessEngine:
    """A process for each entry, some at a time: what one does to itself harms no other.

    Args:
        jobs: how many at a time. folder: for what their libraries print, a file an entry.
    """

    here = True

    def __init__(self, jobs: int, folder: Path) -> None:
        self._jobs, self._folder = jobs, folder
        self._budget = int(MEMORY_SHARE * memory_limit())
        self._cores = cores()
        self._free_gpus = graphics_processors()
        self._running: dict[Connection, _Worker] = {}
        # The child begins as a copy of a process that has imported everything and computed nothing. On macOS the system's own
        # libraries do not survive that.
        self._context: Any = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
        if sys.platform != "darwin":
            self._context.set_forkserver_preload(list(PRELOADED))
            with _environment(thread_limits(max(1, self._cores // jobs))):
                # Linear algebra counts its threads when it is imported, which is in the process that workers are copies of.
                forkserver.ensure_running()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._running.values():
            worker.process.terminate()
        for worker in self._running.values():
            worker.process.join()

    def has_room(self, load: ResourceRequest) -> bool:
        running = [worker.load for worker in self._running.values()]
        if not running:
            return True
        fits = sum(one.memory for one in running) + load.memory <= self._budget
        has_cores = sum(one.cpus for one in running) + load.cpus <= self._cores
        return len(running) < self._jobs and fits and has_cores and len(self._free_gpus) >= load.cards

    def start(self, load: ResourceRequest) -> None:
        if len(self._free_gpus) < load.cards:
            what = "it asks for more graphics processors than there are"
            raise MachineError(what, where=load.name, expected=f"{load.cards:g}", found=len(self._free_gpus))
        gpus = [self._free_gpus.pop(0) for _ in range(int(load.cards))]
        threads = max(1, int(load.cpus) if load.cpus else self._cores // self._jobs)
        assignment = replace(load.assignment, threads=threads, device=load.device)
        ours, theirs = self._context.Pipe()
        # The terminal's Ctrl-C reaches every process of the group, and this one decides what becomes of it: a worker is deaf to it
        # from its first moment, as what is ignored stays so in a child.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process = self._context.Process(
                target=_work,
                args=(theirs, assignment, self._folder / f"{load.name}.log", tuple(gpus)),
                name=f"ligo-convert {load.name}",
                daemon=True,
            )
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()
        self._running[ours] = _Worker(load=load, process=process, gpus=tuple(gpus))

    def events(self, seconds: float) -> list[Event]:
        found = []
        for ready in wait(list(self._running), seconds) if self._running else _nothing(seconds):
            assert isinstance(ready, Connection)
            worker = self._running[ready]
            try:
                kind, value = ready.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                kind, value = "ended", failure(_gone(worker.process.exitcode))
            found.append(Event(name=worker.load.name, kind=kind, value=value))
            if kind == "ended":
                del self._running[ready]
                ready.close()
                worker.process.join()
                self._free_gpus += worker.gpus
        return found


@dataclass(frozen=True, kw_only=True)
class _Worker:
    load: ResourceRequest
    process: Any
    gpus: tuple[str, ...]


def _nothing(seconds: float) -> list[object]:
    time.sleep(seconds)
    return []


def _gone(code: int | None) -> MachineError:
    how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with status {code}"
    return MachineError(
        f"its process ended {how} in the middle of its work",
        hint="where memory was short, give fewer --jobs; run again to go on",
    )


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """With these variables, for processes that are begun meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def graphics_processors() -> list[str]:
    """The NVIDIA graphics processors that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]


def _work(connection: Connection, assignment: Assignment, log: Path, gpus: tuple[str, ...]) -> None:
    """A worker's whole life: one entry."""
    from ligo_convert.signals import Stopped, answered

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    os.environ.update(thread_limits(assignment.threads))
    # What libraries print is no part of the table that people look at.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    end_with_parent()
    try:
        with answered():
            result = run_assignment(assignment, ProgressSender(lambda kind, value: connection.send((kind, value))))
        connection.send(("ended", result))
    except Stopped as stop:
        os._exit(128 + stop.number)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)

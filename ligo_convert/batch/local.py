"""Engines of this machine: entries one after another in this process, or several at a time in worker processes.

Input: resource requests. Output: events.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from ligo_convert.batch.engine import Event, ProgressSender, ResourceRequest
from ligo_convert.batch.job import Assignment, failure, run_assignment
from ligo_convert.environment import cores, memory_limit, thread_limits
from ligo_convert.errors import MachineError
from ligo_convert.workers import ChildProcess, ready_processes

# Fraction of the machine's memory that entries may use. The rest is for the system, its page cache and this process.
MEMORY_SHARE = 0.9

# The fork server imports these once for all workers.
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
    """Run one entry after another in this process.

    Args:
        on_event: receives progress while an entry runs.
    """

    is_local = True

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event, self._ended = on_event, deque[Event]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def has_room(self, request: ResourceRequest) -> bool:
        return not self._ended

    def start(self, request: ResourceRequest) -> None:
        name = request.name
        progress = ProgressSender(lambda kind, value: self._on_event(Event(name=name, kind=kind, value=value)))
        self._ended.append(Event(name=name, kind="ended", value=run_assignment(request.assignment, progress)))

    def events(self, seconds: float) -> list[Event]:
        if not self._ended:
            time.sleep(seconds)
        events = list(self._ended)
        self._ended.clear()
        return events


# --- in processes of this machine -------------------------------------------------------------------------------------


class ProcessEngine:
    """Run each entry in its own process: one that crashes or is killed harms no other.

    Args:
        jobs: number of entries at a time.
        logs: folder for what libraries print, one file per entry.
    """

    is_local = True

    def __init__(self, jobs: int, logs: Path) -> None:
        self._jobs, self._logs = jobs, logs
        self._memory = int(MEMORY_SHARE * memory_limit())
        self._cores = cores()
        self._free_gpus = visible_gpus()
        self._running: dict[ChildProcess, _Running] = {}
        # A fork server's child starts with everything imported. System libraries of macOS do not survive a fork.
        self._context: Any = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
        if sys.platform != "darwin":
            self._context.set_forkserver_preload(list(PRELOADED))
            with _environment(thread_limits(max(1, self._cores // jobs))):
                # Linear algebra libraries read their thread limits when they are imported, which the fork server does.
                forkserver.ensure_running()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        ChildProcess.stop_all(self._running)

    def has_room(self, request: ResourceRequest) -> bool:
        running = [entry.request for entry in self._running.values()]
        if not running:
            return True
        fits = sum(other.memory for other in running) + request.memory <= self._memory
        has_cores = sum(other.cpus for other in running) + request.cpus <= self._cores
        return len(running) < self._jobs and fits and has_cores and len(self._free_gpus) >= request.gpu_count

    def start(self, request: ResourceRequest) -> None:
        if len(self._free_gpus) < request.gpu_count:
            raise MachineError(
                "the entry requests more GPUs than this machine has",
                where=request.name,
                expected=f"{request.gpu_count:g}",
                found=len(self._free_gpus),
            )
        gpus = tuple(self._free_gpus.pop(0) for _ in range(int(request.gpu_count)))
        threads = max(1, int(request.cpus) if request.cpus else self._cores // self._jobs)
        assignment = replace(request.assignment, threads=threads, device=request.device)
        arguments = (assignment, self._logs / f"{request.name}.log", gpus)
        child = ChildProcess(self._context, _run_entry, arguments, name=f"ligo-convert {request.name}")
        self._running[child] = _Running(request=request, gpus=gpus)

    def events(self, seconds: float) -> list[Event]:
        if not self._running:
            time.sleep(seconds)
        events = []
        for child in ready_processes(self._running, seconds) if self._running else ():
            entry = self._running[child]
            try:
                kind, value = child.receive()
            except MachineError as error:
                kind, value = "ended", failure(error)
            events.append(Event(name=entry.request.name, kind=kind, value=value))
            if kind == "ended":
                del self._running[child]
                child.close()
                self._free_gpus += entry.gpus
        return events


@dataclass(frozen=True, kw_only=True)
class _Running:
    request: ResourceRequest
    gpus: tuple[str, ...]


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started in the block."""
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


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]


def _run_entry(pipe: Connection, assignment: Assignment, log: Path, gpus: tuple[str, ...]) -> None:
    """Convert one entry in a worker process and send its events."""
    from ligo_convert.signals import Stopped, answered

    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    os.environ.update(thread_limits(assignment.threads))
    # What libraries print would disturb the table on the terminal.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    try:
        with answered():
            result = run_assignment(assignment, ProgressSender(lambda kind, value: pipe.send((kind, value))))
        pipe.send(("ended", result))
    except Stopped as stop:
        os._exit(128 + stop.number)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)

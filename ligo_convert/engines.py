"""Where the entries of a manifest are done: in this process, in worker processes of this machine, or on the machines of a Ray cluster.

What comes in: assignments, with what each takes of a machine. What goes out: events, as they happen. An engine knows nothing of what an
entry needs or makes; it has room for one or not, starts it, and says how it ended. `ENGINES` is the table of them.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import platform
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from ligo_convert.crew import end_with_parent
from ligo_convert.environment import cores, memory_limit
from ligo_convert.errors import LigoError, MachineError, MissingExtra, OutputLocked
from ligo_convert.progress import Progress, Task
from ligo_convert.signals import deferred
from ligo_convert.work import FAILED, Assignment, carry_out, failure

TELL_SECONDS = 0.5
# Of the machine's memory; the rest is the system's, the page cache's, and this process's own.
MEMORY_SHARE = 0.9
RETRIES = 3
LOCKED_SECONDS = 60.0
KNOCK_SECONDS = 10.0
LOOK_SECONDS = 0.2
COUNT_SECONDS = 2.0
# How long an entry waits for a machine that can take it at all to join the cluster.
MACHINE_SECONDS = 300.0
# What workers on other machines are told of this one's environment: where the Hub is, and who publishes.
CARRIED = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN")
# Imported once, for all workers.
PRELOADED = (
    "torch",
    "transformers",
    "ligo_convert.convert",
    "ligo_convert.fit",
    "ligo_convert.pretrain",
    "ligo_convert.work",
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """An assignment and what it takes: processor cores (0: an even share), graphics processors, bytes of memory."""

    assignment: Assignment
    cpus: float
    gpus: float
    memory: int

    @property
    def cards(self) -> float:
        """Graphics processors, one where the command line asks for them and the manifest says nothing."""
        if self.assignment.device == "cpu":
            return 0.0
        return self.gpus or (1.0 if self.assignment.device == "cuda" else 0.0)

    @property
    def device(self) -> str:
        """To compute on, for a process that sees those it was given alone."""
        return self.assignment.device if self.cards else "cpu"

    @property
    def name(self) -> str:
        return self.assignment.name


@dataclass(frozen=True, kw_only=True)
class Event:
    """Of an entry: `told` what it is at, `said` a line worth keeping, or `ended` with a result."""

    name: str
    kind: Literal["told", "said", "ended"]
    value: Any


class Engine(Protocol):
    """A context manager; leaving it stops what is running, whose staged work stays.

    Attributes:
        here: whether entries are done on this machine, by whose memory and disk they can be judged.
    """

    here: bool

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def has_room(self, load: Load) -> bool:
        """Whether it could be started now."""

    def start(self, load: Load) -> None: ...

    def events(self, seconds: float) -> list[Event]:
        """What has happened, after waiting for so long at most."""


# --- in this process --------------------------------------------------------------------------------------------------


class Here:
    """One entry after another, in this process."""

    here = True

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell, self._ended = tell, deque[Event]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def has_room(self, load: Load) -> bool:
        return not self._ended

    def start(self, load: Load) -> None:
        name = load.name
        progress = Telling(lambda kind, value: self._tell(Event(name=name, kind=kind, value=value)))
        self._ended.append(Event(name=name, kind="ended", value=carry_out(load.assignment, progress)))

    def events(self, seconds: float) -> list[Event]:
        if not self._ended:
            time.sleep(seconds)
        found = list(self._ended)
        self._ended.clear()
        return found


class Telling(Progress):
    """Progress that is told as plain text, now and then."""

    def __init__(self, tell: Callable[[Literal["told", "said"], str], None]) -> None:
        self._tell, self._last = tell, 0.0

    @contextlib.contextmanager
    def task(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Task]:
        yield _ToldTask(self, name, total)

    def say(self, text: str) -> None:
        self._tell("said", text)

    def warn(self, text: str) -> None:
        self._tell("said", f"warning: {text}")

    def at(self, text: str) -> None:
        if time.monotonic() - self._last > TELL_SECONDS:
            self._last = time.monotonic()
            self._tell("told", text)


class _ToldTask(Task):
    def __init__(self, progress: Telling, name: str, total: float | None) -> None:
        self.progress, self.name, self.total, self.done, self.noted = progress, name, total, 0.0, ""
        self._show()

    def advance(self, amount: float = 1) -> None:
        self.reach(self.done + amount)

    def reach(self, completed: float) -> None:
        self.done = completed
        self._show()

    def note(self, text: str) -> None:
        self.noted = text
        self._show()

    def _show(self) -> None:
        part = f" {min(1.0, self.done / self.total):.0%}" if self.total else ""
        self.progress.at(f"{self.name}{part}{f', {self.noted}' if self.noted else ''}")


# --- in processes of this machine -------------------------------------------------------------------------------------


class Workers:
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

    def has_room(self, load: Load) -> bool:
        running = [worker.load for worker in self._running.values()]
        if not running:
            return True
        fits = sum(one.memory for one in running) + load.memory <= self._budget
        has_cores = sum(one.cpus for one in running) + load.cpus <= self._cores
        return len(running) < self._jobs and fits and has_cores and len(self._free_gpus) >= load.cards

    def start(self, load: Load) -> None:
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
    load: Load
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


def thread_limits(count: int) -> dict[str, str]:
    """The variables by which libraries are told how many threads a process may have."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(names, str(count))


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
            result = carry_out(assignment, Telling(lambda kind, value: connection.send((kind, value))))
        connection.send(("ended", result))
    except Stopped as stop:
        os._exit(128 + stop.number)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)


# --- on a cluster -----------------------------------------------------------------------------------------------------


class RayCluster:
    """A running Ray cluster, or a local one. Places must mean the same on every machine of it.

    A machine that is lost costs no entry: it is done again on another, where it goes on from what was staged.

    Args:
        address: of the cluster; None for RAY_ADDRESS, or a local cluster where there is none.
        tell: is told what is waited for.
    """

    here = False

    def __init__(self, address: str | None, tell: Callable[[Event], None]) -> None:
        self._address, self._tell, self._running = address, tell, dict[Any, _Task]()
        self._mine, self._aside, self._counted = False, contextlib.ExitStack(), -COUNT_SECONDS

    def __enter__(self) -> Self:
        try:
            import ray
        except ImportError:
            raise MissingExtra("Ray is not installed", extra="ray", where="--engine ray") from None
        self._ray: Any = ray
        # Ray prints what happens to its machines to stdout, where results belong.
        self._aside.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._mine = not ray.is_initialized()
        if self._mine:
            # Left to itself Ray takes whatever cluster this machine had last, even one that is gone.
            address = self._address or os.environ.get("RAY_ADDRESS") or "local"
            try:
                _knock(address)
                with deferred():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (OSError, RuntimeError, ValueError) as error:
                raise MachineError(
                    "the Ray cluster cannot be reached",
                    where=self._address or os.environ.get("RAY_ADDRESS", "--engine ray"),
                    found=str(error).splitlines()[0] if str(error) else type(error).__name__,
                    hint="`ray status` says what is there; `ray start --head` makes one",
                ) from None
        # A process for each, as on one machine. Ray's own retries have no end where memory is what was short.
        self._do = ray.remote(max_calls=1, max_retries=0)(_on_cluster)
        return self

    def __exit__(self, *_: object) -> None:
        with deferred():
            for reference in self._running:
                self._ray.cancel(reference, force=True)
            if self._mine:
                self._ray.shutdown()
        self._aside.close()

    def has_room(self, load: Load) -> bool:
        # Ray keeps a queue of its own, and knows what its machines have left.
        return True

    def start(self, load: Load) -> None:
        self._submit(_Task(load=load))

    def _submit(self, task: _Task) -> None:
        load = task.load
        assignment = replace(load.assignment, threads=int(load.cpus or 1), device=load.device)
        carried = {name: os.environ[name] for name in CARRIED if name in os.environ}
        with deferred():
            reference = self._do.options(**_asked(load)).remote(assignment, str(Path.cwd()), carried)
        self._running[reference] = task

    def events(self, seconds: float) -> list[Event]:
        until = time.monotonic() + seconds
        while True:
            found = self._look()
            left = until - time.monotonic()
            if found or left <= 0:
                return found
            # Between looks, and not within Ray, whose waiting takes what a signal raises for a failure.
            time.sleep(min(LOOK_SECONDS, left))

    def _look(self) -> list[Event]:
        found = []
        with deferred():
            ready = (
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)[0]
                if self._running
                else []
            )
        for reference in ready:
            task = self._running.pop(reference)
            name = task.load.name
            try:
                with deferred():
                    result = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                task.losses += 1
                if task.losses <= RETRIES:
                    found.append(
                        Event(name=name, kind="said", value=f"the cluster lost it, and begins it again: {why}")
                    )
                    self._submit(task)
                    continue
                result = failure(
                    MachineError(
                        f"the cluster lost it {task.losses} times",
                        found=why,
                        hint="`ray logs` has more; where memory was short, give it more in `resources`; run again to go on",
                    )
                )
            found.append(Event(name=name, kind="ended", value=result))
        return [*found, *self._without_machine()]

    def _without_machine(self) -> list[Event]:
        """Entries that no machine can take: one may yet join, but is not waited for without end."""
        if not self._running or time.monotonic() - self._counted < COUNT_SECONDS:
            return []
        self._counted = time.monotonic()
        with deferred():
            machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        found = []
        for reference, task in list(self._running.items()):
            load, now = task.load, time.monotonic()
            asked = {RESOURCES[name]: amount for name, amount in _asked(load).items()}
            if any(all(has.get(name, 0.0) >= amount for name, amount in asked.items()) for has in machines):
                task.alone_since = None
                continue
            takes = ", ".join(f"{name} {amount:,.0f}" for name, amount in asked.items() if amount)
            if task.alone_since is None:
                task.alone_since = now
                self._tell(Event(name=load.name, kind="told", value=f"waiting for a machine with {takes}"))
            elif now - task.alone_since > MACHINE_SECONDS:
                with deferred():
                    self._ray.cancel(reference, force=True)
                del self._running[reference]
                error = MachineError(
                    "no machine of the cluster has what it takes",
                    where=load.name,
                    expected=takes,
                    found="; ".join(
                        ", ".join(f"{name} {has.get(name, 0.0):,.0f}" for name in asked) for has in machines
                    )
                    or "no machine",
                    hint="add a larger machine, or lower `resources` in the manifest",
                )
                found.append(Event(name=load.name, kind="ended", value=failure(error)))
        return found


@dataclass(kw_only=True)
class _Task:
    """Of an entry on a cluster: how often it was lost, and since when no machine could take it."""

    load: Load
    losses: int = 0
    alone_since: float | None = None


# As a task asks for them -> as a machine names them.
RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


def _asked(load: Load) -> dict[str, float]:
    return {"num_cpus": load.cpus or 1.0, "num_gpus": load.cards, "memory": float(load.memory)}


def _knock(address: str) -> None:
    """See that somebody listens there: Ray itself would try for minutes. Raises OSError, ValueError."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def _on_cluster(assignment: Assignment, folder: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """A worker on a machine of the cluster. `folder`: the working directory of the command, which relative places begin from."""
    os.environ.update({**environment, **thread_limits(assignment.threads)})
    try:
        os.chdir(folder)
    except OSError as error:
        what = "the working directory is not there on every machine of the cluster"
        hint = "run from a directory that all of them share"
        return failure(MachineError(what, where=platform.node(), found=str(error), hint=hint))
    until = time.monotonic() + LOCKED_SECONDS
    while True:
        result = carry_out(assignment, Progress())
        # A machine that is cut off may go on for a moment while its work is done again elsewhere.
        locked = (
            result["state"] == FAILED
            and result["code"] == OutputLocked.exit_code
            and OutputLocked.SAYS in result["why"]
        )
        if not locked or time.monotonic() > until:
            return result
        time.sleep(1.0)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the command line says of an engine."""

    jobs: int
    folder: Path
    address: str | None
    tell: Callable[[Event], None]


def _local(choice: Choice) -> Engine:
    return Workers(choice.jobs, choice.folder) if choice.jobs > 1 else Here(choice.tell)


def _ray(choice: Choice) -> Engine:
    return RayCluster(choice.address, choice.tell)


ENGINES: dict[str, Callable[[Choice], Engine]] = {"local": _local, "ray": _ray}


def engine_named(name: str, choice: Choice) -> Engine:
    """The engine of a name of `ENGINES`."""
    if name not in ENGINES:
        raise LigoError(f"no engine {name}")
    return ENGINES[name](choice)

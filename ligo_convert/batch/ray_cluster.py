"""TODO: one sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from ligo_convert.batch.engine import Event, ResourceRequest
from ligo_convert.batch.job import FAILED, Assignment, run_assignment, failure
from ligo_convert.environment import thread_limits
from ligo_convert.errors import MachineError, MissingExtra, OutputLocked
from ligo_convert.progress import Progress
from ligo_convert.signals import deferred

RETRIES = 3

LOCKED_SECONDS = 60.0

KNOCK_SECONDS = 10.0

LOOK_SECONDS = 0.2

COUNT_SECONDS = 2.0

# How long an entry waits for a machine that can take it at all to join the cluster.
MACHINE_SECONDS = 300.0

# What workers on other machines are told of this one's environment: where the Hub is, and who publishes.
CARRIED = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN")


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

    def has_room(self, load: ResourceRequest) -> bool:
        # Ray keeps a queue of its own, and knows what its machines have left.
        return True

    def start(self, load: ResourceRequest) -> None:
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

    load: ResourceRequest
    losses: int = 0
    alone_since: float | None = None


# As a task asks for them -> as a machine names them.
RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


def _asked(load: ResourceRequest) -> dict[str, float]:
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
        result = run_assignment(assignment, Progress())
        # A machine that is cut off may go on for a moment while its work is done again elsewhere.
        locked = (
            result["state"] == FAILED
            and result["code"] == OutputLocked.exit_code
            and OutputLocked.SAYS in result["why"]
        )
        if not locked or time.monotonic() > until:
            return result
        time.sleep(1.0)

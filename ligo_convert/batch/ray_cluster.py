"""The engine of a Ray cluster: each entry is a task on one of its machines.

Input: resource requests. Output: events.
"""

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
from ligo_convert.batch.job import FAILED, Assignment, failure, run_assignment
from ligo_convert.environment import thread_limits
from ligo_convert.errors import MachineError, MissingExtra, OutputLocked
from ligo_convert.progress import Progress
from ligo_convert.signals import deferred

# How often a task that the cluster lost is started again.
RETRIES = 3

# How long a task waits for an output that a lost machine's task still locks.
LOCKED_SECONDS = 60.0

CONNECT_SECONDS = 10.0

POLL_SECONDS = 0.2

# Interval between two looks at the cluster's machines.
MACHINES_SECONDS = 2.0

# How long an entry waits for a machine that is large enough to join the cluster.
JOIN_SECONDS = 300.0

# Environment variables that workers on other machines receive: where the Hub is, and who publishes.
FORWARDED = ("USE_HUB_KERNELS", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN")

# Resources as a task requests them -> as a machine names them.
RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


class RayCluster:
    """A running Ray cluster, or a local one. Paths must mean the same on every machine of the cluster.

    An entry whose machine is lost starts again on another machine, and continues from its staged work.

    Args:
        address: of the cluster; None uses RAY_ADDRESS, or else starts a local cluster.
        on_event: receives what entries wait for.
    """

    is_local = False

    def __init__(self, address: str | None, on_event: Callable[[Event], None]) -> None:
        self._address, self._on_event, self._running = address, on_event, dict[Any, _Task]()
        self._connected_here, self._redirected, self._machines_seen = False, contextlib.ExitStack(), -MACHINES_SECONDS

    def __enter__(self) -> Self:
        try:
            import ray
        except ImportError:
            raise MissingExtra("Ray is not installed", extra="ray", where="--engine ray") from None
        self._ray: Any = ray
        # Ray prints messages about its machines to stdout, which is for results.
        self._redirected.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._connected_here = not ray.is_initialized()
        if self._connected_here:
            # Without an address Ray would use this machine's last cluster, even one that is gone.
            address = self._address or os.environ.get("RAY_ADDRESS") or "local"
            try:
                _check_reachable(address)
                with deferred():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (OSError, RuntimeError, ValueError) as error:
                raise MachineError(
                    "the Ray cluster cannot be reached",
                    where=self._address or os.environ.get("RAY_ADDRESS", "--engine ray"),
                    found=str(error).splitlines()[0] if str(error) else type(error).__name__,
                    hint="check it with `ray status`; start one with `ray start --head`",
                ) from None
        # A process for each task, as in the local engine. Ray's own retries never end if memory was short.
        self._remote = ray.remote(max_calls=1, max_retries=0)(_run_on_cluster)
        return self

    def __exit__(self, *_: object) -> None:
        with deferred():
            for reference in self._running:
                self._ray.cancel(reference, force=True)
            if self._connected_here:
                self._ray.shutdown()
        self._redirected.close()

    def has_room(self, request: ResourceRequest) -> bool:
        # Ray has a queue of its own and knows what its machines have free.
        return True

    def start(self, request: ResourceRequest) -> None:
        self._submit(_Task(request=request))

    def events(self, seconds: float) -> list[Event]:
        deadline = time.monotonic() + seconds
        while True:
            events = [*self._finished(), *self._without_machine()]
            left = deadline - time.monotonic()
            if events or left <= 0:
                return events
            # Sleep here and not in `ray.wait`, which reports an exception raised by a signal as a failure.
            time.sleep(min(POLL_SECONDS, left))

    def _submit(self, task: _Task) -> None:
        request = task.request
        assignment = replace(request.assignment, threads=int(request.cpus or 1), device=request.device)
        environment = {name: os.environ[name] for name in FORWARDED if name in os.environ}
        with deferred():
            reference = self._remote.options(**_resources(request)).remote(assignment, str(Path.cwd()), environment)
        self._running[reference] = task

    def _finished(self) -> list[Event]:
        if not self._running:
            return []
        with deferred():
            ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        events = []
        for reference in ready:
            task = self._running.pop(reference)
            try:
                with deferred():
                    result = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                events.append(self._lost(task, error))
            else:
                events.append(Event(name=task.request.name, kind="ended", value=result))
        return events

    def _lost(self, task: _Task, error: Exception) -> Event:
        """Start a task again that the cluster lost, or fail its entry after `RETRIES`."""
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        task.losses += 1
        if task.losses <= RETRIES:
            self._submit(task)
            return Event(
                name=task.request.name, kind="message", value=f"the cluster lost the entry; starting it again: {why}"
            )
        result = failure(
            MachineError(
                f"the cluster lost the entry {task.losses} times",
                found=why,
                hint="see `ray logs`; if memory was short, raise `resources.memory`; run again to continue",
            )
        )
        return Event(name=task.request.name, kind="ended", value=result)

    def _without_machine(self) -> list[Event]:
        """Fail entries that no machine of the cluster can run, after waiting for such a machine to join."""
        if not self._running or time.monotonic() - self._machines_seen < MACHINES_SECONDS:
            return []
        self._machines_seen = time.monotonic()
        with deferred():
            machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        events = []
        for reference, task in list(self._running.items()):
            name, now = task.request.name, time.monotonic()
            required = {RESOURCES[resource]: amount for resource, amount in _resources(task.request).items()}
            if any(all(machine.get(key, 0.0) >= amount for key, amount in required.items()) for machine in machines):
                task.waiting_since = None
            elif task.waiting_since is None:
                task.waiting_since = now
                text = f"waiting for a machine with {_amounts(required)}"
                self._on_event(Event(name=name, kind="progress", value=text))
            elif now - task.waiting_since > JOIN_SECONDS:
                with deferred():
                    self._ray.cancel(reference, force=True)
                del self._running[reference]
                events.append(Event(name=name, kind="ended", value=failure(_no_machine(name, required, machines))))
        return events


@dataclass(kw_only=True)
class _Task:
    """An entry on a cluster.

    Attributes:
        request: the entry and its resources.
        losses: how often the cluster lost it.
        waiting_since: when it was seen that no machine is large enough; None if one is.
    """

    request: ResourceRequest
    losses: int = 0
    waiting_since: float | None = None


def _resources(request: ResourceRequest) -> dict[str, float]:
    return {"num_cpus": request.cpus or 1.0, "num_gpus": request.gpu_count, "memory": float(request.memory)}


def _amounts(required: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:,.0f}" for name, amount in required.items() if amount)


def _no_machine(name: str, required: Mapping[str, float], machines: list[dict[str, float]]) -> MachineError:
    available = [", ".join(f"{key} {machine.get(key, 0.0):,.0f}" for key in required) for machine in machines]
    return MachineError(
        "no machine of the cluster is large enough for the entry",
        where=name,
        expected=_amounts(required),
        found="; ".join(available) or "no machine",
        hint="add a larger machine, or lower `resources` in the manifest",
    )


def _check_reachable(address: str) -> None:
    """Connect to an address once, because Ray would retry for minutes. Raises OSError, ValueError."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _run_on_cluster(assignment: Assignment, folder: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Convert an entry on a machine of the cluster.

    Args:
        assignment: the entry.
        folder: the command's working directory, which relative paths start from.
        environment: variables to set.
    """
    os.environ.update({**environment, **thread_limits(assignment.threads)})
    try:
        os.chdir(folder)
    except OSError as error:
        what = "the working directory does not exist on every machine of the cluster"
        hint = "run from a directory that all machines share"
        return failure(MachineError(what, where=platform.node(), found=str(error), hint=hint))
    deadline = time.monotonic() + LOCKED_SECONDS
    while True:
        result = run_assignment(assignment, Progress())
        # A machine that was cut off may continue for a moment while its task already runs again on another one.
        locked = (
            result["state"] == FAILED
            and result["code"] == OutputLocked.exit_code
            and OutputLocked.SAYS in result["why"]
        )
        if not locked or time.monotonic() > deadline:
            return result
        time.sleep(1.0)

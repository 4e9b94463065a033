"""Run the entries of a manifest: each after its dependencies, each once, and no failure that stops another entry.

Input: a manifest, an engine's name. Output: a `Batch` with the status of every entry. The state folder may be shared by any number of such
processes on any number of machines: it holds a lease for each entry in progress and a record for each that has ended. The next run
does what is left.
"""

from __future__ import annotations

import contextlib
import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ligo_convert.batch.assignments import EntryPlanner, assignment_of
from ligo_convert.batch.engine import Engine, EngineOptions, Event, ResourceRequest
from ligo_convert.batch.engines import engine_named
from ligo_convert.batch.job import DONE, FAILED, failure
from ligo_convert.batch.manifest import Manifest
from ligo_convert.batch.records import EntryRecords
from ligo_convert.errors import LigoError
from ligo_convert.io.files import make_folder
from ligo_convert.io.leases import Leases
from ligo_convert.outputs.privacy import place_of

# `waiting` for dependencies or for room, `running` in this process, `elsewhere`: another process holds the lease. Then `done`, `failed`, or
# `skipped` because a dependency failed.
WAITING, RUNNING, ELSEWHERE, SKIPPED = "waiting", "running", "elsewhere", "skipped"

ENDED = (DONE, FAILED, SKIPPED)

POLL_SECONDS = 1.0

# Interval between two looks at an entry that another process holds.
WATCH_SECONDS = 5.0


@dataclass(kw_only=True)
class EntryStatus:
    """The status of an entry.

    Attributes:
        state: one of the states above.
        activity: what a running entry does now.
        started: seconds on the monotonic clock; None before it starts.
        seconds: duration of a finished entry.
        code: its exit code.
        why: why it failed or was skipped.
        report: what the conversion reported.
        reused: True if an earlier run did it.
        checked: when an entry of another process was last checked, in seconds on the monotonic clock.
    """

    state: str = WAITING
    activity: str = ""
    started: float | None = None
    seconds: float = 0.0
    code: int = 0
    why: str | None = None
    report: Mapping[str, Any] | None = None
    reused: bool = False
    checked: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Callbacks for a display.

    Attributes:
        on_change: receives an entry's name and status after every change.
        on_message: receives an entry's name and a line to keep.
    """

    on_change: Callable[[str, EntryStatus], None] = field(default=lambda name, status: None)
    on_message: Callable[[str, str], None] = field(default=lambda name, text: None)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The result of a batch.

    Attributes:
        manifest: the manifest.
        engine: the engine's name.
        names: the entries of this shard, in the manifest's order.
        statuses: by name.
        seconds: total duration.
    """

    manifest: Manifest
    engine: str
    names: tuple[str, ...]
    statuses: Mapping[str, EntryStatus]
    seconds: float

    @property
    def exit_code(self) -> int:
        """The code of the first entry, in the manifest's order, that failed; 0 if none failed."""
        return next((self.statuses[name].code for name in self.names if self.statuses[name].state == FAILED), 0)

    def json(self) -> dict[str, Any]:
        """Return what `batch --json` prints."""
        counts = dict.fromkeys(ENDED, 0)
        entries = {}
        for name in self.names:
            status = self.statuses[name]
            counts[status.state] += 1
            report = dict(status.report or {})
            if "out" in report:
                report["out"] = place_of(Path(report["out"]).absolute())
            entries[name] = {
                "state": status.state,
                "code": status.code,
                "why": status.why,
                "seconds": round(status.seconds, 3),
                "again": status.reused,
                **{("stages" if key == "seconds" else key): value for key, value in report.items()},
            }
        return {
            "manifest": self.manifest.path.name,
            "state": place_of(self.manifest.state),
            "engine": self.engine,
            "entries": entries,
            "counts": counts,
            "seconds": round(self.seconds, 3),
        }


def run_batch(
    manifest: Manifest,
    *,
    engine: str = "local",
    jobs: int = 1,
    shard: tuple[int, int] = (0, 1),
    address: str | None = None,
    device: str = "auto",
    watcher: Watcher | None = None,
) -> Batch:
    """Run the entries of a manifest, or of one shard of it.

    Args:
        manifest: the manifest.
        engine: a name in `engines.ENGINES`.
        jobs: number of entries at a time on this machine.
        shard: index, from 0, and number of shards. Entries that depend on each other are in the same shard.
        address: of a Ray cluster.
        device: `auto`, `cpu` or `cuda`.
        watcher: callbacks for a display.

    Raises:
        MachineError: the engine is not available, or the state folder cannot be written. The failure of an entry raises nothing.
    """
    started = time.monotonic()
    names = shard_entries(manifest, shard)
    logs = manifest.state / "logs"
    make_folder(logs)
    watcher = watcher or Watcher()
    with Leases(manifest.state, warn=lambda name, text: watcher.on_message(name, f"warning: {text}")) as leases:
        scheduler = _Scheduler(manifest, leases, names=names, device=device, watcher=watcher)
        options = EngineOptions(jobs=jobs, logs=logs, address=address, on_event=scheduler.handle)
        with engine_named(engine, options) as chosen:
            scheduler.run(chosen)
    return Batch(
        manifest=manifest,
        engine=engine,
        names=names,
        statuses=scheduler.statuses,
        seconds=time.monotonic() - started,
    )


def shard_entries(manifest: Manifest, shard: tuple[int, int]) -> tuple[str, ...]:
    """Return the entries of one shard.

    Entries that depend on each other stay together, so no shard waits for another. Every process computes the same shards.
    """
    index, count = shard
    parent = {name: name for name in manifest.entries}

    def root_of(name: str) -> str:
        while parent[name] != name:
            # Halving the way keeps long chains short.
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for name, entry in manifest.entries.items():
        for other in entry.after:
            parent[root_of(other)] = root_of(name)
    chains: dict[str, list[str]] = {}
    for name in manifest.entries:
        chains.setdefault(root_of(name), []).append(name)
    # Longest chain first, each to the shard with the fewest entries, the first of them. So shards beyond the number of chains stay empty,
    # and the number of shards, which has no limit, costs nothing.
    shards = [(0, number) for number in range(min(count, len(chains)))]
    chosen: set[str] = set()
    for chain in sorted(chains.values(), key=lambda names: -len(names)):
        length, number = heapq.heappop(shards)
        heapq.heappush(shards, (length + len(chain), number))
        if number == index:
            chosen.update(chain)
    return tuple(name for name in manifest.entries if name in chosen)


class _Scheduler:
    """The entries of a shard and their statuses."""

    def __init__(
        self, manifest: Manifest, leases: Leases, *, names: tuple[str, ...], device: str, watcher: Watcher
    ) -> None:
        self.statuses = {name: EntryStatus() for name in names}
        self._manifest, self._leases, self._watcher = manifest, leases, watcher
        self._order = tuple(name for name in manifest.order if name in self.statuses)
        self._assignments = {name: assignment_of(manifest, manifest.entries[name], device=device) for name in names}
        self._records = EntryRecords(leases, self._dependency_reports)
        self._requests: dict[str, ResourceRequest] = {}
        # Keys of running entries as they were at the start: a file that changes meanwhile makes the entry another one.
        self._keys: dict[str, str | None] = {}

    def run(self, engine: Engine) -> None:
        """Run every entry to its end."""
        planner = EntryPlanner(self._manifest, self._assignments.values(), is_local=engine.is_local)
        for name in self._order:
            # Reject everything that configs and headers can reject before anything starts.
            if not self._is_ready(name):
                with self._isolated(name):
                    planner.check_ahead(name)
            elif not self._reuse(name):
                self._plan(name, planner)
        while any(status.state not in ENDED for status in self.statuses.values()):
            started = [self._advance(name, engine, planner) for name in self._order]
            for event in engine.events(0.0 if any(started) else POLL_SECONDS):
                self.handle(event)

    def handle(self, event: Event) -> None:
        """Update an entry from an event of the engine."""
        status = self.statuses[event.name]
        if event.kind == "message":
            self._watcher.on_message(event.name, str(event.value))
            return
        if event.kind == "progress":
            status.activity = str(event.value)
        else:
            self._end(event.name, event.value)
        self._watcher.on_change(event.name, status)

    # Starting.

    def _dependency_reports(self, name: str) -> dict[str, Mapping[str, Any] | None]:
        return {other: self.statuses[other].report for other in self._manifest.entries[name].after}

    def _is_ready(self, name: str) -> bool:
        return all(self.statuses[other].state == DONE for other in self._manifest.entries[name].after)

    def _advance(self, name: str, engine: Engine, planner: EntryPlanner) -> bool:
        """Start, skip or reuse an entry if possible. Returns True if it was started."""
        status = self.statuses[name]
        if status.state == ELSEWHERE:
            with self._isolated(name):
                self._check_elsewhere(name)
        if status.state != WAITING:
            return False
        if self._skip_if_dependency_failed(name) or not self._is_ready(name):
            return False
        if name not in self._requests and self._reuse(name):
            return False
        request = self._plan(name, planner)
        if request is None or not engine.has_room(request):
            return False
        with self._isolated(name):
            self._acquire(name)
        if status.state in (RUNNING, ELSEWHERE):
            self._watcher.on_change(name, status)
        if status.state != RUNNING:
            return False
        with self._isolated(name):
            engine.start(request)
        return True

    def _plan(self, name: str, planner: EntryPlanner) -> ResourceRequest | None:
        """Return what an entry needs; None if its plan refuses it, which fails the entry."""
        if name not in self._requests:
            with self._isolated(name):
                self._requests[name] = planner.request(name)
        return self._requests.get(name)

    def _acquire(self, name: str) -> None:
        """Acquire an entry's lease and mark it running, unless another process holds the lease or has just finished the entry."""
        status = self.statuses[name]
        if not self._leases.acquire(name):
            status.state, status.checked = ELSEWHERE, time.monotonic()
            return
        if self._reuse(name):
            self._leases.release(name)
            return
        self._leases.clear(name)
        self._keys[name] = self._records.key(self._assignments[name])
        status.state, status.started, status.activity = RUNNING, time.monotonic(), ""

    # Without running.

    def _skip_if_dependency_failed(self, name: str) -> bool:
        for other in self._manifest.entries[name].after:
            cause = self.statuses[other]
            if cause.state in (FAILED, SKIPPED):
                status = self.statuses[name]
                verb = "failed" if cause.state == FAILED else "was skipped"
                status.state, status.code, status.why = SKIPPED, cause.code, f"it depends on {other}, which {verb}"
                self._watcher.on_change(name, status)
                return True
        return False

    def _reuse(self, name: str) -> bool:
        """Take over the result of an earlier run, by any process, if it still holds."""
        record = self._records.finished(self._assignments[name]) if self._is_ready(name) else None
        if record is None:
            return False
        status = self.statuses[name]
        status.state, status.code, status.why, status.reused = DONE, 0, None, True
        status.report, status.seconds = record["report"], float(record.get("seconds") or 0.0)
        self._watcher.on_change(name, status)
        return True

    def _check_elsewhere(self, name: str) -> None:
        """Check whether the process that holds an entry has finished it, has failed, or is gone."""
        status = self.statuses[name]
        if time.monotonic() - status.checked < WATCH_SECONDS:
            return
        status.checked = time.monotonic()
        if self._reuse(name) or not self._leases.acquire(name):
            return
        self._leases.release(name)
        record = self._records.failed(self._assignments[name])
        if record is None:
            status.state = WAITING
        else:
            status.state, status.code, status.why = FAILED, int(record["code"]), str(record["why"])
            self._watcher.on_change(name, status)

    # Ending.

    @contextlib.contextmanager
    def _isolated(self, name: str) -> Iterator[None]:
        """Turn any exception of the block into the failure of one entry."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  a bug too must not stop the other entries
            self._fail(name, error)

    def _fail(self, name: str, error: Exception) -> None:
        status = self.statuses[name]
        try:
            held = self._leases.is_held(name) or self._leases.acquire(name)
        except LigoError as cause:
            # Without a lease there is no record: the entry has failed in this process only.
            self._settle(name, failure(error))
            self._watcher.on_message(name, f"warning: cannot record the result: {cause}")
            self._watcher.on_change(name, status)
            return
        if held:
            self.handle(Event(name=name, kind="ended", value=failure(error)))
        else:
            status.state = ELSEWHERE
            self._watcher.on_change(name, status)

    def _settle(self, name: str, result: Mapping[str, Any]) -> None:
        status = self.statuses[name]
        if status.started is not None:
            status.seconds = time.monotonic() - status.started
        status.state, status.code, status.why = result["state"], result["code"], result["why"]
        status.report, status.activity = result["report"], ""

    def _end(self, name: str, result: Mapping[str, Any]) -> None:
        self._settle(name, result)
        key = self._keys.pop(name) if name in self._keys else self._records.key(self._assignments[name])
        try:
            recorded = self._records.write(name, result, key=key, seconds=self.statuses[name].seconds)
        except LigoError as error:
            # The result stands without a record; the next run recognizes its output.
            self._watcher.on_message(name, f"warning: cannot record the result: {error}")
            with contextlib.suppress(LigoError, OSError):
                self._leases.release(name)
            return
        if not recorded:
            # Another process took this one for dead and took over the lease. Its result counts.
            vars(self.statuses[name]).update(vars(EntryStatus(state=ELSEWHERE, checked=time.monotonic())))

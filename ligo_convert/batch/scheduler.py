"""Many conversions: a manifest in, every entry done or its failure told, and no failure that harms another.

Entries run where an engine has room for them, each after those that it needs. What is known of the work lies in a folder that any number of
such processes may share, on any number of machines: a claim for each that is being done, a record for each that has ended. Run again, it
does what is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ligo_convert.batch.engine import Engine, EngineOptions, Event, ResourceRequest
from ligo_convert.batch.engines import engine_named
from ligo_convert.batch.fingerprints import inputs_digest, recipe_inputs
from ligo_convert.batch.job import DONE, FAILED, Assignment, failure, recipe_of
from ligo_convert.batch.manifest import BatchEntry, Manifest
from ligo_convert.conversion.plan import Plan, plan_after, plan_recipe
from ligo_convert.environment import versions
from ligo_convert.errors import LigoError
from ligo_convert.growth.operator_file import read_operator
from ligo_convert.io.files import make_folder
from ligo_convert.io.leases import Leases
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.outputs.layout import CHECKSUMS
from ligo_convert.recipes.recipe import load_recipe

# `waiting` for room or for others, `running` here, `elsewhere` in another process; then `done`, `failed`, or `skipped`, as one that it
# needs has failed.
WAITING, RUNNING, CLAIMED_ELSEWHERE, SKIPPED = "waiting", "running", "elsewhere", "skipped"

ENDED = (DONE, FAILED, SKIPPED)

POLL_SECONDS = 1.0

WATCH_SECONDS = 5.0

# What applying an operator takes beside its largest tensors: the libraries themselves.
LEAST_MEMORY = 2_000_000_000


@dataclass(kw_only=True)
class EntryStatus:
    """Where an entry stands. `began`: seconds on the monotonic clock. `again`: whether an earlier call has done it."""

    state: str = WAITING
    at: str = ""
    began: float | None = None
    seconds: float = 0.0
    code: int = 0
    why: str | None = None
    report: Mapping[str, Any] | None = None
    again: bool = False
    looked: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Who looks on: `changed` after every change of an entry's standing, `said` with a line worth keeping."""

    changed: Callable[[str, EntryStatus], None] = field(default=lambda name, standing: None)
    said: Callable[[str, str], None] = field(default=lambda name, text: None)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What came of a manifest. `mine`: the entries of this share of it; `seconds` in all."""

    manifest: Manifest
    engine: str
    mine: tuple[str, ...]
    standings: Mapping[str, EntryStatus]
    seconds: float

    @property
    def exit_code(self) -> int:
        """That of the first entry, in the order of the manifest, that has failed; 0 where none has."""
        return next((self.standings[name].code for name in self.mine if self.standings[name].state == FAILED), 0)

    def json(self) -> dict[str, Any]:
        """As `batch --json` prints it."""
        counts = dict.fromkeys(ENDED, 0)
        entries = {}
        for name in self.mine:
            standing = self.standings[name]
            counts[standing.state] += 1
            entries[name] = {
                "state": standing.state,
                "code": standing.code,
                "why": standing.why,
                "seconds": round(standing.seconds, 3),
                "again": standing.again,
                **{("stages" if key == "seconds" else key): value for key, value in (standing.report or {}).items()},
            }
        return {
            "manifest": self.manifest.path.name,
            "state": str(self.manifest.state),
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
    share: tuple[int, int] = (0, 1),
    address: str | None = None,
    device: str = "auto",
    watcher: Watcher | None = None,
) -> Batch:
    """Do the entries of a manifest, or of one share of it.

    Args:
        engine: a name of `engines.ENGINES`. jobs: entries at a time on this machine. address: of a Ray cluster.
        share: number and count: this process does one part of so many, counted from 0. What hangs together is never parted.

    Raises:
        MachineError: the engine cannot be had; the folder of the work cannot be written. What goes wrong with an entry raises nothing.
    """
    began = time.monotonic()
    work = _Work(manifest, mine=shares(manifest, share), device=device, watcher=watcher or Watcher())
    make_folder(manifest.state / "logs")
    choice = EngineOptions(jobs=jobs, folder=manifest.state / "logs", address=address, tell=work.heard)
    with Leases(manifest.state) as claims, engine_named(engine, choice) as chosen:
        work.run(chosen, claims)
    return Batch(
        manifest=manifest, engine=engine, mine=work.mine, standings=work.standings, seconds=time.monotonic() - began
    )


def shares(manifest: Manifest, share: tuple[int, int]) -> tuple[str, ...]:
    """The entries of one share: whole chains, dealt out by the number of their entries, so that no share waits for another."""
    number, count = share
    chains = {name: name for name in manifest.entries}

    def first_of(name: str) -> str:
        while chains[name] != name:
            name = chains[name]
        return name

    for name, entry in manifest.entries.items():
        for other in entry.after:
            chains[first_of(other)] = first_of(name)
    members: dict[str, list[str]] = {}
    for name in manifest.entries:
        members.setdefault(first_of(name), []).append(name)
    hands: list[list[str]] = [[] for _ in range(count)]
    # The longest first, each to whoever has least: the same for everybody who asks.
    for chain in sorted(members.values(), key=lambda names: -len(names)):
        min(hands, key=len).extend(chain)
    mine = set(hands[number])
    return tuple(name for name in manifest.entries if name in mine)


class _Work:
    """The entries of a share, and where each stands."""

    def __init__(self, manifest: Manifest, *, mine: tuple[str, ...], device: str, watcher: Watcher) -> None:
        self.manifest, self.mine, self.device, self.watcher = manifest, mine, device, watcher
        self.standings = {name: EntryStatus() for name in mine}
        self._order = tuple(name for name in manifest.order if name in self.standings)
        self._versions = versions()
        self._loads: dict[str, ResourceRequest] = {}
        # Of those whose outputs others grow on: what these will start from.
        self._plans: dict[str, Plan] = {}
        self._made_by = {name: _maker(manifest, name) for name in mine}
        self._operators: set[Path] = set()
        self._keys: dict[str, str | None] = {}

    def run(self, engine: Engine, claims: Leases) -> None:
        for name in self._order:
            # Whatever headers and configs refuse is refused before anything is begun.
            if not self._may_begin(name):
                self._look_ahead(name, engine, claims)
            elif not self._recall(name, claims):
                self._load(name, engine, claims)
        while any(standing.state not in ENDED for standing in self.standings.values()):
            started = self._start_what_can(engine, claims)
            for event in engine.events(0.0 if started else POLL_SECONDS):
                self.heard(event, claims)

    def heard(self, event: Event, claims: Leases | None = None) -> None:
        """Something has happened to a running entry."""
        standing = self.standings[event.name]
        if event.kind == "told":
            standing.at = str(event.value)
        elif event.kind == "said":
            self.watcher.said(event.name, str(event.value))
            return
        else:
            assert claims is not None, "an entry ends where claims are"
            self._end(event.name, event.value, claims)
        self.watcher.changed(event.name, standing)

    # Looking ahead.

    def _look_ahead(self, name: str, engine: Engine, claims: Leases) -> None:
        """What can be refused of an entry whose needs are still to be done: its recipe, a stored operator, its place in a chain."""
        assignment = self._assignment(name)
        with self._alone(name, claims):
            if assignment.operator is not None:
                if Path(assignment.operator).is_file():
                    self._check_operator(Path(assignment.operator))
                return
            assert assignment.recipe is not None
            recipe = load_recipe(
                Path(assignment.recipe),
                overrides=assignment.overrides,
                source=assignment.source,
                out=assignment.out,
                placed=False,
            )
            first = self._plans.get(self._made_by[name] or "")
            # A target's config may be one that is still to be made, too.
            if first is not None and recipe.target.model is None:
                self._keep(name, plan_after(recipe, first, here=engine.here))

    def _check_operator(self, file: Path) -> None:
        if file not in self._operators:
            read_operator(file)
            self._operators.add(file)

    def _keep(self, name: str, plan: Plan) -> None:
        if name in self._made_by.values():
            self._plans[name] = plan

    # Starting.

    def _may_begin(self, name: str) -> bool:
        """Whether all that an entry needs is done."""
        return all(self.standings[other].state == DONE for other in self.manifest.entries[name].after)

    def _start_what_can(self, engine: Engine, claims: Leases) -> bool:
        started = False
        for name in self._order:
            standing = self.standings[name]
            if standing.state == CLAIMED_ELSEWHERE:
                with self._alone(name, claims):
                    self._look_elsewhere(name, claims)
            if standing.state != WAITING:
                continue
            needs = [self.standings[other] for other in self.manifest.entries[name].after]
            lost = next((other for other in needs if other.state in (FAILED, SKIPPED)), None)
            if lost is not None:
                self._skip(name, lost)
                continue
            if not self._may_begin(name):
                continue
            if name not in self._loads and self._recall(name, claims):
                continue
            load = self._load(name, engine, claims)
            if load is None or not engine.has_room(load):
                continue
            with self._alone(name, claims):
                self._claim(name, claims)
            if standing.state in (RUNNING, CLAIMED_ELSEWHERE):
                self.watcher.changed(name, standing)
            if standing.state == RUNNING:
                started = True
                with self._alone(name, claims):
                    engine.start(load)
        return started

    def _claim(self, name: str, claims: Leases) -> None:
        """Make an entry ours to do, unless it is another's, or another has finished it between our looking and our claiming."""
        standing = self.standings[name]
        if not claims.take(name):
            standing.state, standing.looked = CLAIMED_ELSEWHERE, time.monotonic()
            return
        if self._recall(name, claims):
            claims.release(name)
            return
        claims.forget(name)
        # As it is now: what is written to meanwhile makes it another.
        self._keys[name] = self._key(name)
        standing.state, standing.began, standing.at = RUNNING, time.monotonic(), ""

    def _load(self, name: str, engine: Engine, claims: Leases) -> ResourceRequest | None:
        """What an entry takes, by its plan. None where the plan refuses it: then it has failed, before anything was started."""
        if name not in self._loads:
            with self._alone(name, claims):
                self._loads[name] = self._planned(name, engine)
        return self._loads.get(name)

    def _planned(self, name: str, engine: Engine) -> ResourceRequest:
        assignment, asked, here = self._assignment(name), self.manifest.entries[name].resources, engine.here
        memory = LEAST_MEMORY
        if assignment.operator is not None:
            self._check_operator(Path(assignment.operator))
        else:
            plan = plan_recipe(recipe_of(assignment), here=here)
            self._keep(name, plan)
            memory = plan.memory
        gpus = asked.gpus or 0.0
        return ResourceRequest(
            assignment=assignment,
            cpus=asked.cpus or 0.0,
            # A part of one is a whole one where nobody shares them out.
            gpus=math.ceil(gpus) if here else gpus,
            memory=asked.memory if asked.memory is not None else memory,
        )

    # Ending.

    @contextlib.contextmanager
    def _alone(self, name: str, claims: Leases) -> Iterator[None]:
        """Whatever goes wrong with an entry in here is that entry's failure; the others go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  a bug of ours, too
            self._fail(name, error, claims)

    def _fail(self, name: str, error: Exception, claims: Leases) -> None:
        standing = self.standings[name]
        try:
            ours = claims.holds(name) or claims.take(name)
        except LigoError as unclaimed:
            # Where nothing can be written, no record can be kept: it has failed for us.
            self._settle(name, failure(error))
            self.watcher.said(name, f"warning: what came of it is not kept: {unclaimed}")
            self.watcher.changed(name, standing)
            return
        if ours:
            self.heard(Event(name=name, kind="ended", value=failure(error)), claims)
        else:
            standing.state = CLAIMED_ELSEWHERE
            self.watcher.changed(name, standing)

    def _settle(self, name: str, result: Mapping[str, Any]) -> None:
        standing = self.standings[name]
        if standing.began is not None:
            standing.seconds = time.monotonic() - standing.began
        standing.state, standing.code, standing.why = result["state"], result["code"], result["why"]
        standing.report, standing.at = result["report"], ""

    def _end(self, name: str, result: Mapping[str, Any], claims: Leases) -> None:
        self._settle(name, result)
        record = {
            "key": self._keys.pop(name) if name in self._keys else self._key(name),
            **{key: result[key] for key in ("state", "code", "why", "report")},
            "seconds": round(self.standings[name].seconds, 3),
            "sums": _sums_digest(result["report"]),
        }
        try:
            kept = claims.finish(name, record)
        except LigoError as error:
            # It is what it is without a record, and the next call finds out by its output.
            self.watcher.said(name, f"warning: what came of it is not kept: {error}")
            with contextlib.suppress(LigoError, OSError):
                claims.release(name)
            return
        if not kept:
            # Taken for dead, we have lost it to another, whose word is what counts.
            vars(self.standings[name]).update(vars(EntryStatus(state=CLAIMED_ELSEWHERE, looked=time.monotonic())))

    def _skip(self, name: str, lost: EntryStatus) -> None:
        standing = self.standings[name]
        other = next(other for other in self.manifest.entries[name].after if self.standings[other] is lost)
        standing.state, standing.code, standing.why = (
            SKIPPED,
            lost.code,
            f"it needs {other}, which has {_not_done(lost)}",
        )
        self.watcher.changed(name, standing)

    def _recall(self, name: str, claims: Leases) -> bool:
        """Whether an entry was done before, by anybody, from what is there now, and its output still is what it was then."""
        found = claims.record(name)
        if found is None or found.get("state") != DONE or found.get("key") is None or not self._may_begin(name):
            return False
        if found["key"] != self._key(name):
            return False
        if found.get("sums") is None or found["sums"] != _sums_digest(found.get("report")):
            return False
        standing = self.standings[name]
        standing.state, standing.code, standing.why, standing.again = DONE, 0, None, True
        standing.report, standing.seconds = found["report"], float(found.get("seconds") or 0.0)
        self.watcher.changed(name, standing)
        return True

    def _look_elsewhere(self, name: str, claims: Leases) -> None:
        """Whether another process has ended what it had claimed, well or not, or is gone."""
        standing = self.standings[name]
        if time.monotonic() - standing.looked < WATCH_SECONDS:
            return
        standing.looked = time.monotonic()
        if self._recall(name, claims):
            return
        if claims.take(name):
            # It gave the claim back without success, or has died: now it is ours to try.
            claims.release(name)
            found = claims.record(name)
            if found is not None and found.get("state") == FAILED and found.get("key") == self._key(name):
                standing.state, standing.code, standing.why = FAILED, int(found["code"]), str(found["why"])
                self.watcher.changed(name, standing)
            else:
                standing.state = WAITING

    def _key(self, name: str) -> str | None:
        """What makes an entry the same as in an earlier call: what the manifest says of it, its recipe's text, the versions, how the
        files that it reads are, and what came of the entries that it needs. None where one cannot find out.
        """
        assignment = self._assignment(name)
        told = {key: value for key, value in vars(assignment).items() if key not in ("cache", "device", "threads")}
        text, places = None, [Path(place) for place in (assignment.operator, assignment.source) if place is not None]
        # What is not absolute is a name of the Hub.
        places = [place for place in places if place.is_absolute()]
        if assignment.recipe is not None:
            try:
                text = hashlib.sha256(Path(assignment.recipe).read_bytes()).hexdigest()
                places += recipe_inputs(recipe_of(assignment))
            except Exception:  # noqa: BLE001  whatever it is, planning it fails of the same, and says so
                return None
        inputs = inputs_digest(places)
        if inputs is None:
            return None
        needs = {other: _sums_digest(self.standings[other].report) for other in self.manifest.entries[name].after}
        return sha256_of({"entry": told, "recipe": text, "versions": self._versions, "inputs": inputs, "needs": needs})

    def _assignment(self, name: str) -> Assignment:
        return assignment_of(self.manifest, self.manifest.entries[name], device=self.device)


def assignment_of(manifest: Manifest, entry: BatchEntry, *, device: str) -> Assignment:
    """An entry in plain data."""
    return Assignment(
        name=entry.name,
        recipe=None if entry.recipe is None else str(entry.recipe),
        overrides=entry.overrides,
        source=entry.source,
        operator=None if entry.operator is None else str(entry.operator),
        out=None if entry.out is None else str(entry.out),
        publish=entry.publish,
        cache=str(manifest.state / "cache"),
        device=device,
        threads=0,
    )


def _maker(manifest: Manifest, name: str) -> str | None:
    """The entry whose output is the source of this one; None where it is nobody's."""
    entry = manifest.entries[name]
    made = {str(manifest.entries[other].out): other for other in entry.after}
    return made.get(entry.source or "")


def _sums_digest(report: Mapping[str, Any] | None) -> str | None:
    """The digest of an output's SHA256SUMS, which stands for all of it; None where it is not there."""
    try:
        return hashlib.sha256((Path(str((report or {})["out"])) / CHECKSUMS).read_bytes()).hexdigest()
    except (KeyError, OSError):
        return None


def _not_done(standing: EntryStatus) -> str:
    return "failed" if standing.state == FAILED else "been skipped"

"""The comparison: the target trained from several starting points under equal conditions, and what each has saved.

What comes in: a recipe, names of methods, a budget. What goes out: a directory with `compare.json`, a picture of loss against operations
and a report. Until all of it is there it lies in a staging directory beside, with a result for every job that is done; the same command
goes on from there. The order: the source (trained where the recipe says so), operators and scratch's rates, scratch itself, everybody's
rates, everybody's training, each until it reaches scratch's final loss.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ligo_convert.contenders import SCRATCH
from ligo_convert.contest import (
    FORMAT,
    Contest,
    comparison_record,
    edge_breaches,
    first_at,
    make_contest,
    method_record,
)
from ligo_convert.environment import choose_device, versions
from ligo_convert.errors import LigoError, OutputBusy, RecipeError
from ligo_convert.fs import check_place, check_room
from ligo_convert.jobs import Job, operator_name, trunk_name
from ligo_convert.jsoncore import strict_json
from ligo_convert.learning import keep_result, same_data, slices_of, staged_results, tokenizer_directory
from ligo_convert.opening import digest_recipe, enter, examine, train_source
from ligo_convert.output import json_bytes
from ligo_convert.plan import Plan, check_apart, make_plan, open_planned, physical_memory
from ligo_convert.progress import Progress, Task
from ligo_convert.recipe import Recipe
from ligo_convert.record import finite, sha256_of
from ligo_convert.schedules import STABLE_PART
from ligo_convert.staging import Staging
from ligo_convert.strategies import stretches

if TYPE_CHECKING:
    from ligo_convert.workshop import Workshop

RECORD = "compare.json"
PICTURE = "compare.png"
REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a comparison ends with: `record` as compare.json holds it; `changed` False where it was there already."""

    out: Path
    record: Mapping[str, Any]
    changed: bool

    def json(self) -> dict[str, Any]:
        """As `compare --json` prints it."""
        return {"out": str(self.out), "changed": self.changed, **finite(self.record)}


def compare(
    recipe: Recipe,
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    steps: int | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> Compared:
    """Carry out a comparison; run again after a stop, it goes on where it stopped.

    Args:
        methods, steps, seeds: instead of the recipe's. jobs: worker processes; 0 for one a core, and one alone on a GPU.

    Raises:
        LigoError: of the class that says what went wrong; the output directory is then absent, or as it was.
    """
    progress = progress or Progress()
    before = _record_in(out)
    with contextlib.ExitStack() as stack:
        source = enter(stack, open_planned(recipe, weights=True))
        if source is not None:
            check_apart(out, source, where="--out")
        plan = make_plan(recipe, source, check_disk=False)
        contest = make_contest(plan, methods=methods, steps=steps, seeds=seeds)
        digests = examine(source, plan, progress) if source is not None else {}
        chosen = choose_device(device)
        key = _key(contest, digest_recipe(plan, source, digests, progress), device=chosen)
        if before is not None and before["key"] == key:
            return Compared(out=out, record=before, changed=False)
        if before is not None:
            raise OutputBusy("the output directory holds another comparison", where=out, hint="choose another")
        _check_room(contest, out)
        staging = stack.enter_context(Staging.open(out, key=key))
        if staging.resumed:
            progress.say("going on with what an earlier run has staged")
        for breach in contest.breaches():
            progress.warn(f"not fair: {breach['text']}")
        for name, reason in contest.skipped.items():
            progress.say(f"{name} is left out: {reason}")
        progress.say(_cost(contest))
        if source is None:
            source, _, plan = train_source(stack, plan, staging, chosen, progress, examples=contest.examples)
            contest = replace(contest, plan=plan)
        tokenizer = tokenizer_directory(plan, source) if plan.family.reads == "text" else None
        slices = slices_of(plan, tokenizer, progress=progress, examples=contest.examples)
        same_data(staging, slices.digest)
        arguments = {
            "contest": contest,
            "slices": slices,
            "source": source.root,
            "work": staging.work,
            "device": chosen,
        }
        schedule = _Schedule(contest, staging, progress)
        schedule.work(arguments, jobs=jobs or workers(plan, device=chosen))
        record = comparison_record(
            contest,
            schedule.records(),
            key=key,
            source={"label": "trained here" if recipe.source.pretrain else plan.label, **schedule.results["source"]},
            data={"digest": slices.digest, slices.unit: dict(slices.sizes)},
            versions=versions(),
            breaches=[*contest.breaches(), *edge_breaches(contest, schedule.chosen())],
        )
        _write(record, staging)
        staging.commit()
    return Compared(out=out, record=record, changed=True)


def workers(plan: Plan, *, device: str) -> int:
    """How many processes train at a time where nobody says: one a core, as far as memory goes; one alone on a GPU."""
    if device != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, physical_memory() // max(1, plan.memory)))


def _check_room(contest: Contest, out: Path) -> None:
    """Require disk for states: of a run its weights and two moments, and those of the stretches that longer runs go on from."""
    one = 12 * contest.plan.parameters["target"]
    check_room(out, one * (len(contest.entries) + (os.cpu_count() or 1)) + 64_000_000)


def _key(contest: Contest, recipe_digest: str, *, device: str) -> str:
    """What makes two comparisons the same."""
    return sha256_of(
        {
            "recipe": recipe_digest,
            "compare": contest.settings.model_dump(mode="json"),
            "methods": list(contest.entries),
            "steps": contest.steps,
            "seeds": contest.seeds,
            "device": device,
            "versions": versions(),
        }
    )


def _record_in(out: Path) -> dict[str, Any] | None:
    """The record of a finished comparison in the output's place; None where nothing is there. OutputBusy where something else is."""
    if not os.path.lexists(out / RECORD):
        check_place(out)
        return None
    try:
        record = strict_json((out / RECORD).read_bytes(), label=RECORD)
    except (OSError, LigoError):
        record = {}
    if record.get("format") != FORMAT or "key" not in record:
        raise OutputBusy("the output directory holds something else", where=out, hint="choose another")
    return record


def _cost(contest: Contest) -> str:
    """What a comparison costs, before anything is trained."""
    most = sum(map(contest.most_flops, contest.entries)) + (contest.source_flops or 0.0)
    return (
        f"{len(contest.entries)} methods, {len(contest.seeds)} seed(s); scratch: {contest.steps} steps,"
        f" {contest.scratch_flops:.3g} FLOPs, {contest.per_parameter:.1f} tokens a parameter; all of it at most {most:.3g} FLOPs,"
        f" {most / contest.scratch_flops:.1f} times scratch"
    )


def _write(record: Mapping[str, Any], staging: Staging) -> None:
    from ligo_convert.comparison_picture import comparison_png
    from ligo_convert.report import comparison_html

    plain = finite(record)
    staging.write_bytes(RECORD, json_bytes(plain))
    staging.write_bytes(PICTURE, comparison_png(plain))
    staging.write_bytes(REPORT, comparison_html(plain).encode())


def open_workshop(**arguments: Any) -> Workshop:
    """A worker's tool. Heavy modules are imported where they are needed, in the worker."""
    from ligo_convert.workshop import Workshop

    return Workshop(**arguments)


class _Schedule:
    """Which job comes next, from the results that are there; every result is staged as it comes."""

    def __init__(self, contest: Contest, staging: Staging, progress: Progress) -> None:
        self.contest, self.staging, self.progress = contest, staging, progress
        self._workers = 1
        self.results: dict[str, dict[str, Any]] = staged_results(staging).get("jobs", {})
        self._running: set[str] = set()
        self._bars: dict[str, Task] = {}
        self._spent: dict[str, float] = {}
        self._stack = contextlib.ExitStack()

    # The order of work.

    def work(self, arguments: Mapping[str, Any], *, jobs: int) -> None:
        """Do everything that is not done yet."""
        from ligo_convert.crew import Crew

        threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else 0
        self._workers = jobs
        if "probe" in self.results:
            self._say_time()
        with self._stack, Crew[Job](open_workshop, {**arguments, "threads": threads}, count=jobs) as crew:
            crew.run(self._next, done=self._done, told=self._told)

    def _next(self) -> Job | None:
        """The next job that can be begun; None where there is none, or all that are left wait for one that is running."""
        for job in self._open():
            if job.name not in self.results and job.name not in self._running:
                self._running.add(job.name)
                return job
        return None

    def _open(self) -> Iterator[Job]:
        """All jobs whose needs are met, the most urgent first; those that are done among them."""
        contest = self.contest
        yield Job(kind="probe")
        yield Job(kind="source")
        yield from self._tunes(SCRATCH)
        yield from self._fits()
        if self._tuned(SCRATCH) is None:
            return
        yield from self._scratch_runs()
        for seed in contest.seeds[1:] if self._chosen(SCRATCH) is not None else ():
            yield from self._trains(SCRATCH, seed)
        others = [name for name in contest.entries if name != SCRATCH]
        for name in others:
            if self._ready(name, contest.seeds[0]):
                yield from self._tunes(name)
        for seed in contest.seeds:
            if self._final(SCRATCH, seed) is None:
                continue
            for name in others:
                if self._tuned(name) is not None and self._ready(name, seed):
                    yield from self._trains(name, seed)

    def _fits(self) -> Iterator[Job]:
        """One for every operator that is learned."""
        seen = set()
        for seed in self.contest.seeds:
            for name, entry in self.contest.entries.items():
                key = operator_name(entry.contender, seed)
                if entry.contender.fits and key not in seen:
                    seen.add(key)
                    yield Job(kind="fit", method=name, seed=seed, flops=self.contest.fit_flops(name))

    def _ready(self, name: str, seed: int) -> bool:
        """Whether a method's operator is there."""
        method = self.contest.entries[name].contender
        if not method.fits:
            return True
        key = operator_name(method, seed)
        return any(
            job.name in self.results
            for job in self._fits()
            if operator_name(self.contest.entries[job.method].contender, job.seed) == key
        )

    def _tunes(self, name: str) -> Iterator[Job]:
        """One for every rate, by the first seed; scratch by every shape, the others by the one that was best there."""
        contest, best = self.contest, self._tuned(SCRATCH) if name != SCRATCH else None
        for rate, shape in contest.rates(name):
            chosen = {"learning_rate": rate, "schedule": shape or (best or {})["schedule"]}
            yield self._run(name, contest.seeds[0], chosen, contest.settings.tuning)

    def _trials(self, name: str) -> list[dict[str, Any]]:
        """Every rate that was tried, with its loss."""
        return [
            {
                "learning_rate": job.learning_rate,
                "schedule": job.shape,
                "validation_loss": self.results[job.name]["validation_loss"],
            }
            for job in self._tunes(name)
            if job.name in self.results
        ]

    def _tuned(self, name: str) -> dict[str, Any] | None:
        """The rate and the shape that were best; None before all are tried."""
        if name != SCRATCH and self._tuned(SCRATCH) is None:
            return None
        trials = self._trials(name)
        if len(trials) < len(self.contest.rates(name)):
            return None
        best = min(trials, key=_loss_of)
        if best["validation_loss"] is None:
            rates = ", ".join(f"{trial['learning_rate']:g}" for trial in trials)
            raise RecipeError(
                f"{name}: training ends at no number at every peak rate that was tried ({rates})",
                where=self.contest.plan.recipe.where("compare", "learning_rates"),
                hint="give lower ones",
            )
        return {"learning_rate": best["learning_rate"], "schedule": best["schedule"]}

    def _chosen(self, name: str) -> dict[str, Any] | None:
        """The rate and the shape that a method is trained with; None before they are known.

        A short run favours a high rate, and scratch alone is always trained for the whole budget: it has its best rate and the one below
        it tried for that long, on the validation slice.
        """
        if name != SCRATCH:
            return self._tuned(name)
        runs = [self.results.get(job.name) for job in self._scratch_runs()]
        if not runs or any(run is None for run in runs):
            return None
        done = [(job, run) for job, run in zip(self._scratch_runs(), runs, strict=True) if run is not None]
        job, run = min(done, key=lambda pair: _loss_of(pair[1]))
        if run["validation_loss"] is None:
            raise RecipeError(
                f"training from scratch ends at no number at a peak rate of {job.learning_rate:g}",
                where=self.contest.plan.recipe.where("compare", "learning_rates"),
                hint="give lower ones",
            )
        return {"learning_rate": job.learning_rate, "schedule": job.shape}

    def _scratch_runs(self) -> Iterator[Job]:
        """Scratch by the first seed for the whole budget, at its best rate of the short runs and the one below it."""
        best = self._tuned(SCRATCH)
        if best is None:
            return
        lower = [rate for rate in self.contest.settings.learning_rates if rate < best["learning_rate"]]
        for rate in (best["learning_rate"], *([max(lower)] if lower else [])):
            chosen = {**best, "learning_rate": rate}
            seed = self.contest.seeds[0]
            yield self._run(SCRATCH, seed, chosen, 1.0, before=self._common(SCRATCH, seed, chosen, 1.0))

    def _trains(self, name: str, seed: int) -> Iterator[Job]:
        """A run to each horizon, until one reaches scratch's loss; each when the one before is done."""
        contest, chosen = self.contest, self._chosen(name)
        assert chosen is not None
        goal = self._final(SCRATCH, seed) if name != SCRATCH else None
        before = self._common(name, seed, chosen, contest.horizons_of(name)[0])
        for horizon in contest.horizons_of(name):
            job = self._run(name, seed, chosen, horizon, before=before)
            yield job
            found = self.results.get(job.name)
            if found is None or (goal is not None and first_at(found["curve"], goal["loss"]) is not None):
                return
            if self._shares(name, chosen):
                before = horizon

    def _shares(self, name: str, chosen: Mapping[str, Any]) -> bool:
        """Whether runs of a method to several horizons have a common stretch."""
        return not stretches(self.contest.entries[name].stages) and chosen["schedule"] == "stable"

    def _common(self, name: str, seed: int, chosen: Mapping[str, Any], horizon: float) -> float:
        """The horizon of the run in which a rate was tried, where one to `horizon` goes on from it; else 0."""
        tried = self.contest.settings.tuning
        goes_on = self._shares(name, chosen) and seed == self.contest.seeds[0] and tried < horizon
        return tried if goes_on else 0.0

    def _run(
        self,
        name: str,
        seed: int,
        chosen: Mapping[str, Any],
        horizon: float,
        *,
        before: float = 0.0,
    ) -> Job:
        contest = self.contest
        return Job(
            kind="train",
            method=name,
            seed=seed,
            learning_rate=chosen["learning_rate"],
            shape=chosen["schedule"],
            horizon=horizon,
            before=before,
            flops=contest.run_flops(name, contest.steps_of(horizon))
            - (STABLE_PART * contest.run_flops(name, contest.steps_of(before)) if before else 0.0),
        )

    def _runs(self, name: str, seed: int) -> list[dict[str, Any]]:
        return [self.results[job.name] for job in self._trains(name, seed) if job.name in self.results]

    def _final(self, name: str, seed: int) -> dict[str, Any] | None:
        """The end of a method's longest run."""
        if self._chosen(name) is None:
            return None
        runs = self._runs(name, seed)
        return runs[-1]["final"] if runs else None

    # Results.

    def chosen(self) -> dict[str, dict[str, Any]]:
        """Method -> the rate and the shape that it was trained with."""
        return {name: found for name in self.contest.entries if (found := self._chosen(name)) is not None}

    def records(self) -> dict[str, dict[str, Any]]:
        """Every method of compare.json."""
        contest = self.contest
        scratch = {}
        for seed in contest.seeds:
            final = self._final(SCRATCH, seed)
            assert final is not None
            scratch[seed] = final
        found = {}
        for name in contest.entries:
            runs = {}
            for seed in contest.seeds:
                done = self._runs(name, seed)
                runs[seed] = {
                    "curve": done[-1]["curve"],
                    "final": done[-1]["final"],
                    "horizons": [run["final"] for run in done],
                }
            chosen = self._chosen(name)
            assert chosen is not None
            found[name] = method_record(
                contest, name, tuned=chosen, tuning=self._trials(name), runs=runs, scratch=scratch
            )
        return found

    # What is told.

    def _done(self, job: Job, result: dict[str, Any]) -> None:
        self._running.discard(job.name)
        self.results[job.name] = result
        if job.kind == "probe":
            self._say_time()
        keep_result(self.staging, "jobs", self.results)
        self._forget(job)
        self._spent[job.method] = self._spent.get(job.method, 0.0) + job.flops
        if job.kind == "train":
            self._say_end(job, result)

    def _forget(self, job: Job) -> None:
        """Remove the states that nobody needs any more, once the result is staged."""
        names = [f"{job.name}.*"]
        if job.kind == "train":
            names += [f"{trunk_name(job, job.before)}.*"] if job.before else []
            goal = self._final(SCRATCH, job.seed) if job.method != SCRATCH else None
            ended = goal is not None and first_at(self.results[job.name]["curve"], goal["loss"]) is not None
            names += [f"{trunk_name(job, job.horizon)}.*"] if ended else []
        for name in names:
            for path in (self.staging.work / "states").glob(name):
                path.unlink()

    def _say_time(self) -> None:
        contest, speed = self.contest, self.results["probe"]["flops_a_second"]
        most = sum(map(contest.most_flops, contest.entries))
        hours = most / speed / self._workers / 3600
        self.progress.say(
            f"about {hours:.1f} h at most in all, at the {speed / 1e9:.0f} GFLOP/s of each of {self._workers} worker(s) here"
        )

    def _say_end(self, job: Job, result: Mapping[str, Any]) -> None:
        final, loss = result["final"], result["final"]["loss"]
        scratch = self._final(SCRATCH, job.seed)
        told = "no number" if loss is None else f"{loss:.4f}"
        there = first_at(result["curve"], scratch["loss"]) if scratch is not None else None
        if job.method != SCRATCH and scratch is not None:
            told += (
                f", not at scratch's {scratch['loss']:.4f}"
                if there is None
                else f", at scratch's {scratch['loss']:.4f} after {there['flops'] / scratch['flops']:.0%} of its operations"
            )
        how = f"seed {job.seed}, rate {job.learning_rate:g}, {job.shape}"
        self.progress.say(f"{job.method} ({how}): {final['step']} steps end at {told}")
        horizons = self.contest.horizons_of(job.method)
        if job.method in self._bars and (job.horizon == horizons[-1] or there is not None):
            self._bars[job.method].reach(self.contest.most_flops(job.method))

    def _told(self, job: Job, part: float, note: str) -> None:
        if not job.method:
            return
        if job.method not in self._bars:
            task = self.progress.task(job.method, self.contest.most_flops(job.method), unit="FLOPs")
            self._bars[job.method] = self._stack.enter_context(task)
        self._bars[job.method].reach(self._spent.get(job.method, 0.0) + part * job.flops)
        self._bars[job.method].note(note)


def _loss_of(result: Mapping[str, Any]) -> tuple[bool, float]:
    """For the least: a loss that is no number is the worst."""
    loss = result["validation_loss"]
    return (loss is None, loss if loss is not None else 0.0)

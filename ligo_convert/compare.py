"""The comparison: the target trained from several starting points under equal conditions, and what each has saved.

What comes in: a recipe, names of methods, a budget. What goes out: a directory with `compare.json`, a picture of loss against operations
and a report. Until all of it is there it lies in a staging directory beside, with a result for every job that is done; the same command
goes on from there. The order: the source (trained where the recipe says so), operators and scratch's rates, scratch itself, everybody's
rates, everybody's training, each until it reaches scratch's final loss.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ligo_convert.contenders import SCRATCH
from ligo_convert.contest import (
    Contest,
    comparison_record,
    edge_breaches,
    first_at,
    make_contest,
    method_record,
)
from ligo_convert.environment import choose_device, versions
from ligo_convert.errors import OutputBusy
from ligo_convert.fs import check_place
from ligo_convert.learning import keep_result, same_data, slices_of, staged_results, tokenizer_directory
from ligo_convert.opening import digest_recipe, enter, examine, train_source
from ligo_convert.output import json_bytes
from ligo_convert.plan import make_plan, open_planned
from ligo_convert.progress import Progress, Task
from ligo_convert.recipe import Recipe
from ligo_convert.record import finite, sha256_of
from ligo_convert.staging import Staging

if TYPE_CHECKING:
    from ligo_convert.workshop import Job, Workshop

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
    with contextlib.ExitStack() as stack:
        source = enter(stack, open_planned(recipe, weights=True))
        plan = make_plan(recipe, source, check_disk=False)
        contest = make_contest(plan, methods=methods, steps=steps, seeds=seeds)
        digests = examine(source, plan, progress) if source is not None else {}
        key = _key(contest, digest_recipe(plan, source, digests, progress))
        finished = _finished(out, key)
        if finished is not None:
            return Compared(out=out, record=finished, changed=False)
        chosen = choose_device(device)
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
        schedule.work(arguments, jobs=jobs or (1 if chosen != "cpu" else os.cpu_count() or 1))
        record = comparison_record(
            contest,
            schedule.records(),
            key=key,
            source={"label": "trained here" if recipe.source.pretrain else plan.label, **schedule.results["source"]},
            data={"digest": slices.digest, slices.unit: dict(slices.sizes)},
            versions=versions(),
            breaches=[*contest.breaches(), *edge_breaches(contest, schedule.tuned())],
        )
        _write(record, staging)
        staging.commit()
    return Compared(out=out, record=record, changed=True)


def _key(contest: Contest, recipe_digest: str) -> str:
    """What makes two comparisons the same."""
    return sha256_of(
        {
            "recipe": recipe_digest,
            "compare": contest.settings.model_dump(mode="json"),
            "methods": list(contest.entries),
            "steps": contest.steps,
            "seeds": contest.seeds,
            "versions": versions(),
        }
    )


def _finished(out: Path, key: str) -> dict[str, Any] | None:
    """The record of the same comparison where it is there already; OutputBusy where something else is."""
    try:
        record = json.loads((out / RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        check_place(out)
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("key") != key:
        raise OutputBusy("the output directory holds another comparison", where=out, hint="choose another")
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
        from ligo_convert.workshop import Job, operator_name

        self.contest, self.staging, self.progress = contest, staging, progress
        self._job, self._operator_name = Job, operator_name
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
        with self._stack, Crew["Job"](open_workshop, {**arguments, "threads": threads}, count=jobs) as crew:
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
        yield self._job(kind="probe")
        yield self._job(kind="source")
        yield from self._tunes(SCRATCH)
        yield from self._fits()
        if not self._tuned(SCRATCH):
            return
        for seed in contest.seeds:
            yield from self._trains(SCRATCH, seed)
        others = [name for name in contest.entries if name != SCRATCH]
        for name in others:
            if self._ready(name, contest.seeds[0]):
                yield from self._tunes(name)
        for seed in contest.seeds:
            if self._final(SCRATCH, seed) is None:
                continue
            for name in others:
                if self._tuned(name) and self._ready(name, seed):
                    yield from self._trains(name, seed)

    def _fits(self) -> Iterator[Job]:
        """One for every operator that is learned."""
        seen = set()
        for seed in self.contest.seeds:
            for name, entry in self.contest.entries.items():
                key = self._operator_name(entry.contender, seed)
                if entry.contender.fits and key not in seen:
                    seen.add(key)
                    yield self._job(kind="fit", method=name, seed=seed, flops=self.contest.fit_flops(name))

    def _ready(self, name: str, seed: int) -> bool:
        """Whether a method's operator is there."""
        method = self.contest.entries[name].contender
        if not method.fits:
            return True
        key = self._operator_name(method, seed)
        return any(
            job.name in self.results
            for job in self._fits()
            if self._operator_name(self.contest.entries[job.method].contender, job.seed) == key
        )

    def _tunes(self, name: str) -> Iterator[Job]:
        """One for every rate, by the first seed; scratch by every shape, the others by the one that was best there."""
        contest = self.contest
        flops = contest.run_flops(name, contest.tuning_steps)
        chosen = self._tuned(SCRATCH) if name != SCRATCH else None
        for rate, shape in contest.rates(name):
            yield self._job(
                kind="tune",
                method=name,
                seed=contest.seeds[0],
                learning_rate=rate,
                shape=shape or (chosen or {})["schedule"],
                flops=flops,
            )

    def _trials(self, name: str) -> list[dict[str, Any]]:
        """Every rate that was tried, with its loss."""
        return [
            {"learning_rate": job.learning_rate, "schedule": job.shape, **self.results[job.name]}
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
        # A loss that is no number is the worst.
        best = min(trials, key=lambda trial: (trial["validation_loss"] is None, trial["validation_loss"] or 0.0))
        return {"learning_rate": best["learning_rate"], "schedule": best["schedule"]}

    def _trains(self, name: str, seed: int) -> Iterator[Job]:
        """A run to each horizon, until one reaches scratch's loss; each when the one before is done."""
        contest, chosen = self.contest, self._tuned(name)
        assert chosen is not None
        goal = self._final(SCRATCH, seed) if name != SCRATCH else None
        before, spent = 0.0, 0.0
        for horizon in contest.horizons_of(name):
            flops = contest.run_flops(name, contest.steps_of(horizon))
            job = self._job(
                kind="train",
                method=name,
                seed=seed,
                learning_rate=chosen["learning_rate"],
                shape=chosen["schedule"],
                horizon=horizon,
                before=before,
                flops=max(0.0, flops - spent),
            )
            yield job
            found = self.results.get(job.name)
            if found is None or (goal is not None and first_at(found["curve"], goal["loss"]) is not None):
                return
            if len(contest.entries[name].stages) == 1 and chosen["schedule"] == "stable":
                before, spent = horizon, 0.8 * flops

    def _runs(self, name: str, seed: int) -> list[dict[str, Any]]:
        return [self.results[job.name] for job in self._trains(name, seed) if job.name in self.results]

    def _final(self, name: str, seed: int) -> dict[str, Any] | None:
        """The end of a method's longest run."""
        if self._tuned(name) is None:
            return None
        runs = self._runs(name, seed)
        return runs[-1]["final"] if runs else None

    # Results.

    def tuned(self) -> dict[str, dict[str, Any]]:
        return {name: chosen for name in self.contest.entries if (chosen := self._tuned(name)) is not None}

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
            chosen = self._tuned(name)
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
            self._say_time(result["flops_a_second"])
        keep_result(self.staging, "jobs", self.results)
        self._spent[job.method] = self._spent.get(job.method, 0.0) + job.flops
        if job.kind == "train":
            self._say_end(job, result)

    def _say_time(self, flops_a_second: float) -> None:
        contest = self.contest
        most = sum(map(contest.most_flops, contest.entries))
        workers = max(1, len(self._running) + 1)
        hours = most / flops_a_second / workers / 3600
        self.progress.say(f"about {hours:.1f} h at most, at the {flops_a_second / 1e9:.0f} GFLOP/s of one worker here")

    def _say_end(self, job: Job, result: Mapping[str, Any]) -> None:
        final, loss = result["final"], result["final"]["loss"]
        scratch = self._final(SCRATCH, job.seed)
        assert scratch is not None
        told = "no number" if loss is None else f"{loss:.4f}"
        there = first_at(result["curve"], scratch["loss"])
        if job.method != SCRATCH:
            told += (
                f", not at scratch's {scratch['loss']:.4f}"
                if there is None
                else f", at scratch's {scratch['loss']:.4f} after {there['flops'] / scratch['flops']:.0%} of its operations"
            )
        self.progress.say(f"{job.method} (seed {job.seed}): {final['step']} steps end at {told}")
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

"""The comparison: the target trained from several starting points under equal conditions, and what each has saved.

What comes in: a recipe, names of methods, a budget. What goes out: a directory with `compare.json`, a picture of loss against operations
and a report. Until all of it is there it lies in a staging directory beside, with a result for every job that is done; the same command
goes on from there. The order: the source (trained where the recipe says so), operators and scratch's rates, scratch itself, everybody's
rates, everybody's training, each until it reaches scratch's final loss.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ligo_convert.comparison.experiment import Experiment, make_experiment
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.results import FORMAT, comparison_record, first_at, grid_edge_warnings
from ligo_convert.comparison.scheduler import Scheduler, TrainingJob, trunk_name
from ligo_convert.conversion.identity import digest_recipe
from ligo_convert.conversion.memory import physical_memory
from ligo_convert.conversion.plan import Plan, check_apart, make_plan, open_planned
from ligo_convert.conversion.pretrain_source import train_source
from ligo_convert.conversion.run_record import finite
from ligo_convert.conversion.source_checks import enter_or_none, scan_source
from ligo_convert.conversion.splits import load_splits, tokenizer_directory
from ligo_convert.conversion.step_results import keep_result, same_data, staged_results
from ligo_convert.environment import choose_device, cores, versions
from ligo_convert.errors import LigoError, OutputBusy
from ligo_convert.io.files import check_place, check_room
from ligo_convert.io.staging import Staging
from ligo_convert.io.strict_json import sha256_of, strict_json
from ligo_convert.outputs.side_files import json_bytes
from ligo_convert.progress import Progress, Task
from ligo_convert.recipes.recipe import Recipe

if TYPE_CHECKING:
    from ligo_convert.comparison.worker import JobRunner

RECORD = "compare.json"

PICTURE = "compare.png"

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
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
) -> ComparisonResult:
    """Carry out a comparison; run again after a stop, it goes on where it stopped.

    Args:
        methods, steps, seeds: instead of the recipe's. jobs: worker processes; 0 for one a core, and one alone on a GPU.

    Raises:
        LigoError: of the class that says what went wrong; the output directory is then absent, or as it was.
    """
    progress = progress or Progress()
    before = _record_in(out)
    with contextlib.ExitStack() as stack:
        source = enter_or_none(stack, open_planned(recipe, weights=True))
        if source is not None:
            check_apart(out, source, where="--out")
        plan = make_plan(recipe, source, check_disk=False)
        contest = make_experiment(plan, methods=methods, steps=steps, seeds=seeds)
        digests = scan_source(source, plan, progress) if source is not None else {}
        chosen = choose_device(device)
        key = _key(contest, digest_recipe(plan, source, digests, progress), device=chosen)
        if before is not None and before["key"] == key:
            return ComparisonResult(out=out, record=before, changed=False)
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
        slices = load_splits(plan, tokenizer, progress=progress, examples=contest.examples)
        same_data(staging, slices.digest)
        arguments = {
            "contest": contest,
            "slices": slices,
            "source": source.root,
            "work": staging.work,
            "device": chosen,
        }
        work = _Work(contest, staging, progress, jobs=jobs or workers(plan, device=chosen))
        work.carry_out(arguments)
        agenda = work.agenda
        record = comparison_record(
            contest,
            agenda.records(),
            key=key,
            source={"label": "trained here" if recipe.source.pretrain else plan.label, **agenda.results["source"]},
            data={"digest": slices.digest, slices.unit: dict(slices.sizes)},
            versions=versions(),
            breaches=[*contest.breaches(), *grid_edge_warnings(contest, agenda.chosen())],
        )
        _write(record, staging)
        staging.commit()
    return ComparisonResult(out=out, record=record, changed=True)


def workers(plan: Plan, *, device: str) -> int:
    """How many processes train at a time where nobody says: one a core, as far as memory goes; one alone on a GPU."""
    if device != "cpu":
        return 1
    return max(1, min(cores(), physical_memory() // max(1, plan.memory)))


def _check_room(contest: Experiment, out: Path) -> None:
    """Require disk for states: of a run its weights and two moments, and those of the stretches that longer runs go on from."""
    one, rates = 12 * contest.plan.parameters["target"], len(contest.settings.learning_rates)
    check_room(out, one * (len(contest.entries) * rates + (os.cpu_count() or 1)) + 64_000_000)


def _key(contest: Experiment, recipe_digest: str, *, device: str) -> str:
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


def _cost(contest: Experiment) -> str:
    """What a comparison costs, before anything is trained."""
    most = sum(map(contest.most_flops, contest.entries)) + (contest.source_flops or 0.0)
    return (
        f"{len(contest.entries)} methods, {len(contest.seeds)} seed(s); scratch: {contest.steps} steps,"
        f" {contest.scratch_flops:.3g} FLOPs, {contest.per_parameter:.1f} tokens a parameter; all of it at most {most:.3g} FLOPs,"
        f" {most / contest.scratch_flops:.1f} times scratch"
    )


def _write(record: Mapping[str, Any], staging: Staging) -> None:
    from ligo_convert.comparison.plot import comparison_png
    from ligo_convert.comparison.report import comparison_html

    plain = finite(record)
    staging.write_bytes(RECORD, json_bytes(plain))
    staging.write_bytes(PICTURE, comparison_png(plain))
    staging.write_bytes(REPORT, comparison_html(plain).encode())


def open_workshop(**arguments: Any) -> JobRunner:
    """A worker's tool. Heavy modules are imported where they are needed, in the worker."""
    from ligo_convert.comparison.worker import JobRunner

    return JobRunner(**arguments)


class _Work:
    """Everything that is to be done, done by a crew; every result is staged as it comes, and told."""

    def __init__(self, contest: Experiment, staging: Staging, progress: Progress, *, jobs: int) -> None:
        self.contest, self.staging, self.progress, self.jobs = contest, staging, progress, jobs
        self.agenda = Scheduler(contest, staged_results(staging).get("jobs", {}))
        self._bars: dict[str, Task] = {}
        self._spent: dict[str, float] = {}
        self._stack = contextlib.ExitStack()

    def carry_out(self, arguments: Mapping[str, Any]) -> None:
        """Do everything that is not done yet. `arguments`: of the workshop."""
        from ligo_convert.workers import WorkerPool

        threads = max(1, cores() // self.jobs) if self.jobs > 1 else 0
        if "probe" in self.agenda.results:
            self._say_time()
        with (
            self._stack,
            WorkerPool[TrainingJob](open_workshop, {**arguments, "threads": threads}, count=self.jobs) as crew,
        ):
            crew.run(self.agenda.following, done=self._done, told=self._told)

    def _done(self, job: TrainingJob, result: dict[str, Any]) -> None:
        self.agenda.done(job, result)
        if job.kind == "probe":
            self._say_time()
        keep_result(self.staging, "jobs", self.agenda.results)
        self._forget(job)
        self._spent[job.method] = self._spent.get(job.method, 0.0) + job.flops
        if job.kind == "train":
            self._say_end(job, result)

    def _forget(self, job: TrainingJob) -> None:
        """Remove the states that nobody needs any more, once the result is staged."""
        names = [f"{job.name}.*"]
        if job.kind == "train":
            names += [f"{trunk_name(job, job.before)}.*"] if job.before else []
            names += [f"{trunk_name(job, job.horizon)}.*"] if self.agenda.reached(job) else []
        for name in names:
            for path in (self.staging.work / "states").glob(name):
                path.unlink()

    def _say_time(self) -> None:
        contest, speed = self.contest, self.agenda.results["probe"]["flops_a_second"]
        most = sum(map(contest.most_flops, contest.entries))
        hours = most * (1 + contest.measuring) / speed / self.jobs / 3600
        self.progress.say(
            f"about {hours:.1f} h at most in all, at the {speed / 1e9:.0f} GFLOP/s of each of {self.jobs} worker(s) here"
        )

    def _say_end(self, job: TrainingJob, result: Mapping[str, Any]) -> None:
        final, loss = result["final"], result["final"]["loss"]
        scratch = self.agenda.final(SCRATCH, job.seed)
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

    def _told(self, job: TrainingJob, part: float, note: str) -> None:
        if not job.method:
            return
        if job.method not in self._bars:
            task = self.progress.task(job.method, self.contest.most_flops(job.method), unit="FLOPs")
            self._bars[job.method] = self._stack.enter_context(task)
        self._bars[job.method].reach(self._spent.get(job.method, 0.0) + part * job.flops)
        self._bars[job.method].note(note)

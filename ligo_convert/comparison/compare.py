"""Run a comparison: train the target with several methods under equal conditions, and report what each method saves.

Input: a recipe, method names, a budget.
Output: a directory with `compare.json`, a plot of loss against FLOPs and a report.
A staging directory holds the result of every finished job until the output is complete; the same command resumes from it. Order of the
work: the source (if the recipe trains it), the operators and scratch's tuning runs, scratch itself, the tuning runs of the other methods,
their training until each reaches scratch's final loss.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ligo_convert.checkpoints.writer import rehash
from ligo_convert.comparison.experiment import Experiment, make_experiment
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.results import FORMAT, comparison_record, first_point_at, grid_edge_warnings
from ligo_convert.comparison.scheduler import Scheduler, TrainingJob, shared_state_name
from ligo_convert.conversion.identity import compute_digests
from ligo_convert.conversion.library_check import check_plan
from ligo_convert.conversion.memory import physical_memory
from ligo_convert.conversion.plan import Plan, check_apart, make_plan, open_planned
from ligo_convert.conversion.pretrain_source import train_source
from ligo_convert.conversion.run_record import finite
from ligo_convert.conversion.source_checks import scan_source
from ligo_convert.conversion.splits import load_splits, tokenizer_directory
from ligo_convert.conversion.step_results import keep_result, same_data, staged_results
from ligo_convert.environment import choose_device, cores, require_threads, versions
from ligo_convert.errors import LigoError, OutputBusy, VerificationError
from ligo_convert.families.registry import family_digests, family_files, load_family_file
from ligo_convert.io.files import check_place, check_room, remove_any
from ligo_convert.io.staging import WORK, Staging
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
    """The result of a comparison.

    Attributes:
        out: the output directory.
        record: the contents of compare.json.
        changed: False if the comparison was already finished.
    """

    out: Path
    record: Mapping[str, Any]
    changed: bool

    def json(self) -> dict[str, Any]:
        """Return the object that `compare --json` prints."""
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
    """Run a comparison, or resume one that was stopped.

    Args:
        methods: method names; overrides the recipe.
        steps: the budget; overrides the recipe.
        seeds: overrides the recipe.
        jobs: worker processes; 0 for one per core, or one on a GPU.

    Raises:
        LigoError: a subclass that describes the failure. The output directory is then absent or unchanged.
    """
    progress = progress or Progress()
    before = _finished_record(out)
    with contextlib.ExitStack() as stack:
        source = open_planned(recipe, weights=True)
        if source is not None:
            stack.enter_context(source)
            check_apart(out, source, where="--out")
        plan = make_plan(recipe, source, check_disk=False)
        experiment = make_experiment(plan, methods=methods, steps=steps, seeds=seeds)
        if before is None:
            check_plan(plan, source)
        digests: dict[str, str] = {}
        if source is not None:
            allow = recipe.source.allow_nonfinite
            digests = scan_source(source, plan.inventory, progress, allow_nonfinite=allow)
        chosen = choose_device(device)
        key = _comparison_key(experiment, compute_digests(plan, source, digests, progress).whole, device=chosen)
        require_threads(experiment.settings.threads)
        if before is not None and before["key"] == key:
            _require_unchanged(before, out)
            return ComparisonResult(out=out, record=before, changed=False)
        if before is not None:
            raise OutputBusy("the output directory contains a different comparison", where=out, hint="choose another")
        _check_room(experiment, out)
        staging = stack.enter_context(Staging.open(out, key=key, progress=progress))
        if staging.resumed:
            progress.say("resuming from the staged files of an earlier run")
        for warning in experiment.fairness_warnings():
            progress.warn(f"fairness: {warning['text']}")
        for name, reason in experiment.skipped.items():
            progress.say(f"skipping {name}: {reason}")
        progress.say(_cost_message(experiment))
        if source is None:
            source, digests, plan = train_source(
                stack, plan, staging, chosen, progress, train_examples=experiment.examples
            )
            experiment = replace(experiment, plan=plan)
        tokenizer = tokenizer_directory(plan, source) if plan.family.reads == "text" else None
        slices = load_splits(plan, tokenizer, progress=progress, train_examples=experiment.examples)
        same_data(staging, slices.digest)
        arguments = {
            "experiment": experiment,
            "slices": slices,
            "source": source.root,
            "work": staging.work,
            "device": chosen,
            "key": sha256_of({"comparison": key, "source": digests}),
            "family_files": family_files(),
        }
        work = _JobLoop(experiment, staging, progress, jobs=jobs or workers(plan, device=chosen))
        work.carry_out(arguments)
        scheduler = work.scheduler
        record = comparison_record(
            experiment,
            scheduler.records(),
            key=key,
            source={"label": "trained here" if recipe.source.pretrain else plan.label, **scheduler.results["source"]},
            data={"digest": slices.digest, slices.unit: dict(slices.sizes)},
            versions=versions(),
            fairness_warnings=[*experiment.fairness_warnings(), *grid_edge_warnings(experiment, scheduler.chosen())],
        )
        record["sha256"] = _digest(record)
        _write(record, staging)
        staging.commit()
    return ComparisonResult(out=out, record=record, changed=True)


def workers(plan: Plan, *, device: str) -> int:
    """Return the default number of worker processes: one per core if memory suffices, one on a GPU."""
    if device != "cpu":
        return 1
    return max(1, min(cores(), physical_memory() // max(1, plan.memory)))


def _check_room(experiment: Experiment, out: Path) -> None:
    """Require disk space for training states: weights and two moments per run, and the states that longer runs resume from."""
    one, rates = 12 * experiment.plan.parameters["target"], len(experiment.settings.learning_rates)
    check_room(out, one * (len(experiment.entries) * rates + (os.cpu_count() or 1)) + 64_000_000)


def _comparison_key(experiment: Experiment, recipe_digest: str, *, device: str) -> str:
    """Return a digest of everything that determines the result; equal keys mean the same comparison."""
    return sha256_of(
        {
            "recipe": recipe_digest,
            "compare": experiment.settings.model_dump(mode="json"),
            "methods": list(experiment.entries),
            "steps": experiment.steps,
            "seeds": experiment.seeds,
            "device": device,
            "versions": versions(),
            # Families of the package and of plugins are part of the versions.
            **({"families": family_digests()} if family_digests() else {}),
        }
    )


def _finished_record(out: Path) -> dict[str, Any] | None:
    """Return the record of a finished comparison in `out`, or None. Raises OutputBusy if `out` contains anything else."""
    if not os.path.lexists(out / RECORD):
        check_place(out)
        return None
    try:
        record = strict_json((out / RECORD).read_bytes(), label=RECORD)
    except (OSError, LigoError):
        record = {}
    if record.get("format") != FORMAT or "key" not in record:
        raise OutputBusy("the output directory does not contain a comparison", where=out, hint="choose another")
    return record


def _digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of a record as compare.json holds it, without its own digest."""
    return sha256_of(json.loads(json.dumps(finite({key: value for key, value in record.items() if key != "sha256"}))))


def _require_unchanged(record: Mapping[str, Any], out: Path) -> None:
    """Raise VerificationError unless the record of a finished comparison is the one that was written."""
    found = _digest(record)
    if record.get("sha256") != found:
        raise VerificationError(
            "the record of the comparison changed since it was written",
            where=out / RECORD,
            expected=record.get("sha256"),
            found=found,
            hint="move the directory away to run the comparison again",
        )


def _cost_message(experiment: Experiment) -> str:
    """Describe the number of runs and the maximal cost, before anything is trained."""
    most = sum(map(experiment.most_flops, experiment.entries)) + (experiment.source_flops or 0.0)
    scratch = experiment.scratch_flops
    return (
        f"{len(experiment.entries)} methods, {len(experiment.seeds)} seed(s); scratch: {experiment.steps} steps, {scratch:.3g} FLOPs,"
        f" {experiment.tokens_per_parameter:.1f} tokens per parameter; total: at most {most:.3g} FLOPs, {most / scratch:.1f} times scratch"
    )


def _write(record: Mapping[str, Any], staging: Staging) -> None:
    from ligo_convert.comparison.plot import comparison_png
    from ligo_convert.comparison.report import comparison_html

    plain = finite(record)
    staging.write_bytes(RECORD, json_bytes(plain))
    staging.write_bytes(PICTURE, comparison_png(plain))
    staging.write_bytes(REPORT, comparison_html(plain).encode())


def open_job_runner(*, family_files: Sequence[Path] = (), **arguments: Any) -> JobRunner:
    """Create the job runner of a worker process, which knows the same families. Heavy modules are imported here, in the worker."""
    from ligo_convert.comparison.worker import JobRunner

    for file in family_files:
        load_family_file(file)
    return JobRunner(**arguments)


def _finished_jobs(staging: Staging) -> dict[str, dict[str, Any]]:
    """Return the staged results, by job. A fit whose operator is gone or damaged is done again."""
    results: dict[str, dict[str, Any]] = staged_results(staging).get("jobs", {})
    kept = {}
    for name, result in results.items():
        stored = result.get("operator")
        if stored is not None:
            file = staging.work / stored["file"]
            try:
                whole = rehash(file) == stored["sha256"]
            except VerificationError:
                whole = False
            if not whole:
                staging.warn(f"{WORK}/{stored['file']}", "missing or damaged", "the operator is fitted again")
                remove_any(file)
                continue
        kept[name] = result
    return kept


class _JobLoop:
    """Runs all jobs on a worker pool; stages and reports every result as it arrives."""

    def __init__(self, experiment: Experiment, staging: Staging, progress: Progress, *, jobs: int) -> None:
        self.experiment, self.staging, self.progress, self.jobs = experiment, staging, progress, jobs
        self.scheduler = Scheduler(experiment, _finished_jobs(staging))
        self._bars: dict[str, Task] = {}
        self._spent: dict[str, float] = {}
        self._stack = contextlib.ExitStack()

    def carry_out(self, arguments: Mapping[str, Any]) -> None:
        """Run every job without a result. `arguments` are passed to `open_job_runner`."""
        from ligo_convert.workers import WorkerPool

        if "probe" in self.scheduler.results:
            self._announce_time()
        with (
            self._stack,
            WorkerPool[TrainingJob](open_job_runner, arguments, count=self.jobs) as pool,
        ):
            pool.run(self.scheduler.next_job, on_result=self._done, on_progress=self._report_progress)

    def _done(self, job: TrainingJob, result: dict[str, Any]) -> None:
        for text in result.pop("warnings", ()):
            self.progress.warn(text)
        self.scheduler.done(job, result)
        if job.kind == "probe":
            self._announce_time()
        keep_result(self.staging, "jobs", self.scheduler.results)
        self._delete_states(job)
        self._spent[job.method] = self._spent.get(job.method, 0.0) + job.flops
        if job.kind == "train":
            self._announce_result(job, result)

    def _delete_states(self, job: TrainingJob) -> None:
        """Delete the training states that no later job needs, once the result is staged."""
        names = [f"{job.name}.*"]
        if job.kind == "train":
            names += [f"{shared_state_name(job, job.resume_from)}.*"] if job.resume_from else []
            names += [f"{shared_state_name(job, job.budget_fraction)}.*"] if self.scheduler.reached(job) else []
        for name in names:
            for path in (self.staging.work / "states").glob(name):
                remove_any(path)

    def _announce_time(self) -> None:
        experiment, speed = self.experiment, self.scheduler.results["probe"]["flops_a_second"]
        most = sum(map(experiment.most_flops, experiment.entries))
        hours = most * (1 + experiment.measuring) / speed / self.jobs / 3600
        self.progress.say(
            f"at most about {hours:.1f} h in total: {self.jobs} worker(s), {speed / 1e9:.0f} GFLOP/s each"
        )

    def _announce_result(self, job: TrainingJob, result: Mapping[str, Any]) -> None:
        final, loss = result["final"], result["final"]["loss"]
        scratch = self.scheduler.final(SCRATCH, job.seed)
        outcome = "not finite" if loss is None else f"{loss:.4f}"
        there = first_point_at(result["curve"], scratch["loss"]) if scratch is not None else None
        if job.method != SCRATCH and scratch is not None:
            outcome += (
                f", above scratch's {scratch['loss']:.4f}"
                if there is None
                else f"; reached scratch's {scratch['loss']:.4f} at {there['flops'] / scratch['flops']:.0%} of its FLOPs"
            )
        how = f"seed {job.seed}, rate {job.learning_rate:g}, {job.shape}"
        self.progress.say(f"{job.method} ({how}): {final['step']} steps, final loss {outcome}")
        budget_fractions = self.experiment.budget_fractions_of(job.method)
        if job.method in self._bars and (job.budget_fraction == budget_fractions[-1] or there is not None):
            self._bars[job.method].reach(self.experiment.most_flops(job.method))

    def _report_progress(self, job: TrainingJob, part: float, note: str) -> None:
        if not job.method:
            return
        if job.method not in self._bars:
            task = self.progress.task(job.method, self.experiment.most_flops(job.method), unit="FLOPs")
            self._bars[job.method] = self._stack.enter_context(task)
        self._bars[job.method].reach(self._spent.get(job.method, 0.0) + part * job.flops)
        self._bars[job.method].note(note)

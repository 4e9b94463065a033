"""Carry out a study: train the runs of an experiment in worker processes, and write what they found.

Input: a recipe and a `Study`: how its experiment is made, which scheduler orders its jobs, what its record says.
Output: a directory with the record and the files made from it.
A staging directory holds the result of every finished job until the output is complete; the same command resumes from it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.comparison.experiment import Experiment
from ligo_convert.comparison.finished_jobs import JOBS, Ground, finished_jobs, ground_of, read_finished
from ligo_convert.comparison.naming import entry_text
from ligo_convert.comparison.scheduler import Scheduler, TrainingJob
from ligo_convert.conversion.identity import compute_digests
from ligo_convert.conversion.library_check import check_plan
from ligo_convert.conversion.memory import physical_memory
from ligo_convert.conversion.plan import Plan, check_apart, make_plan, open_planned
from ligo_convert.conversion.pretrain_source import stage_source_config, stage_source_weights
from ligo_convert.conversion.run_record import finite
from ligo_convert.conversion.source_checks import scan_source
from ligo_convert.conversion.splits import load_splits, tokenizer_directory
from ligo_convert.conversion.step_results import keep_result, same_data, staged_results
from ligo_convert.data.token_store import TokenFolder
from ligo_convert.environment import choose_device, cores, keep_freed_memory, require_threads, versions
from ligo_convert.errors import LigoError, OutputBusy, VerificationError
from ligo_convert.families.registry import family_digests, family_files, load_family_file
from ligo_convert.io.files import check_place, check_room, partial_path, remove_any, reporting
from ligo_convert.io.staging import WORK, Staging
from ligo_convert.io.strict_json import json_bytes, sha256_of, strict_json
from ligo_convert.outputs.html import pairs_html
from ligo_convert.outputs.layout import TRAINED_SOURCE
from ligo_convert.progress import Progress, Task
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.training.state import STATES, FolderState, state_of
from ligo_convert.units import duration

if TYPE_CHECKING:
    from ligo_convert.comparison.worker import JobRunner

# Folder of the tokens of a text, in the work directory of the staging directory.
_TOKENS = "tokens"


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """The result of a study.

    Attributes:
        out: the output directory.
        record: the contents of its record.
        changed: False if the study was already finished.
    """

    out: Path
    record: Mapping[str, Any]
    changed: bool

    def json(self) -> dict[str, Any]:
        """Return the object that the command prints with `--json`."""
        return {"out": str(self.out), "changed": self.changed, **finite(self.record)}

    def _repr_html_(self) -> str:
        """Show the verdict of a comparison, or the advice of a choice, in a notebook."""
        text = self.record["verdict"]["text"] if "verdict" in self.record else self.record["text"]
        return pairs_html("Result", {"output": self.out}, notes=text)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What distinguishes one command that trains many runs from another.

    Attributes:
        noun: what it is called in messages, such as `comparison`.
        record: file name of the record.
        format: format of the record.
        make: function from a conversion plan to the experiment.
        scheduler: class that orders the jobs.
        settings: function from the experiment to the recipe's settings that determine the result, as plain data.
        announce: tells the user, before training, what will be tried.
        conclude: function from the scheduler with every job done, and `key`, `label`, `data` and `versions`, to the record.
        write: stages the files made from the record, besides the record itself.
        keeps_jobs: whether the output has the results of all jobs, so that a larger study goes on from them.
    """

    noun: str
    record: str
    format: str
    make: Callable[[Plan], Experiment]
    scheduler: type[Scheduler]
    settings: Callable[[Experiment], Mapping[str, Any]]
    announce: Callable[[Experiment, Progress], None]
    conclude: Callable[..., dict[str, Any]]
    write: Callable[[Mapping[str, Any], Staging], None]
    keeps_jobs: bool = False


def carry_out(
    study: Study,
    recipe: Recipe,
    out: Path,
    *,
    jobs: int = 0,
    device: str = "auto",
    reuse: Sequence[Path] = (),
    progress: Progress | None = None,
) -> StudyResult:
    """Run a study, or resume one that was stopped.

    Args:
        jobs: worker processes; 0 for one per core, or one on a GPU.
        reuse: output directories of finished studies whose jobs are not done again.

    Raises:
        LigoError: a subclass that describes the failure. The output directory is then absent or unchanged.
    """
    progress = progress or Progress()
    before = _finished_record(study, out)
    with contextlib.ExitStack() as stack:
        source = open_planned(recipe, weights=True)
        if source is not None:
            stack.enter_context(source)
            check_apart(out, source, where="--out")
        plan = make_plan(recipe, source, check_disk=False)
        experiment = study.make(plan)
        if before is None:
            _require_optimizers(experiment)
            check_plan(plan, source)
        digests: dict[str, str] = {}
        if source is not None:
            allow = recipe.source.allow_nonfinite
            digests = scan_source(source, plan.inventory, progress, allow_nonfinite=allow)
        chosen = choose_device(device)
        recipe_digest = compute_digests(plan, source, digests, progress).whole
        key = _key(study, experiment, recipe_digest, device=chosen)
        require_threads(experiment.settings.threads)
        if before is not None and before["key"] == key:
            _require_unchanged(before, out / study.record, noun=study.noun)
            return StudyResult(out=out, record=before, changed=False)
        if before is not None:
            raise OutputBusy(
                f"the output directory contains a different {study.noun}", where=out, hint="choose another"
            )
        _check_room(experiment, out)
        staging = stack.enter_context(Staging.open(out, key=key, progress=progress))
        if staging.resumed:
            progress.say("resuming from the staged files of an earlier run")
        for name, reason in experiment.skipped.items():
            progress.say(f"skipping {name}: {reason}")
        study.announce(experiment, progress)
        if source is None:
            _stage_source_folder(plan, staging, progress)
        reader = plan.family.reads == "text"
        tokenizer = (_tokenizer(plan, source, staging)) if reader else None
        # The staging directory belongs to one key. Workers map the tokens that this process has written.
        folder = TokenFolder(path=staging.work / _TOKENS, owner=study.noun, warn=progress.warn)
        slices = load_splits(
            plan, tokenizer, progress=progress, train_examples=experiment.most_examples, token_folder=folder
        )
        same_data(staging, slices.digest)
        ground = ground_of(experiment, recipe=recipe_digest, split=slices.digest, device=chosen)
        reused = _reused(staging, reuse, ground, progress, noun=study.noun)
        states = sha256_of({"comparison": key, "source": digests})
        arguments = {
            "experiment": experiment,
            "slices": slices,
            "source": source.root if source is not None else None,
            "work": staging.work,
            "device": chosen,
            "key": states,
            "family_files": family_files(),
        }
        scheduler = study.scheduler(experiment, {**reused, **staged_results(staging).get("jobs", {})})
        count = jobs or workers(plan, device=chosen)
        work = JobLoop(scheduler, staging, progress, key=states, jobs=count, reused=reused)
        work.carry_out(arguments)
        if source is None:
            _stage_weakest_source(scheduler, staging, key=states)
        record = study.conclude(
            scheduler,
            key=key,
            label="trained here" if recipe.source.pretrain else plan.label,
            data={"digest": slices.digest, slices.unit: dict(slices.sizes)},
            versions=versions(),
        )
        record["sha256"] = _digest(record)
        if study.keeps_jobs:
            staging.write_bytes(JOBS, json_bytes(finished_jobs(scheduler.planned_results(), ground)))
        staging.write_bytes(study.record, json_bytes(finite(record)))
        study.write(finite(record), staging)
        staging.commit()
    return StudyResult(out=out, record=record, changed=True)


def _reused(
    staging: Staging, folders: Sequence[Path], ground: Ground, progress: Progress, *, noun: str
) -> dict[str, dict[str, Any]]:
    """Return the results that are taken from finished studies. A resumed study keeps those with which it began, and adds others."""
    known = staged_results(staging).get("reused")
    if known is None:
        known = read_finished(folders, ground, noun=noun)
        keep_result(staging, "reused", known)
    else:
        known = _with_more(known, folders, staging, ground, progress, noun=noun)
    if known:
        progress.say(f"{len(known)} finished jobs are reused")
    return dict(known)


def _with_more(
    known: dict[str, dict[str, Any]],
    folders: Sequence[Path],
    staging: Staging,
    ground: Ground,
    progress: Progress,
    *,
    noun: str,
) -> dict[str, dict[str, Any]]:
    """Return the results that a resumed study reuses, with those of the folders that it does not have yet.

    A folder that cannot be reused is no reason to give up what is staged: it may be one with which the study began, removed since.
    """
    done = staged_results(staging).get("jobs", {})
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        try:
            found.update(read_finished([folder], ground, noun=noun))
        except LigoError as error:
            progress.warn(f"{error.where}: {error.what}; not reused, and the {noun} goes on with the jobs that it has")
    more = {name: result for name, result in found.items() if name not in known and name not in done}
    if more:
        known = {**known, **more}
        keep_result(staging, "reused", known)
    return known


def workers(plan: Plan, *, device: str) -> int:
    """Return the default number of worker processes: one per core if memory suffices, one on a GPU."""
    if device != "cpu":
        return 1
    return max(1, min(cores(), physical_memory() // max(1, plan.memory)))


def _require_optimizers(experiment: Experiment) -> None:
    """Raise MachineError if the installed torch lacks an optimizer that will be tried."""
    from ligo_convert.training.optimizers import require_optimizer

    where = experiment.plan.recipe.where("compare", "optimizers")
    for name in experiment.settings.optimizers:
        require_optimizer(name, where=where)


def _check_room(experiment: Experiment, out: Path) -> None:
    """Require disk space for training states and tokens. What an unfinished study has written already counts."""
    work = partial_path(out) / WORK
    held = 0
    for folder in (work / STATES, work / _TOKENS):
        with reporting(folder, "read"), contextlib.suppress(FileNotFoundError):
            held += sum(file.stat(follow_symlinks=False).st_size for file in os.scandir(folder))
    check_room(out, max(0, experiment.disk_bytes - held) + 64_000_000)


def _tokenizer(plan: Plan, source: CheckpointReader | None, staging: Staging) -> Path:
    """Return the folder of the tokenizer: the recipe's, the source's, or that of the source which the comparison trains."""
    if source is None and plan.required_fit.settings.data.tokenizer is None:
        return staging.path / TRAINED_SOURCE
    return tokenizer_directory(plan, source)


def _stage_source_folder(plan: Plan, staging: Staging, progress: Progress) -> None:
    """Stage the config of the source that the comparison trains, and its tokenizer. What is missing is made again, and is the same.

    Where no entry uses the source, they are deleted before the commit. So their digests are a value: as files of the step, their absence
    would undo it and all jobs after it.
    """
    known = staged_results(staging).get("source_files")
    if known is not None and all(staging.digest(name) == digest for name, digest in known.items()):
        return
    assert plan.pretrain is not None, "without a source the recipe has source.pretrain"
    for name in _source_files(staging):
        staging.remove(name)
    stage_source_config(plan, plan.pretrain, staging, progress)
    keep_result(staging, "source_files", {name: staging.digest(name) for name in _source_files(staging)})


def _source_files(staging: Staging) -> list[str]:
    return [name for name in staging.files() if name.startswith(f"{TRAINED_SOURCE}/")]


def _stage_weakest_source(scheduler: Scheduler, staging: Staging, *, key: str) -> None:
    """Stage the weights of the weakest source with the first seed, as a checkpoint for further comparisons."""
    name = scheduler.weakest_source()
    if name is None:
        remove_any(staging.path / TRAINED_SOURCE)
        return
    from ligo_convert.training.run_trainer import RunState

    stored = training_state(staging, name, key=key, progress=Progress()).load()
    assert stored is not None, "the state of a source is kept"
    stage_source_weights(scheduler.experiment.family, RunState.read(*stored, device="cpu").tensors, staging)


def training_state(staging: Staging, name: str, *, key: str, progress: Progress) -> FolderState:
    """Return the storage of a job's state, as the workers write it."""
    return state_of(staging.work, name, key=key, warn=progress.warn)


def _key(study: Study, experiment: Experiment, recipe_digest: str, *, device: str) -> str:
    """Return a digest of everything that determines the result; equal keys mean the same study."""
    return sha256_of(
        {
            "recipe": recipe_digest,
            **study.settings(experiment),
            "compare": experiment.settings.model_dump(mode="json"),
            "entries": list(experiment.entries),
            "steps": experiment.steps,
            "seeds": experiment.seeds,
            "device": device,
            "versions": versions(),
            # Families of the package and of plugins are part of the versions.
            **({"families": family_digests()} if family_digests() else {}),
        }
    )


def _finished_record(study: Study, out: Path) -> dict[str, Any] | None:
    """Return the record of a finished study in `out`, or None. Raises OutputBusy if `out` contains anything else."""
    if not os.path.lexists(out / study.record):
        check_place(out)
        return None
    try:
        record = strict_json((out / study.record).read_bytes(), label=study.record)
    except (OSError, LigoError):
        record = {}
    if record.get("format") != study.format or "key" not in record:
        raise OutputBusy(f"the output directory does not contain a {study.noun}", where=out, hint="choose another")
    return record


def _digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of a record as its file holds it, without its own digest."""
    return sha256_of(json.loads(json.dumps(finite({key: value for key, value in record.items() if key != "sha256"}))))


def _require_unchanged(record: Mapping[str, Any], file: Path, *, noun: str) -> None:
    """Raise VerificationError unless the record of a finished study is the one that was written."""
    found = _digest(record)
    if record.get("sha256") != found:
        raise VerificationError(
            f"the record of the {noun} changed since it was written",
            where=file,
            expected=record.get("sha256"),
            found=found,
            hint=f"move the directory away to run the {noun} again",
        )


def open_job_runner(*, family_files: Sequence[Path] = (), **arguments: Any) -> JobRunner:
    """Create the job runner of a worker process, which knows the same families. Heavy modules are imported here, in the worker."""
    from ligo_convert.comparison.worker import JobRunner

    keep_freed_memory()
    for file in family_files:
        load_family_file(file)
    return JobRunner(**arguments)


class JobLoop:
    """Runs all jobs on a worker pool; stages and reports every result as it arrives."""

    def __init__(
        self,
        scheduler: Scheduler,
        staging: Staging,
        progress: Progress,
        *,
        key: str,
        jobs: int,
        reused: Collection[str] = (),
    ) -> None:
        self.scheduler, self.staging, self.progress, self.key, self.jobs = scheduler, staging, progress, key, jobs
        self.experiment = scheduler.experiment
        # Results of a finished study. Their states were deleted, and are made again where a job needs them.
        self._reused = set(reused)
        self._expected = type(scheduler).expected_flops(self.experiment)
        self._spent = 0.0
        self._parts: dict[str, float] = {}
        self._bar: Task | None = None

    def carry_out(self, arguments: Mapping[str, Any]) -> None:
        """Run every job without a result. `arguments` are passed to `open_job_runner`."""
        from ligo_convert.workers import WorkerPool

        self.drop_lost()
        self._spent = self.scheduler.done_flops()
        if "probe" in self.scheduler.results:
            self._announce_time()
        with (
            self.progress.task("training", self._expected, unit="FLOPs") as self._bar,
            WorkerPool[TrainingJob](open_job_runner, arguments, count=self.jobs) as pool,
        ):
            pool.run(self.next_job, on_result=self.done, on_progress=self._report_progress)

    def _state(self, name: str) -> FolderState:
        return training_state(self.staging, name, key=self.key, progress=self.progress)

    def drop_lost(self) -> None:
        """Forget the results whose state is needed and is missing or damaged, so that the jobs are done again.

        A job that is done again needs the state before it, which may be deleted by now.
        """
        checked: set[str] = set()
        while wanted := (self.scheduler.needed_states() & set(self.scheduler.results)) - checked - self._reused:
            checked |= wanted
            for name in sorted(wanted):
                if self._state(name).load() is None:
                    self.scheduler.forget(name)

    def next_job(self) -> TrainingJob | None:
        """Return the next job that can start, with the states that it starts from present."""
        while True:
            job = self.scheduler.next_job()
            # Without a job, the weights of the source are still to be written.
            needed = {self.scheduler.weakest_source() or ""} if job is None else job.needs
            lost = [name for name in needed & set(self.scheduler.results) if not self._is_there(name)]
            if not lost:
                return job
            if job is not None:
                self.scheduler.put_back(job)
            for name in lost:
                self.scheduler.forget(name)
                self._reused.discard(name)

    def _is_there(self, name: str) -> bool:
        """Return whether a state that a job starts from is present.

        A state may be deleted while no run that is wanted needs it, and be needed again once another choice is open and made.
        """
        state = self._state(name)
        return state.load() is not None if name in self._reused else os.path.lexists(state.path)

    def done(self, job: TrainingJob, result: dict[str, Any]) -> None:
        """Stage and report a result, and delete the states that no later job needs."""
        for text in result.pop("warnings", ()):
            self.progress.warn(text)
        self.scheduler.done(job, result)
        if job.kind == "probe":
            self._announce_time()
        keep_result(self.staging, "jobs", self.scheduler.results)
        self._delete_states()
        self._parts.pop(job.name, None)
        self._spent += job.flops
        if job.ends:
            self._announce_end(job, result)

    def _delete_states(self) -> None:
        """Delete the states that no later job needs, once the result is staged. A stopped job goes on from its steps."""
        running = self.scheduler.running
        kept = self.scheduler.needed_states() | running
        kept |= {f"{name}.steps" for name in self.scheduler.unfinished() | running}
        for path in (self.staging.work / STATES).glob("*.safetensors"):
            # Names of fits contain dots.
            if path.name.removesuffix(".safetensors") not in kept:
                remove_any(path)

    def _announce_time(self) -> None:
        speed = self.scheduler.results["probe"]["flops_a_second"]
        seconds = max(0.0, self._expected - self._spent) / speed / self.jobs
        self.progress.say(
            f"about {duration(seconds)} to go: worker processes: {self.jobs}, each at {speed / 1e9:.0f} GFLOP/s"
        )

    def _announce_end(self, job: TrainingJob, result: Mapping[str, Any]) -> None:
        assert job.run is not None
        loss = "not finite" if result["loss"] is None else f"{result['loss']:.4f}"
        cost = result["flops"] / self.experiment.scratch_flops
        how = f"seed {job.seed}, {job.run.optimizer.name} {job.run.learning_rate:g}, decay {job.run.decay / job.run.steps:.0%}"
        name = f"{entry_text(job.entry)} ({how}): {job.run.steps} steps"
        self.progress.say(f"{name}, {cost:.1%} of scratch's FLOPs, loss {loss}")
        if self.progress.loggers:
            for point in self.scheduler.curve_to(job):
                self.progress.measure(name, point)

    def _report_progress(self, job: TrainingJob, part: float, note: str) -> None:
        if self._bar is None:
            return
        self._parts[job.name] = part * job.flops
        self._bar.reach(min(self._expected, self._spent + sum(self._parts.values())))
        self._bar.note(f"{entry_text(job.entry)} {note}".strip())

"""The order of the jobs of a comparison, by an executor that fills in results instead of training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.experiments import experiment_of, trained_here
from support.slow import rest_slow

from ligo_convert.comparison.experiment import SOURCE_SIZE, Experiment
from ligo_convert.comparison.outcome import outcome
from ligo_convert.comparison.scheduler import CHECKPOINT, Scheduler, TrainingJob
from ligo_convert.comparison.study import JobLoop, training_state
from ligo_convert.errors import RecipeError
from ligo_convert.io.staging import Staging
from ligo_convert.progress import Progress
from ligo_convert.training.runs import DRAWN, Run
from ligo_convert.training.state import STATES

METHODS = ["late", "lemon", "lemon/identity@0.6", "ki", "ligo", "ligo-paper", "lemon+cosine", "freeze+fit"]
SETTINGS: Mapping[str, Any] = {
    "steps": 400,
    "learning_rates": [2e-3, 5e-3, 1e-2],
    "scratch_fractions": [0.1, 0.2, 0.5, 1.0],
    "budget_fractions": [0.25, 0.5, 1.0],
    "eval_points": 10,
}
BEST = {"adamw": 5e-3, "muon": 1e-2}


def loss_of(run: Run) -> float:
    """A bowl around the best rate, Muon 0.1 lower, the longer decay 0.05 lower, falling with the steps."""
    bowl = 0.1 * abs(math.log(run.learning_rate / BEST[run.optimizer.name]))
    muon, decay = 0.1 * (run.optimizer.name == "muon"), 0.05 * (run.decay / run.steps > 0.3)
    return round(8 - 0.5 * math.log(run.steps) + bowl - muon - decay, 6)


class Executor:
    """Fills in results, and keeps the states that a comparison would keep."""

    def __init__(
        self,
        experiment: Experiment,
        results: Mapping[str, Any] | None = None,
        states: set[str] | None = None,
        *,
        loss: Callable[[Run], float | None] = loss_of,
    ) -> None:
        self.experiment, self.loss = experiment, loss
        self.scheduler = Scheduler(experiment, results or {})
        self.states = set(states or ())
        self.jobs: list[TrainingJob] = []
        self.most_states = 0

    def begin(self) -> TrainingJob | None:
        job = self.scheduler.next_job()
        if job is None:
            return None
        assert job.name not in {done.name for done in self.jobs}, "every job is done once"
        assert job.name not in self.scheduler.results
        if job.kind == "fit" or (job.kind == "train" and job.parent != DRAWN):
            assert job.parent in self.states, "the state that it starts from is there"
        if job.run is not None and job.run.teacher:
            assert job.run.teacher in self.states
        self.jobs.append(job)
        return job

    def end(self, job: TrainingJob) -> None:
        self.scheduler.done(job, self.result(job))
        self.states.add(job.name)
        self.states &= self.scheduler.needed_states() | self.scheduler.running
        self.most_states = max(self.most_states, len(self.states))

    def result(self, job: TrainingJob) -> dict[str, Any]:
        if job.kind == "probe":
            return {"flops_a_second": 1e9}
        if job.kind == "source":
            return {"loss": 5.0, "accuracy": None}
        if job.kind == "fit":
            return {"best_step": 1, "validation_loss": 5.0, "steps": 1}
        run, entry = job.run, self.experiment.entries[job.entry]
        assert run is not None
        assert 0 <= job.first < job.last <= run.steps
        every = self.experiment.evaluate_every
        ends = {span.stop for span in run.spans}
        steps = [step for step in range(job.first + 1, job.last + 1) if step % every == 0 or step in ends]
        curve = [
            {"step": step, "flops": self.experiment.run_flops(entry, run.steps, done=step), "loss": 5.0}
            for step in ([0] if job.first == 0 else []) + steps
        ]
        flops = self.experiment.run_flops(entry, run.steps, done=job.last)
        found: dict[str, Any] = {"curve": curve, "flops": flops}
        if job.ends:
            loss = self.loss(run)
            found |= {"loss": loss, "validation_loss": loss, "accuracy": None}
        return found

    def run(self, *, limit: int = 100_000, workers: int = 1, seed: int = 0) -> Executor:
        """Do at most `limit` jobs, several at once; which of those ends first is drawn."""
        draw, busy = random.Random(seed), list[TrainingJob]()
        while True:
            while len(busy) < workers and len(self.jobs) < limit and (job := self.begin()) is not None:
                busy.append(job)
            if not busy:
                return self
            self.end(busy.pop(draw.randrange(len(busy))))

    def record(self) -> dict[str, Any]:
        return outcome(self.scheduler, key="k", label="small", data={}, versions={})


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A source of two strengths, two seeds, every kind of entry."""
    return trained_here(
        tmp_path_factory.mktemp("experiment"),
        methods=METHODS,
        pretrain={"steps": 60, "batch_size": 2},
        seeds=[0, 1],
        source_strengths=[1.0, 3.0],
        **SETTINGS,
    )


@pytest.fixture(scope="module")
def whole(experiment: Experiment) -> Executor:
    return Executor(experiment).run()


def trainings(executor: Executor) -> list[tuple[TrainingJob, Run]]:
    return [(job, job.run) for job in executor.jobs if job.run is not None]


def test_everything_that_is_wanted_is_done(whole: Executor, experiment: Experiment) -> None:
    """And every entry has an end at each of its budgets, with every seed; those of several sources for each of them."""
    assert whole.scheduler.next_job() is None
    assert not whole.scheduler.running
    found = whole.scheduler.finished_runs()
    assert list(found) == list(experiment.entries)
    assert {"lemon", "lemon from 3", "ki from 3", "late", SOURCE_SIZE} <= set(found)
    for name, seeds in found.items():
        ends = experiment.ends(experiment.entries[name])
        for seed in (0, 1):
            assert [end["steps"] for end in seeds[seed]["ends"]] == list(ends)
            flops = [end["flops"] for end in seeds[seed]["ends"]]
            assert flops == sorted(set(flops))
            steps = [point["step"] for point in seeds[seed]["curve"]]
            assert steps == sorted(set(steps)), "every point once"
            assert (steps[0], steps[-1]) == (0, ends[-1])


def test_what_runs_share_is_trained_once(whole: Executor) -> None:
    """No step of the same history is taken twice; without sharing there would be far more."""
    taken = [run.history(step) for job, run in trainings(whole) for step in range(job.first + 1, job.last + 1)]
    assert len(taken) == len(set(taken))
    alone = sum(run.steps for job, run in trainings(whole) if job.ends)
    assert len(taken) < 0.75 * alone


def test_states_are_kept_as_long_as_needed_and_no_longer(whole: Executor, experiment: Experiment) -> None:
    """That a state is there when it is needed, the executor asserts. In the end the trained sources are left."""
    sources = {
        run.history(run.steps)[:40]
        for job, run in trainings(whole)
        if job.ends and job.entry == SOURCE_SIZE and run.steps in {source.steps for source in experiment.sources}
    }
    assert whole.states <= sources
    assert whole.scheduler.weakest_source() in whole.states
    assert whole.most_states < 0.5 * len(whole.jobs)


@pytest.mark.parametrize("workers", rest_slow([2, 5], lambda workers: workers == 2))
def test_the_order_of_the_jobs_decides_nothing(workers: int, whole: Executor, experiment: Experiment) -> None:
    for seed in range(2):
        other = Executor(experiment).run(workers=workers, seed=seed)
        # Where a run is cut may depend on what was known when it was trained; what is reported does not.
        assert other.record() == whole.record()


@pytest.mark.slow
def test_a_comparison_goes_on_from_any_prefix_of_its_results(whole: Executor, experiment: Experiment) -> None:
    count = len(whole.jobs)
    for done in (1, 25, count // 2, count):
        stopped = Executor(experiment).run(limit=done)
        resumed = Executor(experiment, stopped.scheduler.results, stopped.states).run()
        assert len(stopped.jobs) + len(resumed.jobs) == count
        assert resumed.scheduler.results == whole.scheduler.results


@pytest.mark.slow
def test_a_result_that_is_forgotten_is_done_again_with_all_that_it_needs(
    whole: Executor, experiment: Experiment
) -> None:
    """States are lost, all or one by one: what is done again is what led to them."""
    stopped = Executor(experiment).run(limit=len(whole.jobs) // 2)
    for lost in (stopped.states, {sorted(stopped.states)[0]}):
        again = Executor(experiment, stopped.scheduler.results, stopped.states - lost)
        checked: set[str] = set()
        while wanted := (again.scheduler.needed_states() & set(again.scheduler.results)) - checked:
            checked |= wanted
            for name in wanted - again.states:
                again.scheduler.forget(name)
        again.run()
        assert again.scheduler.results == whole.scheduler.results


def test_a_state_that_was_deleted_is_made_again_when_it_is_needed_after_all(
    whole: Executor, experiment: Experiment, tmp_path: Path
) -> None:
    """A choice of scratch that is open again takes back the runs that follow it, and their states are deleted meanwhile."""
    # Stopped between two pieces of a method's run.
    count, left = next(
        (number, job) for number, job in enumerate(whole.jobs, 1) if job.entry == "late" and not job.ends
    )
    stopped = Executor(experiment).run(limit=count)
    results = dict(stopped.scheduler.results)
    # The runs of scratch that choose its settings. While the first of them is done again, none of a method is wanted.
    for job in stopped.jobs:
        if job.entry == "scratch" and job.ends and job.last == experiment.steps:
            del results[job.name]
    with Staging.open(tmp_path / "out", key="a" * 64) as staging:
        loop = JobLoop(Scheduler(experiment, results), staging, Progress(), key="b" * 64, jobs=1)

        def save(name: str) -> None:
            training_state(staging, name, key="b" * 64, progress=Progress()).save({"a": np.zeros(1)}, "{}")

        for name in stopped.states & set(results):
            save(name)
        loop.drop_lost()
        while (job := loop.next_job()) is not None and left.name not in job.needs:
            save(job.name)
            loop.done(job, stopped.result(job))
        assert job is not None
        assert (staging.work / STATES / f"{left.name}.safetensors").is_file()


@pytest.mark.parametrize("kind", ["train", "fit"])
def test_a_job_that_was_stopped_goes_on_from_its_steps(kind: str, experiment: Experiment, tmp_path: Path) -> None:
    """Two jobs were stopped, and one worker resumes: when it has done one of them, the steps of the other are still there."""
    stopped = Executor(experiment)
    while True:
        jobs = [job for job in (stopped.begin(), stopped.begin()) if job is not None]
        if len(jobs) == 2 and all(job.ends or job.kind == kind == "fit" for job in jobs) and jobs[1].kind == kind:
            break
        for job in jobs:
            stopped.end(job)
    with Staging.open(tmp_path / "out", key="a" * 64) as staging:
        loop = JobLoop(Scheduler(experiment, stopped.scheduler.results), staging, Progress(), key="b" * 64, jobs=1)

        def save(name: str) -> None:
            training_state(staging, name, key="b" * 64, progress=Progress()).save({"a": np.zeros(1)}, "{}")

        for name in (*stopped.states, *(f"{one.name}.steps" for one in jobs), "unwanted.steps"):
            save(name)
        loop.drop_lost()
        job = loop.next_job()
        assert job is not None
        assert job.name == jobs[0].name
        loop.done(job, stopped.result(job))
        steps = [path.name for path in (staging.work / STATES).glob("*.steps.safetensors")]
        assert steps == [f"{jobs[1].name}.steps.safetensors"]


def test_the_cost_is_known_before(whole: Executor, experiment: Experiment) -> None:
    """But for the rates that are added where the best one is at the edge, and the choice that is assumed."""
    spent = sum(job.flops for job in whole.jobs)
    # Where it is open whether a second rate is tried over the whole budget, it counts.
    assert 0.95 * spent < Scheduler.expected_flops(experiment) < 1.2 * spent
    # What a resumed comparison has behind it.
    assert whole.scheduler.done_flops() == pytest.approx(sum(job.flops for job in whole.jobs if job.kind == "train"))
    assert Scheduler(experiment, {}).done_flops() == 0
    told = sum(
        experiment.run_flops(experiment.entries[job.entry], run.steps, done=job.last)
        - experiment.run_flops(experiment.entries[job.entry], run.steps, done=job.first)
        for job, run in trainings(whole)
    )
    fits = sum(job.flops for job in whole.jobs if job.kind == "fit")
    assert spent == pytest.approx(told + fits)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_scratch_takes_what_has_the_lowest_validation_loss(whole: Executor, experiment: Experiment) -> None:
    choice = whole.scheduler.choice()
    assert choice is not None
    assert (choice.optimizer, choice.learning_rate, choice.decay) == ("muon", 1e-2, 0.4)
    tried = whole.scheduler.tried()
    short, long = experiment.steps_of(0.2), experiment.steps
    rates = {
        name: {run["learning_rate"] for run in tried if run["optimizer"] == name and run["steps"] == short}
        for name in BEST
    }
    # Muon's best rate is the highest of the recipe, so that a higher one is tried.
    assert rates == {"adamw": {2e-3, 5e-3, 1e-2}, "muon": {2e-3, 5e-3, 1e-2, 2e-2}}
    finalists = {(run["optimizer"], run["learning_rate"], run["decay"]) for run in tried if run["steps"] == long}
    assert finalists == {
        (name, rate, decay) for name, rate in (("muon", 1e-2), ("muon", 5e-3), ("adamw", 5e-3)) for decay in (0.2, 0.4)
    }


def test_a_rate_that_is_only_best_in_short_runs_is_not_taken(experiment: Experiment) -> None:
    """The next lower one is tried over the whole budget, too; and the decay is chosen there."""

    def loss(run: Run) -> float:
        best = 1e-2 if run.steps < experiment.steps else 5e-3
        return loss_of(run) + 5 * abs(math.log(run.learning_rate / best)) + (run.decay / run.steps > 0.3)

    choice = Executor(experiment, loss=loss).run(limit=60).scheduler.choice()
    assert choice is not None
    assert (choice.learning_rate, choice.decay) == (5e-3, 0.2)


def test_scratch_goes_on_to_lower_rates_in_its_longest_runs(experiment: Experiment) -> None:
    """As long as they are better: first to those of its short runs, then to half of the lowest. A single rate stays."""

    def loss(run: Run) -> float:
        best = 1e-2 if run.steps < experiment.steps else 2e-3
        return loss_of(run) + 5 * abs(math.log(run.learning_rate / best)) + (run.decay / run.steps > 0.3)

    found = Executor(experiment, loss=loss).run()
    choice = found.scheduler.choice()
    assert choice is not None
    assert (choice.learning_rate, choice.decay) == (2e-3, 0.2)
    whole = [run for run in found.scheduler.tried() if run["steps"] == experiment.steps and run["optimizer"] == "muon"]
    tried = [(run["learning_rate"], run["decay"]) for run in whole]
    assert sorted(tried) == [(1e-3, 0.2), (2e-3, 0.2), (5e-3, 0.2), (5e-3, 0.4), (1e-2, 0.2), (1e-2, 0.4)]
    # It is no longer the lowest that was tried.
    assert "learning-rate-at-grid-edge" not in {warning["rule"] for warning in found.record()["fairness_warnings"]}


def test_a_rate_without_a_finite_loss_is_the_worst(experiment: Experiment) -> None:
    def loss(run: Run) -> float | None:
        return loss_of(run) if run.optimizer.name == "adamw" and run.learning_rate == 5e-3 else None

    choice = Executor(experiment, loss=loss).run(limit=60).scheduler.choice()
    assert choice is not None
    assert (choice.optimizer, choice.learning_rate) == ("adamw", 5e-3)
    with pytest.raises(RecipeError, match="not finite at any learning rate") as error:
        Executor(experiment, loss=lambda run: None).run(limit=60)
    assert error.value.exit_code == 2


def test_the_others_tune_their_rate_and_nothing_else(whole: Executor, experiment: Experiment) -> None:
    """Here the loss asks for scratch's own. From a stronger source another rate may be best, so it is tuned on its own."""
    base = whole.scheduler.choice()
    for name, entry in experiment.entries.items():
        assert whole.scheduler.choice_of(entry) == base, name
        short = [
            run["learning_rate"] for run in whole.scheduler.tried_by(entry) if run["steps"] < experiment.ends(entry)[-1]
        ]
        assert short == ([5e-3, 1e-2] if entry.kind != "scratch" else []), name


def test_a_method_with_settings_of_its_own_is_trained_with_them(tmp_path: Path) -> None:
    """Its optimizer comes with the rate that scratch has found for it, which is another one than that of the best optimizer."""
    names = ["late", "late+adamw", "late+decay@0.1", "late+muon"]
    executor = Executor(trained_here(tmp_path, methods=names, **SETTINGS)).run()
    entries, scheduler = executor.experiment.entries, executor.scheduler
    found = {name: scheduler.choice_at_end(entries[name]) for name in names}
    best = scheduler.choice()
    assert best is not None
    assert best.optimizer == "muon"
    assert found["late"] == found["late+muon"]
    other, brief = found["late+adamw"], found["late+decay@0.1"]
    assert other is not None
    assert brief is not None
    assert (other.optimizer, other.learning_rate, other.decay) == ("adamw", BEST["adamw"], best.decay)
    assert (brief.optimizer, brief.decay) == ("muon", 0.1)
    runs = {job.entry: run for job, run in trainings(executor) if job.ends and run.steps > 100}
    assert runs["late+adamw"].optimizer.name == "adamw"
    assert runs["late+decay@0.1"].decay == round(0.1 * runs["late+decay@0.1"].steps)
    # Costs are estimated with the first optimizer, which is not Muon.
    assert Scheduler.expected_by_entry(executor.experiment)["late+muon"] > 0


def test_the_longest_runs_take_a_rate_that_is_tried_at_their_length(experiment: Experiment) -> None:
    """Trained weights also try the next higher rate; shorter runs keep that of the tuning runs."""

    longest = {experiment.ends(entry)[-1] for entry in experiment.entries.values()}

    def loss(run: Run) -> float:
        target = experiment.baseline.planned[0].stage.config
        if run.start == DRAWN and not run.teacher and [stage.config for stage in run.stages] == [target]:
            return loss_of(run)  # scratch
        best = 1e-2 if run.steps in longest else 5e-3
        return loss_of(run) + 5 * abs(math.log(run.learning_rate / best))

    found = Executor(experiment, loss=loss).run()
    record = found.record()
    for name, entry in {**record["methods"], **record["controls"]}.items():
        if entry["kind"] == "scratch":
            continue
        planned = experiment.entries[name]
        lengths = experiment.ends(planned)
        first, last = (5e-3, 1e-2 if planned.begins != "drawn" else 5e-3)
        assert (entry["ends"][0]["learning_rate"], entry["ends"][-1]["learning_rate"]) == (first, last), name
        assert entry["learning_rate"] == last
        whole = [run["learning_rate"] for run in entry["tried"] if run["steps"] == lengths[-1]]
        assert whole == ([] if planned.begins == "drawn" else [5e-3, 1e-2]), name


def test_higher_rates_are_tried_as_long_as_they_are_better(tmp_path: Path) -> None:
    """Short runs from a source ask for the lowest rate, long ones for the highest of four, or for the second."""
    settings = {**SETTINGS, "rate_factors": [0.125, 0.25, 0.5, 1.0]}
    found = experiment_of(tmp_path, methods=["lemon"], **settings)
    entry = found.entries["lemon"]
    longest = found.ends(entry)[-1]
    for best, tried in ((1.0, 4), (0.25, 3)):

        def loss(run: Run, best: float = best) -> float:
            if run.start == DRAWN:
                return loss_of(run)
            return loss_of(run) + 5 * abs(
                math.log(run.learning_rate / (1e-2 * (best if run.steps == longest else 0.125)))
            )

        scheduler = Executor(found, loss=loss).run().scheduler
        choice = scheduler.choice_at_end(entry)
        assert choice is not None
        assert choice.learning_rate == pytest.approx(1e-2 * best)
        assert [run["steps"] for run in scheduler.tried_by(entry)].count(longest) == tried


def test_a_checkpoint_is_read_once_and_stays(tmp_path: Path) -> None:
    """Where a learned operator and a teacher are all that uses it."""
    found = experiment_of(tmp_path, methods=["ligo", "ki"], **SETTINGS)
    whole = Executor(found).run()
    assert sum(job.kind == "source" for job in whole.jobs) == 1
    assert whole.scheduler.weakest_source() == CHECKPOINT
    assert whole.states == {CHECKPOINT}
    (strength,) = whole.scheduler.strengths()
    assert strength["seeds"]["0"] == {"loss": 5.0, "accuracy": None}
    assert whole.record()["methods"]["ligo"]["flops"]["fit"] > 0


def test_fits_that_are_alike_are_learned_once(whole: Executor) -> None:
    """`ligo` and `freeze+fit` learn the same operator, from each source and with each seed; `ligo-paper` another."""
    fits = [job for job in whole.jobs if job.kind == "fit"]
    assert len(fits) == len({job.name for job in fits}) == 2 * 2 * 2

"""Schedule the jobs of a comparison: choose the next job from the results so far and collect the final records.

Input: an `Experiment`, and job results by job name as they arrive.
Output: jobs with all dependencies met, most urgent first; each method's learning rate and schedule; each method's record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ligo_convert.comparison.experiment import Experiment
from ligo_convert.comparison.methods import SCRATCH, Method
from ligo_convert.comparison.results import first_point_at, method_record
from ligo_convert.comparison.strategies import depends_on_run_length
from ligo_convert.errors import RecipeError
from ligo_convert.training.schedules import STABLE_PART


class Scheduler:
    """Chooses the next job of a comparison.

    Args:
        experiment: the plan of the comparison.
        results: job name -> result of every finished job. `done` adds to a copy of it.
    """

    def __init__(self, experiment: Experiment, results: Mapping[str, dict[str, Any]]) -> None:
        self.experiment, self.results = experiment, dict(results)
        self._running: set[str] = set()

    def done(self, job: TrainingJob, result: dict[str, Any]) -> None:
        self._running.discard(job.name)
        self.results[job.name] = result

    def next_job(self) -> TrainingJob | None:
        """Return the next job that can start; None if no job is left or all wait for running jobs."""
        for job in self._runnable_jobs():
            if job.name not in self.results and job.name not in self._running:
                self._running.add(job.name)
                return job
        return None

    def _runnable_jobs(self) -> Iterator[TrainingJob]:
        """Yield all jobs with met dependencies, finished ones included, most urgent first."""
        experiment = self.experiment
        yield TrainingJob(kind="probe")
        yield TrainingJob(kind="source")
        yield from self._tuning_jobs(SCRATCH)
        yield from self._fit_jobs()
        if self._best_tuning(SCRATCH) is None:
            return
        yield from self._scratch_runs()
        for seed in experiment.seeds[1:] if self._chosen_settings(SCRATCH) is not None else ():
            yield from self._training_jobs(SCRATCH, seed)
        others = [name for name in experiment.entries if name != SCRATCH]
        for name in others:
            if self._ready(name, experiment.seeds[0]):
                yield from self._tuning_jobs(name)
        for seed in experiment.seeds:
            if self.final(SCRATCH, seed) is None:
                continue
            for name in others:
                if self._best_tuning(name) is not None and self._ready(name, seed):
                    yield from self._training_jobs(name, seed)

    def _fit_jobs(self) -> Iterator[TrainingJob]:
        """Yield one job per operator to learn."""
        seen = set()
        for seed in self.experiment.seeds:
            for name, entry in self.experiment.entries.items():
                key = operator_name(entry.method, seed)
                if entry.method.learns_operator and key not in seen:
                    seen.add(key)
                    yield TrainingJob(kind="fit", method=name, seed=seed, flops=self.experiment.fit_flops(name))

    def _ready(self, name: str, seed: int) -> bool:
        """Return whether the operator of a method is available."""
        method = self.experiment.entries[name].method
        if not method.learns_operator:
            return True
        key = operator_name(method, seed)
        return any(
            job.name in self.results
            for job in self._fit_jobs()
            if operator_name(self.experiment.entries[job.method].method, job.seed) == key
        )

    def _tuning_jobs(self, name: str) -> Iterator[TrainingJob]:
        """Yield one tuning run per learning rate, with the first seed: scratch with each schedule, others with scratch's best one."""
        experiment, best = self.experiment, self._best_tuning(SCRATCH) if name != SCRATCH else None
        for rate, shape in experiment.rates(name):
            chosen = {"learning_rate": rate, "schedule": shape or (best or {})["schedule"]}
            yield self._training_job(name, experiment.seeds[0], chosen, experiment.settings.tuning_fraction)

    def _tuning_results(self, name: str) -> list[dict[str, Any]]:
        """Return every finished tuning run, with its validation loss."""
        return [
            {
                "learning_rate": job.learning_rate,
                "schedule": job.shape,
                "validation_loss": self.results[job.name]["validation_loss"],
            }
            for job in self._tuning_jobs(name)
            if job.name in self.results
        ]

    def _best_tuning(self, name: str) -> dict[str, Any] | None:
        """Return the best learning rate and schedule of the tuning runs; None until all are finished."""
        if name != SCRATCH and self._best_tuning(SCRATCH) is None:
            return None
        trials = self._tuning_results(name)
        if len(trials) < len(self.experiment.rates(name)):
            return None
        best = min(trials, key=_loss_of)
        if best["validation_loss"] is None and name == SCRATCH:
            rates = ", ".join(f"{trial['learning_rate']:g}" for trial in trials)
            raise RecipeError(
                f"{name}: the loss is not finite at any learning rate tried ({rates})",
                where=self.experiment.plan.recipe.where("compare", "learning_rates"),
                hint="set lower learning rates",
            )
        return {"learning_rate": best["learning_rate"], "schedule": best["schedule"]}

    def _chosen_settings(self, name: str) -> dict[str, Any] | None:
        """Return the learning rate and schedule that a method is trained with; None until they are known.

        Short runs favour high learning rates, and only scratch is always trained for the whole budget. Scratch therefore tries its best
        and its next lower learning rate over the whole budget, judged on the validation split.
        """
        if name != SCRATCH:
            return self._best_tuning(name)
        runs = [self.results.get(job.name) for job in self._scratch_runs()]
        if not runs or any(run is None for run in runs):
            return None
        done = [(job, run) for job, run in zip(self._scratch_runs(), runs, strict=True) if run is not None]
        job, run = min(done, key=lambda pair: _loss_of(pair[1]))
        if run["validation_loss"] is None:
            raise RecipeError(
                f"training from scratch ends with a non-finite loss at a learning rate of {job.learning_rate:g}",
                where=self.experiment.plan.recipe.where("compare", "learning_rates"),
                hint="set lower learning rates",
            )
        return {"learning_rate": job.learning_rate, "schedule": job.shape}

    def _scratch_runs(self) -> Iterator[TrainingJob]:
        """Yield the runs of scratch over the whole budget with the first seed: at its best and next lower learning rate."""
        best = self._best_tuning(SCRATCH)
        if best is None:
            return
        lower = [rate for rate in self.experiment.settings.learning_rates if rate < best["learning_rate"]]
        for rate in (best["learning_rate"], *([max(lower)] if lower else [])):
            chosen = {**best, "learning_rate": rate}
            seed = self.experiment.seeds[0]
            yield self._training_job(
                SCRATCH, seed, chosen, 1.0, resume_from=self._resume_fraction(SCRATCH, seed, chosen, 1.0)
            )

    def _training_jobs(self, name: str, seed: int) -> Iterator[TrainingJob]:
        """Yield one run per budget fraction, shortest first, until one reaches scratch's final loss."""
        experiment, chosen = self.experiment, self._chosen_settings(name)
        assert chosen is not None
        resume_from = self._resume_fraction(name, seed, chosen, experiment.budget_fractions_of(name)[0])
        for budget_fraction in experiment.budget_fractions_of(name):
            job = self._training_job(name, seed, chosen, budget_fraction, resume_from=resume_from)
            yield job
            if job.name not in self.results or self.reached(job):
                return
            if self._shares_prefix(name, chosen):
                resume_from = budget_fraction

    def _shares_prefix(self, name: str, chosen: Mapping[str, Any]) -> bool:
        """Return whether runs of a method to different budget fractions begin with the same steps."""
        return not depends_on_run_length(self.experiment.entries[name].stages) and chosen["schedule"] == "stable"

    def _resume_fraction(self, name: str, seed: int, chosen: Mapping[str, Any], budget_fraction: float) -> float:
        """Return the budget fraction of the tuning run that a run to `budget_fraction` can resume from, or 0."""
        tried = self.experiment.settings.tuning_fraction
        goes_on = self._shares_prefix(name, chosen) and seed == self.experiment.seeds[0] and tried < budget_fraction
        return tried if goes_on else 0.0

    def _training_job(
        self,
        name: str,
        seed: int,
        chosen: Mapping[str, Any],
        budget_fraction: float,
        *,
        resume_from: float = 0.0,
    ) -> TrainingJob:
        experiment = self.experiment
        return TrainingJob(
            kind="train",
            method=name,
            seed=seed,
            learning_rate=chosen["learning_rate"],
            shape=chosen["schedule"],
            budget_fraction=budget_fraction,
            resume_from=resume_from,
            flops=experiment.run_flops(name, experiment.steps_of(budget_fraction))
            - (STABLE_PART * experiment.run_flops(name, experiment.steps_of(resume_from)) if resume_from else 0.0),
        )

    def _runs(self, name: str, seed: int) -> list[dict[str, Any]]:
        return [self.results[job.name] for job in self._training_jobs(name, seed) if job.name in self.results]

    def reached(self, job: TrainingJob) -> bool:
        """Return whether a run reached scratch's final loss or diverged, so that longer runs are not needed."""
        found = self.results[job.name]
        goal = self.final(SCRATCH, job.seed) if job.method != SCRATCH else None
        return found["final"]["loss"] is None or (
            goal is not None and first_point_at(found["curve"], goal["loss"]) is not None
        )

    def final(self, name: str, seed: int) -> dict[str, Any] | None:
        """Return the final values of a method's longest run."""
        if self._chosen_settings(name) is None:
            return None
        runs = self._runs(name, seed)
        return runs[-1]["final"] if runs else None

    # Results.

    def chosen(self) -> dict[str, dict[str, Any]]:
        """Return the learning rate and schedule of each method."""
        return {name: found for name in self.experiment.entries if (found := self._chosen_settings(name)) is not None}

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the record of each method, for compare.json."""
        experiment = self.experiment
        scratch = {}
        for seed in experiment.seeds:
            final = self.final(SCRATCH, seed)
            assert final is not None
            scratch[seed] = final
        found = {}
        for name in experiment.entries:
            runs = {}
            for seed in experiment.seeds:
                done = self._runs(name, seed)
                runs[seed] = {
                    "curve": done[-1]["curve"],
                    "final": done[-1]["final"],
                    "finals": [run["final"] for run in done],
                }
            chosen = self._chosen_settings(name)
            assert chosen is not None
            found[name] = method_record(
                experiment, name, tuned=chosen, tuning_runs=self._tuning_results(name), runs=runs, scratch=scratch
            )
        return found


def _loss_of(result: Mapping[str, Any]) -> tuple[bool, float]:
    """Return a sort key: a non-finite loss is the worst."""
    loss = result["validation_loss"]
    return (loss is None, loss if loss is not None else 0.0)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One job of a comparison.

    Attributes:
        kind: `probe` measures training speed, `source` the source's loss, `fit` learns an operator, `train` trains a model.
        method: name of the method; empty for `probe` and `source`.
        seed: seed of the run.
        learning_rate: peak learning rate of a training run.
        shape: learning rate schedule of a training run.
        budget_fraction: fraction of the budget that a training run takes.
        resume_from: budget fraction of the shorter run whose saved state this run resumes from; 0 for none.
        flops: estimated FLOPs, for the progress display.
    """

    kind: Literal["probe", "source", "fit", "train"]
    method: str = ""
    seed: int = 0
    learning_rate: float = 0.0
    shape: str = ""
    budget_fraction: float = 0.0
    resume_from: float = 0.0
    flops: float = 0.0

    @property
    def name(self) -> str:
        """Return the name under which the result and the state are stored."""
        parts = [
            self.kind,
            self.method,
            f"{self.seed}",
            f"{self.learning_rate:g}",
            self.shape,
            f"{self.budget_fraction:g}",
        ]
        return "-".join(part.replace("/", "_") for part in parts if part) if self.method else self.kind


def operator_name(method: Method, seed: int) -> str:
    """Return a name for a method's operator; methods with the same name share one operator."""
    rates = f"{method.fit_rates.width_rate:g}-{method.fit_rates.depth_rate:g}" if method.fit_rates else "recipe"
    return f"{method.width}-{method.depth}-{method.tie or 'untied'}-{rates}-{seed}"


def shared_state_name(job: TrainingJob, budget_fraction: float) -> str:
    """Return the name of the state that a run to `budget_fraction` saves for longer runs of its method."""
    return f"shared-{job.method.replace('/', '_')}-{job.seed}-{job.learning_rate:g}-{budget_fraction:g}"

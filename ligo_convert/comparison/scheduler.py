"""The agenda of a comparison: from the results that are there, which job comes next, and what they all come to.

What comes in: a contest, results by name of job as they come. What goes out: jobs whose needs are met, the most urgent first; the rate that
each method is trained with; every method's record. Nothing is trained or kept here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ligo_convert.comparison.experiment import Experiment
from ligo_convert.comparison.methods import SCRATCH, Method
from ligo_convert.comparison.results import first_at, method_record
from ligo_convert.comparison.strategies import stretches
from ligo_convert.errors import RecipeError
from ligo_convert.training.schedules import STABLE_PART


class Scheduler:
    """Which job comes next.

    Args:
        results: name of a job -> what it gave; grows by `done`.
    """

    def __init__(self, contest: Experiment, results: Mapping[str, dict[str, Any]]) -> None:
        self.contest, self.results = contest, dict(results)
        self._running: set[str] = set()

    def done(self, job: TrainingJob, result: dict[str, Any]) -> None:
        self._running.discard(job.name)
        self.results[job.name] = result

    def following(self) -> TrainingJob | None:
        """The next job that can be begun; None where there is none, or all that are left wait for one that is running."""
        for job in self._open():
            if job.name not in self.results and job.name not in self._running:
                self._running.add(job.name)
                return job
        return None

    def _open(self) -> Iterator[TrainingJob]:
        """All jobs whose needs are met, the most urgent first; those that are done among them."""
        contest = self.contest
        yield TrainingJob(kind="probe")
        yield TrainingJob(kind="source")
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
            if self.final(SCRATCH, seed) is None:
                continue
            for name in others:
                if self._tuned(name) is not None and self._ready(name, seed):
                    yield from self._trains(name, seed)

    def _fits(self) -> Iterator[TrainingJob]:
        """One for every operator that is learned."""
        seen = set()
        for seed in self.contest.seeds:
            for name, entry in self.contest.entries.items():
                key = operator_name(entry.contender, seed)
                if entry.contender.fits and key not in seen:
                    seen.add(key)
                    yield TrainingJob(kind="fit", method=name, seed=seed, flops=self.contest.fit_flops(name))

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

    def _tunes(self, name: str) -> Iterator[TrainingJob]:
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
        if best["validation_loss"] is None and name == SCRATCH:
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

    def _scratch_runs(self) -> Iterator[TrainingJob]:
        """Scratch by the first seed for the whole budget, at its best rate of the short runs and the one below it."""
        best = self._tuned(SCRATCH)
        if best is None:
            return
        lower = [rate for rate in self.contest.settings.learning_rates if rate < best["learning_rate"]]
        for rate in (best["learning_rate"], *([max(lower)] if lower else [])):
            chosen = {**best, "learning_rate": rate}
            seed = self.contest.seeds[0]
            yield self._run(SCRATCH, seed, chosen, 1.0, before=self._common(SCRATCH, seed, chosen, 1.0))

    def _trains(self, name: str, seed: int) -> Iterator[TrainingJob]:
        """A run to each horizon, until one reaches scratch's loss; each when the one before is done."""
        contest, chosen = self.contest, self._chosen(name)
        assert chosen is not None
        before = self._common(name, seed, chosen, contest.horizons_of(name)[0])
        for horizon in contest.horizons_of(name):
            job = self._run(name, seed, chosen, horizon, before=before)
            yield job
            if job.name not in self.results or self.reached(job):
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
    ) -> TrainingJob:
        contest = self.contest
        return TrainingJob(
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

    def reached(self, job: TrainingJob) -> bool:
        """Whether a run has reached scratch's final loss, or was stopped short by a loss that is no number: longer ones are not run."""
        found = self.results[job.name]
        goal = self.final(SCRATCH, job.seed) if job.method != SCRATCH else None
        return found["final"]["loss"] is None or (
            goal is not None and first_at(found["curve"], goal["loss"]) is not None
        )

    def final(self, name: str, seed: int) -> dict[str, Any] | None:
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
            final = self.final(SCRATCH, seed)
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


def _loss_of(result: Mapping[str, Any]) -> tuple[bool, float]:
    """For the least: a loss that is no number is the worst."""
    loss = result["validation_loss"]
    return (loss is None, loss if loss is not None else 0.0)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One piece of work.

    Attributes:
        kind: `probe` how fast it goes here; measure the `source`; learn an operator (`fit`); `train` to a horizon.
        before: the horizon of the run whose common stretch this one goes on from; 0 for none.
        flops: about what it costs, for progress.
    """

    kind: Literal["probe", "source", "fit", "train"]
    method: str = ""
    seed: int = 0
    learning_rate: float = 0.0
    shape: str = ""
    horizon: float = 0.0
    before: float = 0.0
    flops: float = 0.0

    @property
    def name(self) -> str:
        """What its result and its state are called."""
        parts = [self.kind, self.method, f"{self.seed}", f"{self.learning_rate:g}", self.shape, f"{self.horizon:g}"]
        return "-".join(part.replace("/", "_") for part in parts if part) if self.method else self.kind


def operator_name(method: Method, seed: int) -> str:
    """Methods with the same name here learn the same operator."""
    rates = f"{method.fitting.width_rate:g}-{method.fitting.depth_rate:g}" if method.fitting else "recipe"
    return f"{method.width}-{method.depth}-{method.tie or 'untied'}-{rates}-{seed}"


def trunk_name(job: TrainingJob, horizon: float) -> str:
    """Of the state that a run to `horizon` leaves to longer ones of its method."""
    return f"trunk-{job.method.replace('/', '_')}-{job.seed}-{job.learning_rate:g}-{horizon:g}"

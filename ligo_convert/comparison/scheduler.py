"""Schedule the jobs of a comparison: choose the next job from the results so far and collect the finished runs.

Input: an `Experiment`, and job results by job name as they arrive.
Output: jobs with all dependencies met, most urgent first; the optimizer, learning rate and decay of each entry; its finished runs.

Every run is cut where it ends, where a stage begins, where its rate begins to fall, and where another run leaves it. A piece is a job,
named by the history that leads to its end (`training.runs.Run.history`). So what runs share is trained once, and a stopped comparison goes
on from the pieces that are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ligo_convert.comparison.experiment import SOURCE_SIZE, Choice, Experiment, ExperimentEntry
from ligo_convert.comparison.methods import SCRATCH, Method
from ligo_convert.errors import RecipeError
from ligo_convert.training.runs import DRAWN, Run

# History of the first step -> number of steps -> names of the pieces that end there.
Cuts = dict[str, dict[int, set[str]]]

MOST_MORE_RATES = 4  # learning rates that are tried beyond the recipe's, where the best one is at the edge

CHECKPOINT: Final = "checkpoint"  # name of the state of a source that is a checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One job of a comparison.

    Attributes:
        name: the name under which the result and the state are stored.
        kind: `probe` measures training speed, `source` reads the source's checkpoint, `fit` learns an operator, `train` trains a piece of a
            run.
        entry: name of the entry; empty for `probe` and `source`.
        seed: seed of the run.
        run: the run; None unless `train`.
        first: steps done before the piece.
        last: steps done after it.
        parent: name of the state that it starts from; `drawn` for none.
        flops: estimated FLOPs, for the progress display.
    """

    name: str
    kind: Literal["probe", "source", "fit", "train"]
    entry: str = ""
    seed: int = 0
    run: Run | None = None
    first: int = 0
    last: int = 0
    parent: str = DRAWN
    flops: float = 0.0

    @property
    def ends(self) -> bool:
        """Return whether the piece ends its run, so that the model is measured."""
        return self.run is not None and self.last == self.run.steps

    @property
    def needs(self) -> set[str]:
        """Return the names of the states that the job reads."""
        return {self.parent, self.run.teacher if self.run is not None else ""}


@dataclass(frozen=True, kw_only=True)
class WantedRun:
    """A run whose end is wanted.

    Attributes:
        keeps: whether other runs start from its end, so that its state is kept.
        leaves: runs that may be wanted later and would leave this one where they grow, or where their rate begins to fall.
    """

    entry: ExperimentEntry
    seed: int
    choice: Choice
    run: Run
    keeps: bool = False
    leaves: tuple[Run, ...] = ()


class Scheduler:
    """Chooses the next job of a comparison.

    Args:
        experiment: the plan of the comparison.
        results: job name -> result of every finished job. `done` adds to a copy of it.
    """

    def __init__(self, experiment: Experiment, results: Mapping[str, dict[str, Any]]) -> None:
        self.experiment, self.results = experiment, dict(results)
        self._running: set[str] = set()
        self._runs: dict[tuple[Any, ...], Run] = {}
        self._wants: dict[tuple[Any, ...], WantedRun] = {}
        self._histories: dict[tuple[int, int], str] = {}
        self._assumed: Choice | None = None
        # What follows from the results, until they change. A choice stays.
        self._choices_made: dict[str, Choice] = {}
        self._end_choices_made: dict[str, Choice] = {}
        self._plan: list[tuple[WantedRun, list[TrainingJob]]] | None = None

    @classmethod
    def expected_by_entry(cls, experiment: Experiment) -> dict[str, float]:
        """Return about the FLOPs of each entry, before anything is trained. What runs share counts once, for the entry that trains it.

        The runs of the starts that an entry chooses from are runs of that entry.
        """
        scheduler = cls(experiment, {})
        scheduler._assumed = scheduler._grid()[0]
        owners = {start.name: entry.name for entry in experiment.entries.values() for start in entry.starts}
        done: set[str] = set()
        found: dict[str, float] = {}
        for one, jobs in scheduler._planned():
            pieces = {job.name: job.flops for job in jobs}
            if one.entry.begins == "learned":
                pieces[one.run.start] = experiment.fit_flops(one.entry)
            new = sum(flops for name, flops in pieces.items() if name not in done)
            owner = owners.get(one.entry.name, one.entry.name)
            found[owner] = found.get(owner, 0.0) + new
            done |= pieces.keys()
        return found

    @classmethod
    def expected_flops(cls, experiment: Experiment) -> float:
        """Return about the FLOPs of the whole comparison, before anything is trained."""
        return sum(cls.expected_by_entry(experiment).values())

    def done(self, job: TrainingJob, result: dict[str, Any]) -> None:
        self._running.discard(job.name)
        self.results[job.name] = result
        self._plan = None

    def put_back(self, job: TrainingJob) -> None:
        """Take back a job that `next_job` returned and that was not started."""
        self._running.discard(job.name)

    def done_flops(self) -> float:
        """Return about the FLOPs of the finished jobs that the runs wanted so far consist of. What runs share counts once."""
        done = {job.name: job.flops for _, jobs in self._planned() for job in jobs if job.name in self.results}
        return sum(done.values())

    def forget(self, name: str) -> None:
        """Remove a result, so that its job is done again."""
        del self.results[name]
        self._plan = None
        self._choices_made.clear()
        self._end_choices_made.clear()

    def next_job(self) -> TrainingJob | None:
        """Return the next job that can start; None if no job is left or all wait for running jobs."""
        for job in self._ready_jobs():
            if job.name not in self.results and job.name not in self._running:
                self._running.add(job.name)
                return job
        return None

    @property
    def running(self) -> frozenset[str]:
        """Return the names of the jobs that are running."""
        return frozenset(self._running)

    # Jobs.

    def _ready_jobs(self) -> Iterator[TrainingJob]:
        """Yield all jobs whose dependencies are met, most urgent first; finished ones may be among them."""
        yield TrainingJob(name="probe", kind="probe")
        if self.experiment.plan.recipe.source.pretrain is None:
            yield TrainingJob(name=CHECKPOINT, kind="source")
        for found, jobs in self._planned():
            if found.run.start != DRAWN and found.run.start not in self.results:
                yield from self._fit_job(found)
                continue
            if found.run.teacher and found.run.teacher not in self.results:
                continue
            for job in jobs:
                if job.name not in self.results:
                    # The pieces after it wait for its state.
                    yield job
                    break

    def _fit_job(self, found: WantedRun) -> Iterator[TrainingJob]:
        entry = found.entry
        if entry.begins != "learned":
            return
        state = self._source_state(entry, found.seed)
        if state is not None and state in self.results:
            flops = self.experiment.fit_flops(entry)
            yield TrainingJob(
                name=found.run.start, kind="fit", entry=entry.name, seed=found.seed, parent=state, flops=flops
            )

    def _planned(self) -> list[tuple[WantedRun, list[TrainingJob]]]:
        """Return every wanted run with its pieces."""
        if self._plan is None:
            wanted = self.wanted()
            cuts = self._cuts(wanted)
            self._plan = [(found, list(self._pieces(found, cuts))) for found in wanted]
        return self._plan

    def _cuts(self, wanted: Iterable[WantedRun]) -> Cuts:
        """Return where runs are cut: by the history of their first step, the names of pieces by numbers of steps."""
        found: Cuts = {}

        def cut(run: Run, step: int) -> None:
            if step:
                found.setdefault(self._history(run, 1), {}).setdefault(step, set()).add(self._history(run, step))

        for one in wanted:
            for step in one.run.breaks:
                cut(one.run, step)
            for run in one.leaves:
                for step in run.breaks:
                    if step <= run.turn:
                        cut(run, step)
        return found

    def _pieces(self, found: WantedRun, cuts: Cuts) -> Iterator[TrainingJob]:
        """Yield the pieces of a run in order."""
        run, parent, first = found.run, found.run.start, 0
        for step, names in sorted(cuts[self._history(run, 1)].items()):
            if step > run.steps:
                return
            name = self._history(run, step)
            if name not in names:
                continue
            yield TrainingJob(
                name=name,
                kind="train",
                entry=found.entry.name,
                seed=found.seed,
                run=run,
                first=first,
                last=step,
                parent=parent,
                flops=self._flops(found, step) - self._flops(found, first),
            )
            parent, first = name, step

    def _flops(self, found: WantedRun, step: int) -> float:
        """Return the FLOPs of the first steps of a run, as known before it is trained."""
        return self.experiment.run_flops(found.entry, found.run.steps, done=step)

    def _history(self, run: Run, step: int) -> str:
        key = (id(run), step)
        if key not in self._histories:
            self._histories[key] = run.history(step)[:40]
        return self._histories[key]

    def _run(self, entry: ExperimentEntry, choice: Choice, seed: int, steps: int, start: str, teacher: str) -> Run:
        key = (entry.name, choice, seed, steps, start, teacher)
        if key not in self._runs:
            self._runs[key] = self.experiment.make_run(
                entry, choice, seed=seed, steps=steps, start=start, teacher=teacher
            )
        return self._runs[key]

    # Wanted runs.

    def wanted(self) -> list[WantedRun]:
        """Return every run that is known to be needed, most urgent first."""
        experiment = self.experiment
        baseline, first = experiment.baseline, experiment.seeds[0]
        found = [self._want(baseline, first, choice, self._tuning_steps(baseline)) for choice in self._grid()]
        found += [self._want(baseline, first, choice, experiment.steps) for choice in self._finalists()]
        if self.choice() is None:
            return found
        for entry in experiment.entries.values():
            found += self._tuning_runs(entry)
        for seed in experiment.seeds:
            for entry in experiment.entries.values():
                found += self._sources(entry, seed)
                found += self._start_trials(entry, seed)
                found += self._finalists_of(entry) if seed == first else []
                found += self._end_runs(entry, seed)
        return found

    def _want(
        self, entry: ExperimentEntry, seed: int, choice: Choice, steps: int, *, start: str = DRAWN, keeps: bool = False
    ) -> WantedRun:
        teacher = (self._source_state(entry, seed) or "") if entry.is_taught else ""
        key = (entry.name, seed, choice, steps, start, keeps, teacher)
        if key not in self._wants:
            lengths = self.experiment.ends(entry)
            if entry.name == SOURCE_SIZE:
                lengths += tuple(source.steps for source in self.experiment.sources if source.steps is not None)
            decays = self.experiment.settings.decays if entry.kind == "scratch" else (choice.decay,)
            self._wants[key] = WantedRun(
                entry=entry,
                seed=seed,
                choice=choice,
                run=self._run(entry, choice, seed, steps, start, teacher),
                keeps=keeps,
                leaves=tuple(
                    self._run(entry, replace(choice, decay=decay), seed, length, start, teacher)
                    for length in lengths
                    for decay in decays
                ),
            )
        return self._wants[key]

    def _tuning_steps(self, entry: ExperimentEntry) -> int:
        share = self.experiment.settings.tuning_fraction
        return self.experiment.steps_of(share) if entry.kind == "scratch" else self.experiment.steps_for(entry, share)

    def _tuning_runs(self, entry: ExperimentEntry) -> list[WantedRun]:
        """Return the tuning runs of an entry, with the first seed."""
        seed = self.experiment.seeds[0]
        if len(self._choices(entry)) < 2:
            return []
        start = self._start(entry, seed)
        if start is None:
            return []
        sources = self._sources(entry, seed)
        steps = self._tuning_steps(entry)
        return [*sources, *(self._want(entry, seed, choice, steps, start=start) for choice in self._choices(entry))]

    def _end_runs(self, entry: ExperimentEntry, seed: int) -> list[WantedRun]:
        """Return the runs of an entry to all of its budgets, as far as their settings and the source are known."""
        choice, start, own = self.choice_of(entry), self._start(entry, seed), self.start_chosen(entry, seed)
        if choice is None or start is None or own is None:
            return []
        *shorter, whole = self.experiment.ends(entry)
        runs = [self._want(own, seed, choice, steps, start=start) for steps in shorter]
        last = self.choice_at_end(entry)
        return runs if last is None else [*runs, self._want(own, seed, last, whole, start=start)]

    def _finalists_of(self, entry: ExperimentEntry) -> list[WantedRun]:
        """Return the runs that choose an entry's learning rate over the whole budget, with the first seed; none until they are known.

        Short runs favour low learning rates for trained weights, so runs from trained weights also try the next higher one, as long as it
        is better. Drawn weights take factors of a rate that scratch has chosen over the whole budget.
        """
        seed = self.experiment.seeds[0]
        choice, start, own = self.choice_of(entry), self._start(entry, seed), self.start_chosen(entry, seed)
        if choice is None or start is None or own is None:
            return []
        rates = [one.learning_rate for one in self._choices(entry)]
        beyond = [rate for rate in rates if rate > choice.learning_rate and entry.begins != "drawn"]
        steps = self.experiment.ends(entry)[-1]
        tried = [self._want(own, seed, choice, steps, start=start)]
        for rate in beyond:
            tried.append(self._want(own, seed, replace(choice, learning_rate=rate), steps, start=start))
            best = self._best([(found.choice, found) for found in tried])
            if best is None or best[0].learning_rate != rate:
                break
        return tried

    # Choices between starts.

    def _start_trials(self, entry: ExperimentEntry, seed: int) -> list[WantedRun]:
        """Return the trials of the starts that an entry chooses from; none without a choice, and until settings and source are known."""
        choice, start = self.choice_of(entry), self._start(entry, seed)
        if choice is None or start is None:
            return []
        steps = self.experiment.trial_steps
        return [self._want(one, seed, choice, steps(one), start=start) for one in entry.starts]

    def start_chosen(self, entry: ExperimentEntry, seed: int) -> ExperimentEntry | None:
        """Return the start that is ahead in its trial, or the entry itself without a choice; None until all trials are done."""
        if not entry.starts:
            return entry
        losses = self.start_losses(entry, seed)
        if self._assumed is not None or losses is None:
            return entry.starts[0] if self._assumed is not None else None
        return min(entry.starts, key=lambda one: _key(losses[one.name]))

    def start_losses(self, entry: ExperimentEntry, seed: int) -> dict[str, float | None] | None:
        """Return the validation losses of the trials of an entry's starts; None until all are done."""
        ends = {one.entry.name: self.end_of(one.run) for one in self._start_trials(entry, seed)}
        if len(ends) < len(entry.starts) or any(end is None for end in ends.values()):
            return None
        return {name: end["validation_loss"] for name, end in ends.items() if end is not None}

    # Sources.

    def _sources(self, entry: ExperimentEntry, seed: int) -> list[WantedRun]:
        """Return the training of the source of an entry; none for a checkpoint or an entry without a source."""
        steps = None if entry.source is None else self.experiment.source(entry.source).steps
        if steps is None:
            return []
        control = self.experiment.entries[SOURCE_SIZE]
        choice = self.choice_of(control)
        return [] if choice is None else [self._want(control, seed, choice, steps, keeps=True)]

    def _source_state(self, entry: ExperimentEntry, seed: int) -> str | None:
        """Return the name of the state of an entry's source; None until it is known."""
        if self.experiment.plan.recipe.source.pretrain is None:
            return CHECKPOINT
        sources = self._sources(entry, seed)
        return self._history(sources[0].run, sources[0].run.steps) if sources else None

    def _start(self, entry: ExperimentEntry, seed: int) -> str | None:
        """Return the name of the weights that the runs of an entry start from; None until it and the entry's teacher are known."""
        state = self._source_state(entry, seed) if entry.source is not None else None
        if entry.source is not None and state is None:
            return None
        if entry.begins == "drawn":
            return DRAWN
        if entry.begins == "source":
            return state
        assert entry.method is not None
        return f"fit-{operator_name(entry.method)}-{seed}-{state}"

    # Settings.

    def _grid(self) -> list[Choice]:
        """Return the settings that scratch tries in its tuning runs, all with the longest decay."""
        return [choice for optimizer in self._optimizers for choice in self._grid_of(optimizer)]

    @property
    def _optimizers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.experiment.settings.optimizers))

    def _grid_of(self, optimizer: str) -> list[Choice]:
        """Return the settings that scratch tries with one optimizer, by ascending learning rate.

        Where the best of several rates is the highest or the lowest one, a rate twice as high or half as low is tried, too.
        """
        settings = self.experiment.settings
        rates = sorted(set(settings.learning_rates))
        for _ in range(MOST_MORE_RATES if len(rates) > 1 else 0):
            best = self._best(self._tuning_of(optimizer, rates))
            if best is None or best[1] is None or best[0].learning_rate not in (rates[0], rates[-1]):
                break
            rates = [rates[0] / 2, *rates] if best[0].learning_rate == rates[0] else [*rates, 2 * rates[-1]]
        return [choice for choice, _ in self._tuning_of(optimizer, rates)]

    def _tuning_of(self, optimizer: str, rates: Iterable[float]) -> list[tuple[Choice, WantedRun]]:
        """Return the tuning runs of scratch with one optimizer."""
        entry, seed, decay = self.experiment.baseline, self.experiment.seeds[0], max(self.experiment.settings.decays)
        choices = [Choice(optimizer=optimizer, learning_rate=rate, decay=decay) for rate in rates]  # type: ignore[arg-type]
        return [(choice, self._want(entry, seed, choice, self._tuning_steps(entry))) for choice in choices]

    def _best_of(self, optimizer: str) -> tuple[Choice, float | None] | None:
        """Return the best settings with one optimizer, and their loss; None until its tuning runs are done."""
        return self._best(self._tuning_of(optimizer, self.rates_of(optimizer)))

    def _finalists(self) -> list[Choice]:
        """Return the settings that scratch tries over the whole budget; none until the tuning runs are done.

        Short runs favour high learning rates. So each optimizer tries its best rate, the best of them also its next lower one, and every
        decay: branches of the same trunk. Where the best of these runs has the lowest rate that its optimizer has tried over the whole
        budget, its next lower one is tried, too.
        """
        if self._assumed is not None:
            assumed = [replace(self._assumed, optimizer=name) for name in self._optimizers]  # type: ignore[arg-type]
            assumed += [replace(self._assumed, learning_rate=self._assumed.learning_rate / 2)]
            return [replace(choice, decay=decay) for choice in assumed for decay in self.experiment.settings.decays]
        best = {optimizer: self._best_of(optimizer) for optimizer in self._optimizers}
        if any(found is None for found in best.values()):
            return []
        ranked = sorted((found for found in best.values() if found is not None), key=lambda pair: _key(pair[1]))
        if ranked[0][1] is None:
            tried = ", ".join(f"{rate:g}" for rate in self.experiment.settings.learning_rates)
            raise RecipeError(
                f"scratch: the loss is not finite at any learning rate tried ({tried})",
                where=self.experiment.plan.recipe.where("compare", "learning_rates"),
                hint="set lower learning rates",
            )
        winner = ranked[0][0]
        chosen = [choice for choice, _ in ranked]
        chosen[1:1] = self._lower(winner)
        decays = sorted(set(self.experiment.settings.decays), reverse=True)
        finalists = [replace(choice, decay=decay) for choice in chosen for decay in decays]
        for _ in range(MOST_MORE_RATES):
            best_at_end = self._best(self._whole(finalists))
            if best_at_end is None or best_at_end[1] is None:
                break
            now = best_at_end[0]
            if now.learning_rate > min(one.learning_rate for one in finalists if one.optimizer == now.optimizer):
                break
            finalists += self._lower(now)
        return finalists

    def _lower(self, choice: Choice) -> list[Choice]:
        """Return the settings with the next lower learning rate: of the rates tried, else half of the rate; none where one rate is set."""
        rates = self.rates_of(choice.optimizer)
        if len(rates) == 1:
            return []
        lower = [rate for rate in rates if rate < choice.learning_rate]
        return [replace(choice, learning_rate=max(lower) if lower else choice.learning_rate / 2)]

    def _whole(self, choices: Iterable[Choice]) -> list[tuple[Choice, WantedRun]]:
        """Return the runs of scratch over the whole budget with some settings."""
        entry, seed = self.experiment.baseline, self.experiment.seeds[0]
        return [(choice, self._want(entry, seed, choice, self.experiment.steps)) for choice in choices]

    def _best(self, tried: list[tuple[Choice, WantedRun]]) -> tuple[Choice, float | None] | None:
        """Return the settings with the lowest validation loss, and the loss; None until all runs are done."""
        found = []
        for choice, wanted in tried:
            end = self.end_of(wanted.run)
            if end is None:
                return None
            found.append((choice, end["validation_loss"]))
        return min(found, key=lambda pair: _key(pair[1]))

    def choice(self) -> Choice | None:
        """Return the settings of scratch, chosen over the whole budget; None until they are known."""
        if self._assumed is not None:
            return self._assumed
        known = self._choices_made.get(SCRATCH)
        if known is not None:
            return known
        finalists = self._finalists()
        if not finalists:
            return None
        best = self._best(self._whole(finalists))
        if best is not None and best[1] is None:
            raise RecipeError(
                f"training from scratch ends with a non-finite loss at a learning rate of {best[0].learning_rate:g}",
                where=self.experiment.plan.recipe.where("compare", "learning_rates"),
                hint="set lower learning rates",
            )
        if best is None:
            return None
        self._choices_made[SCRATCH] = best[0]
        return best[0]

    def _choices(self, entry: ExperimentEntry) -> list[Choice]:
        base = self.choice()
        if base is None:
            return []
        if entry.kind == "scratch":
            return [base]
        if entry.method is not None:
            base = self._with_own_settings(base, entry.method)
        factors = sorted(set(self.experiment.settings.rate_factors))
        return [replace(base, learning_rate=base.learning_rate * factor) for factor in factors]

    def _with_own_settings(self, base: Choice, method: Method) -> Choice:
        """Return scratch's settings with those that a method has of its own. Its optimizer comes with scratch's best rate for it."""
        if method.optimizer not in (None, base.optimizer):
            finalists = [found for found in self._finalists() if found.optimizer == method.optimizer]
            # Scratch has chosen, so all of them are done. Where costs are estimated, none is.
            best = None if self._assumed is not None else self._best(self._whole(finalists))
            base = best[0] if best is not None else replace(finalists[0], decay=base.decay)
        return base if method.decay is None else replace(base, decay=method.decay)

    def choice_of(self, entry: ExperimentEntry) -> Choice | None:
        """Return the settings of an entry; None until they are known."""
        known = self._choices_made.get(entry.name)
        if known is not None:
            return known
        choices = self._choices(entry)
        if len(choices) < 2 or self._assumed is not None:
            # Where costs are estimated, the choice for which most runs follow.
            return choices[0] if choices else None
        tried = [
            (found.choice, found) for found in self._tuning_runs(entry) if found.entry is entry and not found.keeps
        ]
        best = self._best(tried) if tried else None
        if best is None:
            return None
        self._choices_made[entry.name] = best[0]
        return best[0]

    def choice_at_end(self, entry: ExperimentEntry) -> Choice | None:
        """Return the settings of an entry's longest runs, chosen over the whole budget; None until they are known."""
        if self._assumed is not None:
            return self.choice_of(entry)
        known = self._end_choices_made.get(entry.name)
        if known is not None:
            return known
        tried = self._finalists_of(entry)
        best = self._best([(found.choice, found) for found in tried]) if tried else None
        if best is None:
            return None
        self._end_choices_made[entry.name] = best[0]
        return best[0]

    def rates_of(self, optimizer: str) -> list[float]:
        """Return the learning rates that scratch has tried with an optimizer, ascending."""
        return [choice.learning_rate for choice in self._grid_of(optimizer)]

    # Results.

    def end_of(self, run: Run) -> dict[str, Any] | None:
        """Return the result of the last piece of a run; None until it is done."""
        return self.results.get(self._history(run, run.steps))

    def _curve_of(self, run: Run, jobs: Iterable[TrainingJob]) -> list[dict[str, Any]]:
        """Return the points of a finished run at regular steps and at its end.

        A piece has more points where a stage of the run that trained it ends. Which run that was depends on the order of the jobs. A piece
        that was cut after it was done overlaps with the piece before it.
        """
        every = self.experiment.evaluate_every
        points = {point["step"]: point for job in jobs for point in self.results[job.name]["curve"]}
        return [points[step] for step in sorted(points) if step % every == 0 or step == run.steps]

    def curve_to(self, job: TrainingJob) -> list[dict[str, Any]]:
        """Return the points of the run that a finished job ends."""
        for found, jobs in self._planned():
            if jobs and jobs[-1].name == job.name:
                return self._curve_of(found.run, [piece for piece in jobs if piece.name in self.results])
        return []

    def finished_runs(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return entry -> seed -> `ends` (results of the runs to each budget, ascending) and `curve` (points of the longest run)."""
        pieces = {id(found.run): jobs for found, jobs in self._planned()}
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for entry in self.experiment.entries.values():
            fitted = self.experiment.extra_flops(entry)
            for seed in self.experiment.seeds:
                runs = self._end_runs(entry, seed)
                ends = []
                for one in runs:
                    end = self.end_of(one.run)
                    assert end is not None, "every run is done"
                    learned = {"steps": one.run.steps, "flops": end["flops"] + fitted}
                    ends.append({**end, **learned, "learning_rate": one.choice.learning_rate})
                points = self._curve_of(runs[-1].run, pieces[id(runs[-1].run)])
                curve = [{**point, "flops": point["flops"] + fitted} for point in points]
                found.setdefault(entry.name, {})[seed] = {"ends": ends, "curve": curve}
        return found

    def planned_results(self) -> dict[str, dict[str, Any]]:
        """Return the results of all jobs that the finished runs consist of, by name.

        They do not depend on the order of the jobs: a piece has points of its own steps alone, at regular steps and at ends of runs.
        """
        every = self.experiment.evaluate_every
        found: dict[str, dict[str, Any]] = {}
        for one, jobs in self._planned():
            for name in (one.run.start, one.run.teacher):
                if name in self.results:
                    found.setdefault(name, self.results[name])
            for job in jobs:
                result = self.results[job.name]
                points = [
                    point
                    for point in result["curve"]
                    if job.first <= point["step"] - bool(job.first)
                    and (point["step"] % every == 0 or (job.ends and point["step"] == job.last))
                ]
                found[job.name] = {**result, "curve": points}
        return dict(sorted(found.items()))

    def tried(self) -> list[dict[str, Any]]:
        """Return every run that tuned scratch: its settings, steps and losses."""
        entry, seed = self.experiment.baseline, self.experiment.seeds[0]
        found = []
        for choice, steps in [
            *((choice, self._tuning_steps(entry)) for choice in self._grid()),
            *((choice, self.experiment.steps) for choice in self._finalists()),
        ]:
            end = self.end_of(self._want(entry, seed, choice, steps).run)
            assert end is not None, "every run is done"
            found.append(
                {
                    "optimizer": choice.optimizer,
                    "learning_rate": choice.learning_rate,
                    "decay": choice.decay,
                    "steps": steps,
                    "validation_loss": end["validation_loss"],
                    "loss": end["loss"],
                }
            )
        return found

    def tried_by(self, entry: ExperimentEntry) -> list[dict[str, Any]]:
        """Return the tuning runs of an entry other than scratch, short ones and whole ones: settings, steps and losses."""
        found = []
        whole = self._finalists_of(entry)
        for one in (*self._tuning_runs(entry), *(whole if len(whole) > 1 else ())):
            end = self.end_of(one.run)
            if not one.keeps and end is not None:
                found.append(
                    {
                        "learning_rate": one.choice.learning_rate,
                        "steps": one.run.steps,
                        "validation_loss": end["validation_loss"],
                    }
                )
        return found

    def strengths(self) -> list[dict[str, Any]]:
        """Return the sources: steps, FLOPs, losses by seed."""
        found = []
        for source in self.experiment.sources:
            ends = {}
            for seed in self.experiment.seeds:
                entry = next((one for one in self.experiment.entries.values() if one.source == source.name), None)
                if source.steps is None:
                    ends[str(seed)] = self.results[CHECKPOINT]
                elif entry is not None:
                    end = self.end_of(self._sources(entry, seed)[0].run)
                    assert end is not None, "every run is done"
                    ends[str(seed)] = {key: end[key] for key in ("loss", "accuracy")}
            found.append({"name": source.name, "steps": source.steps, "flops": source.flops, "seeds": ends})
        return found

    def weakest_source(self) -> str | None:
        """Return the name of the state of the weakest source with the first seed; None if no entry uses it."""
        weakest, seed = self.experiment.sources[0].name, self.experiment.seeds[0]
        entry = next((one for one in self.experiment.entries.values() if one.source == weakest), None)
        return None if entry is None else self._source_state(entry, seed)

    def needed_states(self) -> set[str]:
        """Return the names of the states that a job may still start from, and of the trained sources.

        As long as runs may be wanted that are not wanted yet, those may leave any run.
        """
        kept = {CHECKPOINT}
        is_open = self._is_open()
        for found, jobs in self._planned():
            left = [job for job in jobs if job.name not in self.results]
            kept |= {job.parent for job in (jobs if is_open else left)}
            if found.keeps:
                kept.add(jobs[-1].name)
            if left and found.run.teacher:
                kept.add(found.run.teacher)
        return kept - {DRAWN}

    def unfinished(self) -> set[str]:
        """Return the names of the fits and pieces of the wanted runs that have no result."""
        wanted = {name for found, jobs in self._planned() for name in (found.run.start, *(job.name for job in jobs))}
        return wanted - self.results.keys() - {DRAWN}

    def _is_open(self) -> bool:
        """Return whether more runs may be wanted than are wanted now: as long as the settings of an entry are not chosen."""
        entries = self.experiment.entries.values()
        return any(self.choice_of(entry) is None or self.choice_at_end(entry) is None for entry in entries)


def operator_name(method: Method) -> str:
    """Return a name for a method's operator; methods with the same name share one operator."""
    rates = f"{method.fit_rates.width_rate:g}-{method.fit_rates.depth_rate:g}" if method.fit_rates else "recipe"
    return f"{method.width}-{method.depth}-{method.tie or 'untied'}-{rates}"


def _key(loss: float | None) -> tuple[bool, float]:
    """Return a sort key: a non-finite loss is the worst."""
    return (loss is None, loss if loss is not None else 0.0)

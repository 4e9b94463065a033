"""Try candidates for a short while, in rounds: after each round the better half of the starts goes on, on the trunks that they have.

Input: a conversion plan, the recipe's `choose` and `compare` sections.
Output: an experiment whose budgets are the rounds (`Trials`), its scheduler (`TrialScheduler`), and what the trials found, as
`comparison.projection` takes it.

Candidates of one kind differ in how the same model begins, and that shows early: their rank after some hundred steps is close to the final
one, and their rank at step 0 is not (landscape-aware growing, arXiv:2406.02469). Candidates of different kinds are not halved against
each other: short trials favour small models and trained starts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, Final, Literal

from ligo_convert.comparison.experiment import (
    HALF_DEPTH,
    Choice,
    Experiment,
    ExperimentEntry,
    default_starts,
    grown_axes,
    grown_part_way,
    make_experiment,
    trained_on,
)
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.projection import Candidate, Leg, TrialEnd
from ligo_convert.comparison.scheduler import Scheduler, WantedRun
from ligo_convert.conversion.plan import Plan
from ligo_convert.errors import RecipeError
from ligo_convert.families.flops import step_flops
from ligo_convert.families.notation import size_keys
from ligo_convert.recipes.schema import ChooseConfig, CompareConfig
from ligo_convert.training.step_costs import with_layers

Kind = Literal[
    "scratch",
    "smaller",
    "trained otherwise",
    "trained on",
    "part way",
    "grown at once",
    "grown later",
    "grown on the way",
]

TRAINED_ON: Final = "source, trained on"

# Kinds whose candidates share a learning rate: the same model begins differently.
TUNED_TOGETHER: Final = ("part way", "grown at once", "grown later", "grown on the way")

# Kinds that are never halved: their candidates are models of different sizes, or show how the loss falls with the budget.
KEPT: Final = ("scratch", "smaller", "trained on", "part way")

HALF_WAY: Final = "half-way"

PARTS: Final = (
    Fraction(1, 2),
    Fraction(1, 3),
    Fraction(2, 3),
)  # of the growth, for a size between; the first that gives whole sizes

LONGEST: Final = 0.04  # share of the budget for the longest trial of scratch

ENOUGH: Final = 300  # steps that scratch's longest trial has at least, as far as MOST allows

MOST: Final = 0.32  # share of the budget that the longest trial never exceeds by default

# Exponent of the tokens with which the best learning rate of a model from drawn weights falls (docs/development/log.md). That it falls by a
# power is a finding of Bjorck et al. (arXiv:2409.19913).
RATE_POWER: Final = 1 / 3

LATER: Final = (0.25, 0.5)  # shares of the steps after which a source at hand grows

ON_THE_WAY: Final = (0.2, 0.4, 0.6)  # shares of the steps after which a drawn model grows


@dataclass(frozen=True, kw_only=True)
class Trials(Experiment):
    """An experiment whose runs are trials. Its `steps` are the budget that the choice is for; nothing is trained that long.

    Attributes:
        rounds: costs of the trials, as shares of the budget, ascending.
        kinds: kind of every entry.
        source_factors: learning rates that starts from a source try, as multiples of scratch's.
    """

    rounds: tuple[float, ...] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    source_factors: tuple[float, ...] = (1.0,)

    @property
    def scratch_fractions(self) -> tuple[float, ...]:
        return self.rounds

    @property
    def budget_fractions(self) -> tuple[float, ...]:
        return self.rounds

    def steps_of_round(self, entry: ExperimentEntry, number: int) -> int:
        """Return the steps of an entry's trial: what the round pays for, from the growth of the source on."""
        share = self.rounds[number]
        return self.steps_of(share) if entry.kind == "scratch" else self.steps_for(entry, share)

    def budget_tokens(self, entry: ExperimentEntry) -> float:
        """Return the tokens that the budget pays for. A source that is trained for this purpose is paid from it."""
        charged = 0.0 if self.plan.recipe.source.pretrain is None else (self.source_flops(entry) or 0.0)
        left = 1 - charged / self.scratch_flops
        steps = self.steps if entry.kind == "scratch" else (self.steps_for(entry, left) if left > 0 else 0)
        return float(steps * self.tokens)

    def legs(self, entry: ExperimentEntry) -> tuple[Leg, ...]:
        """Return the models that an entry trains, with their shares of its tokens."""
        steps = max(1000, *(self.steps_of_round(entry, number) for number in range(len(self.rounds))))
        run = self.make_run(entry, _ANY, seed=0, steps=steps)
        found = [
            Leg(size=self._size(stage.config), share=len(span) / steps)
            for stage, span in zip(run.stages, run.spans, strict=True)
        ]
        if self.kinds[entry.name] == "trained otherwise":
            return (Leg(size=found[-1].size, share=1.0),)
        if entry.begins != "drawn" and found[0].size != self._size(self.plan.start.source):
            found.insert(0, Leg(size=self._size(self.plan.start.source), share=0.0))
        return tuple(found)

    def _size(self, config: Mapping[str, Any]) -> float:
        return step_flops(self.family, config, tokens=self.tokens, sequence_length=self.length) / self.tokens


# Setting -> key of `compare` that holds it for all trials.
_SHARED: Final = {"optimizer": "optimizers", "decay": "decays", "warmup": "warmup_fraction"}

_ANY = Choice(optimizer="adamw", learning_rate=0.0, decay=0.0)


def make_trials(
    plan: Plan, *, candidates: Sequence[str] | None, steps: int | None, seeds: Sequence[int] | None
) -> Trials:
    """Return the candidates and their rounds.

    Args:
        plan: conversion plan of the recipe.
        candidates: method names; None for `choose.candidates`, and without that for `default_candidates`.
        steps: the budget; None for `choose.steps`, and without that for `compare.steps`.
        seeds: None for `choose.seeds`.

    Raises:
        RecipeError: as `make_experiment`; the target is as large as the source.
    """
    recipe = plan.recipe
    settings = recipe.choose or ChooseConfig()
    compare = recipe.compare or CompareConfig()
    budget = steps or settings.steps or compare.steps
    if budget is None:
        raise RecipeError(
            "the budget that the choice is for is not set",
            where=recipe.where("choose"),
            hint="set choose.steps, the steps of training from scratch, or pass --steps N",
        )
    if not any(grown_axes(plan)):
        raise RecipeError(
            "the target is as large as the source, so there is nothing to choose", where=recipe.where("target")
        )
    rounds = tuple(sorted(set(settings.shares or default_rounds(budget))))
    changes = {"tuning_fraction": rounds[0], "source_strengths": compare.source_strengths[:1], "steps": budget}
    if "rate_factors" not in compare.model_fields_set:
        # Every rate that is tried costs trials of every kind, and what they differ by is less than what longer trials tell.
        changes["rate_factors"] = [1.0]
    compare = compare.model_copy(update=changes)
    # The trials take what the recipe says of comparisons, but for their lengths.
    plan = replace(plan, recipe=recipe.model_copy(update={"compare": compare}))
    named = list(candidates or settings.candidates or ())
    made = make_experiment(
        plan, methods=named or _applicable(plan, budget), steps=budget, seeds=seeds or settings.seeds
    )
    for name, entry in made.entries.items():
        own = entry.method.own_settings if entry.method is not None else ()
        if own:
            raise RecipeError(
                f"choose.candidates: {name}: the {own[0]} of all trials is the one that scratch finds",
                where="--candidates" if candidates else recipe.where("choose"),
                hint=f"remove the option here, and set compare.{_SHARED[own[0]]}; `compare` takes the option",
            )
        if entry.starts:
            raise RecipeError(
                f"{name} makes a choice of its own; name its starts instead", where=recipe.where("choose")
            )
    entries, kinds = _entries(plan, made)
    return Trials(
        **{one.name: getattr(made, one.name) for one in fields(made) if one.name not in ("entries", "_known")},
        entries=entries,
        rounds=rounds,
        kinds=kinds,
        source_factors=tuple(sorted(set(settings.source_rate_factors))),
    )


def default_rounds(steps: int) -> tuple[float, ...]:
    """Return the shares of the trials for a budget: the longest trial has enough steps, as far as its cost allows."""
    longest = min(max(LONGEST, ENOUGH / steps), MOST)
    return (longest / 2, longest)


def default_candidates(plan: Plan) -> list[str]:
    """Return the methods that are tried where the recipe names none.

    A source at hand grows at once by one of several starts, or later. Without a source, the model grows on the way.
    """
    starts = ["/".join(pair) for pair in default_starts(plan)]
    if plan.recipe.source.pretrain is None:
        return starts + [f"{starts[0]}@{share:g}+source" for share in LATER]
    ways = [f"{starts[0]}@{share:g}" for share in ON_THE_WAY] + [f"{starts[1]}@{ON_THE_WAY[1]:g}"]
    return ways + (["g-stack", "progressive"] if grown_axes(plan)[1] else [])


def _applicable(plan: Plan, budget: int) -> list[str]:
    """Return the default candidates that apply to this source and target."""
    found = []
    for name in default_candidates(plan):
        try:
            make_experiment(plan, methods=[name], steps=budget)
        except RecipeError:
            continue
        found.append(name)
    return found


def _entries(plan: Plan, made: Experiment) -> tuple[dict[str, ExperimentEntry], dict[str, Kind]]:
    """Return the entries with the alternatives to growing into the target, and their kinds."""
    entries = dict(made.entries)
    at_hand = plan.recipe.source.pretrain is None
    if at_hand:
        # The source's size from drawn weights stays: it shows how the loss falls with size. Half of the layers would add little to it.
        entries.pop(HALF_DEPTH, None)
        entries[TRAINED_ON] = trained_on(plan, TRAINED_ON, made.sources[0].name)
        for name, asked in _part_way(plan).items():
            entries[name] = grown_part_way(plan, name, asked, made.sources[0].name)
    return entries, {name: _kind(entry) for name, entry in entries.items()}


def _part_way(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return targets between source and target: name -> config keys over the source's.

    A list with one entry per layer goes with the layers. Where only widths grow, the source's list stays.
    """
    family, (wider, deeper) = plan.family, grown_axes(plan)
    keys = {key for axis in family.depth_axes for key in size_keys(family.axes[axis])} | set(family.per_layer_keys)
    deep = {key: value for key, value in plan.asked.items() if key in keys}
    wide = {key: value for key, value in plan.asked.items() if key not in keys}
    if wider and deeper:
        return {"only deeper": deep, "only wider": wide}
    half = _half_way(plan)
    return {HALF_WAY: half} if half is not None else {}


def _half_way(plan: Plan) -> dict[str, Any] | None:
    """Return the target's keys with every size between the source's and the target's; None if no share of the growth gives whole ones.

    A list with one entry per layer is that of the target's lowest layers.
    """
    family = plan.family
    old, lists = family.complete(plan.start.source), set(family.per_layer_keys)
    axis = family.depth_axes[0]
    depth, layers = size_keys(family.axes[axis])[0], family.sizes(plan.start.source)[axis]
    for part in PARTS:
        found = {key: _between(old.get(key), value, part) for key, value in plan.asked.items() if key not in lists}
        if any(value is None for value in found.values()):
            continue
        cut = with_layers(family, plan.asked, found.get(depth, layers))
        found |= {key: cut[key] for key in plan.asked if key in lists}
        if _grows(plan, found):
            return found
    return None


def _between(old: Any, new: Any, part: Fraction) -> Any:
    """Return the size a part of the way between two; None if it is not whole. What is no size, or does not change, is the target's."""
    if old == new or isinstance(new, bool | str) or new is None:
        return new
    if not (isinstance(old, int) and isinstance(new, int)):
        return None
    found = old + part * (new - old)
    return int(found) if found.denominator == 1 else None


def _grows(plan: Plan, asked: Mapping[str, Any]) -> bool:
    """Return whether the source grows into these sizes by the nearest start, and into others than its own and the target's."""
    family = plan.family
    try:
        entry = grown_part_way(plan, HALF_WAY, dict(asked), "")
    except RecipeError:
        return False
    sizes = family.sizes(entry.planned[0].stage.config)
    return sizes not in (family.sizes(plan.start.source), family.sizes(plan.start.target))


def _kind(entry: ExperimentEntry) -> Kind:
    if entry.kind == "scratch":
        return "scratch"
    if entry.kind == "control":
        if entry.begins == "drawn":
            return "smaller"
        return "part way" if entry.planned[0].stage.growth is not None else "trained on"
    assert entry.method is not None
    if entry.begins == "drawn":
        grows = any(part.stage.growth is not None for part in entry.planned)
        return "grown on the way" if grows else "trained otherwise"
    later = entry.method.grows_at is not None or entry.method.follows_schedule
    return "grown later" if later else "grown at once"


class TrialScheduler(Scheduler):
    """Chooses the next job of the trials."""

    experiment: Trials

    def __init__(self, experiment: Experiment, results: Mapping[str, dict[str, Any]]) -> None:
        super().__init__(experiment, results)
        # What is known of finished rounds does not change.
        self._known_trials: dict[tuple[str, int], dict[str, Any]] = {}
        self._known_survivors: dict[int, list[str]] = {}
        self._known_choices: dict[tuple[str, int], Choice] = {}

    def wanted(self) -> list[WantedRun]:
        experiment = self.experiment
        baseline, first = experiment.baseline, experiment.seeds[0]
        found = [self._want(baseline, first, choice, self._tuning_steps(baseline)) for choice in self._grid()]
        for number in range(len(experiment.rounds)):
            if self.choice() is None or (names := self.survivors(number)) is None:
                break
            for name in names:
                entry = experiment.entries[name]
                found += self._tuning_runs(entry) if number == 0 else self._rivals(entry, number)
                for seed in self.seeds_of(number):
                    found += [*self._sources(entry, seed), *self._trials(entry, seed, number)]
        return [*found, *(run for _, run in self._decay_trials())]

    def forget(self, name: str) -> None:
        super().forget(name)
        self._known_trials.clear()
        self._known_survivors.clear()
        self._known_choices.clear()

    def _is_open(self) -> bool:
        """Return whether more runs may be wanted: until it is known who takes part in the last round."""
        last = len(self.experiment.rounds) - 1
        if super()._is_open() or (names := self.survivors(last)) is None:
            return True
        return any(self.choice_at(self.experiment.entries[name], last) is None for name in names)

    def choice_at_end(self, entry: ExperimentEntry) -> Choice | None:
        """Return the settings of an entry from its tuning runs: trials are not trained over the whole budget, and choose again by round."""
        return self.choice_of(entry)

    def choice(self) -> Choice | None:
        """Return the settings of scratch, chosen in the first round; None until they are known."""
        if self._assumed is not None:
            return self._assumed
        found = [self._best_of(optimizer) for optimizer in self._optimizers]
        known = [pair for pair in found if pair is not None]
        if len(known) < len(found):
            return None
        choice, loss = min(known, key=lambda pair: (pair[1] is None, pair[1] or 0.0))
        if loss is None:
            raise RecipeError(
                "scratch: the loss is not finite at any learning rate tried",
                where=self.experiment.plan.recipe.where("compare", "learning_rates"),
                hint="set lower learning rates",
            )
        return choice

    # Settings.

    def _choices(self, entry: ExperimentEntry) -> list[Choice]:
        """Return the settings that an entry tries first. A source's rate has decayed, and a rising one undoes what it learned."""
        base = self.choice()
        if base is None or entry.begins == "drawn":
            return super()._choices(entry)
        return [replace(base, learning_rate=base.learning_rate * factor) for factor in self.experiment.source_factors]

    def _tuning_runs(self, entry: ExperimentEntry) -> list[WantedRun]:
        """Return the runs that choose settings in the first round: of the first entry of a kind, where the kind shares them."""
        return super()._tuning_runs(entry) if self._first_of(entry, self.experiment.entries) is entry else []

    def choice_of(self, entry: ExperimentEntry) -> Choice | None:
        return super().choice_of(self._first_of(entry, self.experiment.entries))

    def _first_of(self, entry: ExperimentEntry, names: Iterable[str]) -> ExperimentEntry:
        kinds = self.experiment.kinds
        if kinds[entry.name] not in TUNED_TOGETHER:
            return entry
        return self.experiment.entries[next(name for name in names if kinds[name] == kinds[entry.name])]

    def choice_at(self, entry: ExperimentEntry, number: int) -> Choice | None:
        """Return the settings of an entry in a round; None until they are known.

        Longer trials favour lower rates for drawn weights, and higher ones for what a source has learned. So in every later round scratch
        tries its next lower rate, which all others from drawn weights follow, and every kind from a source its next higher one.
        """
        if number == 0 or self._assumed is not None:
            return self.choice_of(entry)
        key = (entry.name, number)
        if key not in self._known_choices:
            found = self._choose_again(entry, number)
            if found is None:
                return None
            self._known_choices[key] = found
        return self._known_choices[key]

    def _choose_again(self, entry: ExperimentEntry, number: int) -> Choice | None:
        before = self.choice_at(entry, number - 1)
        if before is None:
            return None
        if entry.begins == "drawn" and entry.kind != "scratch":
            old, new = (self.choice_at(self.experiment.baseline, one) for one in (number - 1, number))
            if old is None or new is None:
                return None
            return replace(before, learning_rate=before.learning_rate * new.learning_rate / old.learning_rate)
        tried = self._rivals_of(entry, number)
        if not tried:
            return before
        best = self._best([(one.choice, one) for one in tried])
        return None if best is None else best[0]

    def _rivals(self, entry: ExperimentEntry, number: int) -> list[WantedRun]:
        """Return the trials that decide the settings of an entry in a later round, if it tries them itself."""
        first = self._first_of(entry, self.survivors(number) or ())
        return self._rivals_of(entry, number) if first is entry else []

    def _rivals_of(self, entry: ExperimentEntry, number: int) -> list[WantedRun]:
        """Return the trials, with the settings before and with a rival, that decide an entry's settings in a later round."""
        if entry.begins == "drawn" and entry.kind != "scratch":
            return []
        first, seed = self._first_of(entry, self.survivors(number) or ()), self.experiment.seeds[0]
        before, start = self.choice_at(first, number - 1), self._start(first, seed)
        if before is None or start is None:
            return []
        rival = self._next_rate(first, before)
        if rival is None:
            return []
        steps = self.experiment.steps_of_round(first, number)
        return [
            self._want(first, seed, replace(before, learning_rate=rate), steps, start=start)
            for rate in (before.learning_rate, rival)
        ]

    def _next_rate(self, entry: ExperimentEntry, choice: Choice) -> float | None:
        """Return the rate that longer training may favour: scratch's next lower one, a source's next higher one; None beyond the lists."""
        if entry.kind == "scratch":
            lower = [rate for rate in self.rates_of(choice.optimizer) if rate < choice.learning_rate * (1 - 1e-6)]
            return max(lower, default=None)
        higher = [one.learning_rate for one in self._choices(entry)]
        return min((rate for rate in higher if rate > choice.learning_rate * (1 + 1e-6)), default=None)

    def _decay_trials(self) -> list[tuple[float, WantedRun]]:
        """Return scratch's trials with each of the decays, at the length of the last round; none until its rate there is known."""
        last = len(self.experiment.rounds) - 1
        decays = sorted(set(self.experiment.settings.decays), reverse=True)
        if len(decays) < 2 or self.choice() is None or self.survivors(last) is None:
            return []
        entry, seed = self.experiment.baseline, self.experiment.seeds[0]
        choice = self.choice_at(entry, last)
        if choice is None:
            return []
        steps = self.experiment.steps_of_round(entry, last)
        return [(decay, self._want(entry, seed, replace(choice, decay=decay), steps)) for decay in decays]

    def advised(self, entry: ExperimentEntry) -> Choice:
        """Return the settings that an entry is advised to be trained with over the whole budget, once every trial is done.

        Drawn weights take the decay that was best for scratch in the last round, and a rate that is lower by a power of the tokens. Starts
        from a source keep the settings of their trials.
        """
        last = max(0, len(self.ends_of(entry.name)) - 1)
        choice = self.choice_at(entry, last)
        assert choice is not None, "every trial is done"
        if entry.begins != "drawn":
            return choice
        tokens = self.experiment.steps_of_round(entry, last) * self.experiment.tokens
        longer = max(1.0, self.experiment.budget_tokens(entry) / tokens)
        # More digits would claim more than the power is known for.
        choice = replace(choice, learning_rate=float(f"{choice.learning_rate * longer**-RATE_POWER:.2g}"))
        tried = self._decay_trials()
        if not tried:
            return choice
        best = self._best([(replace(choice, decay=decay), run) for decay, run in tried])
        assert best is not None, "every trial is done"
        return best[0]

    # Rounds.

    def seeds_of(self, number: int) -> tuple[int, ...]:
        """Return the seeds of a round: all in the last one, else the first."""
        seeds = self.experiment.seeds
        return seeds if number == len(self.experiment.rounds) - 1 else seeds[:1]

    def survivors(self, number: int) -> list[str] | None:
        """Return the entries that take part in a round; None until the round before is done."""
        if number == 0:
            return list(self.experiment.entries)
        if number not in self._known_survivors:
            names = self.survivors(number - 1)
            if names is None or (self._assumed is None and any(self.trial(name, number - 1) is None for name in names)):
                return None
            self._known_survivors[number] = self._better_half(names, number - 1)
        return self._known_survivors[number]

    def _better_half(self, names: Sequence[str], number: int) -> list[str]:
        """Return who goes on after a round: the better half of every kind; who was not finite never does."""
        kinds, kept = self.experiment.kinds, set[str]()
        for kind in dict.fromkeys(kinds[name] for name in names):
            group = [name for name in names if kinds[name] == kind]
            if self._assumed is None:
                group = sorted(
                    (name for name in group if self._loss(name, number) is not None or name == SCRATCH),
                    key=lambda name: self._loss(name, number) or 0.0,
                )
            kept |= set(group if kind in KEPT else group[: math.ceil(len(group) / 2)])
        return [name for name in names if name in kept]

    def _loss(self, name: str, number: int) -> float | None:
        found = self.trial(name, number)
        return None if found is None else found["loss"]

    def _trials(self, entry: ExperimentEntry, seed: int, number: int) -> list[WantedRun]:
        choice, start = self.choice_at(entry, number), self._start(entry, seed)
        if choice is None or start is None:
            return []
        steps = self.experiment.steps_of_round(entry, number)
        return [self._want(entry, seed, choice, steps, start=start)]

    def trial(self, name: str, number: int) -> dict[str, Any] | None:
        """Return the trial of an entry in a round, over its seeds: steps, FLOPs, losses; None until it is done."""
        if (name, number) not in self._known_trials:
            found = self._read_trial(name, number)
            if found is None:
                return None
            self._known_trials[name, number] = found
        return self._known_trials[name, number]

    def _read_trial(self, name: str, number: int) -> dict[str, Any] | None:
        entry, ends = self.experiment.entries[name], []
        for seed in self.seeds_of(number):
            runs = self._trials(entry, seed, number)
            end = self.end_of(runs[0].run) if runs else None
            if end is None:
                return None
            ends.append(end)
        losses = [end["loss"] for end in ends]
        known = [loss for loss in losses if loss is not None]
        whole = len(known) == len(losses)
        return {
            "share": self.experiment.rounds[number],
            "steps": self.experiment.steps_of_round(entry, number),
            "flops": statistics.fmean(end["flops"] for end in ends) + self.experiment.extra_flops(entry),
            "loss": round(statistics.fmean(known), 6) if whole else None,
            "std": round(statistics.stdev(known), 6) if whole and len(known) > 1 else None,
            "seeds": len(ends),
        }

    def candidates(self) -> dict[str, Candidate]:
        """Return what the trials found, as `projection.project` takes it. A candidate without a finite trial is left out."""
        experiment = self.experiment
        found = {}
        for name, entry in experiment.entries.items():
            tokens = experiment.budget_tokens(entry)
            ends = [
                TrialEnd(tokens=float(end["steps"] * experiment.tokens), loss=end["loss"], seeds=end["seeds"])
                for end in self.ends_of(name)
                if end["loss"] is not None
            ]
            if ends and tokens > 0:
                found[name] = Candidate(
                    legs=experiment.legs(entry),
                    start=self.source_loss(entry),
                    ends=tuple(ends),
                    tokens=tokens,
                    plain=experiment.kinds[name] != "trained otherwise",
                )
        return found

    def ends_of(self, name: str) -> list[dict[str, Any]]:
        """Return the trials of an entry, round by round, as far as it came."""
        found = []
        for number in range(len(self.experiment.rounds)):
            if name not in (self.survivors(number) or ()):
                break
            end = self.trial(name, number)
            assert end is not None, "every trial is done"
            found.append(end)
        return found

    def source_loss(self, entry: ExperimentEntry) -> float | None:
        """Return the loss of the source that an entry starts from, with the first seed; None for drawn weights."""
        if entry.begins == "drawn":
            return None
        state = self._source_state(entry, self.experiment.seeds[0])
        loss: float | None = self.results[state]["loss"] if state is not None else None
        return loss

    def frequency_loss(self) -> float | None:
        """Return the loss of knowing no more than how frequent each answer is; None until it is known."""
        found: float | None = self.results.get("probe", {}).get("frequency_loss")
        return found

    def spent(self) -> dict[str, float]:
        """Return the FLOPs of all trials, tuning and fits included, and those of sources that were trained: what is shared counts once."""
        wanted = self.wanted()
        cuts = self._cuts(wanted)
        source = {job.name: job.flops for one in wanted if one.keeps for job in self._pieces(one, cuts)}
        pieces = {job.name: job.flops for one in wanted if not one.keeps for job in self._pieces(one, cuts)}
        fits = {one.run.start: self.experiment.fit_flops(one.entry) for one in wanted}
        return {
            "trials": sum(pieces.values()) + sum(fits.values()),
            "source": sum(flops for name, flops in source.items() if name not in pieces),
        }


def noise_of(ends: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the spread of a trial's loss over seeds, pooled over candidates; None with one seed."""
    spreads = [end["std"] for end in ends if end["std"] is not None]
    return math.sqrt(statistics.fmean(spread**2 for spread in spreads)) if spreads else None

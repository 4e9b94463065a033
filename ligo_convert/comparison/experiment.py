"""Plan a comparison: which entries take part, what each run costs, and which conditions make the comparison unfair.

Input: a conversion plan, the recipe's `compare` section, method names.
Output: an `Experiment` of plain values, which makes the runs of `training.runs`. This module does not import torch: costs are known before
anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from ligo_convert.comparison.methods import METHODS, SCHEDULE, SCRATCH, Method, method_named, methods_named
from ligo_convert.comparison.strategies import STRATEGIES, Part
from ligo_convert.conversion.growth_schedule import planned_stages
from ligo_convert.conversion.plan import DEFAULT_KEYING, Plan, another_start
from ligo_convert.data.token_store import id_dtype
from ligo_convert.errors import RecipeError
from ligo_convert.families.flops import fit_flops, forward_flops
from ligo_convert.families.notation import size_keys
from ligo_convert.families.schema import WITHOUT_LOSS, Config, Family
from ligo_convert.growth.growth_plan import GrowthPlan
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.new_parameters import added_parts
from ligo_convert.growth.operator import Keying
from ligo_convert.growth.ring import ring_flops
from ligo_convert.recipes.schema import CompareConfig
from ligo_convert.training.dropping import Dropping
from ligo_convert.training.runs import (
    DRAWN,
    Growth,
    OptimizerSettings,
    PlannedStage,
    Run,
    Stage,
    growth_plan_of,
    stages_of,
)
from ligo_convert.training.step_costs import run_flops, with_layers

LEAST_STEPS = (
    8  # fewest steps of any run, because a strategy has up to five stages; a schedule with more stages takes more
)

TOKENS_PER_PARAMETER = 20.0  # minimum for scratch without a warning, arXiv:2203.15556

SOURCE_SIZE: Final = "source-size"

HALF_DEPTH: Final = "half-depth"

# Name of the order in which a target that starts from a trained source reads the data. The source has read it in the order of the others.
SECOND_ORDER = "grown"

Kind = Literal["scratch", "control", "method"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The settings that tuning chooses.

    Attributes:
        optimizer: name of the optimizer.
        learning_rate: peak learning rate.
        decay: share of a run in which the rate falls to zero.
    """

    optimizer: Literal["adamw", "muon"]
    learning_rate: float
    decay: float


@dataclass(frozen=True, kw_only=True)
class ExperimentEntry:
    """What is trained under one name.

    Attributes:
        name: the name in the results.
        kind: `scratch`, the baseline; a `control`, a smaller model that never grows; a `method`.
        method: the method; None for a control.
        planned: the stages of its runs.
        begins: `drawn` weights, the trained `source`, or the source grown by a `learned` operator.
        source: name of the source strength that it starts from or is taught by; None for none.
        growth: growth plan of the start, or of the last stage of a run that grows on the way; None for none.
        added: names of the tensors that contain added entries, if only those are trained; else empty.
        asked: config keys in which a control differs from the target.
        starts: the entries that a choice is made between; the entry itself is the first of them. Empty without a choice.
    """

    name: str
    kind: Kind
    method: Method | None
    planned: tuple[PlannedStage, ...]
    begins: Literal["drawn", "source", "learned"] = "drawn"
    source: str | None = None
    growth: GrowthPlan | None = None
    added: frozenset[str] = frozenset()
    asked: Mapping[str, Any] = field(default_factory=dict)
    starts: tuple[ExperimentEntry, ...] = ()

    @property
    def is_taught(self) -> bool:
        """Return whether the source teaches in a stage."""
        return any(part.stage.teacher for part in self.planned)


@dataclass(frozen=True, kw_only=True)
class SourceStrength:
    """A source that has been trained for a number of steps.

    Attributes:
        name: its name in the results, such as `1` or `4`.
        steps: its steps; None for a checkpoint.
        flops: FLOPs of its training; None if unknown.
    """

    name: str
    steps: int | None
    flops: float | None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The plan of a comparison.

    Attributes:
        plan: the conversion plan.
        settings: `compare` section of the recipe.
        entries: name -> entry; scratch comes first, then the controls.
        skipped: method name -> reason why the method cannot apply.
        steps: steps of training from scratch.
        batch_size: sequences or images per step.
        length: tokens per sequence; for an image, its patches.
        seeds: seeds with which each entry is trained.
        sources: strengths of the source, the weakest first.
    """

    plan: Plan
    settings: CompareConfig
    entries: Mapping[str, ExperimentEntry]
    skipped: Mapping[str, str]
    steps: int
    batch_size: int
    length: int
    seeds: tuple[int, ...]
    sources: tuple[SourceStrength, ...]
    _known: dict[Any, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def family(self) -> Family:
        return self.plan.family

    @property
    def tokens(self) -> int:
        """Return the tokens per step."""
        return self.batch_size * self.length

    @property
    def tokens_per_parameter(self) -> float:
        return self.steps * self.tokens / self.plan.parameters["target"]

    @property
    def warmup(self) -> int:
        """Return the warmup steps, the same for every run of methods without a warmup of their own: at most `longest_warmup`."""
        return max(1, min(round(self.settings.warmup_fraction * self.steps), self.longest_warmup))

    @property
    def longest_warmup(self) -> int:
        """Return a fifth of the steps of the shortest run, of scratch or at the smallest budget of all others."""
        shortest = min(self.settings.tuning_fraction, self.scratch_fractions[0], self.budget_fractions[0])
        return self.steps_of(shortest) // 5

    def warmup_of(self, method: Method | None) -> int:
        """Return the warmup steps of the runs of a method; of a control, if None."""
        return self.warmup if method is None or method.warmup is None else max(1, round(method.warmup * self.steps))

    @property
    def evaluate_every(self) -> int:
        return max(1, self.steps // self.settings.eval_points)

    @property
    def scratch_fractions(self) -> tuple[float, ...]:
        """Return the budgets of scratch as shares of the whole budget, ascending; 1 is always among them."""
        return tuple(sorted({*self.settings.scratch_fractions, 1.0}))

    @property
    def budget_fractions(self) -> tuple[float, ...]:
        """Return the budgets of all other entries as shares of scratch's FLOPs, ascending; 1 is always among them."""
        return tuple(sorted({*self.settings.budget_fractions, 1.0}))

    @property
    def baseline(self) -> ExperimentEntry:
        return self.entries[SCRATCH]

    def steps_of(self, fraction: float) -> int:
        return max(LEAST_STEPS, round(fraction * self.steps))

    def source(self, name: str) -> SourceStrength:
        return next(source for source in self.sources if source.name == name)

    def source_flops(self, entry: ExperimentEntry) -> float | None:
        """Return the FLOPs of the source of an entry: 0 without a source, None if unknown."""
        return 0.0 if entry.source is None else self.source(entry.source).flops

    def parameters(self, entry: ExperimentEntry) -> int:
        """Return the number of parameters of the model that an entry ends with."""
        config = entry.planned[-1].stage.config
        return self.family.parameters(self.family.rows_for(config), config)

    # Runs.

    def make_run(
        self, entry: ExperimentEntry, choice: Choice, *, seed: int, steps: int, start: str = DRAWN, teacher: str = ""
    ) -> Run:
        """Return a run of an entry. `start` names the weights that it starts from, `teacher` the model that teaches it."""
        method = entry.method
        planned = tuple(
            replace(part, stage=replace(part.stage, growth=replace(part.stage.growth, seed=seed)))
            if part.stage.growth is not None
            else part
            for part in entry.planned
        )
        return Run(
            start=start,
            stages=stages_of(planned, steps),
            steps=steps,
            warmup=self.warmup_of(method),
            # An end without decay would be a point of every longer run, and no end.
            decay=max(1, round(choice.decay * steps)),
            shape=method.shape if method is not None else "stable",
            optimizer=OptimizerSettings(name=choice.optimizer, weight_decay=self.settings.weight_decay),
            learning_rate=choice.learning_rate,
            batch_size=self.batch_size,
            seed=seed,
            order=SECOND_ORDER if entry.begins != "drawn" else "batches",
            dropping=self.dropping(method),
            teacher=teacher,
        )

    def dropping(self, method: Method | None) -> Dropping:
        if method is None or not (method.drops_layers or method.drops_tokens):
            return Dropping()
        return Dropping(
            layers=self.settings.layer_drop if method.drops_layers else 0.0,
            tokens=self.settings.token_drop if method.drops_tokens else 0.0,
            steps=self.steps if method.drops_layers else 1,
        )

    def ends(self, entry: ExperimentEntry) -> tuple[int, ...]:
        """Return the steps of an entry's runs, ascending: scratch at its own budgets, all others at shares of scratch's FLOPs.

        A run that starts from a source costs its training and its fit; the source's cost comes on top, and is part of `net`.
        """
        if entry.kind == "scratch":
            return tuple(dict.fromkeys(map(self.steps_of, self.scratch_fractions)))
        return tuple(dict.fromkeys(self.steps_for(entry, share) for share in self.budget_fractions))

    def steps_for(self, entry: ExperimentEntry, share: float) -> int:
        """Return the steps of a run of an entry that costs a share of scratch's FLOPs, its fit included."""
        key = ("steps", entry.name, share)
        if key not in self._known:
            self._known[key] = self._find_steps(entry, share)
        return int(self._known[key])

    def _find_steps(self, entry: ExperimentEntry, share: float) -> int:
        left = share * self.scratch_flops - self.extra_flops(entry)
        low = max(LEAST_STEPS, len(entry.planned))
        high = max(low, self.steps)
        while self.run_flops(entry, high) <= left:
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            if self.run_flops(entry, middle) <= left:
                low = middle
            else:
                high = middle
        return low

    # Cost.

    def extra_flops(self, entry: ExperimentEntry) -> float:
        """Return the FLOPs that an entry spends beside its run: the fit, and trials of starts that the run does not continue.

        The run continues the trial of its own start, except for the decay at its end.
        """
        trials = [self.run_flops(start, self.trial_steps(start)) for start in entry.starts]
        decay = (entry.method.decay if entry.method is not None else None) or max(self.settings.decays)
        continued = (1 - decay) * min(trials) if trials else 0.0
        return self.fit_flops(entry) + sum(trials) - continued

    def trial_steps(self, start: ExperimentEntry) -> int:
        """Return the steps of the trial of one start."""
        return self.steps_for(start, self.settings.choose_fraction)

    def run_flops(self, entry: ExperimentEntry, steps: int, *, done: int | None = None) -> float:
        """Return the FLOPs of a run of `steps` steps, the mean over randomly drawn sub-models, without dropping.

        Args:
            done: number of its first steps that count; None for all.
        """
        key = (entry.name, steps, steps if done is None else done)
        if key not in self._known:
            run = self.make_run(entry, Choice(optimizer="adamw", learning_rate=0.0, decay=0.0), seed=0, steps=steps)
            self._known[key] = run_flops(
                self.family,
                run,
                sequence_length=self.length,
                added=entry.added,
                teacher=self.plan.start.source,
                done=done,
            )
        return self._known[key]

    def fit_steps(self, entry: ExperimentEntry) -> int:
        """Return the steps of an entry's fit: those of the recipe, and no more than `compare.fit_share` of the budget pays for."""
        fit = self.plan.required_fit.settings
        share = self.settings.fit_share * self.scratch_flops
        affordable = int((share - 2 * self._held_out_flops()) // self._fit_flops(entry, 1))
        return max(1, min(fit.steps, affordable))

    def fit_flops(self, entry: ExperimentEntry) -> float:
        """Return the FLOPs of learning an entry's operator; 0 if it learns none."""
        if entry.begins != "learned":
            return 0.0
        key = ("fit", entry.name)
        if key not in self._known:
            # Two evaluations, at the start and at the end, decide whether the learned operator is kept.
            self._known[key] = self._fit_flops(entry, self.fit_steps(entry)) + 2 * self._held_out_flops()
        return self._known[key]

    def _fit_flops(self, entry: ExperimentEntry, steps: int) -> float:
        fit, start = self.plan.required_fit.settings, self.plan.start
        rank = entry.method.ring if entry.method is not None else 0
        return fit_flops(
            self.family,
            start.source,
            start.target,
            steps=steps,
            tokens=fit.batch_size * self.length,
            sequence_length=self.length,
            growth=ring_flops(self.family, start.source, start.target, rank=rank) if rank else None,
        )

    def _held_out_flops(self) -> float:
        """Return the FLOPs of one evaluation of the target on the split that decides a fit."""
        tokens = self.settings.fit_examples * self.length
        return forward_flops(self.family, self.plan.start.target, tokens=tokens, sequence_length=self.length)

    @property
    def scratch_flops(self) -> float:
        return self.run_flops(self.baseline, self.steps)

    @property
    def most_examples(self) -> int:
        """Return the number of sequences or images that the longest run is trained on."""
        return self.batch_size * max(
            [*(self.ends(entry)[-1] for entry in self.entries.values())]
            + [source.steps for source in self.sources if source.steps is not None]
        )

    @property
    def disk_bytes(self) -> int:
        """Return the most bytes of disk that the work takes: tokens of a text, and weights and moments of every trunk that a run leaves."""
        one = 12 * self.plan.parameters["target"]
        leaving = len(self.scratch_fractions) * len(self.settings.decays)
        others = (len(self.budget_fractions) + 1) * len(self.settings.rate_factors) * len(self.entries)
        states = one * len(self.seeds) * (leaving + others)
        if self.family.reads == "images":
            return states
        vocabulary = self.family.sizes(self.plan.start.source)[self.family.vocabulary]
        tokens = self.most_examples * self.length + 2 * self.plan.required_fit.heldout_tokens
        return states + tokens * id_dtype(vocabulary).itemsize

    def fairness_warnings(self) -> list[dict[str, Any]]:
        """Return the conditions, known before training, that make the comparison unfair."""
        with_source = [name for name, entry in self.entries.items() if entry.source is not None]
        found: list[dict[str, Any]] = []

        def warning(rule: str, text: str, methods: list[str] | None = None) -> None:
            found.append({"rule": rule, "text": text, "methods": methods})

        if with_source and any(source.flops is None for source in self.sources):
            warning(
                "source-cost-unknown",
                "the cost of training the source is unknown, so net savings are not given; set compare.source_flops",
                with_source,
            )
        if self.plan.recipe.source.pretrain is None:
            warning(
                "source-data-unknown",
                "the training data of the source is unknown: it may differ from fit.data or contain the held-out data",
                with_source,
            )
        if self.tokens_per_parameter < TOKENS_PER_PARAMETER:
            warning(
                "scratch-undertrained",
                f"scratch is undertrained: {self.tokens_per_parameter:.1f} tokens per parameter, fewer than {TOKENS_PER_PARAMETER:.0f}",
            )
        if len(set(self.settings.learning_rates)) < 3:
            warning("few-learning-rates", "scratch's learning rate is chosen from fewer than three")
        if "muon" not in self.settings.optimizers:
            warning("single-optimizer", "Muon is not tried: scratch may be easier to beat than it has to be")
        if len(set(self.settings.decays)) < 2:
            warning("single-decay", "the decay of scratch's learning rate is not tuned: only one share is given")
        choosing = [name for name, entry in self.entries.items() if entry.starts]
        trial = self.steps_of(self.settings.choose_fraction)
        if choosing and 5 * self.warmup > trial:
            warning(
                "short-trials",
                f"a start is chosen after {trial} steps, of which the learning rate rises in {self.warmup}; raise compare.choose_fraction",
                choosing,
            )
        return found


def make_experiment(
    plan: Plan, *, methods: Sequence[str] | None, steps: int | None, seeds: Sequence[int] | None = None
) -> Experiment:
    """Decide which entries take part, and return the plan of the comparison.

    Args:
        plan: conversion plan of the recipe.
        methods: method names; None for `compare.methods`, and without that for all methods that apply.
        steps: steps of training from scratch; None for `compare.steps`.
        seeds: seeds; None for `compare.seeds`.

    Raises:
        RecipeError: the recipe has no `fit` section or no number of steps; a method is unknown, or named but cannot apply; the model has
            no training loss; the losses of source and target are not comparable; an optimizer or a warmup of a method's own cannot be.
    """
    recipe = plan.recipe
    settings = recipe.compare or CompareConfig()
    where = recipe.where("compare")
    _require_comparable(plan)
    assert recipe.fit is not None
    steps = steps or settings.steps
    if steps is None:
        raise RecipeError(
            "the number of steps of training from scratch is not set",
            where=where,
            hint="set compare.steps, or pass --steps N",
        )
    if steps < LEAST_STEPS:
        raise RecipeError(
            "training from scratch is too short to compare with",
            where=where,
            expected=f"{LEAST_STEPS} steps or more",
            found=steps,
        )
    named = list(methods or settings.methods or ())
    try:
        found = methods_named(named or (*METHODS, *([SCHEDULE.name] if recipe.growth.schedule else [])))
    except ValueError as error:
        raise RecipeError(f"compare.methods: {error}", where="--methods" if methods else where) from None
    batch_size = settings.batch_size or recipe.fit.batch_size
    sources = _sources(plan, settings, batch_size)
    entries: dict[str, ExperimentEntry] = {}
    skipped: dict[str, str] = {}
    for name, method in found.items():
        # Where the recipe trains a source, stages begin with drawn weights of its size.
        uses_source = method.needs_source or (method.follows_schedule and recipe.source.pretrain is None)
        strengths: tuple[SourceStrength | None, ...] = sources if uses_source else (None,)
        for source in strengths:
            label = name if source in (None, sources[0]) else f"{name} from {source.name}"
            try:
                entries[label] = _method_entry(plan, method, label, source)
            except RecipeError as error:
                # A method that was named must run. Without names, methods that cannot apply are skipped and reported.
                if named:
                    raise
                skipped[name] = error.what
    controls = _controls(plan, settings)
    made = Experiment(
        plan=plan,
        settings=settings,
        entries={SCRATCH: entries.pop(SCRATCH), **controls, **entries},
        skipped=skipped,
        steps=steps,
        batch_size=batch_size,
        length=plan.family.sequence(plan.start.target, recipe.fit.sequence_length),
        seeds=tuple(dict.fromkeys(seeds or settings.seeds)),
        sources=sources,
    )
    for name, method in found.items():
        _require_own_settings(made, name, method, where="--methods" if methods else where)
    return made


def _require_own_settings(experiment: Experiment, name: str, method: Method, *, where: str) -> None:
    """Require that the comparison can train a method with the settings of its own. Raises RecipeError."""
    tried = tuple(dict.fromkeys(experiment.settings.optimizers))
    if method.optimizer not in (None, *tried):
        raise RecipeError(
            f"{name}: scratch does not try {method.optimizer}, so no learning rate is known for it",
            where=where,
            expected=f"one of {', '.join(tried)}",
            hint=f"add {method.optimizer} to compare.optimizers",
        )
    longest = max(1, experiment.longest_warmup)
    if method.warmup is not None and experiment.warmup_of(method) > longest:
        raise RecipeError(
            f"{name}: the warmup is longer than a fifth of the shortest run",
            where=where,
            expected=f"at most {longest} steps, {longest / experiment.steps:.3g} of the budget",
            found=f"{experiment.warmup_of(method)} steps",
            hint="give a smaller share, or larger compare.tuning_fraction and compare.scratch_fractions",
        )


def _require_comparable(plan: Plan) -> None:
    recipe = plan.recipe
    if recipe.fit is None:
        raise RecipeError("compare trains on fit.data, but the recipe has no `fit` section", where=recipe.path.name)
    if plan.family.task in WITHOUT_LOSS:
        raise RecipeError(f"{plan.family.architecture} has no training loss", where=recipe.path.name)
    if plan.start.drawn_rows:
        raise RecipeError(
            "the target's head differs from the source's, so their losses are not comparable",
            where=recipe.where("compare"),
        )
    if not any(grown_axes(plan)):
        raise RecipeError(
            "the target has the source's sizes: there is no growth to compare",
            where=recipe.where("target"),
            hint="name larger sizes in target.config",
        )
    pretrain = recipe.source.pretrain
    if pretrain and pretrain.sequence_length != recipe.fit.sequence_length:
        # Source and target share runs, and for masked tokens another length cuts the text elsewhere.
        raise RecipeError(
            "compare requires the source to be trained on the same sequence length as the target",
            where=recipe.where("source", "pretrain", "sequence_length"),
            expected=recipe.fit.sequence_length,
            found=pretrain.sequence_length,
        )


def _sources(plan: Plan, settings: CompareConfig, batch_size: int) -> tuple[SourceStrength, ...]:
    """Return the strengths of the source: one for a checkpoint, else the recipe's steps times each of `source_strengths`."""
    pretrain = plan.recipe.source.pretrain
    if pretrain is None:
        return (SourceStrength(name="1", steps=None, flops=settings.source_flops),)
    whole = pretrain.steps * pretrain.batch_size / batch_size
    one = plan.flops["pretrain"]
    assert one is not None
    found = []
    for strength in sorted(set(settings.source_strengths)):
        steps = max(LEAST_STEPS, round(strength * whole))
        found.append(SourceStrength(name=f"{strength:g}", steps=steps, flops=one / whole * steps))
    return tuple(found)


def start_of(plan: Plan, method: Method, seed: int) -> GrowthPlan:
    """Return the growth plan of a method; for random weights, the plan keeps the target config of the recipe."""
    return another_start(plan, width=method.width, depth=method.depth, tie=method.tie, seed=seed)


def grown_axes(plan: Plan) -> tuple[bool, bool]:
    """Return whether widths grow, and whether depths do."""
    old, new = (plan.family.sizes(config) for config in (plan.start.source, plan.start.target))
    grown = {axis for axis, size in new.items() if old.get(axis) != size}
    deeper = grown & set(plan.family.depth_axes)
    return bool(grown - deeper), bool(deeper)


def default_starts(plan: Plan) -> list[tuple[str, str]]:
    """Return pairs of width and depth methods that differ for this source and target, the most promising first."""
    wider, deeper = grown_axes(plan)
    width = "mean-preserving" if wider else "copy"
    if not deeper:
        return [(name, "copy") for name in (width, "sparkling", "net2net")]
    starts = [(width, depth) for depth in ("identity", "interpolate", "stack", "silent-drawn")]
    return starts + ([("sparkling", "interpolate")] if wider else [])


def _method_entry(plan: Plan, method: Method, name: str, source: SourceStrength | None) -> ExperimentEntry:
    start = start_of(plan, method, seed=0)
    layers = plan.family.sizes(start.target)[plan.family.depth_axes[0]]
    parts = STRATEGIES[method.strategy].parts(layers)
    begins: Literal["drawn", "source", "learned"] = "drawn"
    if method.follows_schedule:
        if plan.recipe.growth.schedule is None:
            raise RecipeError(f"{name}: the recipe has no growth.schedule", where=plan.recipe.where("growth"))
        begins = "drawn" if source is None else "source"
        planned = planned_stages(plan)
    elif method.grows_at is not None:
        begins = "source" if method.from_source else "drawn"
        planned = _grown_on_the_way(plan, method, start)
    elif method.starts_from_source:
        begins = "learned" if method.learns_operator else "source"
        planned = (_first_stage(plan, method, parts[0], start), *_later_stages(plan, method, parts[1:], start.target))
    else:
        first = with_layers(plan.family, start.target, parts[0].layers)
        planned = (
            PlannedStage(at=0, stage=_stage(parts[0], first), until_share=parts[0].until_share),
            *_later_stages(plan, method, parts[1:], start.target, first),
        )
    added: frozenset[str] = frozenset()
    if any(part.trains == "added" for part in parts):
        found = added_parts(plan.family, initial_operator(start))
        added = frozenset(name for name, part in found.items() if part.kind != "old")
    starts: tuple[ExperimentEntry, ...] = ()
    if method.chooses:
        pairs = default_starts(plan)[: method.chooses]
        starts = tuple(
            _method_entry(
                plan, replace(method, width=width, depth=depth, chooses=0), f"{name}: {width}/{depth}", source
            )
            for width, depth in pairs
        )
        start, planned = start_of(plan, starts[0].method or method, seed=0), starts[0].planned
    return ExperimentEntry(
        name=name,
        kind="scratch" if name == SCRATCH else "method",
        method=method,
        planned=planned,
        starts=starts,
        begins=begins,
        source=None if source is None else source.name,
        growth=None if method.random_init else start,
        added=added,
    )


def _stage(part: Part, config: Config, **more: Any) -> Stage:
    return Stage(
        begin=0,
        config=dict(config),
        trains=part.trains,
        top=part.top,
        submodels=part.submodels,
        teacher=part.teacher,
        **more,
    )


def _growth(plan: Plan, method: Method, *, width: str, depth: str, state: str) -> Growth:
    tied = method.tie == "paper"
    keying: Keying = "source" if tied else plan.recipe.growth.operator.keying or DEFAULT_KEYING
    return Growth(width=width, depth=depth, state=method.state or state, keying=keying, tie=method.tie)


def _first_stage(plan: Plan, method: Method, part: Part, start: GrowthPlan) -> PlannedStage:
    """Return the first stage of a run that starts from a trained source: grown with its first step, or before by a learned operator."""
    growth = None
    if not method.learns_operator:
        growth = _growth(plan, method, width=method.width, depth=method.depth, state="reset")
    stage = _stage(part, start.target, growth=growth, asked=dict(plan.asked) if growth is not None else None)
    return PlannedStage(at=0, stage=stage, until_share=part.until_share)


def _later_stages(
    plan: Plan, method: Method, parts: Sequence[Part], target: Config, before: Config | None = None
) -> list[PlannedStage]:
    """Return the stages that add layers to the model `before`, or go on with it."""
    family = plan.family
    planned: list[PlannedStage] = []
    axis = family.depth_axes[0]
    current = before or target
    for part in parts:
        wanted = with_layers(family, target, part.layers)
        grows = family.sizes(current)[axis] != family.sizes(wanted)[axis]
        more: dict[str, Any] = {}
        if grows:
            # A config list with one entry per layer is that of the target's lowest layers.
            lists = [key for key in family.per_layer_keys if isinstance(wanted.get(key), list)]
            asked = {key: wanted[key] for key in (size_keys(family.axes[axis])[0], *lists)}
            growth = _growth(plan, method, width="copy", depth=part.depth, state=part.state)
            wanted = dict(growth_plan_of(family, growth, current, asked, where=plan.recipe.where("compare")).target)
            more = {"growth": growth, "asked": asked}
        warmup = _REWARM if part.warms or (grows and method.warms) else 0
        planned.append(
            PlannedStage(at=part.at, stage=_stage(part, wanted, warmup=warmup, **more), until_share=part.until_share)
        )
        current = wanted
    return planned


# Steps of a new warmup after a growth on the way, before the length of a run is known; a stage has at least five times as many.
_REWARM = 50


def _grown_on_the_way(plan: Plan, method: Method, start: GrowthPlan) -> tuple[PlannedStage, ...]:
    """Return the stages of a model of the source's size that grows into the target in the same run."""
    assert method.grows_at is not None
    growth = _growth(plan, method, width=method.width, depth=method.depth, state="carry")
    whole = Part(at=0)
    return (
        PlannedStage(at=0, stage=_stage(whole, start.source)),
        PlannedStage(
            at=method.grows_at,
            stage=_stage(
                whole, start.target, growth=growth, asked=dict(plan.asked), warmup=_REWARM if method.warms else 0
            ),
        ),
    )


def trained_on(plan: Plan, name: str, source: str) -> ExperimentEntry:
    """Return the source that is trained on and never grows."""
    return ExperimentEntry(
        name=name,
        kind="control",
        method=None,
        planned=(PlannedStage(at=0, stage=_stage(Part(at=0), plan.start.source)),),
        begins="source",
        source=source,
        asked=_differences(plan, plan.start.source),
    )


def grown_part_way(plan: Plan, name: str, asked: Config, source: str) -> ExperimentEntry:
    """Return the source grown by some of the keys that the recipe asks for, by the nearest start: a model between source and target."""
    growth = _growth(
        plan, method_named("mean-preserving/identity"), width="mean-preserving", depth="identity", state="reset"
    )
    where = plan.recipe.where("compare")
    config = growth_plan_of(plan.family, growth, plan.start.source, asked, where=where).target
    return ExperimentEntry(
        name=name,
        kind="control",
        method=None,
        planned=(PlannedStage(at=0, stage=_stage(Part(at=0), config, growth=growth, asked=dict(asked))),),
        begins="source",
        source=source,
        asked=_differences(plan, config),
    )


def _differences(plan: Plan, config: Config) -> dict[str, Any]:
    """Return the keys of a config that differ from the target's."""
    complete = plan.family.complete(plan.start.target)
    return {key: value for key, value in plan.family.complete(config).items() if complete.get(key) != value}


def _controls(plan: Plan, settings: CompareConfig) -> dict[str, ExperimentEntry]:
    """Return the models that never grow: the source's size, and the recipe's or else the target with half of its layers."""
    family, target = plan.family, start_of(plan, METHODS[SCRATCH], 0).target
    configs: dict[str, Config] = {SOURCE_SIZE: plan.start.source}
    if settings.controls is None:
        axis = family.depth_axes[0]
        half = with_layers(family, target, max(1, family.sizes(target)[axis] // 2))
        if family.sizes(half) not in (family.sizes(plan.start.source), family.sizes(target)):
            configs[HALF_DEPTH] = half
    for asked in settings.controls or ():
        label = ", ".join(f"{key} {value}" for key, value in asked.items())
        where = plan.recipe.where("compare", "controls")
        config = family.resize(plan.start.source, {**plan.asked, **asked}, where=where)
        # A list with an entry for each layer of the target is cut.
        config = with_layers(family, config, family.sizes(config)[family.depth_axes[0]])
        if family.parameters(family.rows_for(config), config) >= plan.parameters["target"]:
            raise RecipeError(
                f"compare.controls: {label}: a model that never grows is as large as the target",
                where=where,
                expected=f"fewer than {plan.parameters['target']:,} parameters",
                hint="name smaller sizes",
            )
        configs[label] = config
    return {
        name: ExperimentEntry(
            name=name,
            kind="control",
            method=None,
            planned=(PlannedStage(at=0, stage=_stage(Part(at=0), config)),),
            asked=_differences(plan, config),
        )
        for name, config in configs.items()
    }

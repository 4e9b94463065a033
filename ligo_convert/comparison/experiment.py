"""Plan a comparison: which methods take part, what each run costs, and which conditions make the comparison unfair.

Input: a conversion plan, the recipe's `compare` section, method names.
Output: an `Experiment` of plain values. This module does not import torch: costs are known before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ligo_convert.comparison.methods import METHODS, SCRATCH, Method, methods_named
from ligo_convert.comparison.step_costs import Step, with_layers
from ligo_convert.comparison.strategies import STRATEGIES, Dropping, Stage, depends_on_run_length
from ligo_convert.conversion.plan import Plan, another_start
from ligo_convert.errors import RecipeError
from ligo_convert.families.flops import fit_flops, forward_flops
from ligo_convert.families.schema import WITHOUT_LOSS
from ligo_convert.growth.growth_plan import GrowthPlan
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.new_parameters import added_parts
from ligo_convert.recipes.schema import CompareConfig
from ligo_convert.training.schedules import STABLE_PART

SOURCE_SHARE = 0.2  # largest fraction of scratch's FLOPs for the source without a warning; 18.7 % in arXiv:2303.00980

LEAST_STEPS = 8  # minimum for any run, because a strategy has up to five stages

TOKENS_PER_PARAMETER = 10.0  # minimum for scratch without a warning


@dataclass(frozen=True, kw_only=True)
class ExperimentEntry:
    """A method that takes part in the comparison.

    Attributes:
        method: the method.
        start: growth plan of its initialisation.
        stages: training stages of its strategy.
        added: names of the tensors that contain added entries, if the strategy trains only those; else empty.
    """

    method: Method
    start: GrowthPlan
    stages: tuple[Stage, ...]
    added: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The plan of a comparison.

    Attributes:
        plan: the conversion plan.
        settings: `compare` section of the recipe.
        entries: method name -> entry; scratch comes first.
        skipped: method name -> reason why the method cannot apply.
        steps: steps of training from scratch.
        batch_size: sequences or images per step.
        length: tokens per sequence; for an image, its patches.
        seeds: seeds with which each method is trained.
        source_flops: FLOPs of training the source; None if unknown.
    """

    plan: Plan
    settings: CompareConfig
    entries: Mapping[str, ExperimentEntry]
    skipped: Mapping[str, str]
    steps: int
    batch_size: int
    length: int
    seeds: tuple[int, ...]
    source_flops: float | None
    _steps: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def examples(self) -> int:
        """Return the number of sequences or images that scratch is trained on."""
        return self.steps * self.batch_size

    @property
    def tokens(self) -> int:
        """Return the tokens per step."""
        return self.batch_size * self.length

    @property
    def tokens_per_parameter(self) -> float:
        return self.steps * self.tokens / self.plan.parameters["target"]

    @property
    def warmup(self) -> int:
        """Return the warmup steps, the same for every run: at most a fifth of the shortest run."""
        shortest = self.steps_of(min(self.settings.tuning_fraction, self.budget_fractions[0]))
        return max(1, min(round(self.settings.warmup_fraction * self.steps), shortest // 5))

    @property
    def evaluate_every(self) -> int:
        return max(1, self.steps // self.settings.eval_points)

    @property
    def budget_fractions(self) -> tuple[float, ...]:
        """Return the budget fractions in ascending order; the last one is 1, the whole budget."""
        return tuple(sorted({*self.settings.budget_fractions, 1.0}))

    def budget_fractions_of(self, name: str) -> tuple[float, ...]:
        """Return the budget fractions a method is trained for, in turn. Methods that start from random weights use only the last two."""
        entry = self.entries[name].method
        if name == SCRATCH:
            return (1.0,)
        return self.budget_fractions[-2:] if entry.random_init else self.budget_fractions

    def steps_of(self, budget_fraction: float) -> int:
        return max(LEAST_STEPS, round(budget_fraction * self.steps))

    def dropping(self, name: str) -> Dropping:
        entry = self.entries[name].method
        return Dropping(
            layers=self.settings.layer_drop if entry.drops_layers else 0.0,
            tokens=self.settings.token_drop if entry.drops_tokens else 0.0,
        )

    def rates(self, name: str) -> tuple[tuple[float, str], ...]:
        """Return the pairs of peak learning rate and schedule of the tuning runs.

        For methods other than scratch the schedule is empty: they use the one that is best for scratch.
        """
        shapes = tuple(self.settings.schedules) if name == SCRATCH else ("",)
        return tuple((rate, shape) for shape in shapes for rate in self.settings.learning_rates)

    # Cost.

    def run_flops(self, name: str, steps: int) -> float:
        """Return the FLOPs of training for `steps` steps, the mean over randomly drawn sub-models, without dropping."""
        if name not in self._steps:
            entry = self.entries[name]
            self._steps[name] = sum(stage.share * self._step(entry, stage).mean_flops() for stage in entry.stages)
        return steps * self._steps[name]

    def _step(self, entry: ExperimentEntry, stage: Stage) -> Step:
        return Step(
            family=self.plan.family,
            config=with_layers(self.plan.family, entry.start.target, stage.layers),
            stage=stage,
            tokens=self.tokens,
            length=self.length,
            added=entry.added,
            teacher=self.plan.start.source,
        )

    def fit_flops(self, name: str) -> int:
        """Return the FLOPs of learning a method's operator; 0 if it learns none."""
        entry, fit = self.entries[name], self.plan.recipe.fit
        assert fit is not None
        if not entry.method.learns_operator:
            return 0
        family, target = self.plan.family, entry.start.target
        learning = fit_flops(
            family,
            entry.start.source,
            target,
            steps=fit.steps,
            tokens=fit.batch_size * self.length,
            sequence_length=self.length,
        )
        # Finding the best step requires an evaluation at the start, after every `evaluate_every` steps, and at the end.
        looks = 1 + -(-fit.steps // fit.evaluate_every)
        return learning + looks * self._held_out_flops(target)

    def _held_out_flops(self, target: Mapping[str, Any]) -> int:
        """Return the FLOPs of one evaluation of a model on a held-out split."""
        family, fit = self.plan.family, self.plan.recipe.fit
        assert fit is not None
        held_out = fit.heldout_images * self.length if family.reads == "images" else fit.heldout_tokens
        return forward_flops(family, target, tokens=held_out, sequence_length=self.length)

    @property
    def measuring(self) -> float:
        """Return the FLOPs of one evaluation of scratch divided by the FLOPs of training until the next one.

        No method is charged for evaluations, but they take time.
        """
        return self._held_out_flops(self.entries[SCRATCH].start.target) / self.run_flops(SCRATCH, self.evaluate_every)

    @property
    def scratch_flops(self) -> float:
        return self.run_flops(SCRATCH, self.steps)

    def most_flops(self, name: str) -> float:
        """Return the maximal FLOPs of a method: its fit, every tuning run, every budget fraction."""
        tuning = len(self.rates(name)) * self.run_flops(name, self.steps_of(self.settings.tuning_fraction))
        if self.settings.tuning_fraction in self.budget_fractions_of(name):
            tuning -= self.run_flops(name, self.steps_of(self.settings.tuning_fraction))
        budget_fractions = [
            self.run_flops(name, self.steps_of(budget_fraction)) for budget_fraction in self.budget_fractions_of(name)
        ]
        if not depends_on_run_length(self.entries[name].stages) and set(self.settings.schedules) == {"stable"}:
            # Longer runs resume where the learning rate of shorter runs began to fall.
            budget_fractions = [
                flops - STABLE_PART * before
                for flops, before in zip(budget_fractions, [0.0, *budget_fractions], strict=False)
            ]
        if name == SCRATCH:
            # Scratch runs the whole budget twice: at its best learning rate and at the next lower one.
            tuning += self.run_flops(name, self.steps)
        return len(self.seeds) * (self.fit_flops(name) + sum(budget_fractions)) + tuning

    # Fairness.

    def fairness_warnings(self) -> list[dict[str, Any]]:
        """Return the conditions, known before training, that make the comparison unfair."""
        with_source = [name for name, entry in self.entries.items() if entry.method.needs_source]
        found: list[dict[str, Any]] = []

        def warning(rule: str, text: str, methods: list[str] | None = None) -> None:
            found.append({"rule": rule, "text": text, "methods": methods})

        if self.source_flops is None:
            warning(
                "source-cost-unknown",
                "the cost of training the source is unknown, so net savings are not given; set compare.source_flops",
                with_source,
            )
        elif self.source_flops > SOURCE_SHARE * self.scratch_flops:
            warning(
                "source-cost-high",
                f"training the source took {self.source_flops / self.scratch_flops:.1%} of the FLOPs of training from scratch; above"
                f" {SOURCE_SHARE:.0%} the comparison favours methods that use the source",
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
        if len(set(self.settings.schedules)) < 2:
            warning("single-schedule", "scratch's schedule is not tuned: only one is given")
        return found


def make_experiment(
    plan: Plan, *, methods: Sequence[str] | None, steps: int | None, seeds: Sequence[int] | None = None
) -> Experiment:
    """Decide which methods take part, and return the plan of the comparison.

    Args:
        plan: conversion plan of the recipe.
        methods: method names; None for `compare.methods`, and without that for all methods that apply.
        steps: steps of training from scratch; None for `compare.steps`.
        seeds: seeds; None for `compare.seeds`.

    Raises:
        RecipeError: the recipe has no `fit` section or no number of steps; a method is unknown, or named but cannot apply; the model has
            no training loss; the losses of source and target are not comparable.
    """
    recipe = plan.recipe
    settings = recipe.compare or CompareConfig()
    where = recipe.where("compare")
    if recipe.fit is None:
        raise RecipeError("compare trains on fit.data, but the recipe has no `fit` section", where=recipe.path.name)
    if plan.family.task in WITHOUT_LOSS:
        raise RecipeError(f"{plan.family.architecture} has no training loss", where=recipe.path.name)
    if plan.start.drawn_rows:
        raise RecipeError(
            "the target's head differs from the source's, so their losses are not comparable", where=where
        )
    pretrain = recipe.source.pretrain
    if pretrain and plan.family.task == "masked-lm" and pretrain.sequence_length != recipe.fit.sequence_length:
        # Blocks are framed by special tokens, so another length cuts the text elsewhere: held-out text could enter the training split.
        raise RecipeError(
            "compare requires the source to be trained on the same sequence length as the target",
            where=recipe.where("source", "pretrain", "sequence_length"),
            expected=recipe.fit.sequence_length,
            found=pretrain.sequence_length,
        )
    steps = steps or settings.steps
    if steps is None:
        raise RecipeError(
            "the number of steps of training from scratch is not set",
            where=where,
            hint="set compare.steps, or pass --steps N",
        )
    named = list(methods or settings.methods or ())
    try:
        found = methods_named(named or METHODS)
    except ValueError as error:
        raise RecipeError(f"compare.methods: {error}", where="--methods" if methods else where) from None
    seeds = tuple(dict.fromkeys(seeds or settings.seeds))
    entries: dict[str, ExperimentEntry] = {}
    skipped: dict[str, str] = {}
    for name, method in found.items():
        try:
            entries[name] = _entry(plan, method, seeds[0])
        except RecipeError as error:
            # A method that was named must run. Without names, methods that cannot apply are skipped and reported.
            if named:
                raise
            skipped[name] = error.what
    length = plan.family.sequence(plan.start.target, recipe.fit.sequence_length)
    return Experiment(
        plan=plan,
        settings=settings,
        entries=entries,
        skipped=skipped,
        steps=steps,
        batch_size=settings.batch_size or recipe.fit.batch_size,
        length=length,
        seeds=seeds,
        source_flops=_source_flops(plan, settings),
    )


def start_of(plan: Plan, method: Method, seed: int) -> GrowthPlan:
    """Return the growth plan of a method; for random weights, the plan keeps the target config of the recipe."""
    return another_start(plan, width=method.width, depth=method.depth, tie=method.tie, seed=seed)


def _entry(plan: Plan, method: Method, seed: int) -> ExperimentEntry:
    start = start_of(plan, method, seed)
    layers = plan.family.sizes(start.target)[plan.family.depth_axes[0]]
    stages = STRATEGIES[method.strategy].stages(layers)
    added: frozenset[str] = frozenset()
    if any(stage.trains == "added" for stage in stages):
        parts = added_parts(plan.family, initial_operator(start))
        added = frozenset(name for name, part in parts.items() if part.kind != "old")
        if not added:
            raise RecipeError(
                f"{method.name}: growth adds no parameters, so no parameter would be trained", where="compare"
            )
    return ExperimentEntry(method=method, start=start, stages=stages, added=added)


def _source_flops(plan: Plan, settings: CompareConfig) -> float | None:
    return plan.flops.get("pretrain", settings.source_flops)

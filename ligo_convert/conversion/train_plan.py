"""Plan a training from headers and configs, and refuse what would fail, before any weight is read.

Input: the plan of a recipe `Recipe.for_training`.
Output: a `TrainPlan` of plain values: the run with its stages, its cost, its memory. Planning does not import torch.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ligo_convert.conversion.growth_schedule import planned_stages
from ligo_convert.conversion.memory import activation_bytes, physical_memory
from ligo_convert.conversion.plan import Plan, plan_recipe
from ligo_convert.environment import BASE_BYTES
from ligo_convert.errors import LigoError, MachineError, RecipeError
from ligo_convert.families.schema import WITHOUT_LOSS, Family
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.recipes.schema import TrainConfig
from ligo_convert.training.runs import DRAWN, OptimizerSettings, PlannedStage, Run, Stage, stages_of
from ligo_convert.training.step_costs import run_flops

# Bytes of a parameter in training: the parameter, the tensor it began with, its gradient, two moments; and one copy to save.
_PARAMETER_BYTES = 4 * 6

SOURCE = "source"

# Name of the order in which a model that starts from a source reads the data: the source may have read it in the other order.
_SECOND_ORDER = "grown"


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What a training will do.

    Attributes:
        plan: the plan of source, target, data and output.
        settings: the recipe's `train` section.
        run: the run with its stages.
        flops: FLOPs of the run.
        memory: estimated peak resident memory of one process, in bytes.
    """

    plan: Plan
    settings: TrainConfig
    run: Run
    flops: float
    memory: int

    @property
    def draws(self) -> bool:
        """Return whether the training begins with drawn weights instead of a source."""
        return self.run.start == DRAWN

    @property
    def tokens(self) -> int:
        """Return the tokens (for images: patches) of the whole run."""
        return self.run.steps * self.plan.required_fit.tokens_per_step

    @property
    def parameters(self) -> dict[str, int]:
        """Return the parameter counts of the first and of the last model."""
        return self.plan.parameters

    def growths(self) -> list[dict[str, Any]]:
        """Return every growth of the run: the step, and the sizes that change."""
        plan, stages = self.plan, self.run.stages
        first = [(plan.start.source, stages[0])] if stages[0].growth is not None else []
        pairs = first + [(before.config, stage) for before, stage in pairwise(stages)]
        return [_growth_json(plan.family, before, stage) for before, stage in pairs]

    def json(self) -> dict[str, Any]:
        """Return the plan as `plan --json` prints it under `train`."""
        settings = self.settings
        return {
            "start": "drawn weights" if self.draws else "source",
            "steps": self.run.steps,
            "tokens": self.tokens,
            "flops": self.flops,
            "memory_bytes": self.memory,
            "micro_batch_size": self.plan.micro_batch,
            "threads": self.plan.threads,
            "optimizer": settings.optimizer,
            "learning_rate": settings.learning_rate,
            "warmup_steps": self.run.warmup,
            "decay_steps": self.run.decay if self.run.shape == "stable" else None,
            "schedule": self.run.shape,
            "growths": self.growths(),
        }


def _growth_json(family: Family, before: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    old, new = family.sizes(before), family.sizes(stage.config)
    grown = [axis for axis in family.class_axes if old[axis] != new[axis]]
    assert stage.growth is not None
    return {
        "step": stage.begin,
        "from": {axis: old[axis] for axis in grown},
        "to": {axis: new[axis] for axis in grown},
        "width": stage.growth.width,
        "depth": stage.growth.depth,
        "state": stage.growth.state,
    }


def plan_training(recipe: Recipe) -> TrainPlan:
    """Plan the training of a recipe from headers alone."""
    with naming_train(recipe):
        return make_train_plan(plan_recipe(recipe.for_training()))


@contextlib.contextmanager
def naming_train(recipe: Recipe) -> Iterator[None]:
    """Name the keys of `train` in errors of what a training shares with a fit, such as the tokenizer of its data.

    Args:
        recipe: as it is written; where it has no `train.data`, `fit.data` keeps its name.
    """
    try:
        yield
    except LigoError as error:
        inherits = recipe.train is not None and recipe.train.data is None
        shared = [name for name in TrainConfig.model_fields if not (name == "data" and inherits)]
        key = re.compile(rf"\bfit\.(?=(?:{'|'.join(shared)})\b)")
        error.what, error.hint = key.sub("train.", error.what), key.sub("train.", error.hint)
        raise


def plan_with_training(recipe: Recipe) -> tuple[Plan, TrainPlan | None]:
    """Plan what a recipe describes: a conversion, and the training if it has a `train` section.

    The plan is that of the training where the recipe describes no conversion: its source is neither there nor trained for one.
    """
    if recipe.train is None:
        return plan_recipe(recipe), None
    training, pretrain = plan_training(recipe), recipe.source.pretrain
    trains_only = pretrain is not None and (not pretrain.steps or recipe.fit is None)
    return training.plan if trains_only else plan_recipe(recipe), training


def make_train_plan(plan: Plan) -> TrainPlan:
    """Return the plan of a training.

    Args:
        plan: of a recipe `Recipe.for_training`.

    Raises:
        RecipeError: the model has no training loss, the target has another head than the source, or the stages do not fit.
        MachineError: the training needs more memory than this machine has.
    """
    recipe, settings = plan.recipe, plan.recipe.train
    assert settings is not None, "the recipe of a training"
    assert recipe.trains, "the recipe of a training"
    if plan.family.task in WITHOUT_LOSS:
        raise RecipeError(f"{plan.family.architecture} has no training loss", where=recipe.where("train"))
    if plan.start.drawn_rows:
        raise RecipeError(
            "the target's head differs from the source's",
            where=recipe.where("target"),
            hint="grow it first with `ligo-convert run`, and then train the output",
        )
    planned = planned_stages(plan, steps=settings.steps)
    run = _run(plan, settings, planned)
    memory = _memory(plan, run)
    if memory > physical_memory():
        raise MachineError(
            "the training needs more memory than this machine has",
            where=recipe.where("train"),
            expected=f"{memory / 1e9:.1f} GB",
            found=f"{physical_memory() / 1e9:.1f} GB",
            hint="lower train.micro_batch_size or the target's sizes",
        )
    flops = run_flops(plan.family, run, sequence_length=plan.required_fit.positions)
    return TrainPlan(plan=plan, settings=settings, run=run, flops=flops, memory=memory)


def _run(plan: Plan, settings: TrainConfig, planned: tuple[PlannedStage, ...]) -> Run:
    recipe, steps = plan.recipe, settings.steps
    warmup = max(1, steps // 50) if settings.warmup_steps is None else settings.warmup_steps
    if warmup >= steps > 1:
        raise RecipeError(
            "train.warmup_steps: the warmup leaves no step to train at the peak rate",
            where=recipe.where("train", "warmup_steps"),
            expected=f"fewer than train.steps, {steps}",
            found=warmup,
        )
    draws = recipe.source.pretrain is not None and recipe.growth.schedule is not None
    return Run(
        start=DRAWN if draws else SOURCE,
        stages=stages_of(planned, steps),
        steps=steps,
        warmup=warmup,
        decay=min(round(settings.decay * steps), steps - 1),
        shape=settings.schedule,
        optimizer=OptimizerSettings(
            name="muon" if settings.optimizer == "muon" else "adamw", weight_decay=settings.weight_decay
        ),
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=settings.seed,
        order="batches" if draws else _SECOND_ORDER,
    )


def _memory(plan: Plan, run: Run) -> int:
    """Estimate the peak resident memory of one process, in bytes: the largest model in training."""
    family, settings = plan.family, plan.required_fit.settings
    most = 0
    for stage in run.stages:
        parameters = family.parameters(family.rows_for(stage.config), stage.config)
        positions = family.sequence(stage.config, settings.sequence_length)
        one = activation_bytes(family, stage.config, positions)
        most = max(most, _PARAMETER_BYTES * parameters + plan.micro_batch * one)
    return BASE_BYTES + most

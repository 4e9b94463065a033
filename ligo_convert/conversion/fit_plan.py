"""What a fit of the operator and the training of a source need, decided before any weight is read.

Input: the recipe's `fit` and `source.pretrain` sections with their defaults filled in.
Output: `FitPlan` and `PretrainPlan`, which exist only where the recipe asks for that work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ligo_convert.data.data_source import DataFacts
from ligo_convert.families.schema import Family
from ligo_convert.growth.growth_plan import GrowthPlan
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.recipes.schema import FitConfig, PretrainConfig
from ligo_convert.training.schedules import default_warmup


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """The fit of the operator.

    Attributes:
        settings: the recipe's `fit` section.
        data: what is known about the training data; None where it was not found and the plan is not carried out.
        warmup_steps: steps until the learning rate reaches its peak.
        positions: positions that the target computes for one sequence or image.
        heldout_tokens: tokens of each held-out slice: `fit.heldout_tokens` rounded up to whole sequences of every length that
            the recipe uses, so that the fit and the training of the source hold out the same text.
    """

    settings: FitConfig
    data: DataFacts | None
    warmup_steps: int
    positions: int
    heldout_tokens: int

    @property
    def tokens_per_step(self) -> int:
        return self.settings.batch_size * self.positions


@dataclass(frozen=True, kw_only=True)
class PretrainPlan:
    """The training of the source, on the data of the fit.

    Attributes:
        settings: the recipe's `source.pretrain` section.
        fit: the fit that the source is trained for.
    """

    settings: PretrainConfig
    fit: FitPlan


def plan_fit(recipe: Recipe, family: Family, start: GrowthPlan, data: DataFacts | None) -> FitPlan | None:
    """Return the plan of the recipe's fit; None where the recipe has no `fit` section."""
    settings = recipe.fit
    if settings is None:
        return None
    lengths = [settings.sequence_length]
    if recipe.source.pretrain is not None:
        lengths.append(recipe.source.pretrain.sequence_length)
    block = math.lcm(*lengths)
    warmup = settings.warmup_steps
    return FitPlan(
        settings=settings,
        data=data,
        warmup_steps=default_warmup(settings.steps) if warmup is None else warmup,
        positions=family.sequence(start.target, settings.sequence_length),
        heldout_tokens=-(-settings.heldout_tokens // block) * block,
    )


def plan_pretraining(recipe: Recipe, fit: FitPlan | None) -> PretrainPlan | None:
    """Return the plan for training the source; None where the recipe has no `source.pretrain` or no `fit` section."""
    settings = recipe.source.pretrain
    return None if settings is None or fit is None else PretrainPlan(settings=settings, fit=fit)

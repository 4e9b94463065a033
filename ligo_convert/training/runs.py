"""Training runs as plain data: where a run starts, its stages, its optimizer, its learning rate at every step.

Input: configs and settings.
Output: a `Run`, which `training.run_trainer` executes segment by segment. `Run.history` identifies everything that decides the state
after a number of steps: runs with the same history share their first steps, which are then trained once. This module does not import
torch and knows no model family.

Sources of the schedule: warmup-stable-decay (Hu et al., arXiv:2404.06395), with decay branches from one constant-rate trunk
(Haegele et al., arXiv:2405.18392).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from ligo_convert.families.schema import Family
from ligo_convert.growth.growth_plan import GrowthPlan, GrowthSettings, plan_growth
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.training.dropping import NOTHING, Dropping

Config = Mapping[str, Any]

DRAWN: Final = "drawn"

OptimizerName = Literal["adamw", "muon"]

OPTIMIZERS: Mapping[OptimizerName, str] = {
    "adamw": "AdamW for every tensor (arXiv:1711.05101)",
    "muon": "Muon for the matrices inside the layers (Jordan et al., 2024; scaled as in arXiv:2502.16982), AdamW for all others",
}


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Settings of the optimizer of a run.

    Attributes:
        name: key of `OPTIMIZERS`.
        weight_decay: decoupled weight decay of matrices. Vectors have none.
        betas: AdamW's decay rates of the two moments.
        momentum: Muon's momentum.
        clip: largest norm of the gradient.
    """

    name: OptimizerName = "adamw"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.95
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How the weights of a stage come from the model before it.

    Attributes:
        width: width method.
        depth: depth method.
        state: what becomes of the optimizer's state, a key of `growth.moments.POLICIES`.
        keying: which layers own width maps.
        tie: `paper`, or None.
        seed: seed of random maps and drawn weights.
    """

    width: str
    depth: str
    state: str = "carry"
    keying: Literal["source", "target", "shared"] = "shared"
    tie: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run: a model that is trained from one step to the next stage.

    Attributes:
        begin: first step of the stage.
        config: config of the model.
        growth: how its weights come from the model before; None for a first stage that starts as it is.
        asked: config keys that differ from those of the model before.
        warmup: steps in which the rate rises again from zero; 0 for none.
        rate: factor on the learning rate from this stage on.
        trains: trained parameters: `all`; the `top` layers and everything above them; or the entries that growth `added`.
        top: number of layers that count as the top.
        submodels: depths of sub-models; each step trains one of them, drawn at random. A depth that occurs twice is drawn twice as often.
            A sub-model deeper than the model applies its layers again.
        teacher: whether the source teaches, with a weight that falls from one to zero.
        until: first step at which `trains`, `submodels` and `teacher` no longer apply, and the whole model trains alone; None: never.
    """

    begin: int
    config: Config
    growth: Growth | None = None
    asked: Config | None = None
    warmup: int = 0
    rate: float = 1.0
    trains: Literal["all", "top", "added"] = "all"
    top: int = 0
    submodels: tuple[int, ...] = ()
    teacher: bool = False
    until: int | None = None

    def is_late(self, step: int) -> bool:
        """Return whether a step lies after `until`."""
        return self.until is not None and step >= self.until


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        start: `drawn` for weights as the library draws them; else the name of the weights that the run starts from.
        stages: stages in order; the first begins at step 0.
        steps: steps of the whole run.
        warmup: steps in which the rate rises from zero.
        decay: steps at the end in which the rate falls linearly to zero.
        shape: `stable` (constant between warmup and decay) or `cosine` (from the end of the warmup; `decay` does not apply).
        optimizer: settings of the optimizer.
        learning_rate: peak learning rate.
        batch_size: sequences or images per step.
        seed: determines drawn weights, the order of the data, sub-models and dropping.
        order: name of the order of the data, see `DataSplits.batch`.
        dropping: layers and tokens that are skipped.
        teacher: name of the model that teaches in stages with a teacher; empty for none.
    """

    start: str
    stages: tuple[Stage, ...]
    steps: int
    warmup: int
    decay: int
    shape: Literal["stable", "cosine"] = "stable"
    optimizer: OptimizerSettings
    learning_rate: float
    batch_size: int
    seed: int
    order: str = "batches"
    dropping: Dropping = NOTHING
    teacher: str = ""

    def __post_init__(self) -> None:
        begins = [stage.begin for stage in self.stages]
        assert begins[0] == 0, "the first stage begins at step 0"
        assert all(first < second for first, second in itertools.pairwise(begins)), f"stages out of order: {begins}"
        assert begins[-1] < self.steps, f"the last stage begins at {begins[-1]} of {self.steps} steps"
        assert 0 <= self.decay <= self.steps

    @property
    def spans(self) -> tuple[range, ...]:
        """Return the steps of each stage."""
        ends = [*(stage.begin for stage in self.stages[1:]), self.steps]
        return tuple(range(stage.begin, end) for stage, end in zip(self.stages, ends, strict=True))

    @property
    def turn(self) -> int:
        """Return the first step of the decay: before it, a longer run has the same rates. 0 under `cosine`."""
        return self.steps - self.decay if self.shape == "stable" else 0

    @property
    def breaks(self) -> tuple[int, ...]:
        """Return the numbers of steps at which this run stops or another may leave it, ascending; the last is `steps`."""
        found = {stage.begin for stage in self.stages} | {self.turn, self.steps}
        return tuple(sorted(found - {0}))

    def stage_at(self, step: int) -> Stage:
        """Return the stage of step `step`, counted from 0."""
        return next(stage for stage in reversed(self.stages) if stage.begin <= step)

    def factor(self, step: int) -> float:
        """Return the factor of the peak learning rate at step `step`, counted from 0."""
        stage = self.stage_at(step)
        factor = stage.rate
        if step < self.warmup:
            factor *= (step + 1) / self.warmup
        if stage.warmup and step - stage.begin < stage.warmup:
            factor *= (step - stage.begin + 1) / stage.warmup
        if self.shape == "cosine":
            done = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
            return factor * 0.5 * (1 + math.cos(math.pi * done))
        if step >= self.turn:
            factor *= (self.steps - step) / (self.decay + 1)
        return factor

    def history(self, step: int) -> str:
        """Return a digest of everything that decides the state after `step` steps.

        A stage that begins at `step` is not part of it: the model grows with the first step of its stage.
        """
        stages = [asdict(stage) for stage in self.stages if stage.begin < step]
        for found, stage, span in zip(stages, self.stages, self.spans, strict=False):
            if stage.teacher and stage.until is None:
                # The teacher's weight falls over the whole stage.
                found["until"] = span.stop
        content: dict[str, Any] = {
            "start": self.start,
            "step": step,
            "stages": stages,
            "warmup": self.warmup,
            "optimizer": asdict(self.optimizer),
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "order": self.order,
            "dropping": asdict(self.dropping),
            "teacher": self.teacher,
        }
        if self.shape == "cosine" or step > self.turn:
            content["end"] = {"shape": self.shape, "steps": self.steps, "decay": self.decay}
        return sha256_of(content)


def growth_plan_of(family: Family, growth: Growth, config: Config, asked: Config, *, where: str) -> GrowthPlan:
    """Return the plan of a growth from `config` by the keys in `asked`. Raises RecipeError as `plan_growth` does."""
    settings = GrowthSettings(
        width=growth.width, depth=growth.depth, keying=growth.keying, tie=growth.tie, seed=growth.seed
    )
    target = family.resize(config, asked, where=where)
    return plan_growth(family, settings, config, target, asked=asked, where=where)


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage before the length of its run is known.

    Attributes:
        at: where it begins: a share of the run's steps if below 1, else a number of steps.
        until_share: share of the stage in which `trains`, `submodels` and `teacher` apply; 1 for all of it.
        stage: the other settings; its `begin` and `until` are filled in.
    """

    at: float
    stage: Stage
    until_share: float = 1.0


def stages_of(planned: tuple[PlannedStage, ...], steps: int) -> tuple[Stage, ...]:
    """Return the stages of a run of `steps` steps. Every stage has at least one step."""
    count = len(planned)
    begins: list[int] = []
    for number, part in enumerate(planned):
        at = round(part.at * steps) if part.at < 1 else int(part.at)
        least = begins[-1] + 1 if begins else 0
        begins.append(min(max(at, least), steps - (count - number)))
    found = []
    for part, begin, end in zip(planned, begins, [*begins[1:], steps], strict=True):
        until = begin + round(part.until_share * (end - begin)) if part.until_share < 1 else None
        # A new warmup takes at most a fifth of its stage.
        warmup = min(part.stage.warmup, (end - begin) // 5)
        found.append(replace(part.stage, begin=begin, until=until, warmup=warmup))
    return tuple(found)

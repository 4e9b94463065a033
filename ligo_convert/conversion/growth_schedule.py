"""Turn the growth of a recipe into the stages of a training run.

Input: a plan, whose recipe may have `growth.schedule`.
Output: `PlannedStage`s: the model of every stage, and how its weights come from the model before. `train` and `compare` use them.
"""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.conversion.plan import DEFAULT_KEYING, Plan
from ligo_convert.errors import RecipeError
from ligo_convert.recipes.schema import GrowthStageConfig
from ligo_convert.training.runs import Growth, PlannedStage, Stage, growth_plan_of


def planned_stages(plan: Plan, *, steps: int | None = None) -> tuple[PlannedStage, ...]:
    """Return the stages of a run that grows as the recipe says: by `growth.schedule`, or without one at its beginning.

    Args:
        steps: steps of the run; None if they are not known yet, and stages that begin after its end are found later.

    Raises:
        RecipeError: the stages are out of order, do not grow the model, do not end at the recipe's target, or are more than the steps.
    """
    schedule = plan.recipe.growth.schedule
    if schedule is None:
        return (_only_stage(plan),)
    family, current = plan.family, plan.start.source
    planned = [] if schedule[0].at == 0 else [PlannedStage(at=0, stage=Stage(begin=0, config=dict(current)))]
    _check_order(plan, steps)
    for number, part in enumerate(schedule):
        growth = _growth(plan, part)
        asked = dict(plan.asked) if part.target is None else dict(part.target)
        target = growth_plan_of(family, growth, current, asked, where=_where(plan, number, "target")).target
        if family.sizes(target) == family.sizes(current):
            raise RecipeError(
                f"growth.schedule[{number}]: this stage does not grow the model",
                where=_where(plan, number, "target"),
                hint="give the keys that grow in `target`, or remove the stage; only the last stage may leave `target` out",
            )
        stage = Stage(begin=0, config=dict(target), growth=growth, asked=asked, warmup=part.warmup_steps)
        planned.append(PlannedStage(at=part.at, stage=stage))
        current = target
    wanted, reached = family.sizes(plan.start.target), family.sizes(current)
    if wanted != reached:
        axes = [axis for axis in family.axes if wanted[axis] != reached[axis]]
        raise RecipeError(
            f"growth.schedule[{len(schedule) - 1}]: the last stage does not end at the recipe's target",
            where=_where(plan, len(schedule) - 1, "target"),
            expected=", ".join(f"{axis} {wanted[axis]}" for axis in axes),
            found=", ".join(f"{axis} {reached[axis]}" for axis in axes),
            hint="leave `target` out of the last stage: the recipe's target stands in for it",
        )
    if steps is not None and len(planned) > steps:
        raise RecipeError(
            "growth.schedule: there are more stages than steps",
            where=_where(plan, 0, "at"),
            expected=f"at least {len(planned)} steps, one for each model; the first one begins at step 0",
            found=steps,
            hint="train for more steps, or remove stages",
        )
    return tuple(planned)


def _only_stage(plan: Plan) -> PlannedStage:
    """Return the stage of a run without a schedule: the source, grown at its beginning if the target differs."""
    start = plan.start
    if plan.family.sizes(start.source) == plan.family.sizes(start.target):
        return PlannedStage(at=0, stage=Stage(begin=0, config=dict(start.source)))
    growth = _growth(plan, None)
    stage = Stage(begin=0, config=dict(start.target), growth=growth, asked=dict(plan.asked))
    return PlannedStage(at=0, stage=stage)


def _growth(plan: Plan, part: GrowthStageConfig | None) -> Growth:
    section = plan.recipe.growth
    growth = Growth(
        width=section.width,
        depth=section.depth,
        keying=section.operator.keying or DEFAULT_KEYING,
        tie=section.operator.tie,
        seed=section.seed,
    )
    if part is None:
        return replace(growth, state=section.state or growth.state)
    return replace(growth, width=part.width or growth.width, depth=part.depth or growth.depth, state=part.state)


def _check_order(plan: Plan, steps: int | None) -> None:
    """Require stages that begin one after the other, before the end of the run. Raises RecipeError."""
    before: float | None = None
    for number, part in enumerate(plan.recipe.growth.schedule or ()):
        # Without the steps of the run, a share and a number of steps cannot be compared.
        at = round(part.at * steps) if steps is not None and part.at < 1 else part.at
        where = _where(plan, number, "at")
        if part.at >= 1 and part.at != int(part.at):
            raise RecipeError(
                f"growth.schedule[{number}].at: neither a share below 1 nor a whole number of steps",
                where=where,
                found=part.at,
            )
        comparable = steps is not None or before is None or (before < 1) == (at < 1)
        if before is not None and comparable and at <= before:
            raise RecipeError(
                f"growth.schedule[{number}].at: the stage does not begin after the one before it",
                where=where,
                expected=f"later than {before:g}",
                found=f"{at:g}",
            )
        if steps is not None and at >= steps:
            raise RecipeError(
                f"growth.schedule[{number}].at: the stage begins after the last step",
                where=where,
                expected=f"fewer than {steps} steps",
                found=f"{at:g}",
            )
        before = at


def _where(plan: Plan, number: int, key: str) -> str:
    return plan.recipe.where("growth", "schedule", number, key)

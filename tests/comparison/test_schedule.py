"""The method `schedule` of a comparison: the stages are those of `train`, and each entry starts where `train` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.source_models import GROWN, SIZES, fit_section, recipe_text, write_text

from ligo_convert.comparison.experiment import Choice, Experiment, make_experiment
from ligo_convert.comparison.methods import method_named
from ligo_convert.conversion.growth_schedule import planned_stages
from ligo_convert.conversion.plan import make_plan
from ligo_convert.errors import RecipeError
from ligo_convert.recipes.recipe import load_recipe

GPT2 = {"model_type": "gpt2", **SIZES["gpt2"]}
SCHEDULE = [{"at": 0.25, "target": {"n_layer": 3}, "depth": "stack", "warmup_steps": 2}, {"at": 0.5, "state": "scale"}]
CHOICE = Choice(optimizer="adamw", learning_rate=1e-3, decay=0.2)


def experiment_of(
    folder: Path,
    source: dict[str, Any],
    *,
    schedule: Any = SCHEDULE,
    methods: Any = None,
    target: dict[str, Any] = GROWN["gpt2"],
) -> Experiment:
    (folder / "corpus").mkdir(exist_ok=True)
    write_text(folder / "corpus" / "a.txt", lines=20)
    recipe = json.loads(recipe_text("", target, fit=fit_section(), compare={"steps": 40}))
    recipe["source"] = source
    if schedule is not None:
        recipe["growth"]["schedule"] = schedule
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    plan = make_plan(load_recipe(folder / "recipe.yaml"), None, check_disk=False, runs=False)
    return make_experiment(plan, methods=methods, steps=None)


def test_a_schedule_is_a_method(tmp_path: Path) -> None:
    trained = experiment_of(tmp_path, {"pretrain": {"config": GPT2, "steps": 9, "sequence_length": 16}})
    entry = trained.entries["schedule"]
    assert (entry.begins, entry.source) == ("drawn", None)
    assert entry.planned == planned_stages(trained.plan)
    run = trained.make_run(entry, CHOICE, seed=3, steps=40)
    assert [(stage.begin, stage.warmup) for stage in run.stages] == [(0, 0), (10, 2), (20, 0)]
    assert [stage.growth and stage.growth.state for stage in run.stages] == [None, "carry", "scale"]
    assert [stage.growth and stage.growth.seed for stage in run.stages] == [None, 3, 3]
    assert [stage.config["n_layer"] for stage in run.stages] == [2, 3, 3]
    # It costs less than training the target for as many steps.
    assert trained.run_flops(entry, 40) < trained.run_flops(trained.baseline, 40)

    given = experiment_of(tmp_path, {"model": "org/small", "config": GPT2})
    assert (given.entries["schedule"].begins, given.entries["schedule"].source) == ("source", "1")
    assert "schedule" not in experiment_of(tmp_path, {"model": "org/small", "config": GPT2}, schedule=None).entries


def test_what_a_schedule_needs(tmp_path: Path) -> None:
    source = {"model": "org/small", "config": GPT2}
    with pytest.raises(RecipeError, match=r"no growth\.schedule"):
        experiment_of(tmp_path, source, schedule=None, methods=["schedule"])
    with pytest.raises(RecipeError, match=r"growth.schedule\[1\].at"):
        experiment_of(tmp_path, source, schedule=[SCHEDULE[0], {"at": 0.1}], methods=["schedule"])
    assert method_named("schedule+token-drop").drops_tokens
    with pytest.raises(ValueError, match=r"stages of growth\.schedule"):
        method_named("schedule+staged")


def test_a_schedule_of_many_stages_fits_into_the_shortest_run(tmp_path: Path) -> None:
    deeper = {**GROWN["gpt2"], "n_layer": 12}
    stages = [{"at": 0.05 * number, "target": {"n_layer": 2 + number}} for number in range(1, 10)]
    schedule = [*stages, {"at": 0.5, "target": {**deeper}}]
    source = {"pretrain": {"config": GPT2, "steps": 9, "sequence_length": 16}}
    found = experiment_of(tmp_path, source, target=deeper, schedule=schedule, methods=["schedule"])
    entry = found.entries["schedule"]
    assert len(entry.planned) == 11
    shortest = found.steps_for(entry, 0.01)
    assert [stage.begin for stage in found.make_run(entry, CHOICE, seed=0, steps=shortest).stages] == list(range(11))

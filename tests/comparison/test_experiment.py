"""A comparison as planned and as judged: who takes part, what it costs at most, what is unfair, who has saved how much. No weights."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.source_models import SIZES, fit_section, recipe_text, write_text

from ligo_convert.comparison.experiment import Experiment, make_experiment
from ligo_convert.comparison.methods import METHODS, method_named
from ligo_convert.comparison.results import (
    comparison_record,
    first_point_at,
    grid_edge_warnings,
    mean,
    method_record,
    savings,
    std,
)
from ligo_convert.comparison.step_costs import Step, with_layers
from ligo_convert.comparison.strategies import NOTHING, Dropping, depends_on_run_length
from ligo_convert.comparison.trainer import RunSpec
from ligo_convert.conversion.plan import Plan, make_plan
from ligo_convert.data.examples import ArrayExamples
from ligo_convert.errors import RecipeError
from ligo_convert.families.flops import fit_flops, forward_flops, step_flops
from ligo_convert.recipes.recipe import load_recipe
from ligo_convert.training.schedules import Schedule

GPT2 = {"model_type": "gpt2", **SIZES["gpt2"]}
BERT = {
    "model_type": "bert",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}
TARGET = {"n_embd": 32, "n_head": 4, "n_layer": 4}
UNEVEN = {"n_embd": 24, "n_head": 3, "n_layer": 4}
FAIR = {"steps": 40_000, "learning_rates": [1e-3, 2e-3, 4e-3], "schedules": ["stable", "cosine"]}
TRIED_METHODS = ["stackbert", "mslt", "bert2bert", "ki", "lemon", "ligo", "freeze"]
WITH_SOURCE = ["bert2bert", "ki", "lemon", "ligo", "freeze"]
SOURCE_FLOPS = 1e9


def plan_of(folder: Path, target: Mapping[str, object] = TARGET, /, **sections: object) -> Plan:
    """A plan from configs alone, of a source that lies elsewhere."""
    found = {"source": {"model": "org/small", "config": GPT2}, "fit": fit_section(), **sections}
    path = folder / "recipe.yaml"
    path.write_text(recipe_text("org/small", target, **found))
    return make_plan(load_recipe(path), None, check_disk=False)


def experiment_of(
    folder: Path, target: Mapping[str, object] = TARGET, /, *, methods: Sequence[str] | None = None, **compare: object
) -> Experiment:
    plan = plan_of(folder, target, compare={"steps": 1000, **compare})
    return make_experiment(plan, methods=methods, steps=None)


def trained_here(folder: Path, *, methods: Sequence[str], **compare: object) -> Experiment:
    """A experiment whose source is trained by the recipe: all is known of it."""
    (folder / "corpus").mkdir(exist_ok=True)
    write_text(folder / "corpus" / "a.txt")
    recipe = json.loads(recipe_text("", TARGET, fit=fit_section(), compare={"steps": 10, **compare}))
    recipe["source"] = {"pretrain": {"config": GPT2, "steps": 11, "batch_size": 3, "sequence_length": 8}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    plan = make_plan(load_recipe(folder / "recipe.yaml"), None, check_disk=False)
    return make_experiment(plan, methods=methods, steps=None)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return experiment_of(tmp_path_factory.mktemp("experiment"), methods=TRIED_METHODS, source_flops=SOURCE_FLOPS)


# --- who takes part ---------------------------------------------------------------------------------------------------


def test_every_method_that_applies_takes_part(tmp_path: Path) -> None:
    found = experiment_of(tmp_path)
    assert list(found.entries) == list(METHODS)
    assert found.skipped == {}


def test_a_method_that_cannot_apply_is_left_out_with_its_reason(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, UNEVEN)
    assert list(found.skipped) == ["hyperclone"]
    assert "not a whole multiple" in found.skipped["hyperclone"]
    assert "hyperclone" not in found.entries
    assert len(found.entries) == len(METHODS) - 1


@pytest.mark.parametrize("named", ["recipe", "command line"])
def test_a_method_that_is_named_and_cannot_apply_is_refused(named: str, tmp_path: Path) -> None:
    methods = ["lemon", "hyperclone"]
    plan = plan_of(tmp_path, UNEVEN, compare={"steps": 10, **({"methods": methods} if named == "recipe" else {})})
    with pytest.raises(RecipeError) as error:
        make_experiment(plan, methods=None if named == "recipe" else methods, steps=None)
    assert error.value.exit_code == 2


def test_nothing_added_is_nothing_to_train(tmp_path: Path) -> None:
    """A target as large as its source."""
    same = {"n_embd": 16, "n_head": 2, "n_layer": 2}
    with pytest.raises(RecipeError, match="freeze: growth adds no parameters"):
        experiment_of(tmp_path, same, methods=["freeze"])
    assert "freeze" in experiment_of(tmp_path, same).skipped


def test_the_command_line_goes_before_the_recipe(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, compare={"methods": ["ligo"], "steps": 50, "seeds": [3, 3, 4]})
    found = make_experiment(plan, methods=None, steps=None)
    assert (list(found.entries), found.steps, found.seeds) == (["scratch", "ligo"], 50, (3, 4))
    found = make_experiment(plan, methods=["lemon", "net2net"], steps=70, seeds=[5, 6, 5])
    assert (list(found.entries), found.steps, found.seeds) == (["scratch", "lemon", "net2net"], 70, (5, 6))


def refused(plan: Plan, match: str, **arguments: Any) -> RecipeError:
    with pytest.raises(RecipeError, match=match) as error:
        make_experiment(plan, **{"methods": None, "steps": 100, **arguments})
    assert error.value.exit_code == 2
    return error.value


def test_an_unknown_method_is_refused_with_a_near_one(tmp_path: Path) -> None:
    found = refused(plan_of(tmp_path), "did you mean lemon?", methods=["lemom"])
    assert found.where == "--methods"
    found = refused(plan_of(tmp_path, compare={"methods": ["lemom"]}), "did you mean lemon?")
    assert "recipe.yaml" in found.where
    refused(plan_of(tmp_path), "drawn weights have no operator", methods=["scratch+fit"])
    refused(plan_of(tmp_path), "no option 'fast'", methods=["ligo+fast"])


def test_a_comparison_needs_data(tmp_path: Path) -> None:
    refused(plan_of(tmp_path, fit=None), "the recipe has no `fit` section")


def test_a_comparison_needs_to_know_how_long(tmp_path: Path) -> None:
    found = refused(plan_of(tmp_path), "steps of training from scratch is not set", steps=None)
    assert "--steps" in found.hint
    assert make_experiment(plan_of(tmp_path), methods=["lemon"], steps=7).steps == 7


@pytest.mark.parametrize("architecture", ["BertModel", "BertForNextSentencePrediction"])
def test_a_model_without_a_loss_cannot_be_compared(architecture: str, tmp_path: Path) -> None:
    config = {**BERT, "architectures": [architecture]}
    plan = plan_of(tmp_path, {"num_hidden_layers": 4}, source={"model": "org/small", "config": config})
    refused(plan, f"{architecture} has no training loss")


def test_another_head_is_another_task(tmp_path: Path) -> None:
    config = {**BERT, "architectures": ["BertModel"]}
    path = tmp_path / "recipe.yaml"
    path.write_text(
        recipe_text(
            "org/small",
            {},
            source={"config": config},
            target={"config": {"num_hidden_layers": 4}, "architecture": "BertForMaskedLM"},
            fit=fit_section(),
        )
    )
    refused(make_plan(load_recipe(path), None, check_disk=False), "head differs from the source")


# --- how long, how often ----------------------------------------------------------------------------------------------


def test_horizons_ascend_to_the_whole_budget(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, methods=["lemon", "stackbert"], budget_fractions=[0.5, 0.25, 0.5])
    assert found.budget_fractions == (0.25, 0.5, 1.0)
    assert found.budget_fractions_of("scratch") == (1.0,)
    assert found.budget_fractions_of("stackbert") == (0.5, 1.0), "from nothing nobody gets there in a quarter"
    assert found.budget_fractions_of("lemon") == (0.25, 0.5, 1.0)
    assert experiment_of(tmp_path, methods=["lemon"], budget_fractions=[1.0]).budget_fractions_of("lemon") == (1.0,)


def test_no_run_is_too_short_for_its_stages(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, steps=7)
    most = max(len(entry.stages) for entry in found.entries.values())
    for budget_fraction in (0.01, 0.25, 0.5, 1.0):
        assert found.steps_of(budget_fraction) == 8 >= most
    assert (found.warmup, found.evaluate_every) == (1, 1)
    found = experiment_of(tmp_path, steps=1000)
    assert [found.steps_of(budget_fraction) for budget_fraction in (0.25, 0.333, 1.0)] == [250, 333, 1000]


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("steps", [8, 40, 1000])
def test_all_runs_of_a_comparison_have_one_warmup(warmup: float, steps: int, tmp_path: Path) -> None:
    """So that the rates of a shorter run are those of a longer one until it turns; those that a rate is tried by are such runs, too."""
    found = experiment_of(
        tmp_path,
        methods=["lemon"],
        steps=steps,
        warmup_fraction=warmup,
        budget_fractions=[0.25, 0.5],
        tuning_fraction=0.1,
    )
    lengths = [found.steps_of(budget_fraction) for budget_fraction in (0.1, *found.budget_fractions)]
    assert 1 <= found.warmup <= max(1, lengths[0] // 5)
    schedules = [Schedule(steps=length, warmup=found.warmup, shape="stable") for length in lengths]
    for shorter, longer in itertools.pairwise(schedules):
        common = range(shorter.turn)
        assert [shorter.factor(step) for step in common] == [longer.factor(step) for step in common]


def test_everybody_else_takes_the_schedule_that_was_best_for_scratch(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, methods=["lemon"], learning_rates=[1e-3, 2e-3])
    assert set(found.rates("scratch")) == {(rate, shape) for rate in (1e-3, 2e-3) for shape in ("stable", "cosine")}
    assert found.rates("lemon") == ((1e-3, ""), (2e-3, ""))


def test_options_leave_out_what_the_recipe_says(tmp_path: Path) -> None:
    methods = ["ligo", "ligo+layer-drop", "ligo+token-drop", "scratch+token-drop+layer-drop"]
    found = experiment_of(tmp_path, methods=methods, layer_drop=0.2, token_drop=0.3)
    assert [found.dropping(name) for name in methods] == [
        NOTHING,
        Dropping(layers=0.2),
        Dropping(tokens=0.3),
        Dropping(layers=0.2, tokens=0.3),
    ]


# --- costs ------------------------------------------------------------------------------------------------------------


def test_what_scratch_costs(experiment: Experiment) -> None:
    """Every step a plain one."""
    family, config = experiment.plan.family, experiment.plan.start.target
    step = step_flops(family, config, tokens=experiment.tokens, sequence_length=experiment.length)
    assert experiment.scratch_flops == experiment.steps * step
    assert experiment.tokens == experiment.batch_size * experiment.length == 2 * 16


def test_only_what_is_fitted_costs_a_fit(experiment: Experiment) -> None:
    """Six steps, and four looks at 256 held-out tokens: at the start and after every second step."""
    costs = {name: experiment.fit_flops(name) for name in experiment.entries}
    assert {name for name, cost in costs.items() if cost} == {"ligo"}
    family, start = experiment.plan.family, experiment.plan.start
    learning = fit_flops(family, start.source, start.target, steps=6, tokens=32, sequence_length=16)
    looking = 4 * forward_flops(family, start.target, tokens=256, sequence_length=16)
    assert costs["ligo"] == learning + looking


def test_a_source_that_is_trained_here_costs_its_training(tmp_path: Path) -> None:
    found = trained_here(tmp_path, methods=["lemon"])
    plan = found.plan
    assert found.source_flops == 11 * step_flops(plan.family, plan.start.source, tokens=24, sequence_length=8)


def run_cost(experiment: Experiment, name: str, steps: int, *, first: int = 0) -> float:
    """Operations of the steps from `first` on of a run of `steps`, each by the stage that it lies in; in the mean over sub-models."""
    entry, family = experiment.entries[name], experiment.plan.family
    run = RunSpec(
        config=entry.start.target,
        start=None,
        added=None,
        stages=entry.stages,
        steps=steps,
        warmup=1,
        budget=steps,
        learning_rate=0.0,
        shape="stable",
        seed=0,
        dropping=NOTHING,
        examples=ArrayExamples(arrays={}),
    )
    total = 0.0
    for stage, span in zip(entry.stages, run.spans, strict=True):
        step = Step(
            family=family,
            config=with_layers(family, entry.start.target, stage.layers),
            stage=stage,
            tokens=experiment.tokens,
            length=experiment.length,
            added=entry.added,
            teacher=experiment.plan.start.source,
        )
        total += step.mean_flops() * len([at for at in span if at >= first])
    return total


def spent(experiment: Experiment, name: str, shape: str) -> float:
    """Operations of a method that never reaches scratch's loss: its fit, every rate, every budget fraction, as jobs do them."""
    shares, tried = (
        shape == "stable" and not depends_on_run_length(experiment.entries[name].stages),
        experiment.settings.tuning_fraction,
    )

    def turn(budget_fraction: float) -> int:
        return (
            Schedule(steps=experiment.steps_of(budget_fraction), warmup=experiment.warmup, shape="stable").turn
            if shares
            else 0
        )

    total = len(experiment.rates(name)) * run_cost(experiment, name, experiment.steps_of(tried))
    if name == "scratch":
        # A second rate, too, for the whole budget.
        total += run_cost(experiment, name, experiment.steps, first=turn(tried))
    for seed in experiment.seeds:
        # The first seed's runs go on from that in which the rate was tried, which may be the first of them.
        first = turn(tried) if seed == experiment.seeds[0] else 0
        for budget_fraction in experiment.budget_fractions_of(name):
            if seed != experiment.seeds[0] or budget_fraction != tried:
                total += run_cost(experiment, name, experiment.steps_of(budget_fraction), first=first)
            first = turn(budget_fraction)
    return total + len(experiment.seeds) * experiment.fit_flops(name)


@pytest.mark.parametrize(
    ("schedules", "shape"), [(["stable"], "stable"), (["stable", "cosine"], "stable"), (["stable", "cosine"], "cosine")]
)
@pytest.mark.parametrize("steps", [32, 50, 333, 1000])
def test_nothing_costs_more_than_was_said(schedules: list[str], shape: str, steps: int, tmp_path: Path) -> None:
    """`compare` says at the start what all of it costs at most. Shares are rounded to steps: one for each stage of each run is allowed."""
    found = experiment_of(tmp_path, methods=TRIED_METHODS, schedules=schedules, steps=steps, seeds=[0, 1])
    for name, entry in found.entries.items():
        runs = 1 + len(found.rates(name)) + 2 * len(found.budget_fractions_of(name))
        rounding = runs * len(entry.stages) * found.scratch_flops / found.steps
        assert spent(found, name, shape) <= found.most_flops(name) + rounding, name


@pytest.mark.parametrize("name", ["scratch", *TRIED_METHODS])
def test_what_was_said_is_not_far_from_what_is_spent(name: str, tmp_path: Path) -> None:
    """An upper bound of what happens where nothing is saved, and no more than that."""
    for shape, tuning in itertools.product(("stable", "cosine"), (0.1, 0.2)):
        found = experiment_of(tmp_path, methods=TRIED_METHODS, schedules=[shape], tuning_fraction=tuning)
        # That the whole runs go on from where a rate was tried is not reckoned with.
        assert found.most_flops(name) == pytest.approx(
            spent(found, name, shape), rel=0.2 if shape == "stable" else 0.02
        )


def test_reading_a_curve_takes_its_time(tmp_path: Path) -> None:
    found = experiment_of(tmp_path)
    fit = found.plan.recipe.fit
    assert fit is not None
    # A step of training costs three forward passes.
    passes = fit.heldout_tokens / (3 * found.tokens * found.evaluate_every)
    assert found.measuring == pytest.approx(passes, rel=0.05)


# --- savings ----------------------------------------------------------------------------------------------------------


def curve(*points: tuple[float, float | None]) -> list[dict[str, Any]]:
    return [{"step": at, "flops": flops, "loss": loss} for at, (flops, loss) in enumerate(points)]


def test_the_first_point_at_or_below() -> None:
    points = curve((0, 9.0), (1, None), (2, 5.0), (3, 4.0), (4, 4.5), (5, 3.0))
    assert first_point_at(points, 4.2) == points[3]
    assert first_point_at(points, 4.0) == points[3], "at is enough"
    assert first_point_at(points, 3.9999) == points[5]
    assert first_point_at(points, 9.0) == points[0]
    assert first_point_at(points, 2.9) is None
    assert first_point_at([], 1.0) is None


@pytest.mark.parametrize(
    ("name", "paper", "net"),
    [
        ("lemon", 60.0, 50.0),  # 4e9 of 1e10, and 1e9 for the source
        ("ligo", 60.0, 50.0),
        ("freeze", 60.0, 50.0),
        ("bert2bert", 60.0, 50.0),
        ("ki", 60.0, 50.0),  # it is taught by the source
        ("stackbert", 60.0, 60.0),  # nothing of the source is in it
        ("mslt", 60.0, 60.0),
        ("scratch", 0.0, 0.0),
    ],
)
def test_the_source_is_charged_to_those_who_use_it(name: str, paper: float, net: float, experiment: Experiment) -> None:
    points = curve((0, 9.0), (2e9, 5.0), (4e9, 3.0), (8e9, 2.0))
    assert savings(experiment, name, points, scratch={"flops": 1e10, "loss": 3.5}) == {"paper": paper, "net": net}


def test_who_never_gets_there_has_no_savings(experiment: Experiment) -> None:
    points = curve((0, 9.0), (1e10, 3.6), (2e10, None))
    for name in TRIED_METHODS:
        assert savings(experiment, name, points, scratch={"flops": 1e10, "loss": 3.5}) == {"paper": None, "net": None}


def test_who_gets_there_later_has_lost(experiment: Experiment) -> None:
    points = curve((0, 9.0), (1.25e10, 3.5))
    assert savings(experiment, "lemon", points, scratch={"flops": 1e10, "loss": 3.5}) == {"paper": -25.0, "net": -35.0}


def test_who_is_there_from_the_start_has_paid_the_source_alone(experiment: Experiment) -> None:
    points = curve((0, 3.0), (1e9, 2.0))
    assert savings(experiment, "lemon", points, scratch={"flops": 1e10, "loss": 3.5}) == {"paper": 100.0, "net": 90.0}


def test_nothing_is_said_net_of_a_source_of_unknown_cost(experiment: Experiment) -> None:
    unknown = replace(experiment, source_flops=None)
    points, scratch = curve((4e9, 3.0)), {"flops": 1e10, "loss": 3.5}
    assert savings(unknown, "lemon", points, scratch=scratch) == {"paper": 60.0, "net": None}
    assert savings(unknown, "stackbert", points, scratch=scratch) == {"paper": 60.0, "net": 60.0}


def test_nobody_saves_against_a_scratch_that_came_to_nothing(experiment: Experiment) -> None:
    points = curve((0, 9.0), (4e9, 3.0))
    assert savings(experiment, "lemon", points, scratch={"flops": 1e10, "loss": None}) == {"paper": None, "net": None}


@given(
    losses=st.lists(st.floats(0.1, 10), min_size=1, max_size=20),
    level=st.floats(0.1, 10),
)
def test_savings_are_of_the_first_point_that_is_good_enough(
    experiment: Experiment, losses: Sequence[float], level: float
) -> None:
    points = curve(*((1e8 * at, loss) for at, loss in enumerate(losses)))
    found = savings(experiment, "lemon", points, scratch={"flops": 1e10, "loss": level})
    good = [at for at, loss in enumerate(losses) if loss <= level]
    wanted = None if not good else 100 - good[0]
    assert found == {"paper": wanted, "net": None if wanted is None else wanted - 10}


# --- means over seeds -------------------------------------------------------------------------------------------------


def test_a_mean_and_a_spread_are_of_all_seeds_or_of_none() -> None:
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert std([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(7), abs=5e-5)  # told to four digits
    assert mean([4.0]) == 4.0
    assert std([4.0]) is None, "one seed has no spread"
    assert mean([1.0, None]) is std([1.0, None]) is None
    assert mean([]) is std([]) is None
    assert std([1.0, math.inf]) is None
    assert std([2.0, 2.0]) == 0.0


def runs_of(*losses: float | None) -> dict[int, dict[str, Any]]:
    return {
        seed: {
            "curve": (points := curve((0, 9.0), (4e9 + 1e9 * seed, loss))),
            "final": {**points[-1], "accuracy": None, "budget_fraction": 0.5},
            "finals": [],
        }
        for seed, loss in enumerate(losses)
    }


def record_of(experiment: Experiment, name: str, *losses: float | None) -> dict[str, Any]:
    scratch = {seed: {"flops": 1e10, "loss": 3.5} for seed in range(len(losses))}
    tuned = {"learning_rate": 1e-3, "schedule": "stable"}
    return method_record(experiment, name, tuned=tuned, tuning_runs=[], runs=runs_of(*losses), scratch=scratch)


def test_a_method_is_told_by_its_first_seed_and_the_mean_of_all(experiment: Experiment) -> None:
    found = record_of(experiment, "lemon", 3.0, 3.2)
    assert found["savings"] == {"paper": 55.0, "net": 45.0}
    assert found["curve"] == found["seeds"]["0"]["curve"]
    assert found["seeds"]["0"]["savings"] == {"paper": 60.0, "net": 50.0}
    assert found["seeds"]["1"]["savings"] == {"paper": 50.0, "net": 40.0}
    assert found["final"]["loss"] == pytest.approx(3.1)
    assert found["std"]["paper"] == pytest.approx(10 / math.sqrt(2), abs=5e-5)
    assert found["std"]["loss"] == pytest.approx(0.2 / math.sqrt(2), abs=5e-5)
    assert (found["needs_source"], found["flops"]["source"], found["flops"]["fit"]) == (True, 1e9, 0)


def test_one_seed_that_never_gets_there_leaves_no_mean(experiment: Experiment) -> None:
    found = record_of(experiment, "lemon", 3.0, 3.6)
    assert found["savings"] == {"paper": None, "net": None}
    assert found["std"]["paper"] is None
    assert found["seeds"]["0"]["savings"]["paper"] == 60.0


def test_a_method_without_a_source_says_so(experiment: Experiment) -> None:
    found = record_of(experiment, "stackbert", 3.0)
    assert (found["needs_source"], found["flops"]["source"], found["start"], found["verdict"]) == (False, 0, None, None)
    assert found["strategy"] == "stacking"
    assert record_of(experiment, "ki", 3.0)["needs_source"] is True


def test_a_record_says_what_was_compared(experiment: Experiment) -> None:
    methods = {name: record_of(experiment, name, 3.0) for name in experiment.entries}
    found = comparison_record(
        experiment, methods, key="k", source={"label": "small"}, data={}, versions={}, fairness_warnings=[]
    )
    assert list(found["methods"]) == ["scratch", *TRIED_METHODS]
    assert found["format"] == "ligo-comparison/2"
    assert found["budget"]["examples"] == experiment.steps * experiment.tokens
    assert found["budget"]["flops"] == experiment.scratch_flops
    assert found["source"]["flops"] == 1e9
    assert found["source"]["fraction_of_scratch"] == pytest.approx(1e9 / experiment.scratch_flops, abs=5e-5)
    assert found["schedule"] == "stable"


# --- fairness ---------------------------------------------------------------------------------------------------------


def rules(experiment: Experiment) -> list[str]:
    return [found["rule"] for found in experiment.fairness_warnings()]


def test_a_fair_comparison_has_no_breach(tmp_path: Path) -> None:
    found = trained_here(tmp_path, methods=TRIED_METHODS, **FAIR)
    assert found.tokens_per_parameter >= 10
    assert rules(found) == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"steps": 2000}, "scratch-undertrained"),
        ({"learning_rates": [1e-3, 2e-3]}, "few-learning-rates"),
        ({"learning_rates": [1e-3, 2e-3, 1e-3]}, "few-learning-rates"),
        ({"schedules": ["stable"]}, "single-schedule"),
        ({"schedules": ["cosine", "cosine"]}, "single-schedule"),
    ],
)
def test_each_breach_is_told_where_it_is_and_nowhere_else(change: dict[str, object], rule: str, tmp_path: Path) -> None:
    found = trained_here(tmp_path, methods=TRIED_METHODS, **{**FAIR, **change})
    assert rules(found) == [rule]


def test_of_a_source_from_elsewhere_neither_cost_nor_data_are_known(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, methods=TRIED_METHODS, **FAIR)
    assert rules(found) == ["source-cost-unknown", "source-data-unknown"]
    assert rules(replace(found, source_flops=SOURCE_FLOPS)) == ["source-data-unknown"]
    for warning in found.fairness_warnings():
        assert warning["methods"] == WITH_SOURCE


def test_a_source_may_cost_a_fifth_of_scratch(tmp_path: Path) -> None:
    found = trained_here(tmp_path, methods=TRIED_METHODS, **FAIR)
    fifth = 0.2 * found.scratch_flops
    assert rules(replace(found, source_flops=fifth)) == []
    more = replace(found, source_flops=math.nextafter(fifth, math.inf))
    assert rules(more) == ["source-cost-high"]
    warning = more.fairness_warnings()[0]
    assert warning["methods"] == WITH_SOURCE
    assert "20.0%" in warning["text"]


def test_scratch_sees_ten_tokens_a_parameter(tmp_path: Path) -> None:
    found = trained_here(tmp_path, methods=["lemon"], **FAIR)
    needed = math.ceil(10 * found.plan.parameters["target"] / found.tokens)
    assert rules(replace(found, steps=needed)) == []
    assert rules(replace(found, steps=needed - 1)) == ["scratch-undertrained"]


def test_breaches_come_together(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, methods=["lemon"], steps=10, learning_rates=[1e-3], schedules=["stable"])
    assert rules(found) == [
        "source-cost-unknown",
        "source-data-unknown",
        "scratch-undertrained",
        "few-learning-rates",
        "single-schedule",
    ]


def tuned(**rates: float) -> dict[str, dict[str, Any]]:
    return {name: {"learning_rate": rate, "schedule": "stable"} for name, rate in rates.items()}


def test_a_best_rate_at_the_edge_is_told(experiment: Experiment) -> None:
    """Rates 1e-3, 2e-3, 4e-3."""
    assert grid_edge_warnings(experiment, tuned(scratch=2e-3, lemon=2e-3)) == []
    high, low = grid_edge_warnings(experiment, tuned(scratch=4e-3, lemon=1e-3, ligo=4e-3, ki=2e-3))
    assert (high["rule"], high["methods"]) == ("learning-rate-at-grid-edge", ["scratch", "ligo"])
    assert (low["rule"], low["methods"]) == ("learning-rate-at-grid-edge", ["lemon"])
    assert "highest one tried, 0.004" in high["text"]
    assert "lowest one tried, 0.001" in low["text"]


def test_one_rate_has_no_edge(tmp_path: Path) -> None:
    for rates in ([2e-3], [2e-3, 2e-3]):
        found = experiment_of(tmp_path, methods=["lemon"], learning_rates=rates)
        assert grid_edge_warnings(found, tuned(scratch=2e-3)) == []


def test_a_contender_is_the_tables(experiment: Experiment) -> None:
    for name, entry in experiment.entries.items():
        assert entry.method == method_named(name)
        assert bool(entry.added) == (name == "freeze")

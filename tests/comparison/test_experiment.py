"""A comparison as planned: who takes part, how long each run is, what it costs, what is unfair. No weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.experiments import experiment_of, plan_of, trained_here
from support.source_models import fit_section, recipe_text

from ligo_convert.comparison.experiment import (
    HALF_DEPTH,
    LEAST_STEPS,
    SECOND_ORDER,
    SOURCE_SIZE,
    Choice,
    Experiment,
    make_experiment,
)
from ligo_convert.comparison.methods import METHODS, SCRATCH, method_named
from ligo_convert.conversion.plan import Plan, make_plan
from ligo_convert.errors import RecipeError
from ligo_convert.families.flops import fit_flops, forward_flops, step_flops
from ligo_convert.recipes.recipe import load_recipe
from ligo_convert.training.dropping import NOTHING, Dropping
from ligo_convert.training.library_config import library_config
from ligo_convert.training.step_costs import run_flops

BERT = {
    "model_type": "bert",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}
UNEVEN = {"n_embd": 24, "n_head": 3, "n_layer": 4}
CONTROLS = [SOURCE_SIZE, HALF_DEPTH]
TRIED_METHODS = ["stackbert", "mslt", "bert2bert", "ki", "lemon", "ligo", "freeze", "late", "lemon/identity@0.6"]
WITH_SOURCE = ["bert2bert", "ki", "lemon", "ligo", "freeze"]
SOURCE_FLOPS = 1e9
CHOICE = Choice(optimizer="muon", learning_rate=1e-2, decay=0.4)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("experiment")
    return experiment_of(folder, methods=TRIED_METHODS, source_flops=SOURCE_FLOPS)


# --- who takes part ---------------------------------------------------------------------------------------------------


def test_every_method_that_applies_takes_part(tmp_path: Path) -> None:
    found = experiment_of(tmp_path)
    assert list(found.entries) == [SCRATCH, *CONTROLS, *(name for name in METHODS if name != SCRATCH)]
    assert found.skipped == {}


def test_a_method_that_cannot_apply_is_left_out_with_its_reason(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, UNEVEN)
    assert list(found.skipped) == ["hyperclone"]
    assert "not a whole multiple" in found.skipped["hyperclone"]
    assert "hyperclone" not in found.entries
    assert len(found.entries) == len(METHODS) - 1 + len(CONTROLS)


@pytest.mark.parametrize("named", ["recipe", "command line"])
def test_a_method_that_is_named_and_cannot_apply_is_refused(named: str, tmp_path: Path) -> None:
    methods = ["lemon", "hyperclone"]
    plan = plan_of(tmp_path, UNEVEN, compare={"steps": 10, **({"methods": methods} if named == "recipe" else {})})
    with pytest.raises(RecipeError) as error:
        make_experiment(plan, methods=None if named == "recipe" else methods, steps=None)
    assert error.value.exit_code == 2


def test_the_command_line_goes_before_the_recipe(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, compare={"methods": ["ligo"], "steps": 50, "seeds": [3, 3, 4]})
    found = make_experiment(plan, methods=None, steps=None)
    assert (list(found.entries), found.steps, found.seeds) == (["scratch", *CONTROLS, "ligo"], 50, (3, 4))
    found = make_experiment(plan, methods=["lemon", "net2net"], steps=70, seeds=[5, 6, 5])
    assert (list(found.entries), found.steps, found.seeds) == (["scratch", *CONTROLS, "lemon", "net2net"], 70, (5, 6))


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


def test_a_rate_of_zero_trains_nothing_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"compare\.learning_rates\[1\].*greater than 0"):
        plan_of(tmp_path, compare={"learning_rates": [1e-3, 0]})


def test_a_comparison_needs_data(tmp_path: Path) -> None:
    refused(plan_of(tmp_path, fit=None), "the recipe has no `fit` section")


def test_a_comparison_needs_to_know_how_long(tmp_path: Path) -> None:
    found = refused(plan_of(tmp_path), "steps of training from scratch is not set", steps=None)
    assert "--steps" in found.hint
    assert make_experiment(plan_of(tmp_path), methods=["lemon"], steps=9).steps == 9


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


def test_source_and_target_share_a_sequence_length(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="same sequence length") as error:
        trained_here(tmp_path, methods=["lemon"], pretrain={"sequence_length": 8})
    assert (error.value.exit_code, error.value.expected, error.value.found) == (2, 16, 8)


# --- controls and sources ---------------------------------------------------------------------------------------------


def test_smaller_models_that_never_grow_take_part(tmp_path: Path) -> None:
    """The source's size, and the target with half of its layers; or those that the recipe names."""
    found = experiment_of(tmp_path, methods=["lemon"])
    family = found.family
    sizes = {name: family.sizes(found.entries[name].planned[0].stage.config) for name in CONTROLS}
    assert sizes[SOURCE_SIZE] == family.sizes(found.plan.start.source)
    assert sizes[HALF_DEPTH] == {**family.sizes(found.plan.start.target), "layer": 2}
    assert found.entries[HALF_DEPTH].asked == {"n_layer": 2}
    for name in CONTROLS:
        entry = found.entries[name]
        assert (entry.kind, entry.begins, entry.source, len(entry.planned)) == ("control", "drawn", None, 1)
    named = experiment_of(tmp_path, methods=["lemon"], controls=[{"n_layer": 3}, {"n_embd": 16, "n_head": 2}])
    assert list(named.entries) == [SCRATCH, SOURCE_SIZE, "n_layer 3", "n_embd 16, n_head 2", "lemon"]
    assert named.entries["n_layer 3"].asked == {"n_layer": 3}
    assert list(experiment_of(tmp_path, methods=["lemon"], controls=[]).entries) == [SCRATCH, SOURCE_SIZE, "lemon"]
    # Half of the target's layers may be the source.
    deeper = experiment_of(tmp_path, {"n_layer": 4}, methods=["lemon/stack"])
    assert list(deeper.entries) == [SCRATCH, SOURCE_SIZE, "lemon/stack"]


def test_a_list_with_an_entry_for_each_layer_is_cut_for_a_smaller_model(tmp_path: Path) -> None:
    """The library refuses a list of another length, and only when the model is built: after scratch was trained."""
    kinds = ["full_attention", "sliding_attention"]
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"model_type": "qwen3", "vocab_size": 300, "head_dim": 8, **sizes, "use_sliding_window": True}
    source = {"model": "org/small", "config": {**config, "num_hidden_layers": 2, "layer_types": kinds}}
    plan = plan_of(
        tmp_path,
        {"num_hidden_layers": 4, "layer_types": 2 * kinds},
        source=source,
        compare={"steps": 100, "controls": [{"num_hidden_layers": 3}]},
    )
    entry = make_experiment(plan, methods=["lemon/stack"], steps=None).entries["num_hidden_layers 3"]
    found = entry.planned[0].stage.config
    assert found["layer_types"] == [*kinds, kinds[0]]
    library_config(plan.family, found)


def test_every_method_that_uses_the_source_is_run_with_each_of_its_strengths(tmp_path: Path) -> None:
    found = trained_here(tmp_path, methods=["late", "lemon", "ki"], source_strengths=[4.0, 1.0], pretrain={"steps": 30})
    names = [SCRATCH, *CONTROLS, "late", "lemon", "lemon from 4", "ki", "ki from 4"]
    assert list(found.entries) == names
    # Thirty steps of three sequences are 45 of the two that the target takes a step.
    assert [(source.name, source.steps) for source in found.sources] == [("1", 45), ("4", 180)]
    small = step_flops(found.family, found.plan.start.source, tokens=found.tokens, sequence_length=found.length)
    assert [source.flops for source in found.sources] == pytest.approx([45 * small, 180 * small])
    for name, strength in {"lemon": "1", "lemon from 4": "4", "ki from 4": "4", "late": None}.items():
        entry = found.entries[name]
        assert entry.source == strength
        assert found.source_flops(entry) == (0.0 if strength is None else found.source(strength).flops)
    assert found.most_examples == 2 * max(180, *(found.ends(entry)[-1] for entry in found.entries.values()))


def test_a_checkpoint_has_one_strength(experiment: Experiment) -> None:
    (source,) = experiment.sources
    assert (source.name, source.steps, source.flops) == ("1", None, SOURCE_FLOPS)
    assert {name for name, entry in experiment.entries.items() if entry.source == "1"} == set(WITH_SOURCE)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_the_warmup_is_at_most_a_fifth_of_the_shortest_run_of_any_entry(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, methods=["lemon"], steps=2000, warmup_fraction=0.1, budget_fractions=[0.02, 1])
    assert found.warmup == found.steps_of(0.02) // 5 == 8
    trials = experiment_of(tmp_path, methods=["chosen"], steps=2000, warmup_fraction=0.02, choose_fraction=0.03)
    (warning,) = [found for found in trials.fairness_warnings() if found["rule"] == "short-trials"]
    assert "after 60 steps, of which the learning rate rises in 40" in warning["text"]
    longer = experiment_of(tmp_path, methods=["chosen"], steps=2000, warmup_fraction=0.02, choose_fraction=0.1)
    assert "short-trials" not in [found["rule"] for found in longer.fairness_warnings()]


def test_a_comparison_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"(?s)too short.*8 steps or more"):
        experiment_of(tmp_path, steps=LEAST_STEPS - 1)
    with pytest.raises(RecipeError, match="no growth to compare"):
        experiment_of(tmp_path, {}, methods=["scratch+cosine"])
    with pytest.raises(RecipeError, match=r"(?s)n_layer 9.*as large as the target"):
        experiment_of(tmp_path, methods=["lemon"], controls=[{"n_layer": 9}])


def test_budgets_ascend_to_the_whole(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, methods=["lemon"], budget_fractions=[0.5, 0.25, 0.5], scratch_fractions=[0.3])
    assert found.budget_fractions == (0.25, 0.5, 1.0)
    assert found.ends(found.baseline) == (300, 1000)
    assert found.ends(found.entries["lemon"]) == (250, 500, 1000)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_runs_end_at_equal_costs(share: float, experiment: Experiment) -> None:
    """Within one step of the share of scratch's FLOPs, the fit included."""
    wanted = share * experiment.scratch_flops
    for name, entry in experiment.entries.items():
        steps = experiment.steps_for(entry, share)
        spent = experiment.run_flops(entry, steps) + experiment.fit_flops(entry)
        # Stages begin at whole steps: one step more may move each of them by one.
        one = len(entry.planned) * experiment.scratch_flops / experiment.steps
        assert steps > LEAST_STEPS, name
        assert wanted - one <= spent <= wanted, name
        assert experiment.run_flops(entry, steps + 1) + experiment.fit_flops(entry) > wanted - one
    smaller = {name: experiment.steps_for(experiment.entries[name], share) for name in CONTROLS}
    assert smaller[SOURCE_SIZE] > smaller[HALF_DEPTH] > experiment.steps_of(share), "a smaller model takes more steps"


def test_no_run_is_too_short_for_its_stages(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, steps=LEAST_STEPS)
    assert found.steps_of(0.01) == LEAST_STEPS
    for entry in found.entries.values():
        assert len(entry.planned) <= LEAST_STEPS
        for steps in found.ends(entry):
            assert steps >= LEAST_STEPS
            found.make_run(entry, CHOICE, seed=0, steps=steps)
    assert (found.warmup, found.evaluate_every) == (1, 1)


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5])
def test_all_runs_of_a_comparison_have_one_warmup(warmup: float, tmp_path: Path) -> None:
    """So that the rates of a shorter run are those of a longer one until it falls; a tuning run is such a run, too."""
    found = experiment_of(tmp_path, methods=["lemon"], steps=400, warmup_fraction=warmup, scratch_fractions=[0.1, 0.5])
    assert 1 <= found.warmup <= 8
    runs = [found.make_run(found.baseline, CHOICE, seed=0, steps=steps) for steps in (40, 80, 200, 400)]
    for run in runs:
        assert run.warmup == found.warmup
        assert run.history(run.turn) == runs[-1].history(run.turn)


def test_a_run_is_what_its_entry_says(experiment: Experiment) -> None:
    """The order of the data, the seed of growth, the settings chosen, the stages at their shares."""
    for name, entry in experiment.entries.items():
        run = experiment.make_run(entry, CHOICE, seed=3, steps=200, start="s", teacher="t")
        assert run.order == (SECOND_ORDER if entry.begins != "drawn" else "batches"), name
        assert (run.seed, run.steps, run.decay, run.optimizer.name) == (3, 200, 80, "muon")
        assert all(stage.growth is None or stage.growth.seed == 3 for stage in run.stages)
        assert run.stages[-1].config == entry.planned[-1].stage.config
        assert experiment.run_flops(entry, 200) == run_flops(
            experiment.family,
            run,
            sequence_length=experiment.length,
            added=entry.added,
            teacher=experiment.plan.start.source,
        )
    later = experiment.make_run(experiment.entries["lemon/identity@0.6"], CHOICE, seed=0, steps=200)
    assert [stage.begin for stage in later.stages] == [0, 120]
    assert later.stages[0].config == experiment.plan.start.source
    growth = later.stages[1].growth
    assert growth is not None
    assert (growth.width, growth.depth, growth.state) == ("lemon", "identity", "carry")
    lemon = experiment.entries["lemon"].planned[0].stage
    assert lemon.growth is not None
    assert (lemon.growth.width, lemon.growth.depth, lemon.growth.state) == ("lemon", "identity", "reset")
    assert experiment.entries["ligo"].planned[0].stage.growth is None, "it is grown by what it learns"


def test_options_are_settings_of_the_run(tmp_path: Path) -> None:
    names = ["lemon+copy", "lemon/identity@0.6+scale+warm", "lemon+cosine", "ligo+layer-drop", "late+token-drop"]
    found = experiment_of(tmp_path, methods=names, layer_drop=0.2, token_drop=0.3)
    runs = [found.make_run(found.entries[name], CHOICE, seed=0, steps=500) for name in names]
    states = [[stage.growth.state for stage in run.stages if stage.growth] for run in runs]
    assert states == [["copy"], ["scale"], ["reset"], [], ["carry"]]
    assert [run.shape for run in runs] == ["stable", "stable", "cosine", "stable", "stable"]
    assert [stage.warmup > 0 for stage in runs[1].stages] == [False, True]
    assert [run.dropping for run in runs] == [
        NOTHING,
        NOTHING,
        NOTHING,
        Dropping(layers=0.2, steps=1000),
        Dropping(tokens=0.3),
    ]


def test_a_method_may_have_settings_of_its_own(tmp_path: Path) -> None:
    names = ["scratch+adamw", "late+decay@0.25", "lemon+warmup@0.01", "lemon"]
    more = {"optimizers": ["muon", "adamw"], "tuning_fraction": 0.2, "scratch_fractions": [0.5]}
    found = experiment_of(tmp_path, methods=names, **more)
    runs = {name: found.make_run(found.entries[name], CHOICE, seed=0, steps=500) for name in names}
    assert runs["lemon"].warmup == found.warmup != runs["lemon+warmup@0.01"].warmup == 10
    assert found.entries["scratch+adamw"].kind == "method"
    for wrong, told in (
        ("lemon+warmup@0.5", "fifth of the shortest run"),
        ("lemon+adamw", "scratch does not try adamw"),
    ):
        with pytest.raises(RecipeError, match=told) as caught:
            experiment_of(tmp_path, methods=[wrong], **{**more, "optimizers": ["muon"]})
        assert caught.value.exit_code == 2


# --- costs ------------------------------------------------------------------------------------------------------------


def test_what_scratch_costs(experiment: Experiment) -> None:
    """Every step a plain one."""
    family, config = experiment.family, experiment.plan.start.target
    step = step_flops(family, config, tokens=experiment.tokens, sequence_length=experiment.length)
    assert experiment.scratch_flops == experiment.steps * step
    assert experiment.tokens == experiment.batch_size * experiment.length == 2 * 16


@pytest.mark.parametrize("share", [0.005, 0.01, 0.1])
def test_a_fit_costs_no_more_than_its_share(share: float, tmp_path: Path) -> None:
    """Its steps and the two looks that decide whether it is kept; at least one step is taken."""
    found = experiment_of(tmp_path, methods=["ligo", "lemon"], fit_share=share, fit_examples=8)
    family, start = found.family, found.plan.start
    entry = found.entries["ligo"]
    looks = 2 * forward_flops(family, start.target, tokens=8 * 16, sequence_length=16)

    def cost(steps: int) -> float:
        return looks + fit_flops(family, start.source, start.target, steps=steps, tokens=32, sequence_length=16)

    steps = found.fit_steps(entry)
    assert 1 <= steps <= 6
    assert found.fit_flops(entry) == cost(steps)
    assert steps == 1 or cost(steps) <= share * found.scratch_flops
    assert steps == 6 or cost(steps + 1) > share * found.scratch_flops
    assert {name for name, one in found.entries.items() if found.fit_flops(one)} == {"ligo"}


# --- fairness ---------------------------------------------------------------------------------------------------------


FAIR: dict[str, Any] = {"steps": 40_000, "learning_rates": [1e-3, 2e-3, 4e-3]}


def rules(experiment: Experiment) -> list[str]:
    return [found["rule"] for found in experiment.fairness_warnings()]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({}, None),
        ({"steps": 4000}, "scratch-undertrained"),
        ({"learning_rates": [1e-3, 2e-3]}, "few-learning-rates"),
        ({"learning_rates": [1e-3, 2e-3, 1e-3]}, "few-learning-rates"),
        ({"optimizers": ["adamw"]}, "single-optimizer"),
        ({"decays": [0.4]}, "single-decay"),
        ({"decays": [0.4, 0.4]}, "single-decay"),
    ],
)
def test_each_breach_is_told_where_it_is_and_nowhere_else(
    change: Mapping[str, Any], rule: str | None, tmp_path: Path
) -> None:
    found = trained_here(tmp_path, methods=["lemon", "ki"], **{**FAIR, **change})
    assert rules(found) == ([] if rule is None else [rule])


def test_of_a_source_from_elsewhere_neither_cost_nor_data_are_known(tmp_path: Path) -> None:
    found = experiment_of(tmp_path, methods=TRIED_METHODS, **FAIR)
    assert rules(found) == ["source-cost-unknown", "source-data-unknown"]
    known = replace(found, sources=tuple(replace(source, flops=1e9) for source in found.sources))
    assert rules(known) == ["source-data-unknown"]
    for warning in found.fairness_warnings():
        assert warning["methods"] == WITH_SOURCE


def test_an_entry_is_the_tables(experiment: Experiment) -> None:
    for name, entry in experiment.entries.items():
        assert entry.method == (None if name in CONTROLS else method_named(name))
        assert bool(entry.added) == (name == "freeze")
        assert entry.is_taught == (name == "ki")

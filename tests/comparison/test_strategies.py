"""Strategies, methods and schedules as data: stage shares sum to one, names are known, layers are dropped by the formula."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import python

from ligo_convert.comparison.methods import METHODS, SCRATCH, method_named, methods_named
from ligo_convert.comparison.strategies import (
    NOTHING,
    OPTIONS,
    STEEPNESS,
    STRATEGIES,
    Dropping,
    depends_on_run_length,
    dropped_layers,
    kept_tokens,
    skipped_layers,
)
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.training.schedules import SHAPES, Schedule

# What recipes, papers and docs call the methods.
NAMES = [
    "scratch",
    "stackbert",
    "mslt",
    "bert2bert",
    "ki",
    "freeze",
    "direct",
    "interpolate",
    "net2net",
    "lemon",
    "hyperclone",
    "ligo-paper",
    "ligo",
]
LAYERS = range(1, 49)


# Stages.


@pytest.mark.parametrize("name", STRATEGIES)
def test_stages_are_the_whole_run_and_end_with_the_whole_target(name: str) -> None:
    for layers in LAYERS:
        stages = STRATEGIES[name].stages(layers)
        # Shares are sums of decimal fractions: equal but for the last bits.
        assert sum(stage.share for stage in stages) == pytest.approx(1, abs=1e-12)
        assert all(stage.share > 0 for stage in stages)
        heights = [stage.layers or layers for stage in stages]
        assert heights == sorted(heights)
        assert heights[-1] == layers
        assert heights[0] >= 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_top_and_the_sub_models_lie_in_the_model(name: str) -> None:
    for layers in LAYERS:
        for stage in STRATEGIES[name].stages(layers):
            height = stage.layers or layers
            assert (stage.trains == "top") == (stage.top >= 1)
            assert stage.top <= height
            if stage.submodels:
                assert list(stage.submodels) == sorted(set(stage.submodels))
                assert stage.submodels[-1] == height, "the highest sub-model is the model itself"
                assert stage.submodels[0] >= stage.top, "the lowest sub-model has as many layers as learn"


@pytest.mark.parametrize("name", STRATEGIES)
def test_in_the_end_everything_has_learned(name: str) -> None:
    """The last stage trains all, or what is added alone; each layer learns in some stage."""
    for layers in LAYERS:
        stages = STRATEGIES[name].stages(layers)
        last = stages[-1]
        assert 0 < last.until_fraction <= 1
        if last.until_fraction == 1:
            assert last.trains == ("added" if name == "added-only" else "all")
            assert not last.submodels
            assert not last.teacher
        assert all(stage.until_fraction == 1 for stage in stages[:-1])


def test_stacking_is_as_on_bert_base() -> None:
    """50, 70 and 280 of 400 thousand steps with 3, 6 and 12 layers (Gong et al., ICML 2019)."""
    found = [(stage.share * 400, stage.layers) for stage in STRATEGIES["stacking"].stages(12)]
    assert found == [(pytest.approx(50), 3), (pytest.approx(70), 6), (pytest.approx(280), 12)]


def test_layerwise_trains_what_has_come() -> None:
    """In each grown stage the layers that the stage before did not have learn, and no other."""
    for layers in LAYERS:
        *grown, joint = STRATEGIES["layerwise"].stages(layers)
        assert grown[0].trains == joint.trains == "all"
        for before, stage in itertools.pairwise(grown):
            assert stage.top == stage.layers - before.layers
            assert stage.layers_from == "top"


def test_two_stages_are_for_an_eighth_and_the_rest() -> None:
    (stage,) = STRATEGIES["two-stage"].stages(12)
    assert (stage.submodels, stage.top, stage.until_fraction) == ((3, 6, 9, 12), 3, 1 / 8)


def test_runs_share_a_stretch_where_no_step_depends_on_how_many_there_are() -> None:
    shared = {name for name, strategy in STRATEGIES.items() if not depends_on_run_length(strategy.stages(12))}
    assert shared == {"plain", "added-only"}


# Names.


def test_every_name_is_there() -> None:
    assert set(NAMES) <= set(METHODS)
    assert list(methods_named(NAMES)) == NAMES
    assert next(iter(METHODS)) == SCRATCH


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_start_and_a_strategy_that_exist(name: str) -> None:
    found = method_named(name)
    assert found == METHODS[name]
    assert found.strategy in STRATEGIES
    assert found.random_init or (found.width in WIDTHS and found.depth in DEPTHS)
    assert found.random_init == (name in ("scratch", "stackbert", "mslt", "ki"))
    assert found.needs_source == (not found.random_init or name == "ki")
    assert found.summary
    assert found.paper


def test_what_a_start_keeps() -> None:
    keeps = {name: method_named(name).preserves for name in NAMES}
    assert {name for name, kept in keeps.items() if kept == "no source"} == {"scratch", "stackbert", "mslt", "ki"}
    # Net2Net's copies do not at every ratio; and deeper by the stack again is another function.
    assert {name for name, kept in keeps.items() if kept == "yes"} == {"freeze", "lemon", "hyperclone"}
    assert keeps["ligo"] == "until it is learned"
    assert keeps["ligo-paper"] == "no"


def test_scratch_is_always_there_and_first() -> None:
    assert list(methods_named([])) == ["scratch"]
    assert list(methods_named(["ligo", "scratch", "lemon", "ligo"])) == ["scratch", "ligo", "lemon"]


def test_any_two_starts_are_a_method() -> None:
    for width in WIDTHS:
        for depth in DEPTHS:
            found = method_named(f"{width}/{depth}")
            assert (found.width, found.depth, found.strategy, found.learns_operator) == (width, depth, "plain", False)
            assert found.name == f"{width}/{depth}"
    found = method_named("lemon/stack+fit+staged")
    assert (found.width, found.depth, found.strategy, found.learns_operator) == ("lemon", "stack", "two-stage", True)


@pytest.mark.parametrize("name", [name for name in NAMES if not method_named(name).random_init])
def test_options_combine(name: str) -> None:
    base = method_named(name)
    for count in range(len(OPTIONS) + 1):
        for chosen in itertools.permutations(OPTIONS, count):
            whole = "+".join((name, *chosen))
            if "staged" in chosen and base.strategy != "plain":
                with pytest.raises(ValueError, match="a strategy of its own"):
                    method_named(whole)
                continue
            found = method_named(whole)
            assert (found.name, found.options) == (whole, chosen)
            assert found.drops_layers == ("layer-drop" in chosen)
            assert found.drops_tokens == ("token-drop" in chosen)
            assert found.learns_operator == (base.learns_operator or "fit" in chosen)
            assert found.strategy == ("two-stage" if "staged" in chosen else base.strategy)
            kept = ("width", "depth", "tie", "fit_rates", "paper", "summary")
            assert all(getattr(found, field) == getattr(base, field) for field in kept)


@pytest.mark.parametrize("name", [name for name in NAMES if method_named(name).random_init])
def test_drawn_weights_have_nothing_to_learn_an_operator_of(name: str) -> None:
    with pytest.raises(ValueError, match="drawn weights have no operator to learn"):
        method_named(f"{name}+fit")
    for option in ("layer-drop", "token-drop"):
        assert method_named(f"{name}+{option}").random_init


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nonsense", "no method 'nonsense'"),
        ("lemom", "did you mean lemon?"),
        ("ligo-papr", "did you mean ligo-paper?"),
        ("stack-bert", "did you mean stackbert?"),
        ("lemon/nowhere", "no method 'lemon/nowhere'"),
        ("nowhere/stack", "WIDTH/DEPTH of two starts"),
        ("lemon/", "no method 'lemon/'"),
        ("", "no method ''"),
        ("ligo+token_drop", "no option 'token_drop': fit, layer-drop, token-drop, staged"),
        ("ligo+", "no option ''"),
        ("nonsense+fit", "no method 'nonsense'"),
    ],
)
def test_unknown_names_say_what_is_known(name: str, told: str) -> None:
    with pytest.raises(ValueError) as error:
        methods_named(["scratch", name])
    assert told in str(error.value)
    assert "option" in told or all(known in str(error.value) for known in NAMES)


# What is left out.

STEPS = 4000


def test_layers_are_dropped_as_often_as_the_formula_says() -> None:
    """1 - p_l(t) = l / L * (1 - theta(t)), theta(t) = (1 - q) exp(-100 t / T) + q (arXiv:2010.13369, equations 5 and 6)."""
    layers, most = 6, 0.4
    seen = np.zeros((STEPS, layers))
    for step in range(STEPS):
        dropped = dropped_layers(Dropping(layers=most), layers=layers, step=step, steps=STEPS, seed=3)
        seen[step, list(dropped)] = 1
    for part in (slice(0, STEPS // 100), slice(STEPS // 100, None), slice(None)):
        at = np.arange(STEPS)[part]
        theta = most * np.exp(-STEEPNESS * at / STEPS) + 1 - most
        wanted = np.outer(1 - theta, np.arange(1, layers + 1) / layers)
        deviation = np.sqrt((wanted * (1 - wanted)).sum(0))
        # Five standard deviations: by chance once in two million; the draws are the same for ever.
        assert (np.abs((seen[part] - wanted).sum(0)) < 5 * deviation + 1e-9).all()
    assert (np.diff(seen.mean(0)) > 0).all(), "higher layers are dropped more"
    assert not seen[0].any(), "nothing is dropped before the first step is done"


def test_layers_are_dropped_independently_of_each_other_and_of_other_steps() -> None:
    found = [dropped_layers(Dropping(layers=0.9), layers=4, step=step, steps=STEPS, seed=0) for step in range(400, 800)]
    assert len(set(found)) > 8, "steps differ"
    others = [
        dropped_layers(Dropping(layers=0.9), layers=4, step=step, steps=STEPS, seed=1) for step in range(400, 800)
    ]
    assert found != others, "seeds differ"


def test_which_layers_are_dropped_follows_from_seed_and_step_alone() -> None:
    """Another process, another order of questions, another hash seed: the same layers."""
    asked = list(range(100, 160))
    program = (
        "from ligo_convert.comparison.strategies import Dropping, dropped_layers\n"
        f"print([dropped_layers(Dropping(layers=0.9), layers=5, step=s, steps=200, seed=7) for s in {asked[::-1]}])"
    )
    done = python(program, PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    here = [dropped_layers(Dropping(layers=0.9), layers=5, step=step, steps=200, seed=7) for step in asked]
    assert done.stdout.strip() == str(here[::-1])


def test_nothing_is_dropped_where_nothing_is_asked() -> None:
    assert not any(dropped_layers(NOTHING, layers=48, step=step, steps=50, seed=0) for step in range(50))
    assert kept_tokens(NOTHING, 128) == 128


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 4096))
def test_some_tokens_always_stay(share: float, length: int) -> None:
    kept = kept_tokens(Dropping(tokens=share), length)
    assert 1 <= kept <= length
    assert kept - 1 < (1 - share) * length + 1e-6 * length


@pytest.mark.parametrize(("layers", "middle"), [(1, []), (2, []), (3, [1]), (4, [2]), (6, [3, 4]), (12, [6, 7, 8, 9, 10])])  # fmt: skip
def test_the_first_half_and_the_last_layer_see_every_token(layers: int, middle: list[int]) -> None:
    assert list(skipped_layers(layers)) == middle


# Schedules.


@given(
    first=st.integers(2, 3000),
    more=st.integers(0, 3000),
    warmup=st.integers(1, 200),
)
def test_a_longer_run_has_the_same_rates_up_to_the_turn(first: int, more: int, warmup: int) -> None:
    shorter = Schedule(steps=first, warmup=warmup, shape="stable")
    longer = Schedule(steps=first + more, warmup=warmup, shape="stable")
    assert shorter.turn <= longer.turn
    if warmup < first:
        assert shorter.turn < first
    for step in {0, warmup - 1, warmup, shorter.turn // 2, shorter.turn - 1} & {*range(min(first, shorter.turn))}:
        assert shorter.factor(step) == longer.factor(step)


def test_the_rates_part_where_the_shorter_run_falls() -> None:
    shorter, longer = (Schedule(steps=steps, warmup=4, shape="stable") for steps in (100, 200))
    factors = [[schedule.factor(step) for step in range(100)] for schedule in (shorter, longer)]
    parting = next(step for step in range(100) if factors[0][step] != factors[1][step])
    assert shorter.turn <= parting <= shorter.turn + 1
    assert factors[1][parting] == 1.0 > factors[0][parting]


@pytest.mark.parametrize("shape", set(SHAPES) - {"stable"})
def test_other_shapes_have_no_common_stretch(shape: str) -> None:
    assert Schedule(steps=100, warmup=4, shape=shape).turn == 0


@pytest.mark.parametrize("shape", SHAPES)
@given(begins=st.dictionaries(st.integers(1, 99), st.integers(1, 20), max_size=4), warmup=st.integers(1, 20))
def test_the_rate_rises_anew_where_the_model_changes(shape: str, begins: dict[int, int], warmup: int) -> None:
    plain = Schedule(steps=100, warmup=warmup, shape=shape)
    again = Schedule(steps=100, warmup=warmup, shape=shape, begins=begins)
    for step in range(100):
        rising = [(step - begin + 1) / over for begin, over in begins.items() if begin <= step < begin + over]
        assert again.factor(step) == pytest.approx(plain.factor(step) * min([*rising, 1.0]), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_rates_lie_between_nothing_and_the_peak(shape: str) -> None:
    for steps, warmup in ((2, 1), (10, 3), (1000, 20)):
        found = [Schedule(steps=steps, warmup=warmup, shape=shape).factor(step) for step in range(steps)]
        assert all(0 <= factor <= 1 for factor in found)
        assert max(found) == 1.0
        assert math.isclose(found[0], 1 / warmup)

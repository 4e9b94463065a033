"""Strategies and methods as data: parts follow each other, names are known, layers are dropped by the formula."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import python

from ligo_convert.comparison.methods import METHODS, SCRATCH, method_named, methods_named
from ligo_convert.comparison.strategies import OPTIONS, STRATEGIES
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.state_maps import POLICIES
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.training.dropping import NOTHING, STEEPNESS, Dropping, dropped_layers, kept_tokens, skipped_layers

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
DRAWN = ["scratch", "stackbert", "mslt", "gradual", "midas", "g-stack", "progressive", "apollo", "late", "ki"]
LAYERS = range(1, 49)


# Parts.


@pytest.mark.parametrize("name", STRATEGIES)
def test_parts_follow_each_other_and_end_with_the_whole_target(name: str) -> None:
    for layers in LAYERS:
        parts = STRATEGIES[name].parts(layers)
        begins = [part.at for part in parts]
        assert begins[0] == 0
        assert begins == sorted(begins)
        assert all(0 <= at < 1 for at in begins)
        heights = [part.layers or layers for part in parts]
        assert heights == sorted(heights)
        assert heights[-1] == layers
        assert heights[0] >= 1
        assert all(part.depth in DEPTHS and part.state in POLICIES for part in parts)
        if layers >= 4:
            assert len(set(begins)) == len(begins)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_top_and_the_sub_models_lie_in_the_model(name: str) -> None:
    for layers in LAYERS:
        for part in STRATEGIES[name].parts(layers):
            height = part.layers or layers
            assert (part.trains == "top") == (part.top >= 1)
            assert part.top <= height
            if part.submodels and name == "shared":
                assert set(part.submodels) == {*range(height, layers + 1)}, "layers are shared by all depths above"
            elif part.submodels:
                assert list(part.submodels) == sorted(set(part.submodels))
                assert part.submodels[-1] == height, "the highest sub-model is the model itself"
                assert part.submodels[0] >= part.top, "the lowest sub-model has as many layers as learn"


@pytest.mark.parametrize("name", STRATEGIES)
def test_in_the_end_everything_has_learned(name: str) -> None:
    """The last part trains all, or what is added alone; each layer learns in some part."""
    for layers in LAYERS:
        parts = STRATEGIES[name].parts(layers)
        last = parts[-1]
        assert 0 < last.until_share <= 1
        if last.until_share == 1:
            assert last.trains == ("added" if name == "added-only" else "all")
            assert not last.submodels
            assert not last.teacher
        assert all(part.until_share == 1 for part in parts[:-1])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # 50, 70 and 280 of 400 thousand steps (Gong et al., ICML 2019).
        ("stacking", [(0, 3), (0.125, 6), (0.3, 12)]),
        ("layerwise", [(0, 3), (0.2, 6), (0.4, 9), (0.6, 12), (0.8, 12)]),
        # Part k of four takes k tenths (arXiv:2409.19044).
        ("gradual", [(0, 3), (0.1, 6), (0.3, 9), (0.6, 12)]),
        ("midas", [(0, 3), (0.1, 6), (0.3, 9), (0.6, 12)]),
        ("early-stack", [(0, 3), (0.1, 12)]),
        ("progressive", [(0, 1), (0.6, 12)]),
        ("late", [(0, 6), (0.5, 12)]),
        ("shared", [(0, 3), (0.2, 6), (0.4, 9), (0.6, 12)]),
    ],
)
def test_layers_come_when_the_papers_say(name: str, wanted: list[tuple[float, int]]) -> None:
    found = [(pytest.approx(part.at), part.layers) for part in STRATEGIES[name].parts(12)]
    assert found == wanted


def test_layerwise_trains_what_has_come() -> None:
    """In each grown part the layers that the part before did not have learn, and no other."""
    for layers in LAYERS:
        *grown, joint = STRATEGIES["layerwise"].parts(layers)
        assert grown[0].trains == joint.trains == "all"
        for before, part in itertools.pairwise(grown):
            assert part.top == part.layers - before.layers
            assert part.depth == "top"


def test_two_stages_are_for_an_eighth_and_the_rest() -> None:
    (part,) = STRATEGIES["two-stage"].parts(12)
    assert (part.submodels, part.top, part.until_share) == ((3, 6, 9, 12), 3, 1 / 8)


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
    assert found.random_init == (name in DRAWN)
    assert found.starts_from_source == (name not in (*DRAWN, "sparkling"))
    assert found.needs_source == (found.starts_from_source or name == "ki")
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
    """In any order, as long as each of them changes something and no two contradict each other."""
    base = method_named(name)
    learned = base.learns_operator
    for count in range(3):
        for keys in itertools.permutations(OPTIONS, count):
            chosen = tuple(f"{key}@0.4" if OPTIONS[key].share_of else key for key in keys)
            whole = "+".join((name, *chosen))
            policies = [key for key in keys if key in POLICIES]
            useless = (
                ("staged" in keys and base.strategy != "plain")
                or ("source" in keys and base.grows_at is None)
                or ("warm" in keys and base.grows_at is None)
                or (policies and (learned or "fit" in keys))
                or len(policies) > 1
                or {"adamw", "muon"} == {*keys}
                or {"decay", "cosine"} == {*keys}
            )
            if useless:
                with pytest.raises(ValueError, match=name):
                    method_named(whole)
                continue
            found = method_named(whole)
            assert (found.name, found.options) == (whole, chosen)
            assert found.drops_layers == ("layer-drop" in keys)
            assert found.drops_tokens == ("token-drop" in keys)
            assert found.learns_operator == (learned or "fit" in keys)
            assert found.strategy == ("two-stage" if "staged" in keys else base.strategy)
            assert found.warms == ("warm" in keys)
            assert found.shape == ("cosine" if "cosine" in keys else "stable")
            assert found.state == (policies[0] if policies else None)
            assert found.optimizer == next((key for key in keys if key in ("adamw", "muon")), None)
            assert [found.decay, found.warmup] == [0.4 if key in keys else None for key in ("decay", "warmup")]
            kept = ("width", "depth", "tie", "fit_rates", "paper")
            assert all(getattr(found, field) == getattr(base, field) for field in kept)
            assert found.summary == "; ".join((base.summary, *(OPTIONS[key].summary for key in keys)))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lemon+fit+fit", "+fit is given twice"),
        ("lemon+reset+carry", "+reset and +carry both say what becomes of the optimizer's state"),
        ("late+adamw+muon", "+adamw and +muon both"),
        ("lemon+warm", "+warm is for methods that grow on the way"),
        ("scratch+carry", "it never grows"),
        ("ki+reset", "it never grows"),
        ("ligo+carry", "its operator is learned"),
        ("lemon+decay", "the share after +decay@"),
        ("lemon+decay@0", "the share after +decay@"),
        ("lemon+decay@nan", "the share after +decay@"),
        ("lemon+warmup@1", "the share after +warmup@"),
        ("lemon+warmup@1e", "the share after +warmup@"),
        ("lemon+fit@0.2", "+fit takes no share"),
        ("lemon+cosine+decay@0.2", "+decay does not apply under +cosine"),
    ],
)
def test_an_option_without_effect_or_sense_is_refused(name: str, told: str) -> None:
    with pytest.raises(ValueError) as error:
        method_named(name)
    assert told in str(error.value)


def test_two_starts_may_grow_on_the_way() -> None:
    for share in ("0.6", "0.25"):
        found = method_named(f"lemon/identity@{share}+scale+warm")
        assert (found.width, found.depth, found.grows_at) == ("lemon", "identity", float(share))
        assert (found.state, found.warms, found.needs_source, found.starts_from_source) == ("scale", True, False, False)
    assert method_named("sparkling").grows_at == 0.5
    trained_on = method_named("lemon/identity@0.4+source")
    assert (trained_on.grows_at, trained_on.starts_from_source, trained_on.needs_source) == (0.4, True, True)
    for share in ("0", "1", "1.5", "-1", "half", "nan", ""):
        with pytest.raises(ValueError, match=r"number between 0 and 1, such as lemon/identity@0\.6"):
            method_named(f"lemon/identity@{share}")
    with pytest.raises(ValueError, match="drawn weights have no operator to learn"):
        method_named("lemon/identity@0.6+fit")


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
        ("ligo+token_drop", "no option 'token_drop': fit, layer-drop, token-drop"),
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
        dropped = dropped_layers(Dropping(layers=most, steps=STEPS), layers=layers, step=step, seed=3)
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
    found = [dropped_layers(Dropping(layers=0.9, steps=STEPS), layers=4, step=step, seed=0) for step in range(400, 800)]
    assert len(set(found)) > 8, "steps differ"
    others = [
        dropped_layers(Dropping(layers=0.9, steps=STEPS), layers=4, step=step, seed=1) for step in range(400, 800)
    ]
    assert found != others, "seeds differ"


def test_which_layers_are_dropped_follows_from_seed_and_step_alone() -> None:
    """Another process, another order of questions, another hash seed: the same layers."""
    asked = list(range(100, 160))
    program = (
        "from ligo_convert.training.dropping import Dropping, dropped_layers\n"
        f"print([dropped_layers(Dropping(layers=0.9, steps=200), layers=5, step=s, seed=7) for s in {asked[::-1]}])"
    )
    done = python(program, PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    here = [dropped_layers(Dropping(layers=0.9, steps=200), layers=5, step=step, seed=7) for step in asked]
    assert done.stdout.strip() == str(here[::-1])


def test_nothing_is_dropped_where_nothing_is_asked() -> None:
    assert not any(dropped_layers(NOTHING, layers=48, step=step, seed=0) for step in range(50))
    assert kept_tokens(NOTHING, 128) == 128


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 4096))
def test_some_tokens_always_stay(share: float, length: int) -> None:
    kept = kept_tokens(Dropping(tokens=share), length)
    assert 1 <= kept <= length
    assert kept - 1 < (1 - share) * length + 1e-6 * length


@pytest.mark.parametrize(("layers", "middle"), [(1, []), (2, []), (3, [1]), (4, [2]), (6, [3, 4]), (12, [6, 7, 8, 9, 10])])  # fmt: skip
def test_the_first_half_and_the_last_layer_see_every_token(layers: int, middle: list[int]) -> None:
    assert list(skipped_layers(layers)) == middle

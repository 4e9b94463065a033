"""Every start on every family and every kind of growth: exact where it is promised, in the library's own model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from support.tiny import (
    ALL_CASES,
    CASES,
    GRIDS,
    TARGETS,
    config_of,
    family_of,
    grown_state,
    logits,
    model_of,
    operator_family,
    start_of,
    state_of,
    target_model,
)

from ligo_convert.errors import RecipeError
from ligo_convert.families.registry import FAMILIES
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.new_parameters import added_parts
from ligo_convert.growth.width_methods import WIDTHS

CAUSAL = [name for name in CASES if name in FAMILIES and FAMILIES[name].task == "causal-lm"]
GRID = [
    (family, tied, target, width, depth)
    for family in ALL_CASES
    for tied, target in itertools.product(
        (True, False) if FAMILIES[ALL_CASES[family].family or family].tied else (False,), TARGETS[family]
    )
    for width, depth in itertools.product(WIDTHS, DEPTHS)
    # What changes the function by its width needs no other ways to change it beside; by its depth, one width to be changed beside.
    if "copy" not in (width, depth)
    and (
        depth in ("identity", "stack")
        # Where the depth does not grow, all depth methods are one.
        or (target in ("depth", "both") and (width == "zero" or (width, depth) == ("mean-preserving", "silent-drawn")))
    )
    # A family that differs from another in its names alone has that one's maps.
    and (
        family in GRIDS
        or (target in ("even", "both") and width in ("lemon", "net2net") and depth in ("identity", "stack"))
    )
]


@pytest.fixture(scope="module")
def source_of():
    made: dict[tuple[str, bool], tuple[dict, dict, torch.Tensor]] = {}

    def source(family: str, tied: bool):
        if (family, tied) not in made:
            config = config_of(family, tied=tied)
            model = model_of(config)
            made[family, tied] = config, state_of(config, model), logits(model)
        return made[family, tied]

    return source


@pytest.mark.parametrize("case", GRID, ids=lambda case: "-".join(str(part).replace(" ", "_") for part in case))
def test_a_start_keeps_what_it_promises(case, source_of) -> None:
    family, tied, target, width, depth = case
    config, state, before = source_of(family, tied)
    table = family_of(config)
    old = table.sizes(config)
    new = table.sizes({**config, **TARGETS[family][target]})
    uneven = any(new[axis] % max(1, old[axis]) for axis in table.axes if axis not in table.depth_axes)
    embed = table.norm.stream
    behind = table.norm.place != "pre" or any(stream in table.roles for stream in table.norm.activated_streams)
    post = width == "lemon" and behind and new[embed] % old[embed] != 0
    if (width == "hyperclone" and uneven) or post:
        # Only a start that promises the function may refuse.
        with pytest.raises(RecipeError, match="whole multiple"):
            start_of(family, config, TARGETS[family][target], width=width, depth=depth)
        return
    if tied and not table.norm.affine and new[embed] != old[embed] and WIDTHS[width].preserving:
        with pytest.raises(RecipeError, match="no norm before it has a gain"):
            start_of(family, config, TARGETS[family][target], width=width, depth=depth)
        return
    start = start_of(family, config, TARGETS[family][target], width=width, depth=depth)
    model = target_model(initial_operator(start, dtype=np.float64), state)
    apart = float((logits(model) - before).abs().max() / before.abs().max())
    if start.verdict == "exact":
        assert apart < ALL_CASES[family].tolerance, start.reasons
    # A drawn layer begins with the LayerScale that its config states, which may be next to nothing.
    elif "mean-preserving" not in start.rewrites and not (
        depth in ("direct", "drawn") and any(map(table.is_scale, table.rows_for(config)))
    ):
        # The verdict is no excuse: what is called lossy or near is so on random weights, whose means and norms are large.
        assert apart > 1e-4, start.reasons


@pytest.mark.parametrize("family", CASES)
def test_a_model_without_layers_grows_drawn_ones(family: str) -> None:
    kind = FAMILIES[CASES[family].family or family]
    first = kind.axes[kind.depth_axes[0]]
    config = config_of(family, **{first: 0})
    model = model_of(config)
    state, before = state_of(config, model), logits(model)
    changes = {**TARGETS[family]["even"], first: 3}

    def start(depth: str):
        return start_of(family, config, changes, width="mean-preserving", depth=depth)

    for depth in ("identity", "stack", "top", "middle", "interpolate"):
        with pytest.raises(RecipeError, match="no layer to copy"):
            start(depth)
    post = kind.norm.placement == "post"
    if post:
        with pytest.raises(RecipeError, match="no norm for the new layers to continue"):
            start("silent-drawn")
    else:
        assert start("silent-drawn").verdict == "exact"
    for depth in ("drawn",) if post else ("drawn", "silent-drawn"):
        operator = initial_operator(start(depth), dtype=np.float64)
        after = logits(target_model(operator, state))
        assert after.shape == before.shape
        if depth == "silent-drawn":
            assert (after - before).abs().max() / before.abs().max() < CASES[family].tolerance
        # All layers at once, as a fit grows them, and from a file.
        family_table, grown = operator_family(operator), grown_state(operator, state)
        grower = Grower(operator, family_table, dtype=torch.float64, fetch=lambda *_: torch.empty(0))
        for row in family_table.rows_for(operator.target):
            if row.depth == kind.depth_axes[0]:
                for layer, tensor in enumerate(grower.grow_stacked(row, torch.empty(0))):
                    assert torch.equal(tensor, grown[family_table.written(row.name(layer))])
        parts = added_parts(family_table, operator)
        for row in family_table.rows_for(operator.target):
            assert all(
                (parts[row.name(layer)].kind == "new") == (row.depth == kind.depth_axes[0])
                for layer in family_table.layers(row, operator.target)
            )


@pytest.mark.parametrize("family", CAUSAL)
def test_hyperclone_and_lemon_refuse_what_breaks_the_promise(family: str) -> None:
    config = config_of(family)
    key = next(key for key in FAMILIES[family].defaults if key == FAMILIES[family].activation)
    with pytest.raises(RecipeError, match="promises the source's function"):
        start_of(family, config, {**TARGETS[family]["even"], key: "relu"}, width="lemon", depth="identity")
    epsilon = FAMILIES[family].norm.epsilon
    with pytest.raises(RecipeError, match="would be exact"):
        start_of(family, config, {**TARGETS[family]["uneven"], epsilon: 1e-5}, width="lemon", depth="identity")


def test_layers_that_know_their_index_cannot_be_moved() -> None:
    config = config_of("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(RecipeError, match="depend on its index"):
        start_of("gpt2", config, TARGETS["gpt2"]["depth"], width="lemon", depth="identity")
    assert start_of("gpt2", config, TARGETS["gpt2"]["even"], width="lemon", depth="identity").verdict == "exact"
    stacked = start_of("gpt2", config, TARGETS["gpt2"]["both"], width="lemon", depth="stack")
    assert stacked.verdict == "lossy"


@pytest.mark.parametrize("scaled", [True, False])
def test_a_grown_head_size_keeps_the_dot_products(scaled: bool) -> None:
    config = config_of("gpt2", scale_attn_weights=scaled)
    model = model_of(config)
    start = start_of("gpt2", config, TARGETS["gpt2"]["head size"], width="lemon", depth="identity")
    grown = target_model(initial_operator(start, dtype=np.float64), state_of(config, model))
    torch.testing.assert_close(logits(grown), logits(model), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("width", ["lemon", "hyperclone", "zero"])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_tied_source_may_be_untied_on_request(family: str, width: str) -> None:
    config = config_of(family, tied=True)
    model = model_of(config)
    changes = {**TARGETS[family]["even"], "tie_word_embeddings": False}
    start = start_of(family, config, changes, width=width, depth="identity")
    assert start.verdict == "exact"
    grown = target_model(initial_operator(start, dtype=np.float64), state_of(config, model))
    torch.testing.assert_close(
        logits(grown), logits(model), rtol=CASES[family].tolerance, atol=CASES[family].tolerance * 10
    )


def test_what_the_exact_map_needs_is_what_breaks_it() -> None:
    """Each ingredient of the map under LayerNorm, left out, is seen in the logits: the tests above can fail."""
    config = config_of("gpt2")
    model = model_of(config)
    state, before = state_of(config, model), logits(model)
    start = start_of("gpt2", config, TARGETS["gpt2"]["uneven"], width="lemon", depth="identity")
    operator = initial_operator(start, dtype=np.float64)

    def apart(broken) -> float:
        return float((logits(target_model(broken, state)) - before).abs().max())

    def with_maps(change):
        return operator.map_arrays(change)

    assert apart(operator) < 1e-12
    unscaled = {**operator.target, "layer_norm_epsilon": config["layer_norm_epsilon"]}
    assert apart(type(operator)(**{**operator.__dict__, "target": unscaled})) > 1e-8
    assert apart(with_maps(lambda name, array: array * 1.2 if "/gain." in name else array)) > 1e-2
    assert apart(with_maps(lambda name, array: array * 0 if name == "0/width/embed/0/write.tail" else array)) > 1e-3
    # The free reads are free: whatever they are, the function stays.
    assert apart(with_maps(lambda name, array: array * 7 if name == "0/width/embed/0/read.tail" else array)) < 1e-12

"""Layers of several kinds: lists with one entry per layer move with their layers, also where the library fills them in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from support.tiny import config_of, grown_state, logits, model_of, start_of, state_of, target_model

from ligo_convert.errors import RecipeError
from ligo_convert.families.registry import FAMILIES
from ligo_convert.growth.initialize import initial_operator

RULED = [name for name, family in FAMILIES.items() if family.layer_rules]


def test_some_family_has_a_rule() -> None:
    assert {"gemma2", "gemma3_text", "olmo3"} <= {*RULED}


@pytest.mark.parametrize("name", RULED)
def test_a_rule_fills_in_the_list_of_the_library(name: str) -> None:
    family = FAMILIES[name]
    for layers in (1, 7, 24):
        made = transformers.AutoConfig.for_model(family.model_type, **{family.axes["layer"]: layers}).to_dict()
        for key in family.layer_rules:
            assert family.layer_list({k: v for k, v in made.items() if k != key}, key) == made[key]


@pytest.mark.parametrize("name", RULED)
def test_layers_keep_their_kinds_where_the_source_has_no_list(name: str) -> None:
    """A checkpoint of the first release: its config has no list. The new layers have the kind of the layer that they copy."""
    family = FAMILIES[name]
    (key,) = family.layer_rules
    layers = family.axes["layer"]
    whole = config_of(name, **{layers: 6})
    config = {k: v for k, v in whole.items() if k != key}
    model = model_of(whole)
    before = logits(model)
    start = start_of(name, config, {layers: 9}, width="copy", depth="identity")
    assert start.verdict == "exact"
    moved = start.target[key]
    assert isinstance(moved, list)
    assert moved == [whole[key][layer] for layer in start.depths["layer"].source]
    assert moved != family.layer_list({**config, layers: 9}, key), "the library's own list would be another"
    grown = target_model(initial_operator(start, dtype=np.float64), dict(model.state_dict()))
    assert float((logits(grown) - before).abs().max() / before.abs().max()) < 1e-5


@pytest.mark.parametrize(("name", "key"), [("smollm3", "no_rope_layers"), ("granite_swa", "layer_types")])
def test_every_list_must_be_there_where_the_index_decides_without_one(name: str, key: str) -> None:
    whole = config_of(name)
    config = {k: v for k, v in whole.items() if k != key}
    layers = FAMILIES[name].axes["layer"]
    with pytest.raises(RecipeError, match="makes a layer depend on its index"):
        start_of(name, config, {layers: 5}, width="copy", depth="identity")
    assert start_of(name, whole, {layers: 5}, width="copy", depth="identity").verdict == "exact"


@pytest.mark.parametrize(
    ("name", "key"), [("qwen3", "layer_types"), ("smollm3", "no_rope_layers"), ("gemma2", "layer_types")]
)
def test_a_recipe_that_sets_a_list_otherwise_changes_the_function(name: str, key: str) -> None:
    config = config_of(name)
    own = list(config[key])
    assert start_of(name, config, {key: own}, width="copy", depth="copy").verdict == "exact"
    other = [*own[:-1], {0: 1, 1: 0}.get(own[-1], "another")]
    start = start_of(name, config, {key: other}, width="copy", depth="copy")
    assert start.verdict == "lossy"
    assert f"the recipe sets {key} otherwise than the layers move" in start.reasons
    with pytest.raises(RecipeError, match="promises the source's function"):
        start_of(name, config, {key: other, "hidden_size": 32, "num_attention_heads": 8}, width="lemon", depth="copy")


def test_a_copy_of_the_first_layer_has_the_norm_that_the_first_layer_lacks() -> None:
    """ModernBERT's first attention reads the normalised embeddings; a silent copy of that layer takes the norm of the second."""
    config = config_of("modernbert")
    state = state_of(config, model_of(config))
    start = start_of("modernbert", config, {"num_hidden_layers": 7}, width="copy", depth="identity")
    assert start.depths["layer"].source[:2] == (0, 0)
    grown = grown_state(initial_operator(start, dtype=np.float64), state)
    assert "model.layers.0.attn_norm.weight" not in grown
    assert torch.equal(grown["model.layers.1.attn_norm.weight"], state["model.layers.1.attn_norm.weight"])
    assert torch.equal(grown["model.layers.1.mlp_norm.weight"], state["model.layers.0.mlp_norm.weight"])


def test_the_first_norm_of_a_model_of_one_layer_is_drawn() -> None:
    config = config_of("modernbert", num_hidden_layers=1, layer_types=None)
    model = model_of(config)
    start = start_of("modernbert", config, {"num_hidden_layers": 3}, width="copy", depth="identity")
    assert start.verdict == "exact"
    assert "model.layers.{layer>0}.attn_norm.weight" in start.drawn_rows
    grown = target_model(initial_operator(start, dtype=np.float64), state_of(config, model))
    before = logits(model)
    assert float((logits(grown) - before).abs().max() / before.abs().max()) < 1e-6

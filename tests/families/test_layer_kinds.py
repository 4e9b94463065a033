"""Layers of several kinds: lists with one entry per layer move with their layers, also where the library fills them in."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from support.tiny import config_of, logits, model_of, start_of, target_model

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

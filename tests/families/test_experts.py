"""Experts: one tensor for each matrix of each expert on disk, all experts of a layer in one parameter of the library's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.optimizer_states import with_state
from support.source_models import recipe_text, write_case
from support.tiny import ALL_CASES, TARGETS, config_of, family_of, logits, model_of, state_of

import ligo_convert
from ligo_convert.cli.inspect import describe_family
from ligo_convert.conversion.convert import convert
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families.flops import forward_flops
from ligo_convert.families.parameters import model_parameters
from ligo_convert.families.registry import FAMILIES, find_family
from ligo_convert.importing.sandbox import support
from ligo_convert.recipes.recipe import load_recipe
from ligo_convert.training.model_tensors import parameters_of, tensors_of

EXPERTS = [name for name, family in FAMILIES.items() if family.experts]
MAPPED = [name for name in ALL_CASES if name in FAMILIES and FAMILIES[name].in_model]


def test_families_with_experts() -> None:
    assert {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe"} <= {*EXPERTS}


@pytest.mark.parametrize("name", MAPPED)
def test_the_files_are_those_that_the_library_writes(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    model = model_of(config, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    ours = state_of(config, model)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(ours)
        for key in file.keys():  # noqa: SIM118  not a mapping
            assert torch.equal(file.get_tensor(key), ours[key]), key


@pytest.mark.parametrize("name", MAPPED)
def test_parameters_and_tensors_are_each_others_inverse(name: str) -> None:
    config = config_of(name)
    found = model_parameters(family_of(config), config)
    values = dict(model_of(config).named_parameters())
    assert {parameter.name for parameter in found} == set(values)
    there = tensors_of(found, values)
    back = parameters_of(found, there)
    assert set(back) == set(values)
    assert all(torch.equal(back[key], value) for key, value in values.items())


@pytest.mark.parametrize("name", EXPERTS)
def test_a_model_given_to_grow_comes_back_with_its_experts(name: str) -> None:
    model = model_of(config_of(name), dtype=torch.float32)
    model.get_submodule("model.layers.0.mlp.experts").requires_grad_(False)
    grown = ligo_convert.grow(model, TARGETS[name]["both"], progress=False)
    assert type(grown) is type(model)
    assert grown.ligo.preservation["verdict"] == "exact"
    before = logits(model)
    assert float((logits(grown) - before).abs().max() / before.abs().max()) < 1e-4
    frozen = {key for key, parameter in grown.named_parameters() if not parameter.requires_grad}
    # Three layers of two: the copy of the first layer follows it.
    assert {key.split(".mlp.")[0] for key in frozen} == {"model.layers.0", "model.layers.1"}
    assert all(".mlp.experts." in key for key in frozen)
    masks = grown.ligo.new_parameter_masks()
    shapes = {key: tuple(parameter.shape) for key, parameter in grown.named_parameters()}
    assert {key: tuple(mask.shape) for key, mask in masks.items()} == shapes


def test_a_token_counts_the_experts_that_it_passes() -> None:
    family, config = FAMILIES["mixtral"], config_of("mixtral", num_local_experts=4, num_experts_per_tok=2)
    dense = config_of("mistral", intermediate_size=2 * 24)
    sizes = {"tokens": 64, "sequence_length": 16}
    router = 2 * 4 * 16 * 64 * 2  # [experts, width], in two layers
    assert forward_flops(find_family(config, where="case"), config, **sizes) == router + forward_flops(
        FAMILIES["mistral"], dense, **sizes
    )
    assert family.expert_count == 1, "the definition itself is for no number of experts"


@pytest.mark.parametrize("name", EXPERTS)
def test_the_number_of_experts_cannot_change(name: str) -> None:
    config = config_of(name)
    family = family_of(config)
    key = next(key for key in ("num_experts", "num_local_experts") if key in config)
    with pytest.raises(RecipeError, match="expert cannot grow"):
        family.resize(config, {key: config[key] + 1})  # type: ignore[operator]


@pytest.mark.parametrize("wrong", ["eight", -1, 0, 1.5, True, 10**30])
def test_a_wrong_number_of_experts_is_an_error_of_the_config(wrong: object, tmp_path: Path) -> None:
    source = write_case(tmp_path / "source", "mixtral")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_local_experts": wrong}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(source, {"num_hidden_layers": 3}, growth={"width": "copy", "depth": "stack"}))
    with pytest.raises(SourceError, match="num_local_experts"):
        ligo_convert.plan(load_recipe(recipe))


@pytest.mark.skipif(support() is not None, reason=str(support()))
def test_the_state_of_stacked_experts_is_refused(tmp_path: Path) -> None:
    source = write_case(tmp_path / "source", "mixtral")
    with_state(source)
    recipe = tmp_path / "recipe.yaml"
    growth = {"width": "lemon", "depth": "identity", "state": "carry"}
    out = {"dir": str(tmp_path / "out")}
    recipe.write_text(recipe_text(source, TARGETS["mixtral"]["both"], growth=growth, output=out))
    with pytest.raises(SourceError, match="several tensors of this mixtral in one parameter"):
        convert(load_recipe(recipe))
    assert not (tmp_path / "out").exists()


def test_a_description_counts_all_experts() -> None:
    described = describe_family("mixtral")
    assert described["parameters"] == pytest.approx(46.7e9, rel=0.01)
    (gate, *_) = [row for row in described["rows"] if "experts.0.w1" in row["pattern"]]
    assert gate["note"] == "the first of 8 experts"

"""`init`: the recipe it writes plans and runs as it says, for every family."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.slow import rest_slow
from support.source_models import write_case
from support.tiny import BESIDE, CASES, STATED

from ligo_convert.conversion.new_recipe import MOST_GROWTH, default_file, suggest_recipe
from ligo_convert.conversion.plan import plan_recipe
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families.configs import flat_config
from ligo_convert.families.registry import FAMILIES
from ligo_convert.recipes.recipe import load_recipe

PUBLISHED = [(family.name, name) for family in FAMILIES.values() for name in family.published]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("family_name", "name"), PUBLISHED)
def test_published_sizes_have_the_published_parameters(family_name: str, name: str) -> None:
    family = FAMILIES[family_name]
    sizes = family.published[name]
    config = flat_config({"model_type": family.model_type, **sizes, **BESIDE.get(name, {})}, where=name)
    family = family.with_experts(config)
    found = family.parameters(family.rows_for(config), config)
    number = re.search(r"-([\d.]+)([bBM])", name)
    if name in STATED:
        wanted = STATED[name] * 1e6
    else:
        assert number is not None
        wanted = float(number[1]) * (1e6 if number[2] == "M" else 1e9)
    # Names round: Qwen2.5-7B has 7.6 billion parameters.
    assert found == pytest.approx(wanted, rel=0.03 if name in STATED else 0.1)
    assert set(sizes) <= set(family.size_keys)


@pytest.mark.parametrize("name", rest_slow(CASES, {"gpt2", "llama", "bert", "cait"}.__contains__))
def test_every_family_has_a_recipe_that_plans(name: str, place: Path) -> None:
    write_case(place / "source", name)
    for grow in (None, CASES[name].uneven, CASES[name].even, CASES[name].depth):
        path = place / "a.yaml"
        suggestion = suggest_recipe("source", path, grow=grow)
        path.write_text(suggestion.text)
        recipe = load_recipe(path)
        plan = plan_recipe(recipe)
        chosen = suggestion.chosen
        assert recipe.source.model == "./source"
        assert plan.start.verdict == chosen.growth.verdict
        assert plan.start.reasons == chosen.growth.reasons
        assert plan.parameters == {"source": suggestion.parameters, "target": chosen.parameters}
        assert f"# Expected: {recipe.growth.width} with {recipe.growth.depth} " in suggestion.text
        # Post-norm has an exact map for whole multiples only.
        post_norm = plan.family.name in ("bert", "roberta")
        uneven = grow is CASES[name].uneven
        assert chosen.growth.verdict == "exact" or (uneven and post_norm), chosen.growth.reasons
        if grow is not None:
            assert dict(recipe.target.config or {}) == dict(grow)


def test_the_next_published_size_is_the_default(place: Path) -> None:
    write_published(place / "small", {"n_embd": 768, "n_head": 12, "n_layer": 12})
    suggestion = suggest_recipe("small", place / "a.yaml")
    assert suggestion.chosen.name == "gpt2-medium"
    assert dict(suggestion.chosen.changes) == {"n_embd": 1024, "n_head": 16, "n_layer": 24}
    assert [other.name for other in suggestion.others] == ["gpt2-large", "gpt2-xl"]
    other = suggest_recipe("small", place / "a.yaml", size="gpt2-xl")
    assert dict(other.chosen.changes) == {"n_embd": 1600, "n_head": 25, "n_layer": 48}
    assert "gpt2-medium (355M, exact): {n_embd: 1024, n_head: 16, n_layer: 24}" in other.text


def test_a_source_without_a_published_size_near_it_gets_twice_the_layers(place: Path) -> None:
    write_case(place / "tiny", "gpt2")
    suggestion = suggest_recipe("tiny", place / "a.yaml")
    assert dict(suggestion.chosen.changes) == {"n_layer": 4}
    assert suggestion.others[0].parameters > MOST_GROWTH * suggestion.parameters
    write_published(place / "large", {"n_embd": 1600, "n_head": 25, "n_layer": 48})
    suggestion = suggest_recipe("large", place / "a.yaml")
    assert (suggestion.chosen.name, suggestion.others) == ("", ())
    assert dict(suggestion.chosen.changes) == {"n_layer": 96}


def test_what_cannot_grow_is_refused(place: Path) -> None:
    write_published(place / "medium", {"n_embd": 1024, "n_head": 16, "n_layer": 24})
    with pytest.raises(RecipeError, match="cannot grow into gpt2\n") as error:
        suggest_recipe("medium", place / "a.yaml", size="gpt2")
    assert error.value.hint == "give config keys with --grow"
    with pytest.raises(RecipeError, match="no published size 'gpt2-lage'") as error:
        suggest_recipe("medium", place / "a.yaml", size="gpt2-lage")
    assert "did you mean gpt2-large?" in error.value.hint
    with pytest.raises(RecipeError, match="no such config key"):
        suggest_recipe("medium", place / "a.yaml", grow={"dim": 3})
    with pytest.raises(SourceError):
        suggest_recipe("./nothing", place / "a.yaml")


def test_a_local_source_is_named_from_the_recipe(place: Path) -> None:
    write_case(place / "models" / "my source: #1", "gpt2")
    for out, wanted in (
        ("a.yaml", "./models/my source: #1"),
        ("recipes/a.yaml", "../models/my source: #1"),
        ("models/a.yaml", "./my source: #1"),
    ):
        path = place / out
        path.parent.mkdir(exist_ok=True)
        text = suggest_recipe("models/my source: #1", path).text
        path.write_text(text)
        assert load_recipe(path).source.model == wanted
        plan_recipe(load_recipe(path))
    absolute = suggest_recipe(os.fspath(place / "models" / "my source: #1"), place / "a.yaml").text
    assert json.dumps(os.fspath(place / "models" / "my source: #1")) in absolute


@pytest.mark.parametrize(
    ("source", "size", "name"),
    [
        ("openai-community/gpt2", None, "gpt2_grown.yaml"),
        ("openai-community/gpt2", "gpt2-medium", "gpt2_to_gpt2-medium.yaml"),
        ("models/my source: #1/", None, "my-source-1_grown.yaml"),
        ("..", None, "model_grown.yaml"),
    ],
)
def test_the_file_has_the_name_of_the_source(source: str, size: str | None, name: str) -> None:
    assert default_file(source, size) == name


def write_published(folder: Path, sizes: Mapping[str, object]) -> None:
    """A checkpoint of a published size in headers alone: the file is as long as its header says, and sparse."""
    family = FAMILIES["gpt2"]
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, object] = {}
    end = 0
    for _, _, spec in family.tensors_of(family.rows_for(config), config, dtype="F32"):
        begin, end = end, end + 4 * spec.elements
        header[spec.name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)

"""Encoder-decoders: two stacks of layers with numbers of their own, cross attention between them, a head that the library scales."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.source_models import recipe_text, write_case
from support.tiny import ALL_CASES, config_of, logits, model_of

import ligo_convert
from ligo_convert.conversion.convert import convert
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families.flops import forward_flops
from ligo_convert.families.registry import FAMILIES
from ligo_convert.growth.apply import drawn_values
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe

VARIANTS = [("t5", True), ("t5 gated", True), ("t5 gated", False)]


def loaded(directory: Path) -> Any:
    model, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        directory, output_loading_info=True, dtype=torch.float64
    )
    assert {key: found for key, found in info.items() if found} == {}
    return model.eval()


def grown(source: Path, changes: Mapping[str, object], **growth: object) -> Any:
    recipe = source.parent / "recipe.yaml"
    sections = {
        "growth": {"width": "lemon", "depth": "identity", **growth},
        "output": {"dir": str(source.parent / "out")},
    }
    recipe.write_text(recipe_text(source, changes, **sections))
    return convert(load_recipe(recipe))


@pytest.mark.parametrize(("name", "tied"), VARIANTS)
def test_a_checkpoint_grows_to_one_that_the_library_loads(name: str, tied: bool, tmp_path: Path) -> None:
    source = write_case(tmp_path / "source", name, tied=tied)
    config = json.loads((source / "config.json").read_text())
    done = grown(source, ALL_CASES[name].both)
    assert done.metrics["preservation"]["verdict"] == "exact"
    out = loaded(done.out)
    assert ("lm_head.weight" in load_file(done.out / "model.safetensors")) == (not tied)
    written = json.loads((done.out / "config.json").read_text())
    assert written["scale_decoder_outputs"] == config["scale_decoder_outputs"] == tied
    before = logits(loaded(source))
    assert float((logits(out) - before).abs().max() / before.abs().max()) < 1e-5
    report = verify(done.out, source=str(source), load=True)
    assert report["derived"]["identical"] == report["derived"]["tensors"]


@pytest.mark.parametrize(("name", "tied"), VARIANTS)
def test_a_model_given_to_grow(name: str, tied: bool) -> None:
    model = model_of(config_of(name, tied=tied), dtype=torch.float32)
    taller: Any = ligo_convert.grow(model, ALL_CASES[name].depth, width="copy", progress=False)
    before = logits(model)
    assert float((logits(taller) - before).abs().max() / before.abs().max()) < 1e-4
    assert len(taller.encoder.block) == 4
    assert len(taller.decoder.block) == 5


def test_both_stacks_and_what_lies_between_them_are_counted() -> None:
    """2 operations a weight and token; 4 * length * width of the heads a token, layer and attention."""
    family, config = FAMILIES["t5"], config_of("t5")
    tokens, length, inner, wide, mlp = 40, 20, 16, 16, 24
    attention = 2 * 4 * wide * inner * tokens + 4 * length * inner * tokens
    dense = 2 * 2 * wide * mlp * tokens
    expected = 2 * (attention + dense) + 3 * (2 * attention + dense) + 2 * wide * 29 * tokens
    assert forward_flops(family, config, tokens=tokens, sequence_length=length) == expected


def test_new_tensors_are_drawn_as_the_library_draws_them() -> None:
    config = config_of("t5", d_model=64, d_kv=16, d_ff=96)
    family = FAMILIES["t5"]
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**{k: v for k, v in config.items() if k != "architectures"})
    )
    own = dict(theirs.named_parameters())
    sizes = family.sizes(config)
    for row in family.rows_for(config):
        if row.layout.dims[0].role != "gain":
            layer = family.layers(row, config)[0]
            ours = drawn_values(family, config, row, layer, family.shape(row, sizes), 0)
            assert np.std(ours) == pytest.approx(float(own[row.name(layer)].detach().std()), rel=0.2), row.pattern


def test_gated_layers_of_another_kind_are_refused(tmp_path: Path) -> None:
    source = write_case(tmp_path / "source", "t5 gated")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "feed_forward_proj": "gated-silu"}))
    with pytest.raises(SourceError, match="feed_forward_proj = 'gated-silu' is not supported"):
        grown(source, {"num_layers": 3})


@pytest.mark.parametrize("old", [True, False])
def test_a_head_of_its_own_is_known_by_what_either_version_writes(old: bool, tmp_path: Path) -> None:
    """Version 4 of transformers writes `tie_word_embeddings: false`; version 5 writes true, and that outputs are not scaled."""
    source = write_case(tmp_path / "source", "t5 gated", tied=False)
    config = json.loads((source / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["scale_decoder_outputs"]) == (True, False)
    if old:
        del config["scale_decoder_outputs"]
        (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    before = logits(loaded(source))
    done = grown(source, ALL_CASES["t5 gated"].uneven, depth="copy")
    after = logits(loaded(done.out))
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5
    assert "lm_head.weight" in load_file(done.out / "model.safetensors")


def test_untying_the_head_changes_what_it_reads(tmp_path: Path) -> None:
    source = write_case(tmp_path / "source", "t5")
    with pytest.raises(RecipeError, match="the target's config changes scale_decoder_outputs"):
        grown(source, {**ALL_CASES["t5"].even, "scale_decoder_outputs": False})

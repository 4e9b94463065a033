"""A checkpoint of every family, written by its library, grows, is loaded by the library with no key left over, and is derived again.

The thorough cases go through `tests/laws/test_roundtrip.py`; these are the others.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import transformers
from support.slow import rest_slow
from support.source_models import family_named, recipe_text, write_case
from support.tiny import ALL_CASES, CASES, logits

from ligo_convert.conversion.convert import convert
from ligo_convert.families.registry import find_family
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe

OTHERS = [name for name in ALL_CASES if name not in CASES]
# Structures of their own.
FIRST = {"olmo2", "gemma2", "qwen3_moe", "modernbert", "t5", "dinov2", "gpt_neox"}


def answers(directory: Path) -> torch.Tensor:
    """What the library's own model of a directory computes, in float64; nothing may be missing, left over or of another shape."""
    config = json.loads((directory / "config.json").read_text())
    if "architecture" in config:
        return logits(timm.create_model(f"local-dir:{directory}", pretrained=True).eval().double())
    head = find_family(config, where="config.json").for_architecture(config["architectures"][0]).chosen
    model, info = getattr(transformers, head.loaded_by).from_pretrained(directory, output_loading_info=True)
    assert {key: found for key, found in info.items() if found} == {}
    assert type(model).__name__ == head.architecture
    if hasattr(model.config, "_experts_implementation"):
        model.set_experts_implementation("eager")  # the others take no float64
    return logits(model.eval().double())


@pytest.mark.parametrize("name", rest_slow(OTHERS, FIRST.__contains__))
def test_a_checkpoint_grows_and_loads(name: str, tmp_path: Path) -> None:
    case, norm = ALL_CASES[name], family_named(name).norm
    source = write_case(tmp_path / "source", name, tied=norm.affine)
    # Where a norm writes the stream, only whole multiples are exact.
    changes = dict(case.both) if norm.place == "pre" and not norm.activated_streams else {**case.even, **case.depth}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    growth = {"width": "lemon", "depth": "identity"}
    recipe.write_text(recipe_text(source, changes, growth=growth, output={"dir": str(out)}))
    done = convert(load_recipe(recipe))
    assert done.metrics["preservation"]["verdict"] == "exact"
    report = verify(out, source=str(source), load=True)
    assert report["derived"]["identical"] == report["derived"]["tensors"]
    before, after = answers(source), answers(out)
    assert float((after - before).abs().max() / before.abs().max()) < 1e-4

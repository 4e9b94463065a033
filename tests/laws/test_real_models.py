"""Real pretrained checkpoints, grown, written, loaded again: the function stays.

Set LIGO_TEST_MODELS to a directory that holds them; without it these tests are skipped.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
import transformers

from ligo_convert.conversion.convert import convert
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe

MODELS = os.environ.get("LIGO_TEST_MODELS")
pytestmark = pytest.mark.skipif(not MODELS, reason="LIGO_TEST_MODELS names no directory of pretrained checkpoints")

SORT = {"n_embd": 64, "n_head": 4, "n_layer": 6}
STORIES = {
    "hidden_size": 96,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "intermediate_size": 256,
    "num_hidden_layers": 9,
}


def grown(tmp_path: Path, model: str, target: dict[str, int], width: str, depth: str) -> tuple[Path, dict]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"version: 1\nsource: {{model: {Path(MODELS or '') / model}}}\ntarget: {{config: {target}}}\n"
        f"growth: {{width: {width}, depth: {depth}}}\noutput: {{dir: {tmp_path / 'out'}}}\n".replace("'", "")
    )
    outcome = convert(load_recipe(recipe))
    return tmp_path / "out", dict(outcome.metrics)


def load(directory: Path) -> torch.nn.Module:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("depth", ["identity"])
def test_the_sorter_still_sorts(tmp_path: Path, depth: str) -> None:
    out, metrics = grown(tmp_path, "gptnano_sort_gpt2_hf", SORT, "lemon", depth)
    assert metrics["preservation"]["verdict"] == metrics["preservation"]["planned"] == "exact"
    model, source = load(out), load(Path(MODELS or "") / "gptnano_sort_gpt2_hf")
    inputs = torch.tensor(list(itertools.product(range(3), repeat=6)))
    tokens = inputs
    with torch.no_grad():
        for _ in range(5):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
        old, new = source(inputs).logits, model(inputs).logits
    assert torch.equal(tokens[:, 6:], inputs.sort(dim=1).values), "all 729 inputs come out sorted"
    assert float((old - new).abs().max()) <= 1e-4 * max(1.0, float(old.abs().max()))


def test_the_storyteller_tells_the_same_story(tmp_path: Path) -> None:
    out, metrics = grown(tmp_path, "stories260K_llama_hf", STORIES, "lemon", "identity")
    assert metrics["preservation"]["verdict"] == "exact"
    assert metrics["preservation"]["departs_at"] is None
    model, source = load(out), load(Path(MODELS or "") / "stories260K_llama_hf")
    prompt = torch.tensor([[1]])
    told = [found.generate(prompt, max_new_tokens=120, do_sample=False) for found in (source, model)]
    assert torch.equal(*told)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight), "the head stays tied"
    with torch.no_grad():
        old, new = source(told[0]).logits, model(told[0]).logits
    assert float((old - new).abs().max()) <= 1e-4 * max(1.0, float(old.abs().max()))


@pytest.mark.parametrize(
    ("model", "target", "width", "depth", "verdict"),
    [
        ("gptnano_sort_gpt2_hf", SORT, "zero", "identity", "exact"),
        ("gptnano_sort_gpt2_hf", {"n_embd": 96, "n_head": 6, "n_layer": 6}, "hyperclone", "identity", "exact"),
        ("stories260K_llama_hf", STORIES, "zero", "identity", "exact"),
        ("stories260K_llama_hf", STORIES, "net2net", "identity", "lossy"),
        ("stories260K_llama_hf", STORIES, "lemon", "stack", "lossy"),
        ("stories260K_llama_hf", STORIES, "direct", "random", "lossy"),
    ],
)
def test_the_plan_says_what_the_run_measures(
    tmp_path: Path, model: str, target: dict[str, int], width: str, depth: str, verdict: str
) -> None:
    out, metrics = grown(tmp_path, model, target, width, depth)
    assert (metrics["preservation"]["planned"], metrics["preservation"]["verdict"]) == (verdict, verdict)
    report = verify(out, source=str(Path(MODELS or "") / model), load=True)
    assert report["derived"]["tensors"] == report["weights"]["tensors"]

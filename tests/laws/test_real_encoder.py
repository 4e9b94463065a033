"""A real pretrained sentence encoder, grown, written, loaded again: its sentences keep their angles.

Set LIGO_TEST_ENCODER to its directory (a headless BERT with a tokenizer); without it these tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers

from ligo_convert.conversion.convert import convert
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe

ENCODER = os.environ.get("LIGO_TEST_ENCODER")
pytestmark = pytest.mark.skipif(not ENCODER, reason="LIGO_TEST_ENCODER names no directory of a pretrained encoder")

SENTENCES = (
    "The cat sits outside.",
    "A man is playing guitar.",
    "The new movie is awesome, and so is the old one.",
    "A woman watches television while the dog plays in the garden.",
    "Do you like pizza?",
    "How old are you? What is your age?",
    "Stock prices fell sharply on Monday after the report.",
    "Machine learning models need a lot of data.",
    "The quick brown fox jumps over the lazy dog.",
    "Quantum computers could break some encryption schemes.",
    "Paris is the capital of France.",
    "He drove to work in his old red car this morning.",
)


def cosines(directory: Path) -> torch.Tensor:
    """Between mean-pooled sentences: [sentences, sentences]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model, info = transformers.AutoModel.from_pretrained(directory, output_loading_info=True)
    assert not any(info.get(key) for key in ("missing_keys", "mismatched_keys"))
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    return pooled @ pooled.T


# At a whole multiple exact to rounding; else `zero` to the first order of a mean, `mean-preserving` to the second.
@pytest.mark.parametrize(
    ("width", "numerator", "denominator", "apart"),
    [
        ("hyperclone", 2, 1, 1e-5),
        ("lemon", 2, 1, 1e-5),
        ("zero", 4, 3, 5e-3),
        ("zero", 3, 2, 5e-3),
        ("mean-preserving", 4, 3, 2e-4),
    ],
)
def test_sentences_keep_their_cosines(
    tmp_path: Path, width: str, numerator: int, denominator: int, apart: float
) -> None:
    source = Path(ENCODER or "")
    config = transformers.AutoConfig.from_pretrained(source)
    target = {
        key: getattr(config, key) * numerator // denominator
        for key in ("hidden_size", "num_attention_heads", "intermediate_size")
    }
    target["num_hidden_layers"] = config.num_hidden_layers + 2
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"version: 1\nsource: {{model: {source}}}\ntarget: {{config: {target}}}\n"
        f"growth: {{width: {width}, depth: identity}}\noutput: {{dir: {tmp_path / 'out'}}}\n".replace("'", "")
    )
    outcome = convert(load_recipe(recipe))
    assert outcome.metrics["preservation"]["planned"] == ("exact" if numerator % denominator == 0 else "near")
    assert outcome.metrics["preservation"]["verdict"] in ("exact", "near")
    assert float((cosines(tmp_path / "out") - cosines(source)).abs().max()) < apart
    verify(tmp_path / "out", source=str(source), load=True)

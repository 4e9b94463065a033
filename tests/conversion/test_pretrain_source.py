"""The source that a recipe trains: what is read back is what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.source_models import GROWN, fit_section, recipe_text, write_text

from ligo_convert.conversion import pretrain_source
from ligo_convert.conversion.convert import convert
from ligo_convert.errors import VerificationError
from ligo_convert.recipes.recipe import load_recipe

PRETRAIN = {
    "config": {"model_type": "gpt2", "vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_head": 2, "n_layer": 2},
    "steps": 1,
    "batch_size": 2,
    "sequence_length": 16,
}


def test_a_bit_lost_between_writing_and_reading_ends_the_run_and_the_next_one_trains_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a.txt", lines=200)
    fit: dict[str, Any] = {**fit_section(), "steps": 1, "heldout_tokens": 32, "data": {"text": ["a.txt"]}}
    recipe = json.loads(recipe_text("", GROWN["gpt2"], fit=fit)) | {"source": {"pretrain": PRETRAIN}}
    (tmp_path / "own.yaml").write_text(json.dumps(recipe))
    opened, flips = pretrain_source.open_source, [1]

    def flip_first(model: str, **options: Any) -> Any:
        if flips:
            flips.pop()
            path = Path(model) / "model.safetensors"
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        return opened(model, **options)

    monkeypatch.setattr(pretrain_source, "open_source", flip_first)
    loaded = load_recipe(tmp_path / "own.yaml", out=str(tmp_path / "out"))
    with pytest.raises(VerificationError, match="differ from the bytes written"):
        convert(loaded, device="cpu")
    # Before anything is learned from it.
    assert not list(tmp_path.rglob("operator.safetensors"))
    assert not (tmp_path / "out").exists()
    assert convert(loaded, device="cpu").changed

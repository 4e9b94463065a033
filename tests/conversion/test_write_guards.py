"""A conversion never finishes with weights that differ from the written bytes or that the library does not load.

Each test damages the staged files at one moment. It fails if `write_job` no longer calls the check that finds the damage.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.source_models import DEEPER, GROWN, write_checkpoint

from ligo_convert.checkpoints.writer import Writer
from ligo_convert.conversion import write
from ligo_convert.conversion.convert import convert
from ligo_convert.errors import VerificationError
from ligo_convert.io.staging import Staging
from ligo_convert.recipes.recipe import Recipe, load_recipe


def recipe(folder: Path, *, target: dict[str, object], width: str) -> Recipe:
    source = write_checkpoint(folder / "source")
    text = {
        "version": 1,
        "source": {"model": str(source)},
        "target": {"config": target},
        "growth": {"width": width, "depth": "stack"},
        "output": {"dir": str(folder / "out")},
    }
    (folder / "recipe.yaml").write_text(json.dumps(text))
    return load_recipe(folder / "recipe.yaml")


def test_weights_that_change_on_disk_after_writing_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = Writer.close
    stagings: list[Staging] = []
    init = Writer.__init__

    def remember(self: Writer, staging: Staging, *args: Any, **options: Any) -> None:
        stagings.append(staging)
        init(self, staging, *args, **options)

    def close_and_flip_a_bit(self: Writer) -> dict[str, str]:
        digests = close(self)
        path = stagings.pop().path / next(iter(digests)) if stagings else None
        if path is not None:  # a writer may be closed twice
            data = bytearray(path.read_bytes())
            data[-1] ^= 1  # a value, not the header: names, shapes and dtypes stay as planned
            path.write_bytes(data)
        return digests

    monkeypatch.setattr(Writer, "__init__", remember)
    monkeypatch.setattr(Writer, "close", close_and_flip_a_bit)
    with pytest.raises(VerificationError, match=r"model\.safetensors.*the bytes on disk differ"):
        convert(recipe(tmp_path, target=DEEPER["gpt2"], width="copy"))
    assert not (tmp_path / "out").exists()


def test_a_directory_that_the_library_does_not_load_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model_files = write.write_model_files

    def ask_for_one_layer_more(*args: Any) -> None:
        write_model_files(*args)
        staging = next(argument for argument in args if isinstance(argument, Staging))
        config = json.loads((staging.path / "config.json").read_bytes())
        staging.write_bytes("config.json", json.dumps({**config, "n_layer": config["n_layer"] + 1}).encode())

    monkeypatch.setattr(write, "write_model_files", ask_for_one_layer_more)
    with pytest.raises(VerificationError, match="transformers"):
        convert(recipe(tmp_path, target=GROWN["gpt2"], width="lemon"))
    assert not (tmp_path / "out").exists()

"""Checkpoints of zeros and recipes for them, made without torch, for tests of what starts fast or needs little memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ligo_convert.families.registry import FAMILIES

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 29}


def write_light_source(folder: Path, config: Mapping[str, object] = GPT2, **changes: object) -> Path:
    """Write a checkpoint with the tensors of `config`, whose config.json has `changes` beside or instead."""
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[str(config["model_type"])]
    specs = [spec for _, _, spec in family.tensors_of(family.rows_for(config), config, dtype="F32")]
    weights = {spec.name: np.zeros(spec.shape, np.float32) for spec in specs}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def write_light_recipe(path: Path, *, depth: str = "identity", out: str = "out", **sections: object) -> Path:
    """Write a recipe that doubles the layers of the source beside it."""
    content = {
        "version": 1,
        "source": {"model": "./source"},
        "target": {"config": {"n_layer": 4}},
        "growth": {"width": "copy", "depth": depth},
        "output": {"dir": out},
        **sections,
    }
    path.write_text(json.dumps(content))
    return path

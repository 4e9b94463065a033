"""Tiny real source checkpoints on disk, written by transformers itself, with a tokenizer trained by this package."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.tiny import ALL_CASES, config_of, family_of, model_of

from ligo_convert.data.train_tokenizer import train_tokenizer
from ligo_convert.families.configs import written_config
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import Family
from ligo_convert.recipes.schema import DataConfig

VOCABULARY = 300
SIZES: dict[str, dict[str, object]] = {
    "gpt2": {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 16, "n_head": 2, "n_layer": 2},
    "llama": {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
    },
}
GROWN: dict[str, dict[str, object]] = {
    "gpt2": {"n_embd": 24, "n_head": 3, "n_layer": 3},
    "llama": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "num_hidden_layers": 3,
    },
}
DEEPER: dict[str, dict[str, object]] = {"gpt2": {"n_layer": 4}, "llama": {"num_hidden_layers": 4}}

_SENTENCE = (
    "the small model grows into a larger one and keeps what it knew while every new layer begins as a copy of an old "
    "layer because training from scratch costs more than a matrix that maps weights to weights"
)


def write_text(path: Path, *, seed: int = 0, lines: int = 800) -> Path:
    """Text of about forty characters a line, the same for the same seed."""
    draw, words = random.Random(seed), _SENTENCE.split()
    path.write_text("".join(" ".join(draw.choices(words, k=8)) + ".\n" for _ in range(lines)))
    return path


@cache
def tokenizer_files(model_type: str, folder: Path) -> Mapping[str, bytes]:
    """Files of a tokenizer trained on text written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer-text.txt", lines=200)
    return train_tokenizer(
        DataConfig(text=["tokenizer-text.txt"]),
        base=folder,
        vocabulary=VOCABULARY,
        seed=0,
        model_type=model_type,
        context=64,
    )


def write_checkpoint(
    directory: Path,
    family: str = "gpt2",
    *,
    seed: int = 0,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    prefix: bool = True,
    buffers: bool = False,
    shard: str = "5GB",
    tokenizer: bool = True,
    **config: object,
) -> Path:
    """Write a checkpoint as transformers saves it; every parameter is away from its initial value.

    Args:
        prefix: False strips the base model's prefix from the names, as GPT-2's own checkpoint on the Hub has them.
        buffers: add the attention masks that old checkpoints carry.
        shard: the largest file, as `save_pretrained` takes it.
    """
    sizes = {"model_type": family, "tie_word_embeddings": tied, **SIZES[family], **config}
    model: Any = model_of({"bos_token_id": 0, "eos_token_id": 0, **sizes}, seed=seed, dtype=dtype)
    model.save_pretrained(directory, max_shard_size=shard)
    if tokenizer:
        for name, data in tokenizer_files(family, directory.parent / "tokenizer-training").items():
            (directory / name).write_bytes(data)
    if buffers or not prefix:
        path = directory / "model.safetensors"
        tensors = load_file(path)
        if not prefix:
            tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        if buffers:
            before = "transformer." if prefix else ""
            for layer in range(2):
                tensors[f"{before}h.{layer}.attn.bias"] = torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64)
                tensors[f"{before}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        save_file(tensors, path, metadata={"format": "pt"})
    return directory


def family_named(name: str) -> Family:
    """The family of a case of `tiny`."""
    return FAMILIES[ALL_CASES[name].family or name]


def text_sizes(family: Family) -> dict[str, object]:
    """Config keys of a text model that a tokenizer trained here, and sequences of 64 tokens, fit; some families leave positions unused."""
    positions = {family.axes[family.positions]: 66} if family.positions else {}
    return {family.axes[family.vocabulary]: VOCABULARY, **positions}


def write_case(
    directory: Path,
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tied: bool = True,
    architecture: str = "",
    tokenizer: bool = False,
    own_layout: bool = False,
    shard: str = "5GB",
    **changes: object,
) -> Path:
    """Write a case of `tiny` as its library saves it; every parameter is away from its initial value.

    Args:
        architecture: another class of the library than the case's. tokenizer: trained here; the sizes then fit it.
        own_layout: config.json as this package writes it, where the library is timm. shard: the largest file, where it is transformers.
        changes: config keys over the case's.
    """
    family = family_named(name)
    config = config_of(name, tied=tied, **(text_sizes(family) if tokenizer else {}), **changes)
    if architecture:
        config["architectures"] = [architecture]
    model: Any = model_of(config, seed=seed, dtype=dtype)
    directory.mkdir(parents=True)
    if family.library == "transformers":
        model.save_pretrained(directory, max_shard_size=shard)
    elif own_layout:
        (directory / "config.json").write_text(json.dumps(written_config(family_of(config), config, {})))
        save_file(model.state_dict(), directory / "model.safetensors", metadata={"format": "pt"})
    else:
        import timm

        timm.models.save_for_hf(model, directory, safe_serialization=True)
    if tokenizer:
        for file, data in tokenizer_files(family.model_type, directory.parent / "tokenizer-training").items():
            (directory / file).write_bytes(data)
    return directory


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Path:
    """Replace the tensors of a checkpoint of one file by what `change` makes of them."""
    path = directory / "model.safetensors"
    changed = change(load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, path, metadata={"format": "pt"})
    return directory


def change_config(directory: Path, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Path:
    """Replace config.json by what `change` makes of it."""
    path = directory / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return directory


def write_images(folder: Path, *, classes: int, each: int = 8, seed: int = 0) -> Path:
    """A folder a class of small JPEG and PNG files of several sizes and modes; the colour tells the class."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        place = folder / f"class-{label}"
        place.mkdir(parents=True)
        for number in range(each):
            height, width = rng.integers(12, 40, size=2)
            pixels = rng.integers(0, 60, size=(height, width, 3)) + 190 * label // max(1, classes - 1)
            image = Image.fromarray(pixels.astype(np.uint8))
            if number % 2:
                image.convert("RGBA" if number % 4 == 1 else "L").save(place / f"{number}.png")
            else:
                image.save(place / f"{number}.jpg")
    return folder


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, sharded or not."""
    index = directory / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else None
    found: dict[str, torch.Tensor] = {}
    for name in names or ["model.safetensors"]:
        found.update(load_file(directory / name))
    return found


def recipe_text(model: Path | str, target: Mapping[str, object], /, **sections: object) -> str:
    """A recipe as JSON, which is YAML; `sections` are merged one level deep into the smallest one."""
    recipe: dict[str, Any] = {
        "version": 1,
        "source": {"model": str(model)},
        "target": {"config": dict(target)},
        "growth": {"width": "lemon", "depth": "identity"},
        "output": {"dir": "out"},
    }
    for name, section in sections.items():
        if isinstance(section, Mapping):
            recipe[name] = {**recipe.get(name, {}), **section}
        elif section is None:
            recipe.pop(name, None)
        else:
            recipe[name] = section
    return json.dumps(recipe, indent=2)


def fit_section(text: str = "corpus/*.txt", **changes: object) -> dict[str, object]:
    """A fit of a few seconds."""
    return {
        "steps": 6,
        "batch_size": 2,
        "sequence_length": 16,
        "heldout_tokens": 256,
        "evaluate_every": 2,
        "learning_rate": {"width": 1e-3, "depth": 1e-2},
        "data": {"text": [text]},
        **changes,
    }

"""Small checkpoints for tests: their files by name, and the folders that hold them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

import ligo_convert

Tree = dict[str, bytes]
Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
TENSORS: dict[str, Array] = {
    "wte.weight": np.arange(60, dtype=np.float32).reshape(12, 5),
    "h.0.ln_1.weight": np.ones(5, np.float16),
    "h.0.mask": np.array([True, False, True]),
    "empty": np.zeros((0, 4), np.float32),
    "position_ids": np.arange(7),
}
CONFIG = {"model_type": "gpt2", "n_embd": 5, "architectures": ["GPT2LMHeadModel"]}


def checkpoint(**more: bytes | None) -> Tree:
    """Files of a small single-file checkpoint; `more` replaces or (None) removes, with `__` for the dot of a name."""
    tree: Tree = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": save(TENSORS, metadata={"format": "pt"}),
        "tokenizer.json": b'{"version": "1.0"}',
        "generation_config.json": b'{"eos_token_id": 1}',
        "README.md": b"---\nlicense: mit\n---\n# small\n",
    }
    for key, data in more.items():
        name = key.replace("__", ".")
        tree.pop(name, None)
        if data is not None:
            tree[name] = data
    return tree


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sharded(weight_map: dict[str, str] | None = None, *, total: object = None) -> Tree:
    names = list(TENSORS)
    shards = {FIRST: names[:2], SECOND: names[2:]}
    true_map = {name: shard for shard, there in shards.items() for name in there}
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in TENSORS.values()) if total is None else total},
        "weight_map": true_map if weight_map is None else weight_map,
    }
    tree = checkpoint(model__safetensors=None)
    tree["model.safetensors.index.json"] = json.dumps(index).encode()
    for shard, there in shards.items():
        tree[shard] = save({name: TENSORS[name] for name in there})
    return tree


def write(folder: Path, tree: Tree) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in tree.items():
        (folder / name).write_bytes(data)
    return folder


HERE = str(Path(ligo_convert.__file__).parents[1])

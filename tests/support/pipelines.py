"""Tiny sentence-transformers directories: a BERT with a tokenizer of words, and the modules that a test asks for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.tiny import model_of

WIDTH = 16
TARGET = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 3}
SENTENCES = ["w1 w2 w3", "w4 w5 w6 w7 w8", "w9 w10", "w20 w30 w1 w2 w2 w33", "w5"]
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 40,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}

Spec = tuple[str, Mapping[str, Any], Mapping[str, torch.Tensor]]  # class, config, weights


def pooling(mode: str | Sequence[str] = "mean", width: int = WIDTH) -> Spec:
    """The module as the library writes it today."""
    return "Pooling", {"embedding_dimension": width, "pooling_mode": mode, "include_prompt": True}, {}


def old_pooling(*modes: str, width: int = WIDTH) -> Spec:
    """The module as older versions of the library wrote it: one flag a mode."""
    flags = {
        f"pooling_mode_{mode}": mode in modes
        for mode in ("cls_token", "mean_tokens", "max_tokens", "weightedmean_tokens")
    }
    return "Pooling", {"word_embedding_dimension": width, **flags}, {}


def dense(inputs: int, outputs: int, *, dtype: torch.dtype = torch.float32, **config: Any) -> Spec:
    drawn = torch.Generator().manual_seed(3)
    weights = {
        "linear.weight": torch.randn(outputs, inputs, generator=drawn) * 0.3,
        "linear.bias": torch.randn(outputs, generator=drawn),
    }
    if config.get("use_residual") and inputs != outputs:
        weights["residual.weight"] = torch.randn(outputs, inputs, generator=drawn) * 0.3
    content = {
        "in_features": inputs,
        "out_features": outputs,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    return "Dense", {**content, **config}, {name: tensor.to(dtype) for name, tensor in weights.items()}


NORMALIZE: Spec = ("Normalize", {}, {})


def write_modules(directory: Path, modules: Sequence[Spec]) -> Path:
    """Write modules.json and the folders of the modules after the transformer, in place of those that are there."""
    for old in directory.glob("[0-9]_*"):
        shutil.rmtree(old)
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, content, weights) in enumerate(modules, start=1):
        folder = f"{number}_{kind.rpartition('.')[2]}"
        full = kind if "." in kind else f"sentence_transformers.models.{kind}"
        listed.append({"idx": number, "name": str(number), "path": folder, "type": full})
        (directory / folder).mkdir()
        if content:
            (directory / folder / "config.json").write_text(json.dumps(content))
        if weights:
            save_file(dict(weights), directory / folder / "model.safetensors", metadata={"format": "pt"})
    (directory / "modules.json").write_text(json.dumps(listed, indent=2))
    return directory


def write_pipeline(directory: Path, modules: Sequence[Spec], **config: Any) -> Path:
    """Write a whole sentence-transformers directory."""
    model: Any = model_of({**CONFIG, **config}, seed=0, dtype=torch.float32)
    model.save_pretrained(directory)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(35))]
    (directory / "vocab.txt").write_text("\n".join(words))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))
    (directory / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "w1"}, "similarity_fn_name": "dot"})
    )
    return write_modules(directory, modules)

"""Ministral 3 and Devstral 2 (Liu et al., 2026) as transformers stores them: Mistral's layers, queries scaled by their position."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.mistral import MISTRAL
from ligo_convert.families.schema import classes

PAPER = r"""@misc{liu2026ministral3,
  title  = {Ministral 3},
  author = {Liu, Alexander H. and others},
  year   = {2026},
  url    = {https://arxiv.org/abs/2601.08584}
}"""

MINISTRAL3 = replace(
    MISTRAL,
    name="ministral3",
    model_type="ministral3",
    heads=classes(MISTRAL.heads, "Mistral", "Ministral3"),
    # Read by no computation. The library requires such a list to have an entry for each layer.
    per_layer_keys={"layer_types": "layer"},
    defaults={
        "vocab_size": 131072,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 34,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 262144,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": 11,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "attention_dropout": 0.0,
    },
    published={
        "Ministral-3-3B": {
            "hidden_size": 3072,
            "intermediate_size": 9216,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 26,
            "head_dim": 128,
        },
        "Ministral-3-8B": {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 34,
            "head_dim": 128,
        },
        "Ministral-3-14B": {
            "hidden_size": 5120,
            "intermediate_size": 16384,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 40,
            "head_dim": 128,
        },
        "Devstral-2-123B": {
            "hidden_size": 12288,
            "intermediate_size": 28672,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "num_hidden_layers": 88,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

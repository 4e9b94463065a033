"""Ministral (Mistral AI, 2024) as transformers stores it: Mistral's layers, each with or without a window."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.definitions.mistral import MISTRAL
from ligo_convert.families.schema import classes

PAPER = r"""@misc{mistral2024ministraux,
  title  = {Un {Ministral}, des {Ministraux}},
  author = {{Mistral AI}},
  year   = {2024},
  url    = {https://mistral.ai/news/ministraux}
}"""

MINISTRAL = replace(
    MISTRAL,
    name="ministral",
    model_type="ministral",
    heads=classes(LLAMA.heads, "Llama", "Ministral"),
    # Without the list, all layers are alike.
    per_layer_keys={"layer_types": "layer"},
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "sliding_window": 4096,
        "attention_dropout": 0.0,
        "layer_types": None,
    },
    published={
        "Ministral-8B": {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 36,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

"""Cohere's Command R7B and Command A (Cohere, 2025) as transformers stores them: Cohere's layers, most of them with a sliding window."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.cohere import COHERE
from ligo_convert.families.schema import classes

PAPER = r"""@misc{cohere2025command,
  title  = {Command {A}: An Enterprise-Ready Large Language Model},
  author = {{Team Cohere}},
  year   = {2025},
  url    = {https://arxiv.org/abs/2504.00698}
}"""

COHERE2 = replace(
    COHERE,
    name="cohere2",
    model_type="cohere2",
    heads=classes(COHERE.heads, "Cohere", "Cohere2"),
    # Layers without a window have no rotary positions. Without a list of layer types, the index of a layer decides which it is.
    per_layer_keys={"layer_types": "layer"},
    layer_index_keys=("sliding_window",),
    required_values={},
    defaults={
        "vocab_size": 256000,
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "logit_scale": 0.0625,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": 0,
        "bos_token_id": 5,
        "eos_token_id": 255001,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "sliding_window": 4096,
    },
    published={
        "command-r7b": {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 32,
        },
        "command-a-111B": {
            "hidden_size": 12288,
            "intermediate_size": 36864,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "num_hidden_layers": 64,
        },
    },
    paper=PAPER,
)

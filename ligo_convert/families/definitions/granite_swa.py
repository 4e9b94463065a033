"""Granite with sliding windows (IBM) as transformers stores it: Granite's layers, and a sink for the attention of each head."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.granite import GRANITE
from ligo_convert.families.schema import classes

PAPER = r"""@misc{ibmgraniteswa,
  title  = {{Granite} with Sliding Window Attention},
  author = {{IBM Granite Team}},
  url    = {https://huggingface.co/ibm-granite/granite-swash-2b}
}"""

GRANITE_SWA = replace(
    GRANITE,
    name="granite_swa",
    model_type="granite_swa",
    heads=classes(GRANITE.heads, "Granite", "GraniteSWA"),
    # A score that each head compares with those of the tokens. A copied head has its own copy.
    streams={**GRANITE.streams, "sink": "kv_heads*group"},
    tensors={**GRANITE.tensors, "model.layers.{layer}.self_attn.sinks": "sink"},
    # Without the list, the index of a layer decides whether it has a window. Without the other one, all have the same rotary positions.
    layer_index_keys=("sliding_window",),
    per_layer_keys={"layer_types": "layer", "layer_rope_theta": "layer"},
    defaults={
        "vocab_size": 100352,
        "hidden_size": 2560,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": None,
        "bos_token_id": 100257,
        "eos_token_id": 100257,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "sliding_window": 128,
        "layer_types": None,
        "layer_rope_theta": None,
    },
    published={
        "granite-swash-2b": {
            "hidden_size": 2560,
            "intermediate_size": 8192,
            "num_attention_heads": 20,
            "num_key_value_heads": 4,
            "num_hidden_layers": 24,
        },
    },
    paper=PAPER,
)

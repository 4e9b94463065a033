"""SmolLM3 (Bakouch et al., 2025) as transformers stores it: Llama's layers, some of them without rotary positions."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{bakouch2025smollm3,
  title  = {{SmolLM3}: Smol, Multilingual, Long-Context Reasoner},
  author = {Bakouch, Elie and Ben Allal, Loubna and others},
  year   = {2025},
  url    = {https://huggingface.co/blog/smollm3}
}"""

SMOLLM3 = replace(
    LLAMA,
    name="smollm3",
    model_type="smollm3",
    heads=classes(LLAMA.heads, "Llama", "SmolLM3"),
    required_values={},
    integer_expressions=(),
    # Without the lists, the index of a layer decides whether it has rotary positions, and that whether it has a window.
    layer_index_keys=("no_rope_layer_interval",),
    per_layer_keys={"no_rope_layers": "layer", "layer_types": "layer"},
    defaults={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "pad_token_id": 128004,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "layer_types": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    },
    published={
        "SmolLM3-3B": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "num_hidden_layers": 36,
        },
    },
    paper=PAPER,
)

"""OLMo 3 (OLMo Team, 2025) as transformers stores it: OLMo 2 with three of four layers in a window."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.definitions.olmo2 import OLMO2
from ligo_convert.families.schema import LayerRule, classes

PAPER = r"""@misc{olmo2025olmo3,
  title  = {Olmo 3},
  author = {{Team Olmo}},
  year   = {2025},
  url    = {https://arxiv.org/abs/2512.13961}
}"""

OLMO3 = replace(
    OLMO2,
    name="olmo3",
    model_type="olmo3",
    heads=classes(LLAMA.heads, "Llama", "Olmo3", without=("token-classification", "question-answering")),
    # Every fourth layer sees the whole text, unless a list says otherwise.
    per_layer_keys={"layer_types": "layer"},
    layer_rules={"layer_types": LayerRule(every="4", nth="full_attention", others="sliding_attention")},
    defaults={
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "use_cache": True,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 50279,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
    },
    published={
        "OLMo-3-7B": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
        },
        "OLMo-3-32B": {
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "num_hidden_layers": 64,
        },
    },
    paper=PAPER,
)

"""InternLM3 (Shanghai AI Laboratory, 2025), which transformers builds with Llama's classes."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.granite import GRANITE
from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{internlm2025internlm3,
  title  = {{InternLM3}},
  author = {{InternLM Team}},
  year   = {2025},
  url    = {https://github.com/InternLM/InternLM}
}"""

INTERNLM3 = replace(
    GRANITE,
    name="internlm3",
    model_type="internlm3",
    # The library has no other classes of this type.
    heads=classes(GRANITE.heads, "Granite", "Llama"),
    integer_expressions=LLAMA.integer_expressions,
    defaults={
        "vocab_size": 128512,
        "hidden_size": 4096,
        "intermediate_size": 10240,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    },
    published={
        "internlm3-8b": {
            "hidden_size": 4096,
            "intermediate_size": 10240,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "num_hidden_layers": 48,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

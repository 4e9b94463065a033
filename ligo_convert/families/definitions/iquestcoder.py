"""IQuest-Coder-V1 (Yang et al., 2026), which transformers builds with Llama's classes."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.granite import GRANITE
from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{yang2026iquest,
  title  = {{IQuest-Coder-V1} Technical Report},
  author = {Yang, Jian and Zhang, Wei and others},
  year   = {2026},
  url    = {https://arxiv.org/abs/2603.16733}
}"""

IQUESTCODER = replace(
    GRANITE,
    name="iquestcoder",
    model_type="iquestcoder",
    # The library has no other classes of this type.
    heads=classes(GRANITE.heads, "Granite", "Llama"),
    integer_expressions=LLAMA.integer_expressions,
    defaults={
        "vocab_size": 76800,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 80,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    },
    published={
        "IQuest-Coder-V1-40B": {
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "num_hidden_layers": 80,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

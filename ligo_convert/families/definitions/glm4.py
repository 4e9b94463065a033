"""GLM-4 (the models of 2025) as transformers stores it: a norm before and one behind each branch, a fused gate."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{glm2025glm4,
  title  = {{GLM-4-0414}: Models of 9 and 32 Billion Parameters},
  author = {{Team GLM}},
  year   = {2025},
  url    = {https://github.com/THUDM/GLM-4}
}"""

GLM4 = replace(
    LLAMA,
    name="glm4",
    model_type="glm4",
    heads=classes(LLAMA.heads, "Llama", "Glm4", without=("question-answering",)),
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_self_attn|post_attention|post_mlp)_layernorm.weight": "embed gain",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.self_attn.q_proj.bias": "query if attention_bias",
        "model.layers.{layer}.self_attn.k_proj.bias": "key if attention_bias",
        "model.layers.{layer}.self_attn.v_proj.bias": "value if attention_bias",
        "model.layers.{layer}.mlp.gate_up_proj.weight": "mlp+mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
    },
    residual_outputs=("model.layers.{layer}.post_self_attn_layernorm", "model.layers.{layer}.post_mlp_layernorm"),
    required_values={},
    integer_expressions=(),
    defaults={
        "vocab_size": 151552,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "max_position_embeddings": 131072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1.5625e-07,
        "use_cache": True,
        "tie_word_embeddings": False,
        "pad_token_id": 151329,
        "eos_token_id": None,
        "bos_token_id": None,
        "attention_bias": True,
    },
    published={
        "GLM-4-9B-0414": {
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "num_hidden_layers": 40,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

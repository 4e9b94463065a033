"""GLM-4 and GLM-Edge (Team GLM, 2024) as transformers stores them: a fused gate and up projection, rotary positions in part of a head."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{glm2024chatglm,
  title  = {{ChatGLM}: A Family of Large Language Models from {GLM-130B} to {GLM-4} All Tools},
  author = {{Team GLM} and Zeng, Aohan and Xu, Bin and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2406.12793}
}"""

GLM = replace(
    LLAMA,
    name="glm",
    model_type="glm",
    heads=classes(LLAMA.heads, "Llama", "Glm", without=("question-answering",)),
    axes={
        "embed": "hidden_size",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
        "label": "num_labels or #id2label or 2",
        "layer": "num_hidden_layers",
        "kv_heads": "num_key_value_heads or num_attention_heads",
        "group": "num_attention_heads / num_key_value_heads or 1",
        "head_dim": "head_dim or hidden_size / num_attention_heads",
    },
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention)_layernorm.weight": "embed gain",
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
    never_grown=("vocab", "label"),
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
        "max_position_embeddings": 131072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1.5625e-7,
        "use_cache": True,
        "pad_token_id": 151329,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "attention_dropout": 0.0,
    },
    published={
        "glm-edge-1.5b": {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "num_hidden_layers": 28,
            "head_dim": 128,
        },
        "glm-4-9b": {
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

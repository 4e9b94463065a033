"""Gemma (Gemma Team, 2024) as transformers stores it: Llama's layers, gains stored less one, embeddings times a root of the width."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{gemma2024,
  title  = {Gemma: Open Models Based on {Gemini} Research and Technology},
  author = {{Gemma Team} and Mesnard, Thomas and Hardin, Cassidy and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2403.08295}
}"""

GEMMA = replace(
    LLAMA,
    name="gemma",
    model_type="gemma",
    heads=classes(LLAMA.heads, "Llama", "Gemma", without=("question-answering",)),
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention)_layernorm.weight": "embed 1+gain",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.self_attn.q_proj.bias": "query if attention_bias",
        "model.layers.{layer}.self_attn.k_proj.bias": "key if attention_bias",
        "model.layers.{layer}.self_attn.v_proj.bias": "value if attention_bias",
        "model.layers.{layer}.self_attn.o_proj.bias": "embed if attention_bias",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed 1+gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
    },
    width_factors={"model.embed_tokens.weight": ("embed", 0.5)},
    required_values={},
    integer_expressions=(),
    defaults={
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_bidirectional_attention": None,
    },
    published={
        "gemma-2b": {
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "num_hidden_layers": 18,
            "head_dim": 256,
        },
        "gemma-7b": {
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_hidden_layers": 28,
            "head_dim": 256,
        },
    },
    paper=PAPER,
)

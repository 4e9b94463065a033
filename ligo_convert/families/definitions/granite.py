"""Granite 3 (Shen et al., 2024) as transformers stores it: Llama's layers, and constant factors at four places."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{shen2024power,
  title  = {Power Scheduler: A Batch Size and Token Number Agnostic Learning Rate Scheduler},
  author = {Shen, Yikang and Stallone, Matthew and Mishra, Mayank and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2408.13359}
}"""

GRANITE = replace(
    LLAMA,
    name="granite",
    model_type="granite",
    heads=classes(
        LLAMA.heads,
        "Llama",
        "Granite",
        without=("sequence-classification", "token-classification", "question-answering"),
    ),
    axes={
        "embed": "hidden_size",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
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
        "model.layers.{layer}.self_attn.o_proj.bias": "embed if attention_bias",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.(gate|up)_proj.bias": "mlp if mlp_bias",
        "model.layers.{layer}.mlp.down_proj.bias": "embed if mlp_bias",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
    },
    labels="",
    never_grown=("vocab",),
    required_values={},
    integer_expressions=(),
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        # Factors of the embeddings, the logits, each branch and the attention scores. None depends on a size, so they stay.
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
    },
    published={
        "granite-3.1-2b": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 40,
        },
        "granite-3.1-8b": {
            "hidden_size": 4096,
            "intermediate_size": 12800,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 40,
        },
    },
    paper=PAPER,
)

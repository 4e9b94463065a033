"""Phi-3 and Phi-4 (Abdin et al., 2024) as transformers stores them: Llama's layers with fused projections."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{abdin2024phi3,
  title  = {Phi-3 Technical Report: A Highly Capable Language Model Locally on Your Phone},
  author = {Abdin, Marah and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2404.14219}
}"""

PHI3 = replace(
    LLAMA,
    name="phi3",
    model_type="phi3",
    heads=classes(LLAMA.heads, "Llama", "Phi3", without=("question-answering",)),
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention)_layernorm.weight": "embed gain",
        "model.layers.{layer}.self_attn.qkv_proj.weight": "query+key+value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.mlp.gate_up_proj.weight": "mlp+mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
    },
    required_values={},
    rope_types=("default", "longrope", "su", "yarn"),
    function_irrelevant_keys=(*LLAMA.function_irrelevant_keys, "resid_pdrop", "embd_pdrop"),
    defaults={
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
        "sliding_window": None,
    },
    published={
        "Phi-3-mini": {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
        },
        "Phi-4-mini": {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "num_hidden_layers": 32,
        },
        "Phi-3-medium": {
            "hidden_size": 5120,
            "intermediate_size": 17920,
            "num_attention_heads": 40,
            "num_key_value_heads": 10,
            "num_hidden_layers": 40,
        },
        "Phi-4": {
            "hidden_size": 5120,
            "intermediate_size": 17920,
            "num_attention_heads": 40,
            "num_key_value_heads": 10,
            "num_hidden_layers": 40,
        },
    },
    paper=PAPER,
)

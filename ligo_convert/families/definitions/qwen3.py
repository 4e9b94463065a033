"""Qwen3 (Yang et al., 2025) as transformers stores it: Llama's layers, queries and keys normalised within each head."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{yang2025qwen3,
  title  = {Qwen3 Technical Report},
  author = {Yang, An and others},
  year   = {2025},
  url    = {https://arxiv.org/abs/2505.09388}
}"""

QWEN3 = replace(
    LLAMA,
    name="qwen3",
    model_type="qwen3",
    heads=classes(LLAMA.heads, "Llama", "Qwen3"),
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
        "model.layers.{layer}.self_attn.(q|k)_norm.weight": "head_dim gain",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
        "qa_outputs.weight": "span <- embed in answers",
        "qa_outputs.bias": "span in answers",
    },
    # Without a list of layer types, the index of a layer decides whether it has a window.
    layer_index_keys=("use_sliding_window",),
    norm=replace(LLAMA.norm, inner={"query": ("head_dim",), "key": ("head_dim",)}),
    per_layer_keys={"layer_types": "layer"},
    conditional_keys={"use_sliding_window": ("sliding_window", "max_window_layers")},
    required_values={},
    integer_expressions=(),
    defaults={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 28,
        "attention_dropout": 0.0,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    published={
        "Qwen3-0.6B": {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_hidden_layers": 28,
        },
        "Qwen3-1.7B": {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_hidden_layers": 28,
        },
        "Qwen3-4B": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 36,
        },
        "Qwen3-8B": {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 36,
        },
        "Qwen3-14B": {
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "num_hidden_layers": 40,
        },
        "Qwen3-32B": {
            "hidden_size": 5120,
            "intermediate_size": 25600,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "num_hidden_layers": 64,
        },
    },
    paper=PAPER,
)

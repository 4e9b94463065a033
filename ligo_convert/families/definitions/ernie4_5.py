"""ERNIE 4.5 (Baidu, 2025) as transformers stores its dense model: Llama's layers, one key for all biases."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.granite import GRANITE
from ligo_convert.families.schema import classes

PAPER = r"""@misc{baidu2025ernie45,
  title  = {{ERNIE} 4.5 Technical Report},
  author = {{Baidu-ERNIE-Team}},
  year   = {2025},
  url    = {https://ernie.baidu.com/blog/publication/ERNIE_Technical_Report.pdf}
}"""

ERNIE4_5 = replace(
    GRANITE,
    name="ernie4_5",
    model_type="ernie4_5",
    heads=classes(GRANITE.heads, "Granite", "Ernie4_5"),
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention)_layernorm.weight": "embed gain",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.self_attn.q_proj.bias": "query if use_bias",
        "model.layers.{layer}.self_attn.k_proj.bias": "key if use_bias",
        "model.layers.{layer}.self_attn.v_proj.bias": "value if use_bias",
        "model.layers.{layer}.self_attn.o_proj.bias": "embed if use_bias",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.(gate|up)_proj.bias": "mlp if use_bias",
        "model.layers.{layer}.mlp.down_proj.bias": "embed if use_bias",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
    },
    defaults={
        "vocab_size": 103424,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "use_bias": False,
    },
    published={
        "ERNIE-4.5-0.3B": {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "num_hidden_layers": 18,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

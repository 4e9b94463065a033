"""Code World Model (FAIR CodeGen team, 2025) as transformers stores it: Llama's layers, attention in a window in three of four."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.granite import GRANITE
from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{faircodegen2025cwm,
  title  = {{CWM}: An Open-Weights {LLM} for Research on Code Generation with World Models},
  author = {{FAIR CodeGen team} and Copet, Jade and others},
  year   = {2025},
  url    = {https://arxiv.org/abs/2510.02387}
}"""

CWM = replace(
    GRANITE,
    name="cwm",
    model_type="cwm",
    heads=classes(GRANITE.heads, "Granite", "Cwm"),
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention)_layernorm.weight": "embed gain",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.(gate|up)_proj.bias": "mlp if mlp_bias",
        "model.layers.{layer}.mlp.down_proj.bias": "embed if mlp_bias",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
    },
    integer_expressions=LLAMA.integer_expressions,
    # Without the list, the index of a layer decides whether it has a window.
    layer_index_keys=("sliding_window",),
    per_layer_keys={"layer_types": "layer"},
    function_irrelevant_keys=(*LLAMA.function_irrelevant_keys, "pretraining_tp"),
    defaults={
        "vocab_size": 128256,
        "hidden_size": 6144,
        "intermediate_size": 21504,
        "num_hidden_layers": 64,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": None,
        "bos_token_id": 128000,
        "eos_token_id": None,
        "tie_word_embeddings": False,
        "pretraining_tp": 1,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "sliding_window": 8192,
        "layer_types": None,
    },
    published={
        "cwm": {
            "hidden_size": 6144,
            "intermediate_size": 21504,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "num_hidden_layers": 64,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

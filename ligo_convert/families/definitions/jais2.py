"""Jais 2 (MBZUAI and Inception, 2025) as transformers stores it: Llama's attention, LayerNorm, an MLP without a gate."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.granite import GRANITE
from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import Norm, classes

PAPER = r"""@misc{inception2025jais2,
  title  = {Jais 2},
  author = {{MBZUAI} and {Inception}},
  year   = {2025},
  url    = {https://huggingface.co/inceptionai/Jais-2-8B-Chat}
}"""

JAIS2 = replace(
    GRANITE,
    name="jais2",
    model_type="jais2",
    heads=classes(GRANITE.heads, "Granite", "Jais2"),
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention)_layernorm.weight": "embed gain",
        "model.layers.{layer}.(input|post_attention)_layernorm.bias": "embed shift",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.self_attn.q_proj.bias": "query if attention_bias",
        "model.layers.{layer}.self_attn.k_proj.bias": "key if attention_bias",
        "model.layers.{layer}.self_attn.v_proj.bias": "value if attention_bias",
        "model.layers.{layer}.self_attn.o_proj.bias": "embed if attention_bias",
        "model.layers.{layer}.mlp.up_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.up_proj.bias": "mlp if mlp_bias",
        "model.layers.{layer}.mlp.down_proj.bias": "embed if mlp_bias",
        "model.norm.weight": "embed gain",
        "model.norm.bias": "embed shift",
        "lm_head.weight": "vocab <- embed in lm",
    },
    norm=Norm(stream="embed", kind="layernorm", epsilon="layer_norm_eps", head="model.norm"),
    integer_expressions=LLAMA.integer_expressions,
    defaults={
        "vocab_size": 150272,
        "hidden_size": 3328,
        "intermediate_size": 26624,
        "num_hidden_layers": 32,
        "num_attention_heads": 26,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "relu2",
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 150024,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "mlp_bias": True,
    },
    published={
        "Jais-2-8B": {
            "hidden_size": 3328,
            "intermediate_size": 26624,
            "num_attention_heads": 26,
            "num_key_value_heads": 26,
            "num_hidden_layers": 32,
        },
    },
    paper=PAPER,
)

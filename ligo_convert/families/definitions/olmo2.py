"""OLMo 2 (OLMo Team, 2024) as transformers stores it: norms behind the branches alone, one norm over all queries, one over all keys."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{olmo2024olmo2,
  title  = {2 {OLMo} 2 Furious},
  author = {{Team OLMo} and Walsh, Pete and Soldaini, Luca and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2501.00656}
}"""

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    model_type="olmo2",
    heads=classes(LLAMA.heads, "Llama", "Olmo2", without=("token-classification", "question-answering")),
    axes={**LLAMA.axes, "head_dim": "hidden_size / num_attention_heads"},
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.self_attn.q_proj.bias": "query if attention_bias",
        "model.layers.{layer}.self_attn.k_proj.bias": "key if attention_bias",
        "model.layers.{layer}.self_attn.v_proj.bias": "value if attention_bias",
        "model.layers.{layer}.self_attn.o_proj.bias": "embed if attention_bias",
        "model.layers.{layer}.self_attn.q_norm.weight": "query gain",
        "model.layers.{layer}.self_attn.k_norm.weight": "key gain",
        "model.layers.{layer}.(post_attention|post_feedforward)_layernorm.weight": "embed gain",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
    },
    norm=replace(LLAMA.norm, inner={"query": ("kv_heads", "group", "head_dim"), "key": ("kv_heads", "head_dim")}),
    residual_outputs=(
        "model.layers.{layer}.post_attention_layernorm",
        "model.layers.{layer}.post_feedforward_layernorm",
    ),
    required_values={},
    defaults={
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "use_cache": True,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 50279,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-5,
    },
    published={
        "OLMo-2-1B": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_hidden_layers": 16,
        },
        "OLMo-2-7B": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
        },
        "OLMo-2-13B": {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
            "num_hidden_layers": 40,
        },
        "OLMo-2-32B": {
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "num_hidden_layers": 64,
        },
    },
    paper=PAPER,
)

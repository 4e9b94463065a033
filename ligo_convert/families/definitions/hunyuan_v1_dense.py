"""Hunyuan's dense models (Tencent, 2025) as transformers stores them: Llama's layers, heads normalised after the rotary positions."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{tencent2025hunyuan,
  title  = {{Hunyuan} Dense Models},
  author = {{Tencent Hunyuan Team}},
  year   = {2025},
  url    = {https://github.com/Tencent-Hunyuan/Hunyuan-7B}
}"""

HUNYUAN_V1_DENSE = replace(
    LLAMA,
    name="hunyuan_v1_dense",
    model_type="hunyuan_v1_dense",
    heads=classes(LLAMA.heads, "Llama", "HunYuanDenseV1", without=("token-classification", "question-answering")),
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
    norm=replace(LLAMA.norm, inner={"query": ("head_dim",), "key": ("head_dim",)}),
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
        "model.layers.{layer}.self_attn.(query|key)_layernorm.weight": "head_dim gain",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
    },
    never_grown=("vocab", "label"),
    required_values={},
    integer_expressions=(),
    function_irrelevant_keys=(*LLAMA.function_irrelevant_keys, "eod_token_id", "pretraining_tp"),
    defaults={
        "vocab_size": 290943,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "eod_token_id": 3,
        "pretraining_tp": 1,
        "attention_bias": False,
        "attention_dropout": 0.0,
    },
    published={
        "Hunyuan-1.8B": {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "num_hidden_layers": 32,
            "head_dim": 128,
        },
        "Hunyuan-7B": {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 32,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

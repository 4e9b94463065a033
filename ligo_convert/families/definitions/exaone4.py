"""EXAONE 4.0 (LG AI Research, 2025) as transformers stores it: norms behind the branches, rotary positions in windows alone."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{exaone2025exaone4,
  title  = {{EXAONE} 4.0: Unified Large Language Models Integrating Non-reasoning and Reasoning Modes},
  author = {{LG AI Research}},
  year   = {2025},
  url    = {https://arxiv.org/abs/2507.11407}
}"""

EXAONE4 = replace(
    LLAMA,
    name="exaone4",
    model_type="exaone4",
    heads=classes(LLAMA.heads, "Llama", "Exaone4"),
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.self_attn.(q|k)_norm.weight": "head_dim gain",
        "model.layers.{layer}.(post_attention|post_feedforward)_layernorm.weight": "embed gain",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
        "qa_outputs.weight": "span <- embed in answers",
        "qa_outputs.bias": "span in answers",
    },
    residual_outputs=(
        "model.layers.{layer}.post_attention_layernorm",
        "model.layers.{layer}.post_feedforward_layernorm",
    ),
    norm=replace(LLAMA.norm, inner={"query": ("head_dim",), "key": ("head_dim",)}),
    per_layer_keys={"layer_types": "layer"},
    # Without a list the pattern decides, which may be a text of letters.
    layer_index_keys=("sliding_window",),
    required_values={},
    defaults={
        "vocab_size": 102400,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "sliding_window": 4096,
    },
    published={
        "EXAONE-4.0-1.2B": {
            "hidden_size": 2048,
            "intermediate_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 30,
            "head_dim": 64,
        },
        "EXAONE-4.0-32B": {
            "hidden_size": 5120,
            "intermediate_size": 27392,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "num_hidden_layers": 64,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

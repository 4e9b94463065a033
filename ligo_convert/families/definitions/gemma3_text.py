"""The text models of Gemma 3 (Gemma Team, 2025) as transformers stores them: Gemma 2 with normalised queries and keys."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.gemma2 import GEMMA2
from ligo_convert.families.schema import Head, LayerRule

PAPER = r"""@misc{gemma2025gemma3,
  title  = {Gemma 3 Technical Report},
  author = {{Gemma Team} and Kamath, Aishwarya and Ferret, Johan and others},
  year   = {2025},
  url    = {https://arxiv.org/abs/2503.19786}
}"""

GEMMA3_TEXT = replace(
    GEMMA2,
    name="gemma3_text",
    model_type="gemma3_text",
    heads=(
        Head(parts=("lm",), task="causal-lm", architecture="Gemma3ForCausalLM"),
        Head(parts=("score",), task="sequence-classification", architecture="Gemma3TextForSequenceClassification"),
        Head(task="decoder", architecture="Gemma3TextModel", base=True),
    ),
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention|pre_feedforward|post_feedforward)_layernorm.weight": "embed 1+gain",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.self_attn.q_proj.bias": "query if attention_bias",
        "model.layers.{layer}.self_attn.k_proj.bias": "key if attention_bias",
        "model.layers.{layer}.self_attn.v_proj.bias": "value if attention_bias",
        "model.layers.{layer}.self_attn.o_proj.bias": "embed if attention_bias",
        "model.layers.{layer}.self_attn.(q|k)_norm.weight": "head_dim 1+gain",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed 1+gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
    },
    # The first files of these models have the pattern in place of the list.
    norm=replace(GEMMA2.norm, inner={"query": ("head_dim",), "key": ("head_dim",)}),
    per_layer_keys={"layer_types": "layer"},
    layer_rules={
        "layer_types": LayerRule(
            every="sliding_window_pattern or _sliding_window_pattern or 6",
            nth="full_attention",
            others="sliding_attention",
        )
    },
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    published={
        "gemma-3-270m": {
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "num_hidden_layers": 18,
            "head_dim": 256,
        },
        "gemma-3-1b": {
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "num_hidden_layers": 26,
            "head_dim": 256,
        },
    },
    paper=PAPER,
)

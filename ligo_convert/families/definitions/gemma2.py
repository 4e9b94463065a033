"""Gemma 2 (Gemma Team, 2024) as transformers stores it: Gemma with a second norm behind each branch, every other layer in a window."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.gemma import GEMMA
from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import LayerRule, classes

PAPER = r"""@misc{gemma2024gemma2,
  title  = {Gemma 2: Improving Open Language Models at a Practical Size},
  author = {{Gemma Team} and Riviere, Morgane and Pathak, Shreya and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2408.00118}
}"""

GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    model_type="gemma2",
    heads=classes(LLAMA.heads, "Llama", "Gemma2", without=("question-answering",)),
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
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed 1+gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
    },
    residual_outputs=(
        "model.layers.{layer}.post_attention_layernorm",
        "model.layers.{layer}.post_feedforward_layernorm",
    ),
    # Every second layer sees the whole text. Files of the first release have no list that says so.
    per_layer_keys={"layer_types": "layer"},
    layer_rules={"layer_types": LayerRule(every="2", nth="full_attention", others="sliding_attention")},
    activation="hidden_activation",
    defaults={
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
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
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "use_bidirectional_attention": None,
    },
    published={
        "gemma-2-2b": {
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "num_hidden_layers": 26,
            "head_dim": 256,
        },
        "gemma-2-9b": {
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_hidden_layers": 42,
            "head_dim": 256,
        },
        "gemma-2-27b": {
            "hidden_size": 4608,
            "intermediate_size": 36864,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "num_hidden_layers": 46,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

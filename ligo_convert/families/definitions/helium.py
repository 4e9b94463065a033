"""Helium 1 (Kyutai, 2025) as transformers stores it: Llama's layers, rotary positions in pairs of neighbours."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import classes

PAPER = r"""@misc{kyutai2025helium,
  title  = {Announcing {Helium-1} Preview},
  author = {{Kyutai}},
  year   = {2025},
  url    = {https://kyutai.org/2025/01/13/helium.html}
}"""

HELIUM = replace(
    LLAMA,
    name="helium",
    model_type="helium",
    heads=classes(LLAMA.heads, "Llama", "Helium", without=("question-answering",)),
    axes={
        "embed": "hidden_size",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
        "label": "num_labels or #id2label or 2",
        "layer": "num_hidden_layers",
        "kv_heads": "num_key_value_heads or num_attention_heads",
        "group": "num_attention_heads / num_key_value_heads or 1",
        "head_dim": "head_dim",
    },
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
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.(gate|up)_proj.bias": "mlp if mlp_bias",
        "model.layers.{layer}.mlp.down_proj.bias": "embed if mlp_bias",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
    },
    never_grown=("vocab", "label"),
    required_values={},
    # The last projection of the attention reads the width: both whole, the heads together are as wide as the stream.
    integer_expressions=(
        "hidden_size / num_attention_heads / head_dim",
        "num_attention_heads * head_dim / hidden_size",
    ),
    defaults={
        "vocab_size": 48000,
        "hidden_size": 2560,
        "intermediate_size": 7040,
        "num_hidden_layers": 24,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-8,
        "use_cache": True,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    },
    published={
        "helium-1-preview-2b": {
            "hidden_size": 2560,
            "intermediate_size": 7040,
            "num_attention_heads": 20,
            "num_key_value_heads": 20,
            "num_hidden_layers": 24,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

"""IQuest-Coder (IQuest Lab, 2026), which transformers builds with Llama's classes."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA

PAPER = r"""@misc{iquest2026coder,
  title  = {{IQuest-Coder-V1}},
  author = {{IQuest Coder Team}},
  year   = {2026},
  url    = {https://huggingface.co/IQuestLab/IQuest-Coder-V1-40B-Instruct}
}"""

IQUESTCODER = replace(
    LLAMA,
    name="iquestcoder",
    model_type="iquestcoder",
    # The library has no other classes of this type.
    heads=tuple(head for head in LLAMA.heads if head.task in ("causal-lm", "decoder")),
    axes={
        "embed": "hidden_size",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
        "layer": "num_hidden_layers",
        "kv_heads": "num_key_value_heads or num_attention_heads",
        "group": "num_attention_heads / num_key_value_heads or 1",
        "head_dim": "head_dim or hidden_size / num_attention_heads",
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
        "model.layers.{layer}.self_attn.o_proj.bias": "embed if attention_bias",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.(gate|up)_proj.bias": "mlp if mlp_bias",
        "model.layers.{layer}.mlp.down_proj.bias": "embed if mlp_bias",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
    },
    labels="",
    never_grown=("vocab",),
    required_values={},
    defaults={
        "vocab_size": 76800,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 80,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-05,
        "use_cache": True,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    },
    published={
        "IQuest-Coder-V1-40B": {
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "num_hidden_layers": 80,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

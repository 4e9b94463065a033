"""OLMo (Groeneveld et al., 2024) as transformers stores it: Llama's layers with a LayerNorm that has neither gain nor shift."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import Norm, classes

PAPER = r"""@misc{groeneveld2024olmo,
  title  = {{OLMo}: Accelerating the Science of Language Models},
  author = {Groeneveld, Dirk and Beltagy, Iz and Walsh, Pete and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2402.00838}
}"""

OLMO = replace(
    LLAMA,
    name="olmo",
    model_type="olmo",
    heads=classes(
        LLAMA.heads, "Llama", "Olmo", without=("sequence-classification", "token-classification", "question-answering")
    ),
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
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "lm_head.weight": "vocab <- embed in lm",
    },
    # The epsilon, 1e-5, stands in the library's code.
    norm=Norm(stream="embed", kind="layernorm", epsilon="", affine=False, head=""),
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
        "clip_qkv": None,
    },
    published={
        "OLMo-1B": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_hidden_layers": 16,
        },
        "OLMo-7B": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
        },
    },
    paper=PAPER,
)

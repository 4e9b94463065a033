"""Cohere's Command R and Aya 23 (Aryabumi et al., 2024) as transformers stores them: parallel branches after a LayerNorm without shift."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import Norm, classes

PAPER = r"""@misc{aryabumi2024aya,
  title  = {Aya 23: Open Weight Releases to Further Multilingual Progress},
  author = {Aryabumi, Viraat and Dang, John and Talupuru, Dwarak and Dash, Saurabh and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2405.15032}
}"""

COHERE = replace(
    LLAMA,
    name="cohere",
    model_type="cohere",
    heads=classes(
        LLAMA.heads,
        "Llama",
        "Cohere",
        without=("sequence-classification", "token-classification", "question-answering"),
    ),
    axes={axis: size for axis, size in LLAMA.axes.items() if axis not in ("label", "span")},
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.input_layernorm.weight": "embed gain",
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
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
    },
    norm=Norm(stream="embed", kind="layernorm", epsilon="layer_norm_eps", head="model.norm"),
    labels="",
    never_grown=("vocab",),
    # With `use_qk_norm` queries and keys have gains for each head.
    required_values={"use_qk_norm": False},
    integer_expressions=(),
    defaults={
        "vocab_size": 256000,
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "logit_scale": 0.0625,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": 0,
        "bos_token_id": 5,
        "eos_token_id": 255001,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_qk_norm": False,
    },
    published={
        "aya-23-8B": {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 32,
        },
        "command-r-35B": {
            "hidden_size": 8192,
            "intermediate_size": 22528,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "num_hidden_layers": 40,
        },
    },
    paper=PAPER,
)

"""StableLM (Bellagente et al., 2024) as transformers stores it: Llama's layers with LayerNorm, rotary positions on a part of each head."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import Norm, classes

PAPER = r"""@misc{bellagente2024stablelm,
  title  = {Stable {LM} 2 1.6{B} Technical Report},
  author = {Bellagente, Marco and Tow, Jonathan and Mahan, Dakota and Phung, Duy and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2402.17834}
}"""

STABLELM = replace(
    LLAMA,
    name="stablelm",
    model_type="stablelm",
    heads=classes(LLAMA.heads, "Llama", "StableLm", without=("question-answering",)),
    axes={**LLAMA.axes, "head_dim": "hidden_size / num_attention_heads"},
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.input_layernorm.weight": "embed gain",
        "model.layers.{layer}.input_layernorm.bias": "embed shift",
        # In a parallel layer the MLP reads the norm of the attention.
        "model.layers.{layer}.post_attention_layernorm.weight": "embed gain if not use_parallel_residual",
        "model.layers.{layer}.post_attention_layernorm.bias": "embed shift if not use_parallel_residual",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.self_attn.q_proj.bias": "query if use_qkv_bias",
        "model.layers.{layer}.self_attn.k_proj.bias": "key if use_qkv_bias",
        "model.layers.{layer}.self_attn.v_proj.bias": "value if use_qkv_bias",
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed gain",
        "model.norm.bias": "embed shift",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
    },
    norm=Norm(stream="embed", kind="layernorm", epsilon="layer_norm_eps", head="model.norm"),
    never_grown=("vocab", "label", "span"),
    # With `qk_layernorm` each head has a norm of its own. The rotary positions read `head_dim`, the projections do not.
    required_values={"qk_layernorm": False, "head_dim": None},
    integer_expressions=(),
    function_irrelevant_keys=(*LLAMA.function_irrelevant_keys, "hidden_dropout", "classifier_dropout"),
    defaults={
        "vocab_size": 50304,
        "intermediate_size": 6912,
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "tie_word_embeddings": False,
        "use_qkv_bias": False,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    },
    published={
        "stablelm-2-1.6B": {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 24,
        },
        "stablelm-3B-4e1t": {
            "hidden_size": 2560,
            "intermediate_size": 6912,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
        },
    },
    paper=PAPER,
)

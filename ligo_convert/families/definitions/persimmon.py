"""Persimmon (Elsen et al., 2023) as transformers stores it: GPT-NeoX's fused projection, norms on queries and keys, a squared ReLU."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import Norm, classes

PAPER = r"""@misc{elsen2023persimmon,
  title  = {Releasing {Persimmon-8B}},
  author = {Elsen, Erich and Odena, Augustus and Nye, Maxwell and Ta{\c{s}}{\i}rlar, Sa{\u{g}}nak and others},
  year   = {2023},
  url    = {https://www.adept.ai/blog/persimmon-8b}
}"""

PERSIMMON = replace(
    LLAMA,
    name="persimmon",
    model_type="persimmon",
    heads=classes(LLAMA.heads, "Llama", "Persimmon", without=("question-answering",)),
    axes={
        "embed": "hidden_size",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
        "layer": "num_hidden_layers",
        "heads": "num_attention_heads",
        # Query, key and value of a head lie side by side.
        "three": "3",
        "head_dim": "hidden_size / num_attention_heads",
        "label": "num_labels or #id2label or 2",
    },
    streams={"fused": "heads*three*head_dim", "context": "heads*head_dim"},
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention)_layernorm.weight": "embed gain",
        "model.layers.{layer}.(input|post_attention)_layernorm.bias": "embed shift",
        "model.layers.{layer}.self_attn.query_key_value.weight": "fused <- embed",
        "model.layers.{layer}.self_attn.query_key_value.bias": "fused",
        "model.layers.{layer}.self_attn.(q|k)_layernorm.weight": "head_dim gain if qk_layernorm",
        "model.layers.{layer}.self_attn.(q|k)_layernorm.bias": "head_dim shift if qk_layernorm",
        "model.layers.{layer}.self_attn.dense.weight": "embed <- context",
        "model.layers.{layer}.self_attn.dense.bias": "embed",
        "model.layers.{layer}.mlp.dense_h_to_4h.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.dense_h_to_4h.bias": "mlp",
        "model.layers.{layer}.mlp.dense_4h_to_h.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.dense_4h_to_h.bias": "embed",
        "model.final_layernorm.weight": "embed gain",
        "model.final_layernorm.bias": "embed shift",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
    },
    norm=Norm(stream="embed", kind="layernorm", epsilon="layer_norm_eps", head="model.final_layernorm"),
    residual_outputs=("model.layers.{layer}.self_attn.dense", "model.layers.{layer}.mlp.dense_4h_to_h"),
    never_grown=("vocab", "three", "label"),
    # Queries and keys are parts of one stream. They are as wide as the context, which is what the attention's cost depends on.
    dot_products=(("context", "context"),),
    content_of={},
    integer_expressions=(),
    # The rotary positions read `head_dim`, the projections do not.
    required_values={"head_dim": None},
    function_irrelevant_keys=(*LLAMA.function_irrelevant_keys, "hidden_dropout"),
    defaults={
        "vocab_size": 262144,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "hidden_act": "relu2",
        "max_position_embeddings": 16384,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "tie_word_embeddings": False,
        "qk_layernorm": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    published={
        "persimmon-8b": {
            "hidden_size": 4096,
            "intermediate_size": 16384,
            "num_attention_heads": 64,
            "num_hidden_layers": 36,
        },
    },
    paper=PAPER,
)

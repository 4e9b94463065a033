"""Phi-1, Phi-1.5 and Phi-2 (Gunasekar et al., 2023) as transformers stores them: parallel branches after one norm, biases everywhere."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import Norm, classes

PAPER = r"""@misc{gunasekar2023textbooks,
  title  = {Textbooks Are All You Need},
  author = {Gunasekar, Suriya and Zhang, Yi and Aneja, Jyoti and Mendes, Caio C{\'e}sar Teodoro and others},
  year   = {2023},
  url    = {https://arxiv.org/abs/2306.11644}
}"""

PHI = replace(
    LLAMA,
    name="phi",
    model_type="phi",
    heads=classes(LLAMA.heads, "Llama", "Phi", without=("question-answering",)),
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.input_layernorm.weight": "embed gain",
        "model.layers.{layer}.input_layernorm.bias": "embed shift",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.q_proj.bias": "query",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.k_proj.bias": "key",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.v_proj.bias": "value",
        "model.layers.{layer}.self_attn.dense.weight": "embed <- context",
        "model.layers.{layer}.self_attn.dense.bias": "embed",
        "model.layers.{layer}.self_attn.(q|k)_layernorm.weight": "head_dim gain if qk_layernorm",
        "model.layers.{layer}.self_attn.(q|k)_layernorm.bias": "head_dim shift if qk_layernorm",
        "model.layers.{layer}.mlp.fc1.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.fc1.bias": "mlp",
        "model.layers.{layer}.mlp.fc2.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.fc2.bias": "embed",
        "model.final_layernorm.weight": "embed gain",
        "model.final_layernorm.bias": "embed shift",
        "lm_head.weight": "vocab <- embed in lm",
        "lm_head.bias": "vocab in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
    },
    norm=Norm(
        stream="embed",
        kind="layernorm",
        epsilon="layer_norm_eps",
        head="model.final_layernorm",
        inner={"query": ("head_dim",), "key": ("head_dim",)},
    ),
    residual_outputs=("model.layers.{layer}.self_attn.dense", "model.layers.{layer}.mlp.fc2"),
    never_grown=("vocab", "label", "span"),
    required_values={},
    integer_expressions=(),
    function_irrelevant_keys=(*LLAMA.function_irrelevant_keys, "resid_pdrop", "embd_pdrop", "classifier_dropout"),
    defaults={
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attention_dropout": 0.0,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "tie_word_embeddings": False,
        "qk_layernorm": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    },
    published={
        "phi-1.5": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 24,
        },
        "phi-2": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
        },
    },
    paper=PAPER,
)

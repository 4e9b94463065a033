"""StarCoder2 (Lozhkov et al., 2024) as transformers stores it: Llama's attention, LayerNorm, an MLP without a gate, biases everywhere."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import Norm, classes

PAPER = r"""@misc{lozhkov2024starcoder2,
  title  = {{StarCoder} 2 and The Stack v2: The Next Generation},
  author = {Lozhkov, Anton and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2402.19173}
}"""

STARCODER2 = replace(
    LLAMA,
    name="starcoder2",
    model_type="starcoder2",
    heads=classes(LLAMA.heads, "Llama", "Starcoder2", without=("question-answering",)),
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention)_layernorm.weight": "embed gain",
        "model.layers.{layer}.(input|post_attention)_layernorm.bias": "embed shift",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.q_proj.bias": "query if use_bias",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.k_proj.bias": "key if use_bias",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.v_proj.bias": "value if use_bias",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.self_attn.o_proj.bias": "embed if use_bias",
        "model.layers.{layer}.mlp.c_fc.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.c_fc.bias": "mlp if use_bias",
        "model.layers.{layer}.mlp.c_proj.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.c_proj.bias": "embed if use_bias",
        "model.norm.weight": "embed gain",
        "model.norm.bias": "embed shift",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
    },
    norm=Norm(stream="embed", kind="layernorm", epsilon="norm_epsilon", head="model.norm"),
    residual_outputs=("model.layers.{layer}.self_attn.o_proj", "model.layers.{layer}.mlp.c_proj"),
    required_values={},
    integer_expressions=(),
    function_irrelevant_keys=(*LLAMA.function_irrelevant_keys, "residual_dropout", "embedding_dropout"),
    defaults={
        "vocab_size": 49152,
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "initializer_range": 0.018042,
        "norm_epsilon": 1e-5,
        "use_cache": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "pad_token_id": None,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "use_bias": True,
        "tie_word_embeddings": True,
    },
    published={
        "starcoder2-3b": {
            "hidden_size": 3072,
            "intermediate_size": 12288,
            "num_attention_heads": 24,
            "num_key_value_heads": 2,
            "num_hidden_layers": 30,
        },
        "starcoder2-7b": {
            "hidden_size": 4608,
            "intermediate_size": 18432,
            "num_attention_heads": 36,
            "num_key_value_heads": 4,
            "num_hidden_layers": 32,
        },
        "starcoder2-15b": {
            "hidden_size": 6144,
            "intermediate_size": 24576,
            "num_attention_heads": 48,
            "num_key_value_heads": 4,
            "num_hidden_layers": 40,
        },
    },
    paper=PAPER,
)

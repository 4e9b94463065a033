"""OLMoE (Muennighoff et al., 2024) as transformers stores it: experts in place of the MLP, one norm over all queries, one over all keys."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.definitions.olmo2 import OLMO2
from ligo_convert.families.schema import classes

PAPER = r"""@misc{muennighoff2024olmoe,
  title  = {{OLMoE}: Open Mixture-of-Experts Language Models},
  author = {Muennighoff, Niklas and Soldaini, Luca and Groeneveld, Dirk and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2409.02060}
}"""

OLMOE = replace(
    OLMO2,
    name="olmoe",
    model_type="olmoe",
    heads=classes(
        LLAMA.heads, "Llama", "Olmoe", without=("sequence-classification", "token-classification", "question-answering")
    ),
    axes={**OLMO2.axes, "expert": "num_experts"},
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
        "model.layers.{layer}.self_attn.q_norm.weight": "query gain",
        "model.layers.{layer}.self_attn.k_norm.weight": "key gain",
        "model.layers.{layer}.mlp.gate.weight": "expert <- embed",
        "model.layers.{layer}.mlp.experts.{expert}.(gate_proj|up_proj).weight": "mlp <- embed",
        "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
    },
    # transformers keeps all experts of a layer in two tensors, and one tensor for each matrix of each expert on disk.
    in_model={
        "model.layers.{layer}.mlp.experts.gate_up_proj": (
            "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"
            " + model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"
        ),
        "model.layers.{layer}.mlp.experts.down_proj": "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
    },
    experts="expert",
    experts_used="num_experts_per_tok",
    never_grown=(*LLAMA.never_grown, "expert"),
    residual_outputs=(
        "model.layers.{layer}.self_attn.o_proj",
        "model.layers.{layer}.mlp.experts.{expert}.down_proj",
    ),
    function_irrelevant_keys=(
        *LLAMA.function_irrelevant_keys,
        "output_router_logits",
        "router_aux_loss_coef",
    ),
    defaults={
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 50279,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "clip_qkv": None,
        "num_experts_per_tok": 8,
        "num_experts": 64,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
        "norm_topk_prob": False,
    },
    published={
        "OLMoE-1B-7B": {
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_hidden_layers": 16,
        },
    },
    paper=PAPER,
)

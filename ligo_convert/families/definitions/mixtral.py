"""Mixtral (Jiang et al., 2024) as transformers stores it: Mistral's layers with experts in place of the MLP."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.definitions.mistral import MISTRAL
from ligo_convert.families.schema import classes

PAPER = r"""@misc{jiang2024mixtral,
  title  = {Mixtral of Experts},
  author = {Jiang, Albert Q. and Sablayrolles, Alexandre and Roux, Antoine and others},
  year   = {2024},
  url    = {https://arxiv.org/abs/2401.04088}
}"""

MIXTRAL = replace(
    LLAMA,
    name="mixtral",
    model_type="mixtral",
    heads=classes(MISTRAL.heads, "Mistral", "Mixtral"),
    axes={**LLAMA.axes, "expert": "num_local_experts"},
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention)_layernorm.weight": "embed gain",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.block_sparse_moe.gate.weight": "expert <- embed",
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.(w1|w3).weight": "mlp <- embed",
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight": "embed <- mlp",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
        "qa_outputs.weight": "span <- embed in answers",
        "qa_outputs.bias": "span in answers",
    },
    # transformers keeps all experts of a layer in two tensors, and one tensor for each matrix of each expert on disk.
    in_model={
        "model.layers.{layer}.mlp.gate.weight": "model.layers.{layer}.block_sparse_moe.gate.weight",
        "model.layers.{layer}.mlp.experts.gate_up_proj": (
            "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"
            " + model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight"
        ),
        "model.layers.{layer}.mlp.experts.down_proj": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
    },
    experts="expert",
    experts_used="num_experts_per_tok",
    never_grown=(*LLAMA.never_grown, "expert"),
    residual_outputs=(
        "model.layers.{layer}.self_attn.o_proj",
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2",
    ),
    required_values={},
    integer_expressions=(),
    function_irrelevant_keys=(
        *LLAMA.function_irrelevant_keys,
        "output_router_logits",
        "router_aux_loss_coef",
        # Only while the library trains.
        "router_jitter_noise",
    ),
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
    },
    published={
        "Mixtral-8x7B": {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 32,
        },
        "Mixtral-8x22B": {
            "hidden_size": 6144,
            "intermediate_size": 16384,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "num_hidden_layers": 56,
        },
    },
    paper=PAPER,
)

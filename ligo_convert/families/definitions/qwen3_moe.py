"""Qwen3's models of experts (Yang et al., 2025) as transformers stores them: Qwen3's attention, experts in place of the MLP."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.definitions.qwen3 import QWEN3
from ligo_convert.families.schema import classes

PAPER = r"""@misc{qwen2025qwen3moe,
  title  = {{Qwen3} Technical Report: Dense and Mixture-of-Expert Models},
  author = {{Qwen Team} and Yang, An and others},
  year   = {2025},
  url    = {https://arxiv.org/abs/2505.09388}
}"""

QWEN3_MOE = replace(
    QWEN3,
    name="qwen3_moe",
    model_type="qwen3_moe",
    heads=classes(LLAMA.heads, "Llama", "Qwen3Moe"),
    axes={**LLAMA.axes, "mlp": "moe_intermediate_size", "expert": "num_experts or num_local_experts"},
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
        "model.layers.{layer}.self_attn.(q|k)_norm.weight": "head_dim gain",
        "model.layers.{layer}.mlp.gate.weight": "expert <- embed",
        "model.layers.{layer}.mlp.experts.{expert}.(gate_proj|up_proj).weight": "mlp <- embed",
        "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight": "embed <- mlp",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
        "qa_outputs.weight": "span <- embed in answers",
        "qa_outputs.bias": "span in answers",
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
    layer_index_keys=(),
    per_layer_keys={},
    conditional_keys={"use_sliding_window": ("sliding_window",)},
    # Every layer has experts: a layer without them has other tensors.
    required_values={"decoder_sparse_step": 1, "mlp_only_layers": []},
    function_irrelevant_keys=(
        *LLAMA.function_irrelevant_keys,
        "output_router_logits",
        "router_aux_loss_coef",
        # The width of layers without experts.
        "intermediate_size",
    ),
    defaults={
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_local_experts": 128,
        "norm_topk_prob": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "mlp_only_layers": [],
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    published={
        "Qwen3-30B-A3B": {
            "hidden_size": 2048,
            "moe_intermediate_size": 768,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "num_hidden_layers": 48,
            "head_dim": 128,
        },
        "Qwen3-235B-A22B": {
            "hidden_size": 4096,
            "moe_intermediate_size": 1536,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
            "num_hidden_layers": 94,
            "head_dim": 128,
        },
    },
    paper=PAPER,
)

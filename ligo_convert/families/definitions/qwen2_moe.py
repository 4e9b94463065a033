"""Qwen2's models of experts (Yang et al., 2024) as transformers stores them: experts and one shared expert behind a gate."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.definitions.mistral import MISTRAL
from ligo_convert.families.definitions.qwen2 import QWEN2
from ligo_convert.families.schema import classes

PAPER = r"""@misc{qwen2024moe,
  title  = {{Qwen1.5-MoE}: Matching {7B} Model Performance with 1/3 Activated Parameters},
  author = {{Qwen Team}},
  year   = {2024},
  url    = {https://qwenlm.github.io/blog/qwen-moe/}
}"""

QWEN2_MOE = replace(
    QWEN2,
    name="qwen2_moe",
    model_type="qwen2_moe",
    heads=classes(MISTRAL.heads, "Mistral", "Qwen2Moe"),
    axes={
        **LLAMA.axes,
        "mlp": "moe_intermediate_size",
        "shared_mlp": "shared_expert_intermediate_size",
        "expert": "num_experts",
    },
    tensors={
        "model.embed_tokens.weight": "vocab -> embed",
        "model.layers.{layer}.(input|post_attention)_layernorm.weight": "embed gain",
        "model.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.layers.{layer}.self_attn.o_proj.weight": "embed <- context",
        "model.layers.{layer}.self_attn.q_proj.bias": "query if qkv_bias",
        "model.layers.{layer}.self_attn.k_proj.bias": "key if qkv_bias",
        "model.layers.{layer}.self_attn.v_proj.bias": "value if qkv_bias",
        "model.layers.{layer}.mlp.gate.weight": "expert <- embed",
        "model.layers.{layer}.mlp.experts.{expert}.(gate_proj|up_proj).weight": "mlp <- embed",
        "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.shared_expert.(gate|up)_proj.weight": "shared_mlp <- embed",
        "model.layers.{layer}.mlp.shared_expert.down_proj.weight": "embed <- shared_mlp",
        "model.layers.{layer}.mlp.shared_expert_gate.weight": "1 <- embed",
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
        "model.layers.{layer}.mlp.shared_expert.down_proj",
    ),
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
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": 0,
        "max_window_layers": 28,
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
        "norm_topk_prob": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "mlp_only_layers": [],
        "qkv_bias": True,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    published={
        "Qwen1.5-MoE-A2.7B": {
            "hidden_size": 2048,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_hidden_layers": 24,
        },
    },
    paper=PAPER,
)

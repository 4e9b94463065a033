"""Llama (Touvron et al., 2023) as transformers stores it: grouped-query attention, RMSNorm, gated MLP, rotary positions."""

from __future__ import annotations

from ligo_convert.families.definitions.gpt2 import DECODERS
from ligo_convert.families.schema import Family, Head, Norm, Training

PAPER = r"""@misc{touvron2023llama,
  title  = {{LLaMA}: Open and Efficient Foundation Language Models},
  author = {Touvron, Hugo and Lavril, Thibaut and Izacard, Gautier and others},
  year   = {2023},
  url    = {https://arxiv.org/abs/2302.13971}
}"""

_LLAMA = "LLaMA, arXiv:2302.13971, table 2 and the section on the optimizer"

# Published rates of small models; GPT-3's layers are similar to Llama's.
TRAININGS = (
    *(training for training in DECODERS if training.parameters < 1e9),
    Training(
        parameters=1.1e9,
        rate=4.0e-4,
        batch="about 2M tokens",
        warmup="2,000 steps",
        decay=0.1,
        paper="TinyLlama, arXiv:2401.02385",
    ),
    *(
        Training(parameters=parameters, rate=rate, batch="4M tokens", warmup="2,000 steps", decay=0.1, paper=_LLAMA)
        for parameters, rate in ((6.7e9, 3.0e-4), (13.0e9, 3.0e-4), (32.5e9, 1.5e-4), (65.2e9, 1.5e-4))
    ),
)

LLAMA = Family(
    name="llama",
    model_type="llama",
    heads=(
        Head(parts=("lm",), task="causal-lm", architecture="LlamaForCausalLM"),
        Head(parts=("score",), task="sequence-classification", architecture="LlamaForSequenceClassification"),
        Head(parts=("score", "score_bias"), task="token-classification", architecture="LlamaForTokenClassification"),
        Head(
            parts=("answers",),
            task="question-answering",
            architecture="LlamaForQuestionAnswering",
            prefix="transformer.",
        ),
        Head(task="decoder", architecture="LlamaModel", base=True),
    ),
    axes={
        "embed": "hidden_size",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
        "label": "num_labels or #id2label or 2",
        # The logits of an answer's first and last token.
        "span": "2",
        "layer": "num_hidden_layers",
        "kv_heads": "num_key_value_heads or num_attention_heads",
        "group": "num_attention_heads / num_key_value_heads or 1",
        "head_dim": "head_dim or hidden_size / num_attention_heads",
    },
    # Queries lie by group, so that a grown head keeps its key and value.
    streams={
        "query": "kv_heads*group*head_dim",
        "context": "kv_heads*group*head_dim",
        "key": "kv_heads*head_dim",
        "value": "kv_heads*head_dim",
    },
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
        "model.layers.{layer}.mlp.(gate|up)_proj.weight": "mlp <- embed",
        "model.layers.{layer}.mlp.down_proj.weight": "embed <- mlp",
        "model.layers.{layer}.mlp.(gate|up)_proj.bias": "mlp if mlp_bias",
        "model.layers.{layer}.mlp.down_proj.bias": "embed if mlp_bias",
        "model.norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "score.bias": "label in score_bias",
        "qa_outputs.weight": "span <- embed in answers",
        "qa_outputs.bias": "span in answers",
    },
    norm=Norm(stream="embed", kind="rmsnorm", epsilon="rms_norm_eps", head="model.norm"),
    optional_prefix="model.",
    tied={"lm_head.weight": "model.embed_tokens.weight"},
    # Caches of the rotary positions: in each layer of old checkpoints, and in the model since.
    ignored=("(model|model.layers.{layer}.self_attn).rotary_emb.(inv_freq|original_inv_freq|cos_cached|sin_cached)",),
    residual_outputs=("model.layers.{layer}.self_attn.o_proj", "model.layers.{layer}.mlp.down_proj"),
    labels="label",
    never_grown=("vocab", "label", "span"),
    rotary_axes=("head_dim",),
    rotary_limit="max_position_embeddings",
    dot_products=(("query", "key"),),
    activation="hidden_act",
    content_of={"context": "value"},
    integer_expressions=("hidden_size / num_attention_heads",),
    required_values={"pretraining_tp": 1},
    function_irrelevant_keys=(
        "attention_dropout",
        "initializer_range",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ),
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "head_dim": None,
    },
    published={
        "SmolLM2-135M": {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "num_hidden_layers": 30,
        },
        "SmolLM2-360M": {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "num_hidden_layers": 32,
        },
        "SmolLM2-1.7B": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 24,
        },
        "TinyLlama-1.1B": {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "num_hidden_layers": 22,
        },
        "Llama-3.2-1B": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 16,
        },
        "Llama-3.2-3B": {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "num_hidden_layers": 28,
        },
        "Llama-2-7B": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
        },
        "Llama-2-13B": {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
            "num_hidden_layers": 40,
        },
        "Llama-3.1-8B": {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 32,
        },
        "Llama-3.1-70B": {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "num_hidden_layers": 80,
        },
    },
    paper=PAPER,
    trained=TRAININGS,
)

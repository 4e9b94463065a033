"""T5 (Raffel et al., 2020), T5 1.1 and Flan-T5 as transformers stores them: an encoder and a decoder, RMSNorm, a bias by distance."""

from __future__ import annotations

from ligo_convert.families.schema import Family, Head, Norm, Training

PAPER = r"""@article{raffel2020t5,
  title   = {Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer},
  author  = {Raffel, Colin and Shazeer, Noam and Roberts, Adam and Lee, Katherine and Narang, Sharan and Matena, Michael and
             Zhou, Yanqi and Li, Wei and Liu, Peter J.},
  journal = {JMLR},
  volume  = {21},
  year    = {2020},
  url     = {https://arxiv.org/abs/1910.10683}
}"""

# Adafactor's rate falls with the root of the step; this is its value in the first 10,000 steps.
TRAININGS = (
    Training(
        parameters=220e6,
        rate=1e-2,
        batch="128 sequences of 512 tokens",
        warmup="10,000 steps at this rate, then one over the root of the step",
        decay=0.0,
        paper="T5, arXiv:1910.10683, section 3.1.2 (Adafactor)",
    ),
)

_LAYER = "encoder.block.{layer}.layer"
_ABOVE = "decoder.block.{decoder_layer}.layer"
_PLAIN, _GATED = "feed_forward_proj!=gated-gelu", "feed_forward_proj=gated-gelu"

T5 = Family(
    name="t5",
    model_type="t5",
    heads=(Head(parts=("lm",), task="text-to-text", architecture="T5ForConditionalGeneration"),),
    axes={
        "embed": "d_model",
        "heads": "num_heads",
        "head_dim": "d_kv",
        "mlp": "d_ff",
        "vocab": "vocab_size",
        "bucket": "relative_attention_num_buckets",
        "layer": "num_layers",
        "decoder_layer": "num_decoder_layers or num_layers",
    },
    streams={
        "query": "heads*head_dim",
        "key": "heads*head_dim",
        "value": "heads*head_dim",
        # The decoder's queries of what the encoder has read.
        "cross_query": "heads*head_dim",
        "cross_key": "heads*head_dim",
        "cross_value": "heads*head_dim",
    },
    tensors={
        "shared.weight": "vocab -> embed",
        # One bias of the attention by distance, which all layers of a stack share, stands in its first layer.
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "bucket -> heads",
        f"{_LAYER}.0.SelfAttention.q.weight": "query <- embed",
        f"{_LAYER}.0.SelfAttention.k.weight": "key <- embed",
        f"{_LAYER}.0.SelfAttention.v.weight": "value <- embed",
        f"{_LAYER}.0.SelfAttention.o.weight": "embed <- value",
        f"{_LAYER}.(0|1).layer_norm.weight": "embed gain",
        f"{_LAYER}.1.DenseReluDense.wi.weight": f"mlp <- embed if {_PLAIN}",
        f"{_LAYER}.1.DenseReluDense.(wi_0|wi_1).weight": f"mlp <- embed if {_GATED}",
        f"{_LAYER}.1.DenseReluDense.wo.weight": "embed <- mlp",
        "encoder.final_layer_norm.weight": "embed gain",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "bucket -> heads",
        f"{_ABOVE}.0.SelfAttention.q.weight": "query <- embed",
        f"{_ABOVE}.0.SelfAttention.k.weight": "key <- embed",
        f"{_ABOVE}.0.SelfAttention.v.weight": "value <- embed",
        f"{_ABOVE}.0.SelfAttention.o.weight": "embed <- value",
        f"{_ABOVE}.1.EncDecAttention.q.weight": "cross_query <- embed",
        f"{_ABOVE}.1.EncDecAttention.k.weight": "cross_key <- embed",
        f"{_ABOVE}.1.EncDecAttention.v.weight": "cross_value <- embed",
        f"{_ABOVE}.1.EncDecAttention.o.weight": "embed <- cross_value",
        f"{_ABOVE}.(0|1|2).layer_norm.weight": "embed gain",
        f"{_ABOVE}.2.DenseReluDense.wi.weight": f"mlp <- embed if {_PLAIN}",
        f"{_ABOVE}.2.DenseReluDense.(wi_0|wi_1).weight": f"mlp <- embed if {_GATED}",
        f"{_ABOVE}.2.DenseReluDense.wo.weight": "embed <- mlp",
        "decoder.final_layer_norm.weight": "embed gain",
        "lm_head.weight": "vocab <- embed in lm",
    },
    norm=Norm(stream="embed", kind="rmsnorm", epsilon="layer_norm_epsilon", head="decoder.final_layer_norm"),
    lookup_axes=("vocab", "bucket"),
    # A tied head reads the decoder's output divided by the root of the width.
    width_factors={"lm_head.weight": ("embed", -0.5)},
    tied={"lm_head.weight": "shared.weight"},
    # Models with a head of their own (T5 1.1, Flan-T5) do not scale what it reads. For them, too, transformers 5 writes
    # `tie_word_embeddings: true`, and loads the head that it finds: this key tells.
    tie_key="scale_decoder_outputs",
    defaults_from={"scale_decoder_outputs": "tie_word_embeddings"},
    # Copies of the shared embedding in old files.
    ignored=("(encoder|decoder).embed_tokens.weight",),
    residual_outputs=(
        f"{_LAYER}.0.SelfAttention.o",
        f"{_LAYER}.1.DenseReluDense.wo",
        f"{_ABOVE}.0.SelfAttention.o",
        f"{_ABOVE}.1.EncDecAttention.o",
        f"{_ABOVE}.2.DenseReluDense.wo",
    ),
    # The library does not divide dot products by the root of the head size, which stays.
    never_grown=("vocab", "bucket", "head_dim"),
    dot_products=(("query", "key"), ("cross_query", "cross_key")),
    # Other gated layers have the rows of this one, and a name that the conditions do not know.
    required_values={"feed_forward_proj": ("relu", "gated-gelu"), "is_decoder": False},
    function_irrelevant_keys=(
        "dropout_rate",
        "classifier_dropout",
        "initializer_factor",
        "use_cache",
        "is_encoder_decoder",
        "pad_token_id",
        "eos_token_id",
        "decoder_start_token_id",
    ),
    # The embedding's, times `initializer_factor`, which published models have at one.
    initializer=1.0,
    root_init={
        "(encoder|decoder).block.0.layer.0.SelfAttention.relative_attention_bias.weight": ("embed",),
        f"({_LAYER}|{_ABOVE}).0.SelfAttention.q.weight": ("embed", "head_dim"),
        f"({_LAYER}|{_ABOVE}).0.SelfAttention.(k|v).weight": ("embed",),
        f"({_LAYER}|{_ABOVE}).0.SelfAttention.o.weight": ("heads", "head_dim"),
        f"{_ABOVE}.1.EncDecAttention.q.weight": ("embed", "head_dim"),
        f"{_ABOVE}.1.EncDecAttention.(k|v).weight": ("embed",),
        f"{_ABOVE}.1.EncDecAttention.o.weight": ("heads", "head_dim"),
        f"({_LAYER}.1|{_ABOVE}.2).DenseReluDense.(wi|wi_0|wi_1).weight": ("embed",),
        f"({_LAYER}.1|{_ABOVE}.2).DenseReluDense.wo.weight": ("mlp",),
    },
    defaults={
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_decoder_layers": None,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "initializer_factor": 1.0,
        "feed_forward_proj": "relu",
        "is_encoder_decoder": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "classifier_dropout": 0.0,
        "is_decoder": False,
        "tie_word_embeddings": True,
        "scale_decoder_outputs": True,
    },
    published={
        "t5-small": {
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 2048,
            "num_heads": 8,
            "num_layers": 6,
            "num_decoder_layers": 6,
        },
        "t5-base": {
            "d_model": 768,
            "d_kv": 64,
            "d_ff": 3072,
            "num_heads": 12,
            "num_layers": 12,
            "num_decoder_layers": 12,
        },
        "t5-large": {
            "d_model": 1024,
            "d_kv": 64,
            "d_ff": 4096,
            "num_heads": 16,
            "num_layers": 24,
            "num_decoder_layers": 24,
        },
    },
    paper=PAPER,
    trained=TRAININGS,
)

"""UMT5 (Chung et al., 2023) as transformers stores it: T5 1.1 with a bias by distance in every layer."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.t5 import T5
from ligo_convert.families.schema import Head

PAPER = r"""@inproceedings{chung2023unimax,
  title     = {{UniMax}: Fairer and More Effective Language Sampling for Large-Scale Multilingual Pretraining},
  author    = {Chung, Hyung Won and Constant, Noah and Garcia, Xavier and others},
  booktitle = {ICLR},
  year      = {2023},
  url       = {https://arxiv.org/abs/2304.09151}
}"""

_SHARED = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"

UMT5 = replace(
    T5,
    name="umt5",
    model_type="umt5",
    heads=(Head(parts=("lm",), task="text-to-text", architecture="UMT5ForConditionalGeneration"),),
    tensors={
        name.replace(f"encoder.{_SHARED}", f"encoder.{_SHARED.replace('.0.', '.{layer}.', 1)}").replace(
            f"decoder.{_SHARED}", f"decoder.{_SHARED.replace('.0.', '.{decoder_layer}.', 1)}"
        ): layout
        for name, layout in T5.tensors.items()
    },
    root_init={
        **{name: streams for name, streams in T5.root_init.items() if _SHARED not in name},
        "encoder.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight": ("embed",),
        "decoder.block.{decoder_layer}.layer.0.SelfAttention.relative_attention_bias.weight": ("embed",),
    },
    defaults={
        **T5.defaults,
        "vocab_size": 250112,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "dropout_rate": 0.1,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    },
    published={
        "umt5-small": {
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 1024,
            "num_heads": 6,
            "num_layers": 8,
            "num_decoder_layers": 8,
        },
        "umt5-base": {
            "d_model": 768,
            "d_kv": 64,
            "d_ff": 2048,
            "num_heads": 12,
            "num_layers": 12,
            "num_decoder_layers": 12,
        },
    },
    paper=PAPER,
)

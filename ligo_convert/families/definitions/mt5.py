"""mT5 (Xue et al., 2021) as transformers stores it: T5 1.1, whose head is never scaled."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.t5 import T5
from ligo_convert.families.schema import Head

PAPER = r"""@inproceedings{xue2021mt5,
  title     = {{mT5}: A Massively Multilingual Pre-trained Text-to-Text Transformer},
  author    = {Xue, Linting and Constant, Noah and Roberts, Adam and others},
  booktitle = {NAACL},
  year      = {2021},
  url       = {https://arxiv.org/abs/2010.11934}
}"""

MT5 = replace(
    T5,
    name="mt5",
    model_type="mt5",
    heads=(Head(parts=("lm",), task="text-to-text", architecture="MT5ForConditionalGeneration"),),
    # The library ties the head whatever the config says, and keeps one of its own that it finds: the files say whether there is one.
    tie_key="tie_word_embeddings",
    defaults_from={},
    width_factors={},
    defaults={
        **{key: value for key, value in T5.defaults.items() if key != "scale_decoder_outputs"},
        "vocab_size": 250112,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    },
    published={
        "mt5-small": {
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 1024,
            "num_heads": 6,
            "num_layers": 8,
            "num_decoder_layers": 8,
        },
        "mt5-base": {
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

"""The text model of data2vec (Baevski et al., 2022): RoBERTa under other class names and with a prefix of its own."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.roberta import ROBERTA
from ligo_convert.families.schema import classes

PAPER = r"""@inproceedings{baevski2022data2vec,
  title     = {data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language},
  author    = {Baevski, Alexei and Hsu, Wei-Ning and Xu, Qiantong and Babu, Arun and Gu, Jiatao and Auli, Michael},
  booktitle = {ICML},
  year      = {2022},
  url       = {https://arxiv.org/abs/2202.03555}
}"""

DATA2VEC_TEXT = replace(
    ROBERTA,
    name="data2vec_text",
    model_type="data2vec-text",
    other_names=(),
    heads=classes(ROBERTA.heads, "Roberta", "Data2VecText"),
    tensors={name.replace("roberta.", "data2vec_text."): layout for name, layout in ROBERTA.tensors.items()},
    norm=replace(
        ROBERTA.norm,
        after_embeddings="data2vec_text.embeddings.LayerNorm",
        after_attention="data2vec_text.encoder.layer.{layer}.attention.output.LayerNorm",
        after_mlp="data2vec_text.encoder.layer.{layer}.output.LayerNorm",
    ),
    pooled=("data2vec_text.pooler.dense", "classifier.dense"),
    optional_prefix="data2vec_text.",
    tied={
        "lm_head.decoder.weight": "data2vec_text.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    ignored=("data2vec_text.embeddings.(position_ids|token_type_ids)",),
    residual_outputs=(
        "data2vec_text.encoder.layer.{layer}.attention.output.dense",
        "data2vec_text.encoder.layer.{layer}.output.dense",
    ),
    defaults={**ROBERTA.defaults, "vocab_size": 30522},
    published={
        "data2vec-text-base": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "intermediate_size": 3072,
        },
    },
    paper=PAPER,
)

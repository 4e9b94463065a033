"""ERNIE (Sun et al., 2019) as transformers stores it: BERT, with an embedding of the task since version 2.0."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.bert import BERT
from ligo_convert.families.schema import classes

PAPER = r"""@misc{sun2019ernie,
  title  = {{ERNIE}: Enhanced Representation through Knowledge Integration},
  author = {Sun, Yu and Wang, Shuohuan and Li, Yukun and Feng, Shikun and Chen, Xuyi and Zhang, Han and Tian, Xin and
            Zhu, Danxiang and Tian, Hao and Wu, Hua},
  year   = {2019},
  url    = {https://arxiv.org/abs/1904.09223}
}"""

ERNIE = replace(
    BERT,
    name="ernie",
    model_type="ernie",
    heads=classes(BERT.heads, "Bert", "Ernie"),
    axes={**BERT.axes, "kind_of_task": "task_type_vocab_size"},
    tensors={
        **{name.replace("bert.", "ernie."): layout for name, layout in BERT.tensors.items()},
        # A term of the sum of embeddings: of task 0 if the input names none.
        "ernie.embeddings.task_type_embeddings.weight": "kind_of_task -> token if use_task_id",
    },
    norm=replace(
        BERT.norm,
        after_embeddings="ernie.embeddings.LayerNorm",
        after_attention="ernie.encoder.layer.{layer}.attention.output.LayerNorm",
        after_mlp="ernie.encoder.layer.{layer}.output.LayerNorm",
    ),
    lookup_axes=(*BERT.lookup_axes, "kind_of_task"),
    pooled=("ernie.pooler.dense", "cls.seq_relationship"),
    optional_prefix="ernie.",
    tied={
        "cls.predictions.decoder.weight": "ernie.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=("ernie.embeddings.(position_ids|token_type_ids)",),
    residual_outputs=(
        "ernie.encoder.layer.{layer}.attention.output.dense",
        "ernie.encoder.layer.{layer}.output.dense",
    ),
    never_grown=(*BERT.never_grown, "kind_of_task"),
    defaults={**BERT.defaults, "task_type_vocab_size": 3, "use_task_id": False},
    published={
        "ernie-3.0-nano": {
            "hidden_size": 312,
            "num_attention_heads": 12,
            "num_hidden_layers": 4,
            "intermediate_size": 1248,
        },
        "ernie-3.0-micro": {
            "hidden_size": 384,
            "num_attention_heads": 12,
            "num_hidden_layers": 4,
            "intermediate_size": 1536,
        },
        "ernie-3.0-mini": {
            "hidden_size": 384,
            "num_attention_heads": 12,
            "num_hidden_layers": 6,
            "intermediate_size": 1536,
        },
        "ernie-3.0-medium": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 6,
            "intermediate_size": 3072,
        },
        "ernie-3.0-base": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "intermediate_size": 3072,
        },
        "ernie-3.0-xbase": {
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_hidden_layers": 20,
            "intermediate_size": 4096,
        },
    },
    paper=PAPER,
)

"""Megatron's BERT (Shoeybi et al., 2019) as transformers stores it: BERT with the norms before the branches, one after the last layer."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.bert import BERT
from ligo_convert.families.schema import Norm, classes

PAPER = r"""@misc{shoeybi2019megatron,
  title  = {{Megatron-LM}: Training Multi-Billion Parameter Language Models Using Model Parallelism},
  author = {Shoeybi, Mohammad and Patwary, Mostofa and Puri, Raul and LeGresley, Patrick and Casper, Jared and Catanzaro, Bryan},
  year   = {2019},
  url    = {https://arxiv.org/abs/1909.08053}
}"""

MEGATRON_BERT = replace(
    BERT,
    name="megatron_bert",
    model_type="megatron-bert",
    heads=classes(BERT.heads, "Bert", "MegatronBert"),
    streams={name: product for name, product in BERT.streams.items() if name != "token"},
    tensors={
        # No norm follows the sum of the embeddings: it is the residual stream.
        "bert.embeddings.word_embeddings.weight": "vocab -> embed",
        "bert.embeddings.position_embeddings.weight": "position -> embed",
        "bert.embeddings.token_type_embeddings.weight": "segment -> embed",
        "bert.encoder.layer.{layer}.attention.ln.weight": "embed gain",
        "bert.encoder.layer.{layer}.attention.ln.bias": "embed shift",
        **{
            name: layout
            for name, layout in BERT.tensors.items()
            if not name.startswith("bert.embeddings.") and ".output.LayerNorm." not in name
        },
        "bert.encoder.layer.{layer}.ln.weight": "embed gain",
        "bert.encoder.layer.{layer}.ln.bias": "embed shift",
        "bert.encoder.ln.weight": "embed gain",
        "bert.encoder.ln.bias": "embed shift",
    },
    norm=Norm(
        stream="embed",
        kind="layernorm",
        epsilon="layer_norm_eps",
        head="cls.predictions.transform.LayerNorm",
        activated_streams=("transformed",),
    ),
    defaults={
        **{key: value for key, value in BERT.defaults.items() if key != "classifier_dropout"},
        "vocab_size": 29056,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    published={
        "megatron-bert-345m": {
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "intermediate_size": 4096,
        },
    },
    paper=PAPER,
)

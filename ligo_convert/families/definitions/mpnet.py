"""MPNet (Song et al., 2020) as transformers stores it: post-norm as RoBERTa, without segments, with a bias by distance."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.roberta import ROBERTA
from ligo_convert.families.schema import Norm, classes

PAPER = r"""@inproceedings{song2020mpnet,
  title     = {{MPNet}: Masked and Permuted Pre-training for Language Understanding},
  author    = {Song, Kaitao and Tan, Xu and Qin, Tao and Lu, Jianfeng and Liu, Tie-Yan},
  booktitle = {NeurIPS},
  year      = {2020},
  url       = {https://arxiv.org/abs/2004.09297}
}"""

MPNET = replace(
    ROBERTA,
    name="mpnet",
    model_type="mpnet",
    other_names=(),
    heads=classes(ROBERTA.heads, "Roberta", "MPNet"),
    axes={
        "embed": "hidden_size",
        "heads": "num_attention_heads",
        "head_dim": "hidden_size / num_attention_heads",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
        "position": "max_position_embeddings",
        # Kinds of distances between two tokens.
        "bucket": "relative_attention_num_buckets",
        "label": "num_labels or #id2label or 2",
        "choice": "1",
        # The logits of an answer's first and last token.
        "span": "2",
        "layer": "num_hidden_layers",
    },
    tensors={
        "mpnet.embeddings.word_embeddings.weight": "vocab -> token",
        "mpnet.embeddings.position_embeddings.weight": "position -> token",
        "mpnet.embeddings.LayerNorm.weight": "embed gain",
        "mpnet.embeddings.LayerNorm.bias": "embed shift",
        "mpnet.encoder.layer.{layer}.attention.attn.q.weight": "query <- embed",
        "mpnet.encoder.layer.{layer}.attention.attn.q.bias": "query",
        "mpnet.encoder.layer.{layer}.attention.attn.k.weight": "key <- embed",
        "mpnet.encoder.layer.{layer}.attention.attn.k.bias": "key",
        "mpnet.encoder.layer.{layer}.attention.attn.v.weight": "value <- embed",
        "mpnet.encoder.layer.{layer}.attention.attn.v.bias": "value",
        "mpnet.encoder.layer.{layer}.attention.attn.o.weight": "embed <- value",
        "mpnet.encoder.layer.{layer}.attention.attn.o.bias": "embed",
        "mpnet.encoder.layer.{layer}.attention.LayerNorm.weight": "embed gain",
        "mpnet.encoder.layer.{layer}.attention.LayerNorm.bias": "embed shift",
        "mpnet.encoder.layer.{layer}.intermediate.dense.weight": "mlp <- embed",
        "mpnet.encoder.layer.{layer}.intermediate.dense.bias": "mlp",
        "mpnet.encoder.layer.{layer}.output.dense.weight": "embed <- mlp",
        "mpnet.encoder.layer.{layer}.output.dense.bias": "embed",
        "mpnet.encoder.layer.{layer}.output.LayerNorm.weight": "embed gain",
        "mpnet.encoder.layer.{layer}.output.LayerNorm.bias": "embed shift",
        # Added to the scores of every layer, so a copied head needs its old head's column.
        "mpnet.encoder.relative_attention_bias.weight": "bucket -> heads",
        "mpnet.pooler.dense.weight": "pooled <- embed in pooler",
        "mpnet.pooler.dense.bias": "pooled in pooler",
        **{name: layout for name, layout in ROBERTA.tensors.items() if not name.startswith("roberta.")},
    },
    norm=Norm(
        stream="embed",
        kind="layernorm",
        epsilon="layer_norm_eps",
        head="lm_head.layer_norm",
        placement="post",
        after_embeddings="mpnet.embeddings.LayerNorm",
        after_attention="mpnet.encoder.layer.{layer}.attention.LayerNorm",
        after_mlp="mpnet.encoder.layer.{layer}.output.LayerNorm",
        summed_streams=("token",),
        activated_streams=("transformed",),
    ),
    # The library's code fixes the padding id as 1.
    position_offset="2",
    lookup_axes=("vocab", "position", "bucket"),
    pooled=("mpnet.pooler.dense", "classifier.dense"),
    optional_prefix="mpnet.",
    tied={
        "lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    ignored=("mpnet.embeddings.position_ids",),
    residual_outputs=(
        "mpnet.encoder.layer.{layer}.attention.attn.o",
        "mpnet.encoder.layer.{layer}.output.dense",
    ),
    never_grown=("vocab", "position", "bucket", "label", "choice", "span"),
    # The class of the library has neither a decoder nor another kind of positions.
    required_values={},
    function_irrelevant_keys=(
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ),
    defaults={
        "vocab_size": 30527,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "relative_attention_num_buckets": 32,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    },
    published={
        "mpnet-base": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "intermediate_size": 3072,
        },
    },
    paper=PAPER,
)

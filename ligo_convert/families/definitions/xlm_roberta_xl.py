"""XLM-RoBERTa-XL (Goyal et al., 2021) as transformers stores it: RoBERTa with norms before the branches and one after the last layer."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.roberta import ROBERTA
from ligo_convert.families.schema import Norm, classes

PAPER = r"""@misc{goyal2021xlmrxl,
  title  = {Larger-Scale Transformers for Multilingual Masked Language Modeling},
  author = {Goyal, Naman and Du, Jingfei and Ott, Myle and Anantharaman, Giri and Conneau, Alexis},
  year   = {2021},
  url    = {https://arxiv.org/abs/2105.00572}
}"""

XLM_ROBERTA_XL = replace(
    ROBERTA,
    name="xlm_roberta_xl",
    model_type="xlm-roberta-xl",
    other_names=(),
    heads=classes(ROBERTA.heads, "Roberta", "XLMRobertaXL"),
    streams={name: product for name, product in ROBERTA.streams.items() if name != "token"},
    tensors={
        # No norm follows the sum of the embeddings: it is the residual stream.
        "roberta.embeddings.word_embeddings.weight": "vocab -> embed",
        "roberta.embeddings.position_embeddings.weight": "position -> embed",
        "roberta.embeddings.token_type_embeddings.weight": "segment -> embed",
        "roberta.encoder.layer.{layer}.attention.self_attn_layer_norm.weight": "embed gain",
        "roberta.encoder.layer.{layer}.attention.self_attn_layer_norm.bias": "embed shift",
        **{
            name: layout
            for name, layout in ROBERTA.tensors.items()
            if not name.startswith("roberta.embeddings.") and ".output.LayerNorm." not in name
        },
        "roberta.encoder.layer.{layer}.LayerNorm.weight": "embed gain",
        "roberta.encoder.layer.{layer}.LayerNorm.bias": "embed shift",
        "roberta.encoder.LayerNorm.weight": "embed gain",
        "roberta.encoder.LayerNorm.bias": "embed shift",
    },
    norm=Norm(
        stream="embed",
        kind="layernorm",
        epsilon="layer_norm_eps",
        head="lm_head.layer_norm",
        activated_streams=("transformed",),
    ),
    defaults={
        **ROBERTA.defaults,
        "vocab_size": 250880,
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 10240,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    published={
        "xlm-roberta-xl": {
            "hidden_size": 2560,
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "intermediate_size": 10240,
        },
        "xlm-roberta-xxl": {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 48,
            "intermediate_size": 16384,
        },
    },
    paper=PAPER,
)

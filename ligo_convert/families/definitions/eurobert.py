"""EuroBERT (Boizard et al., 2025) as transformers stores it: Llama with attention in both directions and classifiers of its own."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA
from ligo_convert.families.schema import Head

PAPER = r"""@misc{boizard2025eurobert,
  title  = {{EuroBERT}: Scaling Multilingual Encoders for European Languages},
  author = {Boizard, Nicolas and Gisserot-Boukhlef, Hippolyte and Alves, Duarte M. and Martins, Andr{\'e} and others},
  year   = {2025},
  url    = {https://arxiv.org/abs/2503.05500}
}"""

EUROBERT = replace(
    LLAMA,
    name="eurobert",
    model_type="eurobert",
    heads=(
        Head(parts=("lm",), task="masked-lm", architecture="EuroBertForMaskedLM"),
        Head(
            parts=("dense", "classes"), task="sequence-classification", architecture="EuroBertForSequenceClassification"
        ),
        Head(parts=("token",), task="token-classification", architecture="EuroBertForTokenClassification"),
        Head(task="encoder", architecture="EuroBertModel", base=True),
    ),
    axes={axis: size for axis, size in LLAMA.axes.items() if axis != "span"},
    # The input of the classifier has the width of the residual stream, behind an activation.
    streams={**LLAMA.streams, "judged": "embed"},
    tensors={
        **{name: row for name, row in LLAMA.tensors.items() if name.startswith("model.")},
        "lm_head.weight": "vocab <- embed in lm",
        "lm_head.bias": "vocab if mlp_bias in lm",
        "dense.weight": "judged <- embed in dense",
        "dense.bias": "judged in dense",
        "classifier.weight": "label <- judged in classes | label <- embed in token",
        "classifier.bias": "label in classes | label in token",
    },
    never_grown=("vocab", "label"),
    # Not read by the library.
    required_values={},
    function_irrelevant_keys=(*LLAMA.function_irrelevant_keys, "pretraining_tp", "mask_token_id"),
    defaults={
        "vocab_size": 128256,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": 128001,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "mask_token_id": 128002,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "head_dim": None,
        "classifier_pooling": "late",
    },
    published={
        "EuroBERT-210m": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "num_hidden_layers": 12,
        },
        "EuroBERT-610m": {
            "hidden_size": 1152,
            "intermediate_size": 4096,
            "num_attention_heads": 18,
            "num_key_value_heads": 6,
            "num_hidden_layers": 26,
        },
        "EuroBERT-2.1B": {
            "hidden_size": 2304,
            "intermediate_size": 6144,
            "num_attention_heads": 18,
            "num_key_value_heads": 6,
            "num_hidden_layers": 32,
        },
    },
    paper=PAPER,
)

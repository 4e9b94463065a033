"""XLM-RoBERTa (Conneau et al., 2020): RoBERTa under other class names, with a vocabulary for a hundred languages."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.roberta import ROBERTA
from ligo_convert.families.schema import classes

PAPER = r"""@inproceedings{conneau2020xlmr,
  title     = {Unsupervised Cross-lingual Representation Learning at Scale},
  author    = {Conneau, Alexis and Khandelwal, Kartikay and Goyal, Naman and Chaudhary, Vishrav and Wenzek, Guillaume and
               Guzm{\'a}n, Francisco and Grave, Edouard and Ott, Myle and Zettlemoyer, Luke and Stoyanov, Veselin},
  booktitle = {ACL},
  year      = {2020},
  url       = {https://arxiv.org/abs/1911.02116}
}"""

# The names on disk are RoBERTa's, prefix included.
XLM_ROBERTA = replace(
    ROBERTA,
    name="xlm_roberta",
    model_type="xlm-roberta",
    other_names=(),
    heads=classes(ROBERTA.heads, "Roberta", "XLMRoberta"),
    defaults={**ROBERTA.defaults, "vocab_size": 30522},
    published={
        "xlm-roberta-base": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "intermediate_size": 3072,
        },
        "xlm-roberta-large": {
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "intermediate_size": 4096,
        },
    },
    paper=PAPER,
)

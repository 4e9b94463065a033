"""CamemBERT (Martin et al., 2020): RoBERTa for French, under other class names."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.roberta import ROBERTA
from ligo_convert.families.schema import classes

PAPER = r"""@inproceedings{martin2020camembert,
  title     = {{CamemBERT}: a Tasty {French} Language Model},
  author    = {Martin, Louis and Muller, Benjamin and Ortiz Su{\'a}rez, Pedro Javier and Dupont, Yoann and Romary, Laurent and
               de la Clergerie, {\'E}ric and Seddah, Djam{\'e} and Sagot, Beno{\^i}t},
  booktitle = {ACL},
  year      = {2020},
  url       = {https://arxiv.org/abs/1911.03894}
}"""

# The names on disk are RoBERTa's, prefix included.
CAMEMBERT = replace(
    ROBERTA,
    name="camembert",
    model_type="camembert",
    other_names=(),
    heads=classes(ROBERTA.heads, "Roberta", "Camembert"),
    defaults={**ROBERTA.defaults, "vocab_size": 30522},
    published={
        "camembert-base": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "intermediate_size": 3072,
        },
        "camembert-large": {
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "intermediate_size": 4096,
        },
    },
    paper=PAPER,
)

"""DeiT (Touvron et al., 2021) as transformers stores it, with a distillation token. The family `deit` has those of timm.

Models without that token are of the type `vit` in transformers: the family `transformers_vit`.
"""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.transformers_vit import TRANSFORMERS_VIT
from ligo_convert.families.schema import Head, Norm

PAPER = r"""@misc{touvron2020training,
  title  = {Training data-efficient image transformers \& distillation through attention},
  author = {Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and Sablayrolles, Alexandre and
            J{\'e}gou, Herv{\'e}},
  note   = {International Conference on Machine Learning, 2021},
  year   = {2020},
  url    = {https://arxiv.org/abs/2012.12877}
}"""

TRANSFORMERS_DEIT = replace(
    TRANSFORMERS_VIT,
    name="transformers_deit",
    model_type="deit",
    heads=(
        # It returns the mean of what two classifiers say.
        Head(
            parts=("teacher",),
            task="image-classification",
            architecture="DeiTForImageClassificationWithTeacher",
            auto_class="AutoModelForImageClassification",
        ),
        Head(
            parts=("classifier",),
            task="image-classification",
            architecture="DeiTForImageClassification",
            auto_class="AutoModelForImageClassification",
        ),
        Head(parts=("pooler",), task="image-encoder", architecture="DeiTModel", auto_class="AutoModel", base=True),
        Head(
            task="image-encoder",
            architecture="DeiTModel",
            auto_class="AutoModel",
            base=True,
            options={"add_pooling_layer": False},
        ),
    ),
    # The class token and the distillation token have positions, too.
    axes={
        **TRANSFORMERS_VIT.axes,
        "position": "image_size[0] // patch_size[0] * image_size[1] // patch_size[1] + 2",
    },
    tensors={
        "deit.embeddings.distillation_token": "1 1 embed",
        **{name.replace("vit.", "deit."): layout for name, layout in TRANSFORMERS_VIT.tensors.items()},
        "(cls|distillation)_classifier.weight": "label <- embed in teacher",
        "(cls|distillation)_classifier.bias": "label in teacher",
    },
    norm=Norm(stream="embed", kind="layernorm", epsilon="layer_norm_eps", head="deit.layernorm"),
    pooled=("classifier", "(cls|distillation)_classifier", "deit.pooler.dense"),
    optional_prefix="deit.",
    in_model={
        name.replace("vit.", "deit."): rows.replace("vit.", "deit.") for name, rows in TRANSFORMERS_VIT.in_model.items()
    },
    residual_outputs=tuple(name.replace("vit.", "deit.") for name in TRANSFORMERS_VIT.residual_outputs),
    published={
        "deit-tiny-distilled-patch16-224": {
            "hidden_size": 192,
            "num_hidden_layers": 12,
            "num_attention_heads": 3,
            "intermediate_size": 768,
        },
        "deit-small-distilled-patch16-224": {
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "intermediate_size": 1536,
        },
        "deit-base-distilled-patch16-224": {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
    },
    paper=PAPER,
)

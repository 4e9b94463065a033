"""DeiT (Touvron et al., 2021) and DeiT III as timm stores them: vision transformers, some with a distillation token and head."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.vit import VIT

PAPER = r"""@inproceedings{touvron2021training,
  title     = {Training data-efficient image transformers \& distillation through attention},
  author    = {Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and Sablayrolles, Alexandre and
               J{\'e}gou, Herv{\'e}},
  booktitle = {International Conference on Machine Learning},
  year      = {2021},
  url       = {https://arxiv.org/abs/2012.12877}
}"""

DEIT = replace(
    VIT,
    name="deit",
    model_type="deit",
    required_values={
        **VIT.required_values,
        # The class with a distillation token has these alone.
        "global_pool": "token",
        "class_token": True,
        "reg_tokens": 0,
        "fc_norm": False,
    },
    # The names of DeiT III's authors.
    renamed={"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"},
    architectures={
        "deit3_base_patch16_224": {"init_values": 1e-06, "no_embed_class": True},
        "deit3_base_patch16_384": {"img_size": 384, "init_values": 1e-06, "no_embed_class": True},
        "deit3_huge_patch14_224": {
            "embed_dim": 1280,
            "depth": 32,
            "num_heads": 16,
            "patch_size": 14,
            "init_values": 1e-06,
            "no_embed_class": True,
        },
        "deit3_large_patch16_224": {
            "embed_dim": 1024,
            "depth": 24,
            "num_heads": 16,
            "init_values": 1e-06,
            "no_embed_class": True,
        },
        "deit3_large_patch16_384": {
            "embed_dim": 1024,
            "depth": 24,
            "num_heads": 16,
            "img_size": 384,
            "init_values": 1e-06,
            "no_embed_class": True,
        },
        "deit3_medium_patch16_224": {
            "embed_dim": 512,
            "num_heads": 8,
            "init_values": 1e-06,
            "no_embed_class": True,
        },
        "deit3_small_patch16_224": {
            "embed_dim": 384,
            "num_heads": 6,
            "init_values": 1e-06,
            "no_embed_class": True,
        },
        "deit3_small_patch16_384": {
            "embed_dim": 384,
            "num_heads": 6,
            "img_size": 384,
            "init_values": 1e-06,
            "no_embed_class": True,
        },
        "deit_base_distilled_patch16_224": {"distilled": True},
        "deit_base_distilled_patch16_384": {"img_size": 384, "distilled": True},
        "deit_base_patch16_224": {},
        "deit_base_patch16_384": {"img_size": 384},
        "deit_small_distilled_patch16_224": {"embed_dim": 384, "num_heads": 6, "distilled": True},
        "deit_small_patch16_224": {"embed_dim": 384, "num_heads": 6},
        "deit_tiny_distilled_patch16_224": {"embed_dim": 192, "num_heads": 3, "distilled": True},
        "deit_tiny_patch16_224": {"embed_dim": 192, "num_heads": 3},
    },
    paper=PAPER,
)

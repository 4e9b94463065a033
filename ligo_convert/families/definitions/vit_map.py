"""Vision transformers of timm with an attention pool (Zhai et al., 2022; `global_pool: map`), such as the image towers of SigLIP.

The pool is one attention of a learned latent to the normalised tokens, with a norm and feed-forward layers of its own; the head reads it.
"""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.siglip_vision_model import POOL_PRODUCT, POOL_STREAMS
from ligo_convert.families.definitions.vit import VIT

PAPER = r"""@inproceedings{zhai2022scaling,
  title     = {Scaling Vision Transformers},
  author    = {Zhai, Xiaohua and Kolesnikov, Alexander and Houlsby, Neil and Beyer, Lucas},
  booktitle = {Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  url       = {https://arxiv.org/abs/2106.04560}
}"""

# Tensors of the other poolings; the head reads another stream.
_WITHOUT = ("fc_norm", "norm", "dist_token", "head")

_TANH = {"activation": "gelu_tanh"}
_BASE = {"num_classes": 0}
_LARGE = {**_BASE, "embed_dim": 1024, "depth": 24, "num_heads": 16}
_SO400M = {**_BASE, "embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362}
_GIANT = {**_BASE, "embed_dim": 1536, "depth": 40, "num_heads": 16, **_TANH}

VIT_MAP = replace(
    VIT,
    name="vit_map",
    model_type="vit_map",
    streams={**VIT.streams, **POOL_STREAMS},
    tensors={
        **{name: layout for name, layout in VIT.tensors.items() if not name.startswith(_WITHOUT)},
        "norm.weight": "embed gain",
        "norm.bias": "embed shift",
        # The queries read the latent by the map with which keys and values read what the last norm gives. So the latent is what that gives.
        "attn_pool.latent": "1 1 embed shift",
        "attn_pool.q.weight": "pool_query <- embed",
        "attn_pool.q.bias": "pool_query",
        "attn_pool.kv.weight": "pool_key+pool_value <- embed",
        "attn_pool.kv.bias": "pool_key+pool_value",
        "attn_pool.proj.weight": "pooled <- pool_value",
        "attn_pool.proj.bias": "pooled",
        "attn_pool.norm.weight": "pooled gain",
        "attn_pool.norm.bias": "pooled shift",
        "attn_pool.mlp.fc1.weight": "pool_mlp <- pooled",
        "attn_pool.mlp.fc1.bias": "pool_mlp",
        "attn_pool.mlp.fc2.weight": "pooled <- pool_mlp",
        "attn_pool.mlp.fc2.bias": "pooled",
        "head.weight": "classes <- pooled if num_classes in head",
        "head.bias": "classes if num_classes in head",
    },
    # The head reads what the pool returns without a norm, so that methods which scale the stream are not exact there.
    norm=replace(VIT.norm, head="norm", beside=("pooled",), activated_streams=("pooled",)),
    pooled=("attn_pool.q", "attn_pool.proj", "attn_pool.mlp.fc1", "attn_pool.mlp.fc2", "head"),
    dot_products=(*VIT.dot_products, POOL_PRODUCT),
    required_values={
        **{key: value for key, value in VIT.required_values.items() if key != "pool_include_prefix"},
        "global_pool": "map",
        "fc_norm": False,
    },
    defaults={**VIT.defaults, "global_pool": "map", "class_token": False, "pool_include_prefix": False},
    architectures={
        "test_vit3": {
            "img_size": 160,
            "embed_dim": 96,
            "depth": 9,
            "num_heads": 3,
            "mlp_ratio": 2,
            "init_values": 1e-05,
            "reg_tokens": 1,
            "pool_include_prefix": True,
        },
        "vit_base_patch16_siglip_224": _BASE,
        "vit_base_patch16_siglip_256": {**_BASE, "img_size": 256},
        "vit_base_patch16_siglip_384": {**_BASE, "img_size": 384},
        "vit_base_patch16_siglip_512": {**_BASE, "img_size": 512},
        "vit_base_patch32_siglip_256": {**_BASE, **_TANH, "img_size": 256, "patch_size": 32},
        "vit_giantopt_patch16_siglip_256": {**_GIANT, "img_size": 256},
        "vit_giantopt_patch16_siglip_384": {**_GIANT, "img_size": 384},
        "vit_large_patch16_siglip_256": {**_LARGE, "img_size": 256},
        "vit_large_patch16_siglip_384": {**_LARGE, "img_size": 384},
        "vit_large_patch16_siglip_512": {**_LARGE, **_TANH, "img_size": 512},
        "vit_so150m_patch16_reg4_map_256": {
            "img_size": 256,
            "embed_dim": 896,
            "depth": 18,
            "num_heads": 14,
            "mlp_ratio": 2.572,
            "reg_tokens": 4,
        },
        "vit_so400m_patch14_siglip_224": {**_SO400M, "patch_size": 14},
        "vit_so400m_patch14_siglip_378": {**_SO400M, "img_size": 378, "patch_size": 14},
        "vit_so400m_patch16_siglip_256": {**_SO400M, **_TANH, "img_size": 256},
        "vit_so400m_patch16_siglip_384": {**_SO400M, **_TANH, "img_size": 384},
        "vit_so400m_patch16_siglip_512": {**_SO400M, **_TANH, "img_size": 512},
    },
    paper=PAPER,
)

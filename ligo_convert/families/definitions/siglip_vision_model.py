"""The vision tower of SigLIP (Zhai et al., 2023) as transformers stores it: pre-LayerNorm, no class token, an attention pool as its head.

The pool is one attention of a learned probe to the normalised patches, with a norm and feed-forward layers of its own.
"""

from __future__ import annotations

from ligo_convert.families.definitions.vit import TRAININGS
from ligo_convert.families.schema import Family, Head, Norm

PAPER = r"""@inproceedings{zhai2023sigmoid,
  title     = {Sigmoid Loss for Language Image Pre-Training},
  author    = {Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and Beyer, Lucas},
  booktitle = {International Conference on Computer Vision},
  year      = {2023},
  url       = {https://arxiv.org/abs/2303.15343}
}"""

# The streams of the attention pool; `pooled` is what it returns.
POOL_STREAMS = {
    "pool_query": "heads*head_dim",
    "pool_key": "heads*head_dim",
    "pool_value": "heads*head_dim",
    "pool_mlp": "mlp",
    "pooled": "embed",
}
POOL_PRODUCT = ("pool_query", "pool_key")

SIGLIP_VISION_MODEL = Family(
    name="siglip_vision_model",
    model_type="siglip_vision_model",
    heads=(Head(task="image-encoder", architecture="SiglipVisionModel", auto_class="AutoModel", base=True),),
    axes={
        "embed": "hidden_size",
        "heads": "num_attention_heads",
        "head_dim": "hidden_size / num_attention_heads",
        "mlp": "intermediate_size",
        "rgb": "num_channels",
        "patch": "patch_size",
        "image": "image_size",
        # Images are square. What is no whole patch at their edge is left out.
        "position": "image_size // patch_size * image_size // patch_size",
        "layer": "num_hidden_layers",
    },
    streams={
        "query": "heads*head_dim",
        "key": "heads*head_dim",
        "value": "heads*head_dim",
        **POOL_STREAMS,
    },
    tensors={
        "vision_model.embeddings.patch_embedding.weight": "embed <- rgb patch patch",
        "vision_model.embeddings.patch_embedding.bias": "embed",
        "vision_model.embeddings.position_embedding.weight": "position -> embed",
        "vision_model.encoder.layers.{layer}.layer_norm1.weight": "embed gain",
        "vision_model.encoder.layers.{layer}.layer_norm1.bias": "embed shift",
        "vision_model.encoder.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "vision_model.encoder.layers.{layer}.self_attn.q_proj.bias": "query",
        "vision_model.encoder.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "vision_model.encoder.layers.{layer}.self_attn.k_proj.bias": "key",
        "vision_model.encoder.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "vision_model.encoder.layers.{layer}.self_attn.v_proj.bias": "value",
        "vision_model.encoder.layers.{layer}.self_attn.out_proj.weight": "embed <- value",
        "vision_model.encoder.layers.{layer}.self_attn.out_proj.bias": "embed",
        "vision_model.encoder.layers.{layer}.layer_norm2.weight": "embed gain",
        "vision_model.encoder.layers.{layer}.layer_norm2.bias": "embed shift",
        "vision_model.encoder.layers.{layer}.mlp.fc1.weight": "mlp <- embed",
        "vision_model.encoder.layers.{layer}.mlp.fc1.bias": "mlp",
        "vision_model.encoder.layers.{layer}.mlp.fc2.weight": "embed <- mlp",
        "vision_model.encoder.layers.{layer}.mlp.fc2.bias": "embed",
        "vision_model.post_layernorm.weight": "embed gain",
        "vision_model.post_layernorm.bias": "embed shift",
        # The queries read the probe by the map with which keys and values read what the last norm gives. So the probe is what that gives.
        "vision_model.head.probe": "1 1 embed shift if vision_use_head",
        "vision_model.head.attention.in_proj_weight": "pool_query+pool_key+pool_value <- embed if vision_use_head",
        "vision_model.head.attention.in_proj_bias": "pool_query+pool_key+pool_value if vision_use_head",
        "vision_model.head.attention.out_proj.weight": "pooled <- pool_value if vision_use_head",
        "vision_model.head.attention.out_proj.bias": "pooled if vision_use_head",
        "vision_model.head.layernorm.weight": "pooled gain if vision_use_head",
        "vision_model.head.layernorm.bias": "pooled shift if vision_use_head",
        "vision_model.head.mlp.fc1.weight": "pool_mlp <- pooled if vision_use_head",
        "vision_model.head.mlp.fc1.bias": "pool_mlp if vision_use_head",
        "vision_model.head.mlp.fc2.weight": "pooled <- pool_mlp if vision_use_head",
        "vision_model.head.mlp.fc2.bias": "pooled if vision_use_head",
    },
    norm=Norm(
        stream="embed",
        kind="layernorm",
        epsilon="layer_norm_eps",
        head="vision_model.post_layernorm",
        beside=("pooled",),
    ),
    vocabulary="",
    positions="position",
    lookup_axes=("position",),
    pooled=("vision_model.head.attention.out_proj", "vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"),
    optional_prefix="vision_model.",
    # A buffer of old checkpoints.
    ignored=("vision_model.embeddings.position_ids",),
    residual_outputs=(
        "vision_model.encoder.layers.{layer}.self_attn.out_proj",
        "vision_model.encoder.layers.{layer}.mlp.fc2",
    ),
    never_grown=("rgb", "patch", "image", "position"),
    dot_products=(("query", "key"), POOL_PRODUCT),
    activation="hidden_act",
    function_irrelevant_keys=("attention_dropout", "initializer_range", "initializer_factor"),
    # The library draws each kind of module in another way.
    initializer=0.02,
    defaults={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "vision_use_head": True,
    },
    published={
        "siglip-base-patch16-224": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        "siglip-large-patch16-256": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        "siglip-so400m-patch14-384": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
        },
    },
    paper=PAPER,
    trained=TRAININGS,
)

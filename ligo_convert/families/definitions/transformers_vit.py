"""Vision transformers (Dosovitskiy et al., 2021) as transformers stores them. The family `vit` has those of timm."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.dinov2 import DINOV2
from ligo_convert.families.schema import Head, Norm

PAPER = r"""@misc{dosovitskiy2020image,
  title  = {An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale},
  author = {Dosovitskiy, Alexey and Beyer, Lucas and Kolesnikov, Alexander and Weissenborn, Dirk and Zhai, Xiaohua and
            Unterthiner, Thomas and Dehghani, Mostafa and Minderer, Matthias and Heigold, Georg and Gelly, Sylvain and
            Uszkoreit, Jakob and Houlsby, Neil},
  note   = {International Conference on Learning Representations, 2021},
  year   = {2020},
  url    = {https://arxiv.org/abs/2010.11929}
}"""

TRANSFORMERS_VIT = replace(
    DINOV2,
    name="transformers_vit",
    model_type="vit",
    heads=(
        Head(
            parts=("classifier",),
            task="image-classification",
            architecture="ViTForImageClassification",
            auto_class="AutoModelForImageClassification",
        ),
        Head(parts=("pooler",), task="image-encoder", architecture="ViTModel", auto_class="AutoModel", base=True),
        Head(
            task="image-encoder",
            architecture="ViTModel",
            auto_class="AutoModel",
            base=True,
            options={"add_pooling_layer": False},
        ),
    ),
    # The pooled token has a width of its own, which newer files state.
    axes={**DINOV2.axes, "mlp": "intermediate_size", "pooled": "pooler_output_size or hidden_size"},
    tensors={
        "vit.embeddings.cls_token": "1 1 embed",
        "vit.embeddings.position_embeddings": "1 position embed",
        "vit.embeddings.patch_embeddings.projection.weight": "embed <- rgb patch_height patch_width",
        "vit.embeddings.patch_embeddings.projection.bias": "embed",
        "vit.encoder.layer.{layer}.attention.attention.query.weight": "query <- embed",
        "vit.encoder.layer.{layer}.attention.attention.query.bias": "query if qkv_bias",
        "vit.encoder.layer.{layer}.attention.attention.key.weight": "key <- embed",
        "vit.encoder.layer.{layer}.attention.attention.key.bias": "key if qkv_bias",
        "vit.encoder.layer.{layer}.attention.attention.value.weight": "value <- embed",
        "vit.encoder.layer.{layer}.attention.attention.value.bias": "value if qkv_bias",
        "vit.encoder.layer.{layer}.attention.output.dense.weight": "embed <- value",
        "vit.encoder.layer.{layer}.attention.output.dense.bias": "embed",
        "vit.encoder.layer.{layer}.layernorm_before.weight": "embed gain",
        "vit.encoder.layer.{layer}.layernorm_before.bias": "embed shift",
        "vit.encoder.layer.{layer}.layernorm_after.weight": "embed gain",
        "vit.encoder.layer.{layer}.layernorm_after.bias": "embed shift",
        "vit.encoder.layer.{layer}.intermediate.dense.weight": "mlp <- embed",
        "vit.encoder.layer.{layer}.intermediate.dense.bias": "mlp",
        "vit.encoder.layer.{layer}.output.dense.weight": "embed <- mlp",
        "vit.encoder.layer.{layer}.output.dense.bias": "embed",
        "vit.layernorm.weight": "embed gain",
        "vit.layernorm.bias": "embed shift",
        "vit.pooler.dense.weight": "pooled <- embed in pooler",
        "vit.pooler.dense.bias": "pooled in pooler",
        "classifier.weight": "label <- embed in classifier",
        "classifier.bias": "label in classifier",
    },
    norm=Norm(stream="embed", kind="layernorm", epsilon="layer_norm_eps", head="vit.layernorm"),
    pooled=("classifier", "vit.pooler.dense"),
    optional_prefix="vit.",
    in_model={
        "vit.layers.{layer}.attention.(q|k|v)_proj.(weight|bias)": (
            "vit.encoder.layer.{layer}.attention.attention.(query|key|value).(weight|bias)"
        ),
        "vit.layers.{layer}.attention.o_proj.(weight|bias)": (
            "vit.encoder.layer.{layer}.attention.output.dense.(weight|bias)"
        ),
        "vit.layers.{layer}.(layernorm_before|layernorm_after).(weight|bias)": (
            "vit.encoder.layer.{layer}.(layernorm_before|layernorm_after).(weight|bias)"
        ),
        "vit.layers.{layer}.mlp.(fc1|fc2).(weight|bias)": (
            "vit.encoder.layer.{layer}.(intermediate|output).dense.(weight|bias)"
        ),
    },
    residual_outputs=("vit.encoder.layer.{layer}.attention.output.dense", "vit.encoder.layer.{layer}.output.dense"),
    layer_scales={},
    scale_init="",
    required_values={},
    function_irrelevant_keys=(
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "initializer_range",
        # Of the class that is pretrained by masked patches.
        "encoder_stride",
    ),
    defaults={
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "qkv_bias": True,
        "pooler_output_size": None,
        "pooler_act": "tanh",
    },
    published={
        "vit-base-patch16-224": {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
        "vit-large-patch16-224": {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    },
    paper=PAPER,
)

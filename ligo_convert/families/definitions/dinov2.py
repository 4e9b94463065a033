"""DINOv2 (Oquab et al., 2024) as transformers stores it: a pre-LayerNorm vision transformer with LayerScale and a class token.

The classifier reads the class token beside the mean of the patches. The largest model has gated feed-forward layers and is refused.
"""

from __future__ import annotations

from ligo_convert.families.definitions.vit import TRAININGS
from ligo_convert.families.schema import Family, Head, Norm

PAPER = r"""@misc{oquab2024dinov2,
  title   = {{DINOv2}: Learning Robust Visual Features without Supervision},
  author  = {Oquab, Maxime and Darcet, Timoth{\'e}e and Moutakanni, Th{\'e}o and Vo, Huy V. and Szafraniec, Marc and
             Khalidov, Vasil and Fernandez, Pierre and Haziza, Daniel and Massa, Francisco and El-Nouby, Alaaeldin and
             Assran, Mahmoud and Ballas, Nicolas and Galuba, Wojciech and Howes, Russell and Huang, Po-Yao and
             Li, Shang-Wen and Misra, Ishan and Rabbat, Michael and Sharma, Vasu and Synnaeve, Gabriel and Xu, Hu and
             Jegou, Herv{\'e} and Mairal, Julien and Labatut, Patrick and Joulin, Armand and Bojanowski, Piotr},
  note    = {Transactions on Machine Learning Research},
  year    = {2024},
  url     = {https://arxiv.org/abs/2304.07193}
}"""

DINOV2 = Family(
    name="dinov2",
    model_type="dinov2",
    heads=(
        Head(task="image-encoder", architecture="Dinov2Model", auto_class="AutoModel", base=True),
        Head(
            parts=("classifier",),
            task="image-classification",
            architecture="Dinov2ForImageClassification",
            auto_class="AutoModelForImageClassification",
        ),
    ),
    axes={
        "embed": "hidden_size",
        "heads": "num_attention_heads",
        "head_dim": "head_dim or hidden_size / num_attention_heads",
        "mlp": "hidden_size * mlp_ratio",
        "rgb": "num_channels",
        "patch_height": "patch_size[0]",
        "patch_width": "patch_size[1]",
        "image_height": "image_size[0]",
        "image_width": "image_size[1]",
        # The class token has a position, too.
        "position": "image_size[0] // patch_size[0] * image_size[1] // patch_size[1] + 1",
        "label": "num_labels or #id2label or 2",
        "layer": "num_hidden_layers",
    },
    streams={"query": "heads*head_dim", "key": "heads*head_dim", "value": "heads*head_dim"},
    tensors={
        "dinov2.embeddings.cls_token": "1 1 embed",
        # It takes the place of a patch in pretraining alone.
        "dinov2.embeddings.mask_token": "1 embed if use_mask_token",
        "dinov2.embeddings.position_embeddings": "1 position embed",
        "dinov2.embeddings.patch_embeddings.projection.weight": "embed <- rgb patch_height patch_width",
        "dinov2.embeddings.patch_embeddings.projection.bias": "embed",
        "dinov2.encoder.layer.{layer}.norm1.weight": "embed gain",
        "dinov2.encoder.layer.{layer}.norm1.bias": "embed shift",
        "dinov2.encoder.layer.{layer}.attention.attention.query.weight": "query <- embed",
        "dinov2.encoder.layer.{layer}.attention.attention.query.bias": "query if qkv_bias",
        "dinov2.encoder.layer.{layer}.attention.attention.key.weight": "key <- embed",
        "dinov2.encoder.layer.{layer}.attention.attention.key.bias": "key if qkv_bias",
        "dinov2.encoder.layer.{layer}.attention.attention.value.weight": "value <- embed",
        "dinov2.encoder.layer.{layer}.attention.attention.value.bias": "value if qkv_bias",
        "dinov2.encoder.layer.{layer}.attention.output.dense.weight": "embed <- value",
        "dinov2.encoder.layer.{layer}.attention.output.dense.bias": "embed",
        "dinov2.encoder.layer.{layer}.layer_scale1.lambda1": "embed scale",
        "dinov2.encoder.layer.{layer}.norm2.weight": "embed gain",
        "dinov2.encoder.layer.{layer}.norm2.bias": "embed shift",
        "dinov2.encoder.layer.{layer}.mlp.fc1.weight": "mlp <- embed",
        "dinov2.encoder.layer.{layer}.mlp.fc1.bias": "mlp",
        "dinov2.encoder.layer.{layer}.mlp.fc2.weight": "embed <- mlp",
        "dinov2.encoder.layer.{layer}.mlp.fc2.bias": "embed",
        "dinov2.encoder.layer.{layer}.layer_scale2.lambda1": "embed scale",
        "dinov2.layernorm.weight": "embed gain",
        "dinov2.layernorm.bias": "embed shift",
        # The class token, then the mean of the patches.
        "classifier.weight": "label <- embed+embed in classifier",
        "classifier.bias": "label in classifier",
    },
    norm=Norm(stream="embed", kind="layernorm", epsilon="layer_norm_eps", head="dinov2.layernorm"),
    vocabulary="",
    positions="position",
    labels="label",
    lookup_axes=("position",),
    pooled=("classifier",),
    optional_prefix="dinov2.",
    in_model={
        "dinov2.encoder.layer.{layer}.attention.(q|k|v)_proj.(weight|bias)": (
            "dinov2.encoder.layer.{layer}.attention.attention.(query|key|value).(weight|bias)"
        ),
        "dinov2.encoder.layer.{layer}.attention.o_proj.(weight|bias)": (
            "dinov2.encoder.layer.{layer}.attention.output.dense.(weight|bias)"
        ),
    },
    residual_outputs=("dinov2.encoder.layer.{layer}.attention.output.dense", "dinov2.encoder.layer.{layer}.mlp.fc2"),
    layer_scales={
        "dinov2.encoder.layer.{layer}.attention.output.dense": "dinov2.encoder.layer.{layer}.layer_scale1.lambda1",
        "dinov2.encoder.layer.{layer}.mlp.fc2": "dinov2.encoder.layer.{layer}.layer_scale2.lambda1",
    },
    never_grown=("rgb", "patch_height", "patch_width", "image_height", "image_width", "position", "label"),
    dot_products=(("query", "key"),),
    activation="hidden_act",
    required_values={"use_swiglu_ffn": False},
    function_irrelevant_keys=(
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "drop_path_rate",
        "initializer_range",
        "layerscale_value",
        # What the class for other programs' backbones returns.
        "apply_layernorm",
        "reshape_hidden_states",
        "out_features",
        "out_indices",
        "stage_names",
    ),
    scale_init="layerscale_value",
    defaults={
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "image_size": 224,
        "patch_size": 14,
        "num_channels": 3,
        "qkv_bias": True,
        "layerscale_value": 1.0,
        "use_swiglu_ffn": False,
        "use_mask_token": True,
    },
    published={
        "dinov2-small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
        "dinov2-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        "dinov2-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    },
    paper=PAPER,
    trained=TRAININGS,
)

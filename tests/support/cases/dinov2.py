from support.case import PATCHES, like

# The width of the feed-forward layers follows from the width, by a whole number.
_RATIO = {
    name: {key: value for key, value in PATCHES[name].items() if key != "intermediate_size"}
    for name in ("config", "even", "uneven", "both")
}
_SHAPE = {**PATCHES, **_RATIO}

CASES = {
    "dinov2": like(_SHAPE, config={"mlp_ratio": 3, "qkv_bias": False, "layerscale_value": 0.5}, thorough=False),
    # It reads the class token beside the mean of the patches.
    "dinov2 classifier": like(
        _SHAPE,
        config={"mlp_ratio": 2, "use_mask_token": False, "num_labels": 5},
        architecture="Dinov2ForImageClassification",
        family="dinov2",
        thorough=False,
    ),
}

FULL_SIZE = [
    {"architectures": [name], "image_size": 518, "num_labels": 1000, **sizes}
    for name in ("Dinov2Model", "Dinov2ForImageClassification")
    for sizes in (
        {"hidden_size": 384, "num_attention_heads": 6},
        {},
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    )
]

STATED = {"dinov2-small": 22.1, "dinov2-base": 86.6, "dinov2-large": 304.4}

BESIDE = {name: {"image_size": 518} for name in STATED}

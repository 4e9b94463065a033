from support.case import PATCHES, like

CASES = {
    "transformers_vit": like(PATCHES, config={"num_labels": 5, "qkv_bias": False}, thorough=False),
    # The pooled token has a width of its own.
    "transformers_vit encoder": like(
        PATCHES,
        config={"pooler_output_size": 12},
        architecture="ViTModel",
        family="transformers_vit",
        thorough=False,
    ),
}

FULL_SIZE = [
    {"architectures": [name], "num_labels": 1000, **sizes}
    for name in ("ViTForImageClassification", "ViTModel")
    for sizes in (
        {},
        {"image_size": 384, "patch_size": 32},
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    )
]

STATED = {"vit-base-patch16-224": 86.6, "vit-large-patch16-224": 304.3}

BESIDE = {name: {"num_labels": 1000} for name in STATED}

from support.case import PATCHES, like

CASES = {
    # Two classifiers.
    "transformers_deit": like(PATCHES, config={"num_labels": 5}, thorough=False),
    "transformers_deit one classifier": like(
        PATCHES,
        config={"num_labels": 5, "qkv_bias": False},
        architecture="DeiTForImageClassification",
        family="transformers_deit",
        thorough=False,
    ),
    "transformers_deit encoder": like(
        PATCHES, config={}, architecture="DeiTModel", family="transformers_deit", thorough=False
    ),
}

FULL_SIZE = [
    {"architectures": [name], "num_labels": 1000, **sizes}
    for name in ("DeiTForImageClassificationWithTeacher", "DeiTForImageClassification", "DeiTModel")
    for sizes in (
        {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
        {"image_size": 384},
    )
]

STATED = {
    "deit-tiny-distilled-patch16-224": 5.9,
    "deit-small-distilled-patch16-224": 22.4,
    "deit-base-distilled-patch16-224": 87.3,
}

BESIDE = {name: {"num_labels": 1000} for name in STATED}

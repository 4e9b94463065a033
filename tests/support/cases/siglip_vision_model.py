from support.case import PATCHES, like

CASES = {
    # Images that are no whole number of patches.
    "siglip_vision_model": like(PATCHES, config={"image_size": 20}, thorough=False),
    "siglip_vision_model without pool": like(
        PATCHES, config={"vision_use_head": False}, family="siglip_vision_model", thorough=False
    ),
}

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}

FULL_SIZE = [
    {},
    {**LARGE, "image_size": 256},
    {**SO400M, "image_size": 384, "patch_size": 14},
    {**SO400M, "image_size": 384, "patch_size": 14, "vision_use_head": False},
]

# Of the vision tower alone.
STATED = {"siglip-base-patch16-224": 92.9, "siglip-large-patch16-256": 316, "siglip-so400m-patch14-384": 428}

BESIDE = {
    "siglip-large-patch16-256": {"image_size": 256},
    "siglip-so400m-patch14-384": {"image_size": 384, "patch_size": 14},
}

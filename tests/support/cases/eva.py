from support.case import IMAGE, VIT, like

CASES = {
    # DINOv3.
    "eva": like(
        VIT,
        config={
            "architecture": "vit_small_patch16_dinov3_qkvb",
            "model_args": {**IMAGE, "depth": 2, "num_classes": 0, "num_reg_tokens": 2},
        },
        thorough=False,
    ),
    # Learned and rotary positions, one bias of queries, keys and values, a class token and a head.
    "eva rope": like(
        VIT,
        config={"architecture": "vit_small_patch16_rope_ape_224", "model_args": {**IMAGE, "depth": 2}},
        family="eva",
        thorough=False,
    ),
    # The mean of the patches, normalised after it; no bias, no class token.
    "eva pooled": like(
        VIT,
        config={"architecture": "vit_mediumd_patch16_rope_reg1_gap_256", "model_args": {**IMAGE, "depth": 2}},
        family="eva",
        thorough=False,
    ),
    # EVA: learned positions, no LayerScale.
    "eva plain": like(
        VIT,
        config={"architecture": "eva_giant_patch14_clip_224", "model_args": {**IMAGE, "depth": 2}},
        family="eva",
        thorough=False,
    ),
}

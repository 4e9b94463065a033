from support.case import IMAGE, VIT, like

CASES = {
    "vit": like(VIT, config={}),
    # No head, registers without positions, LayerScale: DINOv2.
    "vit encoder": like(
        VIT,
        config={
            "architecture": "vit_small_patch14_reg4_dinov2",
            "model_args": {**IMAGE, "depth": 2, "num_classes": 0, "reg_tokens": 2},
        },
        family="vit",
        thorough=False,
    ),
    # The mean of the patches, normalised after it; a register with a position, no class token.
    "vit pooled": like(
        VIT,
        config={"architecture": "test_vit2", "model_args": {**IMAGE, "depth": 2, "init_values": 0.0}},
        family="vit",
        thorough=False,
    ),
    # The mean of normalised patches, no head, another activation.
    "vit gap": like(
        VIT,
        config={
            "architecture": "vit_so400m_patch16_siglip_gap_256",
            "model_args": {**IMAGE, "depth": 2, "num_classes": 0, "mlp_ratio": 3.5},
        },
        family="vit",
        thorough=False,
    ),
}

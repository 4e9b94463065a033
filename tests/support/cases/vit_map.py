from support.case import IMAGE, VIT, like

CASES = {
    # A head behind the pool, a register, LayerScale.
    "vit_map": like(
        VIT,
        config={"architecture": "test_vit3", "model_args": {**IMAGE, "depth": 2, "init_values": 0.1}},
        thorough=False,
    ),
    # SigLIP: no head, no token beside the patches, another activation.
    "vit_map encoder": like(
        VIT,
        config={
            "architecture": "vit_so400m_patch16_siglip_256",
            "model_args": {**IMAGE, "depth": 2, "num_classes": 0, "mlp_ratio": 3.5},
        },
        family="vit_map",
        thorough=False,
    ),
}

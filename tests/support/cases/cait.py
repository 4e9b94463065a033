from support.case import IMAGE, VIT, like

CASES = {
    "cait": like(
        VIT,
        config={
            "architecture": "cait_xxs24_224",
            "model_args": {**IMAGE, "depth": 2, "depth_token_only": 1},
        },
        depth={"depth": 4, "depth_token_only": 2},
    )
}

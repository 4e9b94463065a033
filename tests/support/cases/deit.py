from support.case import VIT, like

CASES = {
    "deit": like(VIT, config={"architecture": "deit_tiny_distilled_patch16_224"}),
    "deit3": like(VIT, config={"architecture": "deit3_small_patch16_224"}, family="deit"),
}

from support.case import BERT, like

CASES = {
    "xlm_roberta_xl": like(BERT, config={"layer_norm_eps": 1e-4}, thorough=False, grid=True),
    "xlm_roberta_xl encoder": like(
        BERT, config={}, architecture="XLMRobertaXLModel", family="xlm_roberta_xl", thorough=False
    ),
}

FULL_SIZE = [
    {"architectures": [name], **sizes}
    for name in ("XLMRobertaXLForMaskedLM", "XLMRobertaXLModel")
    for sizes in (
        {},
        {"hidden_size": 4096, "num_hidden_layers": 48, "num_attention_heads": 32, "intermediate_size": 16384},
    )
]

STATED = {"xlm-roberta-xl": 3500, "xlm-roberta-xxl": 10700}

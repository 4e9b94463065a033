from support.case import BERT, like

CASES = {"xlm_roberta": like(BERT, config={"layer_norm_eps": 1e-9}, tolerance=1e-7, thorough=False)}

FULL_SIZE = [
    {"architectures": [name], "vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, **sizes}
    for name in ("XLMRobertaForMaskedLM", "XLMRobertaModel")
    for sizes in (
        {},
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    )
]

# The paper rounds to 270 and 550.
STATED = {"xlm-roberta-base": 278, "xlm-roberta-large": 560}

BESIDE = {
    name: {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1}
    for name in ("xlm-roberta-base", "xlm-roberta-large")
}

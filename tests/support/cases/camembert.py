from support.case import BERT, like

CASES = {"camembert": like(BERT, config={"layer_norm_eps": 1e-9}, tolerance=1e-7, thorough=False)}

FULL_SIZE = [
    {"architectures": [name], "vocab_size": 32005, "max_position_embeddings": 514, "type_vocab_size": 1, **sizes}
    for name in ("CamembertForMaskedLM", "CamembertModel")
    for sizes in (
        {},
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    )
]

STATED = {"camembert-base": 110, "camembert-large": 335}

BESIDE = {
    name: {"vocab_size": 32005, "max_position_embeddings": 514, "type_vocab_size": 1}
    for name in ("camembert-base", "camembert-large")
}

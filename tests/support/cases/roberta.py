from support.case import BERT, like

CASES = {"roberta": like(BERT, config={"layer_norm_eps": 1e-9}, tolerance=1e-7)}

FULL_SIZE = [
    {"architectures": [name], "max_position_embeddings": 514, "type_vocab_size": 1, **sizes}
    for name in ("RobertaForMaskedLM", "RobertaModel")
    for sizes in (
        {},
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    )
]

STATED = {"distilroberta-base": 82, "roberta-base": 125, "roberta-large": 355}

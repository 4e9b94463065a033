from support.case import Case

CASES = {
    "distilbert": Case(
        config={
            "vocab_size": 29,
            "max_position_embeddings": 16,
            "dim": 16,
            "hidden_dim": 32,
            "n_heads": 2,
            "n_layers": 2,
            "sinusoidal_pos_embds": True,
        },
        even={"dim": 32, "hidden_dim": 64, "n_heads": 4},
        uneven={"dim": 24, "hidden_dim": 48, "n_heads": 3},
        depth={"n_layers": 5},
        both={"dim": 48, "hidden_dim": 72, "n_heads": 6, "n_layers": 3},
        thorough=False,
    )
}

FULL_SIZE = [
    {"architectures": ["DistilBertForMaskedLM"]},
    {"architectures": ["DistilBertModel"], "vocab_size": 119547},
    {"architectures": ["DistilBertForSequenceClassification"]},
]

STATED = {"distilbert-base": 66}

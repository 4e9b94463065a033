from support.case import BERT, like

# Embeddings as wide as the residual stream.
SHARED = {
    **BERT,
    "even": {"hidden_size": 32, "embedding_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
    "uneven": {"hidden_size": 24, "embedding_size": 24, "intermediate_size": 48, "num_attention_heads": 3},
    "both": {
        "hidden_size": 48,
        "embedding_size": 48,
        "intermediate_size": 72,
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
    },
}

CASES = {
    "electra": like(SHARED, config={"embedding_size": 16}, thorough=False),
    "electra discriminator": like(
        SHARED, config={"embedding_size": 16}, architecture="ElectraForPreTraining", family="electra", thorough=False
    ),
}

FULL_SIZE = [
    {"architectures": [name], "embedding_size": sizes["hidden_size"], **sizes}
    for name in ("ElectraForPreTraining", "ElectraForMaskedLM", "ElectraModel")
    for sizes in (
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    )
]

STATED = {"electra-base": 110, "electra-large": 335}

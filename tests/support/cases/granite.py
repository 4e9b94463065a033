from support.case import LLAMA, like, llama

CASES = {
    "granite": like(
        LLAMA,
        config={
            "attention_bias": True,
            "mlp_bias": True,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.3,
        },
        thorough=False,
    )
}

FULL_SIZE = [
    {},
    {**llama(2048, 8192, 40, 32, 8), "vocab_size": 49155, "tie_word_embeddings": True},
    {**llama(4096, 12800, 40, 32, 8), "attention_bias": True, "mlp_bias": True},
]

# The names round: the smaller has 2.5 billion parameters.
STATED = {"granite-3.1-2b": 2530, "granite-3.1-8b": 8170}

BESIDE = {
    "granite-3.1-2b": {"vocab_size": 49155, "tie_word_embeddings": True},
    "granite-3.1-8b": {"vocab_size": 49155, "tie_word_embeddings": True},
}

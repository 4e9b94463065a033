from support.case import LLAMA, like, llama

CASES = {
    "seed_oss": like(
        LLAMA,
        config={"head_dim": 8, "attention_out_bias": True, "mlp_bias": True},
        thorough=False,
    )
}

FULL_SIZE = [
    {},
    {**llama(5120, 27648, 64, 80, 8)},
    {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
]

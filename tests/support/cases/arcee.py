from support.case import LLAMA, like, llama

CASES = {
    "arcee": like(
        LLAMA,
        config={"attention_bias": True, "mlp_bias": True, "bos_token_id": 0, "eos_token_id": 0},
        thorough=False,
    )
}

FULL_SIZE = [
    {},
    {**llama(2560, 18432, 36, 20, 4), "head_dim": 128, "vocab_size": 128005},
    {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
]

BESIDE = {"AFM-4.5B": {"vocab_size": 128005, "tie_word_embeddings": False}}

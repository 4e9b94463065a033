from support.case import LLAMA, like, llama

CASES = {
    "hunyuan_v1_dense": like(
        LLAMA,
        config={
            "head_dim": 8,
            # The norms of the heads share it with those of the stream, and need another where the stream grows: the logits change
            # by about this much (docs/reference/exact-starts.md).
            "rms_norm_eps": 1e-6,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 1000.0},
        },
        thorough=False,
    )
}

FULL_SIZE = [
    {"head_dim": 128},
    {**llama(2048, 6144, 32, 16, 4), "head_dim": 128, "vocab_size": 120818, "tie_word_embeddings": True},
    {**llama(4096, 14336, 32, 32, 8), "head_dim": 128, "vocab_size": 128167, "attention_bias": True},
]

BESIDE = {
    "Hunyuan-1.8B": {"vocab_size": 120818, "tie_word_embeddings": True},
    "Hunyuan-7B": {"vocab_size": 128167, "tie_word_embeddings": True},
}

from support.case import LLAMA, like, llama

CASES = {
    "ministral": like(
        LLAMA,
        config={"head_dim": 8, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
        thorough=False,
    )
}

FULL_SIZE = [{"head_dim": 128}, {**llama(4096, 12288, 36, 32, 8), "head_dim": 128, "vocab_size": 131072}]

BESIDE = {"Ministral-8B": {"vocab_size": 131072, "tie_word_embeddings": False}}

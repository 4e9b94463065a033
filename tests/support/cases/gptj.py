from support.case import Case

GPTJ = {
    "config": {
        "vocab_size": 29,
        "n_positions": 16,
        "n_embd": 16,
        "n_inner": 40,
        "n_head": 4,
        "n_layer": 2,
        "rotary_dim": 2,
        "layer_norm_epsilon": 1e-4,
    },
    "even": {"n_embd": 32, "n_head": 8, "n_inner": 80},
    "uneven": {"n_embd": 24, "n_head": 6, "n_inner": 56},
    "depth": {"n_layer": 5},
    "both": {"n_embd": 40, "n_head": 10, "n_layer": 3, "n_inner": 100},
    # The library computes the positions' sines in float32.
    "tolerance": 1e-7,
    "thorough": False,
}
CASES = {"gptj": Case(**GPTJ)}

FULL_SIZE = [{}, {"n_inner": 2048, "tie_word_embeddings": True}]

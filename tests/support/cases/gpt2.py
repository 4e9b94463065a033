from support.case import Case

CASES = {
    "gpt2": Case(
        config={
            "vocab_size": 29,
            "n_positions": 12,
            "n_embd": 16,
            "n_head": 2,
            "n_layer": 2,
            "layer_norm_epsilon": 1e-5,
        },
        even={"n_embd": 32, "n_head": 4},
        uneven={"n_embd": 24, "n_head": 3},
        depth={"n_layer": 5},
        both={"n_embd": 40, "n_head": 5, "n_layer": 3, "n_inner": 100},
        others={"head size": {"n_embd": 24, "n_head": 2}},
    )
}

FULL_SIZE = [
    {},
    {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    {"n_inner": 2048, "tie_word_embeddings": False},
]

STATED = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}

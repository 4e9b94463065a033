from support.case import Case

CASES = {
    "gpt_bigcode": Case(
        config={
            "vocab_size": 29,
            "n_positions": 12,
            "n_embd": 16,
            "n_inner": 40,
            "n_head": 2,
            "n_layer": 2,
            "layer_norm_epsilon": 1e-4,
        },
        even={"n_embd": 32, "n_head": 4, "n_inner": 80},
        uneven={"n_embd": 24, "n_head": 3},
        depth={"n_layer": 5},
        both={"n_embd": 40, "n_head": 5, "n_layer": 3, "n_inner": 100},
        others={"head size": {"n_embd": 24, "n_head": 2}},
        thorough=False,
    )
}

FULL_SIZE = [
    {},
    {"n_embd": 2048, "n_inner": 8192, "n_head": 16, "n_layer": 24, "vocab_size": 49280, "n_positions": 2048},
    {"n_embd": 6144, "n_inner": 24576, "n_head": 48, "n_layer": 40, "vocab_size": 49152, "n_positions": 8192},
]

BESIDE = {
    "SantaCoder-1.1B": {"vocab_size": 49280, "n_positions": 2048},
    "StarCoderBase-3B": {"vocab_size": 49152, "n_positions": 8192},
    "StarCoderBase-7B": {"vocab_size": 49152, "n_positions": 8192},
    "StarCoder-15.5B": {"vocab_size": 49152, "n_positions": 8192},
}

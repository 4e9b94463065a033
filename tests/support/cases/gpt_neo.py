from support.case import Case

CASES = {
    "gpt_neo": Case(
        config={
            "vocab_size": 29,
            "max_position_embeddings": 12,
            "hidden_size": 16,
            "intermediate_size": 40,
            "num_heads": 2,
            "num_layers": 2,
            "window_size": 3,
            "attention_types": [[["local", "global"], 1]],
            "layer_norm_epsilon": 1e-4,
        },
        even={"hidden_size": 32, "num_heads": 4, "intermediate_size": 80},
        uneven={"hidden_size": 24, "num_heads": 3},
        depth={"num_layers": 5},
        both={"hidden_size": 40, "num_heads": 5, "num_layers": 3, "intermediate_size": 100},
        others={"head size": {"hidden_size": 24, "num_heads": 2}},
        # The library computes the dot products in float32.
        tolerance=1e-5,
        thorough=False,
    )
}

FULL_SIZE = [
    {},
    {"hidden_size": 768, "num_heads": 12, "num_layers": 12, "attention_types": [[["global", "local"], 6]]},
    {"tie_word_embeddings": False, "intermediate_size": 2048},
]

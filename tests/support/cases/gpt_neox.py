from support.case import LLAMA, Case

CASES = {
    "gpt_neox": Case(
        config={
            "vocab_size": 29,
            "max_position_embeddings": 32,
            "hidden_size": 16,
            "intermediate_size": 40,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "layer_norm_eps": 1e-4,
            "rotary_pct": 0.5,
        },
        even={"hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 8},
        uneven={"hidden_size": 24, "intermediate_size": 56, "num_attention_heads": 6},
        depth=LLAMA["depth"],
        both={"hidden_size": 40, "intermediate_size": 100, "num_attention_heads": 10, "num_hidden_layers": 3},
        # The library computes rotary positions in float32.
        tolerance=1e-7,
        thorough=False,
    )
}

FULL_SIZE = [
    {},
    {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "vocab_size": 50304,
        "use_parallel_residual": False,
        "attention_bias": False,
    },
]

STATED = {"pythia-1.4B": 1415, "pythia-2.8B": 2775}

BESIDE = {
    **{
        name: {"vocab_size": 50304}
        for name in ("pythia-70M", "pythia-160M", "pythia-410M", "pythia-1B", "pythia-1.4B", "pythia-2.8B")
    },
    "pythia-12B": {"vocab_size": 50688},
}

from support.case import Case

CASES = {
    "persimmon": Case(
        config={
            "vocab_size": 29,
            "max_position_embeddings": 32,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            # The norms of the heads share it with those of the stream, and need another where the stream grows: the logits change
            # by about this much (docs/reference/exact-starts.md).
            "layer_norm_eps": 1e-9,
        },
        even={"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4},
        uneven={"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3},
        depth={"num_hidden_layers": 5},
        both={"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3},
        tolerance=1e-8,
        thorough=False,
    )
}

FULL_SIZE = [{}, {"qk_layernorm": False, "tie_word_embeddings": True}]

# Without the embeddings, the model has the 8 billion of its name.
STATED = {"persimmon-8b": 9300}

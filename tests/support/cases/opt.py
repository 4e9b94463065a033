from support.case import Case


def _sizes(width: int, heads: int, mlp: int) -> dict[str, object]:
    return {"hidden_size": width, "word_embed_proj_dim": width, "num_attention_heads": heads, "ffn_dim": mlp}


CASES = {
    "opt": Case(
        config={**_sizes(16, 2, 40), "vocab_size": 29, "max_position_embeddings": 12, "num_hidden_layers": 2},
        even=_sizes(32, 4, 80),
        uneven=_sizes(24, 3, 56),
        depth={"num_hidden_layers": 5},
        both={**_sizes(40, 5, 100), "num_hidden_layers": 3},
        others={"head size": _sizes(24, 2, 40)},
        thorough=False,
    )
}

FULL_SIZE = [
    {},
    {**_sizes(2048, 32, 8192), "num_hidden_layers": 24},
    {**_sizes(2048, 32, 8192), "enable_bias": False, "tie_word_embeddings": False},
]

from support.case import Case

SIZES = {
    "vocab_size": 29,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "layer_norm_epsilon": 1e-5,
}
PLAIN = Case(
    config=SIZES,
    even={"d_model": 32, "d_ff": 48, "num_heads": 8},
    uneven={"d_model": 24, "d_ff": 40, "num_heads": 6},
    depth={"num_layers": 4, "num_decoder_layers": 5},
    both={"d_model": 40, "d_ff": 56, "num_heads": 10, "num_layers": 3, "num_decoder_layers": 4},
    others={"decoder": {"num_decoder_layers": 5}},
    # transformers computes RMSNorm in float32 whatever the model's dtype.
    tolerance=1e-5,
    thorough=False,
    grid=True,
)
GATED = Case(**{**vars(PLAIN), "config": {**SIZES, "feed_forward_proj": "gated-gelu"}, "family": "t5", "grid": False})
CASES = {"t5": PLAIN, "t5 gated": GATED}

FULL_SIZE = [
    {},
    {"d_model": 768, "d_ff": 3072, "num_heads": 12, "num_layers": 12, "num_decoder_layers": 12},
    # Flan-T5 small: a head of its own, gated layers, a width that is not that of the heads.
    {
        "d_ff": 1024,
        "num_heads": 6,
        "num_layers": 8,
        "num_decoder_layers": 8,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
]

STATED = {"t5-small": 60.5, "t5-base": 223, "t5-large": 738}

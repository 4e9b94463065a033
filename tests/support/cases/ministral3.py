from support.case import LLAMA, like, llama

# Past the original positions, the scale of a query depends on its position.
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 4,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

CASES = {
    "ministral3": like(
        LLAMA,
        config={"head_dim": 8, "sliding_window": 5, "pad_token_id": 0, "rope_parameters": ROPE},
        thorough=False,
    )
}

FULL_SIZE = [
    {},
    {**llama(3072, 9216, 26, 32, 8), "tie_word_embeddings": True},
    {**llama(12288, 28672, 88, 96, 8)},
]

# The language model alone: the published checkpoints of Ministral 3 have an image encoder beside it.
STATED = {"Ministral-3-3B": 3400, "Ministral-3-8B": 8400, "Ministral-3-14B": 13500}

BESIDE = {"Ministral-3-3B": {"tie_word_embeddings": True}}

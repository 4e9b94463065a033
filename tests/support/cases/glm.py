from support.case import LLAMA, like, llama

CASES = {
    "glm": like(
        LLAMA,
        config={"head_dim": 8, "pad_token_id": 0, "eos_token_id": 0, "attention_bias": True},
        thorough=False,
    )
}

FULL_SIZE = [
    {},
    {
        **llama(2048, 6144, 28, 16, 4),
        "attention_bias": False,
        "vocab_size": 59264,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
]

# The name rounds.
STATED = {"glm-4-9b": 9400}

BESIDE = {"glm-edge-1.5b": {"attention_bias": False, "vocab_size": 59264, "tie_word_embeddings": True}}

from support.case import LLAMA, like, llama

SIZES = {key: value for key, value in LLAMA["config"].items() if key != "rms_norm_eps"}
CASES = {
    "cohere2": like(
        {**LLAMA, "config": SIZES},
        config={
            "layer_norm_eps": 1e-4,
            "attention_bias": True,
            "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        thorough=False,
    )
}

FULL_SIZE = [{}, llama(4096, 14336, 32, 32, 8), {**llama(12288, 36864, 64, 96, 8), "tie_word_embeddings": False}]

# The name does not count the embeddings.
STATED = {"command-r7b": 8030}

from support.case import LLAMA, like, llama

SIZES = {key: value for key, value in LLAMA["config"].items() if key != "rms_norm_eps"}
# The library computes LayerNorm in float32 whatever the model's dtype, as it does Llama's norm.
CASES = {
    "cohere": like(
        {**LLAMA, "config": SIZES},
        config={"layer_norm_eps": 1e-4, "attention_bias": True, "logit_scale": 0.5},
        thorough=False,
    )
}

FULL_SIZE = [{}, {**llama(4096, 14336, 32, 32, 8), "attention_bias": True}, {"tie_word_embeddings": False}]

from support.case import LLAMA, like, llama

# transformers computes LayerNorm in float32 whatever the model's dtype.
CASES = {"olmo": like(LLAMA, config={"attention_bias": True}, tolerance=1e-5, thorough=False, grid=True)}

FULL_SIZE = [{}, {**llama(2048, 8192, 16, 16, 16), "tie_word_embeddings": True}]

STATED = {"OLMo-1B": 1177, "OLMo-7B": 6888}

BESIDE = {"OLMo-1B": {"tie_word_embeddings": True}}

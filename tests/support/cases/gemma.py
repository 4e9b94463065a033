from support.case import LLAMA, like, llama

CASES = {"gemma": like(LLAMA, config={"head_dim": 8, "attention_bias": True}, thorough=False)}

FULL_SIZE = [{}, {**llama(2048, 16384, 18, 8, 1), "tie_word_embeddings": False}]

STATED = {"gemma-2b": 2506, "gemma-7b": 8538}

from support.case import LLAMA, like, llama

CASES = {"exaone4": like(LLAMA, config={"sliding_window": 4}, thorough=False)}

FULL_SIZE = [{}, {**llama(2048, 4096, 30, 32, 8), "head_dim": 64, "tie_word_embeddings": True}]

STATED = {"EXAONE-4.0-1.2B": 1280}

BESIDE = {"EXAONE-4.0-1.2B": {"tie_word_embeddings": True}}

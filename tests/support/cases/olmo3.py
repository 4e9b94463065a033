from support.case import LLAMA, like, llama

CASES = {"olmo3": like(LLAMA, config={"sliding_window": 4}, thorough=False)}

FULL_SIZE = [{}, {**llama(5120, 27648, 64, 40, 8), "vocab_size": 100278}]

STATED = {"OLMo-3-7B": 7298}

BESIDE = {name: {"vocab_size": 100278} for name in ("OLMo-3-7B", "OLMo-3-32B")}

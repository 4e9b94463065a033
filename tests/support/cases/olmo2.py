from support.case import LLAMA, like, llama

CASES = {"olmo2": like(LLAMA, config={"attention_bias": True}, thorough=False, grid=True)}

FULL_SIZE = [
    {},
    {**llama(2048, 8192, 16, 16, 16), "vocab_size": 100352},
    {**llama(5120, 27648, 64, 40, 8), "vocab_size": 100352},
]

STATED = {"OLMo-2-1B": 1485, "OLMo-2-7B": 7299}

BESIDE = {name: {"vocab_size": 100352} for name in ("OLMo-2-1B", "OLMo-2-7B", "OLMo-2-13B", "OLMo-2-32B")}

from support.case import LLAMA, like, llama

CASES = {
    "gemma3_text": like(LLAMA, config={"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 6}, thorough=False)
}

FULL_SIZE = [{}, {**llama(1152, 6912, 26, 4, 1), "vocab_size": 262144}]

STATED = {"gemma-3-270m": 268, "gemma-3-1b": 1000}

BESIDE = {"gemma-3-270m": {"vocab_size": 262144}, "gemma-3-1b": {"vocab_size": 262144}}

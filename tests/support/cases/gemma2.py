from support.case import LLAMA, like, llama

CASES = {
    "gemma2": like(
        LLAMA, config={"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 6}, thorough=False, grid=True
    )
}

FULL_SIZE = [{}, {**llama(4608, 36864, 46, 32, 16), "head_dim": 128}]

STATED = {"gemma-2-2b": 2614, "gemma-2-9b": 9242, "gemma-2-27b": 27227}

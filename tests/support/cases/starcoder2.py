from support.case import LLAMA, like

CASES = {"starcoder2": like(LLAMA, config={"norm_epsilon": 1e-4, "use_bias": True}, tolerance=1e-7)}

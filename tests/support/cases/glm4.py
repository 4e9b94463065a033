from support.case import LLAMA, like

CASES = {"glm4": like(LLAMA, config={"head_dim": 8, "pad_token_id": 0, "eos_token_id": 1}, thorough=False)}

FULL_SIZE = [{}]

STATED = {"GLM-4-9B-0414": 9400}

from support.case import LLAMA, like, llama

CASES = {"olmoe": like(LLAMA, config={"num_experts": 4, "num_experts_per_tok": 2}, thorough=False)}

FULL_SIZE = [{}, llama(2048, 1024, 16, 16, 16)]

STATED = {"OLMoE-1B-7B": 6919}

from support.case import LLAMA, like, llama

CASES = {"mixtral": like(LLAMA, config={"num_local_experts": 3, "num_experts_per_tok": 2})}

FULL_SIZE = [{}, llama(6144, 16384, 56, 48, 8)]

STATED = {"Mixtral-8x7B": 46700, "Mixtral-8x22B": 140600}

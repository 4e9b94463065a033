from support.case import LLAMA, like

CASES = {"internlm3": like(LLAMA, config={"head_dim": 8, "attention_bias": True, "mlp_bias": True}, thorough=False)}

FULL_SIZE = [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}]

STATED = {"internlm3-8b": 8800}

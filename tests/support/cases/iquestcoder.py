from support.case import LLAMA, like

CASES = {"iquestcoder": like(LLAMA, config={"head_dim": 8, "attention_bias": True, "mlp_bias": True}, thorough=False)}

FULL_SIZE = [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}]

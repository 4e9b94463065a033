from support.case import LLAMA, like

CASES = {"ernie4_5": like(LLAMA, config={"head_dim": 8, "use_bias": True}, thorough=False)}

FULL_SIZE = [{}, {"use_bias": True, "tie_word_embeddings": False}]

# The name rounds.
STATED = {"ERNIE-4.5-0.3B": 360}

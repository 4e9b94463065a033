from support.case import BERT, like

# The library computes 32 kinds of distances, whatever the config says.
CASES = {"mpnet": like(BERT, config={"layer_norm_eps": 1e-9}, tolerance=1e-7, thorough=False)}

FULL_SIZE = [
    {"architectures": [name], "max_position_embeddings": 514, "layer_norm_eps": 1e-5}
    for name in ("MPNetForMaskedLM", "MPNetModel")
]

STATED = {"mpnet-base": 110}

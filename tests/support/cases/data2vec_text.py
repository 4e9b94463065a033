from support.case import BERT, like

CASES = {"data2vec_text": like(BERT, config={"layer_norm_eps": 1e-9}, tolerance=1e-7, thorough=False)}

FULL_SIZE = [
    {"architectures": [name], "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    for name in ("Data2VecTextForMaskedLM", "Data2VecTextModel")
]

STATED = {"data2vec-text-base": 125}

BESIDE = {"data2vec-text-base": {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}}

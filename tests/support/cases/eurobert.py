from support.case import LLAMA, like, llama

CASES = {
    "eurobert": like(
        LLAMA,
        config={"attention_bias": True, "mlp_bias": True, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 1},
        thorough=False,
    )
}

FULL_SIZE = [
    {"architectures": ["EuroBertForMaskedLM"]},
    {"architectures": ["EuroBertModel"], **llama(1152, 4096, 26, 18, 6)},
    {"architectures": ["EuroBertForSequenceClassification"], **llama(2304, 6144, 32, 18, 6)},
    {"architectures": ["EuroBertForMaskedLM"], "mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True},
]

STATED = {"EuroBERT-210m": 210, "EuroBERT-610m": 610}

# The names count the embedding once.
BESIDE = {
    name: {"vocab_size": 128256, "tie_word_embeddings": True}
    for name in ("EuroBERT-210m", "EuroBERT-610m", "EuroBERT-2.1B")
}

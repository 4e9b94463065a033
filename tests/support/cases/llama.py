from support.case import LLAMA, like, llama

CASES = {"llama": like(LLAMA, config={"attention_bias": True})}

FULL_SIZE = [
    {},
    {**llama(8192, 28672, 80, 64, 8), "vocab_size": 128256},
    {**llama(2048, 8192, 16, 32, 8), "vocab_size": 128256, "tie_word_embeddings": True},
    {**llama(576, 1536, 30, 9, 3), "attention_bias": True, "mlp_bias": True},
]

STATED = {"Llama-3.2-1B": 1236}

BESIDE = {
    "SmolLM2-135M": {"vocab_size": 49152, "tie_word_embeddings": True},
    "SmolLM2-360M": {"vocab_size": 49152, "tie_word_embeddings": True},
    "SmolLM2-1.7B": {"vocab_size": 49152, "tie_word_embeddings": True},
    "TinyLlama-1.1B": {"vocab_size": 32000, "tie_word_embeddings": False},
    "Llama-3.2-1B": {"vocab_size": 128256, "tie_word_embeddings": True},
    "Llama-3.2-3B": {"vocab_size": 128256, "tie_word_embeddings": True},
    "Llama-2-7B": {"vocab_size": 32000, "tie_word_embeddings": False},
    "Llama-2-13B": {"vocab_size": 32000, "tie_word_embeddings": False},
    "Llama-3.1-8B": {"vocab_size": 128256, "tie_word_embeddings": False},
    "Llama-3.1-70B": {"vocab_size": 128256, "tie_word_embeddings": False},
}

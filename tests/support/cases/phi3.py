from support.case import LLAMA, like, llama

CASES = {"phi3": like(LLAMA, config={"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})}

FULL_SIZE = [
    {},
    {**llama(5120, 17920, 40, 40, 10)},
    {**llama(3072, 8192, 32, 24, 8), "vocab_size": 200064, "tie_word_embeddings": True, "pad_token_id": 0},
]

STATED = {"Phi-3-mini": 3800, "Phi-4-mini": 3800, "Phi-3-medium": 14000, "Phi-4": 14700}

BESIDE = {
    "Phi-4-mini": {"vocab_size": 200064, "tie_word_embeddings": True},
    "Phi-4": {"vocab_size": 100352, "tie_word_embeddings": False},
}

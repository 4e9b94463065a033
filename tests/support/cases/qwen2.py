from support.case import LLAMA, like, llama

CASES = {"qwen2": like(LLAMA, config={})}

FULL_SIZE = [
    {**llama(896, 4864, 24, 14, 2), "tie_word_embeddings": True},
    {**llama(3584, 18944, 28, 28, 4), "vocab_size": 152064},
    {**llama(8192, 29568, 80, 64, 8), "vocab_size": 152064},
]

BESIDE = {
    "Qwen2.5-0.5B": {"vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen2.5-1.5B": {"vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen2.5-3B": {"vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen2.5-7B": {"vocab_size": 151936, "tie_word_embeddings": False},
    "Qwen2.5-14B": {"vocab_size": 151936, "tie_word_embeddings": False},
    "Qwen2.5-32B": {"vocab_size": 151936, "tie_word_embeddings": False},
    "Qwen2.5-72B": {"vocab_size": 151936, "tie_word_embeddings": False},
}

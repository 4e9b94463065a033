from support.case import LLAMA, like, llama

CASES = {"qwen3": like(LLAMA, config={"head_dim": 8})}

FULL_SIZE = [
    {**llama(1024, 3072, 28, 16, 8), "tie_word_embeddings": True},
    {**llama(4096, 12288, 36, 32, 8)},
    {**llama(5120, 25600, 64, 64, 8)},
]

BESIDE = {
    "Qwen3-0.6B": {"vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen3-1.7B": {"vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen3-4B": {"vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen3-8B": {"vocab_size": 151936, "tie_word_embeddings": False},
    "Qwen3-14B": {"vocab_size": 151936, "tie_word_embeddings": False},
    "Qwen3-32B": {"vocab_size": 151936, "tie_word_embeddings": False},
}

from support.case import LLAMA, like, llama

CASES = {"mistral": like(LLAMA, config={"sliding_window": 4})}

FULL_SIZE = [{}, {**llama(5120, 14336, 40, 32, 8), "head_dim": 128, "vocab_size": 131072}]

BESIDE = {
    "Mistral-Nemo-12B": {"vocab_size": 131072},
    "Mistral-Small-24B": {"vocab_size": 131072},
}

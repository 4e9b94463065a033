from support.case import Case
from support.cases.gptj import GPTJ

# A number of heads that four shards share.
CASES = {
    "codegen": Case(
        **{
            **GPTJ,
            "config": {**GPTJ["config"], "n_embd": 32, "n_head": 8},
            "even": {"n_embd": 64, "n_head": 16, "n_inner": 80},
            "uneven": {"n_embd": 48, "n_head": 12, "n_inner": 56},
            "both": {"n_embd": 80, "n_head": 20, "n_layer": 3, "n_inner": 100},
        }
    )
}

FULL_SIZE = [
    {},
    {"n_embd": 1024, "n_layer": 20, "n_head": 16, "rotary_dim": 32, "vocab_size": 51200},
    {"n_embd": 6144, "n_layer": 34, "n_head": 24, "vocab_size": 51200, "tie_word_embeddings": True},
]

STATED = {"codegen-2B": 2700}

BESIDE = {name: {"vocab_size": 51200} for name in ("codegen-350M", "codegen-2B", "codegen-16B")}

from support.case import BERT, like

CASES = {
    "ernie": like(BERT, config={"use_task_id": True, "task_type_vocab_size": 4}, thorough=False),
    "ernie 1": like(BERT, config={}, architecture="ErnieForPreTraining", family="ernie", thorough=False),
}

_VERSION_3 = {
    "vocab_size": 40000,
    "max_position_embeddings": 2048,
    "type_vocab_size": 4,
    "task_type_vocab_size": 3,
    "use_task_id": True,
}

FULL_SIZE = [
    {"architectures": ["ErnieForPreTraining"], "vocab_size": 18000, "max_position_embeddings": 513},
    {"architectures": ["ErnieModel"], **_VERSION_3},
    {
        "architectures": ["ErnieForMaskedLM"],
        "hidden_size": 1024,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        **_VERSION_3,
    },
]

STATED = {
    "ernie-3.0-nano": 18,
    "ernie-3.0-micro": 23,
    "ernie-3.0-mini": 27,
    "ernie-3.0-medium": 75,
    "ernie-3.0-base": 118,
    "ernie-3.0-xbase": 296,
}

BESIDE = dict.fromkeys(STATED, _VERSION_3)

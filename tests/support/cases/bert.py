from support.case import BERT, like

CASES = {
    "bert": like(BERT, config={}, architecture="BertForMaskedLM"),
    "bert full": like(BERT, config={}, architecture="BertForPreTraining", family="bert"),
    "bert encoder": like(BERT, config={}, architecture="BertModel", family="bert"),
}

FULL_SIZE = [
    {"architectures": [name], **sizes}
    for name in ("BertForMaskedLM", "BertForPreTraining", "BertModel")
    for sizes in (
        {},
        {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048},
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    )
]

STATED = {
    "bert-tiny": 4.4,
    "bert-mini": 11.2,
    "bert-small": 28.8,
    "bert-medium": 41.4,
    "bert-base": 110,
    "bert-large": 335,
}

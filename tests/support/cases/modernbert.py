from support.case import Case

IDS = {"pad_token_id": 0, "cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
CASES = {
    "modernbert": Case(
        config={
            "vocab_size": 29,
            "max_position_embeddings": 32,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "norm_eps": 1e-6,
            "norm_bias": True,
            "mlp_bias": True,
            "local_attention": 4,
            **IDS,
        },
        even={"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4},
        uneven={"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3},
        depth={"num_hidden_layers": 7},
        both={"hidden_size": 48, "intermediate_size": 56, "num_attention_heads": 6, "num_hidden_layers": 5},
        # The library builds no model without layers, and its layers get an attention mask. Some tests name it beside the thorough ones.
        thorough=False,
        grid=True,
    )
}

FULL_SIZE = [
    {"architectures": [name], **sizes}
    for name in ("ModernBertForMaskedLM", "ModernBertModel")
    for sizes in (
        {},
        {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 2624},
    )
]

STATED = {"ModernBERT-base": 149, "ModernBERT-large": 395}

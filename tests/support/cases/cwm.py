from support.case import LLAMA, like

CASES = {
    "cwm": like(
        LLAMA,
        config={
            "head_dim": 8,
            "mlp_bias": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        thorough=False,
    )
}

FULL_SIZE = [{}, {"mlp_bias": True, "tie_word_embeddings": True}]

STATED = {"cwm": 32600}

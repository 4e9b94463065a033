from support.case import LLAMA, like

CASES = {
    "smollm3": like(
        LLAMA,
        config={
            "attention_bias": True,
            "mlp_bias": True,
            "no_rope_layers": [1, 0],
            "layer_types": ["full_attention", "sliding_attention"],
            "use_sliding_window": True,
            "sliding_window": 4,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        thorough=False,
    )
}

FULL_SIZE = [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}]

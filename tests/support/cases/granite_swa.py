from support.case import LLAMA, like

CASES = {
    "granite_swa": like(
        LLAMA,
        config={
            "attention_bias": True,
            "mlp_bias": True,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.3,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "layer_rope_theta": [10000.0, 0],
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        thorough=False,
    )
}

FULL_SIZE = [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}]

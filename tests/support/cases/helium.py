from support.case import LLAMA, like

CASES = {
    "helium": like(
        LLAMA,
        config={"head_dim": 4, "attention_bias": True, "mlp_bias": True},
        thorough=False,
    )
}

FULL_SIZE = [{}, {"num_key_value_heads": 5, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}]

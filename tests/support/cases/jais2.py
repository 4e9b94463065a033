from support.case import LLAMA, like

CASES = {
    "jais2": like(
        {**LLAMA, "tolerance": 1e-12},
        config={"layer_norm_eps": 1e-4, "bos_token_id": 0, "eos_token_id": 0},
        thorough=False,
    )
}

FULL_SIZE = [{}, {"attention_bias": False, "mlp_bias": False, "num_key_value_heads": 2, "tie_word_embeddings": True}]

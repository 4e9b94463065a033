from support.case import LLAMA, like, llama

MOE = {
    "even": {
        "hidden_size": 32,
        "moe_intermediate_size": 48,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "shared_expert_intermediate_size": 40,
    },
    "uneven": {
        "hidden_size": 24,
        "moe_intermediate_size": 40,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "shared_expert_intermediate_size": 30,
    },
    "both": {
        "hidden_size": 40,
        "moe_intermediate_size": 56,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "num_hidden_layers": 3,
        "shared_expert_intermediate_size": 44,
    },
    "others": {},
}
CASES = {
    "qwen2_moe": like(
        LLAMA,
        config={
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 20,
        },
        **MOE,
        thorough=False,
    )
}

FULL_SIZE = [{**llama(2048, 5632, 4, 16, 16)}]

STATED = {"Qwen1.5-MoE-A2.7B": 14316}

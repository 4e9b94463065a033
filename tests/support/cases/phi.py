from support.case import LLAMA, like, llama

SIZES = {key: value for key, value in LLAMA["config"].items() if key != "rms_norm_eps"}
# Half of each head is rotated, in float32 whatever the model's dtype.
SHARED = {
    **LLAMA,
    "config": {
        **SIZES,
        "layer_norm_eps": 1e-4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "tolerance": 1e-7,
}

CASES = {
    "phi": like(SHARED, config={}, thorough=False),
    # One epsilon for the stream and for the norms in a head: `lemon` changes both.
    "phi normed": like(
        SHARED, config={"qk_layernorm": True, "layer_norm_eps": 1e-6}, family="phi", tolerance=1e-5, thorough=False
    ),
}

FULL_SIZE = [{}, {**llama(2560, 10240, 32, 32, 32), "qk_layernorm": True}]

# The names do not count the embeddings alike.
STATED = {"phi-1.5": 1420, "phi-2": 2780}

from support.case import LLAMA, Case, like, llama

SIZES = {key: value for key, value in LLAMA["config"].items() if key != "rms_norm_eps"}
# Half of each head is rotated: of the default quarter of four entries no pair would be left.
OPTIONS = {
    "layer_norm_eps": 1e-4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "use_qkv_bias": True,
}


def _case(**options: object) -> Case:
    # The library computes rotary positions in float32.
    return like({**LLAMA, "config": SIZES}, config={**OPTIONS, **options}, tolerance=1e-7, thorough=False)


CASES = {
    "stablelm": _case(),
    "stablelm parallel": Case(**{**_case(use_parallel_residual=True).__dict__, "family": "stablelm"}),
}

FULL_SIZE = [
    {},
    {**llama(2048, 5632, 24, 32, 32), "vocab_size": 100352, "use_qkv_bias": True},
    {**llama(2560, 6912, 32, 32, 32), "use_parallel_residual": True},
]

# As the model cards state them.
STATED = {"stablelm-2-1.6B": 1644, "stablelm-3B-4e1t": 2795}

BESIDE = {"stablelm-2-1.6B": {"vocab_size": 100352, "use_qkv_bias": True}}

"""Convert between the bytes of safetensors files and torch tensors.

Only this module maps safetensors dtypes to torch dtypes.
"""

from __future__ import annotations

from typing import Any

import torch

from ligo_convert.checkpoints.tensors import TensorSpec

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def tensor_from_bytes(data: Any, spec: TensorSpec) -> torch.Tensor:
    """Return the tensor that `data` holds.

    Args:
        data: a buffer with the tensor's bytes. A writable buffer is shared with the tensor and must stay alive; a
            read-only buffer is copied.
        spec: dtype and shape.
    """
    if spec.elements == 0:
        return torch.zeros(spec.shape, dtype=TORCH_DTYPES[spec.dtype])
    view = memoryview(data)
    if view.readonly:
        view = memoryview(bytearray(view))
    return torch.frombuffer(view, dtype=TORCH_DTYPES[spec.dtype]).view(spec.shape)


def tensor_to_bytes(tensor: torch.Tensor, spec: TensorSpec) -> memoryview:
    """Return the bytes of a tensor after a cast to the dtype of `spec`. Its shape must be that of `spec`."""
    assert tuple(tensor.shape) == spec.shape, (spec.name, tuple(tensor.shape), spec.shape)
    ready = tensor.detach().to(device="cpu", dtype=TORCH_DTYPES[spec.dtype]).contiguous()
    return ready.view(-1).view(torch.uint8).numpy().data if spec.elements else memoryview(b"")

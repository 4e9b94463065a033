"""Between the bytes of a safetensors file and torch tensors: the one place that knows both dtypes' names."""

from __future__ import annotations

from typing import Any

import torch

from ligo_convert.checkpoints.tensors import TensorSpec

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def tensor_from_bytes(data: Any, spec: TensorSpec) -> torch.Tensor:
    """A tensor over a copy-free view of `data` (which must be writable and stay alive), or over a copy where it is read-only."""
    if spec.elements == 0:
        return torch.zeros(spec.shape, dtype=TORCH_DTYPES[spec.dtype])
    view = memoryview(data)
    if view.readonly:
        view = memoryview(bytearray(view))
    return torch.frombuffer(view, dtype=TORCH_DTYPES[spec.dtype]).view(spec.shape)


def tensor_to_bytes(tensor: torch.Tensor, spec: TensorSpec) -> memoryview:
    """The bytes of a tensor, cast to the dtype of `spec`; the shape must be the planned one."""
    assert tuple(tensor.shape) == spec.shape, (spec.name, tuple(tensor.shape), spec.shape)
    ready = tensor.detach().to(device="cpu", dtype=TORCH_DTYPES[spec.dtype]).contiguous()
    return ready.view(-1).view(torch.uint8).numpy().data if spec.elements else memoryview(b"")

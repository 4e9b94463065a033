"""Tensors as files describe them: a name, a safetensors dtype, a shape. No torch, no data."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Bytes an element; the safetensors names of the dtypes a checkpoint may hold here. The sub-byte and packed ones
# (F4, F6, F8_E8M0 and the fp8 pair) are left out: their values mean nothing without scales this project does not know.
DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")

# What recipes and config.json call them.
DTYPE_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a file, before or without its data."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]

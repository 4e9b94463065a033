"""Tensors as files describe them: a name, a safetensors dtype, a shape. No torch, no data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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


_ELEMENTS = 1 << 20  # looked at at a time, to keep the temporaries small


def nonfinite_count(buffer: bytes | bytearray | memoryview, dtype: str) -> int:
    """How many numbers of a tensor's bytes are NaN or infinite; 0 for the dtypes that have neither."""
    exponents = {
        "F64": ("<u8", 0x7FF << 52),
        "F32": ("<u4", 0xFF << 23),
        "F16": ("<u2", 0x1F << 10),
        "BF16": ("<u2", 0xFF << 7),
    }
    if dtype not in exponents:
        return 0
    unsigned, bits = exponents[dtype]
    mask = np.array(bits, dtype=unsigned)
    return count_elements(memoryview(buffer), unsigned, lambda block: (block & mask) == mask)


def count_elements(view: memoryview, dtype: str, wrong: Callable[[np.ndarray], np.ndarray]) -> int:
    """Elements for which `wrong` is true, in blocks that keep the temporaries small."""
    values = np.frombuffer(view, dtype=dtype)
    return sum(int(np.count_nonzero(wrong(values[at : at + _ELEMENTS]))) for at in range(0, len(values), _ELEMENTS))

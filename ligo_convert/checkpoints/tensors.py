"""Describe tensors of files by name, safetensors dtype and shape, without data and without torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Bytes per element of each supported dtype, by safetensors name. The sub-byte and packed dtypes (F4, F6, F8_E8M0 and the
# two fp8 formats) are not supported: their values need scales that the header does not contain.
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

# The names of these dtypes in recipes and config.json.
DTYPE_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a file, without its data.

    Attributes:
        name: name of the tensor.
        dtype: safetensors name of the dtype, a key of `DTYPE_BYTES`.
        shape: elements along each dimension.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]


_ELEMENTS = 1 << 20  # elements per block; limits the memory of temporary arrays


def nonfinite_count(buffer: bytes | bytearray | memoryview, dtype: str) -> int:
    """Count the NaN and infinite elements in a tensor's bytes. Dtypes without such values give 0."""
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
    """Count the elements for which `wrong` is True.

    Args:
        view: the tensor's bytes.
        dtype: NumPy dtype of the elements.
        wrong: maps a block of elements to booleans. It is called block by block to limit temporary memory.
    """
    values = np.frombuffer(view, dtype=dtype)
    return sum(int(np.count_nonzero(wrong(values[at : at + _ELEMENTS]))) for at in range(0, len(values), _ELEMENTS))

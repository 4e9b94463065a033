"""Numbers that a tensor must not hold: raw bytes in, counts out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

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

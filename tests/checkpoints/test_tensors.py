"""Numbers that are none: every kind in every dtype is counted."""

from __future__ import annotations

import numpy as np
import pytest

from ligo_convert.checkpoints.tensors import nonfinite_count


@pytest.mark.parametrize(("dtype", "numpy"), [("F64", np.float64), ("F32", np.float32), ("F16", np.float16)])
def test_nonfinite_numbers_are_counted(dtype: str, numpy: type[np.floating]) -> None:
    values = np.zeros((1 << 20) + 7, numpy)
    limits = np.finfo(numpy)
    values[:4] = [limits.max, limits.min, limits.smallest_subnormal, -0.0]
    assert nonfinite_count(values.tobytes(), dtype) == 0
    values[[0, 9, -1]] = [np.nan, -np.inf, np.inf]
    assert nonfinite_count(values.tobytes(), dtype) == 3
    assert nonfinite_count(memoryview(bytearray(values.tobytes())), dtype) == 3


def test_nonfinite_bfloat16_is_the_upper_half_of_float32() -> None:
    values = np.array([1, np.inf, -np.inf, np.nan, 3.3e38, 1e-40], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert nonfinite_count(upper.tobytes(), "BF16") == 3


def test_whole_numbers_are_finite() -> None:
    assert nonfinite_count(b"\xff" * 16, "I64") == 0
    assert nonfinite_count(b"", "F32") == 0

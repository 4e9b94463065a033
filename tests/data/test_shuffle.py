"""Permutations: every place once, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest

from ligo_convert.data.shuffle import permuted

# A recipe means the same text in every version: this does not change.
GOLDEN_PERMUTATION = [5, 2, 7, 8, 4, 3, 0, 9, 1, 6]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000])
def test_permuted_reaches_every_place_once(size: int) -> None:
    assert sorted(permuted(index, size, "key") for index in range(size)) == list(range(size))


def test_permuted_is_the_same_for_ever() -> None:
    assert [permuted(index, 10, "chunks/0") for index in range(10)] == GOLDEN_PERMUTATION


def test_permuted_mixes() -> None:
    moved = [permuted(index, 1000, "a") for index in range(1000)]
    assert abs(np.corrcoef(moved, range(1000))[0, 1]) < 0.1
    assert moved != [permuted(index, 1000, "b") for index in range(1000)]

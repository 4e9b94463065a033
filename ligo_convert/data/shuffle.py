"""Shuffle any number of items by a key, without state.

The order does not depend on a library, because a library may change its random generator.
"""

from __future__ import annotations

import hashlib


def permuted(index: int, size: int, key: str) -> int:
    """Return entry `index` of the permutation of `range(size)` that `key` selects.

    A Feistel network of four SHA-256 rounds permutes a range of at least `size` numbers; it is applied until its result
    is below `size` (cycle walking). This gives any entry without storing the permutation, and the same entry in every
    version of Python and its libraries.
    """
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            digest = hashlib.sha256(f"{key}/{turn}/{right}".encode()).digest()
            left, right = right, left ^ (int.from_bytes(digest[:8], "big") & mask)
        index = left << half | right
        if index < size:
            return index

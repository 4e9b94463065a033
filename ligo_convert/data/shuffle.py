"""An order for any number of things, decided by a key alone: no state, no library whose generator may change."""

from __future__ import annotations

import hashlib


def permuted(index: int, size: int, key: str) -> int:
    """Where `index` goes in the permutation of `range(size)` that `key` names.

    A Feistel network of four SHA-256 rounds, walked until it lands inside: any entry of a permutation of any length at
    once, without holding it, and the same for ever, which no library's generator promises.
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

"""What a run takes out of an entry of the result cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ligo_convert.errors import VerificationError
from ligo_convert.io.cache import CacheEntry


def restored(entry: CacheEntry) -> dict[str, bytes] | None:
    """Return the files of an entry by name, with their digests checked; None where a run has to compute the entry."""
    found: dict[str, bytes] = {}

    def place(name: str, blocks: Iterator[bytes], sha256: str) -> None:
        found[name] = b"".join(blocks)
        if hashlib.sha256(found[name]).hexdigest() != sha256:
            raise VerificationError("these are not the expected bytes", where=name)

    return found if entry.restore(place) else None

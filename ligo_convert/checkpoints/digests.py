"""Digests of files that may change while they are read: bytes in, SHA-256, git blob ids and CRC-32s out."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ligo_convert.checkpoints.headers import read_at
from ligo_convert.errors import SourceChanged

_BLOCK = 4 << 20  # bytes read at a time


@dataclass(kw_only=True)
class Digested:
    """What the digest pass saw of a file."""

    sha256: str
    fingerprint: tuple[int, ...]


class PartChecksums:
    """CRC-32 of each of the parts that a file consists of, from the file's bytes in sequence, cut anywhere."""

    def __init__(self, ends: Sequence[tuple[str | None, int]]) -> None:
        """`ends`: name and end, in bytes from the start of the file, of each part in order."""
        self._ends = ends
        # Of the part that ends[at] describes, and how far the bytes have come.
        self._crc32, self._position, self._at = 0, 0, 0

    def update(self, block: memoryview) -> Iterator[tuple[str | None, int]]:
        """Take the next bytes; name and CRC-32 of each part that they complete. To be iterated to its end."""
        begin = self._position
        # Parts of no bytes end where the one before them does.
        while self._at < len(self._ends) and (
            self._position < begin + len(block) or self._ends[self._at][1] == self._position
        ):
            name, end = self._ends[self._at]
            part = block[self._position - begin : end - begin]
            self._crc32, self._position = zlib.crc32(part, self._crc32), self._position + len(part)
            if self._position == end:
                yield name, self._crc32
                self._crc32, self._at = 0, self._at + 1


def git_blob(size: int) -> hashlib._Hash:
    """The hash that names a file of so many bytes in git, before the bytes. The Hub gives it for files outside LFS."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def check_expected(expected: str | None, sha256: str, blob: str, *, where: str, again: str) -> None:
    """Compare a file with the SHA-256 or the git blob id that its origin gives."""
    if expected is not None and expected not in (sha256, blob):
        raise SourceChanged(
            "the file is not the one on the Hub: damaged on the way, or on disk",
            where=where,
            expected=expected,
            found=sha256 if len(expected) == 64 else blob,
            hint=again,
        )


def blocks(fd: int, size: int, *, label: str) -> Iterator[memoryview]:
    """A file's bytes from start to end, in a buffer that is used again for each block."""
    buffer = memoryview(bytearray(min(_BLOCK, size)))
    for start in range(0, size, _BLOCK):
        block = buffer[: min(_BLOCK, size - start)]
        read_at(fd, block, start, label=label)
        yield block


def sha256_of(fd: int, *, label: str) -> str:
    """Of all bytes of an open file, in hex."""
    sha256 = hashlib.sha256()
    for block in blocks(fd, os.fstat(fd).st_size, label=label):
        sha256.update(block)
    return sha256.hexdigest()


def fingerprint_of(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced; its size in bytes first."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

"""Compute digests of files that another process may change during the read.

Input: open files.
Output: SHA-256 digests, git blob ids and CRC-32 checksums.
"""

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
    """The result of reading one file to compute its digest.

    Attributes:
        sha256: SHA-256 of the file, in hexadecimal.
        fingerprint: the file's `fingerprint_of` at that time.
    """

    sha256: str
    fingerprint: tuple[int, ...]


class PartChecksums:
    """Compute the CRC-32 of each part of a file from its bytes in order. Blocks may begin and end anywhere in a part."""

    def __init__(self, ends: Sequence[tuple[str | None, int]]) -> None:
        """Start at the first byte of the file.

        Args:
            ends: name and end of each part, in file order. Ends are byte offsets from the start of the file.
        """
        self._ends = ends
        # The CRC-32 so far of the part `ends[at]`, and the number of bytes read.
        self._crc32, self._position, self._at = 0, 0, 0

    def update(self, block: memoryview) -> Iterator[tuple[str | None, int]]:
        """Take the next bytes and yield name and CRC-32 of each part that they complete. Callers must exhaust the iterator."""
        begin = self._position
        # An empty part ends at the same offset as the part before it.
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
    """Return the SHA-1 object for the git blob id of a file of `size` bytes. The caller then adds the file's bytes.

    The Hub publishes git blob ids for files outside LFS.
    """
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def check_expected(expected: str | None, sha256: str, blob: str, *, where: str, again: str) -> None:
    """Compare a file with the SHA-256 or git blob id published at its origin.

    Args:
        expected: the published SHA-256 or git blob id, in hexadecimal; None skips the check.
        sha256: SHA-256 of the file.
        blob: git blob id of the file.
        where: name of the file in the error.
        again: hint of the error.

    Raises:
        SourceChanged: `expected` equals neither digest.
    """
    if expected is not None and expected not in (sha256, blob):
        raise SourceChanged(
            "the file is not the one on the Hub: damaged on the way, or on disk",
            where=where,
            expected=expected,
            found=sha256 if len(expected) == 64 else blob,
            hint=again,
        )


def blocks(fd: int, size: int, *, label: str) -> Iterator[memoryview]:
    """Yield the file's `size` bytes in order, block by block. Every block reuses the same buffer.

    Raises:
        SourceChanged: the file is shorter than `size` bytes.
    """
    buffer = memoryview(bytearray(min(_BLOCK, size)))
    for start in range(0, size, _BLOCK):
        block = buffer[: min(_BLOCK, size - start)]
        read_at(fd, block, start, label=label)
        yield block


def sha256_of(fd: int, *, label: str) -> str:
    """Return the SHA-256 of an open file, in hexadecimal."""
    sha256 = hashlib.sha256()
    for block in blocks(fd, os.fstat(fd).st_size, label=label):
        sha256.update(block)
    return sha256.hexdigest()


def fingerprint_of(status: os.stat_result) -> tuple[int, ...]:
    """Return values that change when a file is written or replaced.

    The values are size in bytes, modification time and change time in nanoseconds, inode and device.
    """
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

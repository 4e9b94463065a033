"""What the Hub's storage client (hf_xet) has put into its store on disk, for a Hub on the loopback interface.

In goes the folder of a `local://` store; out come the files in it by SHA-256, and their bytes. A commit names such a file by
SHA-256 alone, and the store by a hash of its own; the store's shards hold both. The bytes are put together by the client itself,
in a child process: as a program, this reads hashes, sizes and places to write to from its standard input.

    echo '[["HASH", 1234, "out"]]' | python tests/support/loopback/xet.py STORE
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# A shard: a header, then files, each with records of one length: which pieces it is made of, for some a check of each piece,
# and for some its SHA-256.
_HEADER, _RECORD, _END = 48, 48, b"\xff" * 32
_CHECKED, _DIGESTED = 1 << 31, 1 << 30


@dataclass(frozen=True, kw_only=True)
class Chunked:
    """A file in a store: the store's name for it, and its size."""

    hash: str
    size: int


def stored_files(store: Path) -> dict[str, Chunked]:
    """SHA-256 -> the file, of all that the store was given whole."""
    found: dict[str, Chunked] = {}
    for shard in sorted((store / "xet" / "xorbs" / "shards").glob("*.mdb")):
        found.update(_files_of(shard.read_bytes()))
    return found


def _files_of(shard: bytes) -> Iterator[tuple[str, Chunked]]:
    at = _HEADER
    while shard[at : at + 32] != _END:
        name, flags, pieces = struct.unpack_from("<32sII", shard, at)
        records = [shard[at + _RECORD * number :][:_RECORD] for number in range(1, pieces + 1)]
        at += _RECORD * (1 + pieces + (pieces if flags & _CHECKED else 0))
        if flags & _DIGESTED:
            size = sum(struct.unpack_from("<I", record, 36)[0] for record in records)
            yield _hexadecimal(shard[at : at + 32]), Chunked(hash=_hexadecimal(name), size=size)
            at += _RECORD


def _hexadecimal(hashed: bytes) -> str:
    """A hash as it is written: four numbers, each the other way round."""
    return struct.pack(">4Q", *struct.unpack("<4Q", hashed)).hex()


def read_files(store: Path, wanted: Mapping[str, Chunked]) -> dict[str, bytes]:
    """The bytes of files, by SHA-256. One that the store does not give back as it should is left out."""
    with tempfile.TemporaryDirectory() as place:
        # A copy, since a store is open to one process at a time, and the one that has written to it may still have it.
        shutil.copytree(store, Path(place, "store"), ignore=shutil.ignore_patterns("shard-*"))
        asked = [(one.hash, one.size, str(Path(place, digest))) for digest, one in wanted.items()]
        done = subprocess.run(
            [sys.executable, __file__, str(Path(place, "store"))],
            input=json.dumps(asked),
            env={**os.environ, "HF_XET_CACHE": str(Path(place, "cache"))},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        found = {digest: Path(place, digest).read_bytes() for digest in wanted if Path(place, digest).is_file()}
    return {digest: data for digest, data in found.items() if hashlib.sha256(data).hexdigest() == digest}


def main() -> None:
    from hf_xet import XetFileInfo, XetSession

    until = int(time.time()) + 3600
    session = XetSession()
    place = {"endpoint": f"local://{sys.argv[1]}", "token": "loopback", "token_expiry_unix_secs": until}
    with session.new_file_download_group(**place) as group:
        for name, size, path in json.load(sys.stdin):
            group.start_download_file(XetFileInfo(name, size), path)


if __name__ == "__main__":
    main()

"""What many conversions on one machine, or on one shared file system, have in common is made once and found by the others.

What comes in: a folder. What goes out: places in it by what they hold, each filled by whoever comes first while the others wait. Nothing
here is needed for a result: without a shelf, or with an empty one, the same bytes come out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ligo_convert.fs import do, make_folder, reporting, sync_directory, write_file

_NO_LOCKS = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_BLOCK = 1 << 20


class Shelf:
    """A folder of results by kind and key. The key says all that a result depends on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def one(self, kind: str, key: str) -> Iterator[Path]:
        """The place of a result, held by nobody else meanwhile. Where it is not there, whoever holds it makes it and calls `put`."""
        make_folder(self.folder)
        lock = self.folder / f"{kind}-{key}.lock"
        descriptor: int = do("open", lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                # Without locks two may make the same, and the first to be done is kept.
                if error.errno not in _NO_LOCKS:
                    raise
            yield self.folder / f"{kind}-{key}"
        finally:
            os.close(descriptor)

    def put(self, place: Path, files: Mapping[str, Path | bytes]) -> None:
        """Fill a place, whole or not at all: name (a POSIX path) -> bytes, or the file to copy."""
        new = place.with_name(f".{secrets.token_hex(8)}.new")
        do("mkdir", new)
        for name, content in files.items():
            target = new / name
            make_folder(target.parent)
            write_file(target, iter((content,)) if isinstance(content, bytes) else blocks_of(content))
        with contextlib.suppress(FileExistsError):  # made by another meanwhile, where there are no locks
            do("rename_new", new, place, passing=(FileExistsError,))
        sync_directory(self.folder)

    def recall(self, kind: str, key: str) -> dict[str, Any] | None:
        """A small result that anybody may make: plain data; None where there is none, or none that can be read."""
        try:
            found = json.loads((self.folder / f"{kind}-{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def note(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        """Keep a small result."""
        make_folder(self.folder)
        write_file(self.folder / f"{kind}-{key}.json", iter((json.dumps(value).encode(),)), replace=True)


def files_in(place: Path) -> dict[str, Path]:
    """The files of a place that was filled, by name."""
    with reporting(place, "list"):
        return {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}


def blocks_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file, some at a time."""
    with reporting(path, "read"), path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block

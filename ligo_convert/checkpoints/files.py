"""The files of a checkpoint: their names, their folder and the bytes of the small ones. Neither names nor bytes are trusted.

A `Place` lists the files and brings them into a folder. `open_inside` opens one file and follows no link out of that folder. `small_file`
reads a whole file and checks it against the digest that its origin lists.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from ligo_convert.checkpoints.digests import check_expected, git_blob
from ligo_convert.checkpoints.headers import Header, read_at
from ligo_convert.errors import MachineError, SourceChanged, SourceError

CONFIG = "config.json"

GENERATION_CONFIG = "generation_config.json"

CARD = "README.md"

WEIGHTS = "model.safetensors"

INDEX = "model.safetensors.index.json"

# A tokenizer can be loaded if all files of one of these groups exist.
VOCABULARY_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

# How an image processor of transformers prepares images.
PROCESSOR = "preprocessor_config.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "bpe.codes",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    PROCESSOR,
    "processor_config.json",
)

_MIB = 1 << 20

_LIMITS = {CONFIG: 4 * _MIB, GENERATION_CONFIG: 4 * _MIB, CARD: 16 * _MIB, INDEX: 64 * _MIB}

_LIMIT = 128 * _MIB  # bytes of any other small file

# Hint of every error about a file that changed during a run.
KEEP_UNCHANGED = "nothing may write to the source while it is converted; restore it and run again"

_DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


class Place:
    """Origin of a checkpoint's files. In this base class every file is already in `root`.

    Attributes:
        label: name of the checkpoint in messages.
        revision: commit on the Hub; None for a directory.
        root: directory that the files are in, or are fetched to.
        names: names of the files.
        complete: False if `names` lists only the files that a cache holds.
        lists_folders: True if `names` lists the files in folders, too, with their folder. A local directory lists its own entries.
        expected: file name -> SHA-256 or git blob id that the origin lists.
        warnings: oddities that do not prevent the use of the checkpoint.
    """

    label: str
    revision: str | None = None
    root: Path
    names: frozenset[str]
    complete: bool = True
    lists_folders: bool = False
    expected: Mapping[str, str] = MappingProxyType({})
    warnings: list[str]

    def fetch(self, names: Iterable[str]) -> None:
        """Bring these files into `root`, or raise."""

    def inner(self) -> list[str]:
        """Return the names of subfolders that hold weights."""
        return []

    def listed_size(self, name: str) -> int | None:
        """Return the size of a file that its origin lists, in bytes; None where the file itself is to be looked at."""
        return None

    def header(self, name: str) -> tuple[Header, int]:
        """Return the header and the size of a weight file that is not in `root`."""
        raise SourceError("the file was removed", where=f"{self.label}/{name}")


class SmallFiles:
    """Reads the small files of a checkpoint and refuses bytes that differ from an earlier read."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._sha256: dict[str, str] = {}
        self._nested: frozenset[str] = frozenset()

    def add_names(self, names: Iterable[str]) -> None:
        """Allow these files, too: they were found in folders of a directory, which lists its own entries only."""
        self._nested |= frozenset(names)

    def read(self, name: str) -> bytes:
        """Return the bytes of a small file.

        Raises:
            SourceError: no such file, too large, not a regular file, or a link that leaves the directory.
            SourceChanged: the bytes differ from those that the origin lists, or from an earlier read.
        """
        where = f"{self._place.label}/{name}"
        if name not in self._place.names and name not in self._nested:
            raise SourceError("no such file", where=where)
        data = small_file(self._place, name)
        sha256 = hashlib.sha256(data).hexdigest()
        with self._lock:
            before = self._sha256.setdefault(name, sha256)
        if before != sha256:
            raise SourceChanged(
                "the file changed since it was first read",
                where=where,
                expected=before,
                found=sha256,
                hint=KEEP_UNCHANGED,
            )
        return data

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file that `read` has returned, in hex."""
        with self._lock:
            return self._sha256[name]


def open_inside(root: Path, name: str, *, label: str) -> int:
    """Open a regular file under `root` and return its descriptor. Only links of the Hub's cache may leave `root`.

    Raises:
        SourceError: no such file, not a regular file, or a link that leaves `root`.
        MachineError: no permission to read the file.
    """
    path = root / name
    real = Path(os.path.realpath(path))
    inside = [Path(os.path.realpath(root)), *blob_folders(root)]
    if not any(real.is_relative_to(folder) for folder in inside):
        raise SourceError("a symbolic link that leaves the directory", where=label, hint="put the file itself there")
    try:
        # O_NONBLOCK: opening a FIFO without a writer would block. O_NOFOLLOW: `real` has no links left.
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        broken = path.is_symlink()
        raise SourceError(
            "a broken symbolic link" if broken else "no such file",
            where=label,
            hint="run `git annex get`, or fetch the file" if broken else "",
        ) from None
    except PermissionError:
        raise MachineError("no permission to read the file", where=label) from None
    except OSError as error:
        raise SourceError(f"cannot be opened: {os.strerror(error.errno or 0)}", where=label) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SourceError("not a regular file", where=label)
    return fd


def blob_digest(root: Path, name: str) -> str | None:
    """Return the digest in a blob's name in the Hub's cache: SHA-256 of a large file, git blob id of others. None outside such a cache.

    Args:
        root: the snapshot. name: the relative name of a file in it.
    """
    path = root / name
    if not path.is_symlink():
        return None
    target = path.parent / path.readlink()
    in_cache = Path(os.path.realpath(target.parent)) in blob_folders(root)
    return target.name if in_cache and _DIGEST.fullmatch(target.name) else None


def small_file(place: Place, name: str) -> bytes:
    """Return all bytes of a small file, checked against the digest that its origin lists."""
    label = f"{place.label}/{name}"
    fd = open_inside(place.root, name, label=label)
    try:
        size = os.fstat(fd).st_size
        check_size(size, name, label=label)
        data = bytearray(size)
        read_at(fd, memoryview(data), 0, label=label)
    finally:
        os.close(fd)
    blob = git_blob(size)
    blob.update(data)
    expected = place.expected.get(name) or blob_digest(place.root, name)
    again = "delete the file from the cache of the Hub, and run again"
    check_expected(expected, hashlib.sha256(data).hexdigest(), blob.hexdigest(), where=label, again=again)
    return bytes(data)


def check_size(size: int, name: str, *, label: str) -> None:
    """Raise SourceError if `size`, in bytes, is above the limit for a small file of this name."""
    limit = _LIMITS.get(name, _LIMIT)
    if size > limit:
        raise SourceError(
            "the file is too large", where=label, expected=f"at most {limit} bytes", found=f"{size} bytes"
        )


def blob_folders(root: Path) -> tuple[Path, ...]:
    """Return the blob folders that links of a snapshot in the Hub's cache may lead to: the repository's, and the shared one. Else empty."""
    real = Path(os.path.realpath(root))
    repository = real.parent.parent
    if real.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return ()
    return repository / "blobs", repository.parent / "blobs"

"""The files of a checkpoint: their names, the folder they lie in, and their bytes, read without trusting either.

A `Place` says which files there are and brings them into a folder; `open_inside` opens one of them without following a
link out of it; `small_file` reads one whole, checked against what its origin says of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from ligo_convert.checkpoints.digests import check_expected, git_blob
from ligo_convert.checkpoints.headers import Header, read_at
from ligo_convert.errors import MachineError, SourceError

CONFIG = "config.json"

GENERATION_CONFIG = "generation_config.json"

CARD = "README.md"

WEIGHTS = "model.safetensors"

INDEX = "model.safetensors.index.json"

# What a tokenizer is loaded from: all the files of one of these.
VOCABULARY_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

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
    "preprocessor_config.json",
    "processor_config.json",
)

_MIB = 1 << 20

_LIMITS = {CONFIG: 4 * _MIB, GENERATION_CONFIG: 4 * _MIB, CARD: 16 * _MIB, INDEX: 64 * _MIB}

_LIMIT = 128 * _MIB  # bytes of any other side file

_DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


class Place:
    """Where a source's files come from. As it stands: a local directory, in which everything lies already."""

    label: str
    revision: str | None = None
    root: Path
    names: frozenset[str]
    complete: bool = True  # whether `names` is all there is, or only what a cache happens to hold
    expected: Mapping[str, str] = MappingProxyType({})
    warnings: list[str]

    def fetch(self, names: Iterable[str]) -> None:
        """Make these files lie under `root`, or raise."""

    def header(self, name: str) -> tuple[Header, int]:
        """The header and the size of a weight file that does not lie under `root`."""
        raise SourceError("the file vanished", where=f"{self.label}/{name}")


def local_directory(given: str, root: Path) -> Place:
    """The directory `root`, which the user calls `given`. SourceError if it is none, or has no config."""
    try:
        names = frozenset(entry.name for entry in root.iterdir())
    except PermissionError:
        raise MachineError("no permission to read the directory", where=given) from None
    except NotADirectoryError:
        raise SourceError("not a directory", where=given, hint="name the directory that holds the files") from None
    except OSError:
        raise SourceError("no such directory", where=given) from None
    place = Place()
    place.label, place.root, place.names, place.warnings = Path(os.path.realpath(root)).name or "local", root, names, []
    if CONFIG not in names:
        raise SourceError(f"no {CONFIG}", where=place.label)
    return place


def open_inside(root: Path, name: str, *, label: str) -> int:
    """A descriptor of a regular file under `root`. Links may not leave it, but for those of the Hub's cache."""
    path = root / name
    real = Path(os.path.realpath(path))
    inside = [Path(os.path.realpath(root)), *blob_folders(root)]
    if not any(real.is_relative_to(folder) for folder in inside):
        raise SourceError("a symbolic link that leaves the directory", where=label, hint="put the file itself there")
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes would wait for ever. O_NOFOLLOW: `real` is no link any more.
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        broken = path.is_symlink()
        raise SourceError(
            "a symbolic link that leads nowhere" if broken else "no such file",
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


def blob_digest(path: Path) -> str | None:
    """What the Hub's cache names a file's blob by: the SHA-256 of a large one, git's id of any other; None outside such a cache."""
    if not path.is_symlink():
        return None
    target = path.parent / path.readlink()
    in_cache = Path(os.path.realpath(target.parent)) in blob_folders(path.parent)
    return target.name if in_cache and _DIGEST.fullmatch(target.name) else None


def small_file(place: Place, name: str) -> bytes:
    """All bytes of a side file, checked against its origin's digest."""
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
    expected = place.expected.get(name) or blob_digest(place.root / name)
    again = "delete the file from the cache of the Hub, and run again"
    check_expected(expected, hashlib.sha256(data).hexdigest(), blob.hexdigest(), where=label, again=again)
    return bytes(data)


def check_size(size: int, name: str, *, label: str) -> None:
    """Raise SourceError if no honest side file called `name` has so many bytes."""
    limit = _LIMITS.get(name, _LIMIT)
    if size > limit:
        raise SourceError(
            "the file is too large", where=label, expected=f"at most {limit} bytes", found=f"{size} bytes"
        )


def blob_folders(root: Path) -> tuple[Path, ...]:
    """Where links of a snapshot in the client's cache lead: its repository's blobs, and those repositories share. Elsewhere nowhere."""
    real = Path(os.path.realpath(root))
    repository = real.parent.parent
    if real.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return ()
    return repository / "blobs", repository.parent / "blobs"

"""Stores of tokenised documents: in memory, or on the disk for text that is too long for memory.

Input: documents, one after another, as token ids.
Output: the ids of all of them as one array, and for those on the disk where blocks of them lie, for other processes.

On the disk, two files are only ever appended to: the ids, and the number of ids of each document. `index.json` states up to where both are
synced, with their SHA-256. It is written every half minute and at the end. The next run of a run that was stopped cuts off what the index
does not state, passes over the texts of the documents that are there, and goes on with the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ligo_convert.errors import SourceChanged, VerificationError
from ligo_convert.io.files import do, flat, hold, make_folder, remove_any, reporting, sync_directory, write_file
from ligo_convert.io.sealed import read_sealed, seal

SAVE_EVERY_SECONDS = 30.0

_KIND = "ligo-tokens/1"
_IDS, _LENGTHS, _INDEX = "ids.bin", "documents.bin", "index.json"
_LENGTH = np.dtype("<u4")
_SMALL, _LARGE = np.dtype("<u2"), np.dtype("<u4")
# Bytes that are hashed, or gathered before they are written, at a time.
_PIECE = 1 << 20


def id_dtype(vocabulary: int) -> np.dtype[Any]:
    """Return the dtype of an id on the disk, where all ids are below `vocabulary`."""
    return _SMALL if vocabulary <= 1 << 16 else _LARGE


@dataclass(frozen=True, kw_only=True)
class StoredBlocks:
    """Where blocks of token ids lie on the disk.

    Attributes:
        path: the file of the ids.
        dtype: name of the dtype of an id.
        first: number of the ids before the first block.
        shape: number of blocks, and ids in a block.
    """

    path: Path
    dtype: str
    first: int
    shape: tuple[int, int]

    def map(self) -> np.ndarray:
        """Return the blocks, mapped from the disk, read-only. Raises MachineError if the file cannot be read."""
        dtype = np.dtype(self.dtype)
        with reporting(self.path, "read"):
            return np.asarray(np.memmap(self.path, dtype, "r", offset=self.first * dtype.itemsize, shape=self.shape))


class TokenMemory:
    """Documents as token ids in memory. As a context manager it forgets them.

    Attributes:
        lengths: number of ids of each document.
        finished: True if the text has no further document.
    """

    def __init__(self) -> None:
        self.lengths, self.finished = array("I"), False
        self._documents: list[np.ndarray] = []

    def resume(self, texts: Iterator[str]) -> Iterator[str]:
        return texts

    def add(self, text: str, ids: np.ndarray) -> None:
        self._documents.append(ids)
        self.lengths.append(len(ids))

    def save(self, *, finished: bool) -> None:
        self.finished = finished

    def ids(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.uint32), *self._documents])

    def place(self, first: int, shape: tuple[int, int]) -> StoredBlocks | None:
        return None

    def __enter__(self) -> TokenMemory:
        return self

    def __exit__(self, *error: object) -> None:
        self._documents.clear()


@dataclass(frozen=True, kw_only=True)
class TokenFolder:
    """Where tokenised documents are kept.

    Attributes:
        path: the folder; it is made if it is missing.
        owner: what the tokens depend on, such as a digest of text, tokenizer and seed. The tokens of another owner are discarded.
        warn: receives one line for tokens that are discarded.
    """

    path: Path
    owner: str
    warn: Callable[[str], None]


class TokenFile:
    """Documents as token ids in the files of a folder. As a context manager it saves what was added, and releases the folder.

    Attributes:
        lengths: number of ids of each document.
        finished: True if the text has no further document.
    """

    def __init__(self, folder: TokenFolder, *, vocabulary: int) -> None:
        """Open the files and check them against the index.

        Args:
            folder: where they are.
            vocabulary: all ids are below it; up to 65,536, an id takes two bytes.
        """
        self._folder, self._dtype = folder, id_dtype(vocabulary)
        self._lock: int | None = None
        self._texts = hashlib.sha256()
        make_folder(folder.path)
        self._read()

    def _read(self) -> None:
        """Read the index, and the lengths of the documents. Discard everything if one of the files is not the one that it states."""
        self._ids, self._counts = (_Appended(self._folder.path / name) for name in (_IDS, _LENGTHS))
        self.lengths, self.finished, self._seen = array("I"), False, ""
        self._index: dict[str, Any] | None = None
        self._saved = time.monotonic()
        try:
            index = read_sealed(_KIND, self._folder.path / _INDEX)
            if index is None:
                return
            if index.get("owner") != self._folder.owner or index.get("itemsize") != self._dtype.itemsize:
                raise VerificationError("the tokens of another text, tokenizer or seed", where=_INDEX)
            self._ids.open(index["ids"])
            self._counts.open(index["documents"])
        except VerificationError as error:
            self._folder.warn(
                f"the tokenised text in {self._folder.path.name}: {error.what}; discarded, and made again"
            )
            self._ids, self._counts = (_Appended(self._folder.path / name) for name in (_IDS, _LENGTHS))
            return
        with reporting(self._counts.path, "read"):
            counts = np.fromfile(self._counts.path, _LENGTH, count=self._counts.nbytes // _LENGTH.itemsize)
        self.lengths.frombytes(counts.astype(np.uint32).tobytes())
        self.finished, self._seen, self._index = bool(index["finished"]), str(index["texts"]), index

    def resume(self, texts: Iterator[str]) -> Iterator[str]:
        """Lock the files and return the texts after those of the documents that are there.

        Raises:
            OutputBusy: another process is adding documents.
            SourceChanged: the texts are not those of the documents that are there.
        """
        self._acquire()
        for _ in range(len(self.lengths)):
            text = next(texts, None)
            if text is not None:
                self._hash(text)
        if len(self.lengths) and self._texts.hexdigest() != self._seen:
            raise SourceChanged(
                "the text is not the one whose beginning was tokenised",
                where=self._folder.path,
                hint="remove this folder, and the text is tokenised again",
            )
        return texts

    def add(self, text: str, ids: np.ndarray) -> None:
        """Append the ids of the document after the last one, whose text is `text`."""
        self._hash(text)
        self._ids.write(ids.astype(self._dtype).tobytes())
        self._counts.write(np.array([len(ids)], _LENGTH).tobytes())
        self.lengths.append(len(ids))
        if time.monotonic() - self._saved > SAVE_EVERY_SECONDS:
            self.save()

    def save(self, *, finished: bool = False) -> None:
        """Put everything on the disk, and then the index that states it."""
        self.finished = finished
        index = {
            "owner": self._folder.owner,
            "itemsize": self._dtype.itemsize,
            "ids": self._ids.sync(),
            "documents": self._counts.sync(),
            "texts": self._texts.hexdigest(),
            "finished": finished,
        }
        write_file(self._folder.path / _INDEX, seal(_KIND, index), replace=True)
        self._saved = time.monotonic()

    def ids(self) -> np.ndarray:
        """Return the ids of all saved documents, one after another: uint16 or uint32, mapped from the disk, read-only."""
        count = self._ids.nbytes // self._dtype.itemsize
        if not count:
            return np.empty(0, self._dtype)
        with reporting(self._ids.path, "read"):
            return np.asarray(np.memmap(self._ids.path, self._dtype, "r", shape=(count,)))

    def place(self, first: int, shape: tuple[int, int]) -> StoredBlocks | None:
        """Return where blocks of saved ids lie: the first id, and the number of blocks and of ids in a block."""
        return StoredBlocks(path=self._ids.path, dtype=self._dtype.str, first=first, shape=shape)

    def _hash(self, text: str) -> None:
        data = text.encode()
        self._texts.update(len(data).to_bytes(8, "little") + data)

    def _acquire(self) -> None:
        """Lock the folder, read again what another process may have added meanwhile, and cut off what no index states."""
        path = self._folder.path
        self._lock = hold(path, lambda: os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))
        if self._index is not None and self._index != _index_of(path):
            self._read()
        if self._index is None:
            for name in (_INDEX, _IDS, _LENGTHS):
                remove_any(path / name)
        self._ids.extend()
        self._counts.extend()
        sync_directory(path)

    def __enter__(self) -> TokenFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in (self._ids, self._counts):
            file.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _index_of(folder: Path) -> dict[str, Any] | None:
    """Return the index of a folder; None if there is none, or a damaged one."""
    with contextlib.suppress(VerificationError):
        return read_sealed(_KIND, folder / _INDEX)
    return None


class _Appended:
    """A file that only grows.

    Attributes:
        nbytes: bytes that are written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.nbytes = path, 0
        self._sha256 = hashlib.sha256()
        self._descriptor: int | None = None
        self._pending = bytearray()

    def open(self, stated: Any) -> None:
        """Hash the file as far as `stated` says, the value of an earlier `sync`. Raises VerificationError if it is another file."""
        match stated:
            case {"nbytes": int(nbytes), "sha256": str(sha256)}:
                pass
            case _:
                raise VerificationError("not the index of this file", where=self.path)
        left = nbytes
        try:
            # Opening a FIFO would block; a link may lead anywhere.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as handle:
                while left and (piece := handle.read(min(left, _PIECE))):
                    self._sha256.update(piece)
                    left -= len(piece)
        except OSError as error:
            raise VerificationError(f"{self.path.name} cannot be read ({error.strerror})", where=self.path) from None
        if left or self._sha256.hexdigest() != sha256:
            raise VerificationError(f"{self.path.name} is not the file that the index states", where=self.path)
        self.nbytes = nbytes

    def extend(self) -> None:
        """Open the file for writing, at the end of what it holds."""
        self._descriptor = do("open", self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)
        do("truncate", self.path, self._descriptor, self.nbytes)
        with reporting(self.path, "write"):
            os.lseek(self._descriptor, self.nbytes, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) >= _PIECE:
            self._flush()

    def sync(self) -> dict[str, Any]:
        """Put everything on the disk and return what `open` checks."""
        self._flush()
        if self._descriptor is not None:
            do("fsync", self.path, self._descriptor)
        return {"nbytes": self.nbytes, "sha256": self._sha256.hexdigest()}

    def _flush(self) -> None:
        data = bytes(self._pending)
        self._pending.clear()
        self._sha256.update(data)
        view = flat(data)
        while view:
            count: int = do("write", self.path, self._descriptor, view)
            self.nbytes += count
            view = view[count:]

    def close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

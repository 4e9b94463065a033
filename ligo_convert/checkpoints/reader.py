"""A source checkpoint, from a directory or the Hub: headers when it is opened, one tensor at a time later.

`open_source` takes what a recipe names and returns a `CheckpointReader`: config, tensor table and side files, all checked, on a
pinned revision. `CheckpointReader.read` gives one tensor's bytes by `pread` on descriptors that were opened once (a file that is
cut meanwhile is an error, never a SIGBUS). `CheckpointReader.digest` hashes every file that is used; all bytes handed out before
or after that pass are compared with it by CRC-32, and `CheckpointReader.recheck` ends a conversion by asking whether anything
changed. No code, pickle or template of a checkpoint is ever run.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, Self

from ligo_convert.checkpoints.digests import (
    Digested,
    PartChecksums,
    blocks,
    check_expected,
    fingerprint_of,
    git_blob,
    sha256_of,
)
from ligo_convert.checkpoints.files import (
    CARD,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    TOKENIZER_FILES,
    WEIGHTS,
    Place,
    blob_digest,
    open_inside,
    small_file,
)
from ligo_convert.checkpoints.headers import Header, Index, parse_index, read_at, read_header
from ligo_convert.checkpoints.layout import (
    TEMPLATED,
    SourceFile,
    SourceTensor,
    check_config,
    check_shards,
    is_sharded,
    join_tables,
    stated_license,
    template_warnings,
)
from ligo_convert.checkpoints.tensors import count_elements
from ligo_convert.errors import LigoError, SourceChanged, SourceError
from ligo_convert.io.strict_json import short, strict_json

_KEEP_STILL = "nothing may write to the source while it is converted; restore it and run again"


class DigestMemo(Protocol):
    """Small results by kind and key (`io.cache.ResultCache`)."""

    def get_json(self, kind: str, key: str) -> dict[str, Any] | None: ...

    def set_json(self, kind: str, key: str, value: Mapping[str, Any]) -> None: ...


class Flatten(Protocol):
    """One form of config.json for all libraries. Raises SourceError for an architecture that nobody knows."""

    def __call__(self, config: Mapping[str, object], *, where: str) -> dict[str, object]: ...


class CheckpointReader:
    """A checkpoint: config, tensors, side files. Opened by `open_source`, closed as a context manager.

    Attributes:
        label: the Hub id, or the name of the local directory alone.
        revision: the Hub's commit; None for a directory.
        root: the directory the files are read from.
        stored_config: config.json as plain data, without anything that would run code. config: the same as families read it.
        tensors: every tensor of every weight file, by name.
        files: the weight files.
        tokenizer_files: the names of the tokenizer's (and image processor's) files that are there.
        license: the licence that the card's front matter states; None where it states none.
        warnings: what is odd but no reason to stop.
    """

    def __init__(self, place: Place, *, flatten: Flatten, weights: bool) -> None:
        self.label, self.revision, self.root, self.warnings = place.label, place.revision, place.root, place.warnings
        self._place = place
        self._lock = threading.Lock()
        self._crc32: dict[str, int] = {}
        self._served: dict[str, str] = {}
        self._digested: dict[str, Digested] = {}
        self._descriptors: dict[str, int] = {}
        index = self._index() if is_sharded(place) else None
        side = (CONFIG, GENERATION_CONFIG, INDEX, *TOKENIZER_FILES)
        self._side_files = tuple(name for name in side if name in place.names and (name != INDEX or index is not None))
        place.fetch([*self._side_files, *({CARD} & place.names)])
        where = f"{self.label}/{CONFIG}"
        self.stored_config = check_config(strict_json(self.file_bytes(CONFIG), label=where), label=where)
        self.config = flatten(self.stored_config, where=where)
        self.tokenizer_files = tuple(name for name in TOKENIZER_FILES if name in place.names)
        for name in self.tokenizer_files:
            if name in TEMPLATED:
                self.warnings += template_warnings(self.file_bytes(name), where=self._where(name))
        self.license = stated_license(self.file_bytes(CARD)) if CARD in place.names else None
        shards = sorted(set(index.weight_map.values())) if index else [WEIGHTS]
        check_shards(place, index, shards)
        if weights:
            place.fetch(shards)
        with ExitStack() as stack:
            self._headers = {name: self._open(name, stack) for name in shards}
            self.files = tuple(file for file, _ in self._headers.values())
            self.tensors = join_tables(self._headers, index, label=self.label)
            self._check_total(index)
            self._stack = stack.pop_all()

    def _index(self) -> Index:
        self._place.fetch([INDEX])
        return parse_index(self.file_bytes(INDEX), label=self._where(INDEX))

    def _open(self, name: str, stack: ExitStack) -> tuple[SourceFile, Header]:
        label = f"{self.label}/{name}"
        path = self.root / name
        if not os.path.lexists(path):
            header, size = self._place.header(name)
            return SourceFile(name=name, path=None, size=size, expected=self._place.expected.get(name)), header
        fd = open_inside(self.root, name, label=label)
        stack.callback(os.close, fd)
        self._descriptors[name] = fd
        expected = self._place.expected.get(name) or blob_digest(path)
        header = read_header(fd, label=label)
        return SourceFile(name=name, path=path, size=os.fstat(fd).st_size, expected=expected), header

    def _check_total(self, index: Index | None) -> None:
        total = sum(tensor.spec.nbytes for tensor in self.tensors.values())
        if index is not None and index.total_size is not None and index.total_size != total:
            self.warnings.append(
                f"{self.label}/{INDEX}: total_size is {index.total_size}, the tensors take {total} bytes"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def side_files(self) -> tuple[str, ...]:
        """The names of the small files beside the weights that belong to the model, those of the tokenizer included."""
        return self._side_files

    def close(self) -> None:
        """Close the weight files."""
        self._stack.close()
        self._descriptors.clear()

    def read(self, name: str, out: bytearray | memoryview | None = None) -> memoryview:
        """The bytes of one tensor, little-endian, row by row.

        Args:
            name: a key of `tensors`.
            out: a writable buffer of exactly the tensor's bytes to fill; None takes a new one.

        Raises:
            SourceChanged: the file is shorter, or the bytes differ from those of the digest pass or of an earlier read.
            SourceError: a BOOL holds something other than 0 and 1.
        """
        tensor = self.tensors[name]
        view = memoryview(bytearray(tensor.spec.nbytes) if out is None else out).cast("B")
        if len(view) != tensor.spec.nbytes:
            raise ValueError(f"{name} has {tensor.spec.nbytes} bytes, the buffer {len(view)}")
        read_at(
            self._descriptor(tensor.file.name), view, tensor.start, label=f"{self._where(tensor.file.name)}: {name}"
        )
        self._compare(tensor, zlib.crc32(view))
        if tensor.spec.dtype == "BOOL":
            wrong = count_elements(view, "u1", lambda block: block > 1)
            if wrong:
                raise SourceError(
                    f"{wrong} bytes of a BOOL tensor are neither 0 nor 1",
                    where=f"{self._where(tensor.file.name)}: {short(name)}",
                )
        return view

    def digest(
        self, on_bytes: Callable[[int], None] | None = None, *, memo: DigestMemo | None = None
    ) -> dict[str, str]:
        """SHA-256 of every file that is used, by name: weight files, index, configs, tokenizer files.

        One sequential pass; it may run in a thread while others `read`. A second call returns what the first found.

        Args:
            on_bytes: called with the number of bytes after each block of a weight file.
            memo: digests of weight files by what changes when they are written to, with a checksum of every tensor: a file
                that is known is not read again here, and every tensor that is read is held against its checksum.

        Raises:
            SourceChanged: a file is not the one its origin names, or not the one that was read before.
        """
        if not self._digested:
            digested = {file.name: self._digest_known(file, on_bytes, memo) for file in self.files}
            for name in self._side_files:
                fingerprint = self._current(name)
                self.file_bytes(name)
                digested[name] = Digested(sha256=self._served[name], fingerprint=fingerprint)
            self._digested = digested
        return {name: digested.sha256 for name, digested in self._digested.items()}

    def recheck(self) -> None:
        """Ask, after `digest`, whether every file still is what was digested.

        Raises:
            SourceChanged: a file is gone, was replaced, or holds other bytes. A new date alone is no change.
        """
        if not self._digested:
            raise LigoError("recheck() was called before digest()", where=self.label)
        for name, digested in self._digested.items():
            self._recheck(name, digested)

    def file_bytes(self, name: str) -> bytes:
        """A side file: one of `tokenizer_files`, config, generation config, index or card.

        Raises:
            SourceError: too large, not a regular file, or a link that leaves the directory.
            SourceChanged: not the bytes its origin names, or not those of an earlier call.
        """
        where = self._where(name)
        if name not in self._place.names:
            raise SourceError("no such file", where=where)
        data = small_file(self._place, name)
        sha256 = hashlib.sha256(data).hexdigest()
        with self._lock:
            before = self._served.setdefault(name, sha256)
        if before != sha256:
            raise SourceChanged(
                "the file changed since it was first read",
                where=where,
                expected=before,
                found=sha256,
                hint=_KEEP_STILL,
            )
        return data

    def _where(self, file: str) -> str:
        return f"{self.label}/{file}"

    def _descriptor(self, file: str) -> int:
        if file not in self._descriptors:
            raise LigoError("the source is closed, or was opened for planning without weights", where=self._where(file))
        return self._descriptors[file]

    def _compare(self, tensor: SourceTensor, crc32: int) -> None:
        """Whoever sees a tensor first, `read` or `digest`, says what it holds; everyone later must see the same."""
        with self._lock:
            before = self._crc32.setdefault(tensor.spec.name, crc32)
            digested = self._digested.get(tensor.file.name)
        if before != crc32:
            raise SourceChanged(
                "the tensor's bytes changed since they were first read",
                where=f"{self._where(tensor.file.name)}: {short(tensor.spec.name)}",
                expected=f"CRC-32 {before:08x}" + (f", in a file of SHA-256 {digested.sha256}" if digested else ""),
                found=f"CRC-32 {crc32:08x}",
                hint=_KEEP_STILL,
            )

    def _digest_known(
        self, file: SourceFile, on_bytes: Callable[[int], None] | None, memo: DigestMemo | None
    ) -> Digested:
        """As `_digest_weights`, from the memo where it knows the file as it is now."""
        fingerprint, (_, header) = fingerprint_of(os.fstat(self._descriptor(file.name))), self._headers[file.name]
        # The Hub's digest of a small file is git's, which no memo holds.
        if memo is None or (file.expected is not None and len(file.expected) != 64):
            return self._digest_weights(file, on_bytes)
        key = hashlib.sha256(repr(fingerprint).encode()).hexdigest()
        known = memo.get_json("digest", key)
        if known is not None and known.get("header") == header.crc32 and set(known["tensors"]) == set(header.tensors):
            for name in header.tensors:
                self._compare(self.tensors[name], known["tensors"][name])
            digested = Digested(sha256=known["sha256"], fingerprint=fingerprint)
            check_expected(
                file.expected, digested.sha256, "", where=self._where(file.name), again=self._again(file.name)
            )
            return digested
        digested = self._digest_weights(file, on_bytes)
        if digested.fingerprint == fingerprint:
            with self._lock:
                tensors = {name: self._crc32[name] for name in header.tensors}
            memo.set_json("digest", key, {"sha256": digested.sha256, "header": header.crc32, "tensors": tensors})
        return digested

    def _digest_weights(self, file: SourceFile, on_bytes: Callable[[int], None] | None) -> Digested:
        fd, (_, header) = self._descriptor(file.name), self._headers[file.name]
        # Taken before the pass, so that a change during it is seen by `recheck`.
        fingerprint = fingerprint_of(os.fstat(fd))
        if fingerprint[0] != file.size:
            raise SourceChanged(
                "the file's size changed since it was opened",
                where=self._where(file.name),
                expected=f"{file.size} bytes",
                found=f"{fingerprint[0]} bytes",
                hint=_KEEP_STILL,
            )
        sha256, blob = hashlib.sha256(), git_blob(file.size)
        parts = PartChecksums([(None, header.nbytes), *((name, tensor.end) for name, tensor in header.tensors.items())])
        for block in blocks(fd, file.size, label=self._where(file.name)):
            sha256.update(block)
            if file.expected is not None and len(file.expected) != 64:
                blob.update(block)
            for name, crc32 in parts.update(block):
                self._passed(file, header, name, crc32)
            if on_bytes is not None:
                on_bytes(len(block))
        digested = Digested(sha256=sha256.hexdigest(), fingerprint=fingerprint)
        check_expected(
            file.expected, digested.sha256, blob.hexdigest(), where=self._where(file.name), again=self._again(file.name)
        )
        return digested

    def _passed(self, file: SourceFile, header: Header, name: str | None, crc32: int) -> None:
        if name is not None:
            self._compare(self.tensors[name], crc32)
        elif crc32 != header.crc32:
            raise SourceChanged(
                "the header changed since the file was opened", where=self._where(file.name), hint=_KEEP_STILL
            )

    def _again(self, name: str) -> str:
        if self.revision is None:
            return "restore the file and run again"
        return f"fetch it again: hf download {self.label} {name} --revision {self.revision} --force-download"

    def _current(self, name: str) -> tuple[int, ...]:
        try:
            return fingerprint_of((self.root / name).stat())
        except OSError:
            raise SourceChanged("the file is gone", where=self._where(name), hint=_KEEP_STILL) from None

    def _recheck(self, name: str, digested: Digested) -> None:
        where, current = self._where(name), self._current(name)
        fd = self._descriptors.get(name)
        same = current == digested.fingerprint and (fd is None or fingerprint_of(os.fstat(fd)) == current)
        if same:
            return
        again = open_inside(self.root, name, label=where)
        try:
            found = [sha256_of(one, label=where) for one in (again, fd) if one is not None]
        finally:
            os.close(again)
        for sha256 in found:
            if sha256 != digested.sha256:
                raise SourceChanged(
                    "the file changed while it was converted",
                    where=where,
                    expected=f"SHA-256 {digested.sha256}",
                    found=f"SHA-256 {sha256}",
                    hint=_KEEP_STILL,
                )

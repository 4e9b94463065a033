"""Read a source checkpoint from a directory or the Hub, one tensor at a time.

`hub.resolve.open_source` opens a `CheckpointReader`: config, tensor table and small files, all checked, at a pinned revision.

- `read` returns the bytes of one tensor by `pread` on an open descriptor. A file truncated meanwhile raises an error, never a SIGBUS.
- `digest` hashes every file that is used. Bytes read before or after it are compared by CRC-32 with those it hashed.
- `recheck` verifies at the end of a conversion that no file changed.

No code, pickle or template of a checkpoint is ever run.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ligo_convert.checkpoints.digests import (
    Digested,
    PartChecksums,
    blocks,
    check_expected,
    fingerprint_of,
    git_blob,
    sha256_of,
)
from ligo_convert.checkpoints.files import KEEP_UNCHANGED, Place, open_inside
from ligo_convert.checkpoints.headers import read_at
from ligo_convert.checkpoints.layout import SourceFile, SourceTensor
from ligo_convert.checkpoints.opening import Flatten, open_checkpoint
from ligo_convert.checkpoints.tensors import count_elements
from ligo_convert.errors import LigoError, SourceChanged, SourceError
from ligo_convert.io.strict_json import short


class CheckpointReader:
    """Reads one checkpoint. Use it as a context manager: leaving it closes the weight files.

    Attributes:
        label: the Hub id, or the name of the local directory without its parents.
        revision: the commit on the Hub; None for a directory.
        root: the directory that the files are read from.
        stored_config: config.json as plain data; holds no key that makes a library run code.
        config: the same config in the flat form that families read.
        tensors: all tensors of all weight files by name.
        files: the weight files.
        side_files: names of the small files that belong to the model, tokenizer files included.
        tokenizer_files: names of the tokenizer and image processor files.
        model_files: the files beside the weights, sorted into those that are carried and those that are left behind.
        license: licence in the front matter of the model card; None if it states none.
        warnings: oddities that do not prevent the use of the checkpoint.
    """

    def __init__(self, place: Place, *, flatten: Flatten, weights: bool) -> None:
        opened = open_checkpoint(place, flatten=flatten, weights=weights)
        self.label, self.revision, self.root, self.warnings = (
            opened.label,
            opened.revision,
            opened.root,
            opened.warnings,
        )
        self.stored_config, self.config, self.license = opened.stored_config, opened.config, opened.license
        self.side_files, self.tokenizer_files = opened.side_files, opened.tokenizer_files
        self.model_files = opened.model_files
        self.tensors, self.files = opened.tensors, tuple(opened.files.values())
        self._small_files = opened.small_files
        self._descriptors = opened.descriptors
        self._resources = opened.resources
        self._lock = threading.Lock()
        self._crc32: dict[str, int] = {}
        self._digested: dict[str, Digested] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the weight files."""
        self._resources.close()
        self._descriptors.clear()

    def read(self, name: str, out: bytearray | memoryview | None = None) -> memoryview:
        """Return the bytes of one tensor, little-endian, in row-major order.

        Args:
            name: a key of `tensors`.
            out: a writable buffer of exactly the size of the tensor; None allocates one.

        Raises:
            SourceChanged: the file became shorter, or the bytes differ from those of the digest pass or an earlier read.
            SourceError: a BOOL tensor holds a byte other than 0 and 1.
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

    def digest(self, on_bytes: Callable[[int], None] | None = None) -> dict[str, str]:
        """Return the SHA-256 of every file that is used, by name: weight files, index, configs, tokenizer files.

        Reads each file once, in order. May run in a thread while other threads call `read`. A second call returns the same digests.

        Args:
            on_bytes: called with the number of bytes after each block of a weight file.

        Raises:
            SourceChanged: a file differs from the digest that its origin lists, or from an earlier read.
        """
        if not self._digested:
            digested = {file.name: self._digest_weights(file, on_bytes) for file in self.files}
            for name in self.side_files:
                fingerprint = self._current(name)
                self.file_bytes(name)
                digested[name] = Digested(sha256=self._small_files.sha256(name), fingerprint=fingerprint)
            self._digested = digested
        return {name: digested.sha256 for name, digested in self._digested.items()}

    def recheck(self) -> None:
        """Verify that every file still has the bytes that `digest` hashed.

        Raises:
            SourceChanged: a file was removed or holds other bytes. A new date alone is not a change.
        """
        if not self._digested:
            raise LigoError("recheck() was called before digest()", where=self.label)
        for name, digested in self._digested.items():
            self._recheck(name, digested)

    def file_bytes(self, name: str) -> bytes:
        """Return the bytes of a small file: one of `side_files`, or the model card. Raises as `SmallFiles.read`."""
        return self._small_files.read(name)

    def _where(self, file: str) -> str:
        return f"{self.label}/{file}"

    def _descriptor(self, file: str) -> int:
        if file not in self._descriptors:
            raise LigoError("the source is closed, or was opened for planning without weights", where=self._where(file))
        return self._descriptors[file]

    def _compare(self, tensor: SourceTensor, crc32: int) -> None:
        """Compare a tensor's CRC-32 with the first one seen, by `read` or `digest`. Raises SourceChanged if they differ."""
        with self._lock:
            before = self._crc32.setdefault(tensor.spec.name, crc32)
            digested = self._digested.get(tensor.file.name)
        if before != crc32:
            raise SourceChanged(
                "the tensor's bytes changed since they were first read",
                where=f"{self._where(tensor.file.name)}: {short(tensor.spec.name)}",
                expected=f"CRC-32 {before:08x}" + (f", in a file of SHA-256 {digested.sha256}" if digested else ""),
                found=f"CRC-32 {crc32:08x}",
                hint=KEEP_UNCHANGED,
            )

    def _digest_weights(self, file: SourceFile, on_bytes: Callable[[int], None] | None) -> Digested:
        """Hash a weight file in one pass and compare header and tensors with what was read before."""
        fd, header = self._descriptor(file.name), file.header
        # Taken before the pass, so that `recheck` notices a change during the pass.
        fingerprint = fingerprint_of(os.fstat(fd))
        if fingerprint[0] != file.size:
            raise SourceChanged(
                "the file's size changed since it was opened",
                where=self._where(file.name),
                expected=f"{file.size} bytes",
                found=f"{fingerprint[0]} bytes",
                hint=KEEP_UNCHANGED,
            )
        sha256, blob = hashlib.sha256(), git_blob(file.size)
        parts = PartChecksums([(None, header.nbytes), *((name, tensor.end) for name, tensor in header.tensors.items())])
        for block in blocks(fd, file.size, label=self._where(file.name)):
            sha256.update(block)
            if file.expected is not None and len(file.expected) != 64:
                blob.update(block)
            for name, crc32 in parts.update(block):
                self._check_part(file, name, crc32)
            if on_bytes is not None:
                on_bytes(len(block))
        digested = Digested(sha256=sha256.hexdigest(), fingerprint=fingerprint)
        check_expected(
            file.expected,
            digested.sha256,
            blob.hexdigest(),
            where=self._where(file.name),
            again=self._refetch_hint(file.name),
        )
        return digested

    def _check_part(self, file: SourceFile, name: str | None, crc32: int) -> None:
        """Compare the CRC-32 of a tensor, or of the header (`name` is None), with what was read before."""
        if name is not None:
            self._compare(self.tensors[name], crc32)
        elif crc32 != file.header.crc32:
            raise SourceChanged(
                "the header changed since the file was opened", where=self._where(file.name), hint=KEEP_UNCHANGED
            )

    def _refetch_hint(self, name: str) -> str:
        if self.revision is None:
            return "restore the file and run again"
        return f"fetch it again: hf download {self.label} {name} --revision {self.revision} --force-download"

    def _current(self, name: str) -> tuple[int, ...]:
        try:
            return fingerprint_of((self.root / name).stat())
        except OSError:
            raise SourceChanged("the file was removed", where=self._where(name), hint=KEEP_UNCHANGED) from None

    def _recheck(self, name: str, digested: Digested) -> None:
        where, current = self._where(name), self._current(name)
        fd = self._descriptors.get(name)
        same = current == digested.fingerprint and (fd is None or fingerprint_of(os.fstat(fd)) == current)
        if same:
            return
        reopened = open_inside(self.root, name, label=where)
        try:
            digests = [sha256_of(descriptor, label=where) for descriptor in (reopened, fd) if descriptor is not None]
        finally:
            os.close(reopened)
        for sha256 in digests:
            if sha256 != digested.sha256:
                raise SourceChanged(
                    "the file changed while it was converted",
                    where=where,
                    expected=f"SHA-256 {digested.sha256}",
                    found=f"SHA-256 {sha256}",
                    hint=KEEP_UNCHANGED,
                )

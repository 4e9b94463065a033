"""Safetensors files, written one tensor at a time.

In: the specs of all tensors, so that file names, sizes and headers stand before the first byte; then their data in the
same order. Out: finished files in a staging directory, with their SHA-256, taken while writing. A run that was stopped
goes on after the last whole file. Memory in use does not grow with the files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.errors import VerificationError
from ligo_convert.io.files import Handle, flat, reporting
from ligo_convert.io.staging import WORK, Staging

if TYPE_CHECKING:
    from typing_extensions import Buffer

INDEX = "model.safetensors.index.json"

JOURNAL = f"{WORK}/shards.jsonl"

CHUNK = 8 * 2**20


# --- what a file looks like -------------------------------------------------------------------------------------------


def _header(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Length and header of a safetensors file that holds `tensors` one after another."""
    entries: dict[str, object] = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}}
    offset = 0
    for tensor in tensors:
        if tensor.name in entries:
            raise AssertionError(f"two tensors named {tensor.name!r}")
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def safetensors_pieces(tensors: Sequence[tuple[TensorSpec, Buffer]], metadata: Mapping[str, str]) -> Iterator[Buffer]:
    """A whole safetensors file in pieces that are not copied: its header, then the data of each tensor.

    The same tensors and metadata give the same bytes: metadata stands in sorted order.
    """
    for spec, data in tensors:
        _require_size(spec, data)

    def pieces() -> Iterator[Buffer]:
        yield _header([spec for spec, _ in tensors], metadata)
        for _, data in tensors:
            yield data

    return pieces()


def safetensors_bytes(tensors: Sequence[tuple[TensorSpec, Buffer]], metadata: Mapping[str, str]) -> bytes:
    """A whole safetensors file, for small ones; see `safetensors_pieces`."""
    return b"".join(bytes(flat(piece)) for piece in safetensors_pieces(tensors, metadata))


def _require_size(spec: TensorSpec, data: Buffer) -> None:
    found = memoryview(data).nbytes
    if found != spec.nbytes:
        raise AssertionError(f"{spec.name}: {spec.dtype} {spec.shape} is {spec.nbytes} bytes, not {found}")


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file to be written: its name, its tensors in order, and its header with the eight bytes of length before."""

    filename: str
    tensors: tuple[TensorSpec, ...]
    header: bytes

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """All files of a model. `total_size` counts the bytes of the tensors alone."""

    shards: tuple[Shard, ...]
    total_size: int

    @property
    def nbytes(self) -> int:
        """Size of all files but the index."""
        return sum(shard.nbytes for shard in self.shards)

    def index(self) -> bytes | None:
        """The content of `model.safetensors.index.json`; None for a model of one file."""
        if len(self.shards) == 1:
            return None
        files = {tensor.name: shard.filename for shard in self.shards for tensor in shard.tensors}
        parameters = sum(tensor.elements for shard in self.shards for tensor in shard.tensors)
        content = {
            "metadata": {"total_parameters": parameters, "total_size": self.total_size},
            "weight_map": dict(sorted(files.items())),
        }
        return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


def plan_shards(specs: Sequence[TensorSpec], max_shard_size: int) -> ShardPlan:
    """Cut `specs`, in the order in which their data will come, into files of at most `max_shard_size` bytes of tensors.

    A tensor larger than that has a file for itself.
    """
    if not specs:
        raise AssertionError("a model without tensors")
    twice = len(specs) - len({spec.name for spec in specs})
    if twice:
        raise AssertionError(f"{twice} tensors have the name of another one")
    groups: list[list[TensorSpec]] = []
    room = -1
    for spec in specs:
        if spec.nbytes > room:
            groups.append([])
            room = max(max_shard_size, spec.nbytes)
        groups[-1].append(spec)
        room -= spec.nbytes
    count = len(groups)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    return ShardPlan(
        shards=tuple(
            Shard(filename=name, tensors=tuple(group), header=_header(group, {"format": "pt"}))
            for name, group in zip(names if count > 1 else ["model.safetensors"], groups, strict=True)
        ),
        total_size=sum(spec.nbytes for spec in specs),
    )


# --- the writer -------------------------------------------------------------------------------------------------------


class Writer:
    """Writes the files of `plan` into `staging`, tensor by tensor, in the order of the plan.

    Each file shows under its name once it is whole and on the disk; the journal then gets a line with its digest. As a
    context manager it closes, or drops the file in progress on an exception.

    Args:
        on_bytes: called with the number of bytes just written; files that an earlier run finished are not counted.

    Attributes:
        done: names of the files that an earlier, stopped run finished, by its journal and by their bytes, read again.
    """

    def __init__(self, staging: Staging, plan: ShardPlan, *, on_bytes: Callable[[int], None] | None = None) -> None:
        self._staging, self._plan, self._on_bytes = staging, plan, on_bytes
        self._digests = _finished(staging, plan)
        self.done = frozenset(self._digests)
        self._remove_strangers()
        self._queue = [
            (shard, spec) for shard in plan.shards if shard.filename not in self.done for spec in shard.tensors
        ]
        self._position = 0
        self._handle: Handle | None = None
        self._hash = hashlib.sha256()
        self._broken = self._closed = False
        self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest")

    def pending(self) -> Iterator[TensorSpec]:
        """The tensors that are still to be put, in order, as of this call; `put` while iterating is what it is for."""
        return iter([spec for _, spec in self._queue[self._position :]])

    def put(self, name: str, data: Buffer) -> None:
        """Write one tensor: the next pending one, as a C-contiguous buffer of exactly its bytes.

        Raises:
            MachineError: the machine refuses; the writer is of no more use then.
        """
        if self._broken or self._closed:
            raise AssertionError(f"{name}: this writer is closed, or has failed")
        if self._position == len(self._queue):
            raise AssertionError(f"{name}: every tensor has been written")
        shard, spec = self._queue[self._position]
        if name != spec.name:
            raise AssertionError(f"{name} was put where {spec.name} is next")
        _require_size(spec, data)
        try:
            if self._handle is None:
                self._handle = self._staging.create(shard.filename, nbytes=shard.nbytes)
                self._hash = hashlib.sha256()
                self._write(shard.header)
            self._write(data)
            self._position += 1
            if spec is shard.tensors[-1]:
                self._finish(shard)
        except BaseException:
            self._abort()
            raise

    def _write(self, data: Buffer) -> None:
        assert self._handle is not None
        view = flat(data)
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            # Neither holds the interpreter's lock: the digest is taken while the kernel copies.
            digest = self._beside.submit(self._hash.update, chunk)
            try:
                self._handle.write(chunk)
            finally:
                digest.result()
            if self._on_bytes is not None:
                self._on_bytes(len(chunk))

    def _finish(self, shard: Shard) -> None:
        assert self._handle is not None
        assert self._handle.written == shard.nbytes
        self._handle.close()
        self._handle = None
        digest = self._hash.hexdigest()
        entry = {"file": shard.filename, "sha256": digest, "nbytes": shard.nbytes}
        self._staging.append_line(JOURNAL, json.dumps(entry))
        self._digests[shard.filename] = digest

    def close(self) -> dict[str, str]:
        """Write the index, if there is one; return the SHA-256 of every weight file by name, in the plan's order.

        Raises:
            AssertionError: tensors are missing.
            MachineError: the machine refuses.
        """
        if self._broken:
            raise AssertionError("this writer has failed")
        missing = [spec.name for _, spec in self._queue[self._position :]]
        if missing:
            self._abort()
            raise AssertionError(f"{len(missing)} tensors were never put: {', '.join(missing[:3])}")
        if not self._closed:
            index = self._plan.index()
            if index is not None:
                self._staging.write_bytes(INDEX, index)
            self._closed = True
            self._beside.shutdown()
        return {shard.filename: self._digests[shard.filename] for shard in self._plan.shards}

    def _remove_strangers(self) -> None:
        """Remove weight files that are not of this plan: loaders would take them for a part of the model."""
        ours = {shard.filename for shard in self._plan.shards} | ({INDEX} if self._plan.index() else set())
        for name in self._staging.files():
            if (
                name.startswith("model")
                and name.endswith((".safetensors", ".safetensors.index.json"))
                and name not in ours
            ):
                self._staging.remove(name)

    def _abort(self) -> None:
        self._broken = True
        self._beside.shutdown()
        if self._handle is not None:
            handle, self._handle = self._handle, None
            handle.abort()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._abort()


def _finished(staging: Staging, plan: ShardPlan) -> dict[str, str]:
    """Digests of the files that the journal calls whole and whose bytes, read again, say the same."""
    planned = {shard.filename: shard for shard in plan.shards}
    journal: dict[str, str] = {}
    for line in staging.read_lines(JOURNAL):
        try:
            entry = json.loads(line)
            name, digest, nbytes = entry["file"], entry["sha256"], entry["nbytes"]
        except (ValueError, KeyError, TypeError):
            continue  # a damaged line vouches for nothing: its file is written again
        if name in planned and nbytes == planned[name].nbytes:
            journal[name] = digest
    return {name: digest for name, digest in journal.items() if _holds(staging.path / name, planned[name], digest)}


def _holds(path: Path, shard: Shard, digest: str) -> bool:
    if not path.is_file() or path.stat().st_size != shard.nbytes or rehash(path) != digest:
        return False
    with reporting(path, "read"), path.open("rb") as file:
        return file.read(len(shard.header)) == shard.header


def rehash(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits, read front to back, never mapped.

    Raises:
        VerificationError: there is no such file, or it is no regular file.
        MachineError: it cannot be read.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with reporting(path, "read"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not make us wait
        except FileNotFoundError:
            raise VerificationError("the file is missing", where=path) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise VerificationError("not a regular file", where=path)
            with io.FileIO(descriptor, closefd=False) as file:
                while count := file.readinto(buffer):
                    digest.update(buffer[:count])
        finally:
            os.close(descriptor)
    return digest.hexdigest()

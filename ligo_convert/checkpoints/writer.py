"""Write safetensors files one tensor at a time.

Input: the specs of all tensors, which fix file names, sizes and headers before the first write; then the data of the
    tensors in the same order.
Output: complete files in a staging directory, and their SHA-256 digests, computed while writing.

A stopped run resumes after the last complete file. Memory use does not grow with the size of the files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.errors import VerificationError
from ligo_convert.io.files import flat, reporting
from ligo_convert.io.staging import StagedFile, Staging

if TYPE_CHECKING:
    from typing_extensions import Buffer

INDEX = "model.safetensors.index.json"

CHUNK = 8 * 2**20


# --- file format ------------------------------------------------------------------------------------------------------


def _header(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Return length field and header of a safetensors file that holds `tensors` in this order, without gaps."""
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
    """Return an iterator over the parts of a safetensors file: its header, then the data of each tensor, uncopied.

    Equal tensors and metadata give equal bytes, since metadata are sorted by key.
    """
    for spec, data in tensors:
        _require_size(spec, data)

    def pieces() -> Iterator[Buffer]:
        yield _header([spec for spec, _ in tensors], metadata)
        for _, data in tensors:
            yield data

    return pieces()


def safetensors_bytes(tensors: Sequence[tuple[TensorSpec, Buffer]], metadata: Mapping[str, str]) -> bytes:
    """Return a whole safetensors file in memory. Use this for small files only; see `safetensors_pieces`."""
    return b"".join(bytes(flat(piece)) for piece in safetensors_pieces(tensors, metadata))


def _require_size(spec: TensorSpec, data: Buffer) -> None:
    found = memoryview(data).nbytes
    if found != spec.nbytes:
        raise AssertionError(f"{spec.name}: {spec.dtype} {spec.shape} is {spec.nbytes} bytes, not {found}")


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file to write.

    Attributes:
        filename: name of the file.
        tensors: its tensors, in the order of their data.
        header: its 8-byte length field and header.
    """

    filename: str
    tensors: tuple[TensorSpec, ...]
    header: bytes

    @property
    def nbytes(self) -> int:
        """Return the size of the whole file in bytes."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """All weight files of a model.

    Attributes:
        shards: the files, in the order in which they are written.
        total_size: bytes of all tensors, without headers.
    """

    shards: tuple[Shard, ...]
    total_size: int

    @property
    def nbytes(self) -> int:
        """Return the size of all files except the index, in bytes."""
        return sum(shard.nbytes for shard in self.shards)

    def index(self) -> bytes | None:
        """Return the content of `model.safetensors.index.json`, or None for a model in one file."""
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
    """Distribute tensors over files.

    Args:
        specs: the tensors, in the order in which their data will be written.
        max_shard_size: bytes of tensors per file at most. A larger tensor gets its own file.
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
    """Write the files of a plan into a staging directory, tensor by tensor, in the order of the plan.

    Each file appears under its name when it is complete and synced to disk; the journal of the staging directory then lists its digest.
    At the end of a `with` block the writer closes; on an exception it discards the unfinished file.

    Args:
        staging: the staging directory.
        plan: the files to write.
        on_bytes: called with the number of bytes of each write. Files that an earlier run finished do not count.

    Attributes:
        done: names of the files that an earlier, stopped run finished: `Staging` has read them again, and they match its journal.
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
        self._handle: StagedFile | None = None
        self._broken = self._closed = False

    def pending(self) -> Iterator[TensorSpec]:
        """Iterate over the tensors that were not yet written at the time of this call. Callers may `put` while iterating."""
        return iter([spec for _, spec in self._queue[self._position :]])

    def put(self, name: str, data: Buffer) -> None:
        """Write the next pending tensor.

        Args:
            name: name of the tensor.
            data: its bytes, as a C-contiguous buffer of exactly its size.

        Raises:
            AssertionError: the tensor is not the next one, its size is wrong, or the writer has closed or failed.
            MachineError: the file cannot be written. The writer cannot be used after this error.
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
            self._handle.write(chunk)
            if self._on_bytes is not None:
                self._on_bytes(len(chunk))

    def _finish(self, shard: Shard) -> None:
        assert self._handle is not None
        assert self._handle.written == shard.nbytes
        self._handle.close()
        self._digests[shard.filename] = self._handle.sha256
        self._handle = None

    def close(self) -> dict[str, str]:
        """Write the index of a model in several files. Return the SHA-256 of each weight file by name, in plan order.

        Raises:
            AssertionError: tensors are missing, or the writer has failed.
            MachineError: the index cannot be written.
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
        return {shard.filename: self._digests[shard.filename] for shard in self._plan.shards}

    def _remove_strangers(self) -> None:
        """Remove weight files that are not in the plan. Model loaders would read them as part of the model."""
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
    """Return the digests of the planned files that an earlier run has finished."""
    finished = {}
    for shard in plan.shards:
        digest, path = staging.digest(shard.filename), staging.path / shard.filename
        if digest is None:
            continue
        with reporting(path, "read"), path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == shard.nbytes and file.read(len(shard.header)) == shard.header:
                finished[shard.filename] = digest
    return finished


def rehash(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits. The file is read in order and never mapped into memory.

    Raises:
        VerificationError: the file does not exist or is not a regular file.
        MachineError: the file cannot be read.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with reporting(path, "read"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without O_NONBLOCK, opening a FIFO would block
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

"""Read and write checkpoints of torch.distributed.checkpoint: a directory of shards with a pickled table, `.metadata`.

Input: a directory. Output: the whole content as nested dictionaries; or the reverse. torch's own reader unpickles the table and every value
that is no tensor without limits. Here the table may name only its own classes, and values are read with `weights_only=True`. Reading still
belongs into the confined process (`pickle_child`).
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

# Module -> the names that a table may hold.
_NAMES: dict[str, tuple[str, ...]] = {
    "torch.distributed.checkpoint.metadata": (
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch": (
        *("Size", "float64", "float32", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool", "strided"),
    ),
    "torch.serialization": ("_get_layout",),
    "collections": ("OrderedDict",),
}


class _TableUnpickler(pickle.Unpickler):
    """Builds the objects of a table, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name.endswith("Path"):
            return PurePosixPath  # where the checkpoint was written; it is not used
        if name not in _NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed in a table of shards")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        with Path(self.path, ".metadata").open("rb") as table:
            found = _TableUnpickler(table).load()
        if not isinstance(found, metadata.Metadata):
            raise pickle.UnpicklingError("the table of shards is something else")
        for shard in (found.storage_data or {}).values():
            if Path(shard.relative_path).name != shard.relative_path or not shard.relative_path.endswith(".distcp"):
                raise pickle.UnpicklingError("the table of shards names a file that is no shard of its directory")
        for name, entry in found.state_dict_metadata.items():
            if isinstance(entry, metadata.TensorStorageMetadata) and not _is_whole(entry):
                raise pickle.UnpicklingError(f"the shards do not hold every value of {name!r:.200} once")
        found.storage_meta = metadata.StorageMeta()
        return found


def _is_whole(entry: metadata.TensorStorageMetadata) -> bool:
    """Return True if the chunks of a tensor fill it and do not overlap. torch leaves what no chunk fills as it finds it in memory."""
    chunks = [chunk for chunk in entry.chunks if math.prod(chunk.sizes)]
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(entry.size):
        return False
    if not entry.size or not chunks:
        return True
    begin = np.array([list(chunk.offsets) for chunk in chunks], dtype=np.int64)
    end = begin + np.array([list(chunk.sizes) for chunk in chunks], dtype=np.int64)
    if begin.min() < 0 or (end > np.array(list(entry.size))).any():
        return False
    met = np.ones((len(chunks), len(chunks)), dtype=bool)
    for along in range(begin.shape[1]):
        met &= (begin[:, None, along] < end[None, :, along]) & (begin[None, :, along] < end[:, None, along])
    return bool(met.sum() == len(chunks))


class _Planner(_EmptyStateDictLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = io.BytesIO()
        # torch reads these bytes again, without limits; they are its own then.
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


class _Writer(FileSystemWriter):
    def storage_meta(self) -> metadata.StorageMeta:
        """Return nothing: the path and the random number in it would be those of this machine and run."""
        return metadata.StorageMeta()


def read_sharded(directory: Path) -> dict[str, Any]:
    """Return the content of a sharded checkpoint, every tensor whole.

    Raises:
        ValueError: it is damaged, or holds more than data.
        UnpicklingError: its table is.
    """
    content: dict[str, Any] = {}
    reader = _Reader(directory)
    reader.read_metadata()  # torch tells of a table that is refused as of one that is missing
    try:
        _load_state_dict(content, storage_reader=reader, planner=_Planner(), no_dist=True)  # type: ignore[no-untyped-call]
    except CheckpointException as error:
        # It is a BaseException, and its message a traceback.
        raise ValueError("; ".join(str(failure[0]) for failure in error.failures.values())) from None
    return content


def write_sharded(content: dict[str, Any], directory: Path) -> None:
    """Write a sharded checkpoint of one shard. The same content gives the same bytes."""
    with warnings.catch_warnings():
        # One process is what is meant.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save(content, storage_writer=_Writer(directory, single_file_per_rank=True, thread_count=1), no_dist=True)

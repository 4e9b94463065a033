"""Read small safetensors files that ligo-convert writes, such as operators and training states.

Input: paths of files.
Output: arrays and metadata, checked as strictly as those of a source.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ligo_convert.checkpoints.headers import Header, read_at, read_header
from ligo_convert.errors import SourceError
from ligo_convert.io.files import reporting
from ligo_convert.io.strict_json import short

_NUMPY = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "U8": "u1"}


def open_file(path: Path) -> int:
    if not path.is_file():
        raise SourceError("no such file", where=path)
    with reporting(path, "read"):
        return os.open(path, os.O_RDONLY)


def tensor_bytes(descriptor: int, header: Header, name: str, label: str) -> bytearray:
    tensor = header.tensors[name]
    data = bytearray(tensor.end - tensor.start)
    read_at(descriptor, memoryview(data), tensor.start, label=label)
    return data


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return all arrays of a file by name, and its metadata.

    Raises:
        SourceError: the file does not exist, or its header is not valid.
        SourceChanged: the file became shorter during the read.
        MachineError: the file cannot be opened.
    """
    descriptor = open_file(path)
    try:
        header = read_header(descriptor, label=path.name)
        strange = [name for name, tensor in header.tensors.items() if tensor.spec.dtype not in _NUMPY]
        if strange:
            raise SourceError("a tensor of a dtype that no such file holds", where=f"{path.name}: {short(strange[0])}")
        arrays = {
            name: np.frombuffer(
                tensor_bytes(descriptor, header, name, path.name), dtype=_NUMPY[tensor.spec.dtype]
            ).reshape(tensor.spec.shape)
            for name, tensor in header.tensors.items()
        }
        return arrays, header.metadata
    finally:
        os.close(descriptor)

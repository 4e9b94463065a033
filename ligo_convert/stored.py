"""Small whole safetensors files of our own: operators, training states. Read strictly, as sources are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ligo_convert.errors import SourceError
from ligo_convert.families import FAMILIES
from ligo_convert.family import Family
from ligo_convert.fs import reporting
from ligo_convert.headers import Header, read_at, read_header
from ligo_convert.initial import check_operator
from ligo_convert.operator import Operator, restore
from ligo_convert.tensors import TensorSpec

_NUMPY = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "U8": "u1"}


def _open(path: Path) -> int:
    if not path.is_file():
        raise SourceError("no such file", where=path)
    with reporting(path, "read"):
        return os.open(path, os.O_RDONLY)


def _bytes(descriptor: int, header: Header, name: str, label: str) -> bytearray:
    tensor = header.tensors[name]
    data = bytearray(tensor.end - tensor.start)
    read_at(descriptor, memoryview(data), tensor.start, label=label)
    return data


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every array of a file, with its metadata. Raises SourceError."""
    descriptor = _open(path)
    try:
        header = read_header(descriptor, label=path.name)
        arrays = {
            name: np.frombuffer(_bytes(descriptor, header, name, path.name), dtype=_NUMPY[tensor.spec.dtype]).reshape(
                tensor.spec.shape
            )
            for name, tensor in header.tensors.items()
        }
        return arrays, header.metadata
    finally:
        os.close(descriptor)


def read_operator(path: Path) -> Operator:
    """The growth operator of a file, checked against its family. Raises SourceError where it holds none that could be applied."""
    descriptor = _open(path)
    try:
        header = read_header(descriptor, label=path.name)
        specs: dict[str, TensorSpec] = {name: tensor.spec for name, tensor in header.tensors.items()}

        def read(name: str) -> Any:
            return _bytes(descriptor, header, name, path.name)

        operator = restore(header.metadata, specs, read, label=path.name)
        if operator.family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise SourceError(f"an operator of the unknown family {operator.family!r}", where=path.name, expected=known)
        family = FAMILIES[operator.family]
        if operator.head not in [head.name for head in family.heads]:
            raise SourceError(f"an operator of the unknown class {operator.head!r}", where=path.name)
        check_operator(operator, family_of(operator), label=path.name)
        return operator
    finally:
        os.close(descriptor)


def family_of(operator: Operator) -> Family:
    """The family of an operator, narrowed to the target's class."""
    return FAMILIES[operator.family].for_architecture(operator.head)

"""Read safetensors headers and shard indexes strictly.

Input: untrusted bytes.
Output: checked plain data.

A safetensors file consists of an 8-byte little-endian header length, a JSON header of that length, and the tensor data.
The `safetensors` library accepts ambiguous or hostile headers: two entries with the same name (the last one wins),
unknown fields, and headers that need a gigabyte of memory to parse. This module raises a `SourceError` for them, with
the names of the file and the tensor. Every header that it accepts, the library accepts too, with the same names, shapes
and offsets.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from dataclasses import dataclass
from typing import NoReturn

from ligo_convert.checkpoints.tensors import DTYPE_BYTES, TensorSpec
from ligo_convert.errors import SourceChanged, SourceError
from ligo_convert.io.strict_json import Pairs, decode, distinct, is_unicode, looks_like, short, strict_json

MAX_HEADER = 16 << 20  # bytes; about 130,000 tensors, parsed in two seconds

MAX_TENSORS = 200_000

MAX_RANK = 8

MAX_NAME = 512  # bytes of UTF-8

MAX_DIM = 1 << 40

_FIELDS = {"dtype", "shape", "data_offsets"}

_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,240}\.safetensors")

_PACKED = re.compile(r"F(4|6|8)(_\w+)?|C64")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor and the position of its data.

    Attributes:
        spec: name, dtype and shape.
        start: byte offset in the file at which the data begin.
        end: byte offset in the file at which the data end.
    """

    spec: TensorSpec
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of one file.

    Attributes:
        tensors: tensors by name, in the order of their data.
        metadata: the `__metadata__` entry; empty where the header has none.
        nbytes: bytes from the start of the file to the end of the header.
        crc32: CRC-32 of these bytes.
    """

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    nbytes: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Index:
    """A shard index.

    Attributes:
        weight_map: file name by tensor name.
        total_size: bytes of all tensors; None where the index gives no size.
    """

    weight_map: dict[str, str]
    total_size: int | None


def read_at(fd: int, view: memoryview, start: int, *, label: str) -> None:
    """Fill `view` with the bytes of an open file from offset `start`.

    Raises:
        SourceChanged: the file ends before `view` is full.
    """
    done = 0
    while done < len(view):
        # One call reads at most 2 GiB on Linux and macOS.
        part = view[done : done + (1 << 30)]
        if hasattr(os, "preadv"):
            count = os.preadv(fd, [part], start + done)
        else:
            data = os.pread(fd, len(part), start + done)
            count = len(data)
            part[:count] = data
        if count == 0:
            raise SourceChanged(
                "the file became shorter while it was read",
                where=label,
                expected=f"at least {start + len(view)} bytes",
                found=f"{start + done} bytes",
                hint="nothing may write to the source while it is read; restore the file and run again",
            )
        done += count


def header_end(prefix: bytes, *, file_size: int, label: str) -> int:
    """Return the end of the header, in bytes from the start of the file.

    Args:
        prefix: the first bytes of the file, at least 9 or all of a shorter file. With more bytes, errors can name the
            format of a file that is not safetensors.
        file_size: bytes of the whole file.
        label: name of the file in errors.

    Raises:
        SourceError: the file does not begin with a safetensors header of an acceptable size.
    """
    if file_size < 10:
        what = "the file is empty" if file_size == 0 else "the file is too short to be a safetensors file"
        raise SourceError(what, where=label, expected="at least 10 bytes", found=f"{file_size} bytes")
    length = int.from_bytes(prefix[:8], "little")
    begins_right = prefix[8:9] == b"{"
    if 2 <= length <= MAX_HEADER and length + 8 <= file_size and begins_right:
        return 8 + length
    other = looks_like(prefix)
    if other:
        raise SourceError(f"not a safetensors file: looks like {other}", where=label)
    if length + 8 > file_size:
        raise SourceError(
            f"the header says it has {length} bytes, the file has {file_size}: truncated, or not a safetensors file?",
            where=label,
            hint="fetch the file again",
        )
    if length > MAX_HEADER:
        raise SourceError("the header is too large", where=label, expected=f"at most {MAX_HEADER} bytes", found=length)
    raise SourceError(
        "the header does not begin with '{' (leading whitespace and byte order marks are not allowed)", where=label
    )


def parse_header(data: bytes, *, file_size: int, label: str) -> Header:
    """Parse the header of one safetensors file.

    Args:
        data: bytes from the start of the file to the end of the header or beyond.
        file_size: bytes of the whole file; header and tensors must fill it exactly.
        label: name of the file in errors.

    Raises:
        SourceError: a part of the header is malformed, ambiguous, too large or unsupported.
        ValueError: `data` ends before the header does.
    """
    end = header_end(data[:256], file_size=file_size, label=label)
    if len(data) < end:
        raise ValueError(f"{end} bytes of header are needed, {len(data)} were given")
    entries = decode(data[8:end], label=label)
    if not isinstance(entries, Pairs):
        raise SourceError("the header is not a JSON object", where=label)
    metadata: dict[str, str] = {}
    tensors: dict[str, StoredTensor] = {}
    if len(entries) > MAX_TENSORS + 1:
        raise SourceError("too many tensors", where=label, expected=f"at most {MAX_TENSORS}", found=len(entries))
    for name, entry in distinct(entries, label=label, kind="tensor"):
        if name == "__metadata__":
            metadata = _metadata(entry, label=label)
        else:
            tensors[name] = _tensor(name, entry, data_start=end, label=label)
    if not tensors:
        raise SourceError("the file holds no tensors", where=label)
    in_order = sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end))
    _check_contiguous(in_order, data_start=end, file_size=file_size, label=label)
    return Header(
        tensors={tensor.spec.name: tensor for tensor in in_order},
        metadata=metadata,
        nbytes=end,
        crc32=zlib.crc32(memoryview(data)[:end]),
    )


def read_header(fd: int, *, label: str) -> Header:
    """Read and parse the header of an open safetensors file.

    Raises:
        SourceError: as `parse_header`.
        SourceChanged: the file became shorter during the read.
    """
    file_size = os.fstat(fd).st_size
    prefix = bytearray(min(file_size, 256))
    read_at(fd, memoryview(prefix), 0, label=label)
    data = bytearray(header_end(bytes(prefix), file_size=file_size, label=label))
    read_at(fd, memoryview(data), 0, label=label)
    return parse_header(bytes(data), file_size=file_size, label=label)


def parse_index(data: bytes, *, label: str) -> Index:
    """Parse a shard index (`*.safetensors.index.json`).

    Raises:
        SourceError: the index is not strict JSON, has no `weight_map` or more than `MAX_TENSORS` entries, or an entry
            is not the plain name of a .safetensors file.
    """
    content = strict_json(data, label=label)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError("the index has no weight_map", where=label)
    if len(weight_map) > MAX_TENSORS:
        raise SourceError("too many tensors", where=label, expected=f"at most {MAX_TENSORS}", found=len(weight_map))
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file) or ".." in file:
            raise SourceError(
                "weight_map names something other than a .safetensors file beside the index",
                where=f"{label}: {short(name)}",
                expected="a plain file name such as model-00001-of-00002.safetensors",
                found=short(file),
            )
    metadata = content.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return Index(weight_map=weight_map, total_size=total if type(total) is int else None)


def _metadata(entry: object, *, label: str) -> dict[str, str]:
    if not isinstance(entry, Pairs):
        raise SourceError("__metadata__ is not an object of strings", where=label)
    metadata: dict[str, str] = {}
    for key, value in distinct(entry, label=f"{label}: __metadata__", kind="key"):
        if not isinstance(value, str) or not is_unicode(value):
            raise SourceError(f"__metadata__ {short(key)!r} is not a string", where=label, found=short(value))
        metadata[key] = value
    return metadata


def _tensor(name: str, entry: object, *, data_start: int, label: str) -> StoredTensor:
    where = f"{label}: {short(name)}"
    if not name or "\0" in name or len(name.encode("utf-8")) > MAX_NAME:
        raise SourceError(
            "a tensor's name is empty, holds a NUL or is too long",
            where=where,
            expected=f"1 to {MAX_NAME} bytes",
            found=f"{len(name.encode('utf-8'))} bytes",
        )
    if not isinstance(entry, Pairs):
        raise SourceError("the entry of a tensor is not an object", where=where)
    fields = dict(entry)
    if fields.keys() != _FIELDS or len(entry) != len(_FIELDS):
        _refuse_fields(entry, where=where)
    dtype = _dtype(fields["dtype"], where=where)
    shape = _naturals(fields["shape"], what="shape", most=MAX_DIM, where=where)
    if len(shape) > MAX_RANK:
        raise SourceError("too many dimensions", where=where, expected=f"at most {MAX_RANK}", found=len(shape))
    # Other readers multiply in 64 bits. Zeros are left out: a dimension of 0 must not hide an overflow before it.
    if math.prod(filter(None, shape)) * DTYPE_BYTES[dtype] >= 1 << 63:
        raise SourceError("the shape's product overflows", where=where, found=list(shape))
    offsets = _naturals(fields["data_offsets"], what="data_offsets", most=1 << 62, where=where)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise SourceError(
            "data_offsets are not a begin and an end", where=where, expected="begin <= end", found=short(list(offsets))
        )
    spec = TensorSpec(name=name, dtype=dtype, shape=shape)
    if offsets[1] - offsets[0] != spec.nbytes:
        sizes = " x ".join(str(dim) for dim in (*shape, DTYPE_BYTES[dtype]))
        raise SourceError(
            "shape and data_offsets disagree",
            where=where,
            expected=f"{sizes} = {spec.nbytes} bytes for {dtype} {list(shape)}",
            found=f"{offsets[1]} - {offsets[0]} = {offsets[1] - offsets[0]} bytes",
        )
    return StoredTensor(spec=spec, start=data_start + offsets[0], end=data_start + offsets[1])


def _refuse_fields(entry: Pairs, *, where: str) -> NoReturn:
    fields = dict(distinct(entry, label=where, kind="field"))
    unknown = sorted(fields.keys() - _FIELDS)
    what = f"unknown field {short(unknown[0])!r}" if unknown else "a field is missing"
    raise SourceError(what, where=where, expected=", ".join(sorted(_FIELDS)), found=short(", ".join(fields)))


def _dtype(value: object, *, where: str) -> str:
    if isinstance(value, str) and value in DTYPE_BYTES:
        return value
    if isinstance(value, str) and _PACKED.fullmatch(value):
        raise SourceError(
            f"the dtype {short(value)} is unsupported",
            where=where,
            expected=", ".join(DTYPE_BYTES),
            hint="its values need scales that the header does not tell; convert the source to bfloat16 first",
        )
    raise SourceError("unknown dtype", where=where, expected=", ".join(DTYPE_BYTES), found=short(value))


def _naturals(value: object, *, what: str, most: int, where: str) -> tuple[int, ...]:
    # type(), not isinstance(): Python counts JSON's true as an int, but here it is an error.
    if type(value) is not list or any(type(item) is not int or not 0 <= item <= most for item in value):
        raise SourceError(
            f"{what} is not a list of whole numbers from 0 to {most}", where=where, found=short(str(value)[:200])
        )
    return tuple(value)


def _check_contiguous(tensors: list[StoredTensor], *, data_start: int, file_size: int, label: str) -> None:
    """Check that the sorted tensors fill the file after the header without overlap, hole or trailing bytes.

    Raises:
        SourceError: they do not.
    """
    position, before = data_start, "the header"
    for tensor in tensors:
        name = short(tensor.spec.name)
        if tensor.start < position:
            raise SourceError(
                f"{name} overlaps {before}", where=f"{label}: {name}", expected=position, found=tensor.start
            )
        if tensor.start > position:
            raise SourceError(
                f"a hole of {tensor.start - position} bytes before {name}, after {before}", where=f"{label}: {name}"
            )
        position, before = tensor.end, name
    if position > file_size:
        raise SourceError(
            f"{before} ends behind the end of the file: truncated?",
            where=f"{label}: {before}",
            expected=f"{position} bytes",
            found=f"{file_size} bytes",
            hint="fetch the file again",
        )
    if position < file_size:
        raise SourceError(
            f"{file_size - position} bytes follow the last tensor, {before}",
            where=label,
            expected=f"{position} bytes",
            found=f"{file_size} bytes",
        )

"""Strict headers: every kind of broken or hostile file is refused by name, and what passes, the library reads alike."""

from __future__ import annotations

import json
import os
import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from ligo_convert.checkpoints.headers import MAX_HEADER, Header, header_end, parse_header, parse_index, read_header
from ligo_convert.errors import SourceChanged, SourceError

LABEL = "small/model.safetensors"


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def framed(header: bytes | dict[str, object], data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def parse(file: bytes) -> Header:
    return parse_header(file, file_size=len(file), label=LABEL)


GOOD = framed({"a": entry(), "b": entry("BF16", [2, 2], [8, 16])}, bytes(16))


def test_a_good_header_gives_names_shapes_and_offsets_in_the_file() -> None:
    header = parse(
        framed({"b": entry("BF16", [2, 2], [8, 16]), "__metadata__": {"format": "pt"}, "a": entry()}, bytes(16))
    )
    assert list(header.tensors) == ["a", "b"]  # as the bytes lie, not as the header lists them
    assert header.metadata == {"format": "pt"}
    first, second = header.tensors.values()
    assert (first.spec.dtype, first.spec.shape, first.start, first.end) == (
        "F32",
        (2,),
        header.nbytes,
        header.nbytes + 8,
    )
    assert (second.spec.dtype, second.spec.shape, second.end - second.start) == ("BF16", (2, 2), 8)


def test_scalars_empty_tensors_and_padding_are_fine() -> None:
    text = json.dumps({"n": entry("I64", [], [0, 8]), "e": entry("F16", [0, 3], [8, 8]), "a": entry(offsets=[8, 16])})
    header = parse(framed(text.encode() + b"   ", bytes(16)))
    assert [tensor.spec.shape for tensor in header.tensors.values()] == [(), (0, 3), (2,)]


LAST = json.dumps(entry())
TWICE_A = f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry())}}}'.encode()
ESCAPED_A = f'{{"a":{json.dumps(entry())},"\\u0061":{json.dumps(entry())}}}'.encode()
# name: (file, words that the error must hold)
BAD: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("the file is empty",)),
    "seven bytes": (b"\0" * 7, ("too short", "7 bytes")),
    "length 2**64-1": (b"\xff" * 8 + b"{}" * 9, (f"{2**64 - 1} bytes", "the file has 26")),
    "length past the end": (struct.pack("<Q", 1000) + b'{"a":1}', ("1000 bytes", "truncated")),
    "length zero": (struct.pack("<Q", 0) + b"\0" * 10, ("does not begin with '{'",)),
    "last byte missing": (GOOD[:-1], ("b ends behind the end", "truncated", f"expected: {len(GOOD)}", "found")),
    "trailing bytes": (GOOD + b"\0", ("1 bytes follow the last tensor, b",)),
    "appended zip": (GOOD + b"PK\x03\x04evil", ("8 bytes follow",)),
    "overlap": (framed({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), ("b overlaps a", f"{LABEL}: b")),
    "all the same bytes": (framed({"a": entry(), "b": entry()}, bytes(8)), ("overlaps",)),
    "hole": (framed({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), ("a hole of 4 bytes before b, after a",)),
    "hole at the start": (framed({"a": entry(offsets=[8, 16])}, bytes(16)), ("a hole of 8 bytes before a",)),
    "negative offset": (framed({"a": entry(offsets=[-8, 0])}, b""), (f"{LABEL}: a", "data_offsets", "-8")),
    "reversed offsets": (framed({"a": entry(offsets=[8, 0])}, bytes(8)), (f"{LABEL}: a", "begin <= end", "[8, 0]")),
    "three offsets": (framed({"a": entry(offsets=[0, 4, 8])}, bytes(8)), (f"{LABEL}: a", "data_offsets")),
    "minus zero": (framed(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', bytes(8)), (f"{LABEL}: a",)),
    "offsets are floats": (framed({"a": entry(offsets=[0.0, 8.0])}, bytes(8)), (f"{LABEL}: a", "whole numbers")),
    "shape is not bytes": (
        framed({"a": entry(shape=[3])}, bytes(8)),
        (f"{LABEL}: a", "3 x 4 = 12 bytes", "8 - 0 = 8 bytes"),
    ),
    "shape overflows": (
        framed({"a": entry(shape=[1 << 33, 1 << 31])}, bytes(8)),
        (f"{LABEL}: a", "product overflows"),
    ),
    "a huge dimension beside a zero": (
        framed({"a": entry(shape=[1 << 62, 0], offsets=[0, 0])}),
        (f"{LABEL}: a", "shape"),
    ),
    "a dimension over the cap": (
        framed({"a": entry(shape=[1 << 41, 0], offsets=[0, 0])}),
        (f"{LABEL}: a", f"{1 << 40}"),
    ),
    "overflow beside a zero": (
        framed({"a": entry(shape=[1 << 40, 1 << 40, 0], offsets=[0, 0])}),
        (f"{LABEL}: a", "product overflows"),
    ),
    "rank 5000": (
        framed({"a": entry(shape=[1] * 5000, offsets=[0, 4])}, bytes(4)),
        (f"{LABEL}: a", "at most 8", "5000"),
    ),
    "float dimension": (framed({"a": entry(shape=[2.0])}, bytes(8)), (f"{LABEL}: a", "shape", "2.0")),
    "negative dimension": (framed({"a": entry(shape=[-2])}, bytes(8)), (f"{LABEL}: a", "shape", "-2")),
    "boolean dimension": (framed({"a": entry(shape=[True, 2])}, bytes(8)), (f"{LABEL}: a", "shape", "True")),
    "shape is no list": (framed({"a": entry(shape="2")}, bytes(8)), (f"{LABEL}: a", "shape")),
    "a number of 5000 digits": (
        framed(b'{"a":{"dtype":"F32","shape":[%b],"data_offsets":[0,8]}}' % (b"9" * 5000), bytes(8)),
        ("malformed JSON",),
    ),
    "tensor twice": (framed(TWICE_A, bytes(8)), ("the tensor 'a' appears twice",)),
    "tensor twice by an escape": (framed(ESCAPED_A, bytes(8)), ("the tensor 'a' appears twice",)),
    "metadata twice": (
        framed(f'{{"__metadata__":{{}},"a":{LAST},"__metadata__":{{}}}}'.encode(), bytes(8)),
        ("'__metadata__' appears twice",),
    ),
    "metadata key twice": (
        framed(f'{{"__metadata__":{{"license":"mit","license":"gpl"}},"a":{LAST}}}'.encode(), bytes(8)),
        ("'license' appears twice", "__metadata__"),
    ),
    "metadata is no object": (framed({"__metadata__": [], "a": entry()}, bytes(8)), ("__metadata__ is not an object",)),
    "metadata is no string": (framed({"__metadata__": {"n": 1}, "a": entry()}, bytes(8)), ("'n' is not a string",)),
    "field twice": (
        framed(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        (f"{LABEL}: a", "'dtype' appears twice"),
    ),
    "unknown field": (framed({"a": entry(scale=2)}, bytes(8)), (f"{LABEL}: a", "unknown field 'scale'")),
    "missing field": (
        framed({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        (f"{LABEL}: a", "missing", "data_offsets"),
    ),
    "entry is no object": (framed({"a": [1, 2]}), (f"{LABEL}: a", "not an object")),
    "leading space": (framed(b" " + json.dumps({"a": entry()}).encode(), bytes(8)), ("does not begin with '{'",)),
    "byte order mark": (framed(b"\xef\xbb\xbf" + json.dumps({"a": entry()}).encode(), bytes(8)), ("begin with '{'",)),
    "trailing text": (framed(json.dumps({"a": entry()}).encode() + b"x", bytes(8)), ("malformed JSON",)),
    "deep lists": (framed(b'{"a":' + b"[" * 200_000, bytes(8)), ("nested too deeply",)),
    "deep objects": (framed(b'{"a":' * 200_000, bytes(8)), ("nested too deeply",)),
    "not UTF-8": (framed(b'{"\xff":1}', bytes(8)), ("not UTF-8 (byte 2)",)),
    "half a surrogate pair": (framed(b'{"\\ud800":%b}' % LAST.encode(), bytes(8)), ("surrogate",)),
    "half a pair in the metadata": (
        framed(b'{"__metadata__":{"k":"\\udfff"},"a":%b}' % LAST.encode(), bytes(8)),
        ("'k' is not a string",),
    ),
    "NaN": (framed({"a": entry(shape=[float("nan")])}, bytes(8)), ("NaN is not a JSON number",)),
    "unknown dtype": (framed({"a": entry("F23")}, bytes(8)), (f"{LABEL}: a", "unknown dtype", "F23", "BF16")),
    "dtype is no string": (framed({"a": entry(["F32"])}, bytes(8)), (f"{LABEL}: a", "unknown dtype")),
    "no tensors": (framed({"__metadata__": {"format": "pt"}}), ("holds no tensors",)),
    "only an empty object": (framed(b"{}", b"\0"), ("holds no tensors",)),
    "empty name": (framed({"": entry()}, bytes(8)), ("name is empty", "0 bytes")),
    "NUL in a name": (framed({"a\0b": entry()}, bytes(8)), ("holds a NUL", "a\\x00b")),
    "a name of a megabyte": (framed({"a" * (1 << 20): entry()}, bytes(8)), ("too long", f"{1 << 20} bytes", "aaa...")),
    "pickle": (b"\x80\x04\x95\x20\0\0\0\0\0\0\0}" * 9, ("looks like a Python pickle",)),
    "zip": (b"PK\x03\x04" + b"\0" * 60, ("looks like a zip archive", ".bin")),
    "HTML": (b"\n<!DOCTYPE html><html>" + b" " * 60, ("looks like an HTML page",)),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ("git lfs pull",)),
    "annex pointer": (b"/annex/objects/SHA256E-s1--0.safetensors\n", ("git annex get",)),
    "GGUF": (b"GGUF\x03\0\0\0" + b"\0" * 60, ("looks like a GGUF file",)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name(name: str) -> None:
    file, words = BAD[name]
    begin = time.perf_counter()
    with pytest.raises(SourceError) as caught:
        parse(file)
    assert time.perf_counter() - begin < 1
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert text.startswith(LABEL)
    assert len(text) < 1000
    for word in words:
        assert word in text


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4", "C64"])
def test_packed_dtypes_are_refused_with_what_to_do(dtype: str) -> None:
    with pytest.raises(SourceError, match=f"dtype {dtype} is unsupported") as caught:
        parse(framed({"layers.0.weight": entry(dtype, [8], [0, 8])}, bytes(8)))
    assert f"{LABEL}: layers.0.weight" in str(caught.value)
    assert "convert the source to bfloat16 first" in str(caught.value)


def test_names_cannot_steer_a_terminal() -> None:
    with pytest.raises(SourceError) as caught:
        parse(framed({"\x1b]8;;http://x\x07[/]\u202e[link=x]": entry("F23")}, bytes(8)))
    assert "\\x1b]8;;http://x\\x07[/]\\u202e[link=x]" in str(caught.value)
    assert not {"\x1b", "\x07", "\u202e"} & set(str(caught.value))


def test_a_header_bomb_is_refused_before_it_is_read() -> None:
    begin = time.perf_counter()
    with pytest.raises(SourceError, match="header is too large") as caught:
        header_end(struct.pack("<Q", 99_900_000) + b"{", file_size=1 << 30, label=LABEL)
    assert str(MAX_HEADER) in str(caught.value)
    assert time.perf_counter() - begin < 0.1


def test_too_many_tensors_are_refused() -> None:
    text = b"{" + b",".join(b'"%d":0' % number for number in range(200_002)) + b"}"
    with pytest.raises(SourceError, match="too many tensors"):
        parse(framed(text))


def test_a_header_that_was_not_read_whole_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="bytes of header are needed"):
        parse_header(GOOD[:40], file_size=len(GOOD), label=LABEL)


def test_reading_from_a_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((3, 4), np.float32), "b": np.zeros(5, np.int64)}, path, metadata={"format": "pt"})
    fd = os.open(path, os.O_RDONLY)
    try:
        header = read_header(fd, label=LABEL)
        assert header == parse(path.read_bytes())
        assert {name: tensor.spec.shape for name, tensor in header.tensors.items()} == {"a": (3, 4), "b": (5,)}
    finally:
        os.close(fd)


def test_a_file_that_shrinks_between_two_reads_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    fd = os.open(path, os.O_RDWR)
    whole = os.fstat(fd)
    os.ftruncate(fd, 20)
    monkeypatch.setattr(os, "fstat", lambda _: whole)
    try:
        with pytest.raises(SourceChanged, match="became shorter"):
            read_header(fd, label=LABEL)
    finally:
        os.close(fd)


def test_reading_without_preadv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    monkeypatch.delattr(os, "preadv", raising=False)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert read_header(fd, label=LABEL) == parse(GOOD)
    finally:
        os.close(fd)


Seen = dict[str, tuple[str, tuple[int, ...], bytes]]


def library_reads(file: bytes) -> Seen | None:
    """Dtype, shape and bytes of each tensor as the library's own reader sees them; None where it refuses the file."""
    try:
        found = safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return None
    return {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in found}


def we_read(file: bytes) -> Seen:
    tensors = parse(file).tensors
    return {name: (one.spec.dtype, one.spec.shape, file[one.start : one.end]) for name, one in tensors.items()}


def test_what_passes_the_library_reads_alike() -> None:
    """Seeded mutations of valid files: whatever is accepted here, the library accepts with the same tensors."""
    rng = random.Random(20)
    tokens = [
        b"-",
        b"0",
        b"1",
        b"8",
        b"}",
        b"{",
        b"]",
        b"[",
        b",",
        b":",
        b'"',
        b" ",
        b"\\u0061",
        b"F16",
        b"I8",
        b"null",
        b"\xff",
    ]
    end = time.perf_counter() + 4
    accepted = tried = 0
    while time.perf_counter() < end and tried < 40_000:
        tried += 1
        sizes = [rng.choice([0, 1, 2, 3]) for _ in range(rng.randint(1, 3))]
        header: dict[str, object] = {"__metadata__": {"format": "pt"}} if rng.random() < 0.3 else {}
        position = 0
        for number, size in enumerate(sizes):
            header[f"t{number}"] = entry(
                "F32", rng.choice([[size], [1, size], [size, 1]]), [position, position + 4 * size]
            )
            position += 4 * size
        text = bytearray(json.dumps(header, separators=(",", ":")).encode())
        for _ in range(rng.choice([0, 1, 1, 2])):
            at = rng.randrange(len(text))
            text[at : at + rng.choice([0, 1, 1, 2])] = rng.choice(tokens)
        file = framed(bytes(text) + b" " * rng.choice([0, 0, 3]), bytes(rng.randbytes(position)))
        if rng.random() < 0.05:
            file = file[: rng.randrange(len(file))]
        try:
            ours = we_read(file)
        except SourceError:
            continue
        accepted += 1
        # Random bytes differ from tensor to tensor, so equal bytes mean equal offsets.
        assert ours == library_reads(file), file
    assert accepted > 200
    assert tried - accepted > 200


def test_valid_files_of_every_dtype_pass() -> None:
    dtypes = {
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "I64": 8,
        "I32": 4,
        "I16": 2,
        "I8": 1,
        "U64": 8,
        "U32": 4,
        "U16": 2,
    }
    dtypes |= {"U8": 1, "BOOL": 1}
    header: dict[str, object] = {}
    position = 0
    for dtype, size in dtypes.items():
        header[dtype] = entry(dtype, [3], [position, position + 3 * size])
        position += 3 * size
    file = framed(header, bytes(position))
    assert {name: tensor.spec.dtype for name, tensor in parse(file).tensors.items()} == {name: name for name in dtypes}
    assert we_read(file) == library_reads(file)


def test_the_headers_of_real_checkpoints_pass() -> None:
    root = os.environ.get("LIGO_TEST_MODELS")
    if not root:
        pytest.skip("LIGO_TEST_MODELS names no directory of pretrained checkpoints")
    paths = sorted(Path(root).glob("*/*.safetensors"))
    assert paths
    for path in paths:
        with safetensors.safe_open(path, framework="numpy") as file:
            expected = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        fd = os.open(path, os.O_RDONLY)
        try:
            header = read_header(fd, label=path.name)
        finally:
            os.close(fd)
        assert {name: tensor.spec.shape for name, tensor in header.tensors.items()} == expected


INDEX = "small/model.safetensors.index.json"


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/passwd",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..safetensors",
        "a\\b.safetensors",
        "a\0.safetensors",
        "*.safetensors",
        "x.bin",
        ".hidden.safetensors",
        "a..safetensors",
        "",
        7,
        None,
        ["x.safetensors"],
    ],
)
def test_an_index_entry_must_be_a_plain_file_name(file: object) -> None:
    with pytest.raises(SourceError, match=r"something other than a \.safetensors file beside the index") as caught:
        parse_index(json.dumps({"weight_map": {"wte.weight": file}}).encode(), label=INDEX)
    assert f"{INDEX}: wte.weight" in str(caught.value)


def test_an_index_gives_its_map_and_total() -> None:
    text = {"metadata": {"total_size": 24}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    index = parse_index(json.dumps(text).encode(), label=INDEX)
    assert (index.weight_map, index.total_size) == ({"a": "model-00001-of-00002.safetensors"}, 24)
    assert parse_index(b'{"weight_map":{"a":"x.safetensors"}}', label=INDEX).total_size is None
    assert (
        parse_index(b'{"metadata":{"total_size":1.5},"weight_map":{"a":"x.safetensors"}}', label=INDEX).total_size
        is None
    )


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="no weight_map"):
        parse_index(text.encode(), label=INDEX)


def test_an_index_entry_twice_is_refused() -> None:
    with pytest.raises(SourceError, match="the key 'a' appears twice"):
        parse_index(b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}', label=INDEX)

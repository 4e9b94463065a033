"""A small file of data or of a tokenizer costs neither minutes nor gigabytes: its sizes are held against the limits first."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.bombs import count_matches, decode_image, read_rows, tokenise
from support.measured import Cost, Measured

from ligo_convert.data.images import Preparation
from ligo_convert.errors import SourceError
from ligo_convert.limits import ADDED_TOKENS, PIXELS, SPECIAL_TOKENS

SECONDS, PEAK = 5.0, 500_000_000


def bounded(cost: Cost, code: int, *words: str) -> None:
    assert cost.code == code, cost
    assert cost.seconds < SECONDS, cost
    assert cost.peak < PEAK, cost
    for word in words:
        assert word in cost.err


# --- images -----------------------------------------------------------------------------------------------------------


def png(width: int, height: int, *, colours: int = 2, data: bool = True) -> bytes:
    """A black image; without data it only says how large it is."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + width * (3 if colours == 2 else 1))
    packed = b"".join(packer.compress(row) for _ in range(height if data else 1)) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    palette = chunk(b"PLTE", bytes(768)) if colours == 3 else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + palette + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def written(kind: str, size: tuple[int, int], frames: int = 1) -> bytes:
    file = io.BytesIO()
    first, *more = [Image.new("L", size, number % 255) for number in range(frames)]
    first.save(file, kind, **({"save_all": True, "append_images": more} if more else {}))
    return file.getvalue()


@pytest.fixture(scope="module")
def images() -> Iterator[Measured]:
    with Measured("PIL.Image", "ligo_convert.data.images") as found:
        yield found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(1, 60_000), ["resized", "14,880,000"]),
        (png(60_000, 1), ["resized", "14,880,000"]),
        (png(9_460, 9_460, data=False), ["9,460 x 9,460", str(PIXELS)]),
        (png(60_000, 60_000, data=False), ["decompression bomb"]),
        (png(2**31 - 1, 2**31 - 1, data=False), ["decompression bomb"]),
        (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 9_999, 9_999, 1, 24, *[0] * 6), ["9,999 x 9,999"]),
        (written("TIFF", (8, 8)), ["cannot be decoded"]),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n", ["cannot be decoded"]),
    ],
    ids=["narrow", "flat", "large", "larger", "largest", "bmp", "tiff", "eps"],
)
def test_an_image_is_refused_before_it_is_decoded(
    images: Measured, tmp_path: Path, data: bytes, words: list[str]
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(data)
    bounded(images.call(decode_image, str(path), 224, cwd=tmp_path), 2, "image.png", *words)


@pytest.mark.parametrize(
    "data",
    [png(9_000, 9_000), png(9_000, 9_000, colours=3), written("GIF", (400, 400), frames=300), png(3, 900)],
    ids=["rgb", "palette", "frames", "narrow"],
)
def test_what_is_decoded_fits(images: Measured, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(data)
    bounded(images.call(decode_image, str(path), 224, cwd=tmp_path), 0)


@pytest.mark.parametrize(
    "wrong",
    [{"crop_pct": 0.0}, {"crop_pct": -1.0}, {"crop_pct": "x"}, {"mean": ("a",) * 3}, {"std": (0.0,) * 3}, {"std": ()}],
    ids=str,
)
def test_numbers_that_prepare_no_image_are_refused(wrong: dict[str, Any]) -> None:
    settings = {
        "size": (224, 224),
        "channels": 3,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "x",
        "crop_pct": 0.9,
    }
    with pytest.raises(SourceError, match="pretrained_cfg"):
        Preparation(**{**settings, **wrong})


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers() -> Iterator[Measured]:
    with Measured("transformers.models.auto.tokenization_auto", "tokenizers", "ligo_convert.data.tokenizers") as found:
        yield found


def added(count: int, *, normalized: bool = False) -> list[dict[str, Any]]:
    keys = ("single_word", "lstrip", "rstrip", "special")
    return [
        {"id": 9 + number, "content": f"<t{number}>", "normalized": normalized, **dict.fromkeys(keys, False)}
        for number in range(count)
    ]


def tokenizer(folder: Path, *, settings: dict[str, Any] | None = None, **parts: Any) -> Path:
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1, "b": 2}, "unk_token": "<unk>"},
        **parts,
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", **(settings or {})})
    )
    return folder


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def charsmap(replacement: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(4) + replacement).decode()}


PIECE = {"Sequence": {"id": "A", "type_id": 0}}
PAIR = [PIECE, {"Sequence": {"id": "B", "type_id": 0}}]
TEMPLATE = {"type": "TemplateProcessing", "single": [PIECE] * 20_000, "pair": PAIR, "special_tokens": {}}
BOMBS: dict[str, tuple[dict[str, Any], str]] = {
    "replace": ({"normalizer": replace("a", "a " * 5000)}, "replacements"),
    "nested replace": ({"normalizer": sequence(*[sequence(replace("a", "a a a a a"))] * 9)}, "replacements"),
    "empty pattern": ({"normalizer": replace("", "a " * 5000, "Regex")}, "replacements"),
    "in two parts": (
        {
            "normalizer": replace("a", "b" * 60),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [replace("b", "cc")]},
        },
        "replacements",
    ),
    "prepend": ({"normalizer": {"type": "Prepend", "prepend": "a " * 500_000}}, "prepend"),
    "charsmap": ({"normalizer": charsmap(b"x" * 100_000)}, "replacements"),
    "steps": ({"normalizer": sequence(*[{"type": "NFKD"}] * 10_000)}, "steps"),
    "template": ({"post_processor": TEMPLATE}, "template"),
    "templates": ({"post_processor": {"type": "Sequence", "processors": [TEMPLATE]}}, "template"),
    "added tokens": ({"added_tokens": added(ADDED_TOKENS.most + 1)}, "added_tokens"),
    "replace in added tokens": (
        {"added_tokens": added(1, normalized=True), "normalizer": replace("t", "t" * 9_999)},
        "replacements",
    ),
    "settings": ({"settings": {"added_tokens_decoder": {str(i): {} for i in range(ADDED_TOKENS.most + 1)}}}, "decoder"),
    "special tokens": (
        {"settings": {"additional_special_tokens": [f"<{i}>" for i in range(SPECIAL_TOKENS.most + 1)]}},
        "special",
    ),
    "long settings": ({"settings": {"x": "x" * (17 << 20)}}, "too large"),
    "exponential": ({"pre_tokenizer": split("(a+a+)+[0-9]")}, "retry-limit"),
    "exponential normaliser": ({"normalizer": replace("(a+a+)+[0-9]", "b", "Regex")}, "retry-limit"),
    "polynomial": ({"pre_tokenizer": split("a+a+(?<=b)")}, "too slow"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_tokenizer_that_multiplies_text_or_time_is_refused(tokenizers: Measured, tmp_path: Path, name: str) -> None:
    parts, word = BOMBS[name]
    folder = tokenizer(tmp_path / "tokenizer", **parts)
    # No word ends the run of letters, and no mark ends the line.
    bounded(tokenizers.call(tokenise, str(folder), "a" * 60_000, cwd=tmp_path), 3, "tokenizer", word)


def test_usual_replacements_pass(tokenizers: Measured, tmp_path: Path) -> None:
    llama = [{"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581")]
    t5 = [replace("``", '"'), replace(" {2,}", "\u2581", "Regex"), replace("''", '"')]
    folder = tokenizer(tmp_path / "tokenizer", normalizer=sequence(sequence(*llama), sequence(*t5)))
    bounded(tokenizers.call(tokenise, str(folder), "a b " * 10_000, cwd=tmp_path), 0)


# --- globs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def globs() -> Iterator[Measured]:
    with Measured("ligo_convert.io.globs") as found:
        yield found


def test_a_glob_counts_what_it_visits(globs: Measured, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"link{number}").symlink_to(tmp_path)
    bounded(globs.call(count_matches, "*/" * 9 + "*.txt", str(tmp_path), cwd=tmp_path), 2, "visits")
    # Many ways lead from one `**` to the next.
    tree = tmp_path / "tree"
    for number in range(40):
        (tree / f"{number % 5}" / f"{number % 8}").mkdir(parents=True, exist_ok=True)
    bounded(globs.call(count_matches, "**/*/" * 30 + "**/*.txt", str(tree), cwd=tmp_path), 0)
    bounded(globs.call(count_matches, "[" * 100_000, str(tmp_path), cwd=tmp_path), 0)


def test_a_deep_tree_has_an_end(globs: Measured, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1050):
        os.mkdir("a", dir_fd=descriptor)
        below = os.open("a", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    try:
        cost = globs.call(count_matches, "**", str(tmp_path), cwd=tmp_path)
    finally:
        # Python's own removal of a folder, which pytest uses, calls itself for each level.
        subprocess.run(["rm", "-rf", str(tmp_path / "a")], check=True, timeout=60)
    bounded(cost, 0)
    assert cost.out == "1050\n"


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> Iterator[Measured]:
    with Measured("pyarrow.parquet", "ligo_convert.data.hf_datasets", "ligo_convert.data.text_files") as found:
        yield found


def test_a_parquet_file_that_repeats_a_long_text_is_read_in_parts(rows: Measured, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4096, pyarrow.int32()), ["x " * 1_000_000])
    path = tmp_path / "many.parquet"
    parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    bounded(rows.call(read_rows, str(path), 3, cwd=tmp_path), 0)
    path = tmp_path / "long.parquet"
    parquet.write_table(pyarrow.table({"text": ["x" * (40 << 20)]}), path, compression="zstd")
    bounded(rows.call(read_rows, str(path), 3, cwd=tmp_path), 2, "text too long")


def test_a_line_of_json_is_bounded(rows: Measured, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "b": [' + ",".join(["[]"] * 7_000_000) + "]}\n")
    bounded(rows.call(read_rows, str(path), 3, cwd=tmp_path), 2, "line too long", "a.jsonl:1")
    path.write_text('{"text": "a", "b": [' + ",".join(["[]"] * 3_000_000) + "]}\n")
    bounded(rows.call(read_rows, str(path), 3, cwd=tmp_path), 0)

"""Read text files and JSON Lines in shuffled order.

Input: files and a seed, which alone determines the order.
Output: pieces of text.

Files are split into chunks by byte offset. The number of a chunk gives its position, so only the requested chunks are
read. Data that are not text cause an error with the file and the byte or line.
"""

from __future__ import annotations

import bisect
import codecs
import contextlib
import functools
import itertools
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ligo_convert.data.records import TEXTS, Records
from ligo_convert.data.shuffle import permuted
from ligo_convert.errors import MachineError, RecipeError, SourceChanged
from ligo_convert.limits import RECORD_BYTES

CHUNK_BYTES = 32 * 1024  # texts are split, after a line or a word where possible, at no more than twice this size

# A slice of about ten thousand tokens should sample many places of a corpus. A held-out loss over few documents does not represent
# the corpus, and a fit on few documents overfits them.
PIECE_BYTES = 4 * 1024

CHUNKS_AT_LEAST = 64  # small corpora get smaller chunks, so that three slices can share them

MAX_RECORD_BYTES = RECORD_BYTES.most  # bytes of one line of JSON

RECORD_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file to read.

    Attributes:
        path: path of the file.
        nbytes: its size in bytes when it was listed.
    """

    path: Path
    nbytes: int

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()


def regular_file(path: Path) -> TextFile | None:
    """Return `path` as a file to read, or None for a folder.

    Raises:
        RecipeError: `path` is neither a file nor a folder; reading a pipe or a device could block or never end.
        MachineError: the file system gives no information about `path`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=path) from None
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise RecipeError("data.text: neither a file nor a folder", where=path, found=stat.filemode(status.st_mode))
    return TextFile(path=path, nbytes=status.st_size)


def check_head(file: TextFile, records: Records) -> None:
    """Check the first bytes of a file.

    Raises:
        RecipeError: the bytes are not UTF-8, as in a compressed file, or the first line of a JSON Lines file is not a record of the
            recipe's format.
        MachineError: the file cannot be read.
        SourceChanged: the size of the file has changed.
    """
    with _open(file) as handle:
        head = handle.readline(2 * CHUNK_BYTES) if file.suffix in RECORD_SUFFIXES else handle.read(4096)
    if file.suffix in RECORD_SUFFIXES and (head.endswith(b"\n") or len(head) == file.nbytes):
        _record_text(head, file, 0, records)
        return
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError as error:
        raise _not_utf8(file.path, error.start) from None


def _not_utf8(path: Path, offset: int) -> RecipeError:
    return RecipeError(
        "data.text: not UTF-8 text",
        where=f"{path}: byte {offset}",
        hint="files that are not .jsonl or .parquet are read as UTF-8 text; unpack or convert it first",
    )


def shuffled_chunks(files: Sequence[TextFile], seed: int, records: Records = TEXTS) -> Iterator[str]:
    """Yield the text of all files, chunk by chunk in shuffled order. Chunks are located by number, so no list of them is stored.

    Args:
        files: the files; those of JSON Lines hold records.
        seed: seed of the order.
        records: how a record becomes text.
    """
    total = sum(file.nbytes for file in files)
    step = max(256, min(PIECE_BYTES, total // CHUNKS_AT_LEAST))
    ends = list(itertools.accumulate(-(-file.nbytes // step) for file in files))
    for index in range(ends[-1]):
        number = permuted(index, ends[-1], f"chunks/{seed}")
        which = bisect.bisect_right(ends, number)
        start = (number - (ends[which - 1] if which else 0)) * step
        with _open(files[which]) as handle:
            if files[which].suffix in RECORD_SUFFIXES:
                yield from _read_records(handle, files[which], start, step, records)
            else:
                yield from _read_text(handle, files[which], start, step)


@contextlib.contextmanager
def _open(file: TextFile) -> Iterator[BinaryIO]:
    try:
        with file.path.open("rb") as handle:
            if os.fstat(handle.fileno()).st_size != file.nbytes:
                raise SourceChanged("data changed while it was read", where=file.path)
            yield handle
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=file.path) from None


def _read_text(handle: BinaryIO, file: TextFile, start: int, step: int) -> Iterator[str]:
    """Yield the lines that begin in [start, start + step), as one piece."""
    begin, end = (_boundary(handle, offset, file.nbytes, step) for offset in (start, start + step))
    handle.seek(begin)
    raw = handle.read(end - begin)
    try:
        yield raw.decode("utf-8").removeprefix("\ufeff" if begin == 0 else "")
    except UnicodeDecodeError as error:
        raise _not_utf8(file.path, begin + error.start) from None


def _boundary(handle: BinaryIO, offset: int, size: int, step: int) -> int:
    """Return the offset of the first line that begins in [offset, offset + step).

    If no line begins there, return the offset of the first character that begins at or after `offset`.
    """
    if offset <= 0 or offset >= size:
        return min(max(offset, 0), size)
    handle.seek(offset - 1)
    window = handle.read(step)
    newline = window.find(b"\n")
    if newline >= 0:
        return offset + newline
    following = window[1:5]
    return offset + next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))


def _read_records(handle: BinaryIO, file: TextFile, start: int, step: int, records: Records) -> Iterator[str]:
    """Yield the texts of the JSON lines that begin in [start, start + step)."""
    position = start
    if start:
        handle.seek(start - 1)
        rest = handle.readline(step + 1)
        if not rest.endswith(b"\n"):
            return
        position = start - 1 + len(rest)
    while position < min(start + step, file.nbytes):
        line = handle.readline(MAX_RECORD_BYTES + 1)
        if len(line) > MAX_RECORD_BYTES:
            raise RecipeError(
                "data.text: line too long",
                where=f"{file.path}:{_line_number(file, position)}",
                expected=f"at most {MAX_RECORD_BYTES} bytes",
            )
        text = _record_text(line, file, position, records)
        if text:
            yield text
        position += len(line)


def _record_text(line: bytes, file: TextFile, position: int, records: Records) -> str:
    """Return the text of one JSON line. A blank line gives an empty text.

    Raises:
        RecipeError: the line is not UTF-8, no JSON object, or not a record of the recipe's format.
    """

    def where() -> str:
        return f"{file.path}:{_line_number(file, position)}"

    try:
        content = line.decode("utf-8").removeprefix("\ufeff" if position == 0 else "").strip()
        record = json.loads(content) if content else {}
        problem = f"a JSON {type(record).__name__}, no object"
    except UnicodeDecodeError as error:
        raise _not_utf8(file.path, position + error.start) from None
    except (ValueError, RecursionError) as error:
        record, problem = None, f"no JSON: {str(error)[:80]}"
    if not isinstance(record, dict):
        expected = f"an object a line, {records.example}"
        raise RecipeError("data: record without text", where=where(), expected=expected, found=problem)
    return records.text(record, where=where) if content else ""


def _line_number(file: TextFile, position: int) -> int:
    with _open(file) as handle:
        blocks = iter(functools.partial(handle.read, 1 << 20), b"")
        number, left = 1, position
        for block in blocks:
            number += block[:left].count(b"\n")
            left -= min(left, len(block))
            if not left:
                break
    return number


def cut(text: str, limit: int = 2 * CHUNK_BYTES) -> Iterator[str]:
    """Yield `text` in pieces of at most `limit` characters, split after a line or a word where possible. Skip blank pieces."""
    begin = 0
    while begin < len(text):
        end = begin + limit
        if end < len(text):
            breaks = (text.rfind(mark, begin + limit // 2, end) + 1 for mark in "\n ")
            end = next((place for place in breaks if place), end)
        if text[begin:end].strip():
            yield text[begin:end]
        begin = end

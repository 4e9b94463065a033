"""Text in, slices of token ids out: what an operator learns on, is chosen on and is reported on.

Text files and JSON Lines are cut into chunks by offset, the chunks are put into an order that `seed` alone decides, and
only as many of them are read and tokenised as the slices need: a corpus of any size costs the same. No name of a
folder enters anything, so the same text gives the same slices wherever it lies.
Parquet files and datasets of the Hub are read as streams (extra `datasets`), rows reordered within a window.
"""

from __future__ import annotations

import bisect
import codecs
import contextlib
import fnmatch
import functools
import hashlib
import importlib
import importlib.util
import itertools
import json
import logging
import os
import re
import stat
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from ligo_convert.errors import LigoError, MachineError, MissingExtra, RecipeError, SourceChanged, SourceError

CHUNK_BYTES = 32 * 1024  # a chunk reaches to the end of its last line: up to twice as much
CHUNKS_AT_LEAST = 64  # small corpora are cut finer, so that three slices can share them
MAX_RECORD_BYTES = 64 * 1024 * 1024  # one line of JSON
WINDOW_ROWS = 1024  # streamed rows that are held to be reordered
ENCODE_CHARACTERS = 256 * 1024  # tokenised at a time
TOKENIZER_TRAINING_BYTES = 6_000_000

RECORD_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIX = ".parquet"
STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test"})


class HubText(Protocol):
    """A dataset of the Hub and the column that holds its text."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def split(self) -> str | None: ...
    @property
    def column(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...


class TextData(Protocol):
    """What a recipe says about its data; exactly one of the four is set."""

    @property
    def text(self) -> Sequence[str] | None: ...
    @property
    def hub(self) -> HubText | None: ...
    @property
    def images(self) -> str | None: ...
    @property
    def stdlib(self) -> bool | None: ...


# ---------------------------------------------------------------------------------------------------- which files


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What can be known about the data without reading it.

    `kind` is `text` (plain text and JSON Lines), `parquet`, `stdlib` or `hub`; a dataset of the Hub has no files and
    an `nbytes` of 0 until it is read. `files` are places on this machine: not for anything that is shared.
    """

    kind: str
    files: tuple[Path, ...]
    nbytes: int


def check_data(data: TextData, *, base: Path) -> DataFacts:
    """Find the data and look at the head of every file; load no tokenizer, read nothing large, ask no network.

    Args:
        data: the recipe's `fit.data`.
        base: the folder that relative globs start from.

    Raises:
        RecipeError: not exactly one kind of data, images, a glob without a file, a file that is not what its suffix
            says, no text in any of them.
        MachineError: a file or folder that may not be read, a Python without its library's sources.
        MissingExtra: parquet or the Hub without the package `datasets`.
    """
    kind, files = _find(data, base)
    if kind != "stdlib":
        for file in files:
            _check_head(file)
    return DataFacts(kind=kind, files=tuple(file.path for file in files), nbytes=sum(file.nbytes for file in files))


def _find(data: TextData, base: Path) -> tuple[str, list[_File]]:
    """The kind of `data` and its files; at least one of them holds something. None for the Hub."""
    kind = _kind(data)
    if kind == "hub":
        _require_datasets("a dataset of the Hub")
        return kind, []
    files = _stdlib_files() if kind == "stdlib" else _text_files(data.text or (), base)
    if any(file.suffix == PARQUET_SUFFIX for file in files):
        kind = "parquet"
        others = [file.path for file in files if file.suffix != PARQUET_SUFFIX]
        if others:
            raise RecipeError(
                "data.text: parquet cannot be mixed with other files", where=others[0], hint="choose one of the two"
            )
        _require_datasets("a parquet file")
    if not sum(file.nbytes for file in files):
        raise RecipeError("data.text: every file is empty", where=base, found=f"{len(files)} files of 0 bytes")
    return kind, files


def _kind(data: TextData) -> str:
    given = [name for name in ("text", "hub", "images", "stdlib") if getattr(data, name)]
    if given == ["images"]:
        raise RecipeError("data.images: text families need text", hint="give data.text, data.hub or data.stdlib")
    if len(given) != 1:
        raise RecipeError(
            "data: exactly one kind is needed",
            expected="one of text, hub, stdlib",
            found=", ".join(given) or "none of them",
        )
    return given[0]


@dataclass(frozen=True, kw_only=True)
class _File:
    path: Path
    nbytes: int

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()


def _text_files(patterns: Sequence[str], base: Path) -> list[_File]:
    """The regular files behind `patterns`: patterns in their order, names sorted within each, none twice."""
    found: dict[str, _File] = {}
    for pattern in patterns:
        files = [file for path in _expand(pattern, base) if (file := _regular_file(path)) is not None]
        if not files:
            raise RecipeError(
                f"data.text: {pattern!r} matches no file",
                where=base,
                hint="globs are relative to the recipe's folder; to take a folder, name its files: FOLDER/**/*.txt",
            )
        for file in files:
            found.setdefault(os.path.normpath(file.path.absolute()), file)
    return list(found.values())


def _regular_file(path: Path) -> _File | None:
    """`path` as a file to read, or None for a folder. A pipe or a device would block or never end: refused."""
    try:
        status = path.stat()
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=path) from None
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise RecipeError("data.text: neither a file nor a folder", where=path, found=stat.filemode(status.st_mode))
    return _File(path=path, nbytes=status.st_size)


def _expand(pattern: str, base: Path) -> list[Path]:
    """Every path that `pattern` names, sorted by its POSIX form.

    Written out, not left to `glob`: what `**` follows and whether `*` takes hidden names has changed between versions
    of Python, and a loop of links must end. Here `**` follows no links and nothing takes a leading dot unasked.
    """
    if "\0" in pattern:
        raise RecipeError("data.text: a name cannot hold a NUL character", found=repr(pattern))
    if os.path.lexists(base / pattern):
        return [base / pattern]
    root, parts = base, Path(pattern).parts
    if Path(pattern).is_absolute():
        root, parts = Path(parts[0]), parts[1:]
    # `**/**` says what `**` says, at the price of a walk for every way to share the folders out.
    once = tuple(part for index, part in enumerate(parts) if part != "**" or parts[index - 1 : index] != ("**",))
    return sorted(set(_walk(root, once)), key=Path.as_posix)


def _walk(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    if not parts:
        yield folder
    elif parts[0] == "**":
        rest = parts[1:] or ("*",)
        yield from _walk(folder, rest)
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _walk(folder / entry.name, parts)
    elif not re.search(r"[*?\[]", parts[0]):
        if os.path.lexists(folder / parts[0]):
            yield from _walk(folder / parts[0], parts[1:])
    else:
        for entry in _entries(folder):
            hidden = entry.name.startswith(".") and not parts[0].startswith(".")
            if not hidden and fnmatch.fnmatchcase(entry.name, parts[0]):
                yield from _walk(folder / entry.name, parts[1:])


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise MachineError(f"folder cannot be listed: {error.strerror}", where=folder) from None


def _stdlib_files() -> list[_File]:
    """The sources of the running Python's library, without what others installed, tests, and what this build wrote.

    `_sysconfigdata*.py` and `config-*` hold the paths of the machine that built this Python.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in STDLIB_EXCLUDED and not name.startswith("config-")]
        names = [name for name in names if name.endswith(".py") and not name.startswith("_sysconfig")]
        paths = (path for name in names if not (path := Path(folder) / name).is_symlink())
        files += [_File(path=path, nbytes=path.stat().st_size) for path in paths]
    if not files:
        raise MachineError("data.stdlib: this Python comes without its library's sources", where=root)
    return sorted(files, key=lambda file: file.path.relative_to(root).as_posix())


def _check_head(file: _File) -> None:
    """Refuse what the first bytes already give away: a file that cannot be opened, is packed or has other columns."""
    if file.suffix == PARQUET_SUFFIX:
        _open_parquet(file.path)
        return
    with _open(file) as handle:
        head = handle.readline(2 * CHUNK_BYTES) if file.suffix in RECORD_SUFFIXES else handle.read(4096)
    if file.suffix in RECORD_SUFFIXES and (head.endswith(b"\n") or len(head) == file.nbytes):
        _record_text(head, file, 0)
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


# ------------------------------------------------------------------------------------------------- from files to text


def permuted(index: int, size: int, key: str) -> int:
    """Where `index` goes in the permutation of `range(size)` that `key` names.

    A Feistel network of four SHA-256 rounds, walked until it lands inside: any entry of a permutation of any length at
    once, without holding it, and the same for ever, which no library's generator promises.
    """
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            digest = hashlib.sha256(f"{key}/{turn}/{right}".encode()).digest()
            left, right = right, left ^ (int.from_bytes(digest[:8], "big") & mask)
        index = left << half | right
        if index < size:
            return index


def documents(data: TextData, *, base: Path, seed: int) -> Iterator[str]:
    """The pieces of text of `data`, lazily, in the order that the text and `seed` decide.

    A piece is a chunk of a text file (a whole small file), the `text` of one line of JSON, or a row of a table; none is
    empty. Pieces are at most 64 Ki characters long: longer lines and rows are cut.

    Raises:
        RecipeError: as `check_data`; bytes that are not UTF-8 (with file and offset); a line or row without text (with
            file and line or row).
        SourceChanged: a file that changed size since it was found; a dataset out of reach.
    """
    kind, files = _find(data, base)
    if kind in ("hub", "parquet"):
        rows = _hub_rows(data.hub) if data.hub else _parquet_rows([file.path for file in files], seed)
    for piece in _reordered(rows, seed) if kind in ("hub", "parquet") else _chunks(files, seed):
        yield from _cut(piece)


def _chunks(files: Sequence[_File], seed: int) -> Iterator[str]:
    """The text of all files, chunk by chunk in shuffled order; a chunk is found by its number, so none is held."""
    total = sum(file.nbytes for file in files)
    step = max(256, min(CHUNK_BYTES, total // CHUNKS_AT_LEAST))
    ends = list(itertools.accumulate(-(-file.nbytes // step) for file in files))
    for index in range(ends[-1]):
        number = permuted(index, ends[-1], f"chunks/{seed}")
        which = bisect.bisect_right(ends, number)
        start = (number - (ends[which - 1] if which else 0)) * step
        read = _read_records if files[which].suffix in RECORD_SUFFIXES else _read_text
        with _open(files[which]) as handle:
            yield from read(handle, files[which], start, step)


@contextlib.contextmanager
def _open(file: _File) -> Iterator[BinaryIO]:
    try:
        with file.path.open("rb") as handle:
            if os.fstat(handle.fileno()).st_size != file.nbytes:
                raise SourceChanged("data changed while it was read", where=file.path)
            yield handle
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=file.path) from None


def _read_text(handle: BinaryIO, file: _File, start: int, step: int) -> Iterator[str]:
    """The lines that begin in [start, start + step), as one piece."""
    begin, end = (_boundary(handle, offset, file.nbytes, step) for offset in (start, start + step))
    handle.seek(begin)
    raw = handle.read(end - begin)
    try:
        yield raw.decode("utf-8").removeprefix("\ufeff" if begin == 0 else "")
    except UnicodeDecodeError as error:
        raise _not_utf8(file.path, begin + error.start) from None


def _boundary(handle: BinaryIO, offset: int, size: int, step: int) -> int:
    """The first beginning of a line in [offset, offset + step); of a character, where no line begins there."""
    if offset <= 0 or offset >= size:
        return min(max(offset, 0), size)
    handle.seek(offset - 1)
    window = handle.read(step)
    newline = window.find(b"\n")
    if newline >= 0:
        return offset + newline
    following = window[1:5]
    return offset + next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))


def _read_records(handle: BinaryIO, file: _File, start: int, step: int) -> Iterator[str]:
    """The texts of the lines of JSON that begin in [start, start + step)."""
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
        text = _record_text(line, file, position)
        if text:
            yield text
        position += len(line)


def _record_text(line: bytes, file: _File, position: int) -> str:
    """The `text` of one line; empty for a blank line."""
    try:
        content = line.decode("utf-8").removeprefix("\ufeff" if position == 0 else "").strip()
        record = json.loads(content) if content else {"text": ""}
        problem = "" if isinstance(record, dict) else f"a JSON {type(record).__name__}, no object"
    except UnicodeDecodeError as error:
        raise _not_utf8(file.path, position + error.start) from None
    except (ValueError, RecursionError) as error:
        record, problem = {}, f"no JSON: {str(error)[:80]}"
    if not problem and not _is_text(record.get("text")):
        problem = "its text is not readable text" if "text" in record else f"keys: {', '.join(sorted(record))[:80]}"
    if problem:
        raise RecipeError(
            "data.text: line without text",
            where=f"{file.path}:{_line_number(file, position)}",
            expected='an object a line, {"text": "..."}',
            found=problem,
        )
    return str(record["text"])


def _is_text(value: object) -> bool:
    """Whether a tokenizer takes `value`: a string without half a surrogate pair, which JSON can smuggle in."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _line_number(file: _File, position: int) -> int:
    with _open(file) as handle:
        blocks = iter(functools.partial(handle.read, 1 << 20), b"")
        number, left = 1, position
        for block in blocks:
            number += block[:left].count(b"\n")
            left -= min(left, len(block))
            if not left:
                break
    return number


def _cut(text: str, limit: int = 2 * CHUNK_BYTES) -> Iterator[str]:
    """`text` in pieces of at most `limit` characters, cut after a line or a word where there is one."""
    begin = 0
    while begin < len(text):
        end = begin + limit
        if end < len(text):
            breaks = (text.rfind(mark, begin + limit // 2, end) + 1 for mark in "\n ")
            end = next((place for place in breaks if place), end)
        if text[begin:end].strip():
            yield text[begin:end]
        begin = end


# ------------------------------------------------------------------------------------------------ from tables to text


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _require_datasets(what: str) -> None:
    if not _installed("datasets", "pyarrow"):
        raise MissingExtra(f"data: {what} needs the package datasets", extra="datasets")


def _open_parquet(path: Path) -> Any:
    """A parquet file with a text column `text`; only its footer is read."""
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        table = parquet.ParquetFile(path)
        names = list(table.schema_arrow.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise RecipeError("data.text: no readable parquet file", where=path, found=str(error)[:120]) from None
    if "text" not in names:
        raise RecipeError("data.text: no column text", where=path, found=", ".join(names)[:200])
    return table


def _parquet_rows(files: Sequence[Path], seed: int) -> Iterator[str]:
    """The rows of all files, row group by row group in shuffled order."""
    pyarrow = importlib.import_module("pyarrow")
    groups = [(path, group) for path in files for group in range(_open_parquet(path).num_row_groups)]
    for index in range(len(groups)):
        path, group = groups[permuted(index, len(groups), f"groups/{seed}")]
        row = 0
        with contextlib.closing(_open_parquet(path)) as table:
            batches = table.iter_batches(batch_size=WINDOW_ROWS, row_groups=[group], columns=["text"])
            while True:
                try:
                    batch = next(batches, None)
                except (pyarrow.ArrowException, OSError) as error:
                    raise RecipeError("data.text: damaged parquet file", where=path, found=str(error)[:120]) from None
                if batch is None:
                    break
                for value in batch.column(0).to_pylist():
                    yield _row_text(value, f"{path}: row group {group}, row {row}")
                    row += 1


def _row_text(value: object, where: str) -> str:
    if not _is_text(value):
        raise RecipeError("data: row without text", where=where, found=type(value).__name__)
    return str(value)


def _hub_rows(hub: HubText) -> Iterator[str]:
    """The rows of a dataset of the Hub, as a stream: only what is read is downloaded."""
    import datasets

    # `load_dataset` takes a folder of this name before it asks the Hub: another dataset, without a word.
    if Path(hub.id).exists():
        raise RecipeError(
            "data.hub.id: there is a folder of this name here, so the dataset of the Hub would be passed over",
            found=hub.id,
            hint="run from another folder, or name local files with data.text",
        )
    column = hub.column or "text"
    try:
        split = hub.split or "train"
        stream = datasets.load_dataset(hub.id, name=hub.name, split=split, revision=hub.revision, streaming=True)
        for row, record in enumerate(stream):
            if column not in record:
                raise RecipeError(
                    f"data.hub.column: no column {column}", where=hub.id, found=", ".join(sorted(record))[:200]
                )
            yield _row_text(record[column], f"{hub.id}: row {row}")
    except LigoError:
        raise
    except ValueError as error:
        # An unknown configuration or split: the library lists those there are.
        raise RecipeError("data.hub: the dataset refuses this", where=hub.id, found=str(error)[:300]) from None
    except Exception as error:
        raise SourceChanged(
            "data.hub: the dataset cannot be read",
            where=hub.id,
            found=f"{type(error).__name__}: {str(error)[:200]}",
            hint="check its name, its access conditions and the network",
        ) from error


def _reordered(rows: Iterator[str], seed: int) -> Iterator[str]:
    """A stream cannot be shuffled without being read; its rows change places within windows."""
    for number in itertools.count():
        window = list(itertools.islice(rows, WINDOW_ROWS))
        if not window:
            return
        for index in range(len(window)):
            yield window[permuted(index, len(window), f"rows/{seed}/{number}")]


# -------------------------------------------------------------------------------------------------------- tokenizers

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
VOCABULARY_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))

# The order is the order of ids, and it is not free: BERT pads with id 0 and RoBERTa counts positions around id 1.
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
SPECIAL_TOKENS = {
    "bert": BERT_TOKENS,
    "distilbert": BERT_TOKENS,
    "electra": BERT_TOKENS,
    "roberta": ROBERTA_TOKENS,
    "xlm-roberta": ROBERTA_TOKENS,
    "camembert": ROBERTA_TOKENS,
}
CAUSAL_TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def check_tokenizer(directory: Path, *, label: str) -> None:
    """Refuse a folder that no tokenizer can be loaded from, by the names of its files.

    Args:
        directory: where the tokenizer's files are.
        label: what the user calls it, for messages: a model, a folder.

    Raises:
        RecipeError: no tokenizer there.
        MissingExtra: only a SentencePiece model there, and no package to read it.
    """
    if any(all(_is_file(directory / name) for name in names) for names in VOCABULARY_FILES):
        return
    model = next((name for name in SENTENCEPIECE_FILES if _is_file(directory / name)), None)
    if model is None:
        raise RecipeError(
            "text needs a tokenizer, and there is none",
            where=label,
            expected="tokenizer.json, vocab.json with merges.txt, vocab.txt or tokenizer.model",
            hint="name one in fit.data.tokenizer: a folder, or the Hub id of a model with the same vocabulary",
        )
    if not (_installed("sentencepiece") and _installed("google") and _installed("google.protobuf")):
        raise MissingExtra(f"{model} needs the packages sentencepiece and protobuf", extra="sentencepiece", where=label)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=path) from None


def load_tokenizer(directory: Path) -> Any:
    """The `transformers` tokenizer of a local folder: no network, no code from the folder, no output.

    It is loaded from a screened copy. `tokenizer_config.json` and `special_tokens_map.json` reach the constructor as
    keyword arguments, paths and code references among them; `config.json` only says which class.

    Raises:
        RecipeError, MissingExtra: as `check_tokenizer`.
        SourceError: files that are broken, or ask for a class that is not there.
    """
    check_tokenizer(directory, label=str(directory))
    with tempfile.TemporaryDirectory(prefix="ligo-tokenizer-") as scratch:
        for names in (*VOCABULARY_FILES, SENTENCEPIECE_FILES, ("added_tokens.json",)):
            for name in names:
                if _is_file(directory / name):
                    (Path(scratch) / name).symlink_to((directory / name).absolute())
        for name, keep in _SCREENS.items():
            content = _read_object(directory / name)
            if content is not None:
                kept = {key: value for key, value in content.items() if keep(key)}
                (Path(scratch) / name).write_text(json.dumps(kept), encoding="utf-8")
        tokenizer = _auto_tokenizer(Path(scratch), directory)
    tokenizer.name_or_path = str(directory)
    return tokenizer


_SCREENS: Mapping[str, Callable[[str], bool]] = {
    "config.json": lambda key: key in ("model_type", "tokenizer_class", "transformers_version"),
    "special_tokens_map.json": lambda key: key.endswith(("_token", "_tokens")),
    "tokenizer_config.json": lambda key: (
        key not in ("auto_map", "init_inputs", "chat_template", "name_or_path")
        and not key.endswith(("_file", "_files"))
    ),
}


def _read_object(path: Path) -> dict[str, Any] | None:
    if not _is_file(path):
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError("no JSON", where=path, found=str(error)[:120]) from None
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=path) from None
    if not isinstance(content, dict):
        raise SourceError("no JSON object", where=path, found=type(content).__name__)
    return content


def _auto_tokenizer(screened: Path, directory: Path) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging as library_logging

    verbosity = library_logging.get_verbosity()
    library_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoTokenizer.from_pretrained(screened, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # The tokenizers library raises bare exceptions; whatever it was, the files are what is wrong.
        raise SourceError(
            "the tokenizer cannot be loaded",
            where=directory,
            found=f"{type(error).__name__}: {str(error)[:300]}".replace(str(screened), str(directory)),
            hint="name another in fit.data.tokenizer",
        ) from error
    finally:
        library_logging.set_verbosity(verbosity)


def train_tokenizer(
    data: TextData,
    *,
    base: Path,
    vocabulary: int,
    seed: int,
    model_type: str,
    context: int,
    max_bytes: int = TOKENIZER_TRAINING_BYTES,
) -> dict[str, bytes]:
    """Train a byte-level BPE tokenizer on the first `max_bytes` (default 6 MB) of shuffled text.

    Args:
        vocabulary: entries at most; little text fills fewer.
        model_type: the `model_type` of the config.json it will lie beside; decides the special tokens.
        context: the longest sequence the model takes, in tokens.

    Returns:
        `tokenizer.json` and `tokenizer_config.json` as bytes, the same for the same text and arguments.

    Raises:
        RecipeError: a vocabulary too small for bytes and special tokens; a model type beside which `AutoTokenizer`
            reads the files as another tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = SPECIAL_TOKENS.get(model_type, CAUSAL_TOKENS)
    names = list(dict.fromkeys(special.values()))
    if vocabulary < 256 + len(names):
        raise RecipeError(
            "the vocabulary is too small for a byte-level tokenizer",
            expected=f"at least {256 + len(names)}: 256 bytes and {len(names)} special tokens",
            found=vocabulary,
        )
    texts = list(_first_bytes(documents(data, base=base, seed=seed), max_bytes))
    if not texts:
        raise RecipeError("no text to train a tokenizer on", where=base)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    config = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tokenizer_class": "GPT2Tokenizer" if model_type == "gpt2" else "PreTrainedTokenizerFast",
        **special,
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }
    _check_trained(files, tokenizer, model_type, texts[0][:4096])
    return files


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        yield text
        taken += len(text.encode())
        if taken >= limit:
            return


def _check_trained(files: Mapping[str, bytes], tokenizer: Any, model_type: str, sample: str) -> None:
    """Some model types bring a tokenizer class that puts its own rules over those in tokenizer.json."""
    with tempfile.TemporaryDirectory(prefix="ligo-tokenizer-") as scratch:
        for name, content in files.items():
            (Path(scratch) / name).write_bytes(content)
        (Path(scratch) / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        loaded = load_tokenizer(Path(scratch))
    sample += " don't\n\n\t x1234 \u00e9\u2603"
    if _encoder(loaded)([sample])[0] != tokenizer.encode(sample, add_special_tokens=False).ids:
        raise RecipeError(
            f"a tokenizer trained here reads differently beside a model of type {model_type}",
            hint="name one in fit.data.tokenizer",
        )


def _encoder(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """Texts to ids without special tokens; truncation, padding and dropout that a tokenizer.json asks for are off."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda texts: [tokenizer.encode(text, add_special_tokens=False, verbose=False) for text in texts]
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    return lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


# ------------------------------------------------------------------------------------------------------------ slices


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSlices:
    """Three slices of token ids that share no document, each uint32 [blocks, sequence_length], read-only.

    `validation` is the slice an operator is chosen on, `test` the one it is reported on. `digest` is the SHA-256 of all
    three, shapes included: two runs with the same digest learn from the same tokens. For torch, convert first:
    `torch.from_numpy(slices.test.astype(numpy.int64))`.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for name in ("train", "validation", "test"):
            # A view: the caller's own array stays writable.
            array = getattr(self, name).view()
            assert array.dtype == np.uint32, f"{name}: token ids are uint32, not {array.dtype}"
            assert array.ndim == 2, f"{name}: a slice is [blocks, sequence_length], not {array.shape}"
            assert array.size, f"{name}: empty slice"
            array.flags.writeable = False
            object.__setattr__(self, name, array)
            digest.update(f"{name} {array.shape[0]}x{array.shape[1]}\n".encode())
            digest.update(array.astype("<u4", copy=False).tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    def batch(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
        """Batch number `step` of the train slice: uint32 [batch_size, sequence_length], a copy.

        Every block comes once an epoch, each epoch in an order of its own. A batch depends on nothing but its number,
        so a run that goes on from step N sees what an uninterrupted one would have seen.
        """
        blocks = len(self.train)
        rows = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            epoch, index = divmod(place, blocks)
            rows.append(permuted(index, blocks, f"batches/{seed}/{epoch}"))
        return self.train[rows]


def random_slice(*, vocabulary: int, sequence_length: int, blocks: int, seed: int) -> np.ndarray:
    """Token ids for where there is no text: uniform, uint32 [blocks, sequence_length], the same for ever."""
    assert vocabulary > 0
    count = blocks * sequence_length
    stream = hashlib.shake_256(f"random/{seed}".encode()).digest(8 * count)
    # 64 bits an id, so that the remainder favours no id measurably.
    return (np.frombuffer(stream, dtype="<u8") % vocabulary).astype(np.uint32).reshape(blocks, sequence_length)


def token_slices(
    data: TextData,
    tokenizer_directory: Path,
    *,
    base: Path,
    sequence_length: int,
    train_tokens: int,
    heldout_tokens: int,
    seed: int,
    vocabulary: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenSlices:
    """Tokenise as much of `data` as three slices need, test first, then validation, then train.

    Sizes are rounded up to whole blocks of `sequence_length`; documents are joined by the tokenizer's end token and
    what the last document has beyond a slice is dropped. While the text suffices, the held-out slices do not depend on
    `train_tokens`. Where it does not, each held-out slice is at most an eighth of it and train is the rest; steps
    beyond that begin a new epoch.

    Args:
        tokenizer_directory: local folder of the tokenizer.
        base: the folder that relative globs start from.
        train_tokens, heldout_tokens: wanted sizes, in tokens; `heldout_tokens` for each of the two slices.
        vocabulary: the model's number of embeddings.
        on_progress: called with tokens found and tokens wanted.

    Raises:
        RecipeError: less text than one block for each slice; a token id beyond the model's vocabulary; as `documents`.
        SourceError, MissingExtra: as `load_tokenizer`.
    """
    heldout, train = (
        -(-max(1, wanted) // sequence_length) * sequence_length for wanted in (heldout_tokens, train_tokens)
    )
    tokenizer = load_tokenizer(tokenizer_directory)
    slices = _Fill(sizes=[heldout, heldout, train])
    seen: list[np.ndarray] = []
    tokens = 0
    encoded = _encoded(documents(data, base=base, seed=seed), tokenizer, tokenizer_directory, vocabulary)
    while not slices.full and (document := next(encoded, None)) is not None:
        seen.append(document)
        slices.add(document)
        tokens += len(document)
        if on_progress is not None:
            on_progress(min(tokens, 2 * heldout + train), 2 * heldout + train)
    if not slices.full:
        share = max(1, min(heldout, tokens // 8) // sequence_length) * sequence_length
        slices = _Fill(sizes=[share, share, train])
        for document in seen:
            slices.add(document)
    test, validation, rest = (slices.blocks(index, sequence_length) for index in range(3))
    if not (len(test) and len(validation) and len(rest)):
        raise RecipeError(
            "too little text",
            expected=f"a block of {sequence_length} tokens for each of test, validation and train, "
            "no document in two of them",
            found=f"{tokens} tokens in {len(seen)} documents",
            hint="give more text or a shorter fit.sequence_length",
        )
    return TokenSlices(train=rest, validation=validation, test=test)


@dataclass(kw_only=True)
class _Fill:
    """Slices filled one after another with whole documents, until each has `sizes` tokens."""

    sizes: list[int]
    parts: list[list[np.ndarray]] = field(default_factory=lambda: [[], [], []])
    current: int = 0
    tokens: int = 0  # in the current slice

    @property
    def full(self) -> bool:
        return self.current == len(self.sizes)

    def add(self, document: np.ndarray) -> None:
        self.parts[self.current].append(document)
        self.tokens += len(document)
        if self.tokens >= self.sizes[self.current]:
            self.current, self.tokens = self.current + 1, 0

    def blocks(self, index: int, length: int) -> np.ndarray:
        """Slice `index` in whole blocks of `length` tokens: [blocks, length]."""
        ids = np.concatenate([np.empty(0, np.uint32), *self.parts[index]])
        return ids[: min(self.sizes[index], len(ids) // length * length)].reshape(-1, length)


def _encoded(texts: Iterator[str], tokenizer: Any, directory: Path, vocabulary: int) -> Iterator[np.ndarray]:
    """Each document's ids with the separator behind them, uint32 [tokens]; tokenised many at a time."""
    encode = _encoder(tokenizer)
    marks = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
    separator = [mark for mark in marks if mark is not None][:1]
    while batch := list(_first_bytes(texts, ENCODE_CHARACTERS)):
        for ids in encode(batch):
            document = np.array([*ids, *separator], dtype=np.uint32)
            if document.size and (largest := int(document.max())) >= vocabulary:
                raise RecipeError(
                    "the tokenizer does not fit the model",
                    where=directory,
                    expected=f"token ids below the model's vocabulary of {vocabulary}",
                    found=f"id {largest} ({tokenizer.convert_ids_to_tokens(largest)})",
                    hint="name the model's own tokenizer in fit.data.tokenizer",
                )
            yield document

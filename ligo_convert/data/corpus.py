"""What a recipe says about its text in, the files behind it and their pieces of text out, in a seeded order.

No name of a folder enters anything, so the same text comes in the same order wherever it lies. Text files and JSON
Lines are read chunk by chunk, tables and datasets of the Hub row by row: a corpus of any size costs what is taken of it.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from ligo_convert.data.hf_datasets import (
    PARQUET_SUFFIX,
    HubText,
    hub_rows,
    open_parquet,
    parquet_rows,
    reordered,
    require_datasets,
)
from ligo_convert.data.images import DataFacts, check_images
from ligo_convert.data.text_files import TextFile, check_head, cut, regular_file, shuffled_chunks
from ligo_convert.errors import DataMissing, MachineError, RecipeError
from ligo_convert.io.globs import expand

STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test"})


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


def check_data(data: TextData, *, base: Path, wants: Literal["text", "images"] = "text") -> DataFacts:
    """Find the data and look at the head of every file; load no tokenizer, read nothing large, ask no network.

    Args:
        data: the recipe's `fit.data`.
        base: the folder that relative globs start from. wants: what the model reads.

    Raises:
        RecipeError: not exactly one kind of data, images for text or text for images, a glob without a file, a file that
            is not what its suffix says, no text in any of them.
        MachineError: a file or folder that may not be read, a Python without its library's sources.
        MissingExtra: parquet or the Hub without the package `datasets`.
    """
    if wants == "images":
        if not data.images:
            raise RecipeError(
                "data: an image model needs images", hint="give data.images, a folder with a folder a class"
            )
        return check_images(data.images, base=base)
    kind, files = _find(data, base)
    if kind != "stdlib":
        for file in files:
            if file.suffix == PARQUET_SUFFIX:
                open_parquet(file.path)
            else:
                check_head(file)
    return DataFacts(kind=kind, files=tuple(file.path for file in files), nbytes=sum(file.nbytes for file in files))


def _find(data: TextData, base: Path) -> tuple[str, list[TextFile]]:
    """The kind of `data` and its files; at least one of them holds something. None for the Hub."""
    kind = _kind(data)
    if kind == "hub":
        require_datasets("a dataset of the Hub")
        return kind, []
    files = _stdlib_files() if kind == "stdlib" else _text_files(data.text or (), base)
    if any(file.suffix == PARQUET_SUFFIX for file in files):
        kind = "parquet"
        others = [file.path for file in files if file.suffix != PARQUET_SUFFIX]
        if others:
            raise RecipeError(
                "data.text: parquet cannot be mixed with other files", where=others[0], hint="choose one of the two"
            )
        require_datasets("a parquet file")
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


def _text_files(patterns: Sequence[str], base: Path) -> list[TextFile]:
    """The regular files behind `patterns`: patterns in their order, names sorted within each, none twice."""
    found: dict[str, TextFile] = {}
    for pattern in patterns:
        files = [file for path in expand(pattern, base) if (file := regular_file(path)) is not None]
        if not files:
            raise DataMissing(
                f"data.text: {pattern!r} matches no file",
                where=base,
                hint="globs are relative to the recipe's folder; to take a folder, name its files: FOLDER/**/*.txt",
            )
        for file in files:
            found.setdefault(os.path.normpath(file.path.absolute()), file)
    return list(found.values())


def _stdlib_files() -> list[TextFile]:
    """The sources of the running Python's library, without what others installed, tests, and what this build wrote.

    `_sysconfigdata*.py` and `config-*` hold the paths of the machine that built this Python.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in STDLIB_EXCLUDED and not name.startswith("config-")]
        names = [name for name in names if name.endswith(".py") and not name.startswith("_sysconfig")]
        paths = (path for name in names if not (path := Path(folder) / name).is_symlink())
        files += [TextFile(path=path, nbytes=path.stat().st_size) for path in paths]
    if not files:
        raise MachineError("data.stdlib: this Python comes without its library's sources", where=root)
    return sorted(files, key=lambda file: file.path.relative_to(root).as_posix())


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
        rows = hub_rows(data.hub) if data.hub else parquet_rows([file.path for file in files], seed)
    for piece in reordered(rows, seed) if kind in ("hub", "parquet") else shuffled_chunks(files, seed):
        yield from cut(piece)


def first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """As many of `texts` as it takes for `limit` bytes of UTF-8; no more is asked for."""
    taken = 0
    for text in texts:
        yield text
        taken += len(text.encode())
        if taken >= limit:
            return

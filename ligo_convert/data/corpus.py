"""The data of a recipe as a stream of texts in seeded order.

Input: the section `fit.data` of a recipe. It names one entry of `SOURCES`, the table of data sources.
Output: facts about the data (`check_data`) and its texts (`documents`).

Folder names do not affect the order, so the same content gives the same stream in any location. Every source is read lazily: the cost
depends on what is taken, not on the size of the corpus.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ligo_convert.data.chat_template import ChatTemplate
from ligo_convert.data.data_source import DataFacts, DataSource, Reads
from ligo_convert.data.hf_datasets import (
    PARQUET_SUFFIX,
    HubDatasetSource,
    HubText,
    LocalDataset,
    LocalDatasetSource,
    open_parquet,
    parquet_rows,
    reordered,
    require_datasets,
)
from ligo_convert.data.images import ImageFolderSource
from ligo_convert.data.records import FormatName, Records
from ligo_convert.data.text_files import TextFile, check_head, cut, regular_file, shuffled_chunks
from ligo_convert.errors import DataMissing, MachineError, RecipeError, brief
from ligo_convert.io.globs import Visits, expand

STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test"})


class TextFilesSource:
    """`data.text`: globs of text files, JSON Lines files or Parquet files."""

    reads: Reads = "text"

    def check(self, value: Sequence[str], *, base: Path, records: Records) -> DataFacts:
        files = self._find_files(value, base)
        parquet = _is_parquet(files)
        for file in files:
            if parquet:
                open_parquet(file.path, records)
            else:
                check_head(file, records)
        return _facts_of("parquet" if parquet else "text", files)

    def documents(self, value: Sequence[str], *, base: Path, seed: int, records: Records) -> Iterator[str]:
        files = self._find_files(value, base)
        if _is_parquet(files):
            return reordered(parquet_rows([file.path for file in files], seed, records), seed)
        return shuffled_chunks(files, seed, records)

    def local_paths(self, value: Sequence[str], *, base: Path) -> Iterator[Path]:
        visits = Visits()
        for pattern in value:
            yield from expand(pattern, base, visits)

    def _find_files(self, patterns: Sequence[str], base: Path) -> list[TextFile]:
        """Return the files of `patterns`, at least one of them not empty; either all are Parquet files or none is."""
        files = _matching_files(patterns, base)
        if _is_parquet(files):
            others = [file.path for file in files if file.suffix != PARQUET_SUFFIX]
            if others:
                raise RecipeError(
                    "data.text: parquet cannot be mixed with other files", where=others[0], hint="choose one of the two"
                )
            require_datasets("a parquet file")
        if not sum(file.nbytes for file in files):
            raise RecipeError("data.text: every file is empty", where=base, found=f"{len(files)} files of 0 bytes")
        return files


class StandardLibrarySource:
    """`data.stdlib`: the source files of the running Python's standard library; real text on every machine."""

    reads: Reads = "text"

    def check(self, value: bool, *, base: Path, records: Records) -> DataFacts:
        return _facts_of("stdlib", _stdlib_files())

    def documents(self, value: bool, *, base: Path, seed: int, records: Records) -> Iterator[str]:
        return shuffled_chunks(_stdlib_files(), seed)

    def local_paths(self, value: bool, *, base: Path) -> Iterator[Path]:
        # The sources change only with Python itself.
        return iter(())


# Key of the recipe's `fit.data` -> the source that reads it. docs/extending/adding-a-data-source.md says how to add one.
SOURCES: dict[str, DataSource] = {
    "text": TextFilesSource(),
    "hub": HubDatasetSource(),
    "dataset": LocalDatasetSource(),
    "images": ImageFolderSource(),
    "stdlib": StandardLibrarySource(),
}


class DataSection(Protocol):
    """The recipe's `fit.data`: one attribute for each key of `SOURCES`, exactly one of them set, and how records become text."""

    @property
    def text(self) -> Sequence[str] | None: ...
    @property
    def hub(self) -> HubText | None: ...
    @property
    def dataset(self) -> LocalDataset | None: ...
    @property
    def images(self) -> str | None: ...
    @property
    def stdlib(self) -> bool | None: ...
    @property
    def column(self) -> str | None: ...
    @property
    def format(self) -> FormatName | None: ...
    @property
    def packing(self) -> bool | None: ...


def check_data(data: DataSection, *, base: Path, wants: Reads = "text") -> DataFacts:
    """Find the data and read the head of every file. Loads no tokenizer, reads nothing large, uses no network.

    Args:
        data: the recipe's `fit.data`.
        base: the folder that relative globs start from.
        wants: the input of the model.

    Raises:
        RecipeError: not exactly one kind of data, a kind that the model cannot read, or as `DataSource.check`.
        DataMissing, MachineError, MissingExtra: as `DataSource.check`.
    """
    source, value = _select_source(data, wants)
    return source.check(value, base=base, records=_records_of(data))


def documents(data: DataSection, *, base: Path, seed: int, template: ChatTemplate | None = None) -> Iterator[str]:
    """Yield the texts of `data` lazily, in an order that the content and `seed` decide.

    A text is a chunk of a text file (or a whole small file), or a record: one line of JSON, or one row of a table, in the format of the
    recipe. None is empty, and none is longer than 64 Ki characters: longer records are cut.

    Args:
        data: the recipe's `fit.data`.
        base: the folder that relative paths start from.
        seed: seed of the order.
        template: chat template for conversations; without one, only the contents of their messages are yielded.

    Raises:
        RecipeError: as `check_data`; bytes that are not UTF-8 (with file and offset); a record without text (with file and line or row).
        SourceChanged: a file that changed size since it was found; a dataset that cannot be reached.
    """
    source, value = _select_source(data, "text")
    records = _records_of(data, template)
    for text in source.documents(value, base=base, seed=seed, records=records):
        yield from cut(text)


def local_paths(data: DataSection, *, base: Path) -> Iterator[Path]:
    """Yield the local files and folders that `data` names, without checking them."""
    for key, value in _given_values(data).items():
        yield from SOURCES[key].local_paths(value, base=base)


def first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Yield texts until `limit` bytes of UTF-8 are reached. Takes no further text from `texts`."""
    taken = 0
    for text in texts:
        yield text
        taken += len(text.encode())
        if taken >= limit:
            return


def _records_of(data: DataSection, template: ChatTemplate | None = None) -> Records:
    return Records(format=data.format or "text", column=data.column, template=template)


def _given_values(data: DataSection) -> Mapping[str, Any]:
    """Return the keys of `SOURCES` that the recipe sets, with their values."""
    return {key: value for key in SOURCES if (value := getattr(data, key, None))}


def _select_source(data: DataSection, wants: Reads) -> tuple[DataSource, Any]:
    """Return the one source that `data` names, with its value. Raises RecipeError unless it is exactly one and fits the model."""
    given = _given_values(data)
    keys = [key for key, source in SOURCES.items() if source.reads == wants]
    if given and not given.keys() & set(keys):
        models = "text families need text" if wants == "text" else "image models need images"
        raise RecipeError(
            f"data.{next(iter(given))}: {models}", hint="give " + " or ".join(f"data.{key}" for key in keys)
        )
    if len(given) != 1:
        raise RecipeError(
            "data: exactly one kind is needed",
            expected=f"one of {', '.join(keys)}",
            found=", ".join(given) or "none of them",
        )
    [(key, value)] = given.items()
    return SOURCES[key], value


def _facts_of(kind: str, files: Sequence[TextFile]) -> DataFacts:
    return DataFacts(kind=kind, files=tuple(file.path for file in files), nbytes=sum(file.nbytes for file in files))


def _is_parquet(files: Sequence[TextFile]) -> bool:
    return any(file.suffix == PARQUET_SUFFIX for file in files)


def _matching_files(patterns: Sequence[str], base: Path) -> list[TextFile]:
    """Return the regular files that match: patterns in their order, names sorted within each pattern, no file twice."""
    files: dict[str, TextFile] = {}
    visits = Visits()
    for pattern in patterns:
        matches = [file for path in expand(pattern, base, visits) if (file := regular_file(path)) is not None]
        if not matches:
            raise DataMissing(
                f"data.text: {brief(pattern)} matches no file",
                where=base,
                hint="globs are relative to the recipe's folder; to take a folder, name its files: FOLDER/**/*.txt",
            )
        for file in matches:
            files.setdefault(os.path.normpath(file.path.absolute()), file)
    return list(files.values())


def _stdlib_files() -> list[TextFile]:
    """Return the standard library's source files, without installed packages, tests and files written by the build.

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
        raise MachineError("data.stdlib: this Python was installed without the sources of its library", where=root)
    return sorted(files, key=lambda file: file.path.relative_to(root).as_posix())

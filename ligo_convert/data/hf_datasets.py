"""Stream the text of Parquet files, Hub datasets and folders that the package `datasets` reads (extra `datasets`).

A stream cannot be shuffled as a whole. Row groups of Parquet files come in seeded order; rows are shuffled within a window.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ligo_convert.data.data_source import DataFacts, Reads
from ligo_convert.data.records import TEXTS, Records
from ligo_convert.data.shuffle import permuted
from ligo_convert.errors import DataMissing, LigoError, MissingExtra, RecipeError, SourceChanged, brief
from ligo_convert.limits import RECORD_BYTES

PARQUET_SUFFIX = ".parquet"

WINDOW_ROWS = 1024  # streamed rows that are shuffled at a time

WINDOW_CHARACTERS = 128 << 20  # a window ends at the row that exceeds this


class LocalDataset(Protocol):
    """A folder that the package `datasets` reads."""

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def split(self) -> str | None: ...


class HubText(Protocol):
    """A Hub dataset and the column that holds its text."""

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


def require_datasets(what: str) -> None:
    """Raise MissingExtra if the extra `datasets` is not installed. `what` names the feature in the message."""
    if any(importlib.util.find_spec(package) is None for package in ("datasets", "pyarrow")):
        raise MissingExtra(f"data: {what} needs the package datasets", extra="datasets")


def open_parquet(path: Path, records: Records = TEXTS) -> Any:
    """Open a Parquet file and read its footer. Raises RecipeError unless it is readable and has the columns of `records`."""
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        table = parquet.ParquetFile(path)
        names = list(table.schema_arrow.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise RecipeError("data.text: not a readable parquet file", where=path, found=str(error)[:120]) from None
    check_columns(names, records, where=path)
    return table


def check_columns(names: Sequence[str], records: Records, *, where: str | Path) -> None:
    """Require the columns that are read. Raises RecipeError."""
    lacking = records.lacking(names)
    if lacking is not None:
        raise RecipeError(
            f"data: no column {lacking}",
            where=where,
            found=", ".join(names)[:200],
            hint="name the column in data.column",
        )


def parquet_rows(files: Sequence[Path], seed: int, records: Records = TEXTS) -> Iterator[str]:
    """Yield the rows of all files as text, row group by row group in shuffled order. Raises RecipeError for a row without text."""
    pyarrow = importlib.import_module("pyarrow")
    groups = [(path, group) for path in files for group in range(open_parquet(path, records).num_row_groups)]
    for index in range(len(groups)):
        path, group = groups[permuted(index, len(groups), f"groups/{seed}")]
        row = 0
        with contextlib.closing(open_parquet(path, records)) as table:
            _check_group(table, path, group, records)
            batches = table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=list(records.columns))
            while True:
                try:
                    batch = next(batches, None)
                except (pyarrow.ArrowException, OSError) as error:
                    raise RecipeError("data.text: damaged parquet file", where=path, found=str(error)[:120]) from None
                if batch is None:
                    break
                for record in batch.to_pylist():
                    yield records.text(record, where=partial(_row_name, f"{path}: row group {group}, row", row))
                    row += 1


def _row_name(before: str, row: int) -> str:
    return f"{before} {row}"


# Rows that are decoded at a time. A file of a few bytes may repeat one long text for every row.
_BATCH_ROWS = 16


def _check_group(table: Any, path: Path, group: int, records: Records) -> None:
    """Refuse a row group whose texts, as its file says, are longer decoded than a text may be. Raises RecipeError."""
    about = table.metadata.row_group(group)
    columns = (about.column(number) for number in range(about.num_columns))
    read = records.columns
    nbytes = sum(
        column.total_uncompressed_size for column in columns if column.path_in_schema.partition(".")[0] in read
    )
    if nbytes > RECORD_BYTES.most * max(1, about.num_rows):
        raise RecipeError(
            "data.text: text too long",
            where=f"{path}: row group {group}",
            expected=str(RECORD_BYTES),
            found=f"{nbytes:,} bytes in {about.num_rows:,} rows",
        )


def hub_rows(hub: HubText, records: Records = TEXTS) -> Iterator[str]:
    """Stream the rows of a Hub dataset as text. Only the rows that are read are downloaded.

    Raises:
        RecipeError: a local folder with the name of the dataset; an unknown configuration, split or column; a row without text.
        SourceChanged: the dataset cannot be reached, or the connection broke.
    """
    import datasets

    # `load_dataset` prefers a local folder of this name over the Hub, without a warning.
    if Path(hub.id).exists():
        raise RecipeError(
            "data.hub.id: a local folder of this name hides the dataset of the Hub",
            found=hub.id,
            hint="run from another folder, or name the folder in data.dataset.path",
        )
    if hub.column not in (None, "text"):
        records = replace(records, column=hub.column)

    def opened() -> Any:
        split = hub.split or "train"
        return datasets.load_dataset(hub.id, name=hub.name, split=split, revision=hub.revision, streaming=True)

    yield from _streamed(opened, records, key="data.hub", where=hub.id, remote=True)


def _streamed(opened: Callable[[], Any], records: Records, *, key: str, where: str, remote: bool) -> Iterator[str]:
    """Yield the rows of a dataset of the package `datasets` as text.

    Args:
        opened: opens the dataset.
        records: how a row becomes text.
        key: key of the recipe, for messages.
        where: name of the dataset, for messages.
        remote: whether it comes from the Hub.
    """
    try:
        with contextlib.ExitStack() as stack:
            rows = iter(opened())
            if hasattr(rows, "close"):
                stack.callback(rows.close)
            for row, record in enumerate(rows):
                if row == 0:
                    check_columns(sorted(record), records, where=where)
                yield records.text(record, where=partial(_row_name, f"{where}: row", row))
    except LigoError:
        raise
    except ValueError as error:
        # An unknown configuration or split; the message of the library lists the existing ones.
        raise RecipeError(
            f"{key}: the dataset cannot be loaded with these settings", where=where, found=str(error)[:300]
        ) from None
    except Exception as error:
        raise SourceChanged(
            f"{key}: the dataset cannot be read",
            where=where,
            found=f"{type(error).__name__}: {str(error)[:200]}",
            hint="check its name, its access conditions and the network" if remote else "check its files",
        ) from error


class HubDatasetSource:
    """`data.hub`: a dataset of the Hugging Face Hub, streamed."""

    reads: Reads = "text"

    def check(self, value: HubText, *, base: Path, records: Records) -> DataFacts:
        require_datasets("a dataset of the Hub")
        return DataFacts(kind="hub", files=(), nbytes=0)

    def documents(self, value: HubText, *, base: Path, seed: int, records: Records) -> Iterator[str]:
        require_datasets("a dataset of the Hub")
        return reordered(hub_rows(value, records), seed)

    def local_paths(self, value: HubText, *, base: Path) -> Iterator[Path]:
        return iter(())


class LocalDatasetSource:
    """`data.dataset`: a folder that the package `datasets` reads, streamed. It holds data files, or what `save_to_disk` wrote."""

    reads: Reads = "text"

    def check(self, value: LocalDataset, *, base: Path, records: Records) -> DataFacts:
        require_datasets("a folder of a dataset")
        folder = self._folder(value, base)
        # As `datasets` does, leave out hidden files: downloads keep their own notes there.
        files = tuple(
            sorted(
                path
                for path in folder.rglob("*")
                if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            )
        )
        if not files:
            raise RecipeError("data.dataset.path: no file", where=folder, hint="name a folder with data files")
        nbytes = sum(path.stat().st_size for path in files)
        # `datasets` takes splits from names.
        return DataFacts(kind="dataset", files=files, nbytes=nbytes, names_matter=True)

    def documents(self, value: LocalDataset, *, base: Path, seed: int, records: Records) -> Iterator[str]:
        require_datasets("a folder of a dataset")
        folder = self._folder(value, base)
        rows = _streamed(
            lambda: _open_folder(folder, value), records, key="data.dataset", where=str(folder), remote=False
        )
        return reordered(rows, seed)

    def local_paths(self, value: LocalDataset, *, base: Path) -> Iterator[Path]:
        yield base / Path(value.path).expanduser()

    def _folder(self, value: LocalDataset, base: Path) -> Path:
        folder = base / Path(value.path).expanduser()
        if not folder.is_dir():
            raise DataMissing(f"data.dataset.path: {brief(value.path)} is no folder", where=base)
        return folder


# Files that `save_to_disk` writes into the folder of a dataset, and into that of several splits.
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"


def _open_folder(folder: Path, value: LocalDataset) -> Any:
    """Open a folder as a stream of rows."""
    import datasets

    split = value.split or "train"
    if (folder / _SAVED).is_file():
        if value.split not in (None, "train"):
            raise ValueError(f"the folder holds one dataset and no split {value.split}")
        return datasets.load_from_disk(str(folder))
    if (folder / _SAVED_SPLITS).is_file():
        splits = datasets.load_from_disk(str(folder))
        if split not in splits:
            raise ValueError(f"no split {split}; there are {', '.join(splits)}")
        return splits[split]
    return datasets.load_dataset(str(folder), name=value.name, split=split, streaming=True)


def reordered(rows: Iterator[str], seed: int) -> Iterator[str]:
    """Shuffle the rows of a stream within windows of `WINDOW_ROWS` rows, or fewer long ones."""
    for number in itertools.count():
        window, length = list[str](), 0
        for row in itertools.islice(rows, WINDOW_ROWS):
            window.append(row)
            length += len(row)
            if length > WINDOW_CHARACTERS:
                break
        if not window:
            return
        for index in range(len(window)):
            yield window[permuted(index, len(window), f"rows/{seed}/{number}")]

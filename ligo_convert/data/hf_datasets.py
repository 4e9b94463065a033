"""Stream the text of Parquet files and of Hub datasets (extra `datasets`).

A stream cannot be shuffled as a whole. Row groups of Parquet files come in seeded order; rows are shuffled within a window.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ligo_convert.data.data_source import DataFacts, Reads
from ligo_convert.data.shuffle import permuted
from ligo_convert.data.text_files import is_text
from ligo_convert.errors import LigoError, MissingExtra, RecipeError, SourceChanged
from ligo_convert.limits import RECORD_BYTES

PARQUET_SUFFIX = ".parquet"

WINDOW_ROWS = 1024  # streamed rows that are shuffled at a time

WINDOW_CHARACTERS = 128 << 20  # a window ends at the row that exceeds this


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


def open_parquet(path: Path) -> Any:
    """Open a Parquet file and read its footer. Raises RecipeError unless it is readable and has a column `text`."""
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        table = parquet.ParquetFile(path)
        names = list(table.schema_arrow.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise RecipeError("data.text: not a readable parquet file", where=path, found=str(error)[:120]) from None
    if "text" not in names:
        raise RecipeError("data.text: no column text", where=path, found=", ".join(names)[:200])
    return table


def parquet_rows(files: Sequence[Path], seed: int) -> Iterator[str]:
    """Yield the rows of all files, row group by row group in shuffled order. Raises RecipeError for a row without text."""
    pyarrow = importlib.import_module("pyarrow")
    groups = [(path, group) for path in files for group in range(open_parquet(path).num_row_groups)]
    for index in range(len(groups)):
        path, group = groups[permuted(index, len(groups), f"groups/{seed}")]
        row = 0
        with contextlib.closing(open_parquet(path)) as table:
            _check_group(table, path, group)
            batches = table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=["text"])
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


# Rows that are decoded at a time. A file of a few bytes may repeat one long text for every row.
_BATCH_ROWS = 16


def _check_group(table: Any, path: Path, group: int) -> None:
    """Refuse a row group whose texts, as its file says, are longer decoded than a text may be. Raises RecipeError."""
    about = table.metadata.row_group(group)
    columns = (about.column(number) for number in range(about.num_columns))
    nbytes = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")
    if nbytes > RECORD_BYTES.most * max(1, about.num_rows):
        raise RecipeError(
            "data.text: text too long",
            where=f"{path}: row group {group}",
            expected=str(RECORD_BYTES),
            found=f"{nbytes:,} bytes in {about.num_rows:,} rows",
        )


def _row_text(value: object, where: str) -> str:
    if not is_text(value):
        raise RecipeError("data: row without text", where=where, found=type(value).__name__)
    text = str(value)
    if len(text) > RECORD_BYTES.most:
        raise RecipeError(
            "data.text: text too long", where=where, expected=str(RECORD_BYTES), found=f"{len(text):,} characters"
        )
    return text


def hub_rows(hub: HubText) -> Iterator[str]:
    """Stream the rows of a Hub dataset. Only the rows that are read are downloaded.

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
        # An unknown configuration or split; the message of the library lists the existing ones.
        raise RecipeError(
            "data.hub: the dataset cannot be loaded with these settings", where=hub.id, found=str(error)[:300]
        ) from None
    except Exception as error:
        raise SourceChanged(
            "data.hub: the dataset cannot be read",
            where=hub.id,
            found=f"{type(error).__name__}: {str(error)[:200]}",
            hint="check its name, its access conditions and the network",
        ) from error


class HubDatasetSource:
    """`data.hub`: a dataset of the Hugging Face Hub, streamed."""

    reads: Reads = "text"

    def check(self, value: HubText, *, base: Path) -> DataFacts:
        require_datasets("a dataset of the Hub")
        return DataFacts(kind="hub", files=(), nbytes=0)

    def documents(self, value: HubText, *, base: Path, seed: int) -> Iterator[str]:
        require_datasets("a dataset of the Hub")
        return reordered(hub_rows(value), seed)

    def local_paths(self, value: HubText, *, base: Path) -> Iterator[Path]:
        return iter(())


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

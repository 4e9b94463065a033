"""Parquet files and datasets of the Hub in, the text of their rows out, as streams (extra `datasets`).

A stream cannot be shuffled without being read: row groups come in an order that `seed` decides, rows change places
within a window.
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

PARQUET_SUFFIX = ".parquet"

WINDOW_ROWS = 1024  # streamed rows that are held to be reordered


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


def require_datasets(what: str) -> None:
    """Raise MissingExtra, saying that `what` needs it, where the extra is not installed."""
    if any(importlib.util.find_spec(package) is None for package in ("datasets", "pyarrow")):
        raise MissingExtra(f"data: {what} needs the package datasets", extra="datasets")


def open_parquet(path: Path) -> Any:
    """A parquet file with a text column `text`; only its footer is read. RecipeError where it is none."""
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


def parquet_rows(files: Sequence[Path], seed: int) -> Iterator[str]:
    """The rows of all files, row group by row group in shuffled order. RecipeError names file and row of what is no text."""
    pyarrow = importlib.import_module("pyarrow")
    groups = [(path, group) for path in files for group in range(open_parquet(path).num_row_groups)]
    for index in range(len(groups)):
        path, group = groups[permuted(index, len(groups), f"groups/{seed}")]
        row = 0
        with contextlib.closing(open_parquet(path)) as table:
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
    if not is_text(value):
        raise RecipeError("data: row without text", where=where, found=type(value).__name__)
    return str(value)


def hub_rows(hub: HubText) -> Iterator[str]:
    """The rows of a dataset of the Hub, as a stream: only what is read is downloaded.

    Raises:
        RecipeError: a folder of its name, an unknown configuration, split or column, a row without text.
        SourceChanged: out of reach, or broken on the way.
    """
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
    """A stream cannot be shuffled without being read; its rows change places within windows."""
    for number in itertools.count():
        window = list(itertools.islice(rows, WINDOW_ROWS))
        if not window:
            return
        for index in range(len(window)):
            yield window[permuted(index, len(window), f"rows/{seed}/{number}")]

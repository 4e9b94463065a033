"""The protocol of a data source: one kind of data that `fit.data` of a recipe can name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ligo_convert.data.records import Records

Reads = Literal["text", "images"]


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts about the data that are known before it is read. Identity and provenance of a run are computed from them.

    Attributes:
        kind: the name in provenance: `text` (plain text and JSON Lines), `parquet`, `stdlib`, `hub`, `dataset`, `images`.
        files: the local files, empty for a dataset of the Hub. Paths of this machine: never publish them.
        nbytes: total size of `files`, in bytes.
        names_matter: True if the name of a file and of its folder are content too, such as a class label.
    """

    kind: str
    files: tuple[Path, ...]
    nbytes: int
    names_matter: bool = False


class DataSource(Protocol):
    """One kind of data. `value` is always what the recipe gives under the key of this source.

    Attributes:
        reads: the kind of model input that the source yields.
    """

    @property
    def reads(self) -> Reads: ...

    def check(self, value: Any, *, base: Path, records: Records) -> DataFacts:
        """Find the data and read the head of every file. Load no tokenizer, read nothing large, use no network.

        Raises:
            DataMissing: the data does not exist; `plan` continues with a warning.
            RecipeError: the data is not what the recipe says.
            MachineError: no permission to read a file or folder.
            MissingExtra: an optional package is not installed.
        """
        ...

    def documents(self, value: Any, *, base: Path, seed: int, records: Records) -> Iterator[str]:
        """Yield the texts lazily, in an order that the content and `seed` alone decide, whatever folder they lie in.

        `records` turns a line or row with columns into text; a source of plain text does not use it.

        Raises:
            RecipeError: as `check`; text that is not valid UTF-8; a record without text; a source without text (images).
            SourceChanged: a file that changed since `check`; a dataset that cannot be reached.
        """
        ...

    def local_paths(self, value: Any, *, base: Path) -> Iterator[Path]:
        """Yield the local files and folders of the recipe's data. `batch` converts again when one of them changes."""
        ...

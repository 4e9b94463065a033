"""A folder of images with a folder a class in, its classes and files out. Heads of files are looked at, nothing is decoded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ligo_convert.errors import DataMissing, MachineError, RecipeError

# What the formats that are read begin with; WebP says so after its length.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"RIFF")


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What can be known about the data without reading it.

    `kind` is `text` (plain text and JSON Lines), `parquet`, `stdlib`, `hub` or `images`; a dataset of the Hub has no files and
    an `nbytes` of 0 until it is read. `files` are places on this machine: not for anything that is shared.
    """

    kind: str
    files: tuple[Path, ...]
    nbytes: int


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Class -> its images, both sorted by name. Hidden files are passed over.

    Raises:
        RecipeError: no such folder, no folders in it, a class without images. MachineError: no permission.
    """
    try:
        if not folder.is_dir():
            raise DataMissing("data.images: no such folder", where=folder, expected="a folder with a folder a class")
        classes = sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
        found = {
            item.name: sorted(file for file in item.iterdir() if file.is_file() and not file.name.startswith("."))
            for item in classes
        }
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=error.filename or folder) from None
    if not found:
        raise RecipeError("data.images: no class folders", where=folder, expected="a folder with a folder a class")
    for name, files in found.items():
        if not files:
            raise RecipeError("data.images: a class without images", where=folder / name)
    return found


def check_classes(found: dict[str, list[Path]], classes: int, *, where: str) -> None:
    """Require as many class folders as a model has classes. Raises RecipeError."""
    if len(found) != classes:
        raise RecipeError(
            "data.images: another number of classes than the model has",
            where=where,
            expected=f"{classes} folders",
            found=len(found),
            hint="set target.config.num_classes for a new head, or give another folder",
        )


def check_images(name: str, *, base: Path) -> DataFacts:
    """Find the images of a recipe and look at the head of every file. Raises as `class_folders`, and RecipeError for what is no image."""
    files = [file for found in class_folders(base / Path(name).expanduser()).values() for file in found]
    total = 0
    for file in files:
        try:
            with file.open("rb") as handle:
                head = handle.read(16)
                total += os.fstat(handle.fileno()).st_size
        except OSError as error:
            raise MachineError(f"cannot be read: {error.strerror}", where=file) from None
        if not head.startswith(_MAGIC):
            raise RecipeError(
                "data.images: a file that is no image", where=file, expected="JPEG, PNG, WebP, GIF or BMP"
            )
    return DataFacts(kind="images", files=tuple(files), nbytes=total)

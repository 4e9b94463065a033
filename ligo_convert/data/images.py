"""Image folders as training, validation and test splits.

Input: a folder with one subfolder per class. Output: normalised pixels with class labels.

Images are prepared as timm does for evaluation: resize to cover the input, crop the centre, normalise by mean and standard deviation. For
most models of transformers both sides are resized to the input's instead. The order depends only on the names inside the folder and the
seed, so a folder gives the same splits in any location.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ligo_convert.data.data_source import DataFacts, Reads
from ligo_convert.data.examples import Batch, DataSplits
from ligo_convert.data.records import Records
from ligo_convert.data.shuffle import permuted
from ligo_convert.errors import DataMissing, MachineError, RecipeError, SourceError, brief
from ligo_convert.limits import PIXELS

CACHE_BYTES = 512 * 1024 * 1024

# Pillow's names of the supported formats. It reads others too, some of them by starting another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Preprocessing of the images of a model.

    Attributes:
        size: height and width of the input, in pixels.
        channels: 1 (grey) or 3 (RGB).
        mean: mean of each channel.
        std: standard deviation of each channel.
        interpolation: name of the resize filter of PIL.
        crop_pct: share of the shorter side that the centre crop keeps.
        squash: resize both sides to the input's, whatever the shape of the image; nothing is cropped then.
        described: the file that states all this, for errors.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    squash: bool = False
    described: str = "config.json: pretrained_cfg"

    def __post_init__(self) -> None:
        """Raise SourceError for numbers of a config.json with which no image can be prepared."""
        numbers = (self.crop_pct, *self.mean, *self.std)
        finite = all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
        enough = min(len(self.mean), len(self.std)) >= self.channels
        if not finite or not enough or not 0 < self.crop_pct <= 1 or not all(value > 0 for value in self.std):
            raise SourceError(
                "the images cannot be prepared as the source's files say",
                where=self.described,
                expected=f"crop_pct above 0, at most 1; mean, and std above 0, of {self.channels} channels",
                found=f"crop_pct {brief(self.crop_pct)}, mean {brief(self.mean)}, std {brief(self.std)}",
            )

    def check(self, path: Path) -> None:
        """Read the header of an image. Raises RecipeError for one that is no image, or that is too large to decode and resize."""
        with self._opened(path):
            pass

    def pixels(self, path: Path) -> np.ndarray:
        """Decode one image to uint8 [channels, height, width]. Raises RecipeError for a file that cannot be decoded."""
        mode = "L" if self.channels == 1 else "RGB"
        with self._opened(path) as opened:
            opened.load()
            image = opened if opened.mode == mode else opened.convert(mode)
            array = np.asarray(self._resized(image))
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def _target(self, image: tuple[int, int]) -> tuple[int, int]:
        """Return width and height of a resized image of this width and height."""
        height, width = self.size
        return (width, height) if self.squash else _resized_size(image, self.size, self.crop_pct)

    def _resized(self, image: Any) -> Any:
        """Resize an image, and crop the centre."""
        from PIL import Image

        target = self._target(image.size)
        filters = {name.lower(): member for name, member in Image.Resampling.__members__.items()}
        chosen = filters.get(self.interpolation, filters["bicubic"])
        resized = image if image.size == target else image.resize(target, chosen)
        height, width = self.size
        left, top = round((target[0] - width) / 2), round((target[1] - height) / 2)
        return resized.crop((left, top, left + width, top + height))

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        """Open an image whose size, decoded and resized, is known to be small enough. Nothing is decoded yet."""
        from PIL import Image

        try:
            with warnings.catch_warnings():
                # Pillow warns where this raises.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                opened = Image.open(path, formats=FORMATS)
            with opened:
                resized = self._target(opened.size)
                for sides, verb in ((opened.size, "has"), (resized, "would be resized to")):
                    if math.prod(sides) > PIXELS.most:
                        raise RecipeError(
                            f"data.images: the image {verb} too many pixels",
                            where=path,
                            expected=str(PIXELS),
                            found=f"{sides[0]:,} x {sides[1]:,}",
                            hint="remove it, or scale it down",
                        )
                yield opened
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise RecipeError(
                f"data.images: the image cannot be decoded: {error}", where=path, hint="remove it or repair it"
            ) from None

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """Normalise uint8 [images, channels, height, width] to float32 of the same shape."""
        mean, deviation = (
            np.asarray(values, dtype=np.float32)[: self.channels].reshape(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        scaled: np.ndarray = (pixels.astype(np.float32) / np.float32(255) - mean) / deviation
        return scaled


def _resized_size(image: tuple[int, int], size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """Return width and height of an image that is resized to cover the input, as timm does.

    Args:
        image: width and height of the image.
        size: height and width of the input.
        crop_pct: share of the resized image that the input takes.
    """
    width, height = image
    covered_height, covered_width = (int(np.floor(side / crop_pct)) for side in size)
    if covered_height != covered_width:
        ratio = min(height / covered_height, width / covered_width)
        return round(width / ratio), round(height / ratio)
    # For a square timm rounds down.
    if width <= height:
        return covered_width, int(covered_width * height / width)
    return int(covered_width * width / height), covered_width


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageExamples:
    """Images that are decoded at first use. Batches hold `pixel_values`, float32 [images, channels, height, width], and `labels`, int64.

    Attributes:
        files: the image files.
        classes: int64 [images].
        preparation: the preprocessing of the model.
        augmentation: changes the pixels of rows (uint8 [images, channels, height, width]) for a numbered draw; see `data.augment`. Draw 0,
            which is for evaluation, is never changed.
        cache: row -> decoded pixels, up to `CACHE_BYTES` in all.
    """

    files: tuple[Path, ...]
    classes: np.ndarray
    preparation: Preparation
    augmentation: Callable[[Sequence[int], int, np.ndarray], np.ndarray] | None = None
    cache: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        pixels = np.stack([self._pixels(row) for row in rows])
        if self.augmentation is not None and draw > 0:
            pixels = self.augmentation(rows, draw, pixels)
        return {"pixel_values": self.preparation.normalised(pixels), "labels": self.classes[list(rows)]}

    def _pixels(self, row: int) -> np.ndarray:
        if row in self.cache:
            return self.cache[row]
        pixels = self.preparation.pixels(self.files[row])
        if (len(self.cache) + 1) * pixels.nbytes <= CACHE_BYTES:
            self.cache[row] = pixels
        return pixels


def image_splits(
    folder: str,
    *,
    base: Path,
    preparation: Preparation,
    classes: int | None,
    train_images: int,
    heldout_images: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSplits:
    """Split a folder with one subfolder per class into test, validation and training images. No image is in two splits.

    Classes are shuffled and interleaved, so that every split has about the same share of each. Each held-out split has at most an eighth of
    the images and does not depend on `train_images`.

    Args:
        folder: the folder as the recipe names it.
        base: the folder that a relative `folder` starts from.
        preparation: the preprocessing of the model.
        classes: the number of classes of the model; None for a model without a head.
        train_images: the largest number of training images.
        heldout_images: the largest number of images of each held-out split.
        seed: seed of the order.
        on_progress: called with the numbers of images read and of all images.

    Raises:
        RecipeError: the number of classes differs from the model's; too few images; an image that is too large; as `class_folders`.
    """
    images = class_folders(base / Path(folder).expanduser())
    check_classes(images, classes, where=folder)
    ordered = _interleave_classes(images, seed)
    heldout = min(heldout_images, len(ordered) // 8)
    if heldout < 1:
        raise RecipeError("data.images: too few images", where=folder, expected="at least 8", found=len(ordered))
    parts = {
        "test": ordered[:heldout],
        "validation": ordered[heldout : 2 * heldout],
        "train": ordered[2 * heldout : 2 * heldout + max(1, train_images)],
    }
    digest, done, total = hashlib.sha256(), 0, sum(len(part) for part in parts.values())
    examples = {}
    for name, part in parts.items():
        for path, label in part:
            preparation.check(path)
            digest.update(f"{name} {label} {_digest(path)}\n".encode())
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        examples[name] = ImageExamples(
            files=tuple(path for path, _ in part),
            classes=np.asarray([label for _, label in part], dtype=np.int64),
            preparation=preparation,
        )
    return DataSplits(
        **examples,
        digest=digest.hexdigest(),
        sizes={name: len(part) for name, part in parts.items()},
        unit="images",
    )


def _interleave_classes(images: dict[str, list[Path]], seed: int) -> list[tuple[Path, int]]:
    """Return every image with its class: first one image of each class, then a second of each, and so on."""
    shuffled = [
        [files[permuted(index, len(files), f"images/{seed}/{name}")] for index in range(len(files))]
        for name, files in images.items()
    ]
    most = max(len(files) for files in shuffled)
    return [(files[turn], label) for turn in range(most) for label, files in enumerate(shuffled) if turn < len(files)]


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# First bytes of the supported formats. RIFF stands for WebP, which has its name after the length.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"RIFF")


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Return class -> images, both sorted by name. Hidden files and folders are skipped.

    Raises:
        DataMissing: the folder does not exist.
        RecipeError: the folder has no subfolders, or a class has no images.
        MachineError: no permission to read a folder.
    """
    try:
        if not folder.is_dir():
            raise DataMissing(
                "data.images: no such folder", where=folder, expected="a folder with one subfolder per class"
            )
        classes = sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
        images = {
            item.name: sorted(file for file in item.iterdir() if file.is_file() and not file.name.startswith("."))
            for item in classes
        }
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=error.filename or folder) from None
    if not images:
        raise RecipeError(
            "data.images: no class folders", where=folder, expected="a folder with one subfolder per class"
        )
    for name, files in images.items():
        if not files:
            raise RecipeError("data.images: a class without images", where=folder / name)
    return images


def check_classes(images: dict[str, list[Path]], classes: int | None, *, where: str) -> None:
    """Raise RecipeError unless the number of class folders is the number of classes of the model; None for a model without a head."""
    if classes is not None and len(images) != classes:
        raise RecipeError(
            "data.images: the number of class folders is not the number of classes of the model",
            where=where,
            expected=f"{classes} folders",
            found=len(images),
            hint="set target.config.num_classes (in transformers: num_labels) for a new head, or give another folder",
        )


class ImageFolderSource:
    """`data.images`: a folder with one subfolder of images for each class."""

    reads: Reads = "images"

    def check(self, value: str, *, base: Path, records: Records) -> DataFacts:
        files = [file for images in class_folders(base / Path(value).expanduser()).values() for file in images]
        nbytes = sum(_check_image_head(file) for file in files)
        # The folder is the class, and the name decides the order.
        return DataFacts(kind="images", files=tuple(files), nbytes=nbytes, names_matter=True)

    def documents(self, value: str, *, base: Path, seed: int, records: Records) -> Iterator[str]:
        raise RecipeError("data.images: an image folder holds no text", where=value)

    def local_paths(self, value: str, *, base: Path) -> Iterator[Path]:
        yield from sorted(Path(folder) for folder, _, _ in os.walk(base / Path(value).expanduser()))


def _check_image_head(file: Path) -> int:
    """Check that a file begins like an image and return its size in bytes."""
    try:
        with file.open("rb") as handle:
            head = handle.read(16)
            nbytes = os.fstat(handle.fileno()).st_size
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=file) from None
    if not head.startswith(_MAGIC):
        raise RecipeError("data.images: not an image file", where=file, expected="JPEG, PNG, WebP, GIF or BMP")
    return nbytes

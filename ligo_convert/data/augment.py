"""Random changes of training images.

Input: splits of images and the names in `AUGMENTATIONS`.
Output: the same splits, whose training images are changed at random before they are normalised. Held-out images never change.

The changes are torchvision's, on images of Pillow, whose results do not depend on the processor. They depend only on the image's row, the
number of the draw (the epoch) and the seed, so that a run that resumes sees the same images as an uninterrupted run, in any process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ligo_convert.data.examples import DataSplits
from ligo_convert.data.images import ImageExamples


def _flip(size: tuple[int, int]) -> Any:
    from torchvision.transforms import v2

    return v2.RandomHorizontalFlip()


def _crop(size: tuple[int, int]) -> Any:
    from torchvision.transforms import v2

    height, width = size
    return v2.RandomCrop(size, padding=(width // 8, height // 8))


def _trivial_augment(size: tuple[int, int]) -> Any:
    from torchvision.transforms import v2

    return v2.TrivialAugmentWide()


# Name in the recipe -> torchvision's transform of images of height and width `size`. `fit.data.augment` explains the names.
AUGMENTATIONS: dict[str, Callable[[tuple[int, int]], Any]] = {
    "flip": _flip,
    "crop": _crop,
    "trivial-augment": _trivial_augment,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Augmentation:
    """Random changes of images.

    Attributes:
        names: entries of `AUGMENTATIONS`, applied in this order.
        size: height and width of the images.
        seed: seed of the draws.
    """

    names: tuple[str, ...]
    size: tuple[int, int]
    seed: int

    def __call__(self, rows: Sequence[int], draw: int, pixels: np.ndarray) -> np.ndarray:
        """Change the images of `rows` for draw number `draw`: uint8 [images, channels, height, width] in and out."""
        import torch

        changed = np.empty_like(pixels)
        # torchvision draws from torch's generator of the process. Nobody else notices: its state is put back.
        with torch.random.fork_rng(devices=[]):
            for index, row in enumerate(rows):
                digest = hashlib.sha256(f"augment/{self.seed}/{draw}/{row}".encode()).digest()
                torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little"))
                changed[index] = self._changed(pixels[index])
        return changed

    def _changed(self, pixels: np.ndarray) -> np.ndarray:
        from PIL import Image

        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        for transform in self._transforms:
            image = transform(image)
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    @cached_property
    def _transforms(self) -> tuple[Any, ...]:
        return tuple(AUGMENTATIONS[name](self.size) for name in self.names)


def augmented(splits: DataSplits, names: Sequence[str], *, seed: int) -> DataSplits:
    """Return splits of images whose training batches are augmented. The digest covers the names.

    Args:
        splits: splits of `image_splits`.
        names: entries of `AUGMENTATIONS`, applied in this order; with none, the splits are returned as they are.
        seed: seed of the draws.
    """
    if not names:
        return splits
    images = splits.train
    assert isinstance(images, ImageExamples), "only images are augmented"
    augmentation = Augmentation(names=tuple(names), size=images.preparation.size, seed=seed)
    digest = hashlib.sha256(f"{splits.digest}\naugment {' '.join(names)}\n".encode()).hexdigest()
    return replace(splits, train=replace(images, augmentation=augmentation), digest=digest)

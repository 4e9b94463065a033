"""Augmentation: training images change at random, reproducibly; held-out images never do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ligo_convert.data.augment import AUGMENTATIONS, Augmentation, augmented
from ligo_convert.data.examples import DataSplits
from ligo_convert.data.images import Preparation, image_splits

SIZE = (16, 24)


def splits_of(folder: Path, *, channels: int = 3) -> DataSplits:
    """40 images in two classes, each split into test, validation and training images."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(exist_ok=True)
        for index in range(20):
            pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    preparation = Preparation(
        size=SIZE, channels=channels, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bicubic", crop_pct=1.0
    )
    return image_splits(
        str(folder), base=folder, preparation=preparation, classes=2, train_images=30, heldout_images=4, seed=0
    )


def pixels_of(batch: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(batch["pixel_values"])


@pytest.mark.parametrize("channels", [1, 3])
def test_training_images_change_with_the_epoch_and_never_otherwise(tmp_path: Path, channels: int) -> None:
    plain = splits_of(tmp_path, channels=channels)
    changing = augmented(plain, tuple(AUGMENTATIONS), seed=7)
    assert augmented(plain, (), seed=7) is plain
    assert changing.digest != plain.digest
    rows = range(len(plain.train))
    first = changing.train.take(rows, draw=1)
    assert pixels_of(first).shape == (len(rows), channels, *SIZE)
    assert pixels_of(first).dtype == np.float32
    for key, row in plain.train.take(rows, draw=1).items():
        assert np.array_equal(row, first[key]) == (key == "labels")
    # The order of the rows, the company they are in and what else was drawn do not matter.
    state = torch.get_rng_state()
    torch.rand(3)
    alone = np.concatenate([pixels_of(changing.train.take([row], draw=1)) for row in reversed(rows)])[::-1]
    assert np.array_equal(alone, pixels_of(first))
    again = augmented(splits_of(tmp_path, channels=channels), tuple(AUGMENTATIONS), seed=7)
    assert np.array_equal(pixels_of(again.train.take(rows, draw=1)), pixels_of(first))
    # Another epoch or another seed draws anew.
    assert not np.array_equal(pixels_of(changing.train.take(rows, draw=2)), pixels_of(first))
    other = augmented(plain, tuple(AUGMENTATIONS), seed=8)
    assert not np.array_equal(pixels_of(other.train.take(rows, draw=1)), pixels_of(first))
    # Evaluation sees the images as they are, of every split.
    for name in ("train", "validation", "test"):
        before, after = (getattr(splits, name).take(range(4)) for splits in (plain, changing))
        assert np.array_equal(pixels_of(before), pixels_of(after))
    torch.set_rng_state(state)


def test_the_draws_of_others_are_left_alone(tmp_path: Path) -> None:
    changing = augmented(splits_of(tmp_path), ["flip", "trivial-augment"], seed=0)
    state = torch.get_rng_state()
    changing.train.take(range(5), draw=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_training_are_augmented_by_their_epoch(tmp_path: Path) -> None:
    """A batch across the end of an epoch has images of both epochs, each with the draw of its own."""
    plain = splits_of(tmp_path)
    changing = augmented(plain, ["flip", "crop"], seed=0)
    count = len(plain.train)
    rows = np.concatenate([changing.batch(step, batch_size=7, seed=3)["pixel_values"] for step in range(12)])
    epochs = {}
    for epoch in (1, 2):
        found = pixels_of(changing.train.take(range(count), draw=epoch))
        epochs[epoch] = {image.tobytes() for image in found}
    assert {row.tobytes() for row in rows[:count]} == epochs[1]
    assert {row.tobytes() for row in rows[count : 2 * count]} == epochs[2]


def test_flip_and_crop_do_what_their_names_say() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 256, (200, 3, *SIZE), dtype=np.uint8)
    make = Augmentation(names=("flip",), size=SIZE, seed=0)
    found = make(range(200), 1, pixels)
    flipped = [bool(np.array_equal(after, before[:, :, ::-1])) for before, after in zip(pixels, found, strict=True)]
    kept = [bool(np.array_equal(after, before)) for before, after in zip(pixels, found, strict=True)]
    assert all(one != other for one, other in zip(flipped, kept, strict=True))
    assert 70 < sum(flipped) < 130
    found = replace(make, names=("crop",))(range(200), 1, pixels)
    shifts = set()
    for before, after in zip(pixels, found, strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (3, 3)))
        places = [(top, left) for top in range(5) for left in range(7)]
        [place] = [
            (top, left)
            for top, left in places
            if np.array_equal(after, padded[:, top : top + SIZE[0], left : left + SIZE[1]])
        ]
        shifts.add(place)
    assert len(shifts) > 25

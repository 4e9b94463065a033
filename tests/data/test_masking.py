"""Masks: each row's are drawn from the row and the draw alone, by the rule of BERT."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ligo_convert.data.masking import IGNORED, MaskedExamples, Masking

MASK, SPECIAL, VOCABULARY, TOKENS = 3, (0, 1, 2, 3), 50, 12


def examples(probability: float, *, special: tuple[int, ...] = SPECIAL, frame: tuple[int, ...] = ()) -> MaskedExamples:
    blocks = np.random.default_rng(0).integers(0, VOCABULARY, size=(40, TOKENS)).astype(np.uint32)
    masking = Masking(seed=5, probability=probability)
    return MaskedExamples(
        blocks=blocks,
        masking=masking,
        name="train",
        mask_id=MASK,
        special=special,
        vocabulary=VOCABULARY,
        frame=frame,
    )


def one_row(given: MaskedExamples, row: int, draw: int) -> tuple[list[int], list[int]]:
    """The masks of one row, token by token, from a generator of its own."""
    digest = hashlib.sha256(f"masks/5/train/{draw}/{row}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    ids = [int(token) for token in given.blocks[row]]
    if given.frame:
        ids = [given.frame[0], *ids, given.frame[1]]
    chances = rng.random(len(ids))
    ordinary = [place for place, token in enumerate(ids) if token not in given.special]
    asked = [place for place in ordinary if chances[place] < given.masking.probability]
    if not asked and ordinary:
        asked = [int(rng.choice(ordinary))]
    fates = rng.random(len(ids))
    strange = rng.choice([token for token in range(VOCABULARY) if token not in given.special], size=len(ids))
    labels = [token if place in asked else IGNORED for place, token in enumerate(ids)]
    for place in asked:
        if fates[place] < 0.8:
            ids[place] = MASK
        elif fates[place] < 0.9:
            ids[place] = int(strange[place])
    return ids, labels


@pytest.mark.parametrize("probability", [0.01, 0.15, 0.6])
@pytest.mark.parametrize("special", [SPECIAL, tuple(range(VOCABULARY - 2))])
@pytest.mark.parametrize("frame", [(), (1, 2)])
def test_a_batch_has_the_masks_of_its_rows(
    probability: float, special: tuple[int, ...], frame: tuple[int, ...]
) -> None:
    given = examples(probability, special=special, frame=frame)
    rows = [7, 0, 31, 7, 12]
    for draw in (0, 3):
        batch = given.take(rows, draw=draw)
        assert batch["input_ids"].dtype == batch["labels"].dtype == np.int64
        for place, row in enumerate(rows):
            ids, labels = one_row(given, row, draw)
            assert batch["input_ids"][place].tolist() == ids
            assert batch["labels"][place].tolist() == labels

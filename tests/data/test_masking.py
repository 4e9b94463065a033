"""Masks: each row's are drawn from the row and the draw alone, by the rule of BERT."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from support.corpora import STDLIB, Data, slices, write

from ligo_convert.data.examples import IGNORED
from ligo_convert.data.masking import MaskedExamples, Masking
from ligo_convert.data.tokenizers import load_tokenizer
from ligo_convert.data.train_tokenizer import train_tokenizer

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


def test_padding_is_never_asked_for_and_never_seen() -> None:
    blocks = np.array([[1, 7, 8, 9, 2, 0, 0, 0], [1, 7, 7, 7, 7, 7, 7, 2]], dtype=np.uint32)
    examples = MaskedExamples(
        blocks=blocks, masking=Masking(seed=0, probability=0.9), name="train", mask_id=3, special=(0, 1, 2, 3),
        vocabulary=20, pad=0,
    )  # fmt: skip
    for draw in range(20):
        batch = examples.take([0, 1], draw=draw)
        assert batch["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 8]
        assert (batch["labels"][0, 4:] == IGNORED).all()
        assert batch["input_ids"][0, 5:].tolist() == [0, 0, 0]


def test_padded_texts_end_before_their_padding(tmp_path: Path) -> None:
    """With a tokenizer of BERT: each block holds its first and last token itself."""
    files = train_tokenizer(
        STDLIB, base=tmp_path, vocabulary=400, seed=0, model_type="bert", context=64, max_bytes=100_000
    )
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    write(tmp_path / "config.json", '{"model_type": "bert"}')
    write(
        tmp_path / "a.jsonl", "".join(json.dumps({"text": "def name(self): " * (1 + n % 5)}) + "\n" for n in range(400))
    )
    data = Data(text=["*.jsonl"], packing=False)
    splits = slices(tmp_path, tmp_path, data=data, masking=Masking(seed=0))
    library = load_tokenizer(tmp_path)
    batch = splits.train.take(range(len(splits.train)))
    lengths = batch["attention_mask"].sum(1)
    assert lengths.min() < 32 <= lengths.max() + 8
    for ids, length in zip(batch["input_ids"], lengths, strict=True):
        assert ids[0] == library.cls_token_id
        assert ids[length - 1] == library.sep_token_id
        assert (ids[length:] == library.pad_token_id).all()
    assert splits.digest != slices(tmp_path, tmp_path, data=Data(text=["*.jsonl"]), masking=Masking(seed=0)).digest

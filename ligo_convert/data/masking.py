"""Mask tokens for masked language modelling.

Input: blocks of token ids.
Output: inputs with masked tokens, and their labels.

As in Devlin et al., arXiv:1810.04805, section 3.1, a share of the tokens (15 % unless the recipe says otherwise) is to be predicted: 80 %
of these become the mask token, 10 % a random token, and 10 % stay unchanged. The selection depends on the row and the draw. Each epoch of
training therefore has new masks (RoBERTa, arXiv:1907.11692, section 4.1), while held-out data always have the same masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ligo_convert.data.examples import IGNORED, Batch, BlockExamples, padding

PROBABILITY = 0.15

MASKED, RANDOM = 0.8, 0.1  # shares of the tokens to predict; the rest stays unchanged


def framed(blocks: np.ndarray, frame: tuple[int, ...]) -> np.ndarray:
    """Put the first and the last id of `frame` around every block, [..., tokens]; without a frame, return the blocks as they are."""
    if not frame:
        return blocks
    first, last = (np.full((*blocks.shape[:-1], 1), token, dtype=np.uint32) for token in frame)
    return np.concatenate([first, blocks, last], axis=-1)


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Settings for masking.

    Attributes:
        seed: seed for the selection of tokens.
        probability: share of the tokens to predict.
    """

    seed: int
    probability: float = PROBABILITY


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedExamples(BlockExamples):
    """Blocks of token ids with masks. Batches hold `input_ids` and `labels`, both int64, and with padding `attention_mask`.

    Attributes:
        masking: the settings.
        name: name of the slice; slices with different names get different masks.
        mask_id: id of the mask token.
        special: ids that are never to be predicted and never replace another token.
        vocabulary: vocabulary size of the model.
        frame: ids that are put before and after each block; none if the blocks hold them.
        pad: id of the padding after each text; None if blocks are full.
    """

    masking: Masking
    name: str
    mask_id: int
    special: tuple[int, ...]
    vocabulary: int
    frame: tuple[int, ...] = ()
    pad: int | None = None

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        ids = np.stack([framed(self.blocks[row], self.frame) for row in rows]).astype(np.int64)
        ordinary = ~np.isin(ids, self.special)
        drawn = _Drawn(*ids.shape)
        for place, row in enumerate(rows):
            self._draw(drawn, place, ordinary[place], row, draw)
        asked = drawn.asked
        labels = np.where(asked, ids, IGNORED)
        masked = np.where(asked & (drawn.fate < MASKED), self.mask_id, ids)
        replaced = asked & (drawn.fate >= MASKED) & (drawn.fate < MASKED + RANDOM)
        batch = {"input_ids": np.where(replaced, self._known[drawn.strange], masked), "labels": labels}
        if self.pad is not None:
            batch["attention_mask"] = (~padding(ids, self.pad, ends=False)).astype(np.int64)
        return batch

    def _draw(self, drawn: _Drawn, place: int, ordinary: np.ndarray, row: int, draw: int) -> None:
        """Draw for one row, at `place` of a batch. The numbers depend on the row and the draw alone, not on the batch."""
        count = ordinary.size
        digest = hashlib.sha256(f"masks/{self.masking.seed}/{self.name}/{draw}/{row}".encode()).digest()
        rng = drawn.generator(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
        asked = ordinary & (rng.random(count) < self.masking.probability)
        if not asked.any() and ordinary.any():
            # Without any label, the block would have no loss.
            asked[rng.choice(np.flatnonzero(ordinary))] = True
        drawn.asked[place], drawn.fate[place] = asked, rng.random(count)
        drawn.strange[place] = rng.integers(self._known.size, size=count)

    @cached_property
    def _known(self) -> np.ndarray:
        """Return the ids that may replace a token at random."""
        return np.setdiff1d(np.arange(self.vocabulary), self.special)


class _Drawn:
    """What is drawn at random for a batch.

    Attributes:
        asked: whether a token is to be predicted, [rows, tokens].
        fate: number in [0, 1) that decides what a token to predict becomes, [rows, tokens].
        strange: index of the id that may replace a token, [rows, tokens].
    """

    def __init__(self, rows: int, tokens: int) -> None:
        self.asked = np.zeros((rows, tokens), dtype=bool)
        self.fate = np.zeros((rows, tokens))
        self.strange = np.zeros((rows, tokens), dtype=np.int64)
        self._bits = np.random.Philox(key=0)
        self._start: Any = dict(self._bits.state)
        self._generator = np.random.Generator(self._bits)

    def generator(self, low: int, high: int) -> np.random.Generator:
        """Return a generator as `np.random.Philox` of this key begins it. The one that exists is reset: it takes long to make one."""
        key = np.array([low, high], dtype=np.uint64)
        state: Any = {**self._start, "state": {"counter": np.zeros(4, dtype=np.uint64), "key": key}}
        self._bits.state = state
        return self._generator

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

import numpy as np

from ligo_convert.data.examples import Batch, BlockExamples

PROBABILITY = 0.15

MASKED, RANDOM = 0.8, 0.1  # shares of the tokens to predict; the rest stays unchanged

IGNORED = -100  # label of a token that is not to be predicted, as in transformers


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
    """Blocks of token ids with masks. Batches hold `input_ids` and `labels`, both int64.

    Attributes:
        masking: the settings.
        name: name of the slice; slices with different names get different masks.
        mask_id: id of the mask token.
        special: ids that are never to be predicted and never replace another token.
        vocabulary: vocabulary size of the model.
        frame: ids that are put before and after each block; none if the blocks hold them.
    """

    masking: Masking
    name: str
    mask_id: int
    special: tuple[int, ...]
    vocabulary: int
    frame: tuple[int, ...] = ()

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        found = [self._masked(row, draw) for row in rows]
        return {"input_ids": np.stack([ids for ids, _ in found]), "labels": np.stack([labels for _, labels in found])}

    def _masked(self, row: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        ids = framed(self.blocks[row], self.frame).astype(np.int64)
        rng = self._generator(row, draw)
        ordinary = ~np.isin(ids, self.special)
        asked = ordinary & (rng.random(len(ids)) < self.masking.probability)
        if not asked.any() and ordinary.any():
            # Without any label, the block would have no loss.
            asked[rng.choice(np.flatnonzero(ordinary))] = True
        labels = np.where(asked, ids, IGNORED)
        fate = rng.random(len(ids))
        ids = np.where(asked & (fate < MASKED), self.mask_id, ids)
        strange = rng.choice(self._known, size=len(ids))
        return np.where(asked & (fate >= MASKED) & (fate < MASKED + RANDOM), strange, ids), labels

    @cached_property
    def _known(self) -> np.ndarray:
        """Return the ids that may replace a token at random."""
        return np.setdiff1d(np.arange(self.vocabulary), self.special)

    def _generator(self, row: int, draw: int) -> np.random.Generator:
        digest = hashlib.sha256(f"masks/{self.masking.seed}/{self.name}/{draw}/{row}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

"""Masked language modelling: blocks of token ids in, inputs with masked tokens and their labels out.

Devlin et al., arXiv:1810.04805, section 3.1: 15 % of the tokens are asked for; of those 80 % become the mask token, 10 % a random token and
10 % stay as they are. Which ones follows from the row and the draw, so that every epoch masks anew (RoBERTa, arXiv:1907.11692,
section 4.1) and what is held out is masked once and for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ligo_convert.data.examples import Batch

PROBABILITY = 0.15

MASKED, RANDOM = 0.8, 0.1  # shares of what is asked for; the rest stays

IGNORED = -100  # the label of a token that is not asked for, as transformers has it


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How tokens are masked. `seed` decides which."""

    seed: int
    probability: float = PROBABILITY


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedExamples:
    """Blocks [blocks, sequence] of token ids as `input_ids` and `labels`, both int64.

    Attributes:
        name: of the slice, so that two slices do not mask alike. mask_id: of the mask token. special: ids that are never asked for, nor
            put in at random. vocabulary: of the model.
    """

    blocks: np.ndarray
    masking: Masking
    name: str
    mask_id: int
    special: tuple[int, ...]
    vocabulary: int

    def __len__(self) -> int:
        return len(self.blocks)

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        found = [self._masked(row, draw) for row in rows]
        return {"input_ids": np.stack([ids for ids, _ in found]), "labels": np.stack([labels for _, labels in found])}

    def _masked(self, row: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        ids = self.blocks[row].astype(np.int64)
        rng = self._generator(row, draw)
        ordinary = ~np.isin(ids, self.special)
        asked = ordinary & (rng.random(len(ids)) < self.masking.probability)
        if not asked.any() and ordinary.any():
            # A block without a label has no loss.
            asked[rng.choice(np.flatnonzero(ordinary))] = True
        labels = np.where(asked, ids, IGNORED)
        fate = rng.random(len(ids))
        ids = np.where(asked & (fate < MASKED), self.mask_id, ids)
        strange = rng.choice(self._known, size=len(ids))
        return np.where(asked & (fate >= MASKED) & (fate < MASKED + RANDOM), strange, ids), labels

    @cached_property
    def _known(self) -> np.ndarray:
        """Ids that may be put in at random."""
        return np.setdiff1d(np.arange(self.vocabulary), self.special)

    def _generator(self, row: int, draw: int) -> np.random.Generator:
        digest = hashlib.sha256(f"masks/{self.masking.seed}/{self.name}/{draw}/{row}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

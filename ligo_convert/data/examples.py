"""Training and evaluation examples for every task.

Input: row numbers. Output: batches of arrays.

A batch maps the names of a model's inputs and labels to arrays with one row per example. Random parts of an example, such as its masked
tokens, depend only on the row and the number of the draw, so they are reproducible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ligo_convert.data.shuffle import permuted
from ligo_convert.data.token_store import StoredBlocks

Batch = Mapping[str, np.ndarray]


class Examples(Protocol):
    """Examples with random access by row."""

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        """Return these rows as one batch. `draw` numbers the random draws: 0 for held-out data, N for epoch N, counted from 1."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayExamples:
    """Examples in memory: name -> array with one row per example."""

    arrays: Batch

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        return {name: array[list(rows)] for name, array in self.arrays.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockExamples:
    """Blocks of token ids. Pickled, blocks on the disk are only named: another process of this machine maps them from the same file.

    Attributes:
        blocks: token ids, uint32 or uint16 [blocks, sequence].
        place: where the blocks lie; None for memory.
    """

    blocks: np.ndarray
    place: StoredBlocks | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "blocks" or self.place is None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        place = state["place"]
        vars(self).update(state if place is None else {**state, "blocks": place.map()})


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenExamples(BlockExamples):
    """Blocks of token ids. Batches hold `input_ids`, int64."""

    def __post_init__(self) -> None:
        assert self.blocks.dtype in (np.uint16, np.uint32), f"token ids are unsigned, not {self.blocks.dtype}"
        assert self.blocks.ndim == 2, f"a split is [blocks, sequence], not {self.blocks.shape}"
        assert self.blocks.size, "empty split"
        # A view, so that the caller's array stays writable.
        frozen = self.blocks.view()
        frozen.flags.writeable = False
        object.__setattr__(self, "blocks", frozen)

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        return {"input_ids": self.blocks[list(rows)].astype(np.int64)}


IGNORED = -100  # label of a token that does not count in the loss, as in transformers


@dataclass(frozen=True, kw_only=True, eq=False)
class PaddedExamples(TokenExamples):
    """Blocks of token ids, each of one text and padded after it. Batches hold `input_ids` and `labels`, both int64.

    Labels are the ids themselves. Padding does not count in the loss, and neither does the first token, which nothing predicts.

    Attributes:
        pad: id of the padding.
        pad_ends: whether that id also ends a text, so that the first one after it is no padding.
    """

    pad: int
    pad_ends: bool

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        ids = self.blocks[list(rows)].astype(np.int64)
        labels = np.where(padding(ids, self.pad, ends=self.pad_ends), IGNORED, ids)
        labels[:, 0] = IGNORED
        return {"input_ids": ids, "labels": labels}


def padding(ids: np.ndarray, pad: int, *, ends: bool) -> np.ndarray:
    """Return True for the padding at the end of each row, bool [rows, tokens].

    Args:
        ids: token ids [rows, tokens].
        pad: id of the padding.
        ends: whether that id also ends a text.

    >>> padding(np.array([[5, 6, 0, 0], [5, 0, 6, 7]]), 0, ends=True)
    array([[False, False, False,  True],
           [False, False, False, False]])
    """
    run = np.flip(np.logical_and.accumulate(np.flip(ids == pad, -1), -1), -1)
    if ends:
        run[:, 1:] &= run[:, :-1].copy()
        run[:, 0] = False
    return run


@dataclass(frozen=True, kw_only=True)
class _Head:
    examples: Examples
    count: int

    def __len__(self) -> int:
        return self.count

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        return self.examples.take(rows, draw=draw)


def head(examples: Examples, count: int) -> Examples:
    """Return the first `count` examples, or all if there are fewer."""
    return _Head(examples=examples, count=min(count, len(examples)))


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSplits:
    """Three splits without a common document or image: train, validation (selects the operator) and test (reported).

    Attributes:
        train: examples to train on.
        validation: examples that select the best operator.
        test: examples for the reported losses.
        digest: SHA-256 of all three splits; two runs with the same digest use the same examples.
        sizes: split -> number of tokens or images.
        unit: the unit of `sizes`.
    """

    train: Examples
    validation: Examples
    test: Examples
    digest: str
    sizes: Mapping[str, int]
    unit: Literal["tokens", "images"]

    def batch(self, step: int, *, batch_size: int, seed: int, order: str = "batches") -> Batch:
        """Return batch number `step` of the training split.

        Every example occurs once per epoch. Each epoch has its own order and its own random draw. A batch depends only on the arguments, so
        a run that resumes at step N sees the same batches as an uninterrupted run.

        Args:
            step: the number of the batch, from 0.
            batch_size: examples per batch.
            seed: seed of the order.
            order: name of the order; different names give independent orders for the same seed.
        """
        count = len(self.train)
        parts = []
        rows: list[int] = []
        first = step * batch_size // count
        for position in range(step * batch_size, (step + 1) * batch_size):
            epoch, index = divmod(position, count)
            if epoch != first:
                parts.append(self.train.take(rows, draw=first + 1))
                rows, first = [], epoch
            rows.append(permuted(index, count, f"{order}/{seed}/{epoch}"))
        parts.append(self.train.take(rows, draw=first + 1))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def random_token_ids(*, vocabulary: int, sequence_length: int, blocks: int, seed: int) -> np.ndarray:
    """Return uniform random token ids, uint32 [blocks, sequence_length], reproducible by `seed`. Used where there is no text."""
    assert vocabulary > 0
    count = blocks * sequence_length
    stream = hashlib.shake_256(f"random/{seed}".encode()).digest(8 * count)
    # 64 bits per id, so that the remainder is practically uniform.
    return (np.frombuffer(stream, dtype="<u8") % vocabulary).astype(np.uint32).reshape(blocks, sequence_length)

"""Examples to learn from and to measure on: rows in, batches of arrays out, whatever the task.

A batch maps the names of a model's inputs and labels to arrays with one row an example. What is random about an example, such as which of
its tokens are masked, follows from its row and the number of the draw: the same for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ligo_convert.data.shuffle import permuted

Batch = Mapping[str, np.ndarray]


class Examples(Protocol):
    """Rows that can be taken in any order, as often as one likes."""

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        """These rows as one batch. `draw` numbers the draws of what is random: 0 for what is held out, 1 for the first epoch."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayExamples:
    """Examples that lie in memory as they are: name -> array, one row an example."""

    arrays: Batch

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        return {name: array[list(rows)] for name, array in self.arrays.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenExamples:
    """Blocks of token ids, uint32 [blocks, sequence]: `input_ids` int64."""

    blocks: np.ndarray

    def __post_init__(self) -> None:
        assert self.blocks.dtype == np.uint32, f"token ids are uint32, not {self.blocks.dtype}"
        assert self.blocks.ndim == 2, f"a slice is [blocks, sequence], not {self.blocks.shape}"
        assert self.blocks.size, "empty slice"
        # A view: the caller's own array stays writable.
        frozen = self.blocks.view()
        frozen.flags.writeable = False
        object.__setattr__(self, "blocks", frozen)

    def __len__(self) -> int:
        return len(self.blocks)

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        return {"input_ids": self.blocks[list(rows)].astype(np.int64)}


@dataclass(frozen=True, kw_only=True)
class _Head:
    examples: Examples
    count: int

    def __len__(self) -> int:
        return self.count

    def take(self, rows: Sequence[int], *, draw: int = 0) -> Batch:
        return self.examples.take(rows, draw=draw)


def head(examples: Examples, count: int) -> Examples:
    """The first `count` examples, or all where there are fewer."""
    return _Head(examples=examples, count=min(count, len(examples)))


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSplits:
    """What an operator learns on, is chosen on and is reported on: three slices without a common document or image.

    Attributes:
        digest: SHA-256 of all three; two runs with the same digest learn from the same examples.
        sizes: slice -> how many `unit` it holds.
    """

    train: Examples
    validation: Examples
    test: Examples
    digest: str
    sizes: Mapping[str, int]
    unit: Literal["tokens", "images"]

    def batch(self, step: int, *, batch_size: int, seed: int, order: str = "batches") -> Batch:
        """Batch number `step` of the train slice; `order` names one of its orders, of which `seed` numbers many.

        Every example comes once an epoch, each epoch in an order of its own and with a draw of its own. A batch depends on nothing but its
        number, so a run that goes on from step N sees what an uninterrupted one would have seen.
        """
        count = len(self.train)
        parts = []
        rows: list[int] = []
        first = step * batch_size // count
        for place in range(step * batch_size, (step + 1) * batch_size):
            epoch, index = divmod(place, count)
            if epoch != first:
                parts.append(self.train.take(rows, draw=first + 1))
                rows, first = [], epoch
            rows.append(permuted(index, count, f"{order}/{seed}/{epoch}"))
        parts.append(self.train.take(rows, draw=first + 1))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def random_slice(*, vocabulary: int, sequence_length: int, blocks: int, seed: int) -> np.ndarray:
    """Token ids for where there is no text: uniform, uint32 [blocks, sequence_length], the same for ever."""
    assert vocabulary > 0
    count = blocks * sequence_length
    stream = hashlib.shake_256(f"random/{seed}".encode()).digest(8 * count)
    # 64 bits an id, so that the remainder favours no id measurably.
    return (np.frombuffer(stream, dtype="<u8") % vocabulary).astype(np.uint32).reshape(blocks, sequence_length)

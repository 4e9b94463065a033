"""Text in, slices of token ids out: what an operator learns on, is chosen on and is reported on.

Only as much text is read and tokenised as the slices need: a corpus of any size costs the same. The same text gives the
same slices wherever it lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ligo_convert.corpus import DataFacts, TextData, documents, first_bytes
from ligo_convert.errors import MachineError, RecipeError
from ligo_convert.permutation import permuted
from ligo_convert.tokenization import encoder, known_files, load_tokenizer

ENCODE_CHARACTERS = 256 * 1024  # tokenised at a time


def content_digest(facts: DataFacts, *, tokenizer: Path | None) -> str:
    """The SHA-256, in hex, that names text and tokenizer by what their files hold, wherever those lie.

    It covers the SHA-256 of each file of `facts`, sorted, and name and SHA-256 of each file that makes up the tokenizer
    in the folder `tokenizer`, if one is given. A dataset of the Hub has no files and adds nothing. Every file is read
    to its end.

    Raises:
        MachineError: a file that is gone or cannot be read.
    """
    lines = sorted(_file_digest(path) for path in facts.files)
    if tokenizer is not None:
        lines += [f"{path.name} {_file_digest(path)}" for path in known_files(tokenizer)]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=path) from None


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSlices:
    """Three slices of token ids that share no document, each uint32 [blocks, sequence_length], read-only.

    `validation` is the slice an operator is chosen on, `test` the one it is reported on. `digest` is the SHA-256 of all
    three, shapes included: two runs with the same digest learn from the same tokens. For torch, convert first:
    `torch.from_numpy(slices.test.astype(numpy.int64))`.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for name in ("train", "validation", "test"):
            # A view: the caller's own array stays writable.
            array = getattr(self, name).view()
            assert array.dtype == np.uint32, f"{name}: token ids are uint32, not {array.dtype}"
            assert array.ndim == 2, f"{name}: a slice is [blocks, sequence_length], not {array.shape}"
            assert array.size, f"{name}: empty slice"
            array.flags.writeable = False
            object.__setattr__(self, name, array)
            digest.update(f"{name} {array.shape[0]}x{array.shape[1]}\n".encode())
            digest.update(array.astype("<u4", copy=False).tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    def batch(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
        """Batch number `step` of the train slice: uint32 [batch_size, sequence_length], a copy.

        Every block comes once an epoch, each epoch in an order of its own. A batch depends on nothing but its number,
        so a run that goes on from step N sees what an uninterrupted one would have seen.
        """
        blocks = len(self.train)
        rows = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            epoch, index = divmod(place, blocks)
            rows.append(permuted(index, blocks, f"batches/{seed}/{epoch}"))
        return self.train[rows]


def random_slice(*, vocabulary: int, sequence_length: int, blocks: int, seed: int) -> np.ndarray:
    """Token ids for where there is no text: uniform, uint32 [blocks, sequence_length], the same for ever."""
    assert vocabulary > 0
    count = blocks * sequence_length
    stream = hashlib.shake_256(f"random/{seed}".encode()).digest(8 * count)
    # 64 bits an id, so that the remainder favours no id measurably.
    return (np.frombuffer(stream, dtype="<u8") % vocabulary).astype(np.uint32).reshape(blocks, sequence_length)


def token_slices(
    data: TextData,
    tokenizer_directory: Path,
    *,
    base: Path,
    sequence_length: int,
    train_tokens: int,
    heldout_tokens: int,
    seed: int,
    vocabulary: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenSlices:
    """Tokenise as much of `data` as three slices need, test first, then validation, then train.

    Sizes are rounded up to whole blocks of `sequence_length`; documents are joined by the tokenizer's end token and
    what the last document has beyond a slice is dropped. While the text suffices, the held-out slices do not depend on
    `train_tokens`. Where it does not, each held-out slice is at most an eighth of it and train is the rest; steps
    beyond that begin a new epoch.

    Args:
        tokenizer_directory: local folder of the tokenizer.
        base: the folder that relative globs start from.
        train_tokens, heldout_tokens: wanted sizes, in tokens; `heldout_tokens` for each of the two slices.
        vocabulary: the model's number of embeddings.
        on_progress: called with tokens found and tokens wanted.

    Raises:
        RecipeError: less text than one block for each slice; a token id beyond the model's vocabulary; as `documents`.
        SourceError, MissingExtra: as `load_tokenizer`.
    """
    heldout, train = (
        -(-max(1, wanted) // sequence_length) * sequence_length for wanted in (heldout_tokens, train_tokens)
    )
    tokenizer = load_tokenizer(tokenizer_directory)
    slices = _Fill(sizes=[heldout, heldout, train])
    seen: list[np.ndarray] = []
    tokens = 0
    encoded = _encoded(documents(data, base=base, seed=seed), tokenizer, tokenizer_directory, vocabulary)
    while not slices.full and (document := next(encoded, None)) is not None:
        seen.append(document)
        slices.add(document)
        tokens += len(document)
        if on_progress is not None:
            on_progress(min(tokens, 2 * heldout + train), 2 * heldout + train)
    if not slices.full:
        share = max(1, min(heldout, tokens // 8) // sequence_length) * sequence_length
        slices = _Fill(sizes=[share, share, train])
        for document in seen:
            slices.add(document)
    test, validation, rest = (slices.blocks(index, sequence_length) for index in range(3))
    if not (len(test) and len(validation) and len(rest)):
        raise RecipeError(
            "too little text",
            expected=f"a block of {sequence_length} tokens for each of test, validation and train, "
            "no document in two of them",
            found=f"{tokens} tokens in {len(seen)} documents",
            hint="give more text or a shorter fit.sequence_length",
        )
    return TokenSlices(train=rest, validation=validation, test=test)


@dataclass(kw_only=True)
class _Fill:
    """Slices filled one after another with whole documents, until each has `sizes` tokens."""

    sizes: list[int]
    parts: list[list[np.ndarray]] = field(default_factory=lambda: [[], [], []])
    current: int = 0
    tokens: int = 0  # in the current slice

    @property
    def full(self) -> bool:
        return self.current == len(self.sizes)

    def add(self, document: np.ndarray) -> None:
        self.parts[self.current].append(document)
        self.tokens += len(document)
        if self.tokens >= self.sizes[self.current]:
            self.current, self.tokens = self.current + 1, 0

    def blocks(self, index: int, length: int) -> np.ndarray:
        """Slice `index` in whole blocks of `length` tokens: [blocks, length]."""
        ids = np.concatenate([np.empty(0, np.uint32), *self.parts[index]])
        return ids[: min(self.sizes[index], len(ids) // length * length)].reshape(-1, length)


def _encoded(texts: Iterator[str], tokenizer: Any, directory: Path, vocabulary: int) -> Iterator[np.ndarray]:
    """Each document's ids with the separator behind them, uint32 [tokens]; tokenised many at a time."""
    encode = encoder(tokenizer)
    marks = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
    separator = [mark for mark in marks if mark is not None][:1]
    while batch := list(first_bytes(texts, ENCODE_CHARACTERS)):
        for ids in encode(batch):
            document = np.array([*ids, *separator], dtype=np.uint32)
            if document.size and (largest := int(document.max())) >= vocabulary:
                raise RecipeError(
                    "the tokenizer does not fit the model",
                    where=directory,
                    expected=f"token ids below the model's vocabulary of {vocabulary}",
                    found=f"id {largest} ({tokenizer.convert_ids_to_tokens(largest)})",
                    hint="name the model's own tokenizer in fit.data.tokenizer",
                )
            yield document

"""Text in, slices of token ids out: what an operator learns on, is chosen on and is reported on.

Only as much text is read and tokenised as the slices need: a corpus of any size costs the same. The same text gives the
same slices wherever it lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ligo_convert.data.corpus import DataSection, documents, first_bytes
from ligo_convert.data.data_source import DataFacts
from ligo_convert.data.examples import DataSplits, Examples, TokenExamples
from ligo_convert.data.masking import MaskedExamples, Masking
from ligo_convert.data.tokenizers import encoder, known_files, load_tokenizer
from ligo_convert.errors import MachineError, RecipeError

ENCODE_CHARACTERS = 256 * 1024  # tokenised at a time


def content_digest(facts: DataFacts, *, tokenizer: Path | None) -> str:
    """The SHA-256, in hex, that names text and tokenizer by what their files hold, wherever those lie.

    It covers the SHA-256 of each file of `facts`, sorted (of images with class and name),
    and name and SHA-256 of each file that makes up the tokenizer
    in the folder `tokenizer`, if one is given. A dataset of the Hub has no files and adds nothing. Every file is read
    to its end.

    Raises:
        MachineError: a file that is gone or cannot be read.
    """
    lines = sorted(
        (f"{path.parent.name}/{path.name} " if facts.names_matter else "") + _file_digest(path) for path in facts.files
    )
    if tokenizer is not None:
        lines += [f"{path.name} {_file_digest(path)}" for path in known_files(tokenizer)]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=path) from None


def token_splits(
    data: DataSection,
    tokenizer_directory: Path,
    *,
    base: Path,
    sequence_length: int,
    train_tokens: int,
    heldout_tokens: int,
    seed: int,
    vocabulary: int,
    masking: Masking | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSplits:
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
        masking: for a masked language model: blocks then begin and end as the tokenizer frames a sequence, and tokens are masked.
        on_progress: called with tokens found and tokens wanted.

    Raises:
        RecipeError: less text than one block for each slice; a token id beyond the model's vocabulary; as `documents`.
        SourceError, MissingExtra: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(tokenizer_directory)
    frame = _frame(tokenizer, tokenizer_directory) if masking is not None else ()
    length = sequence_length - len(frame)
    if length < 1:
        raise RecipeError("the sequence is too short for a token", expected=len(frame) + 1, found=sequence_length)
    heldout, train = (-(-max(1, wanted) // sequence_length) * length for wanted in (heldout_tokens, train_tokens))
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
        share = max(1, min(heldout, tokens // 8) // length) * length
        slices = _Fill(sizes=[share, share, train])
        for document in seen:
            slices.add(document)
    test, validation, rest = (slices.blocks(index, length) for index in range(3))
    if not (len(test) and len(validation) and len(rest)):
        raise RecipeError(
            "too little text",
            expected=f"a block of {sequence_length} tokens for each of test, validation and train, "
            "no document in two of them",
            found=f"{tokens} tokens in {len(seen)} documents",
            hint="give more text or a shorter fit.sequence_length",
        )
    blocks = {"train": rest, "validation": validation, "test": test}
    if masking is None:
        found: dict[str, Examples] = {name: TokenExamples(blocks=array) for name, array in blocks.items()}
    else:
        blocks = {name: _framed(array, frame) for name, array in blocks.items()}
        found = {
            name: MaskedExamples(
                blocks=array,
                masking=masking,
                name=name,
                mask_id=tokenizer.mask_token_id,
                special=tuple(sorted(set(tokenizer.all_special_ids))),
                vocabulary=min(vocabulary, len(tokenizer)),
            )
            for name, array in blocks.items()
        }
    return DataSplits(
        **found,
        digest=blocks_digest(blocks),
        sizes={name: int(array.size) for name, array in blocks.items()},
        unit="tokens",
    )


def blocks_digest(blocks: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of slices by name, shapes included."""
    digest = hashlib.sha256()
    for name, array in blocks.items():
        digest.update(f"{name} {array.shape[0]}x{array.shape[1]}\n".encode())
        digest.update(array.astype("<u4", copy=False).tobytes())
    return digest.hexdigest()


def _frame(tokenizer: Any, directory: Path) -> tuple[int, int]:
    """The ids that a sequence begins and ends with. Raises RecipeError where the tokenizer cannot mask."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    lacking = [
        name for name, found in (("mask", tokenizer.mask_token_id), ("first", first), ("last", last)) if found is None
    ]
    if lacking:
        raise RecipeError(
            f"the tokenizer has no {lacking[0]} token, and a masked language model needs one",
            where=directory,
            hint="name the model's own tokenizer in fit.data.tokenizer",
        )
    return first, last


def _framed(blocks: np.ndarray, frame: tuple[int, ...]) -> np.ndarray:
    """Every block between the first and the last token of a sequence."""
    first, last = (np.full((len(blocks), 1), token, dtype=np.uint32) for token in frame)
    return np.concatenate([first, blocks, last], axis=1)


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

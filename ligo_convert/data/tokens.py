"""Tokenise text into training, validation and test splits.

Input: the data of a recipe and a tokenizer. Output: `DataSplits` of token ids.

Only as much text is read and tokenised as the splits need. The same text gives the same splits in any location.
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

ENCODE_CHARACTERS = 256 * 1024  # UTF-8 bytes that are tokenised at a time


def content_digest(facts: DataFacts, *, tokenizer: Path | None) -> str:
    """Return a SHA-256, in hex, of the content of data and tokenizer. The location of the files does not matter.

    It covers the sorted SHA-256 of the files (for images with class and file name), and name and SHA-256 of each tokenizer file. A Hub
    dataset has no files and adds nothing. Every file is read to its end.

    Args:
        facts: names the files of the data.
        tokenizer: folder of the tokenizer; None for none.

    Raises:
        MachineError: a file was removed or cannot be read.
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


@dataclass(frozen=True, kw_only=True)
class SplitSizes:
    """Requested sizes of token splits. Each split is rounded up to whole blocks.

    Attributes:
        sequence_length: tokens per block.
        train_tokens: tokens of the training split.
        heldout_tokens: tokens of the validation split, and of the test split.
    """

    sequence_length: int
    train_tokens: int
    heldout_tokens: int


def token_splits(
    data: DataSection,
    tokenizer_directory: Path,
    *,
    base: Path,
    sizes: SplitSizes,
    seed: int,
    vocabulary: int,
    masking: Masking | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSplits:
    """Tokenise as much of `data` as the three splits need: test first, then validation, then training.

    Documents are joined by the tokenizer's end token, and what the last document has beyond a split is dropped. If there is enough text,
    the held-out splits do not depend on `train_tokens`. Otherwise each held-out split is at most an eighth of the text and training gets
    the rest; further steps begin a new epoch.

    Args:
        data: the recipe's `fit.data`.
        tokenizer_directory: local folder of the tokenizer.
        base: the folder that relative globs start from.
        sizes: requested sizes.
        seed: seed of the order of the text.
        vocabulary: the number of embeddings of the model.
        masking: set for a masked language model; blocks then begin and end with the tokenizer's special tokens, and tokens are masked.
        on_progress: called with the numbers of tokens found and requested.

    Raises:
        RecipeError: less text than one block for each split; a token id beyond the vocabulary of the model; as `documents`.
        SourceError, MissingExtra: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(tokenizer_directory)
    frame = _frame(tokenizer, tokenizer_directory) if masking is not None else ()
    length = sizes.sequence_length - len(frame)
    if length < 1:
        raise RecipeError("the sequence is too short for a token", expected=len(frame) + 1, found=sizes.sequence_length)
    encoded = _encoded(documents(data, base=base, seed=seed), tokenizer, tokenizer_directory, vocabulary)
    blocks = _fill_splits(encoded, sizes, length, on_progress)
    splits: dict[str, Examples]
    if masking is None:
        splits = {name: TokenExamples(blocks=array) for name, array in blocks.items()}
    else:
        blocks = {name: _framed(array, frame) for name, array in blocks.items()}
        splits = {
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
        **splits,
        digest=blocks_digest(blocks),
        sizes={name: int(array.size) for name, array in blocks.items()},
        unit="tokens",
    )


def _fill_splits(
    encoded: Iterator[np.ndarray], sizes: SplitSizes, length: int, on_progress: Callable[[int, int], None] | None
) -> dict[str, np.ndarray]:
    """Return split -> uint32 [blocks, length], in the order train, validation, test. Takes no more documents than needed.

    Args:
        encoded: the documents' token ids.
        sizes: requested sizes, special tokens included.
        length: tokens per block without the special tokens.
        on_progress: as for `token_splits`.

    Raises:
        RecipeError: less text than one block for each split.
    """
    heldout, train = (
        -(-max(1, tokens) // sizes.sequence_length) * length for tokens in (sizes.heldout_tokens, sizes.train_tokens)
    )
    fill = _Fill(sizes=[heldout, heldout, train])
    seen: list[np.ndarray] = []
    tokens = 0
    while not fill.full and (document := next(encoded, None)) is not None:
        seen.append(document)
        fill.add(document)
        tokens += len(document)
        if on_progress is not None:
            on_progress(min(tokens, 2 * heldout + train), 2 * heldout + train)
    if not fill.full:
        share = max(1, min(heldout, tokens // 8) // length) * length
        fill = _Fill(sizes=[share, share, train])
        for document in seen:
            fill.add(document)
    blocks = {name: fill.blocks(index, length) for index, name in enumerate(("test", "validation", "train"))}
    if not all(len(array) for array in blocks.values()):
        raise RecipeError(
            "too little text",
            expected=f"a block of {sizes.sequence_length} tokens for each of test, validation and train, "
            "no document in two of them",
            found=f"{tokens} tokens in {len(seen)} documents",
            hint="give more text or a shorter fit.sequence_length",
        )
    # The digest of the splits covers them in this order.
    return {name: blocks[name] for name in ("train", "validation", "test")}


def blocks_digest(blocks: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the splits' names, shapes and token ids, in hex."""
    digest = hashlib.sha256()
    for name, array in blocks.items():
        digest.update(f"{name} {array.shape[0]}x{array.shape[1]}\n".encode())
        digest.update(array.astype("<u4", copy=False).tobytes())
    return digest.hexdigest()


def _frame(tokenizer: Any, directory: Path) -> tuple[int, int]:
    """Return the ids of the first and the last token of a sequence. Raises RecipeError if the tokenizer cannot mask."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    lacking = [
        name for name, token in (("mask", tokenizer.mask_token_id), ("first", first), ("last", last)) if token is None
    ]
    if lacking:
        raise RecipeError(
            f"the tokenizer has no {lacking[0]} token, and a masked language model needs one",
            where=directory,
            hint="name the model's own tokenizer in fit.data.tokenizer",
        )
    return first, last


def _framed(blocks: np.ndarray, frame: tuple[int, ...]) -> np.ndarray:
    """Put the first and the last token of a sequence around every block."""
    first, last = (np.full((len(blocks), 1), token, dtype=np.uint32) for token in frame)
    return np.concatenate([first, blocks, last], axis=1)


@dataclass(kw_only=True)
class _Fill:
    """Fills splits one after another with whole documents.

    Attributes:
        sizes: tokens that each split needs.
        parts: documents of each split.
        current: the split that is being filled.
        tokens: tokens in the current split.
    """

    sizes: list[int]
    parts: list[list[np.ndarray]] = field(default_factory=lambda: [[], [], []])
    current: int = 0
    tokens: int = 0

    @property
    def full(self) -> bool:
        return self.current == len(self.sizes)

    def add(self, document: np.ndarray) -> None:
        self.parts[self.current].append(document)
        self.tokens += len(document)
        if self.tokens >= self.sizes[self.current]:
            self.current, self.tokens = self.current + 1, 0

    def blocks(self, index: int, length: int) -> np.ndarray:
        """Return split `index` as whole blocks of `length` tokens: uint32 [blocks, length]."""
        ids = np.concatenate([np.empty(0, np.uint32), *self.parts[index]])
        return ids[: min(self.sizes[index], len(ids) // length * length)].reshape(-1, length)


def _encoded(texts: Iterator[str], tokenizer: Any, directory: Path, vocabulary: int) -> Iterator[np.ndarray]:
    """Yield the token ids of each document followed by the separator token, uint32 [tokens]. Tokenises many documents at a time."""
    encode = encoder(tokenizer)
    candidates = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
    separator = [token for token in candidates if token is not None][:1]
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

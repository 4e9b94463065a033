"""Tokenise text into training, validation and test splits.

Input: the data of a recipe and a tokenizer. Output: `DataSplits` of token ids.

Only as much text is read and tokenised as the splits need. The same text gives the same splits in any location.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ligo_convert.data.chat_template import load_chat_template
from ligo_convert.data.corpus import DataSection, documents, first_bytes
from ligo_convert.data.data_source import DataFacts
from ligo_convert.data.examples import DataSplits, Examples, PaddedExamples, TokenExamples
from ligo_convert.data.masking import MaskedExamples, Masking, framed
from ligo_convert.data.records import FORMATS
from ligo_convert.data.token_store import TokenFile, TokenFolder, TokenMemory
from ligo_convert.data.tokenizers import encoder, known_files, load_tokenizer
from ligo_convert.errors import MachineError, RecipeError

ENCODE_CHARACTERS = 256 * 1024  # UTF-8 bytes that are tokenised at a time

_DIGEST_BLOCKS = 4096  # blocks that are hashed at a time


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
    token_folder: TokenFolder | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSplits:
    """Tokenise as much of `data` as the three splits need: test first, then validation, then training.

    Documents are joined by the tokenizer's end token, and what the last document has beyond a split is dropped. With `packing: false` each
    document begins a block of its own, its last block is padded, and documents longer than a block have several. If there is enough text,
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
        token_folder: where the tokens are kept, so that they take no memory and a run that was stopped goes on; None for memory. The
            splits are the same. Pickled, they name the file.
        on_progress: called with the numbers of tokens found and requested.

    Raises:
        RecipeError: less text than one block for each split; a token id beyond the vocabulary of the model; as `documents`.
        SourceError, MissingExtra: as `load_tokenizer` and `load_chat_template`.
        OutputBusy, SourceChanged, MachineError: as `TokenFile`.
    """
    tokenizer = load_tokenizer(tokenizer_directory)
    conversations = FORMATS[data.format or "text"].conversations
    template = load_chat_template(tokenizer_directory, tokenizer) if conversations else None
    frame = _frame(tokenizer, tokenizer_directory) if masking is not None else ()
    cut = None
    if data.packing is False:
        # A padded block holds its special tokens, because the padding comes after them.
        cut = _Cut(length=sizes.sequence_length, frame=frame, pad=_pad(tokenizer, tokenizer_directory))
        frame = ()
    length = sizes.sequence_length - len(frame)
    if length < 1 or (cut is not None and cut.room < 1):
        raise RecipeError("the sequence is too short for a token", expected=len(frame) + 1, found=sizes.sequence_length)

    def texts() -> Iterator[str]:
        return documents(data, base=base, seed=seed, template=template)

    def encoded(texts: Iterator[str]) -> Iterator[tuple[str, np.ndarray]]:
        return _encoded(texts, tokenizer, tokenizer_directory, vocabulary, cut)

    with TokenMemory() if token_folder is None else TokenFile(token_folder, vocabulary=vocabulary) as store:
        spans = _fill_splits(store, texts, encoded, sizes, length, on_progress)
        ids = store.ids()
        places = {name: store.place(start, (rows, length)) for name, (start, rows) in spans.items()}
    blocks = {name: ids[start : start + rows * length].reshape(rows, length) for name, (start, rows) in spans.items()}
    splits: dict[str, Examples]
    pad = None if cut is None else cut.pad
    if masking is None and pad is not None:
        ends = pad == _separator(tokenizer)
        splits = {
            name: PaddedExamples(blocks=array, place=places[name], pad=pad, pad_ends=ends)
            for name, array in blocks.items()
        }
    elif masking is None:
        splits = {name: TokenExamples(blocks=array, place=places[name]) for name, array in blocks.items()}
    else:
        splits = {
            name: MaskedExamples(
                blocks=array,
                place=places[name],
                masking=masking,
                name=name,
                mask_id=tokenizer.mask_token_id,
                special=tuple(sorted(set(tokenizer.all_special_ids))),
                vocabulary=min(vocabulary, len(tokenizer)),
                frame=frame,
                pad=pad,
            )
            for name, array in blocks.items()
        }
    return DataSplits(
        **splits,
        digest=blocks_digest(blocks, frame),
        sizes={name: len(array) * sizes.sequence_length for name, array in blocks.items()},
        unit="tokens",
    )


def _fill_splits(
    store: TokenMemory | TokenFile,
    texts: Callable[[], Iterator[str]],
    encoded: Callable[[Iterator[str]], Iterator[tuple[str, np.ndarray]]],
    sizes: SplitSizes,
    length: int,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, tuple[int, int]]:
    """Add documents to `store` until the splits are full, and return split -> first token and blocks, in the order train, validation, test.

    Args:
        store: the documents that are tokenised already; takes no more than needed.
        texts: returns the texts from the first one.
        encoded: texts -> each text with its token ids.
        sizes: requested sizes, special tokens included.
        length: tokens per block without the special tokens.
        on_progress: as for `token_splits`.

    Raises:
        RecipeError: less text than one block for each split.
    """
    heldout, train = (
        -(-max(1, tokens) // sizes.sequence_length) * length for tokens in (sizes.heldout_tokens, sizes.train_tokens)
    )
    fill = _Fill.of([heldout, heldout, train], store.lengths)
    if not fill.full and not store.finished:
        further = encoded(store.resume(texts()))
        # Another process may have added documents before this one could lock the files.
        fill = _Fill.of([heldout, heldout, train], store.lengths)
        while not fill.full and (document := next(further, None)) is not None:
            store.add(*document)
            fill.add(len(document[1]))
            if on_progress is not None:
                on_progress(min(fill.total, 2 * heldout + train), 2 * heldout + train)
        store.save(finished=not fill.full)
    if not fill.full:
        share = max(1, min(heldout, fill.total // 8) // length) * length
        fill = _Fill.of([share, share, train], store.lengths)
    spans = {name: fill.span(index, length) for index, name in enumerate(("test", "validation", "train"))}
    if not all(rows for _, rows in spans.values()):
        raise RecipeError(
            "too little text",
            expected=f"a block of {sizes.sequence_length} tokens for each of test, validation and train, "
            "no document in two of them",
            found=f"{sum(store.lengths)} tokens in {len(store.lengths)} documents",
            hint="give more text or a shorter fit.sequence_length",
        )
    # The digest of the splits covers them in this order.
    return {name: spans[name] for name in ("train", "validation", "test")}


def blocks_digest(blocks: Mapping[str, np.ndarray], frame: tuple[int, ...] = ()) -> str:
    """Return the SHA-256 of the splits' names, shapes and token ids, in hex. `frame` is put around every block first."""
    digest = hashlib.sha256()
    for name, array in blocks.items():
        digest.update(f"{name} {array.shape[0]}x{array.shape[1] + len(frame)}\n".encode())
        for first in range(0, len(array), _DIGEST_BLOCKS):
            piece = framed(array[first : first + _DIGEST_BLOCKS], frame)
            digest.update(piece.astype("<u4", copy=False).tobytes())
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


@dataclass(kw_only=True)
class _Fill:
    """Fills splits one after another with whole documents, which it only counts.

    Attributes:
        sizes: tokens that each split needs.
        starts: the first token of each split that was begun.
        total: tokens of all documents.
    """

    sizes: list[int]
    starts: list[int] = field(default_factory=lambda: [0])
    total: int = 0

    @classmethod
    def of(cls, sizes: list[int], lengths: Iterable[int]) -> _Fill:
        """Return splits that are filled with the first documents of `lengths`, as many as they need."""
        fill = cls(sizes=sizes)
        for length in lengths:
            if fill.full:
                break
            fill.add(length)
        return fill

    @property
    def full(self) -> bool:
        return len(self.starts) > len(self.sizes)

    def add(self, length: int) -> None:
        """Count a document of `length` tokens."""
        self.total += length
        if self.total - self.starts[-1] >= self.sizes[len(self.starts) - 1]:
            self.starts.append(self.total)

    def span(self, index: int, length: int) -> tuple[int, int]:
        """Return the first token of split `index`, and how many whole blocks of `length` tokens it has."""
        first, end = ([*self.starts, *([self.total] * len(self.sizes))][at] for at in (index, index + 1))
        return first, min(self.sizes[index], end - first) // length


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """How a document becomes padded blocks.

    Attributes:
        length: tokens per block.
        frame: ids that are put before and after the tokens of each block; none for a causal model.
        pad: id of the padding.
    """

    length: int
    frame: tuple[int, ...]
    pad: int

    @property
    def room(self) -> int:
        """Return the tokens of a document that fit into a block."""
        return self.length - len(self.frame)

    def blocks(self, ids: list[int]) -> Iterator[int]:
        """Yield the ids of all blocks of a document. A token that would be alone in a block is left out: nothing predicts it."""
        first, last = (self.frame[:1], self.frame[1:])
        for begin in range(0, len(ids), self.room):
            block = [*first, *ids[begin : begin + self.room], *last]
            if len(block) < 2:
                return
            yield from block
            yield from [self.pad] * (self.length - len(block))


def _pad(tokenizer: Any, directory: Path) -> int:
    """Return the id of the padding: the tokenizer's, or its end token. Raises RecipeError if it has neither."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise RecipeError(
        "packing: false needs a padding or an end token, and the tokenizer has neither",
        where=directory,
        hint="leave out data.packing, or name another tokenizer in data.tokenizer",
    )


def _separator(tokenizer: Any) -> int | None:
    """Return the id that ends a document; None if the tokenizer has none."""
    candidates = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
    return next((int(token) for token in candidates if token is not None), None)


def _encoded(
    texts: Iterator[str], tokenizer: Any, directory: Path, vocabulary: int, cut: _Cut | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each text with its token ids followed by the separator token, or as padded blocks, uint32 [tokens].

    Tokenises many texts at a time.
    """
    encode = encoder(tokenizer)
    end = _separator(tokenizer)
    # The last token of a frame ends a text already.
    separator = [end] if end is not None and (cut is None or not cut.frame) else []
    while batch := list(first_bytes(texts, ENCODE_CHARACTERS)):
        for text, ids in zip(batch, encode(batch), strict=True):
            tokens = [*ids, *separator]
            document = np.array(tokens if cut is None else [*cut.blocks(tokens)], dtype=np.uint32)
            if document.size and (largest := int(document.max())) >= vocabulary:
                raise RecipeError(
                    "the tokenizer does not fit the model",
                    where=directory,
                    expected=f"token ids below the model's vocabulary of {vocabulary}",
                    found=f"id {largest} ({tokenizer.convert_ids_to_tokens(largest)})",
                    hint="name the model's own tokenizer in fit.data.tokenizer",
                )
            yield text, document

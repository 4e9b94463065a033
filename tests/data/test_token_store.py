"""Tokens on the disk: the same splits as in memory, after any stop and any damage, and nothing tokenised twice."""

from __future__ import annotations

import errno
import json
import os
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import STDLIB, VOCABULARY, Data, lines, slices, trained, write
from support.faults import inject

from ligo_convert.data import token_store, tokens
from ligo_convert.data.examples import DataSplits
from ligo_convert.data.masking import Masking
from ligo_convert.data.token_store import TokenFile, TokenFolder
from ligo_convert.data.tokenizers import encoder
from ligo_convert.data.train_tokenizer import train_tokenizer
from ligo_convert.errors import LigoError, MachineError, OutputBusy, RecipeError, SourceChanged


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def masker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masker")
    files = train_tokenizer(
        STDLIB, base=folder, vocabulary=VOCABULARY, seed=0, model_type="bert", context=64, max_bytes=50_000
    )
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write(folder / "a.txt", lines(1200))
    write(folder / "b.jsonl", "".join(json.dumps({"text": f"record {n} of the lot"}) + "\n" for n in range(400)))
    return folder


class Kept:
    """A folder of tokens, what was warned about it, and how many texts were tokenised."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.warnings, self.encoded, self.read = path, list[str](), 0, 0
        monkeypatch.setattr(tokens, "encoder", self._encoder)
        monkeypatch.setattr(tokens, "documents", self._documents(tokens.documents))
        # A few texts at a time, so that a stop falls between them.
        monkeypatch.setattr(tokens, "ENCODE_CHARACTERS", 4096)

    def _encoder(self, tokenizer: Any) -> Any:
        encode = encoder(tokenizer)

        def counting(texts: list[str]) -> list[list[int]]:
            self.encoded += len(texts)
            return encode(texts)

        return counting

    def _documents(self, real: Any) -> Any:
        def counting(*arguments: Any, **named: Any) -> Iterator[str]:
            for text in real(*arguments, **named):
                self.read += 1
                yield text

        return counting

    def splits(self, text: Path, tokenizer: Path, *, owner: str = "me", **changes: Any) -> DataSplits:
        self.encoded = self.read = 0
        folder = TokenFolder(path=self.path, owner=owner, warn=self.warnings.append)
        return slices(text, tokenizer, token_folder=folder, **changes)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    return Kept(tmp_path / "tokens", monkeypatch)


def same(one: DataSplits, other: DataSplits) -> bool:
    """Whether two splits have the same digest and sizes, and the same batches, epochs after the first included."""
    last = 2 * len(one.train) // 8 + 1
    batches = [(found.batch(step, batch_size=8, seed=1) for step in (0, 3, last)) for found in (one, other)]
    heldout = [found.test.take(range(len(found.test))) for found in (one, other)]
    return (
        one.digest == other.digest
        and one.sizes == other.sizes
        and all(np.array_equal(a[name], b[name]) for a, b in zip(*batches, strict=True) for name in a)
        and all(np.array_equal(heldout[0][name], heldout[1][name]) for name in heldout[0])
    )


SIZES = [
    pytest.param({}, id="enough text"),
    pytest.param({"train_tokens": 10**6}, id="more than there is"),
    pytest.param({"train_tokens": 10**6, "heldout_tokens": 10**6}, id="held-out splits that are cut down"),
    pytest.param({"train_tokens": 64, "heldout_tokens": 10**6}, id="only held-out splits that are cut down"),
]


@pytest.mark.parametrize("changes", SIZES)
def test_the_splits_are_those_of_memory(text: Path, tokenizer: Path, kept: Kept, changes: dict[str, int]) -> None:
    memory = slices(text, tokenizer, **changes)
    disk = kept.splits(text, tokenizer, **changes)
    assert same(disk, memory)
    assert kept.encoded
    # The array is mapped from the disk, with two bytes an id.
    assert disk.train.blocks.dtype == np.uint16
    assert not disk.train.blocks.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        disk.test.blocks[0, 0] = 1
    # Again: nothing is tokenised, nothing is even read.
    assert same(kept.splits(text, tokenizer, **changes), memory)
    assert (kept.encoded, kept.read, kept.warnings) == (0, 0, [])


def test_masked_splits_are_those_of_memory(text: Path, masker: Path, kept: Kept) -> None:
    memory = slices(text, masker, masking=Masking(seed=3))
    assert same(kept.splits(text, masker, masking=Masking(seed=3)), memory)
    frame = memory.train.take([0])["input_ids"][0]
    assert memory.sizes["train"] == len(memory.train) * len(frame)


def test_ids_beyond_two_bytes_take_four(tmp_path: Path) -> None:
    for vocabulary, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)):
        folder = TokenFolder(path=tmp_path / dtype.__name__, owner="me", warn=print)
        with TokenFile(folder, vocabulary=vocabulary) as store:
            list(store.resume(iter([])))
            store.add("x", np.array([1, vocabulary - 1], np.uint32))
            store.save()
            found = store.ids()
        assert found.dtype == dtype
        assert found.tolist() == [1, vocabulary - 1]


def test_more_tokens_are_added_to_those_that_are_there(text: Path, tokenizer: Path, kept: Kept) -> None:
    kept.splits(text, tokenizer, train_tokens=1000)
    nbytes = (kept.path / "ids.bin").stat().st_size
    long = kept.splits(text, tokenizer, train_tokens=8000)
    added = kept.encoded
    assert same(long, slices(text, tokenizer, train_tokens=8000))
    assert (kept.path / "ids.bin").stat().st_size > nbytes
    # Fewer are a part of them, of another length, too.
    few = {"train_tokens": 500, "sequence_length": 20}
    short = kept.splits(text, tokenizer, **few)
    assert kept.encoded == 0
    assert same(short, slices(text, tokenizer, **few))
    kept.splits(text, tokenizer, owner="somebody else", train_tokens=8000)
    assert kept.encoded > added
    assert len(kept.warnings) == 1
    assert "another text, tokenizer or seed" in kept.warnings[0]


def test_a_stop_anywhere_costs_what_was_not_yet_saved(
    text: Path, tokenizer: Path, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "SAVE_EVERY_SECONDS", 0.0)
    few = {"heldout_tokens": 64, "train_tokens": 300}
    memory = slices(text, tokenizer, **few)
    with inject(10**9, number=errno.EIO) as count:
        kept.splits(text, tokenizer, **few)
    effects, whole = count[0], kept.encoded
    for at in range(0, effects, max(1, effects // 16)):
        kept.path = tmp_path / f"stopped-{at}"
        with inject(at, number=errno.EIO, sticky=True), pytest.raises(MachineError):
            kept.splits(text, tokenizer, **few)
        assert same(kept.splits(text, tokenizer, **few), memory)
        # Of the texts that are tokenised together with the first missing one, all are tokenised again.
        assert kept.encoded <= whole - whole * at // effects + 12
    assert kept.warnings == []


def spoil(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "bit":
        data[len(data) // 2] ^= 1
    elif how == "short":
        del data[-1:]
    path.unlink()
    if how == "directory":
        path.mkdir()
    elif how == "link":
        path.symlink_to(write(path.parent.parent / "elsewhere", bytes(data)))
    elif how == "pipe":
        os.mkfifo(path)
    elif how != "gone":
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["ids.bin", "documents.bin", "index.json"])
@pytest.mark.parametrize("how", ["bit", "short", "gone", "directory", "link", "pipe"])
def test_damage_is_noticed_and_mended(text: Path, tokenizer: Path, kept: Kept, name: str, how: str) -> None:
    before = kept.splits(text, tokenizer)
    spoil(kept.path / name, how)
    assert same(kept.splits(text, tokenizer), before)
    assert kept.encoded
    # Without an index there is nothing to hold the files against.
    assert len(kept.warnings) == ((name, how) != ("index.json", "gone"))
    assert all("discarded, and made again" in warning for warning in kept.warnings)
    assert not (kept.path / name).is_symlink()
    kept.splits(text, tokenizer)
    assert kept.encoded == 0


def test_what_the_index_does_not_state_is_cut_off(text: Path, tokenizer: Path, kept: Kept) -> None:
    """Bytes that were written after the last index, by a run that was stopped."""
    kept.splits(text, tokenizer, train_tokens=500)
    for name in ("ids.bin", "documents.bin"):
        with (kept.path / name).open("ab") as file:
            file.write(b"\xff" * 100_001)
    assert same(kept.splits(text, tokenizer, train_tokens=4000), slices(text, tokenizer, train_tokens=4000))
    assert all((kept.path / name).stat().st_size < 100_000 for name in ("ids.bin", "documents.bin"))
    assert kept.warnings == []


def test_another_text_is_never_joined_to_the_one_that_was_begun(
    tmp_path: Path, text: Path, tokenizer: Path, kept: Kept
) -> None:
    kept.splits(text, tokenizer, train_tokens=500)
    write(tmp_path / "other" / "a.txt", lines(1200).replace("few", "new"))
    with pytest.raises(SourceChanged, match="not the one whose beginning was tokenised"):
        kept.splits(tmp_path / "other", tokenizer, train_tokens=4000)
    write(tmp_path / "little" / "a.txt", lines(3))
    with pytest.raises(SourceChanged):
        kept.splits(tmp_path / "little", tokenizer, train_tokens=4000)


def test_two_processes_do_not_write_at_once(text: Path, tokenizer: Path, kept: Kept) -> None:
    kept.splits(text, tokenizer)
    folder = TokenFolder(path=kept.path, owner="me", warn=print)
    with TokenFile(folder, vocabulary=VOCABULARY) as store:
        store.resume(tokens.documents(Data(text=["*"]), base=text, seed=0))
        with pytest.raises(OutputBusy):
            kept.splits(text, tokenizer, train_tokens=4000)
        # Reading what is there is always possible.
        kept.splits(text, tokenizer)
    kept.splits(text, tokenizer, train_tokens=4000)


def test_what_a_link_points_to_is_left_alone(tmp_path: Path, text: Path, tokenizer: Path, kept: Kept) -> None:
    other = write(tmp_path / "precious", "text")
    kept.path.mkdir()
    (kept.path / "ids.bin").symlink_to(other)
    kept.splits(text, tokenizer)
    assert other.read_text() == "text"
    assert not (kept.path / "ids.bin").is_symlink()


def test_too_little_text_is_said_as_in_memory(tmp_path: Path, tokenizer: Path, kept: Kept) -> None:
    write(tmp_path / "little" / "a.txt", "only a few words\n")
    messages = []
    for splits in (slices, kept.splits, kept.splits):
        with pytest.raises(RecipeError, match="too little text") as caught:
            splits(tmp_path / "little", tokenizer)
        messages.append(str(caught.value))
    assert len(set(messages)) == 1


def test_memory_does_not_grow_with_the_text(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_store, "_PIECE", 1 << 14)
    with (tmp_path / "a.txt").open("wb") as handle:
        handle.truncate(10**9)  # a hole: NUL characters that take no disk
    peaks = []
    for number, train in enumerate((50_000, 200_000)):
        folder = TokenFolder(path=tmp_path / str(number), owner="me", warn=print)
        tracemalloc.start()
        try:
            found = slices(tmp_path, tokenizer, data=Data(text=["a.txt"]), train_tokens=train, token_folder=folder)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert found.sizes["train"] >= train
    # In memory 150,000 more tokens take 600,000 bytes.
    assert peaks[1] < peaks[0] + 100_000


def test_a_full_disk_is_said_and_costs_nothing_that_was_saved(
    text: Path, tokenizer: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.splits(text, tokenizer, train_tokens=500)
    monkeypatch.setattr(token_store, "_PIECE", 256)
    with inject(6, number=errno.ENOSPC, sticky=True), pytest.raises(LigoError, match="the disk is full"):
        kept.splits(text, tokenizer, train_tokens=4000)
    began = time.monotonic()
    assert same(kept.splits(text, tokenizer, train_tokens=4000), slices(text, tokenizer, train_tokens=4000))
    assert time.monotonic() - began < 10
    assert sorted(path.name for path in kept.path.iterdir()) == ["documents.bin", "ids.bin", "index.json"]

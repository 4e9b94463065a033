"""Token slices: their sizes, what they share, what their digests cover, and what is refused by name."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from support.corpora import (
    VOCABULARY,
    Data,
    lines,
    slices,
    texts,
    trained,
    write,
)
from torch.nn.functional import cross_entropy

from ligo_convert.data.corpus import check_data
from ligo_convert.data.data_source import DataFacts
from ligo_convert.data.examples import IGNORED, DataSplits, TokenExamples, padding, random_token_ids
from ligo_convert.data.tokenizers import load_tokenizer
from ligo_convert.data.tokens import blocks_digest, content_digest
from ligo_convert.errors import MachineError, RecipeError
from ligo_convert.training.tasks import TASKS, weight

# A recipe means the same text in every version: this does not change.
GOLDEN_RANDOM = "05a914741ad8044ba7d165d6c06f453649cb264107ba6ad42e2a3aae314df613"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("tokenizer"))


def test_slices_have_the_asked_sizes_and_share_no_document(tmp_path: Path, tokenizer: Path) -> None:
    rows = [f"{'abcdefghij'[n % 10] * 3}{n} " * 12 for n in range(2000)]
    write(tmp_path / "a.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows))
    found = slices(tmp_path, tokenizer, heldout_tokens=301, train_tokens=1999)
    assert [part.shape for part in (found.test.blocks, found.validation.blocks, found.train.blocks)] == [
        (10, 32),
        (10, 32),
        (63, 32),
    ]
    assert found.train.blocks.dtype == np.uint32
    reader = load_tokenizer(tokenizer)
    words = [set(reader.decode(part.reshape(-1)).replace("<|endoftext|>", " ").split()) for part in parts(found)]
    complete = [
        {word for word in group if word[3:] and f"{word} " in rows[int(word[3:])]} for group in map(keep, words)
    ]
    assert all(complete)
    assert not any(one & other for one, other in itertools.combinations(complete, 2))


def parts(found: DataSplits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.test.blocks, found.validation.blocks, found.train.blocks


def keep(words: set[str]) -> set[str]:
    return {word for word in words if word[3:].isdigit() and int(word[3:]) < 2000}


def test_documents_are_tokenised_as_the_library_does_and_joined_by_the_end_token(
    tmp_path: Path, tokenizer: Path
) -> None:
    rows = [f"caf\u00e9 {n} don't\n\t stop" for n in range(400)]
    write(tmp_path / "a.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows))
    found = slices(tmp_path, tokenizer, heldout_tokens=64, train_tokens=500)
    reader = load_tokenizer(tokenizer)
    expected: list[int] = []
    for text in texts(tmp_path, "*"):
        expected += [*reader(text, add_special_tokens=False)["input_ids"], reader.eos_token_id]
    assert expected[: found.test.blocks.size] == found.test.blocks.reshape(-1).tolist()


def test_the_digest_depends_on_the_text_and_not_on_the_folder(tmp_path: Path, tokenizer: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder / "a.txt", lines(2000))
    first = slices(tmp_path / "one", tokenizer)
    assert first.digest == slices(tmp_path / "two", tokenizer).digest
    assert first.digest == slices(Path("/nowhere"), tokenizer, data=Data(text=[f"{tmp_path}/one/*"])).digest
    assert first.digest != slices(tmp_path / "one", tokenizer, seed=1).digest
    write(tmp_path / "two" / "a.txt", lines(2000).replace("few", "new"))
    assert first.digest != slices(tmp_path / "two", tokenizer).digest


def test_the_digest_covers_every_slice_and_its_shape() -> None:
    array = np.arange(12, dtype=np.uint32).reshape(3, 4)
    given = {"train": array, "validation": array, "test": array}
    plain = blocks_digest(given)
    assert plain == blocks_digest(dict(given))
    for name in given:
        assert blocks_digest({**given, name: array + np.uint32(1)}) != plain
        assert blocks_digest({**given, name: array.reshape(4, 3)}) != plain


def test_slices_cannot_be_changed_behind_their_digest(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "a.txt", lines(500))
    found = slices(tmp_path, tokenizer)
    with pytest.raises(ValueError, match="read-only"):
        found.test.blocks[0, 0] = 1
    batch = found.batch(0, batch_size=2, seed=0)["input_ids"]
    batch[:] = 0  # a batch is the caller's own


def test_heldout_slices_do_not_depend_on_the_length_of_training(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "a.txt", lines(8000))
    short, long = (slices(tmp_path, tokenizer, train_tokens=tokens) for tokens in (64, 20_000))
    assert np.array_equal(short.test.blocks, long.test.blocks)
    assert np.array_equal(short.validation.blocks, long.validation.blocks)
    assert np.array_equal(short.train.blocks, long.train.blocks[: len(short.train.blocks)])


def test_little_text_is_shared_out(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "a.txt", lines(60))
    found = slices(tmp_path, tokenizer, heldout_tokens=100_000, train_tokens=100_000)
    total = sum(len(part) for part in parts(found))
    assert len(found.test.blocks) == len(found.validation.blocks)
    assert 1 <= len(found.test.blocks) <= total / 6
    assert len(found.train.blocks) >= total / 2


def test_too_little_text_says_how_much_there_is(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "a.txt", "only a few words\n")
    with pytest.raises(RecipeError, match="too little text") as caught:
        slices(tmp_path, tokenizer)
    assert "a block of 32 tokens for each of test, validation and train" in str(caught.value)
    assert "tokens in 1 documents" in str(caught.value)
    write(tmp_path / "a.txt", "  \n \n")
    with pytest.raises(RecipeError, match="0 tokens in 0 documents"):
        slices(tmp_path, tokenizer)


def test_a_tokenizer_beyond_the_model_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "a.txt", lines(500))
    with pytest.raises(RecipeError, match="the tokenizer does not fit the model") as caught:
        slices(tmp_path, tokenizer, vocabulary=270)
    assert str(tokenizer) in str(caught.value)
    assert "token ids below the model's vocabulary of 270" in str(caught.value)


def test_progress_counts_up_to_what_is_wanted(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "a.txt", lines(2000))
    calls: list[tuple[int, int]] = []
    slices(tmp_path, tokenizer, on_progress=lambda done, wanted: calls.append((done, wanted)))
    assert calls == sorted(calls)
    assert {wanted for _, wanted in calls} == {320 + 320 + 2016}
    assert calls[-1] == (2656, 2656)


def test_a_corpus_of_any_size_costs_the_same(tmp_path: Path, tokenizer: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as handle:
        handle.truncate(20 * 10**9)  # a hole: a file of NUL characters that takes no disk
    load_tokenizer(tokenizer)
    tracemalloc.start()
    started = time.monotonic()
    try:
        found = slices(tmp_path, tokenizer, train_tokens=20_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.train.blocks.shape == (625, 32)
    assert peak < 60e6
    assert time.monotonic() - started < 10


def test_what_a_tokenizer_file_asks_for_beside_its_rules_is_off(tmp_path: Path, tokenizer: Path) -> None:
    """Truncation, padding and dropout are stored in tokenizer.json; each would silently spoil the slices."""
    write(tmp_path / "text" / "a.txt", lines(2000))
    plain = slices(tmp_path / "text", tokenizer)
    content = json.loads((tokenizer / "tokenizer.json").read_bytes())
    content["model"]["dropout"] = 0.5
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 5000},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    write(tmp_path / "odd" / "tokenizer.json", json.dumps(content))
    # The class of GPT-2 builds its own model and would hide the dropout.
    config = json.loads((tokenizer / "tokenizer_config.json").read_bytes())
    write(tmp_path / "odd" / "tokenizer_config.json", json.dumps({**config, "tokenizer_class": "TokenizersBackend"}))
    assert slices(tmp_path / "text", tmp_path / "odd").digest == plain.digest


def test_each_epoch_takes_every_block_once_in_an_order_of_its_own() -> None:
    train = np.arange(7, dtype=np.uint32).reshape(7, 1)
    examples = TokenExamples(blocks=train)
    found = DataSplits(train=examples, validation=examples, test=examples, digest="", sizes={}, unit="tokens")
    stream = np.concatenate([found.batch(step, batch_size=3, seed=5)["input_ids"] for step in range(14)]).reshape(-1)
    epochs = [tuple(stream[start : start + 7]) for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > 4
    # A run that goes on from the middle sees the same; so does one with other batches' sizes.
    assert np.array_equal(found.batch(9, batch_size=3, seed=5)["input_ids"].reshape(-1), stream[27:30])
    assert np.array_equal(found.batch(1, batch_size=21, seed=5)["input_ids"].reshape(-1), stream[21:])
    assert not np.array_equal(found.batch(0, batch_size=21, seed=6)["input_ids"].reshape(-1), stream[:21])


def test_random_token_ids_are_reproducible() -> None:
    found = random_token_ids(vocabulary=50257, sequence_length=8, blocks=3, seed=0)
    assert (found.shape, found.dtype) == ((3, 8), np.dtype(np.uint32))
    assert hashlib.sha256(found.astype("<u4").tobytes()).hexdigest() == GOLDEN_RANDOM
    many = random_token_ids(vocabulary=11, sequence_length=100, blocks=100, seed=1)
    counts = np.bincount(many.reshape(-1), minlength=11)
    assert len(counts) == 11
    assert abs(counts - 10_000 / 11).max() < 150


@pytest.mark.skipif(
    not (os.environ.get("LIGO_TEST_TEXT") and os.environ.get("LIGO_TEST_TOKENIZER")),
    reason="set LIGO_TEST_TEXT (folder of .txt) and LIGO_TEST_TOKENIZER (folder of GPT-2's tokenizer)",
)
def test_real_text_with_the_tokenizer_of_gpt2() -> None:
    folder, reader = Path(os.environ["LIGO_TEST_TEXT"]), Path(os.environ["LIGO_TEST_TOKENIZER"])
    load_tokenizer(reader)
    started = time.monotonic()
    found = slices(
        folder,
        reader,
        data=Data(text=["*.txt"]),
        sequence_length=128,
        train_tokens=236_000,
        heldout_tokens=32_000,
        vocabulary=50257,
    )
    assert time.monotonic() - started < 10
    assert [part.shape for part in parts(found)] == [(250, 128), (250, 128), (1844, 128)]
    assert int(found.train.blocks.max()) <= 50256
    assert (found.train.blocks == 50256).any()


# ----------------------------------------------------------------------------------------- what a run is known by


def digest_of(folder: Path, *patterns: str, tokenizer: Path | None = None) -> str:
    return content_digest(check_data(Data(text=list(patterns or ["**/*"])), base=folder), tokenizer=tokenizer)


def test_the_content_digest_is_the_same_wherever_the_files_lie(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "here" / "a.txt", "one")
    write(tmp_path / "here" / "b.jsonl", '{"text": "two"}\n')
    write(tmp_path / "there" / "deep" / "z.jsonl", '{"text": "two"}\n')
    write(tmp_path / "there" / "zz.txt", "one")
    copy = Path(shutil.copytree(tokenizer, tmp_path / "copy"))
    write(copy / "notes.md", "no part of a tokenizer")
    assert digest_of(tmp_path / "here") == digest_of(tmp_path / "there")
    assert digest_of(tmp_path / "here", "b.jsonl", "a.txt") == digest_of(tmp_path / "here")
    assert digest_of(tmp_path / "here", tokenizer=tokenizer) == digest_of(tmp_path / "there", tokenizer=copy)


def test_the_content_digest_is_that_of_the_digests(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "a", "one")
    write(tmp_path / "b", "two")
    files = sorted(hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    assert digest_of(tmp_path) == hashlib.sha256("".join(f"{digest}\n" for digest in files).encode()).hexdigest()
    nothing = DataFacts(kind="hub", files=(), nbytes=0)
    assert content_digest(nothing, tokenizer=None) == hashlib.sha256(b"").hexdigest()
    named = "".join(
        f"{name} {hashlib.sha256((tokenizer / name).read_bytes()).hexdigest()}\n"
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    )
    assert content_digest(nothing, tokenizer=tokenizer) == hashlib.sha256(named.encode()).hexdigest()


def test_the_content_digest_sees_every_byte(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "text" / "a", "one")
    seen = {digest_of(tmp_path / "text"), digest_of(tmp_path / "text", tokenizer=tokenizer)}
    for number, name in enumerate(("config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt")):
        copy = Path(shutil.copytree(tokenizer, tmp_path / str(number)))
        write(copy / name, ((copy / name).read_bytes() if (copy / name).exists() else b"") + b" ")
        seen.add(digest_of(tmp_path / "text", tokenizer=copy))
    write(tmp_path / "text" / "b", "one")  # the same text twice is not the same text
    seen.add(digest_of(tmp_path / "text"))
    write(tmp_path / "text" / "b", "onf")
    seen.add(digest_of(tmp_path / "text"))
    assert len(seen) == 8


def test_the_content_digest_says_which_file_is_gone(tmp_path: Path) -> None:
    facts = check_data(Data(text=[str(write(tmp_path / "a.txt", "text"))]), base=tmp_path)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(MachineError, match=r"a\.txt: cannot be read: No such file"):
        content_digest(facts, tokenizer=None)


def test_the_digest_of_images_knows_their_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + name.encode())
    files = (tmp_path / "a" / "0.png", tmp_path / "b" / "0.png")

    def digest() -> str:
        return content_digest(DataFacts(kind="images", files=files, nbytes=18, names_matter=True), tokenizer=None)

    before, one, two = digest(), files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(two)
    files[1].write_bytes(one)
    assert digest() != before


# --- padding ----------------------------------------------------------------------------------------------------------


def test_padding_is_the_end_of_a_row() -> None:
    ids = np.array([[5, 6, 0, 0], [5, 0, 6, 7], [0, 0, 0, 0], [1, 2, 3, 0]])
    assert padding(ids, 0, ends=False).sum(1).tolist() == [2, 0, 4, 1]
    # The first one ends the text.
    assert padding(ids, 0, ends=True).sum(1).tolist() == [1, 0, 3, 0]


def test_without_packing_every_text_begins_a_sequence(tmp_path: Path, tokenizer: Path) -> None:
    texts = [f"line {number} of a text with a few words in it" for number in range(300)]
    long = "a text that is longer than one sequence " * 8
    write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in [*texts, long]))
    splits = slices(tmp_path, tokenizer, data=Data(text=["*.jsonl"], packing=False), train_tokens=20_000)
    library = load_tokenizer(tokenizer)
    found = []
    for split in (splits.test, splits.validation, splits.train):
        batch = split.take(range(len(split)))
        ids, labels = batch["input_ids"], batch["labels"]
        assert ids.shape == labels.shape == (len(split), 32)
        assert (labels[:, 0] == IGNORED).all()
        counted = labels != IGNORED
        assert (labels == np.where(counted, ids, IGNORED)).all()
        for row, kept in zip(ids, counted, strict=True):
            last = int(np.flatnonzero(kept)[-1])
            assert kept[1 : last + 1].all(), "padding comes after the text alone"
            found.append(library.decode(row[: last + 1]))
    end = library.eos_token
    whole = {text.removesuffix(end) for text in found if text.endswith(end)}
    assert len(whole & set(texts)) > 250
    pieces = "".join(text for text in found if "longer than one" in text or "sequence a" in text)
    assert pieces.count("longer than one sequence") >= 6


def test_the_loss_of_a_padded_batch_is_the_one_of_its_texts(tmp_path: Path, tokenizer: Path) -> None:
    """What the padding holds does not matter, and a batch in parts is the batch."""
    write(tmp_path / "a.jsonl", "".join(json.dumps({"text": "word " * (1 + n % 9)}) + "\n" for n in range(300)))
    splits = slices(tmp_path, tokenizer, data=Data(text=["*.jsonl"], packing=False))
    batch = {name: torch.from_numpy(array) for name, array in splits.train.take(range(6)).items()}
    torch.manual_seed(0)
    logits = torch.randn(6, 32, VOCABULARY)
    loss = TASKS["causal-lm"].loss
    assert loss is not None
    parts, weights = [], []
    for row in range(6):
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        kept = int((one["labels"] != IGNORED).nonzero()[-1, 1]) + 1
        cut = cross_entropy(logits[row, : kept - 1], one["input_ids"][0, 1:kept])
        torch.testing.assert_close(loss(logits[row : row + 1], one), cut)
        parts.append(cut)
        weights.append(weight(one))
    mean = sum(part * share for part, share in zip(parts, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(loss(logits, batch), mean)


def test_every_padded_sequence_has_something_to_predict(tmp_path: Path, tokenizer: Path) -> None:
    """The last token of a text may stand alone in a sequence: nothing predicts it, and a loss over nothing is no number."""
    library = load_tokenizer(tokenizer)
    letter = next(letter for letter in "\u017c\u0436\u00e9q" if len(library.encode(letter * 32)) in (32, 64))
    text = letter * (32 * 32 // len(library.encode(letter * 32)))
    assert len(library.encode(text)) == 32
    write(tmp_path / "a.jsonl", (json.dumps({"text": text}) + "\n") * 200)
    splits = slices(tmp_path, tokenizer, data=Data(text=["*.jsonl"], packing=False))
    for split in (splits.test, splits.validation, splits.train):
        assert ((split.take(range(len(split)))["labels"] != IGNORED).sum(1) > 0).all()

"""Text to token slices: order, cutting, slices, tokenizers, and everything that must be refused by name."""

from __future__ import annotations

import collections
import gzip
import hashlib
import http.server
import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ligo_convert import data as data_module
from ligo_convert.data import (
    TokenSlices,
    check_data,
    check_tokenizer,
    documents,
    load_tokenizer,
    permuted,
    random_slice,
    token_slices,
    train_tokenizer,
)
from ligo_convert.errors import MachineError, MissingExtra, RecipeError, SourceChanged, SourceError

HAS_DATASETS = importlib.util.find_spec("datasets") is not None
HAS_SENTENCEPIECE = importlib.util.find_spec("sentencepiece") is not None
VOCABULARY = 400

# A recipe means the same text in every version: these do not change.
GOLDEN_PERMUTATION = [5, 2, 7, 8, 4, 3, 0, 9, 1, 6]
GOLDEN_ORDER = "7ade3ad7626940c5f9868890fa63242fc10000c5c855dc98b9e41d7c7ea93a90"
GOLDEN_RANDOM = "05a914741ad8044ba7d165d6c06f453649cb264107ba6ad42e2a3aae314df613"


@dataclass(frozen=True, kw_only=True)
class Hub:
    id: str
    name: str | None = None
    split: str | None = None
    column: str | None = None
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    text: list[str] | None = None
    hub: Hub | None = None
    images: str | None = None
    stdlib: bool | None = None


STDLIB = Data(stdlib=True)


def lines(count: int, *, start: int = 0) -> str:
    return "".join(f"line {number} of a text with a few words in it\n" for number in range(start, start + count))


def texts(folder: Path, *patterns: str, seed: int = 0) -> list[str]:
    return list(documents(Data(text=list(patterns)), base=folder, seed=seed))


def names(folder: Path, *patterns: str) -> list[str]:
    facts = check_data(Data(text=list(patterns)), base=folder)
    return [os.path.relpath(file, folder) for file in facts.files]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def python(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`program` in another process, without the Hub's variables of this one."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**inherited, "PYTHONPATH": str(Path(data_module.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 400 entries, beside a GPT-2 config."""
    folder = tmp_path_factory.mktemp("tokenizer")
    files = train_tokenizer(
        STDLIB, base=folder, vocabulary=VOCABULARY, seed=0, model_type="gpt2", context=64, max_bytes=100_000
    )
    for name, content in files.items():
        (folder / name).write_bytes(content)
    write(folder / "config.json", '{"model_type": "gpt2"}')
    return folder


def slices(folder: Path, tokenizer: Path, **changes: Any) -> TokenSlices:
    options: dict[str, Any] = {
        "base": folder,
        "sequence_length": 32,
        "train_tokens": 2000,
        "heldout_tokens": 320,
        "seed": 0,
        "vocabulary": VOCABULARY,
    }
    data = changes.pop("data", Data(text=["*"]))
    return token_slices(data, tokenizer, **{**options, **changes})


# ---------------------------------------------------------------------------------------------------- permutations


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000])
def test_permuted_reaches_every_place_once(size: int) -> None:
    assert sorted(permuted(index, size, "key") for index in range(size)) == list(range(size))


def test_permuted_is_the_same_for_ever() -> None:
    assert [permuted(index, 10, "chunks/0") for index in range(10)] == GOLDEN_PERMUTATION


def test_permuted_mixes() -> None:
    moved = [permuted(index, 1000, "a") for index in range(1000)]
    assert abs(np.corrcoef(moved, range(1000))[0, 1]) < 0.1
    assert moved != [permuted(index, 1000, "b") for index in range(1000)]


# ----------------------------------------------------------------------------------------------------- which files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/0.txt", "sub/deep/d.txt", ".hidden.txt", ".git/e.txt", "x[1].txt", "n.md"):
        write(tmp_path / name, f"text of {name}\n")
    (tmp_path / "folder.txt").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.txt"], ["a.txt", "b.txt", "x[1].txt"]),
        (["**/*.txt"], ["a.txt", "b.txt", "sub/0.txt", "sub/deep/d.txt", "x[1].txt"]),
        (["**/**/*.txt"], ["a.txt", "b.txt", "sub/0.txt", "sub/deep/d.txt", "x[1].txt"]),
        (["sub/**"], ["sub/0.txt", "sub/deep/d.txt"]),
        (["sub/*"], ["sub/0.txt"]),
        (["x[1].txt"], ["x[1].txt"]),
        (["[ab].txt"], ["a.txt", "b.txt"]),
        (["?.md", "a.txt", "*.txt"], ["n.md", "a.txt", "b.txt", "x[1].txt"]),
        ([".*.txt"], [".hidden.txt"]),
        (["sub/../a.txt", "a.txt"], ["a.txt"]),
        (["sub/*/../0.txt"], ["sub/0.txt"]),
    ],
)
def test_globs_take_files_in_sorted_order(tree: Path, patterns: list[str], expected: list[str]) -> None:
    assert names(tree, *patterns) == expected


def test_an_absolute_glob_and_a_folder_with_magic_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "odd [name]*"
    write(folder / "a.txt", "text")
    assert names(folder, "*.txt") == ["a.txt"]
    facts = check_data(Data(text=[f"{tmp_path}/odd*/*.txt"]), base=Path("/nowhere"))
    assert (facts.kind, facts.files, facts.nbytes) == ("text", (folder / "a.txt",), 4)


@pytest.mark.parametrize(
    "pattern", ["*.nothing", "missing/*.txt", "a.txt/*", "folder.txt", "folder.t*", "", "x" * 5000]
)
def test_a_glob_without_a_file_is_named_with_its_folder(tree: Path, pattern: str) -> None:
    with pytest.raises(RecipeError) as caught:
        names(tree, "a.txt", pattern)
    assert f"{pattern!r} matches no file" in str(caught.value)
    assert str(tree) in str(caught.value)


def test_a_nul_character_in_a_glob_is_refused(tree: Path) -> None:
    with pytest.raises(RecipeError, match="NUL"):
        names(tree, "a\0.txt")


def test_loops_of_links_end(tree: Path) -> None:
    for index in range(4):
        (tree / "sub" / f"loop{index}").symlink_to(tree, target_is_directory=True)
    (tree / "self.txt").symlink_to(tree / "a.txt")
    started = time.monotonic()
    assert "self.txt" in names(tree, "**/*.txt")
    assert names(tree, "sub/loop1/a.txt") == ["sub/loop1/a.txt"]
    assert time.monotonic() - started < 2


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(RecipeError, match=r"pipe\.txt: data\.text: neither a file nor a folder"):
        names(tmp_path, "*.txt")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to(tmp_path / "missing")
    with pytest.raises(MachineError, match=r"gone\.txt: cannot be read: No such file"):
        names(tmp_path, "*.txt")


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Path]:
    """A folder that others may enter, while this process is one of the others even when it runs as root."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o755)
    root = os.geteuid() == 0
    write(tmp_path / "closed.txt", "text").chmod(0)
    write(tmp_path / "locked" / "a.txt", "text").parent.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        yield tmp_path
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "locked").chmod(0o755)


def test_what_may_not_be_read_is_said_by_the_check(unprivileged: Path) -> None:
    with pytest.raises(MachineError, match=r"closed\.txt: cannot be read: Permission denied"):
        names(unprivileged, "closed.txt")
    with pytest.raises(MachineError, match="locked: folder cannot be listed: Permission denied"):
        names(unprivileged, "**/*.md")
    with pytest.raises(MachineError, match="cannot be read: Permission denied"):
        check_tokenizer(unprivileged / "locked", label="model")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(images="photos"), "text families need text"),
        (Data(), "none of them"),
        (Data(text=[]), "none of them"),
        (Data(stdlib=False), "none of them"),
        (Data(text=["*"], stdlib=True), "text, stdlib"),
    ],
)
def test_exactly_one_kind_of_text_is_needed(tmp_path: Path, data: Data, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_data(data, base=tmp_path)
    with pytest.raises(RecipeError, match=message):
        next(documents(data, base=tmp_path, seed=0))


def test_files_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "")
    with pytest.raises(RecipeError, match="every file is empty"):
        check_data(Data(text=["*"]), base=tmp_path)


def test_a_packed_file_is_refused_by_the_check(tmp_path: Path) -> None:
    write(tmp_path / "a.txt.gz", gzip.compress(b"text"))
    with pytest.raises(RecipeError, match=r"a\.txt\.gz: byte 1: data\.text: not UTF-8"):
        check_data(Data(text=["*"]), base=tmp_path)


def test_a_head_that_ends_inside_a_character_is_text(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "x" + "\u00e9" * 4000)
    assert check_data(Data(text=["*"]), base=tmp_path).nbytes == 8001


def test_the_standard_library_is_text_of_this_python() -> None:
    facts = check_data(STDLIB, base=Path("/nowhere"))
    parts = {part for file in facts.files for part in file.parts}
    assert facts.kind == "stdlib"
    assert facts.nbytes > 4_000_000
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "idlelib"}
    assert any(file.name == "argparse.py" for file in facts.files)
    assert not any(file.name.startswith("_sysconfigdata") for file in facts.files)
    # Every byte of it is readable text, so no seed meets a file it cannot read.
    assert sum(len(text) for text in documents(STDLIB, base=Path("/nowhere"), seed=0)) > 4_000_000


# ------------------------------------------------------------------------------------------------------- documents


def test_the_order_is_the_same_for_ever_and_wherever_the_files_lie(tmp_path: Path) -> None:
    for folder in ("one", "elsewhere/two"):
        write(tmp_path / folder / "a.txt", lines(4000))
        write(
            tmp_path / folder / "sub" / "b.jsonl", "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(900))
        )
    here = texts(tmp_path / "one", "**/*")
    assert here == texts(tmp_path / "elsewhere" / "two", "**/*")
    assert here == texts(Path("/nowhere"), f"{tmp_path}/one/**/*")
    assert sorted(here) == sorted(texts(tmp_path / "one", "**/*", seed=1))
    assert here != texts(tmp_path / "one", "**/*", seed=1)
    assert hashlib.sha256("\0".join(here).encode()).hexdigest() == GOLDEN_ORDER


CHARACTER = st.sampled_from(["a", "\u00e9", "\u2603", "\U0001f600", "word ", "\n", "\r\n", "x" * 90])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(CHARACTER, min_size=1, max_size=300), repeat=st.sampled_from([1, 7, 60]))
def test_chunks_of_a_file_are_the_file(tmp_path: Path, parts: list[str], repeat: int) -> None:
    text = "#" + "".join(parts) * repeat
    write(tmp_path / "a.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "permuted", lambda index, size, key: index)
        patch.setattr(data_module, "_cut", lambda piece: [piece])
        chunks = texts(tmp_path, "a.txt")
    assert "".join(chunks) == text
    step = max(256, min(data_module.CHUNK_BYTES, len(text.encode()) // data_module.CHUNKS_AT_LEAST))
    assert all(len(chunk.encode()) < 2 * step for chunk in chunks)


@pytest.mark.parametrize("last", ["\u00e9", "\u2603", "\U0001f600"])
@pytest.mark.parametrize("length", range(252, 260))
def test_a_last_character_across_a_cut_stays_whole(tmp_path: Path, last: str, length: int) -> None:
    write(tmp_path / "a.txt", "a" * length + last)
    assert sorted("".join(texts(tmp_path, "*"))) == sorted("a" * length + last)


@pytest.mark.parametrize("length", [*range(250, 262), *range(506, 518)])
def test_a_line_of_json_that_begins_at_a_cut_is_read_once(tmp_path: Path, length: int) -> None:
    rows = ["x" * (length - len('{"text": ""}\n')), "second", "y" * 300, "last"]
    write(tmp_path / "a.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows))
    assert sorted(texts(tmp_path, "*")) == sorted(rows)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.text(min_size=0, max_size=40), st.sampled_from([1, 1, 1, 300])), min_size=1, max_size=80
    ),
    blank=st.booleans(),
    ended=st.booleans(),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_every_line_of_json_is_read_once(
    tmp_path: Path, rows: list[tuple[str, int]], blank: bool, ended: bool, mark: str
) -> None:
    rows = [(text.encode("utf-8", "ignore").decode() or "x", times) for text, times in rows]
    wanted = [text * times for text, times in rows]
    body = ("\n\n" if blank else "\n").join(json.dumps({"text": text}, ensure_ascii=False) for text in wanted)
    write(tmp_path / "a.jsonl", mark + body + ("\n" if ended else ""))
    found = collections.Counter(texts(tmp_path, "a.jsonl"))
    assert found == collections.Counter(text for text in wanted if text.strip())


def test_long_rows_are_cut_after_words(tmp_path: Path) -> None:
    text = "word " * 60_000
    write(tmp_path / "a.jsonl", json.dumps({"text": text}))
    pieces = texts(tmp_path, "a.jsonl")
    assert "".join(pieces) == text
    assert all(len(piece) <= 64 * 1024 and piece.endswith(" ") for piece in pieces)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "\ufefftext")
    assert texts(tmp_path, "*") == ["text"]


def test_a_byte_that_is_no_text_is_named_by_file_and_offset(tmp_path: Path) -> None:
    raw = bytearray(lines(20_000).encode())
    raw[700_001] = 0xFF
    write(tmp_path / "a.txt", bytes(raw))
    check_data(Data(text=["*"]), base=tmp_path)
    with pytest.raises(RecipeError, match=r"a\.txt: byte 700001: data\.text: not UTF-8 text"):
        texts(tmp_path, "*")


def bad_line(content: bytes | str) -> bytes:
    raw = content if isinstance(content, bytes) else content.encode()
    return json.dumps({"text": "good " * 20}).encode() + b"\n" + raw + b"\n"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "a JSON list, no object"),
        ('{"content": "x"}', "keys: content"),
        ('{"text": 3}', "its text is not readable text"),
        ('{"text": null}', "its text is not readable text"),
        ('{"text": "\\ud800"}', "its text is not readable text"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str, found: str) -> None:
    write(tmp_path / "a.jsonl", bad_line("\n" * 2000 + line))
    with pytest.raises(RecipeError, match=r"data\.text: line without text") as caught:
        texts(tmp_path, "*")
    assert caught.value.where == f"{tmp_path}/a.jsonl:2002"
    assert found in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json"])
def test_a_bad_first_line_is_said_by_the_check(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, '{"content": "x"}\n')
    with pytest.raises(RecipeError, match=rf"{name}:1: data\.text: line without text"):
        check_data(Data(text=["*"]), base=tmp_path)


def test_a_bad_byte_in_a_line_is_named_by_offset(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b'{"text": "good"}\n{"text": "\xff"}\n')
    with pytest.raises(RecipeError, match=r"a\.jsonl: byte 27: data\.text: not UTF-8"):
        texts(tmp_path, "*")


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "MAX_RECORD_BYTES", 100_000)
    write(tmp_path / "a.jsonl", bad_line(b'{"text": "' + b"x" * 200_000))
    with pytest.raises(RecipeError, match=r"a\.jsonl:2: data\.text: line too long"):
        texts(tmp_path, "*")


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", lines(2000))
    reader = documents(Data(text=["*"]), base=tmp_path, seed=0)
    next(reader)
    with (tmp_path / "a.txt").open("a") as handle:
        handle.write("more\n")
    with pytest.raises(SourceChanged, match=r"a\.txt: data changed while it was read"):
        list(reader)


# ----------------------------------------------------------------------------------------------------------- slices


def test_slices_have_the_asked_sizes_and_share_no_document(tmp_path: Path, tokenizer: Path) -> None:
    rows = [f"{'abcdefghij'[n % 10] * 3}{n} " * 12 for n in range(2000)]
    write(tmp_path / "a.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows))
    found = slices(tmp_path, tokenizer, heldout_tokens=301, train_tokens=1999)
    assert [part.shape for part in (found.test, found.validation, found.train)] == [(10, 32), (10, 32), (63, 32)]
    assert found.train.dtype == np.uint32
    reader = load_tokenizer(tokenizer)
    words = [set(reader.decode(part.reshape(-1)).replace("<|endoftext|>", " ").split()) for part in parts(found)]
    complete = [
        {word for word in group if word[3:] and f"{word} " in rows[int(word[3:])]} for group in map(keep, words)
    ]
    assert all(complete)
    assert not any(one & other for one, other in itertools.combinations(complete, 2))


def parts(found: TokenSlices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.test, found.validation, found.train


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
    assert expected[: found.test.size] == found.test.reshape(-1).tolist()


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
    plain = TokenSlices(**given).digest
    assert plain == TokenSlices(**given).digest
    for name in given:
        assert TokenSlices(**{**given, name: array + np.uint32(1)}).digest != plain
        assert TokenSlices(**{**given, name: array.reshape(4, 3)}).digest != plain


def test_slices_cannot_be_changed_behind_their_digest(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "a.txt", lines(500))
    found = slices(tmp_path, tokenizer)
    with pytest.raises(ValueError, match="read-only"):
        found.test[0, 0] = 1
    batch = found.batch(0, batch_size=2, seed=0)
    batch[:] = 0  # a batch is the caller's own


def test_heldout_slices_do_not_depend_on_the_length_of_training(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "a.txt", lines(8000))
    short, long = (slices(tmp_path, tokenizer, train_tokens=tokens) for tokens in (64, 20_000))
    assert np.array_equal(short.test, long.test)
    assert np.array_equal(short.validation, long.validation)
    assert np.array_equal(short.train, long.train[: len(short.train)])


def test_little_text_is_shared_out(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "a.txt", lines(60))
    found = slices(tmp_path, tokenizer, heldout_tokens=100_000, train_tokens=100_000)
    total = sum(len(part) for part in parts(found))
    assert len(found.test) == len(found.validation)
    assert 1 <= len(found.test) <= total / 6
    assert len(found.train) >= total / 2


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
    assert found.train.shape == (625, 32)
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
    found = TokenSlices(train=train, validation=train, test=train)
    stream = np.concatenate([found.batch(step, batch_size=3, seed=5) for step in range(14)]).reshape(-1)
    epochs = [tuple(stream[start : start + 7]) for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > 4
    # A run that goes on from the middle sees the same; so does one with other batches' sizes.
    assert np.array_equal(found.batch(9, batch_size=3, seed=5).reshape(-1), stream[27:30])
    assert np.array_equal(found.batch(1, batch_size=21, seed=5).reshape(-1), stream[21:])
    assert not np.array_equal(found.batch(0, batch_size=21, seed=6).reshape(-1), stream[:21])


def test_random_slices_are_the_same_for_ever() -> None:
    found = random_slice(vocabulary=50257, sequence_length=8, blocks=3, seed=0)
    assert (found.shape, found.dtype) == ((3, 8), np.dtype(np.uint32))
    assert hashlib.sha256(found.astype("<u4").tobytes()).hexdigest() == GOLDEN_RANDOM
    many = random_slice(vocabulary=11, sequence_length=100, blocks=100, seed=1)
    counts = np.bincount(many.reshape(-1), minlength=11)
    assert len(counts) == 11
    assert abs(counts - 10_000 / 11).max() < 150


# ------------------------------------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bert", "roberta"])
def test_a_trained_tokenizer_is_read_by_transformers_with_the_same_ids(tmp_path: Path, model_type: str) -> None:
    import tokenizers
    import transformers

    files = train_tokenizer(
        STDLIB, base=tmp_path, vocabulary=300, seed=0, model_type=model_type, context=77, max_bytes=50_000
    )
    assert sorted(files) == ["tokenizer.json", "tokenizer_config.json"]
    for name, content in files.items():
        write(tmp_path / name, content)
    write(tmp_path / "config.json", json.dumps({"model_type": model_type}))
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "def caf\u00e9(x):\n\treturn '\u2603'  # don't\n"
    assert loaded(text, add_special_tokens=False)["input_ids"] == plain.encode(text).ids
    assert loaded.decode(plain.encode(text).ids) == text
    assert (len(loaded), loaded.model_max_length) == (300, 77)
    specials = {"bert": ("pad_token_id", 0), "roberta": ("pad_token_id", 1)}.get(model_type, ("eos_token_id", 0))
    assert getattr(loaded, specials[0]) == specials[1]
    if model_type in ("bert", "roberta"):
        assert loaded.mask_token_id == 4


def test_training_gives_the_same_bytes_in_another_process(tokenizer: Path, tmp_path: Path) -> None:
    program = (
        "import hashlib; from pathlib import Path; from types import SimpleNamespace as N\n"
        "from ligo_convert.data import train_tokenizer\n"
        "data = N(text=None, hub=None, images=None, stdlib=True)\n"
        "files = train_tokenizer(data, base=Path('/'), vocabulary=400, seed=0, model_type='gpt2', context=64,"
        " max_bytes=100_000)\n"
        "print(hashlib.sha256(files['tokenizer.json'] + files['tokenizer_config.json']).hexdigest())\n"
    )
    done = python(program, RAYON_NUM_THREADS="1", PYTHONHASHSEED="7")
    assert done.stderr == ""
    here = (tokenizer / "tokenizer.json").read_bytes() + (tokenizer / "tokenizer_config.json").read_bytes()
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_training_reads_no_more_than_it_was_given(tmp_path: Path) -> None:
    # The last chunk is not text: it would be met if all were read.
    write(tmp_path / "a.txt", lines(40_000).encode() + b"\xff")
    files = train_tokenizer(
        Data(text=["*"]), base=tmp_path, vocabulary=300, seed=0, model_type="gpt2", context=64, max_bytes=100_000
    )
    assert b"endoftext" in files["tokenizer.json"]
    with pytest.raises(RecipeError, match="not UTF-8"):
        train_tokenizer(Data(text=["*"]), base=tmp_path, vocabulary=300, seed=0, model_type="gpt2", context=64)


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least 257: 256 bytes and 1 special tokens"):
        train_tokenizer(STDLIB, base=tmp_path, vocabulary=256, seed=0, model_type="llama", context=64)


def test_training_without_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", " \n")
    with pytest.raises(RecipeError, match="no text to train a tokenizer on"):
        train_tokenizer(Data(text=["*"]), base=tmp_path, vocabulary=300, seed=0, model_type="llama", context=64)


def test_a_model_type_with_rules_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="reads differently beside a model of type qwen2"):
        train_tokenizer(STDLIB, base=tmp_path, vocabulary=300, seed=0, model_type="qwen2", context=64, max_bytes=50_000)


def test_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    write(tmp_path / "vocab.json", "{}")
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RecipeError, match="org/model: text needs a tokenizer, and there is none") as caught:
            check_tokenizer(folder, label="org/model")
    assert "fit.data.tokenizer" in str(caught.value)
    with pytest.raises(RecipeError, match="text needs a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt"], ["vocab.txt"]])
def test_files_that_make_a_tokenizer_pass(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        write(tmp_path / name, "")
    check_tokenizer(tmp_path, label="org/model")


@pytest.mark.skipif(HAS_SENTENCEPIECE, reason="sentencepiece is installed: its absence cannot be tested")
@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"])
def test_sentencepiece_alone_names_the_extra(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"\x0a\x0e")
    with pytest.raises(MissingExtra, match=rf"org/model: {name} needs the packages sentencepiece") as caught:
        check_tokenizer(tmp_path, label="org/model")
    assert "pip install 'ligo-convert[sentencepiece]'" in str(caught.value)
    assert caught.value.exit_code == 5
    write(tmp_path / "tokenizer.json", "{}")
    check_tokenizer(tmp_path, label="org/model")


@pytest.mark.skipif(not HAS_SENTENCEPIECE, reason="needs the extra sentencepiece")
def test_a_sentencepiece_model_is_read(tmp_path: Path) -> None:
    import sentencepiece

    write(tmp_path / "corpus" / "a.txt", lines(3000))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus" / "a.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=60,
        model_type="bpe",
        minloglevel=5,
    )
    write(tmp_path / "config.json", '{"model_type": "llama"}')
    write(tmp_path / "tokenizer_config.json", '{"tokenizer_class": "LlamaTokenizer"}')
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    loaded = load_tokenizer(tmp_path)
    assert loaded("a few words", add_special_tokens=False)["input_ids"] == plain.encode("a few words")
    assert slices(tmp_path / "corpus", tmp_path).test.shape == (10, 32)


def hostile(tokenizer: Path, folder: Path, **changes: dict[str, Any]) -> Path:
    """A copy of `tokenizer` with keys added to its JSON files, named with `__` for the dot."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        write(folder / name, (tokenizer / name).read_bytes())
    for key, values in changes.items():
        path = folder / key.replace("__", ".")
        content = json.loads(path.read_bytes()) if path.exists() else {}
        write(path, json.dumps({**content, **values}))
    return folder


def test_no_code_of_a_folder_runs_and_no_path_of_it_is_followed(tmp_path: Path, tokenizer: Path) -> None:
    canary = tmp_path / "canary"
    secret = str(write(tmp_path / "secret.json", "{}"))
    folder = hostile(
        tokenizer,
        tmp_path / "model",
        config__json={"auto_map": {"AutoConfig": "evil.Config"}, "tokenizer_file": secret},
        tokenizer_config__json={
            "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
            "fast_tokenizer_files": ["tokenizer.5.0.0/../../../secret.json"],
            "tokenizer_file": secret,
            "vocab_file": secret,
            "init_inputs": [secret],
            "chat_template": "{% for i in range(10**9) %}{% endfor %}",
        },
        special_tokens_map__json={"eos_token": "<|endoftext|>", "tokenizer_file": secret, "vocab_file": secret},
    )
    write(folder / "evil.py", f"open({str(canary)!r}, 'w')\nclass Config: pass\nclass Tokenizer: pass\n")
    opened: list[str] = []
    active = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    try:
        loaded = load_tokenizer(folder)
    finally:
        active = False
    assert loaded("text")["input_ids"] == load_tokenizer(tokenizer)("text")["input_ids"]
    assert loaded.chat_template is None
    assert loaded.name_or_path == str(folder)
    assert not canary.exists()
    assert opened
    assert not [path for path in opened if "secret" in path or "evil" in path]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "the tokenizer cannot be loaded"),
        ("tokenizer.json", '{"version": "1.0"}', "the tokenizer cannot be loaded"),
        ("tokenizer_config.json", "{", "no JSON"),
        ("tokenizer_config.json", "[]", "no JSON object"),
        ("config.json", "[" * 100_000, "no JSON"),
    ],
)
def test_broken_tokenizer_files_are_named(
    tmp_path: Path, tokenizer: Path, name: str, content: str, message: str
) -> None:
    folder = hostile(tokenizer, tmp_path / "model")
    write(folder / name, content)
    with pytest.raises(SourceError, match=message) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "ligo-tokenizer-" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    # The library asks the Hub about the first, and has an opinion about the second.
    [("mistral", "PreTrainedTokenizerFast"), ("llama", "LlamaTokenizer")],
)
def test_loading_is_silent_and_asks_no_network(
    tmp_path: Path, tokenizer: Path, model_type: str, class_name: str
) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "def deny(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): raise SystemExit(f'{event} {arguments}')\n"
        "sys.addaudithook(deny)\n"
        "from ligo_convert.data import load_tokenizer\n"
        "load_tokenizer(Path(sys.argv[1]))\n"
    )
    folder = hostile(
        tokenizer,
        tmp_path / "org" / "model",
        config__json={"model_type": model_type, "vocab_size": 200_000},
        tokenizer_config__json={"tokenizer_class": class_name},
    )
    done = python(program, str(folder))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ----------------------------------------------------------------------------------------------- extra: datasets


@pytest.mark.skipif(HAS_DATASETS, reason="datasets is installed: its absence cannot be tested")
@pytest.mark.parametrize("data", [Data(hub=Hub(id="org/name")), Data(text=["*.parquet"])])
def test_tables_without_the_package_name_the_extra(tmp_path: Path, data: Data) -> None:
    write(tmp_path / "a.parquet", b"PAR1")
    with pytest.raises(MissingExtra, match="needs the package datasets") as caught:
        check_data(data, base=tmp_path)
    assert "pip install 'ligo-convert[datasets]'" in str(caught.value)
    assert caught.value.exit_code == 5


def test_parquet_is_not_mixed_with_text(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", b"PAR1")
    write(tmp_path / "b.txt", "text")
    with pytest.raises(RecipeError, match=r"b\.txt: data\.text: parquet cannot be mixed"):
        check_data(Data(text=["*"]), base=tmp_path)


def parquet(path: Path, rows: list[Any], *, column: str = "text", group: int = 50) -> Path:
    table = importlib.import_module("pyarrow").table({column: rows})
    importlib.import_module("pyarrow.parquet").write_table(table, path, row_group_size=group)
    return path


@pytest.mark.skipif(not HAS_DATASETS, reason="needs the extra datasets")
def test_every_row_of_parquet_is_read_once_in_an_order_of_its_own(tmp_path: Path, tokenizer: Path) -> None:
    rows = [f"row {number} of the table, some words" for number in range(3000)]
    parquet(tmp_path / "a.parquet", rows[:1000])
    parquet(tmp_path / "b.parquet", rows[1000:])
    facts = check_data(Data(text=["*.parquet"]), base=tmp_path)
    assert (facts.kind, len(facts.files)) == ("parquet", 2)
    found = texts(tmp_path, "*.parquet")
    assert sorted(found) == sorted(rows)
    assert found != rows
    assert found == texts(tmp_path, "*.parquet")
    # Which row groups come first depends on the seed, and so does the order of the rows of one group.
    assert set(found[:1024]) != set(texts(tmp_path, "*.parquet", seed=1)[:1024])
    parquet(tmp_path / "one.parquet", rows[:40])
    assert texts(tmp_path, "one.parquet") != texts(tmp_path, "one.parquet", seed=1)
    assert slices(tmp_path, tokenizer, data=Data(text=["*.parquet"])).test.shape == (10, 32)


@pytest.mark.skipif(not HAS_DATASETS, reason="needs the extra datasets")
def test_bad_parquet_is_named(tmp_path: Path) -> None:
    write(tmp_path / "broken.parquet", b"PAR1 and nothing else")
    parquet(tmp_path / "other.parquet", ["x"], column="content")
    parquet(tmp_path / "null.parquet", ["x"] * 60 + [None])
    damaged = parquet(tmp_path / "damaged.parquet", [f"{n}" * 50 for n in range(200)], group=200)
    raw = bytearray(damaged.read_bytes())
    raw[4:400] = b"\xff" * 396
    damaged.write_bytes(raw)
    for name, message in [("broken", "no readable parquet file"), ("other", "no column text")]:
        with pytest.raises(RecipeError, match=rf"{name}\.parquet: data\.text: {message}"):
            check_data(Data(text=[f"{name}.parquet"]), base=tmp_path)
    with pytest.raises(RecipeError, match=r"null\.parquet: row group 1, row 10: data: row without text"):
        texts(tmp_path, "null.parquet")
    with pytest.raises(RecipeError, match=r"damaged\.parquet: data\.text: damaged parquet file"):
        texts(tmp_path, "damaged.parquet")


@pytest.mark.skipif(not HAS_DATASETS, reason="needs the extra datasets")
def test_a_folder_is_not_taken_for_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "org" / "name" / "a.txt", "text")
    monkeypatch.chdir(tmp_path)
    assert check_data(Data(hub=Hub(id="org/name")), base=tmp_path).kind == "hub"
    with pytest.raises(RecipeError, match="there is a folder of this name here"):
        next(documents(Data(hub=Hub(id="org/name")), base=tmp_path, seed=0))


class LoopbackHub(http.server.BaseHTTPRequestHandler):
    """The few answers `datasets` needs to stream one file of one dataset."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    body = "".join(json.dumps({"body": f"row {number}"}) + "\n" for number in range(1500)).encode()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        entry = {"type": "file", "path": "train.jsonl", "size": len(self.body), "oid": "1" * 40}
        if not path.startswith(("/api/datasets/org/name", "/datasets/org/name/resolve")):
            return self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        if "/tree/" in path or "/paths-info/" in path:
            return self.answer(200, json.dumps([entry] if path.endswith(self.commit) else []).encode())
        if path.startswith("/api/"):
            info = {"id": "org/name", "sha": self.commit, "siblings": [{"rfilename": "train.jsonl"}], "tags": []}
            return self.answer(200, json.dumps(info).encode())
        if path.endswith("/train.jsonl"):
            return self.answer(200, self.body, ETag='"1"', **{"X-Repo-Commit": self.commit})
        return self.answer(404, b"{}", **{"X-Error-Code": "EntryNotFound"})

    do_POST = do_GET

    def answer(self, code: int, content: bytes, **headers: str) -> None:
        if "Content-Length" in self.headers:
            self.rfile.read(int(self.headers["Content-Length"]))
        begin, end = 0, len(content)
        if code == 200 and (wanted := self.headers.get("Range")):
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last) + 1 if last else end, end)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            code = 206
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(end - begin), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[begin:end])

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


HUB_PROGRAM = """
import json, sys
from pathlib import Path
from types import SimpleNamespace as N
from ligo_convert.data import documents
from ligo_convert.errors import LigoError
for hub in json.loads(sys.argv[1]):
    data = N(text=None, images=None, stdlib=None, hub=N(**{"name": None, "revision": None, "split": None, **hub}))
    try:
        found = list(documents(data, base=Path("/"), seed=0))
        print(json.dumps([len(found), len(set(found)), found[:2]]))
    except LigoError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.skipif(not HAS_DATASETS, reason="needs the extra datasets")
def test_a_dataset_of_the_hub_is_streamed(tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LoopbackHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = [
        {"id": "org/name", "column": "body"},
        {"id": "org/name", "column": None},
        {"id": "org/name", "column": "body", "split": "nowhere"},
        {"id": "org/missing", "column": "body"},
    ]
    try:
        done = python(
            HUB_PROGRAM,
            json.dumps(asked),
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            HF_HOME=str(tmp_path),
            HF_HUB_DISABLE_XET="1",
            NO_PROXY="127.0.0.1",
        )
    finally:
        server.shutdown()
        server.server_close()
    assert (done.returncode, done.stderr) == (0, "")
    good, column, split, missing = (json.loads(line) for line in done.stdout.splitlines())
    assert good[:2] == [1500, 1500]
    assert good[2] != ["row 0", "row 1"]
    assert column[0] == "RecipeError"
    assert "no column text" in column[1]
    assert "body" in column[1]
    assert split[0] == "RecipeError"
    assert "nowhere" in split[1]
    assert missing[0] == "SourceChanged"
    assert "org/missing" in missing[1]


# ------------------------------------------------------------------------------------------------- at full size


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
    assert int(found.train.max()) <= 50256
    assert (found.train == 50256).any()

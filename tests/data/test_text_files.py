"""Files to pieces of text: order, cutting, and everything that must be refused by name."""

from __future__ import annotations

import collections
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.corpora import (
    Data,
    lines,
    texts,
    write,
)

from ligo_convert.data import corpus, text_files
from ligo_convert.data.corpus import check_data, documents
from ligo_convert.errors import RecipeError, SourceChanged

# A recipe means the same text in every version: this does not change.
GOLDEN_ORDER = "7ade3ad7626940c5f9868890fa63242fc10000c5c855dc98b9e41d7c7ea93a90"


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
        patch.setattr(text_files, "permuted", lambda index, size, key: index)
        patch.setattr(corpus, "cut", lambda piece: [piece])
        chunks = texts(tmp_path, "a.txt")
    assert "".join(chunks) == text
    step = max(256, min(text_files.CHUNK_BYTES, len(text.encode()) // text_files.CHUNKS_AT_LEAST))
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
@pytest.mark.slow
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
        ('{"content": "x"}', "no text among: content"),
        ('{"text": 3}', "int, no text"),
        ('{"text": null}', "NoneType, no text"),
        ('{"text": "\\ud800"}', "no valid Unicode"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str, found: str) -> None:
    write(tmp_path / "a.jsonl", bad_line("\n" * 2000 + line))
    with pytest.raises(RecipeError, match=r"data: record without text") as caught:
        texts(tmp_path, "*")
    assert caught.value.where == f"{tmp_path}/a.jsonl:2002"
    assert found in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json"])
def test_a_bad_first_line_is_said_by_the_check(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, '{"content": "x"}\n')
    with pytest.raises(RecipeError, match=rf"{name}:1: data: record without text"):
        check_data(Data(text=["*"]), base=tmp_path)


def test_a_bad_byte_in_a_line_is_named_by_offset(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b'{"text": "good"}\n{"text": "\xff"}\n')
    with pytest.raises(RecipeError, match=r"a\.jsonl: byte 27: data\.text: not UTF-8"):
        texts(tmp_path, "*")


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 100_000)
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

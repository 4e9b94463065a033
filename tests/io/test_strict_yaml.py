"""YAML 1.2 core in, plain data out; what is refused, and where; dump and load undo each other."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ligo_convert.errors import MachineError, RecipeError
from ligo_convert.io.strict_yaml import MAX_BYTES, MAX_DEPTH, MAX_NODES, load, load_file, parse_value
from ligo_convert.io.yaml_writer import dump_yaml


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, label="r.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-5", 3e-5),
        ("1e2", 100.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-0.0", -0.0),
        ("+12", 12),
        ("-0", 0),
        ("0", 0),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("tRue", "tRue"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0b101", "0b101"),
        ("1e", "1e"),
        ("nan", "nan"),
        (".", "."),
        ("=", "="),
        ("'0123'", "0123"),
        ('"1e3"', "1e3"),
        ('"null"', "null"),
        ('"<<"', "<<"),
        ("|\n  1\n", "1\n"),
        ("5GB", "5GB"),
        ("a  b\n c", "a  b c"),
        ("9223372036854775808", 2**63),
    ],
)
def test_scalars_mean_what_yaml_1_2_core_says(text: str, value: object) -> None:
    found = load(f"key: {text}", label="r").data
    assert isinstance(found, dict)
    assert found["key"] == value
    assert type(found["key"]) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b": [true, null, -2.5e3], "c": {"d": "x#y: z"}}',
        '{"a":{"b":"\\ud83d\\ude00 \\/ \\u00e9 \\n"},"c":[],"d":{}}',
        json.dumps({"a": [1, {"b": [2]}], "c": "\ttab"}, indent="\t"),
        '\r\n{"a":\r\n\r\n1}\r\n',
        "[]",
        '"only text"',
    ],
)
def test_json_is_yaml(text: str) -> None:
    assert load(text, label="r").data == json.loads(text)


BAD = [
    ("a: 1\nb: 2\na: 3\n", "3:1", "duplicate key 'a', first in line 1"),
    ("x:\n  - {b: 1, b: 2}\n", "2:12", "duplicate key 'b', first in line 2"),
    ('{"a": 1, "\\u0061": 2}', "1:10", "duplicate key 'a', first in line 1"),
    ("a: &r [*r]\n", "1:4", "an anchor; write the value out where it is used"),
    ("&r a: 1\n", "1:1", "an anchor; write the value out where it is used"),
    ("a: *b\n", "1:4", "an alias; write the value out where it is used"),
    ("a: 1\n<<: {b: 2}\n", "2:1", "a merge key; write the values out"),
    ("a: !!python/object:os.system x\n", "1:4", "a tag; values are plain data"),
    ("a: !!str 1\n", "1:4", "a tag; values are plain data"),
    ("! a\n", "1:1", "a tag; values are plain data"),
    ("a: 1\n---\nb: 2\n", "2:1", "a second document; one file holds one"),
    ("%YAML 1.1\n---\na: 1\n", "1:1", "a directive; the text is read as YAML 1.2 without tags"),
    ("%TAG ! x:\n---\na: 1\n", "1:1", "a directive; the text is read as YAML 1.2 without tags"),
    ("%YAML 1.31\n---\na: 1\n", "1:1", "a directive that cannot be read"),
    ("rev: 0123456\n", "1:6", "0123456 is a number to some readers and text to others"),
    ("rev: -007\n", "1:6", "-007 is a number to some readers and text to others"),
    ("rev: 01.5\n", "1:6", "01.5 is a number to some readers and text to others"),
    ("rev: 012e3\n", "1:6", "012e3 is a number to some readers and text to others"),
    ("rev: 0x1F\n", "1:6", "0x1F is a number to some readers and text to others"),
    ("rev: 0o17\n", "1:6", "0o17 is a number to some readers and text to others"),
    ("a: [1, .nan]\n", "1:8", ".nan is not a finite number"),
    ("a: -.inf\n", "1:4", "-.inf is not a finite number"),
    ("a: 1e999\n", "1:4", "1e999 is too large for a number"),
    ("a: " + "1" * 65 + "\n", "1:4", "a number of more than 64 digits"),
    ("1: a\n", "1:1", "a key that is not a string"),
    ("true: a\n", "1:1", "a key that is not a string"),
    ("? [a]\n: b\n", "1:3", "a key that is not a string"),
    (": b\n", "1:1", "a key that is not a string"),
    ("0123: b\n", "1:1", "0123 is a number to some readers and text to others"),
    ("a:\n\tb: 1\n", "2:1", "a tab; indent and separate with spaces"),
    ("a: b: c\n", "1:5", "not YAML: mapping values are not allowed here"),
    ("a: [1, 2\nb: 3\n", "2:2", "not YAML: expected ',' or ']', but got ':' (while parsing a flow sequence)"),
    ("a: 'x\n", "2:1", "not YAML: found unexpected end of stream (while scanning a quoted scalar)"),
    ("a: @b\n", "1:4", "not YAML: found character '@' that cannot start any token (while scanning for the next token)"),
    ('a: "\\ud83d"\n', "1:4", "an escape that is half a character"),
    ('a: "\\U00110000"\n', "1:7", "an escape past the end of Unicode"),
    ("a: b\x00\n", "1:5", "a character that YAML does not allow, U+0000"),
    ("a: \x1b[2J\n", "1:4", "a character that YAML does not allow, U+001B"),
    ("a: \ud800\n", "1:4", "a character that YAML does not allow, U+D800"),
    ("a: b\u2028c\n", "1:5", "an invisible line break, U+2028"),
]


@pytest.mark.parametrize(("text", "where", "what"), BAD, ids=[what[:40] for _, _, what in BAD])
def test_what_is_refused_is_shown_where_it_stands(text: str, where: str, what: str) -> None:
    lines = refusal(text).splitlines()
    assert lines[0] == f"r.yaml:{where}: {what}"
    assert lines[2].strip() == "^"
    assert all(character.isprintable() for line in lines for character in line)


def test_an_excerpt_has_its_caret_under_the_fault() -> None:
    assert refusal("fit:\n  seed: 012\n") == (
        "r.yaml:2:9: 012 is a number to some readers and text to others\n"
        "      seed: 012\n"
        "            ^\n"
        '  quote it: "012", or write a decimal without leading zeros'
    )


def test_a_long_line_is_cut_around_the_fault() -> None:
    lines = refusal('{"k": "' + "x" * 5000 + '", "a": 1, "a": 2, "z": "' + "y" * 5000 + '"}').splitlines()
    assert len(lines[1]) < 120
    assert lines[1][lines[2].index("^") :].startswith('"a": 2')


def test_an_escaped_line_keeps_its_caret() -> None:
    lines = refusal('"\u202e": 1, b: 2\n').splitlines()
    assert "\\u202e" in lines[1]
    assert lines[1][lines[2].index("^")] == ":"


def test_depth_is_counted_without_recursion() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert load(deepest, label="r").data is not None
    for text in ("[" * 500_000, "{a: " * 250_000, "- " * 500_000, '{"a":' * 200_000):
        assert f"more than {MAX_DEPTH} mappings and lists within each other" in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" + "1," * (MAX_BYTES // 2 - 1) + "]",
        "!" + "a" * (MAX_BYTES - 1),
        "&" + "a" * (MAX_BYTES - 1),
        "0" * MAX_BYTES,
        "x" * (MAX_BYTES - 10) + ": a: b",
        "? a\n" * (MAX_BYTES // 4),
    ],
    ids=["values", "tag", "anchor", "zeros", "late", "keys"],
)
def test_hostile_text_is_refused_soon_and_briefly(text: str) -> None:
    start = time.process_time()
    assert len(refusal(text)) < 2000
    assert time.process_time() - start < 5


def test_size_is_bounded() -> None:
    assert "at most 1,048,576 bytes" in refusal("#" * (MAX_BYTES + 1))
    assert "at most 1,048,576 bytes" in refusal("\u00e9" * (MAX_BYTES // 2 + 1))
    assert load("[" + "1," * (MAX_NODES - 2) + "1]", label="r").data == [1] * (MAX_NODES - 1)
    assert f"more than {MAX_NODES:,} keys and values" in refusal("[" + "1," * MAX_NODES + "]")


TEXT = "a: 1\nb:\n  c: [x, {d: y}]\n  e:\n# \u00e9\nf: |\n  long\n"


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ((), (1, 1), (1, 1)),
        (("a",), (1, 4), (1, 1)),
        (("b",), (3, 3), (2, 1)),
        (("b", "c"), (3, 6), (3, 3)),
        (("b", "c", 0), (3, 7), (3, 7)),
        (("b", "c", 1), (3, 10), (3, 10)),
        (("b", "c", 1, "d"), (3, 14), (3, 11)),
        (("b", "e"), (4, 3), (4, 3)),
        (("f",), (6, 4), (6, 1)),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_positions(path: tuple[str | int, ...], value: tuple[int, int], key: tuple[int, int], newline: str) -> None:
    document = load(TEXT.replace("\n", newline), label="r")
    assert document.holds(path)
    assert document.position(path) == value
    assert document.position(path, key=True) == key


def test_nothing_has_no_position() -> None:
    document = load(TEXT, label="r")
    assert not document.holds(("b", "x"))
    assert not document.holds(("a", "x"))
    with pytest.raises(KeyError):
        document.position(("b", "c", 2))
    assert load("", label="r").position(()) == (1, 1)
    assert load("# nothing\n---\n", label="r").data is None


def test_a_value_of_the_command_line() -> None:
    assert parse_value("{a: [1]}", label="--set x").data == {"a": [1]}
    with pytest.raises(RecipeError) as caught:
        parse_value("[1, 012", label="--set fit.steps")
    assert str(caught.value).startswith("--set fit.steps: 012 is a number to some readers and text to others\n")
    with pytest.raises(RecipeError, match="more than 32"):
        parse_value("[" * 31 + "]" * 31, label="--set a.b", depth=2)
    assert parse_value("[" * 30 + "]" * 30, label="--set a.b", depth=2).data is not None


def test_files(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_bytes("\ufeffa: \u00e9\n".encode())
    assert load_file(good).data == {"a": "\u00e9"}
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"a: 1\nb: \xc3\xa9\xff\n")
    with pytest.raises(RecipeError) as caught:
        load_file(bad, label="bad.yaml")
    assert str(caught.value) == "bad.yaml:2:5: not UTF-8\n  found:    byte 0xff\n  save the file as UTF-8"
    # A character cut in two by the cap is a large file, not a broken one.
    bad.write_bytes(b"#" * MAX_BYTES + "\u00e9".encode())
    with pytest.raises(RecipeError, match="too large"):
        load_file(bad)
    for path in (tmp_path / "none.yaml", good / "x", Path("a\0b")):
        with pytest.raises(RecipeError, match="no such file"):
            load_file(path)
    for name, hint in (
        ("god.yaml", f"did you mean {good}?"),
        ("quite-another.yaml", "write one"),
        ("x/y.yaml", "write one"),
    ):
        with pytest.raises(RecipeError) as caught:
            load_file(tmp_path / name, absent="write one")
        assert caught.value.hint == hint
    with pytest.raises(RecipeError, match="not a regular file"):
        load_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match="not a regular file"):
        load_file(tmp_path / "pipe")


def test_a_file_that_cannot_be_read_is_the_machines_fault(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(MachineError, match="cannot be read"):
        load_file(loop)


KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | KEYS
    | st.text("0123456789eExo.-+_:#!&*<>|[]{},'\"\\ \t\n~nulltrueyon", max_size=10)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


@given(VALUES)
@settings(max_examples=400, deadline=None)
def test_dump_and_load_undo_each_other(value: object) -> None:
    text = dump_yaml(value)
    assert text.isascii()
    found = load(text, label="r").data
    assert found == value
    # 1 == 1.0 == True: the text says which.
    assert dump_yaml(found) == text
    assert json.dumps(found) == json.dumps(value)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_json_text_means_what_json_says(value: object) -> None:
    assert load(json.dumps(value), label="r").data == value
    assert load(json.dumps(value, indent=1, ensure_ascii=False), label="r").data == value if _plain(value) else True


def _plain(value: object) -> bool:
    """Whether YAML allows every character of the value unescaped."""
    return all(" " <= character <= "~" for character in json.dumps(value, ensure_ascii=False))


@given(
    st.lists(
        st.sampled_from(
            [*"ab:-?{}[],'\"|>&*!%#@\\\t\r\n ", "\n  ", ": ", "- ", "---\n", "...\n", "%YAML 1.2\n", "<<", "\\ud83d"]
        )
        | st.characters(),
        max_size=40,
    ).map("".join)
)
@settings(max_examples=500, deadline=None)
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    try:
        data, refused = load(text, label="r").data, None
    except RecipeError as error:
        data, refused = None, error
    assert refused is None or refused.where.startswith("r:")
    assert load(dump_yaml(data), label="r").data == data


def test_dump_is_readable() -> None:
    items = [{"k": None, "l": 2}, [["z"], {"m": 3}]]
    data = {"a": {"b": [1, 2.5, "x"], "empty": {}, "none": []}, "on": "yes", "list": items, "p": 1e-5}
    assert dump_yaml(data) == (
        'a:\n  b: [1, 2.5, x]\n  empty: {}\n  none: []\n"on": "yes"\n'
        "list:\n  - k: null\n    l: 2\n  - - [z]\n    - m: 3\np: 1.0e-05\n"
    )


def test_dump_takes_long_keys() -> None:
    data = {"k" * 5000: {"\u00e9" * 500: 1}, "b": {"c" * 2000: [1]}}
    assert load(dump_yaml(data), label="r").data == data


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("\ud800", ValueError),
        ({1: 2}, TypeError),
        (b"", TypeError),
    ],
)
def test_dump_refuses_what_cannot_be_read_again(value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        dump_yaml([{"a": value}] if not isinstance(value, dict) else value)


def test_reading_leaves_the_recursion_limit_alone() -> None:
    before = sys.getrecursionlimit()
    refusal("[" * 100_000)
    assert sys.getrecursionlimit() == before

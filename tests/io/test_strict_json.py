"""Strict JSON: one meaning or a refusal that says why."""

from __future__ import annotations

import json

import pytest

from ligo_convert.errors import SourceError
from ligo_convert.io.strict_json import looks_like, strict_json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "malformed JSON"),
        (b"[]", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b'{"a":1,"a":2}', "the key 'a' appears twice"),
        (b'{"b":{"a":1,"\\u0061":2}}', "the key 'a' appears twice"),
        (b'{"a":NaN}', "NaN is not a JSON number"),
        (b'{"a":-Infinity}', "-Infinity is not a JSON number"),
        (b'{"a":1e999}', "1e999 is too large"),
        (b'{"a":"\\ud800"}', "an unpaired surrogate"),
        (b'{"\\ud800":1}', "an unpaired surrogate"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested too deeply"),
        (b'{"a":' + b"[" * 200_000, "nested too deeply"),
        (b'\xff\xfe{\0"\0', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "malformed JSON"),
        (b"<html>404</html>", "looks like an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_json_has_one_meaning(text: bytes, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        strict_json(text, label="small/config.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("small/config.json")


def test_json_comes_as_plain_data() -> None:
    text = b' {"a": [1, 2.5, null, true, {"b": "\\u00e9"}], "c": -3} '
    content = strict_json(text, label="config.json")
    assert content == json.loads(text)
    assert type(content["a"]) is list
    assert type(content["a"][4]) is dict


def test_nothing_is_recognised_in_plain_text() -> None:
    assert looks_like(b'{"a": 1}') is None

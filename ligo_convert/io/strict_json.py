"""Strict JSON: untrusted bytes in, plain data with one meaning out; and plain data as bytes.

JSON readers disagree about repeated keys, NaN and unpaired surrogates. Here each of them is a `SourceError` that names the file. For a file
that is not JSON, the error names the format that it looks like.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ligo_convert.errors import SourceError
from ligo_convert.limits import JSON_BRACKETS

MAX_DEPTH = 32  # nesting of a config or index

_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive, such as a PyTorch .bin file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself: run `git annex get`"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip file"),
)


class Pairs(list[tuple[str, object]]):
    """A JSON object as a list of pairs, so that repeated keys can be found."""


def short(name: object) -> str:
    """Cut `name` to 100 characters for an error message."""
    text = str(name)
    return text if len(text) <= 100 else f"{text[:97]}..."


def looks_like(prefix: bytes) -> str | None:
    """Return the format that a file has by its first bytes; None if unknown."""
    for magic, name in _OTHER_FORMATS:
        if prefix.startswith(magic):
            return name
    text = prefix.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "an HTML page, such as an error or login page saved in its place"
    if prefix[:1] == b"\x80" and prefix[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle"
    return None


def strict_json(data: bytes, *, label: str) -> dict[str, object]:
    """Parse a JSON object: no ambiguity, finite numbers, bounded depth.

    Raises:
        SourceError: not UTF-8 JSON, a repeated key, NaN or Infinity, nested too deeply, or not an object.
    """
    other = looks_like(data[:256])
    if other:
        raise SourceError(f"not JSON: looks like {other}", where=label)
    content = decode(data, label=label)
    if not isinstance(content, Pairs):
        raise SourceError("not a JSON object", where=label)
    plain = _plain(content, label=label, depth=0)
    assert isinstance(plain, dict)
    return plain


def _plain(value: object, *, label: str, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise SourceError("the JSON is nested too deeply", where=label, expected=f"at most {MAX_DEPTH} levels")
    if isinstance(value, Pairs):
        pairs = distinct(value, label=label, kind="key")
        return {key: _plain(item, label=label, depth=depth + 1) for key, item in pairs}
    if isinstance(value, list):
        return [_plain(item, label=label, depth=depth + 1) for item in value]
    if isinstance(value, str) and not is_unicode(value):
        raise SourceError("a string holds an unpaired surrogate", where=label, found=short(value))
    return value


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is not a JSON number")


def _integer(text: str) -> int | float:
    # Other readers parse "-0" as a float. As the integer 0 it would pass as an offset or a size.
    return int(text) if text != "-0" else -0.0


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=Pairs, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_real
)


def decode(data: bytes, *, label: str) -> object:
    """Parse JSON with objects as `Pairs`. Only numbers are checked. Raises SourceError for malformed JSON."""
    # An empty list has two bytes in the file, and thirty times as many in memory.
    brackets = data.count(b"[") + data.count(b"{")
    if brackets > JSON_BRACKETS.most:
        raise SourceError(
            "the JSON has too many lists and objects", where=label, expected=str(JSON_BRACKETS), found=f"{brackets:,}"
        )
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SourceError(f"the JSON is not UTF-8 (byte {error.start})", where=label) from None
    except RecursionError:
        raise SourceError("the JSON is nested too deeply", where=label) from None
    except ValueError as error:
        # JSONDecodeError, the ValueErrors raised above, and integers with thousands of digits.
        raise SourceError(f"malformed JSON: {error}", where=label) from None


def is_unicode(text: str) -> bool:
    """Return True if `text` holds no unpaired surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def distinct(entries: Pairs, *, label: str, kind: str) -> Iterator[tuple[str, object]]:
    """Yield the pairs of an object. Raises SourceError at a key that repeats or holds an unpaired surrogate."""
    seen = set()
    for key, value in entries:
        if key in seen:
            raise SourceError(f"the {kind} {short(key)!r} appears twice", where=label)
        if not is_unicode(key):
            raise SourceError(f"the name of a {kind} holds an unpaired surrogate", where=label, found=short(key))
        seen.add(key)
        yield key, value


def sha256_of(data: object) -> str:
    """Return the SHA-256, in hex, of plain data as canonical JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":"), default=dict).encode()).hexdigest()


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """Serialise to indented ASCII JSON with a final newline."""
    return (json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode()

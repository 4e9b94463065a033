"""Strict JSON: untrusted bytes in, plain data with one meaning out.

Readers disagree on a repeated key, on NaN, on half of a surrogate pair; here each is a `SourceError` that names the
file, and so is what is no JSON at all, said by what it seems to be instead.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator

from ligo_convert.errors import SourceError

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
    """A JSON object as the pairs that were written, so that a repeated key can be seen and named."""


def short(name: object) -> str:
    """`name` cut to what fits on a line of an error."""
    text = str(name)
    return text if len(text) <= 100 else f"{text[:97]}..."


def looks_like(prefix: bytes) -> str | None:
    """What a file that is not what it should be seems to be, from its first bytes; None where nothing is recognised."""
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
    """A JSON object as plain data: one meaning only, finite numbers, bounded depth.

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
        raise SourceError("a string holds half of a surrogate pair", where=label, found=short(value))
    return value


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is not a JSON number")


def _integer(text: str) -> int | float:
    # "-0" is a float to other readers; as the integer 0 it would be taken for an offset or a size.
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
    """What JSON says, its objects as `Pairs`, unchecked but for numbers. SourceError where it is malformed."""
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SourceError(f"the JSON is not UTF-8 (byte {error.start})", where=label) from None
    except RecursionError:
        raise SourceError("the JSON is nested too deeply", where=label) from None
    except ValueError as error:
        # JSONDecodeError, our own refusals above, and integers of thousands of digits.
        raise SourceError(f"malformed JSON: {error}", where=label) from None


def is_unicode(text: str) -> bool:
    """Whether `text` is free of halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def distinct(entries: Pairs, *, label: str, kind: str) -> Iterator[tuple[str, object]]:
    """The pairs of an object. SourceError at the first key that is there twice, or is no Unicode."""
    seen = set()
    for key, value in entries:
        if key in seen:
            raise SourceError(f"the {kind} {short(key)!r} is there twice", where=label)
        if not is_unicode(key):
            raise SourceError(f"the name of a {kind} holds half of a surrogate pair", where=label, found=short(key))
        seen.add(key)
        yield key, value


def sha256_of(data: object) -> str:
    """SHA-256, in hex, of plain data as canonical JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":"), default=dict).encode()).hexdigest()

"""Write plain data as YAML that readers of YAML 1.1 and 1.2 read alike.

Input: plain data.
Output: YAML text; equal data give equal text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping

# `dump_yaml` does not quote these words: every reader of YAML 1.1 or 1.2 reads them as strings.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")

_WORDS_OF_1_1 = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))

_SURROGATE = re.compile("[\ud800-\udfff]")


def dump_yaml(data: object) -> str:
    """Return `data` as YAML in ASCII, with keys in their order. `strict_yaml.load` reads it back to equal data.

    Raises:
        TypeError: a value is not plain data, or a key is not a string.
        ValueError: a number is not finite, or a string holds half a surrogate pair.
    """
    if isinstance(data, (Mapping, list, tuple)) and data:
        return "".join(f"{line}\n" for line in _block(data))
    return _inline(data) + "\n"


def _block(data: Mapping[str, object] | list[object] | tuple[object, ...]) -> Iterator[str]:
    """Yield the lines of a non-empty collection."""
    entries: list[tuple[str, object]]
    if isinstance(data, Mapping):
        # YAML limits a plain `key:` to 1024 characters. Longer keys need `? ` before them.
        keys = [(key, _inline(_string(key))) for key in data]
        entries = [(f"{text}:" if len(text) <= 1000 else f"? {text}\n:", data[key]) for key, text in keys]
    else:
        entries = [("-", item) for item in data]
    for head, value in entries:
        if _is_inline(value):
            yield from f"{head} {_inline(value)}".split("\n")
        else:
            assert isinstance(value, (Mapping, list, tuple))
            lines = list(_block(value))
            if head == "-":
                head = f"- {lines.pop(0)}"
            yield from head.split("\n")
            yield from (f"  {line}" for line in lines)


def _string(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key that is not a string: {key!r}")
    return key


def _is_inline(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return not any(isinstance(item, (Mapping, list, tuple)) and item for item in value)
    return not (isinstance(value, Mapping) and value)


def _inline(value: object) -> str:
    """Return a scalar, an empty mapping or a list of these on one line."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, Mapping) and not value:
        return "{}"
    if value is None or isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, float):
        return _float(value)
    if not isinstance(value, str):
        raise TypeError(f"not plain data: {type(value).__name__}")
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_1_1:
        return value
    if _SURROGATE.search(value):
        raise ValueError("half a surrogate pair")
    # Escape backslash and quote first, as in JSON. Control and non-ASCII characters become escapes of their code points.
    quoted = "".join(
        character if " " <= character <= "~" else character.encode("unicode_escape").decode("ascii")
        for character in value.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{quoted}"'


def _float(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError("a number that is not finite")
    text = repr(value)
    # YAML 1.1 reads `1e-05` as a string: its floats need a decimal point.
    return text if "." in text else text.replace("e", ".0e")

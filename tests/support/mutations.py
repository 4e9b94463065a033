"""Mutations of valid files: thousands of files that are nearly right, for readers that must answer each with their own error."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

# What stands where something else is due. Text that is no JSON is put in by `mutated_text`.
STRANGE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**63,
    -(2**63) - 1,
    10**30,
    1e308,
    -0.0,
    0.5,
    "",
    "x",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "../../x",
    "n_layer",
    "mlp",
    [],
    [[]],
    ["x"],
    [None],
    [0] * 40,
    {},
    {"": {}},
    {"x": ["x"]},
    {"n_layer": 2},
)


def _nest(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside plain data, that of the data itself first."""
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += _places(item, (*path, key))
    elif isinstance(value, list):
        # Long lists are alike: their first and last items stand for them.
        for number in {*range(min(3, len(value))), *({len(value) - 1} if value else ())}:
            found += _places(value[number], (*path, number))
    return found


def mutated(value: Any, draw: random.Random) -> Any:
    """Plain data with one or two values changed, removed, moved, doubled or nested."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2))):
        path = draw.choice(_places(value)[1:] or [()])
        if not path:
            return draw.choice(STRANGE)
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        kind = draw.randrange(8)
        if kind == 0:
            del parent[path[-1]]
        elif kind == 1 and isinstance(parent, dict):
            parent[str(draw.choice(STRANGE))] = parent.pop(path[-1])
        elif kind == 2 and isinstance(parent, list):
            parent.insert(draw.randrange(len(parent) + 1), copy.deepcopy(parent[path[-1]]))
        elif kind == 3:
            parent[path[-1]] = _nest(draw.choice((3, 60, 200)))
        elif kind == 4 and isinstance(parent[path[-1]], int):
            parent[path[-1]] += draw.choice((-1, 1, 7))
        else:
            parent[path[-1]] = copy.deepcopy(draw.choice(STRANGE))
    return value


def mutated_text(text: str, draw: random.Random) -> str:
    """JSON that is not quite JSON, or says something twice."""
    kind = draw.randrange(7)
    at = draw.randrange(len(text))
    if kind == 0:
        return text[:at]
    if kind == 1 and "{" in text:
        at = text.index("{", draw.randrange(text.rindex("{") + 1))
        return text[: at + 1] + '"x": 1, "x": 2, ' + text[at + 1 :]
    if kind == 2:
        return text.replace(":", draw.choice((":NaN,", ": Infinity,", ":1e999,", ": -0,")), 1)
    if kind == 3:
        return "[" * draw.choice((40, 5000, 100_000)) + text
    if kind == 4:
        return text[:at] + draw.choice(("\x00", "\ufeff", "\\ud800", '"', "}", "]", "9" * 5000)) + text[at:]
    if kind == 5:
        return text + text
    return text[:at] + text[at + draw.randrange(1, 9) :]


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """A file with bytes flipped, cut, doubled, moved or zeroed."""
    if not data:
        return b"\0"
    found = bytearray(data)
    at, end = sorted((draw.randrange(len(data)), draw.randrange(len(data))))
    kind = draw.randrange(6)
    if kind == 0:
        return bytes(found[:at])
    if kind == 1:
        found[at:end] = bytes(end - at)
    elif kind == 2:
        found[at:at] = found[at : min(end, at + 64)]
    elif kind == 3:
        del found[at : min(end, at + 16)]
    else:
        for _ in range(draw.choice((1, 1, 4))):
            # Headers are where meaning is dense.
            place = draw.randrange(min(len(found), draw.choice((8, 200, 2000, len(found)))))
            found[place] ^= 1 << draw.randrange(8)
    return bytes(found)


def strange_json(value: Any, draw: random.Random) -> str:
    """A JSON text near that of `value`."""
    if draw.random() < 0.25:
        return mutated_text(json.dumps(value), draw)
    return json.dumps(mutated(value, draw))

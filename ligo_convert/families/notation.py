"""The notation: tensor-name patterns, layouts such as `query+key+value <- embed`, and size expressions. Strings only.

A row of a family's table is `name pattern : layout`.

    pattern   transformer.h.{layer}.(ln_1|ln_2).weight     `{layer}` is a depth axis, `(a|b)` alternatives
    layout    mlp <- embed                                 stored (out, in): `mlp` is written, `embed` is read
              embed -> mlp                                 stored (in, out): the arrow always points at what is written
              embed                                        no arrow: every dim is written (a bias, a token)
              embed gain | embed shift                     a norm's scale and offset
              embed scale                                  a LayerScale: what a branch is multiplied with before it is added
              query+key+value <- embed                     a fused dim: the parts lie one after the other
              1 position embed                             `1` is a dummy dim
              query if attention_bias                      there only where the config key is true (`if not KEY` where it is not)
              embed <- embed in pooler                     belongs to a part of the checkpoint that is there or not as a whole

    size      n_inner or 4 * n_embd                        config keys, integers, `*`, `/` (exact), `+`, `or` (where None); a product
                                                           with a fraction among its factors is rounded down

docs/development/adr/0001-arrow-notation.md says why it is this way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["write", "read", "gain", "shift", "scale"]

# Roles that a layout names by a word at its end.
NAMED_ROLES: tuple[Role, ...] = ("gain", "shift", "scale")

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")

_ALTERNATIVES = re.compile(r"\(([^()]*)\)")

_DEPTH = re.compile(r"\{([a-z][a-z0-9_]*)\}")


@dataclass(frozen=True, kw_only=True)
class Dim:
    """One stored dim: the streams that lie along it, one after the other, and what the tensor does with them."""

    parts: tuple[str, ...]
    role: Role


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the stored dims of a tensor mean, in storage order, and when the tensor exists."""

    dims: tuple[Dim, ...]
    condition: str = ""  # config key, "" for always
    negated: bool = False
    part: str = ""  # of the checkpoint, "" for what is always there

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(part for dim in self.dims for part in dim.parts if part != "1")

    def pieces(self) -> tuple[tuple[str, tuple[Dim, ...]], ...]:
        """The unfused pieces, in storage order: (label, dims with one part each); the label is "" where nothing is fused."""
        fused = [position for position, dim in enumerate(self.dims) if len(dim.parts) > 1]
        if not fused:
            return (("", self.dims),)
        position = fused[0]
        return tuple(
            (part, tuple(replace(dim, parts=(part,)) if at == position else dim for at, dim in enumerate(self.dims)))
            for part in self.dims[position].parts
        )

    @property
    def fused_dim(self) -> int | None:
        return next((position for position, dim in enumerate(self.dims) if len(dim.parts) > 1), None)


class NotationError(ValueError):
    """A table that does not follow the notation: a bug in a family's file."""


def parse_layout(text: str) -> Layout:
    """Parse one layout.

    >>> [dim.role for dim in parse_layout("embed -> query+key").dims]
    ['read', 'write']
    """
    body, part = _suffix(text, text, " in ")
    body, condition = _suffix(body, text, " if ")
    negated = condition.startswith("not ")
    condition = condition.removeprefix("not ").strip()
    if condition and not _NAME.match(condition):
        raise NotationError(f"layout {text!r}: {condition!r} is no config key")
    if part and not _NAME.match(part):
        raise NotationError(f"layout {text!r}: {part!r} is no part of a checkpoint")
    words = body.split()
    role: Role = "write"
    for named in NAMED_ROLES:
        if words and words[-1] == named:
            role, words = named, words[:-1]
            break
    arrows = [position for position, word in enumerate(words) if word in ("->", "<-")]
    if len(arrows) > 1 or (arrows and role != "write"):
        raise NotationError(f"layout {text!r}: one arrow at most, and none beside gain, shift or scale")
    if not arrows:
        dims = tuple(_dim(word, role, text) for word in words)
    else:
        at = arrows[0]
        before: Role = "read" if words[at] == "->" else "write"
        after: Role = "write" if words[at] == "->" else "read"
        dims = tuple(_dim(word, before, text) for word in words[:at])
        dims += tuple(_dim(word, after, text) for word in words[at + 1 :])
    layout = Layout(dims=dims, condition=condition, negated=negated, part=part)
    if not dims or (arrows and arrows[0] in (0, len(words) - 1)):
        raise NotationError(f"layout {text!r}: a side of the arrow is empty")
    if sum(len(dim.parts) > 1 for dim in dims) > 1:
        raise NotationError(f"layout {text!r}: one fused dim at most")
    return layout


def _suffix(body: str, text: str, mark: str) -> tuple[str, str]:
    """A layout's text before and after a mark such as ` if `; both sides hold something, or there is no mark."""
    head, found, tail = body.partition(mark)
    if found and not (head.strip() and tail.strip()):
        raise NotationError(f"layout {text!r}: nothing beside {mark.strip()!r}")
    return head, tail.strip()


def _dim(word: str, role: Role, text: str) -> Dim:
    parts = tuple(word.split("+"))
    if not all(part == "1" or _NAME.match(part) for part in parts):
        raise NotationError(f"layout {text!r}: {word!r} is no stream, fused streams (a+b) or 1")
    return Dim(parts=parts, role=role)


def expand(pattern: str) -> tuple[str, ...]:
    """Every name pattern that the alternatives of `pattern` stand for.

    >>> expand("h.{layer}.(ln_1|ln_2).bias")
    ('h.{layer}.ln_1.bias', 'h.{layer}.ln_2.bias')
    """
    match = _ALTERNATIVES.search(pattern)
    if not match:
        return (pattern,)
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return tuple(name for choice in match[1].split("|") for name in expand(head + choice + tail))


def depth_axis(pattern: str) -> str | None:
    """The depth axis that a pattern runs over, or None: `h.{layer}.weight` -> `layer`."""
    found = _DEPTH.findall(pattern)
    if len(found) > 1:
        raise NotationError(f"pattern {pattern!r}: one depth axis at most")
    return found[0] if found else None


def matcher(pattern: str) -> re.Pattern[str]:
    """A regular expression that matches the names of one expanded pattern, with the layer as its only group."""
    axis = depth_axis(pattern)
    if axis is None:
        return re.compile(re.escape(pattern) + r"\Z")
    head, tail = pattern.split("{" + axis + "}")
    # No leading zeros: `h.01.weight` is no layer's name.
    return re.compile(re.escape(head) + r"(0|[1-9][0-9]{0,5})" + re.escape(tail) + r"\Z")


def name_at(pattern: str, layer: int | None) -> str:
    """The tensor name of a pattern at one layer (None where the pattern has no depth axis)."""
    axis = depth_axis(pattern)
    return pattern if axis is None else pattern.replace("{" + axis + "}", str(layer))


class SizeError(ValueError):
    """A size expression that has no positive integer value; the message names the keys and their values."""


def size_keys(expression: str) -> tuple[str, ...]:
    """The config keys that a size expression reads."""
    return tuple(word for word in re.findall(r"[A-Za-z_][A-Za-z0-9_]*", expression) if word != "or")


def evaluate(expression: str, config: Mapping[str, object]) -> int:
    """The value of a size expression over `config`; the first alternative whose keys are all there and not None counts.

    >>> evaluate("n_inner or 4 * n_embd", {"n_inner": None, "n_embd": 8})
    32
    """
    for alternative in expression.split(" or "):
        keys = size_keys(alternative)
        values = {key: config.get(key) for key in keys}
        if any(value is None for value in values.values()):
            continue
        # Nothing may be added, but nothing is as wide as nothing.
        least = 0.0 if " + " in alternative else math.ulp(0.0)
        for key, value in values.items():
            if type(value) not in (int, float) or not least <= float(value) < math.inf:  # type: ignore[arg-type]
                raise SizeError(f"{key} is {value!r}, and must be a positive number")
        total = sum(_product(term, values) for term in alternative.split(" + "))
        if total < 1:
            said = ", ".join(f"{key} = {number}" for key, number in values.items())
            raise SizeError(f"{alternative} is below one ({said})")
        return total
    missing = [key for key in dict.fromkeys(size_keys(expression)) if config.get(key) is None]
    raise SizeError(f"{' and '.join(missing)} missing, needed for {expression!r}")


def _product(expression: str, values: Mapping[str, object]) -> int:
    words = re.findall(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[*/]", expression)
    if "".join(words) != expression.replace(" ", "") or len(words) % 2 == 0:
        raise NotationError(f"size {expression!r}: keys and integers joined by * and /")
    said = ", ".join(f"{key} = {number}" for key, number in values.items())
    result: int | float = 1
    for operator, word in zip(["*", *words[1::2]], words[::2], strict=True):
        value = values[word] if word in values else int(word)
        assert isinstance(value, int | float)
        if operator == "*":
            result *= value
        elif not value or result % value:
            raise SizeError(f"{expression} is not a whole number ({said})")
        else:
            result //= value
    # A lone size is no product: 12.5 layers are a mistake, 4.5 times the width is a ratio.
    if isinstance(result, float) and len(words) == 1:
        raise SizeError(f"{expression} is {result}, and must be a positive integer")
    return int(result)

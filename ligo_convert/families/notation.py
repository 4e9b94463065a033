"""Parse the notation of family tables: tensor-name patterns, layouts such as `query+key+value <- embed`, and size expressions.

A row of a family's table is `name pattern : layout`.

    pattern   transformer.h.{layer}.(ln_1|ln_2).weight     `{layer}` is a depth axis, `(a|b)` alternatives
              model.layers.{layer>0}.attn_norm.weight      in every layer but the first
    layout    mlp <- embed                                 stored (out, in): `mlp` is written, `embed` is read
              embed -> mlp                                 stored (in, out): the arrow points at the written dim
              embed                                        no arrow: every dim is written (a bias, a token)
              embed gain | embed shift                     a norm's scale and offset
              embed 1+gain                                 a norm's scale, of which the file holds what is beyond one
              embed scale                                  a LayerScale, which multiplies a branch before it is added
              query+key+value <- embed                     a fused dim: the parts are concatenated
              1 position embed                             `1` is a dummy dim
              query if attention_bias                      exists only if the config key is true (`if not KEY`: false)
              embed if pool=map and pre_norm               only if the key has that value (`KEY!=VALUE`: another), and both hold
              embed <- embed in pooler                     belongs to a part that a checkpoint has completely or not at all
              label <- pooled in sequence | label <- embed in token
                                                           one name that means something else in each part; no class has two of them

    size      n_inner or 4 * n_embd                        config keys, integers, `*`, `/` (exact), `+`, `or` (if None); a product with
                                                           a fractional factor is rounded down; `img_size[0]` is the first of a
                                                           pair, and a number stands for a pair of equal ones; `#id2label` is the
                                                           number of entries of a mapping or a list

docs/development/adr/0001-arrow-notation.md gives the reasons for this notation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ligo_convert.errors import brief
from ligo_convert.limits import AXIS

Role = Literal["write", "read", "gain", "shift", "scale"]

# Roles named by the last word of a layout.
NAMED_ROLES: tuple[Role, ...] = ("gain", "shift", "scale")

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")

_CONDITION = re.compile(r"(?:not +)?(?P<key>[a-z][a-z0-9_]*)(?:(?P<sign>!?=)(?P<value>[^\s=!]+))?\Z")

_ALTERNATIVES = re.compile(r"\(([^()]*)\)")

# A config key in a size expression, one entry of a pair, or the number of a key's entries.
_KEY = re.compile(r"#?[A-Za-z_][A-Za-z0-9_]*(?:\[[01]\])?")

_DEPTH = re.compile(r"\{([a-z][a-z0-9_]*)(>0)?\}")


@dataclass(frozen=True, kw_only=True)
class Dim:
    """One stored dim: the streams concatenated along it, and the role they have in the tensor."""

    parts: tuple[str, ...]
    role: Role


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a config must have for a tensor to exist.

    Attributes:
        key: the config key.
        value: the value that it is compared with, as text; None to ask whether it is true.
        negated: True if the comparison must fail.
    """

    key: str
    value: str | None = None
    negated: bool = False

    def holds(self, config: Mapping[str, object]) -> bool:
        found = config.get(self.key)
        return (bool(found) if self.value is None else str(found) == self.value) != self.negated

    @property
    def wanted(self) -> str:
        """The value that the key must have, in words."""
        if self.value is None:
            return "false" if self.negated else "a true value"
        return f"another value than {self.value}" if self.negated else self.value


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The meaning of a tensor's stored dims, and the conditions for its existence.

    Attributes:
        dims: the dims in storage order.
        conditions: what must hold for the tensor to exist; empty if it always does.
        part: the part of the checkpoint that the tensor belongs to; "" for the body.
        less_one: True if the file holds a gain less one, which the library adds.
    """

    dims: tuple[Dim, ...]
    conditions: tuple[Condition, ...] = ()
    part: str = ""
    less_one: bool = False

    def failing(self, config: Mapping[str, object]) -> Condition | None:
        """The first condition that a config does not meet; None if the tensor exists."""
        return next((condition for condition in self.conditions if not condition.holds(config)), None)

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(part for dim in self.dims for part in dim.parts if part != "1")

    def pieces(self) -> tuple[tuple[str, tuple[Dim, ...]], ...]:
        """The unfused pieces, in storage order: (label, dims with one part each); the label is "" if no dim is fused."""
        fused = [position for position, dim in enumerate(self.dims) if len(dim.parts) > 1]
        if not fused:
            return (("", self.dims),)
        position = fused[0]
        return tuple(
            (
                part,
                tuple(replace(dim, parts=(part,)) if index == position else dim for index, dim in enumerate(self.dims)),
            )
            for part in self.dims[position].parts
        )

    @property
    def fused_dim(self) -> int | None:
        return next((position for position, dim in enumerate(self.dims) if len(dim.parts) > 1), None)


class NotationError(ValueError):
    """A table does not follow the notation: a bug in the family's file."""


def parse_layout(text: str) -> Layout:
    """Parse one layout. Raises NotationError.

    >>> [dim.role for dim in parse_layout("embed -> query+key").dims]
    ['read', 'write']
    """
    body, part = _suffix(text, text, " in ")
    body, condition = _suffix(body, text, " if ")
    conditions = tuple(_condition(word.strip(), text) for word in condition.split(" and ")) if condition else ()
    if part and not _NAME.match(part):
        raise NotationError(f"layout {text!r}: {part!r} is not the name of a part")
    words = body.split()
    role: Role = "write"
    less_one = bool(words) and words[-1] == "1+gain"
    words = [*words[:-1], "gain"] if less_one else words
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
        arrow = arrows[0]
        before: Role = "read" if words[arrow] == "->" else "write"
        after: Role = "write" if words[arrow] == "->" else "read"
        dims = tuple(_dim(word, before, text) for word in words[:arrow])
        dims += tuple(_dim(word, after, text) for word in words[arrow + 1 :])
    layout = Layout(dims=dims, conditions=conditions, part=part, less_one=less_one)
    if not dims or (arrows and arrows[0] in (0, len(words) - 1)):
        raise NotationError(f"layout {text!r}: a side of the arrow is empty")
    if sum(len(dim.parts) > 1 for dim in dims) > 1:
        raise NotationError(f"layout {text!r}: one fused dim at most")
    return layout


def parse_layouts(text: str) -> tuple[Layout, ...]:
    """Parse the layouts of one name, one for each part that has the name. Raises NotationError.

    >>> [layout.part for layout in parse_layouts("label <- pooled in sequence | label <- embed in token")]
    ['sequence', 'token']
    """
    layouts = tuple(parse_layout(alternative) for alternative in text.split("|"))
    parts = [layout.part for layout in layouts]
    if len(layouts) > 1 and ("" in parts or len(set(parts)) < len(parts)):
        raise NotationError(f"layout {text!r}: each alternative needs a part of its own (`in PART`)")
    return layouts


def _suffix(body: str, text: str, mark: str) -> tuple[str, str]:
    """Split a layout's text at a mark such as ` if `. Raises NotationError if the text before or after it is empty."""
    head, separator, tail = body.partition(mark)
    if separator and not (head.strip() and tail.strip()):
        raise NotationError(f"layout {text!r}: no text before or after {mark.strip()!r}")
    return head, tail.strip()


def _condition(word: str, text: str) -> Condition:
    """Parse `KEY`, `not KEY`, `KEY=VALUE` or `KEY!=VALUE`. Raises NotationError."""
    found = _CONDITION.match(word)
    if not found or (found["sign"] and word.startswith("not ")):
        raise NotationError(f"layout {text!r}: {word!r} is not a config key, nor one compared with a value")
    negated = word.startswith("not ") or found["sign"] == "!="
    return Condition(key=found["key"], value=found["value"], negated=negated)


def _dim(word: str, role: Role, text: str) -> Dim:
    parts = tuple(word.split("+"))
    if not all(part == "1" or _NAME.match(part) for part in parts):
        raise NotationError(f"layout {text!r}: {word!r} is not a stream, fused streams (a+b) or 1")
    return Dim(parts=parts, role=role)


def expand(pattern: str) -> tuple[str, ...]:
    """Expand the alternatives of a pattern into one name pattern each.

    >>> expand("h.{layer}.(ln_1|ln_2).bias")
    ('h.{layer}.ln_1.bias', 'h.{layer}.ln_2.bias')
    """
    match = _ALTERNATIVES.search(pattern)
    if not match:
        return (pattern,)
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return tuple(name for choice in match[1].split("|") for name in expand(head + choice + tail))


def depth_axis(pattern: str) -> str | None:
    """The depth axis of a pattern, or None: `h.{layer}.weight` -> `layer`."""
    axes = _DEPTH.findall(pattern)
    if len(axes) > 1:
        raise NotationError(f"pattern {pattern!r}: one depth axis at most")
    return axes[0][0] if axes else None


def first_layer(pattern: str) -> int:
    """The first layer that has the tensor of a pattern: 1 for `{layer>0}`, else 0."""
    found = _DEPTH.search(pattern)
    return int(bool(found and found[2]))


def matcher(pattern: str) -> re.Pattern[str]:
    """Compile an expanded pattern to a regular expression for its tensor names; the only group is the layer."""
    if depth_axis(pattern) is None:
        return re.compile(re.escape(pattern) + r"\Z")
    head, _, _, tail = _DEPTH.split(pattern)
    # No leading zeros: `h.01.weight` is not the name of a layer.
    number = "[1-9][0-9]{0,5}" if first_layer(pattern) else "0|[1-9][0-9]{0,5}"
    return re.compile(f"{re.escape(head)}({number}){re.escape(tail)}\\Z")


def name_at(pattern: str, layer: int | None) -> str:
    """The tensor name of a pattern at one layer (None if the pattern has no depth axis)."""
    return _DEPTH.sub(str(layer), pattern)


def before_layers(pattern: str) -> str:
    """What stands before the number of the layer in a pattern: `h.{layer}.weight` -> `h.`."""
    return _DEPTH.split(pattern)[0]


class SizeError(ValueError):
    """A size expression has no positive integer value; the message gives the keys and their values."""


def size_keys(expression: str) -> tuple[str, ...]:
    """The config keys that a size expression reads."""
    return tuple(word for word in re.findall(r"[A-Za-z_][A-Za-z0-9_]*", expression) if word != "or")


def paired_keys(expression: str) -> tuple[str, ...]:
    """The config keys of which a size expression takes one entry of a pair."""
    return tuple(key.partition("[")[0] for key in _KEY.findall(expression) if key.endswith("]"))


def evaluate(expression: str, config: Mapping[str, object], *, zero: bool = False) -> int:
    """Evaluate a size expression: the first alternative in which no key is missing or None. Raises SizeError.

    Args:
        zero: whether the size may be zero, as a number of layers may.

    >>> evaluate("n_inner or 4 * n_embd", {"n_inner": None, "n_embd": 8})
    32
    """
    for alternative in expression.split(" or "):
        values = {key: _entry(key, config) for key in _KEY.findall(alternative) if key != "or"}
        if any(value is None for value in values.values()):
            continue
        # A term of a sum may be zero; a size may not.
        least = 0.0 if zero or " + " in alternative else math.ulp(0.0)
        for key, value in values.items():
            # Python compares an integer of any length with a float; it converts only short ones.
            if type(value) not in (int, float) or not least <= value < math.inf:  # type: ignore[operator]
                pair = ", or a pair of them" if key.endswith("]") else ""
                raise SizeError(f"{key} is {brief(value)}, and must be a positive number{pair}")
            if value > AXIS.most:  # type: ignore[operator]
                raise SizeError(f"{key} is {brief(value)}, and must be {AXIS}")
        total = sum(_product(term, values) for term in alternative.split(" + "))
        if total < (0 if zero else 1):
            known = ", ".join(f"{key} = {number}" for key, number in values.items())
            raise SizeError(f"{alternative} is below one ({known})")
        if total > AXIS.most:
            raise SizeError(f"{alternative} is {total:,}, and must be {AXIS}")
        return total
    missing = [key for key in dict.fromkeys(size_keys(expression)) if config.get(key) is None]
    raise SizeError(f"{' and '.join(missing)} missing, needed for {expression!r}")


def _entry(key: str, config: Mapping[str, object]) -> object:
    """The value of a key; of `key[0]` or `key[1]` that entry of a pair, or the value itself if it is not a pair; of `#key` its entries."""
    name, bracket, index = key.removeprefix("#").rstrip("]").partition("[")
    value = config.get(name)
    if key.startswith("#"):
        # A mapping or list without entries is as good as none: the library makes up names then.
        return len(value) or None if isinstance(value, dict | list | tuple) else value
    return value[int(index)] if bracket and isinstance(value, list | tuple) and len(value) == 2 else value


def _product(expression: str, values: Mapping[str, object]) -> int:
    words = re.findall(rf"{_KEY.pattern}|[0-9]+|//|[*/]", expression)
    if "".join(words) != expression.replace(" ", "") or len(words) % 2 == 0:
        raise NotationError(f"size {expression!r}: keys and integers joined by *, / and //")
    known = ", ".join(f"{key} = {number}" for key, number in values.items())
    factors: list[tuple[str, int | float]] = []
    for operator, word in zip(["*", *words[1::2]], words[::2], strict=True):
        value = values[word] if word in values else int(word)
        assert isinstance(value, int | float)
        if operator != "//":
            factors.append((operator, value))
        elif value:
            # It binds more tightly than the others.
            factors[-1] = (factors[-1][0], factors[-1][1] // value)
        else:
            raise SizeError(f"{expression} divides by zero ({known})")
    result: int | float = 1
    for operator, value in factors:
        if operator == "*":
            result *= value
        elif not value or result % value:
            raise SizeError(f"{expression} is not a whole number ({known})")
        else:
            result //= value
    # A fraction is allowed as a factor (4.5 times the width) but not as a size of its own (12.5 layers).
    if isinstance(result, float) and len(words) == 1:
        raise SizeError(f"{expression} is {result}, and must be a positive integer")
    return int(result)

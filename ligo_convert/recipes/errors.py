"""Report every fault of a recipe at the location where the user wrote it.

Input: validation errors of pydantic, and a document with overrides from the command line.
Output: one RecipeError that lists all faults, each with its file position or its command-line option.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ligo_convert.checkpoints.config_keys import CODE_KEYS, chooses_code
from ligo_convert.errors import RecipeError, close_matches, printable
from ligo_convert.io.source_text import holds_secret, redacted
from ligo_convert.io.strict_yaml import Document, KeyPath

MAX_FAULTS = 10

MAX_SHOWN = 60  # characters shown of a value or a label

# What a fault points at: the value, its key, or, for a missing key, the key of the mapping that lacks it.
Spot: TypeAlias = Literal["value", "key", "owner"]

# Recipes are shared, so they must not hold credentials or endpoints.
SECRET_KEYS = frozenset(
    ("token", "hf_token", "auth_token", "use_auth_token", "api_key", "password", "endpoint", "hf_endpoint")
)

_MISSING: dict[KeyPath, str] = {
    ("version",): "missing: begin with `version: 1`",
    ("output",): "missing: give output.dir, or --out on the command line",
    ("output", "dir"): "missing: give output.dir, or --out on the command line",
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An override from the command line.

    Attributes:
        path: the key that it sets.
        label: the option as the user typed it.
    """

    path: KeyPath
    label: str


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a recipe.

    Attributes:
        path: the key with the fault.
        what: description of the fault.
        spot: what the reported position points at.
        secret: whether the value must not be shown.
    """

    path: KeyPath
    what: str
    spot: Spot = "value"
    secret: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Layered:
    """A document with command-line overrides, which locates every key."""

    document: Document
    layers: Sequence[Layer] = ()

    def __eq__(self, other: object) -> bool:
        # Recipes are compared by their values, not by where these were written.
        return isinstance(other, Layered)

    def __hash__(self) -> int:
        return hash(Layered)

    def report(self, faults: Sequence[Fault]) -> NoReturn:
        """Raise one RecipeError that lists the faults in the order of the file, then of the command line."""
        located = sorted((self._locate(fault) for fault in faults), key=lambda item: item.order)
        first, *others = located
        lines = [first.excerpt()]
        for other in others[: MAX_FAULTS - 1]:
            lines += [f"{printable(other.where)}: {printable(other.what)}", other.excerpt()]
        if len(located) > MAX_FAULTS:
            lines.append(f"and {len(located) - MAX_FAULTS} more")
        raise RecipeError(first.what, where=first.where, hint="\n".join(filter(None, lines)))

    def where(self, path: KeyPath) -> str:
        """Return the location of the key at `path`, or of its nearest parent: `file:line:column`, or the option."""
        while path and not self.document.holds(path) and not any(layer.path == path for layer in self.layers):
            path = path[:-1]
        return self._locate(Fault(path=path, what="", spot="key")).where

    def _locate(self, fault: Fault) -> _Located:
        what = f"{name(fault.path)}: {fault.what}" if fault.path else fault.what
        owner = fault.path[:-1] if fault.spot == "owner" else fault.path
        for number, layer in reversed(list(enumerate(self.layers))):
            laid_over = fault.path[: len(layer.path)] == layer.path
            made_by = layer.path[: len(owner)] == owner and not self.document.holds(owner)
            if laid_over or made_by:
                return _Located(order=(1, number, 0, fault.spot == "owner"), where=layer.label, what=what)
        # What a section inherits may stand elsewhere: then its nearest parent is shown.
        while not self.document.holds(owner):
            owner = owner[:-1]
        line, column = self.document.position(owner, key=fault.spot != "value")
        end = column + len(str(owner[-1])) if fault.secret and fault.spot == "key" else None
        return _Located(
            order=(0, line, column, fault.spot == "owner"),
            where=self.document.where(line, column),
            what=what,
            excerpt=_no_excerpt
            if fault.secret and end is None
            else functools.partial(self.document.excerpt, line, column, end=end),
        )


def _no_excerpt() -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class _Located:
    # The last item sorts a missing key after an unknown key at the same position, which may be its misspelling.
    order: tuple[int, int, int, bool]
    where: str
    what: str
    # Made when it is shown: a line may have a megabyte, and a file thousands of faults.
    excerpt: Callable[[], str] = field(default=_no_excerpt, compare=False)


def name(path: KeyPath) -> str:
    """Return a path such as `("fit", "data", "text", 0)` as `fit.data.text[0]`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{short(redacted(part))}" for part in path)
    return "".join(parts).removeprefix(".")


def short(text: str) -> str:
    """Return `text`, cut to `MAX_SHOWN` characters."""
    return f"{text[:MAX_SHOWN]}..." if len(text) > MAX_SHOWN else text


def shown(value: object) -> str:
    """Return a value as messages show it: short, and with secrets redacted."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return short(str(value))
    return f"'{short(redacted(value))}'"


def nearest(word: str, words: Sequence[str], *, otherwise: str) -> str:
    """Return ` (did you mean 'x'?)`, or ` (<otherwise> a, b, c)` if no word is similar."""
    near = close_matches(word[:MAX_SHOWN], words, n=1, cutoff=0.6)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" ({otherwise} {', '.join(words)})" if otherwise else ""


def findings(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """Return pydantic's errors as faults of a recipe."""
    return [_finding(details, model) for details in error.errors(include_url=False)]


def _finding(details: ErrorDetails, model: type[BaseModel]) -> Fault:
    path, value, context = tuple(details["loc"]), details["input"], details.get("ctx", {})
    match details["type"]:
        case "missing":
            return Fault(path=path, what=_missing(path, model), spot="owner")
        case "extra_forbidden":
            keys = list(_section(model, path[:-1]).model_fields)
            return Fault(
                path=path, what="unknown key" + nearest(str(path[-1]), keys, otherwise="keys here:"), spot="key"
            )
        case "recipe":
            whole = isinstance(value, dict)
            return Fault(path=path, what=str(context["text"]), spot="key" if whole else "value")
        case "choice":
            choices = context["choices"]
            if not isinstance(value, str):
                return Fault(path=path, what=f"should be one of {', '.join(choices)}, not {shown(value)}")
            return Fault(path=path, what=f"unknown name {shown(value)}" + nearest(value, choices, otherwise="one of"))
        case "literal_error":
            near = close_matches(str(value)[:MAX_SHOWN], str(context["expected"]).split("'")[1::2], n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            return Fault(path=path, what=f"should be {context['expected']}, not {shown(value)}{hint}")
    return Fault(path=path, what=_mismatch(details))


def _mismatch(details: ErrorDetails) -> str:
    value, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "string_type":
            scalar = isinstance(value, (bool, int, float))
            return f"should be text, not {shown(value)}" + ("; quote it" if scalar else "")
        case "int_type":
            return f"should be a whole number, not {shown(value)}"
        case "float_type":
            return f"should be a number, not {shown(value)}"
        case "bool_type":
            return f"should be true or false, not {shown(value)}"
        case "model_type" | "dict_type":
            return f"should be a mapping, not {shown(value)}"
        case "list_type":
            return f"should be a list, not {shown(value)}" + (
                f": [{short(redacted(value))}]" if isinstance(value, str) else ""
            )
        case "greater_than_equal":
            return f"should be at least {context['ge']:g}, not {shown(value)}"
        case "less_than_equal":
            return f"should be at most {context['le']}, not {shown(value)}"
        case "too_long":
            return f"should have at most {context['max_length']:,} entries, not {context['actual_length']:,}"
        case "too_short":
            return f"should have at least {context['min_length']} entry"
    return f"{details['msg']} (found {shown(value)})"


def _missing(path: KeyPath, model: type[BaseModel]) -> str:
    if path in _MISSING:
        return _MISSING[path]
    info = _section(model, path[:-1]).model_fields[str(path[-1])]
    extra = info.json_schema_extra
    names = extra.get("enum") if isinstance(extra, dict) else None
    about = f"one of {', '.join(map(str, names))}" if isinstance(names, list) else info.description
    return f"missing ({about})" if about else "missing"


def _section(model: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    """Return the class of the section at `path`."""
    for part in path:
        if isinstance(part, int):
            continue  # an index into a list of sections
        model = next(
            kind
            for kind in _types_in(model.model_fields[part].annotation)
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
    return model


def _types_in(annotation: object) -> Iterator[object]:
    """Yield a type and the types inside it: `list[X] | None` has X."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from _types_in(part)


def screen(data: object) -> list[Fault]:
    """Return a fault for everything that no recipe may contain: secrets, endpoints, URLs, code to run.

    Free mappings (`config`) are searched as well, but may contain URLs other than `file://`.
    """
    faults = []
    for path, key, value in _walk(data):
        config = "config" in path[:-1]
        if isinstance(key, str):
            if key.lower() in SECRET_KEYS and not (config and not isinstance(value, str)):
                what = "not allowed in a recipe; set it in the environment (HF_TOKEN, HF_ENDPOINT)"
                faults.append(Fault(path=path, what=what, spot="key", secret=True))
                continue
            if chooses_code(key):
                what = "would run code from the model repository; remove it"
                if key not in CODE_KEYS and not key.endswith("_internal"):
                    what = "chooses an implementation, not a model; remove it"
                faults.append(Fault(path=path, what=what, spot="key"))
                continue
        if not isinstance(value, str):
            continue
        if holds_secret(value):
            faults.append(Fault(path=path, what="looks like a secret; remove it", secret=True))
        elif "file://" in value.lower() or ("://" in value and not config):
            faults.append(Fault(path=path, what="is a URL; give a Hub id, or a path without file://"))
    return faults


def _walk(data: object) -> Iterator[tuple[KeyPath, str | int, object]]:
    """Yield every path below `data` with its last key and its value."""
    waiting: list[tuple[KeyPath, object]] = [((), data)]
    while waiting:
        path, value = waiting.pop()
        entries: list[tuple[str | int, object]] = []
        if isinstance(value, dict):
            entries = list(value.items())
        elif isinstance(value, list):
            entries = list(enumerate(value))
        for key, item in entries:
            yield (*path, key), key, item
            waiting.append(((*path, key), item))

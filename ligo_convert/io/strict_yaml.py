"""Read a strict subset of YAML 1.2 core, including JSON.

Input: text.
Output: plain data, and the line and column of each key and value.

ruamel parses the syntax into a stream of events, without recursion. This module decides the type of plain scalars:
`3e-5` is a number; `on` and `2024-01-01` are strings. `0123`, `0x1F` and `.nan` are ambiguous, so they are errors that
advise to quote them. Anchors, aliases, merge keys, tags, several documents, duplicate keys and keys that are not strings
are errors too: a few bytes must not expand to a large value, and one line must not silently replace another.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
)
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import Scanner

from ligo_convert.errors import MachineError, RecipeError, close_matches
from ligo_convert.io.source_text import Text

MAX_BYTES = 1 << 20

MAX_DEPTH = 32  # levels of nested collections

MAX_NODES = 30_000  # keys and values; reading this many takes one to two seconds

MAX_DIGITS = 64

Value: TypeAlias = "dict[str, Value] | list[Value] | str | int | float | bool | None"

KeyPath: TypeAlias = tuple[str | int, ...]

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")

_OTHER_BASE = re.compile(r"[-+]?0[oOxX][0-9a-fA-F]+")

_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Node:
    """A value and its position in the text.

    Attributes:
        start: index of its first character.
        value: the value as plain data.
        keys: for a mapping, the index of the first character of each key.
        children: nodes of the values by key, or of the items by index.
    """

    start: int
    value: Value
    keys: dict[str, int] = field(default_factory=dict)
    children: dict[str | int, _Node] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Document(Text):
    """One YAML document: its plain data, and the position of each part in the text.

    Attributes:
        root: node of the whole document.
    """

    root: _Node

    @property
    def data(self) -> Value:
        return self.root.value

    def holds(self, path: KeyPath) -> bool:
        """Return True if the document has a value at `path`. Null counts as a value."""
        node = self.root
        for part in path:
            if part not in node.children:
                return False
            node = node.children[part]
        return True

    def position(self, path: KeyPath, *, key: bool = False) -> tuple[int, int]:
        """Return line and column, counted from 1, of the value at `path`.

        Args:
            path: keys and list indexes from the root to the value.
            key: return the position of the value's key instead. The document and list items have no key; the position
                is then that of the value.

        Raises:
            KeyError: the document has no value at `path`.
        """
        node, index = self.root, self.root.start
        for part in path:
            if part not in node.children:
                raise KeyError(path)
            named = node.keys.get(part) if key and isinstance(part, str) else None
            node = node.children[part]
            index = node.start if named is None else named
        return self.place(index)


def load(text: str, *, label: str) -> Document:
    """Read one YAML document. The data of an empty document are None.

    Raises:
        RecipeError: the text is not YAML, or uses YAML that this module does not accept. The error gives
            `label:line:column`, the line and a caret.
    """
    return _load(Text(text=text, label=label), depth=0)


def parse_value(text: str, *, label: str, depth: int = 0) -> Document:
    """Read a value of the command line by the rules of `load`.

    Args:
        text: the value.
        label: the text before the value on the command line, for messages.
        depth: number of mappings that will enclose the value.

    Raises:
        RecipeError: as `load`, but the error gives only `label`.
    """
    return _load(Text(text=text, label=label, single=True), depth=depth)


def load_file(path: Path, *, label: str | None = None, absent: str = "") -> Document:
    """Read a YAML file in UTF-8.

    Args:
        path: path of the file.
        label: name of the file in messages; default: the path.
        absent: what to do if neither the file is there nor one with a name like it.

    Raises:
        RecipeError: the file does not exist, is not a regular file, is larger than `MAX_BYTES` or is not UTF-8; or as
            `load`.
        MachineError: the file cannot be read.
    """
    label = str(path) if label is None else label
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe could block and a device never end
            raise RecipeError("not a regular file", where=label)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the name contains a NUL
        raise RecipeError("no such file", where=label, hint=_near_files(path) or absent) from None
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=label) from None
    return load_bytes(data, label=label)


def _near_files(path: Path) -> str:
    """Return a hint that names the YAML files of the same folder with a name like that of an absent one; "" if there are none."""
    with suppress(OSError, ValueError):
        beside = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml"))
        near = close_matches(path.name, beside, n=2, cutoff=0.8)
        return f"did you mean {' or '.join(str(path.with_name(name)) for name in near)}?" if near else ""
    return ""


def load_bytes(data: bytes, *, label: str) -> Document:
    """Read the bytes of a YAML file in UTF-8. Raises RecipeError as `load_file` does."""
    try:
        return load(data.decode("utf-8"), label=label)
    except UnicodeDecodeError as error:
        if len(data) > MAX_BYTES:
            _too_large(label)
        before = Text(text=data[: error.start].decode("utf-8"), label=label)
        line, column = before.place(len(before.text))
        raise RecipeError(
            "not UTF-8",
            where=before.where(line, column),
            found=f"byte 0x{data[error.start]:02x}",
            hint="save the file as UTF-8",
        ) from None


def _short(text: str) -> str:
    return text if len(text) <= MAX_DIGITS else text[:MAX_DIGITS] + "..."


def _too_large(label: str) -> NoReturn:
    raise RecipeError("too large", where=label, expected=f"at most {MAX_BYTES:,} bytes")


def _load(source: Text, *, depth: int) -> Document:
    text = source.text
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        _too_large(source.label)
    # Some editors count these characters as line breaks and some do not, so reported line numbers would be wrong in one
    # of them.
    if unclear := re.search("[\x85\u2028\u2029]", text):
        source.fail(
            unclear.start(), f"an invisible line break, U+{ord(unclear[0]):04X}", hint="write a plain line break"
        )
    builder = _Builder(source=source, depth=depth)
    root = builder.build()
    return Document(text=text, label=source.label, single=source.single, root=root)


class _Refused(MarkedYAMLError):
    """YAML that ruamel accepts but this module refuses, or an error for which ruamel gives no position."""


class _StrictScanner(Scanner):
    """Refuse a tag at its first character. ruamel's parser takes time quadratic in the length of a tag."""

    def fetch_tag(self) -> NoReturn:
        raise _Refused(problem="a tag; values are plain data", problem_mark=self.reader.get_mark())

    def fetch_more_tokens(self) -> Any:
        try:
            return super().fetch_more_tokens()
        except (ValueError, OverflowError):  # from chr()
            mark = self.reader.get_mark()
            raise _Refused(problem="an escape past the end of Unicode", problem_mark=mark) from None


@dataclass(kw_only=True)
class _Open:
    """A collection before its end event.

    Attributes:
        node: node of the collection.
        is_mapping: True for a mapping, False for a list.
        key: for a mapping, the last key and the index of its first character, until its value has been read.
    """

    node: _Node
    is_mapping: bool
    key: tuple[str, int] | None = None


@dataclass(kw_only=True)
class _Builder:
    """Build nodes from events.

    Attributes:
        source: the text.
        depth: number of mappings that will enclose the root.
        nodes: keys and values so far.
        open: collections before their end event, outermost first.
        root: node of the document; None before its first event.
    """

    source: Text
    depth: int
    nodes: int = 0
    open: list[_Open] = field(default_factory=list)
    root: _Node | None = None

    def build(self) -> _Node:
        documents = 0
        for event in self._events():
            index = event.start_mark.index
            if isinstance(event, DocumentStartEvent):
                documents += 1
                self._check_document(event, index, documents)
            elif isinstance(event, AliasEvent):
                self.source.fail(index, "an alias; write the value out where it is used")
            elif isinstance(event, CollectionStartEvent):
                self._check_node(event, index)
                self._begin(index, is_mapping=isinstance(event, MappingStartEvent))
            elif isinstance(event, CollectionEndEvent):
                self.open.pop()
            elif isinstance(event, ScalarEvent):
                self._check_node(event, index)
                self._scalar(event, index)
        return self.root or _Node(start=0, value=None)

    def _events(self) -> Iterator[Any]:
        """Yield the events of the text. Every error of ruamel is raised as a RecipeError."""
        yaml = YAML(typ="safe", pure=True)  # the C parser is recursive and can overflow the stack
        yaml.Scanner = _StrictScanner
        try:
            yield from yaml.parse(self.source.text)
        except _Refused as error:
            self.source.fail(error.problem_mark.index, str(error.problem))
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._fail_syntax(0 if mark is None else mark.index, error)
        except ReaderError as error:
            self.source.fail(error.position, f"a character that YAML does not allow, U+{error.character:04X}")
        except AssertionError:  # ruamel raises this for versions such as 1.31
            self.source.fail(0, "a directive that cannot be read")

    def _fail_syntax(self, index: int, error: MarkedYAMLError) -> NoReturn:
        index = min(index, len(self.source.text))
        found = self.source.text[index : index + 1]
        if found == "\t":
            self.source.fail(index, "a tab; indent and separate with spaces")
        problem = " ".join(str(error.problem or "cannot be read").split())
        context = " ".join(str(error.context).split()) if error.context else ""
        hint = f"quote text that begins with {found}" if "cannot start any token" in problem else ""
        self.source.fail(index, f"not YAML: {problem}" + (f" ({context})" if context else ""), hint=hint)

    def _check_document(self, event: DocumentStartEvent, index: int, documents: int) -> None:
        if documents > 1:
            self.source.fail(index, "a second document; one file holds one")
        if event.tags or event.version not in (None, (1, 2)):
            self.source.fail(0, "a directive; the text is read as YAML 1.2 without tags")

    def _check_node(self, event: Any, index: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.source.fail(index, f"more than {MAX_NODES:,} keys and values")
        if event.anchor is not None:
            self.source.fail(index, "an anchor; write the value out where it is used")

    def _begin(self, index: int, *, is_mapping: bool) -> None:
        if len(self.open) + self.depth >= MAX_DEPTH:
            self.source.fail(index, f"more than {MAX_DEPTH} mappings and lists within each other")
        node = _Node(start=index, value={} if is_mapping else [])
        self._put(node, index)
        self.open.append(_Open(node=node, is_mapping=is_mapping))

    def _scalar(self, event: ScalarEvent, index: int) -> None:
        plain = event.style is None
        text = str(event.value) if plain else self._joined(str(event.value), index)
        owner = self.open[-1] if self.open else None
        if plain and owner is not None and owner.is_mapping and owner.key is None and text == "<<":
            self.source.fail(index, "a merge key; write the values out")
        if plain and not text and owner is not None and owner.key is not None:
            index = owner.key[1]  # the value has no text, so point at its key
        self._put(_Node(start=index, value=self._resolved(text, index) if plain else text), index)

    def _joined(self, text: str, index: int) -> str:
        """Join surrogate pairs into single characters: JSON escapes a character above U+FFFF as two surrogates."""
        if not _SURROGATE.search(text):
            return text
        try:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self.source.fail(index, "an escape that is half a character")

    def _resolved(self, text: str, index: int) -> Value:
        """Return the value of a plain scalar."""
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > MAX_DIGITS:
                self.source.fail(index, f"a number of more than {MAX_DIGITS} digits", hint="if it is a name, quote it")
            return int(text)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if not math.isfinite(number):
                self.source.fail(index, f"{_short(text)} is too large for a number", hint="if it is a name, quote it")
            return number
        if _LEADING_ZERO.fullmatch(text) or _OTHER_BASE.fullmatch(text):
            what = f"{_short(text)} is a number to some readers and text to others"
            self.source.fail(index, what, hint=f'quote it: "{_short(text)}", or write a decimal without leading zeros')
        if _NOT_FINITE.fullmatch(text):
            self.source.fail(index, f"{text} is not a finite number", hint=f'if it is text, quote it: "{text}"')
        return text

    def _put(self, node: _Node, index: int) -> None:
        """Add `node` to the innermost open collection. Without an open collection it becomes the root."""
        if not self.open:
            self.root = node
            return
        owner = self.open[-1]
        if not owner.is_mapping:
            assert isinstance(owner.node.value, list)
            owner.node.children[len(owner.node.value)] = node
            owner.node.value.append(node.value)
        elif owner.key is None:
            owner.key = (self._key(owner.node, node, index), index)
        else:
            assert isinstance(owner.node.value, dict)
            key, place = owner.key
            owner.node.keys[key] = place
            owner.node.children[key] = node
            owner.node.value[key] = node.value
            owner.key = None

    def _key(self, owner: _Node, node: _Node, index: int) -> str:
        if not isinstance(node.value, str):
            self.source.fail(index, "a key that is not a string", hint="quote it")
        if node.value in owner.children:
            line, _ = self.source.place(owner.keys[node.value])
            first = "" if self.source.single else f", first in line {line}"
            self.source.fail(index, f"duplicate key {node.value!r}{first}")
        return node.value

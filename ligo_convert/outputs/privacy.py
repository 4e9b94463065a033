"""Search texts that will be shared for local paths, account and host names, and secrets.

Records contain chosen values only, so nothing private should be in them. This check is the second line of defence.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ligo_convert.errors import LigoError
from ligo_convert.io.private_names import holds_private_name, holds_word, private_names

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)

_HUB_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{20,}\b")

_SHORTEST_SECRET = 8


def check_nothing_private(
    text: str,
    *,
    where: str,
    names_in: Iterable[str] | None = None,
    public: Iterable[str] = (),
    refusing: type[LigoError] = LigoError,
) -> None:
    """Raise an error if a text contains something private.

    Local paths (the home, working and temporary directory) and secrets (Hub tokens, and the values of environment variables whose names
    look like secrets) are searched for in the whole text. The names of the account and the machine may be ordinary words, so they are
    searched for as whole words and only in strings from outside.

    Args:
        text: the text to be shared.
        where: the file of the text, for the message.
        names_in: the strings of the text that came from outside; None: the whole text.
        public: strings that are public anyway, such as Hub ids; their words are not findings.
        refusing: class of the error: `LigoError` while writing (a bug), `PublishRefused` while publishing.

    Raises:
        LigoError: the text contains something private. The message names the kind, never the value.
    """
    readings = _readings(text)
    for kind, needle in _needles():
        pattern = re.escape(needle)
        if kind.endswith("directory"):
            pattern = rf"(?<![\w.]){pattern}(?![\w-])"
        if any(re.search(pattern, reading) for reading in readings):
            _refuse(kind, where, refusing)
    if any(map(_HUB_TOKEN.search, readings)):
        _refuse("a Hub token", where, refusing)
    known = {word for name in public for word in _words(name)}
    strings = list(names_in) if names_in is not None else list(readings)
    for kind, name in private_names():
        if not set(_words(name)) <= known and any(holds_word(string, name) for string in strings):
            _refuse(kind, where, refusing)


# An absolute path in a message: it begins at a place where a relative one cannot, and ends before a mark of the sentence.
_ABSOLUTE = re.compile(r"(?<![\w./~-])/(?:[^\s/:,;'\"()]+/)*([^\s/:,;'\"()]+)")


def without_places(text: str) -> str:
    """Return a message as it may be shared: paths relative to the working directory or to `~`, of others the last name, no private name.

    >>> without_places("/nowhere/models/gpt2: no such directory")
    '.../gpt2: no such directory'
    """
    home = os.environ.get("HOME") or str(Path.home())
    for folder, short in ((str(Path.cwd()), ""), (home, "~/")):
        for spelling in dict.fromkeys((folder, os.path.realpath(folder))):
            if spelling.rstrip("/"):
                text = text.replace(spelling.rstrip("/") + "/", short)
                text = re.sub(rf"{re.escape(spelling.rstrip('/'))}(?![\w.-])", short.rstrip("/") or ".", text)
    text = _ABSOLUTE.sub(r".../\1", text)
    for _, name in private_names():
        text = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", "***", text)
    return text


def place_of(path: Path) -> str:
    """Return a path as a report shows it: relative to the working directory, or to `~`, where it is below one of them."""
    for folder, short in ((Path.cwd(), Path()), (Path(os.environ.get("HOME") or Path.home()), Path("~"))):
        if path.is_relative_to(folder):
            return str(short / path.relative_to(folder))
    return str(path)


def public_name(label: str, *, of_hub: bool) -> str:
    """Return a source's public name: a Hub id unchanged, a directory's name unless it contains something private."""
    private = holds_private_name(label) or any(needle in label for _, needle in _needles())
    return "a local checkpoint" if private and not of_hub else label


def _refuse(kind: str, where: str, refusing: type[LigoError]) -> None:
    hint = (
        "this is a bug in ligo-convert; please report it with the recipe. Nothing has been published."
        if refusing is LigoError
        else "nothing has been published; remove it from the inputs and convert again"
    )
    raise refusing(f"{kind} would appear in a file that is meant to be shared", where=where, hint=hint)


def _readings(text: str) -> tuple[str, ...]:
    """Return the text unchanged, without Markdown escapes, and without JSON escapes."""
    unescaped = html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text))
    decoded = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), unescaped)
    return tuple(dict.fromkeys((text, unescaped, decoded)))


def _needles() -> Iterator[tuple[str, str]]:
    """Yield kind and text of everything that must not occur anywhere."""
    home = os.environ.get("HOME") or str(Path.home())
    directories = {"the home directory": home, "the working directory": str(Path.cwd())}
    directories["the temporary directory"] = os.environ.get("TMPDIR", "")
    for kind, directory in directories.items():
        for spelling in dict.fromkeys((directory, os.path.realpath(directory) if directory else "")):
            spelling = spelling.rstrip("/")
            # The root directory and relative paths are not private.
            if spelling.startswith("/"):
                yield kind, spelling
    for variable, value in os.environ.items():
        if _SECRET.search(variable) and len(value) >= _SHORTEST_SECRET and not value.startswith("/"):
            yield "a secret of the environment", value


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)

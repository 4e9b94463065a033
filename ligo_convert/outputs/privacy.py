"""The last guard before a text is written that others will read: it names no place, person, machine or secret.

Records are made of chosen values, so nothing private should be in them to begin with. This looks all the same.
"""

from __future__ import annotations

import contextlib
import getpass
import html
import os
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ligo_convert.errors import LigoError

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)

_HUB_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{20,}\b")

_SHORTEST_SECRET = 8

_SHORTEST_NAME = 4

# Accounts and hosts that name nobody, and words that a record holds anyway.
# fmt: off
_NOBODY = frozenset((
    "admin", "administrator", "anonymous", "build", "builder", "cloud", "code", "copy", "data", "default",
    "developer", "direct", "docker", "fit", "gpu", "guest", "hidden", "home", "host", "jovyan", "json", "jupyter",
    "laptop", "layer", "lemon", "ligo", "linear", "linux", "local", "localhost", "machine", "main", "model",
    "models", "nobody", "node", "random", "root", "runner", "server", "service", "shared", "source", "stack",
    "staff", "stdlib", "student", "system", "target", "test", "tester", "text", "token", "torch", "train", "ubuntu",
    "user", "users", "vagrant", "validation", "version", "width", "work", "worker", "workspace", "zero",
))

# fmt: on


def check_nothing_private(
    text: str,
    *,
    where: str,
    names_in: Iterable[str] | None = None,
    public: Iterable[str] = (),
    refusing: type[LigoError] = LigoError,
) -> None:
    """The last guard before a text is written: our own records must name no place, person, machine or secret.

    Paths are the home, working and temporary directory; secrets the values of environment variables that are named like one, and
    Hub tokens; both are looked for everywhere. The account's and the machine's names are ordinary words at times: they are
    looked for as whole words, and only in what came from outside.

    Args:
        where: the text's file. names_in: the foreign strings of the text; None: the whole text.
        public: strings that are public by nature, such as Hub ids; their words are no finding.
        refusing: the class of the error: a bug of ours where a text is made, a refusal where one that is there is to be shared.

    Raises:
        LigoError: something private; the message says what kind, never what.
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
    for kind, name in _names():
        if not set(_words(name)) <= known and any(_holds_word(string, name) for string in strings):
            _refuse(kind, where, refusing)


def public_name(label: str, *, of_hub: bool) -> str:
    """What a source may be called in public: a Hub id as it is, a directory's name unless it tells whose or where it is."""
    private = any(_holds_word(label, name) for _, name in _names()) or any(needle in label for _, needle in _needles())
    return "a local checkpoint" if private and not of_hub else label


def _refuse(kind: str, where: str, refusing: type[LigoError]) -> None:
    hint = (
        "this is a bug of ligo-convert; please report it with the recipe. Nothing has been published."
        if refusing is LigoError
        else "nothing has been published; convert again where it does not stand in the inputs"
    )
    raise refusing(f"{kind} would stand in a file that is meant to be shared", where=where, hint=hint)


def _readings(text: str) -> tuple[str, ...]:
    """The text as it is, and as a reader of Markdown or JSON sees it."""
    unescaped = html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text))
    decoded = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), unescaped)
    return tuple(dict.fromkeys((text, unescaped, decoded)))


def _needles() -> Iterator[tuple[str, str]]:
    """What must not be found anywhere: kind and text."""
    home = os.environ.get("HOME") or str(Path.home())
    places = {"the home directory": home, "the working directory": str(Path.cwd())}
    places["the temporary directory"] = os.environ.get("TMPDIR", "")
    for kind, place in places.items():
        for spelling in dict.fromkeys((place, os.path.realpath(place) if place else "")):
            spelling = spelling.rstrip("/")
            # The root of everything, or a name that is no absolute path, says nothing.
            if spelling.startswith("/"):
                yield kind, spelling
    for variable, value in os.environ.items():
        if _SECRET.search(variable) and len(value) >= _SHORTEST_SECRET and not value.startswith("/"):
            yield "a secret of the environment", value


def _names() -> Iterator[tuple[str, str]]:
    accounts = {os.environ.get(variable, "") for variable in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    with contextlib.suppress(OSError, KeyError, ImportError):  # an account without an entry in the system's list
        accounts.add(getpass.getuser())
    host = platform.node()
    found = [("the account's name", name) for name in sorted(accounts)]
    found += [("the machine's name", name) for name in dict.fromkeys((host, host.partition(".")[0]))]
    for kind, name in found:
        if len(name) >= _SHORTEST_NAME and name.lower() not in _NOBODY:
            yield kind, name


def _holds_word(text: str, name: str) -> bool:
    return re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text) is not None


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)

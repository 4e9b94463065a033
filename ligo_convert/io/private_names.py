"""The names of the account and the machine, which must not appear in files that are meant to be shared."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
from collections.abc import Iterator

_SHORTEST_NAME = 4

# Generic account and host names, and words that occur in every record.
# fmt: off
_GENERIC_NAMES = frozenset((
    "admin", "administrator", "anonymous", "build", "builder", "cloud", "code", "copy", "data", "default",
    "developer", "direct", "docker", "fit", "gpu", "guest", "hidden", "home", "host", "jovyan", "json", "jupyter",
    "laptop", "layer", "lemon", "ligo", "linear", "linux", "local", "localhost", "machine", "main", "model",
    "models", "nobody", "node", "random", "root", "runner", "server", "service", "shared", "source", "stack",
    "staff", "stdlib", "student", "system", "target", "test", "tester", "text", "token", "torch", "train", "ubuntu",
    "user", "users", "vagrant", "validation", "version", "width", "work", "worker", "workspace", "zero",
))

# fmt: on


def holds_private_name(text: str) -> bool:
    """Return True if a text has the name of the account or of the machine as a whole word."""
    return any(holds_word(text, name) for _, name in private_names())


def private_names() -> Iterator[tuple[str, str]]:
    """Yield kind and text of the names of the account and the machine."""
    accounts = {os.environ.get(variable, "") for variable in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    with contextlib.suppress(OSError, KeyError, ImportError):  # the account has no entry in the password database
        accounts.add(getpass.getuser())
    host = platform.node()
    names = [("the account's name", name) for name in sorted(accounts)]
    names += [("the machine's name", name) for name in dict.fromkeys((host, host.partition(".")[0]))]
    for kind, name in names:
        if len(name) >= _SHORTEST_NAME and name.lower() not in _GENERIC_NAMES:
            yield kind, name


def holds_word(text: str, name: str) -> bool:
    """Return True if `name` is a whole word of `text`."""
    return re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text) is not None

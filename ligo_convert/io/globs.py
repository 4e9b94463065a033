"""Expand glob patterns to sorted paths, the same in every version of Python."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ligo_convert.errors import MachineError, RecipeError


def expand(pattern: str, base: Path) -> list[Path]:
    """Return every path that matches `pattern`, sorted by its POSIX form.

    The standard `glob` is not used because its rules for links under `**` and for hidden names differ between versions of Python. Here `**`
    follows no links, so that a loop of links ends, and a wildcard matches no leading dot.

    Raises:
        RecipeError: the pattern holds a NUL character.
        MachineError: a folder cannot be listed.
    """
    if "\0" in pattern:
        raise RecipeError("data.text: a name cannot hold a NUL character", found=repr(pattern))
    if os.path.lexists(base / pattern):
        return [base / pattern]
    root, parts = base, Path(pattern).parts
    if Path(pattern).is_absolute():
        root, parts = Path(parts[0]), parts[1:]
    # `**/**` matches the same paths as `**`, but would walk them many times.
    once = tuple(part for index, part in enumerate(parts) if part != "**" or parts[index - 1 : index] != ("**",))
    return sorted(set(_walk(root, once)), key=Path.as_posix)


def _walk(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    if not parts:
        yield folder
    elif parts[0] == "**":
        rest = parts[1:] or ("*",)
        yield from _walk(folder, rest)
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _walk(folder / entry.name, parts)
    elif not re.search(r"[*?\[]", parts[0]):
        if os.path.lexists(folder / parts[0]):
            yield from _walk(folder / parts[0], parts[1:])
    else:
        for entry in _entries(folder):
            hidden = entry.name.startswith(".") and not parts[0].startswith(".")
            if not hidden and fnmatch.fnmatchcase(entry.name, parts[0]):
                yield from _walk(folder / entry.name, parts[1:])


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise MachineError(f"folder cannot be listed: {error.strerror}", where=folder) from None

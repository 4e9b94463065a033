"""Expand glob patterns to sorted paths, the same in every version of Python."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ligo_convert.errors import MachineError, RecipeError, brief
from ligo_convert.limits import VISITS

# Characters of a pattern. No path is longer, and to compile a pattern takes a time that grows with the square of its length.
_PATTERN = 4096


class Visits:
    """Counts the entries of folders that patterns visit, together."""

    def __init__(self) -> None:
        self.count = 0


def expand(pattern: str, base: Path, visits: Visits | None = None) -> list[Path]:
    """Return every path that matches `pattern`, sorted by its POSIX form.

    The standard `glob` is not used because its rules for links under `**` and for hidden names differ between versions of Python. Here `**`
    follows no links, so that a loop of links ends, and a wildcard matches no leading dot.

    Args:
        pattern: the pattern.
        base: the folder that a relative pattern starts from.
        visits: shared by all patterns of a list.

    Raises:
        RecipeError: the pattern holds a NUL character, or visits more entries of folders than `VISITS`.
        MachineError: a folder cannot be listed.
    """
    if "\0" in pattern:
        raise RecipeError("data.text: a name cannot hold a NUL character", found=repr(pattern))
    if os.path.lexists(base / pattern):
        return [base / pattern]
    if len(pattern) > _PATTERN:
        return []
    root, parts = base, Path(pattern).parts
    if Path(pattern).is_absolute():
        root, parts = Path(parts[0]), parts[1:]
    # `**/**` matches the same paths as `**`, but would walk them many times.
    once = tuple(part for index, part in enumerate(parts) if part != "**" or parts[index - 1 : index] != ("**",))
    return sorted(_walk(root, once, visits or Visits()), key=Path.as_posix)


def _walk(root: Path, pattern: tuple[str, ...], visits: Visits) -> set[Path]:
    """Return the paths below `root` that match. Raises RecipeError if that takes more than `VISITS` entries of folders."""
    found: set[Path] = set()
    # A folder is looked at once for each rest of the pattern: with several `**`, many ways lead to the same pair. A list of what is left
    # to do has no limit of depth, as calls have.
    waiting = [(root, 0)]
    known = {(str(root), 0)}

    def follow(folder: Path, start: int) -> None:
        if (str(folder), start) not in known:
            known.add((str(folder), start))
            waiting.append((folder, start))

    while waiting:
        folder, start = waiting.pop()
        if start == len(pattern):
            found.add(folder)
            continue
        part, last = pattern[start], start + 1 == len(pattern)
        if part != "**" and not re.search(r"[*?\[]", part):
            if os.path.lexists(folder / part):
                follow(folder / part, start + 1)
            continue
        if part == "**" and not last:
            follow(folder, start + 1)
        for entry in _entries(folder):
            visits.count += 1
            if visits.count > VISITS.most:
                raise RecipeError(
                    f"data.text: the pattern {brief('/'.join(pattern))} visits too many files and folders",
                    where=root,
                    expected=str(VISITS),
                    hint="name the folders more closely, or join small files to larger ones",
                )
            dotted = entry.name.startswith(".")
            if part != "**":
                if not (dotted and not part.startswith(".")) and fnmatch.fnmatchcase(entry.name, part):
                    follow(folder / entry.name, start + 1)
            elif not dotted:
                if last:
                    found.add(folder / entry.name)
                if entry.is_dir(follow_symlinks=False):
                    follow(folder / entry.name, start)
    return found


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise MachineError(f"folder cannot be listed: {error.strerror}", where=folder) from None

"""Find a checkpoint in a local directory, and say what is there instead of one."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from pathlib import Path

from ligo_convert.checkpoints.files import CONFIG, INDEX, WEIGHTS, Place
from ligo_convert.checkpoints.other_weights import hint_for
from ligo_convert.errors import MachineError, SourceError, some


class Directory(Place):
    """A `Place` for a local directory, where no file needs to be fetched."""

    def __init__(self, root: Path, names: frozenset[str]) -> None:
        self.label, self.root, self.names, self.warnings = Path(os.path.realpath(root)).name or "local", root, names, []

    def inner(self) -> list[str]:
        return _folders_with(self.root, self.names, (WEIGHTS, INDEX))


def local_directory(given: str, root: Path) -> Directory:
    """Open the directory `root` as a `Place`.

    Args:
        given: the directory as the user wrote it, for messages.
        root: the directory.

    Raises:
        SourceError: not a directory, or a directory without a config.
        MachineError: no permission to read the directory.
    """
    try:
        names = frozenset(entry.name for entry in root.iterdir())
    except PermissionError:
        raise MachineError("no permission to read the directory", where=given) from None
    except NotADirectoryError:
        hint = "name the directory that holds the files"
        told = hint_for([root.name]) if root.suffix != ".safetensors" else ""
        raise SourceError("not a directory", where=given, hint=told or hint) from None
    except OSError:
        raise SourceError("no such directory", where=given, hint=near_directories(root)) from None
    if CONFIG not in names:
        raise _no_config(Directory(root, names))
    return Directory(root, names)


def near_directories(path: Path) -> str:
    """Return a hint that names the directories with a name like that of a path that does not exist; "" if there are none.

    Where a parent does not exist either, directories beside that parent are meant.
    """
    with suppress(OSError, ValueError):
        while not path.parent.is_dir() and path.parent != path:
            path = path.parent
        beside = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir())
        near = difflib.get_close_matches(path.name, beside, n=2, cutoff=0.7)
        return f"did you mean the directory {' or '.join(near)}?" if near else ""
    return ""


def _no_config(place: Directory) -> SourceError:
    """Return the error for a directory without config.json, with what is there instead."""
    checkpoints = _folders_with(place.root, place.names, (CONFIG,))
    if checkpoints:
        hint = f"name the subfolder that holds the checkpoint: {some(checkpoints)}"
    else:
        hint = hint_for(place.names - {WEIGHTS, INDEX})
    return SourceError(f"no {CONFIG}", where=place.label, hint=hint)


def _folders_with(root: Path, names: frozenset[str], files: tuple[str, ...]) -> list[str]:
    """Return the subfolders that hold one of the files, links that leave the directory left out."""
    return sorted(
        name
        for name in names
        if not (root / name).is_symlink() and any((root / name / file).is_file() for file in files)
    )

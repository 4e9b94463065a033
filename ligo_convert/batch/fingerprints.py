"""Digest the state of the files that a conversion reads, from their names, sizes and dates.

Input: a recipe, or paths. Output: a digest that changes when any of the files is written. It is cheap enough for every manifest entry. It
detects a change and does not identify content: the digests of a run do that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ligo_convert.data.corpus import local_paths
from ligo_convert.errors import LigoError
from ligo_convert.recipes.recipe import Recipe, is_local


def recipe_inputs(recipe: Recipe) -> Iterator[Path]:
    """Yield the local paths that a recipe reads: source, target config, data, tokenizer. Hub files are identified by name and revision."""
    named = [(recipe.source.model, recipe.source_base), (recipe.target.model, recipe.base)]
    if recipe.fit is not None:
        data = recipe.fit.data
        named += [(data.tokenizer, recipe.base)]
        yield from local_paths(data, base=recipe.base)
    for name, base in named:
        if name is not None and is_local(name, base):
            yield base / Path(name).expanduser()


def inputs_digest(paths: Iterable[Path]) -> str | None:
    """Digest the state of files, and of the files in folders; None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        for path in paths:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            for file in files:
                digest.update(f"{file} {_fingerprint(file)}\n".encode("utf-8", "surrogateescape"))
    except (LigoError, OSError):
        return None
    return digest.hexdigest()


def _fingerprint(file: Path) -> tuple[int, ...] | None:
    """Return size and dates of a file, None for a folder or a missing file. Device and inode numbers differ between machines."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return None if file.is_dir() else (status.st_size, status.st_mtime_ns, status.st_ctime_ns)

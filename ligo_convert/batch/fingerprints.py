"""What a conversion reads on this machine, told from names, sizes and dates: cheap enough to be asked for every entry of a manifest.

What comes in: a recipe, or places. What goes out: a digest that is another one where any of the files was written to. It says that
something has changed, never what a file holds: the digests that a run takes itself do that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ligo_convert.data.corpus import local_paths
from ligo_convert.errors import LigoError
from ligo_convert.recipes.recipe import Recipe, is_local


def recipe_inputs(recipe: Recipe) -> Iterator[Path]:
    """Every place that a recipe reads: source, target's config, data, tokenizer. What the Hub has is known by its name and revision."""
    named = [(recipe.source.model, recipe.source_base), (recipe.target.model, recipe.base)]
    if recipe.fit is not None:
        data = recipe.fit.data
        named += [(data.tokenizer, recipe.base)]
        yield from local_paths(data, base=recipe.base)
    for place, base in named:
        if place is not None and is_local(place, base):
            yield base / Path(place).expanduser()


def inputs_digest(places: Iterable[Path]) -> str | None:
    """A digest of how files, and the files in folders, are now; None where one cannot find out."""
    digest = hashlib.sha256()
    try:
        for place in places:
            files = sorted(place.iterdir()) if place.is_dir() else [place]
            for file in files:
                digest.update(f"{file} {_fingerprint(file)}\n".encode("utf-8", "surrogateescape"))
    except (LigoError, OSError):
        return None
    return digest.hexdigest()


def _fingerprint(file: Path) -> tuple[int, ...] | None:
    """Of a file as several machines see it, so nothing that numbers disks or files. Of a folder nothing: it is no input itself."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return None if file.is_dir() else (found.st_size, found.st_mtime_ns, found.st_ctime_ns)

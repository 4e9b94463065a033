"""The example recipes that come with the package.

A wheel holds them in `ligo_convert/examples`; in a clone they are the files of `recipes/`.
"""

from __future__ import annotations

from pathlib import Path

from ligo_convert.errors import RecipeError, close_matches
from ligo_convert.recipes.recipe import SCHEMA_COMMENT, SCHEMA_FILE

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "examples", _PACKAGE.parent / "recipes")


def examples() -> dict[str, Path]:
    """Return name -> file of every example, by name."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def example_file(name: str) -> Path:
    """Return the file of an example. Raises RecipeError if there is none of this name."""
    known = examples()
    if name not in known:
        near = close_matches(name, known)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(f"no example {name!r}", where="--example", hint=f"{hint}`ligo-convert examples` lists them")
    return known[name]


def example_text(name: str) -> str:
    """Return an example as it is copied: editors find the schema from any folder."""
    text = example_file(name).read_text(encoding="utf-8")
    return schema_comment() + text[text.index("\n") + 1 :] if text.startswith(SCHEMA_COMMENT) else text


def schema_comment() -> str:
    """Return the line by which editors find the schema of a recipe."""
    return f"{SCHEMA_COMMENT}{SCHEMA_FILE}\n"


def first_sentence(path: Path) -> str:
    """Return the first sentence of the comment that an example begins with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(SCHEMA_COMMENT):
            continue
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# "))
    return " ".join(lines).partition(". ")[0].rstrip(".")

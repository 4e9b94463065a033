"""Write a recipe with the choice of `choose` filled in.

Input: the recipe's file and the record of a choice.
Output: a YAML file beside the recipe, with the recipe's own comments and order of keys.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ligo_convert.errors import OutputBusy, RecipeError
from ligo_convert.io.files import write_file
from ligo_convert.recipes.recipe import STDIN, Recipe

WIDTH = 4096  # columns before a line is broken


def check_file(recipe: Recipe, file: Path) -> None:
    """Require that a recipe can be written to `file`: it does not exist, and lies in the folder of the recipe, whose paths stay valid.

    Raises:
        OutputBusy: the file exists.
        RecipeError: the file lies in another folder, or the recipe comes from standard input.
    """
    if recipe.path.name == STDIN:
        raise RecipeError(
            "--write copies the recipe's file, and this recipe comes from standard input",
            where="--write",
            hint="give a file",
        )
    if file.absolute().parent.resolve() != recipe.path.parent.resolve():
        raise RecipeError(
            "the recipe's paths are relative to its folder, so the new recipe has to lie there",
            where="--write",
            expected=f"a file in {recipe.path.parent}",
            found=str(file),
        )
    if file.exists():
        raise OutputBusy("the file exists", where=file, hint="choose another name for --write")


def write_chosen(recipe: Recipe, record: Mapping[str, Any], file: Path) -> bool:
    """Write the recipe with the choice filled in; False, and no file, if the choice is not a growth of the recipe's source.

    `--set` and `--source` of this run are not part of it: they stand on the command line.
    """
    choice = record["choice"]
    if choice["width"] is None:
        return False
    yaml = YAML(typ="rt", pure=True)
    yaml.width = WIDTH
    yaml.preserve_quotes = True
    data = yaml.load(recipe.path.read_text(encoding="utf-8"))
    growth = data["growth"]
    growth["width"], growth["depth"] = choice["width"], choice["depth"]
    if choice["kind"] == "part way":
        data["target"] = {"config": dict(choice["asked"])}
    growth.pop("schedule", None)
    if choice["at"] is not None:
        growth["schedule"] = [{"at": choice["at"]}]
    text = io.StringIO()
    yaml.dump(data, text)
    write_file(file, text.getvalue().encode())
    return True

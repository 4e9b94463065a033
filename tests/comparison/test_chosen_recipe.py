"""The recipe that a choice is written as: the user's own, with the start, the time and the target that were chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ligo_convert.comparison.chosen_recipe import check_file, write_chosen
from ligo_convert.errors import OutputBusy, RecipeError
from ligo_convert.recipes.recipe import Recipe, load_recipe

TEXT = """\
version: 1
source: {model: org/small}
# twice as deep
target:
  config: {n_layer: 4, n_embd: 32}
growth:
  width: lemon
  depth: identity   # silent at first
  schedule: [{at: 0.9}]
output: {dir: out}
"""


def chosen(**changes: Any) -> dict[str, Any]:
    choice = {"kind": "grown at once", "width": "sparkling", "depth": "stack", "at": None, "asked": {"n_layer": 4}}
    return {"choice": choice | changes}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(TEXT)
    return load_recipe(tmp_path / "recipe.yaml")


def test_a_start_and_its_time_are_filled_in_and_all_else_stays(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "chosen.yaml"
    assert write_chosen(recipe, chosen(), file)
    found = load_recipe(file)
    assert (found.growth.width, found.growth.depth, found.growth.schedule) == ("sparkling", "stack", None)
    assert found.target.config == {"n_layer": 4, "n_embd": 32}
    assert "# twice as deep" in file.read_text()
    assert "# silent at first" in file.read_text()
    later = tmp_path / "later.yaml"
    assert write_chosen(recipe, chosen(kind="grown later", at=0.25), later)
    schedule = load_recipe(later).growth.schedule
    assert schedule is not None
    assert [stage.at for stage in schedule] == [0.25]


def test_growing_part_of_the_way_is_another_target(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "chosen.yaml"
    assert write_chosen(recipe, chosen(kind="part way", width="mean-preserving", depth="identity"), file)
    assert load_recipe(file).target.config == {"n_layer": 4}


def test_what_is_no_growth_of_the_source_is_not_written(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "chosen.yaml"
    assert not write_chosen(recipe, chosen(kind="scratch", width=None, depth=None), file)
    assert not file.exists()


def test_a_file_is_not_replaced_and_paths_stay_valid(recipe: Recipe, tmp_path: Path) -> None:
    check_file(recipe, tmp_path / "new.yaml")
    with pytest.raises(OutputBusy, match="the file exists"):
        check_file(recipe, tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="relative to its folder"):
        check_file(recipe, tmp_path / "elsewhere" / "new.yaml")
    with pytest.raises(OutputBusy):
        write_chosen(recipe, chosen(), tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == TEXT

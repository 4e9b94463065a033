"""The recipe that a choice is written as: the user's own, with the start, the time and the target that were chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ligo_convert.comparison.chosen_recipe import check_file, write_chosen
from ligo_convert.errors import OutputBusy, RecipeError
from ligo_convert.recipes.recipe import Recipe, load_recipe
from ligo_convert.recipes.schema import TrainConfig

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
    """A record of a choice; `changes` are keys of it."""
    choice = {
        **{"kind": "grown at once", "grows": True, "width": "sparkling", "depth": "stack", "at": None},
        **{"options": [], "strategy": "plain", "fit": None, "state": "reset", "warmup_steps": 0, "shape": "stable"},
        **{"follows_schedule": False, "asked": {"n_layer": 4}, "steps": 900},
        **{"optimizer": "muon", "learning_rate": 1e-5, "decay": 0.4},
    }
    return {"choice": choice | changes, "budget": {"batch_size": 8}}


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
    assert write_chosen(recipe, chosen(kind="grown later", at=0.25, state="carry"), later)
    schedule = load_recipe(later).growth.schedule
    assert schedule is not None
    assert [stage.at for stage in schedule] == [0.25]


def test_growing_part_of_the_way_is_another_target(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "chosen.yaml"
    assert write_chosen(recipe, chosen(kind="part way", width="mean-preserving", depth="identity"), file)
    assert load_recipe(file).target.config == {"n_layer": 4}


def test_what_is_no_growth_of_the_source_is_not_written(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "chosen.yaml"
    for more in (
        {"kind": "scratch", "grows": False, "width": None, "depth": None},
        {"kind": "grown on the way", "at": 0.4},
        {"options": ["token-drop"]},
        {"steps": 0},
    ):
        assert not write_chosen(recipe, chosen(**more), file)
        assert not file.exists()


def test_the_file_decides_where_a_training_starts(recipe: Recipe, tmp_path: Path) -> None:
    """With `--source`, the source of the trials is another than that of the file, which `train` reads."""
    (tmp_path / "recipe.yaml").write_text(
        TEXT.replace("{model: org/small}", "{pretrain: {config: {model_type: gpt2}, steps: 9}}")
    )
    over = load_recipe(tmp_path / "recipe.yaml", source="org/small")
    assert over.source.pretrain is None
    assert not write_chosen(over, chosen(kind="grown later", at=0.25, state="carry"), tmp_path / "chosen.yaml")


def train_of(recipe: Recipe, tmp_path: Path, record: dict[str, Any] | None = None) -> TrainConfig:
    file = tmp_path / "chosen.yaml"
    file.unlink(missing_ok=True)
    assert write_chosen(recipe, record or chosen(), file)
    found = load_recipe(file).train
    assert found is not None
    return found


def test_train_gets_what_is_advised(recipe: Recipe, tmp_path: Path) -> None:
    found = train_of(recipe, tmp_path)
    advised = {"steps": 900, "batch_size": 8, "optimizer": "muon", "learning_rate": 1e-5, "decay": 0.4}
    assert {key: getattr(found, key) for key in found.model_fields_set} == advised
    cosine = train_of(recipe, tmp_path, chosen(shape="cosine"))
    assert (cosine.schedule, "decay" in cosine.model_fields_set) == ("cosine", False)


def test_train_gets_the_settings_of_the_trials(tmp_path: Path) -> None:
    more = """\
fit: {steps: 5, sequence_length: 64, mask_probability: 0.3, data: {stdlib: true}}
compare: {weight_decay: 0.2, warmup_fraction: 0.1}
"""
    (tmp_path / "recipe.yaml").write_text(TEXT + more)
    found = train_of(load_recipe(tmp_path / "recipe.yaml"), tmp_path)
    expected = {"sequence_length": 64, "mask_probability": 0.3, "weight_decay": 0.2, "warmup_steps": 90}
    assert {key: getattr(found, key) for key in expected} == expected


def test_what_the_section_train_sets_itself_stays(tmp_path: Path) -> None:
    own = """\
train:
  # mine
  learning_rate: 2e-3
  steps: 70
  evaluate_every: 7   # often

publish: {repo: a/b}
"""
    (tmp_path / "recipe.yaml").write_text(TEXT + own)
    found = train_of(load_recipe(tmp_path / "recipe.yaml"), tmp_path)
    # Its steps are of the batches that it has.
    advised = {"optimizer": "muon", "decay": 0.4}
    kept = {"steps": 70, "learning_rate": 2e-3, "evaluate_every": 7}
    assert {key: getattr(found, key) for key in found.model_fields_set} == advised | kept
    text = (tmp_path / "chosen.yaml").read_text()
    assert "# mine" in text
    assert "evaluate_every: 7   # often" in text
    (tmp_path / "recipe.yaml").write_text(f"{TEXT}train: {{steps: 70, schedule: cosine}}\n")
    found = train_of(load_recipe(tmp_path / "recipe.yaml"), tmp_path)
    # A cosine has no decay.
    assert found.model_fields_set == {"steps", "schedule", "optimizer", "learning_rate"}
    assert (found.steps, found.schedule) == (70, "cosine")


def test_a_file_is_not_replaced_and_paths_stay_valid(recipe: Recipe, tmp_path: Path) -> None:
    check_file(recipe, tmp_path / "new.yaml")
    with pytest.raises(OutputBusy, match="the file exists"):
        check_file(recipe, tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="relative to its folder"):
        check_file(recipe, tmp_path / "elsewhere" / "new.yaml")
    with pytest.raises(OutputBusy):
        write_chosen(recipe, chosen(), tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == TEXT

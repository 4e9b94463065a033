"""Every recipe that is shipped loads and plans, offline, at the full size of both models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from support.tiny import empty_model

from ligo_convert.conversion.plan import Plan, plan_recipe
from ligo_convert.conversion.train_plan import plan_with_training
from ligo_convert.errors import RecipeError
from ligo_convert.recipes.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAPER = {
    "gpt2_base_to_medium",
    "bert_small_to_base",
    "bert_base_to_large",
    "roberta_small_to_base",
    "cait_xs_to_s",
    "deit_s_to_b",
}
# A machine of 24 GB with two cores is to be enough.
MEMORY = 12e9


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    # The client reads its setting when it is imported, so the constant is set, too.
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_every_pair_that_the_paper_grew_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES} > PAPER


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_plans_offline(path: Path, tmp_path: Path) -> None:
    plan, training = plan_with_training(load_recipe(path, out=str(tmp_path / "out")))
    # Where norms come after sums, an uneven width is near at best.
    assert plan.start.verdict == ("exact" if plan.family.norm.placement == "pre" else "near")
    for config, found in (
        (plan.start.source, plan.parameters["source"]),
        (plan.start.target, plan.parameters["target"]),
    ):
        with torch.device("meta"):
            model = empty_model({**config, "architectures": [plan.family.architecture]})
        assert found == sum(parameter.numel() for parameter in model.parameters())
    # Without a fit weights are streamed; whether models are run to measure what was kept depends on the machine.
    assert plan.memory < MEMORY or plan.recipe.fit is None
    assert training is None or training.memory < MEMORY


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_first_line_tells_its_sizes(path: Path, tmp_path: Path) -> None:
    """A figure such as `124M` in the first lines of a recipe is one of the two models', to its last digit."""
    plan, _ = plan_with_training(load_recipe(path, out=str(tmp_path / "out")))
    told = re.findall(r"(\d+(?:\.\d)?)M\)", path.read_text().split("\n#\n")[0])
    known = [plan.parameters[side] / 1e6 for side in ("source", "target")]
    for figure in told:
        digits = len(figure.partition(".")[2])
        assert any(round(number, digits) == float(figure) for number in known), (figure, known)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_carries_its_sources_config(path: Path) -> None:
    source = load_recipe(path).source
    assert source.config or (source.pretrain is not None and source.pretrain.config)


def planned(tmp_path: Path, **sections: object) -> Plan:
    recipe = {"version": 1, "growth": {"width": "lemon", "depth": "identity"}, "output": {"dir": str(tmp_path / "out")}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**recipe, **sections}))
    return plan_recipe(load_recipe(path))


def test_a_target_that_is_named_keeps_the_sources_classes(tmp_path: Path) -> None:
    """A name of timm's stands for a thousand classes; a source that was trained on seven keeps its head."""
    source = {"config": {"architecture": "deit_small_patch16_224", "num_classes": 7}}
    plan = planned(tmp_path, source=source, target={"model": "deit_base_patch16_224"})
    assert plan.start.target["num_classes"] == 7
    assert plan.start.drawn_rows == ()
    assert plan.start.verdict == "exact"


ENCODER = {"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 2}


def test_what_has_no_loss_cannot_be_trained_first(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no training loss"):
        planned(
            tmp_path,
            source={"pretrain": {"config": ENCODER, "steps": 2}},
            target={"config": {"num_hidden_layers": 3}},
            fit={"steps": 2, "data": {"stdlib": True}},
        )


@pytest.mark.parametrize("key", ["micro_batch_size", "batch_size"])
def test_sequences_are_compared_with_others(key: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"fit.{key}: .*comparing sequences"):
        planned(
            tmp_path,
            source={"config": ENCODER},
            target={"config": {"num_hidden_layers": 3}},
            fit={"steps": 2, "data": {"stdlib": True}, key: 1},
        )

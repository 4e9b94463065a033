"""Every recipe that is shipped loads and plans, offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from ligo_convert.plan import plan_recipe
from ligo_convert.recipe import load_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
PARAMETERS = {"gpt2_base_to_medium": (124_439_808, 354_823_168), "quickstart": (446_304, 1_337_344)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_plans_offline(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client reads its setting when it is imported, so the constant is set, too.
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    plan = plan_recipe(load_recipe(path, out=str(tmp_path / "out")))
    assert plan.start.verdict == "exact"
    assert (plan.parameters["source"], plan.parameters["target"]) == PARAMETERS[path.stem]
    # GPT2-Base to Medium is to fit in 12 GB.
    assert plan.memory < 12e9

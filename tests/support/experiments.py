"""Comparisons as planned, from configs alone: no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.source_models import SIZES, fit_section, recipe_text, write_text

from ligo_convert.comparison.experiment import Experiment, make_experiment
from ligo_convert.conversion.plan import Plan, make_plan
from ligo_convert.recipes.recipe import load_recipe

GPT2: dict[str, object] = {"model_type": "gpt2", **SIZES["gpt2"]}
# Decays that leave room for a trunk that runs share.
SHORT_DECAYS: dict[str, object] = {"decays": [0.2, 0.4]}
TARGET: dict[str, object] = {"n_embd": 32, "n_head": 4, "n_layer": 4}


def plan_of(folder: Path, target: Mapping[str, object] = TARGET, /, **sections: object) -> Plan:
    """A plan from configs alone, of a source that lies elsewhere."""
    found = {"source": {"model": "org/small", "config": GPT2}, "fit": fit_section(), **sections}
    path = folder / "recipe.yaml"
    path.write_text(recipe_text("org/small", target, **found))
    return make_plan(load_recipe(path), None, check_disk=False)


def experiment_of(
    folder: Path, target: Mapping[str, object] = TARGET, /, *, methods: Sequence[str] | None = None, **compare: object
) -> Experiment:
    """A comparison with a source that lies elsewhere."""
    plan = plan_of(folder, target, compare={"steps": 1000, **SHORT_DECAYS, **compare})
    return make_experiment(plan, methods=methods, steps=None)


def trained_here(
    folder: Path,
    target: Mapping[str, object] = TARGET,
    /,
    *,
    methods: Sequence[str],
    pretrain: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
    **compare: object,
) -> Experiment:
    """A comparison whose source is trained by the recipe: all is known of it."""
    (folder / "corpus").mkdir(exist_ok=True)
    write_text(folder / "corpus" / "a.txt")
    recipe = json.loads(
        recipe_text("", target, fit={**fit_section(), **(fit or {})}, compare={"steps": 10, **SHORT_DECAYS, **compare})
    )
    settings = {"config": GPT2, "steps": 11, "batch_size": 3, "sequence_length": 16}
    recipe["source"] = {"pretrain": {**settings, **(pretrain or {})}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    plan = make_plan(load_recipe(folder / "recipe.yaml"), None, check_disk=False)
    return make_experiment(plan, methods=methods, steps=None)

"""`mango` in a comparison: its fit is charged by its own cost, and its result is the target's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.source_models import fit_section, recipe_text, write_checkpoint, write_text

from ligo_convert.comparison.experiment import make_experiment
from ligo_convert.comparison.scheduler import CHECKPOINT, TrainingJob
from ligo_convert.comparison.worker import JobRunner
from ligo_convert.conversion.plan import make_plan, open_planned
from ligo_convert.conversion.splits import load_splits
from ligo_convert.families.flops import growth_flops
from ligo_convert.growth.ring import ring_flops
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import load_recipe


def test_a_comparison_learns_rings_as_it_learns_operators(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    write_text(tmp_path / "corpus" / "a.txt")
    model = write_checkpoint(tmp_path / "source")
    fit = fit_section(text=str(tmp_path / "corpus" / "*.txt"), steps=8)
    target = {"n_embd": 24, "n_head": 3, "n_layer": 4}
    compare: dict[str, Any] = {"steps": 400, "fit_share": 1.0}
    (tmp_path / "recipe.yaml").write_text(recipe_text(model, target, fit=fit, compare=compare))
    source = open_planned(load_recipe(tmp_path / "recipe.yaml"), weights=True)
    assert source is not None
    with source:
        plan = make_plan(load_recipe(tmp_path / "recipe.yaml"), source, check_disk=False)
        experiment = make_experiment(plan, methods=["ligo", "mango"], steps=None)
        slices = load_splits(plan, source.root, progress=Progress(), train_examples=experiment.most_examples)
    ligo, mango = (experiment.entries[name] for name in ("ligo", "mango"))
    steps = experiment.fit_steps(mango)
    assert steps == experiment.fit_steps(ligo) == 8
    family, start = plan.family, plan.start
    rings, maps = (
        ring_flops(family, start.source, start.target, rank=1),
        growth_flops(family, start.source, start.target),
    )
    assert experiment.fit_flops(mango) - experiment.fit_flops(ligo) == 4 * steps * (rings - maps)

    runner = JobRunner(experiment=experiment, slices=slices, source=model, work=tmp_path / "work", device="cpu")
    runner.run(TrainingJob(name=CHECKPOINT, kind="source"))
    job = TrainingJob(name="fit", kind="fit", entry="mango", parent=CHECKPOINT)
    found = runner.run(job)
    assert found["steps"] == steps
    state = runner.saved("fit")
    assert state.config == dict(start.target)
    names = {row.name(layer) for row in family.rows_for(start.target) for layer in family.layers(row, start.target)}
    assert set(state.tensors) == names
    assert not state.moments

"""The workers of a comparison: what they are given, and what does not change their results."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.experiments import GPT2, trained_here
from support.source_models import write_text

from ligo_convert.comparison import study
from ligo_convert.comparison.choose import choose
from ligo_convert.comparison.compare import compare
from ligo_convert.comparison.experiment import Choice
from ligo_convert.comparison.scheduler import TrainingJob
from ligo_convert.comparison.worker import JobRunner
from ligo_convert.data.examples import TokenExamples
from ligo_convert.errors import MachineError
from ligo_convert.recipes.recipe import load_recipe
from ligo_convert.training.runs import DRAWN

BATCH, BUDGET, STEPS = 6, 1000, 8


class Begun(Exception):
    pass


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a comparison gives to its workers, when it is about to train."""
    place, found = tmp_path_factory.mktemp("comparison"), dict[str, Any]()
    (place / "corpus").mkdir()
    write_text(place / "corpus" / "b.txt", lines=4000)
    trained_here(place, {"n_layer": 4}, methods=["late"], batch_size=BATCH, steps=BUDGET)

    def begin(_self: object, arguments: Mapping[str, Any]) -> None:
        found.update(arguments)
        raise Begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.JobLoop, "carry_out", begin)
        with pytest.raises(Begun):
            compare(load_recipe(place / "recipe.yaml"), place / "out", methods=["late"])
    return found


def test_workers_map_the_tokens_that_lie_on_the_disk(given: Mapping[str, Any]) -> None:
    slices, work = given["slices"], given["work"]
    nbytes = (work / "tokens" / "ids.bin").stat().st_size
    assert nbytes > 50_000
    assert isinstance(slices.train, TokenExamples)
    data = pickle.dumps(slices)
    assert len(data) < 4000, "what a worker is given does not grow with the text"
    theirs = pickle.loads(data)
    for name in ("train", "validation", "test"):
        mapped = getattr(theirs, name).blocks
        assert isinstance(mapped.base, np.memmap)
        assert np.array_equal(mapped, getattr(slices, name).blocks)
    assert theirs.digest == slices.digest


def trained(given: Mapping[str, Any], work: Path, **settings: object) -> tuple[JobRunner, dict[str, Any]]:
    """A run of a few steps, with other settings of the comparison."""
    experiment = given["experiment"]
    experiment = replace(experiment, settings=experiment.settings.model_copy(update=settings))
    choice = Choice(optimizer="adamw", learning_rate=1e-2, decay=0.4)
    run = experiment.make_run(experiment.entries["source-size"], choice, seed=0, steps=STEPS)
    arguments = {name: value for name, value in given.items() if name != "family_files"}
    runner = JobRunner(**{**arguments, "experiment": experiment, "work": work})
    return runner, runner.run(TrainingJob(name="piece", kind="train", run=run, last=STEPS))


def test_micro_batches_do_not_change_what_is_learned(given: Mapping[str, Any], tmp_path: Path) -> None:
    whole, found = trained(given, tmp_path / "whole", micro_batch_size=BATCH)
    parts, other = trained(given, tmp_path / "parts", micro_batch_size=4)
    assert (whole.setup.micro_batch_size, parts.setup.micro_batch_size) == (BATCH, 4)
    # Gradients are summed in another order: float32's last bits, through Adam.
    assert other["loss"] == pytest.approx(found["loss"], abs=1e-5)
    assert found["loss"] < 0.99 * np.log(float(GPT2["vocab_size"]))  # type: ignore[arg-type]


def test_micro_batches_are_those_of_the_fit_without_a_key(given: Mapping[str, Any], tmp_path: Path) -> None:
    runner, _ = trained(given, tmp_path)
    assert runner.setup.micro_batch_size == min(given["experiment"].plan.micro_batch, BATCH)
    assert not runner.setup.compiled


def test_a_source_of_another_optimizer_leaves_no_state_that_the_methods_own_cannot_read(
    given: Mapping[str, Any], tmp_path: Path
) -> None:
    runner, _ = trained(given, tmp_path)
    entry, parent, before = runner.experiment.entries["source-size"], DRAWN, math.inf
    for optimizer in ("muon", "adamw"):
        choice = Choice(optimizer=optimizer, learning_rate=1e-2, decay=0.4)  # type: ignore[arg-type]
        run = runner.experiment.make_run(entry, choice, seed=0, steps=STEPS, start=parent)
        found = runner.run(TrainingJob(name=optimizer, kind="train", run=run, last=STEPS, parent=parent))
        assert found["loss"] < before, optimizer
        parent, before = optimizer, found["loss"]


@pytest.mark.parametrize("command", [compare, choose])
def test_an_optimizer_that_torch_lacks_is_refused_at_once(
    command: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read or trained, although scratch would try AdamW first."""
    trained_here(tmp_path, {"n_layer": 4}, methods=["late"], optimizers=["adamw", "muon"])
    monkeypatch.delattr(torch.optim, "Muon")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MachineError, match="no Muon") as error:
        command(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "out")
    assert error.value.exit_code == 5
    assert "recipe.yaml:" in error.value.where
    assert sorted(tmp_path.iterdir()) == before

"""The bytes of an output do not depend on the number of threads, cores or jobs.

The sizes are those at which the matrix products and gradients of this machine's libraries do depend on it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.source_models import fit_section, recipe_text, tokenizer_files, write_checkpoint, write_text

from ligo_convert.batch.job import Assignment, run_assignment
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.conversion.convert import convert
from ligo_convert.conversion.plan import plan_json, plan_recipe
from ligo_convert.environment import compute_threads
from ligo_convert.errors import MachineError
from ligo_convert.families.flops import forward_flops
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.registry import FAMILIES
from ligo_convert.growth.growth_plan import GrowthSettings, plan_growth
from ligo_convert.growth.initialize import initial_operator, learnable
from ligo_convert.growth.stream import grow, target_specs
from ligo_convert.in_memory import grow as ligo_grow
from ligo_convert.progress import Progress, Task
from ligo_convert.recipes.recipe import load_recipe
from ligo_convert.training.threads import default_threads

COUNTS = (1, 2, 4)


def test_dense_maps_grow_the_same_bytes_with_any_number_of_threads() -> None:
    family = FAMILIES["gpt2"]
    sizes: dict[str, object] = {"vocab_size": 37, "n_positions": 5, "n_embd": 1028, "n_head": 4, "n_layer": 1}
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes}
    changes: dict[str, object] = {"n_embd": 1100}
    target = family.resize(config, changes, where="target")
    settings = GrowthSettings(width="lemon", depth="copy", keying="shared", tie=None, seed=0)
    plan = plan_growth(family, settings, config, target, asked=changes, where="growth")
    named = {spec.name: spec for _, _, spec in family.tensors_of(family.rows_for(config), config, dtype="F32")}
    inventory = claim_tensors(family, config, named, label="source")
    operator = learnable(initial_operator(plan), plan.family)
    specs = target_specs(plan.family, inventory, plan.target, dtype=None)
    names = frozenset({"transformer.wte.weight", "transformer.wpe.weight"})

    def read(name: str) -> Any:
        spec: TensorSpec = named[name]
        values = np.random.default_rng(len(name)).standard_normal(spec.elements, dtype=np.float32)
        return bytearray(values.tobytes())

    def grown(threads: int) -> dict[str, str]:
        with compute_threads(threads):
            found = {
                name: hashlib.sha256(data).hexdigest()
                for name, data in grow(read, plan.family, inventory, operator, specs, wanted=names)
            }
            assert torch.get_num_threads() == threads, "growth gives the threads back"
        return found

    first = grown(COUNTS[0])
    assert first.keys() == names
    assert all(grown(count) == first for count in COUNTS[1:])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "corpus").mkdir()
    write_text(tmp_path / "corpus" / "a.txt")
    (tmp_path / "tokenizer").mkdir()
    for name, data in tokenizer_files("gpt2", tmp_path / "tokenizer-training").items():
        (tmp_path / "tokenizer" / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(place: Path) -> dict[str, str]:
    """Digests of what a recipe's bytes are."""
    names = ("model.safetensors", "ligo/operator.safetensors", "ligo/source/model.safetensors")
    return {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in names}


def test_a_trained_source_and_a_fit_are_the_same_bytes_in_any_job(place: Path) -> None:
    """A member of a batch gets a share of the cores; it trains with the threads of its recipe."""
    pretrain = {
        "config": {"model_type": "gpt2", "vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_head": 2, "n_layer": 1},
        "steps": 2,
        "batch_size": 4,
        "sequence_length": 32,
    }
    fit = fit_section(
        batch_size=8, steps=1, data={"text": ["corpus/*.txt"], "tokenizer": "tokenizer"}, threads=4, sequence_length=32
    )
    (place / "recipe.yaml").write_text(
        recipe_text("", {"n_embd": 48, "n_head": 3}, source={"pretrain": pretrain}, fit=fit).replace('"model": "",', "")
    )
    found = []
    for count in (1, 4):
        assignment = Assignment(
            name="one",
            recipe=str(place / "recipe.yaml"),
            overrides=(),
            source=None,
            operator=None,
            out=str(place / f"out-{count}"),
            publish=None,
            cache=str(place / f"cache-{count}"),
            device="cpu",
            threads=count,
        )
        with compute_threads(torch.get_num_threads()):
            result = run_assignment(assignment, Progress())
        assert result["state"] == "done", result["why"]
        found.append(written(place / f"out-{count}"))
    assert found[0] == found[1]
    # The training of the source is no part of the fit: it has its own time and its own operations.
    seconds = result["report"]["seconds"]
    assert list(seconds) == ["plan", "pretrain", "fit", "write", "verify"]
    assert seconds["pretrain"] > 0
    statement = json.loads((place / "out-1" / "ligo" / "provenance.json").read_text())
    (metrics,) = (part for part in statement["predicate"]["runDetails"]["byproducts"] if part["name"] == "metrics")
    planned = plan_recipe(load_recipe(place / "recipe.yaml", out=str(place / "new")))
    assert metrics["annotations"]["flops"] == planned.flops
    assert planned.flops["pretrain"] == 2 * 3 * forward_flops(
        planned.inventory.family, planned.start.source, tokens=4 * 32, sequence_length=32
    )
    text = (place / "out-1" / "ligo" / "recipe.yaml").read_text()
    assert "threads: 4" in text, "the record says with how many"


def test_the_threads_follow_from_the_recipe_and_are_told(place: Path) -> None:
    assert [default_threads(flops) for flops in (10**8, 10**10, 10**13)] == [1, 4, 8]
    write_checkpoint(place / "source")
    for asked, expected in ((None, 1), (3, 3)):
        (place / "recipe.yaml").write_text(
            recipe_text("./source", {"n_embd": 24, "n_head": 3}, fit=fit_section(threads=asked))
        )
        recipe = load_recipe(place / "recipe.yaml")
        with compute_threads(2):
            assert plan_json(plan_recipe(recipe))["threads"] == expected


@pytest.mark.parametrize("variable", ["OMP_THREAD_LIMIT", "OMP_DYNAMIC"])
def test_an_environment_that_withholds_threads_is_refused(
    variable: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(place / "source")
    (place / "recipe.yaml").write_text(recipe_text("./source", {"n_embd": 24, "n_head": 3}, fit=fit_section(threads=2)))
    monkeypatch.setenv(variable, "1")
    with pytest.raises(MachineError, match=rf"(?s)reproducible.*{variable}=1|{variable}=1.*reproducible"):
        convert(load_recipe(place / "recipe.yaml"))
    # Growing alone and measuring change no bytes.
    (place / "recipe.yaml").write_text(recipe_text("./source", {"n_embd": 24, "n_head": 3}))
    convert(load_recipe(place / "recipe.yaml"))


def test_growth_in_memory_has_the_threads_of_its_work_and_gives_them_back() -> None:
    seen: list[int] = []

    class Watch(Progress):
        @contextmanager
        def task(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Task]:
            seen.append(torch.get_num_threads())
            yield Task()

    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_head": 2, "n_layer": 1}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    batches = [torch.randint(0, 32, (4, 16)) for _ in range(3)]
    with compute_threads(3):
        ligo_grow(model, {"n_embd": 24, "n_head": 3}, data=batches, steps=1, progress=Watch())
        assert torch.get_num_threads() == 3
    assert set(seen) == {1}


@pytest.mark.parametrize("count", COUNTS)
def test_a_run_of_a_comparison_has_the_threads_of_its_recipe(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from ligo_convert.comparison import worker

    runner = worker.JobRunner.__new__(worker.JobRunner)
    runner.experiment, runner._warnings = SimpleNamespace(settings=SimpleNamespace(threads=3)), []  # type: ignore[assignment]
    monkeypatch.setattr(worker, "_KINDS", {"train": lambda runner, job, on_step: {"threads": torch.get_num_threads()}})
    with compute_threads(count):
        assert runner.run(SimpleNamespace(kind="train"))["threads"] == 3  # type: ignore[arg-type]
        assert torch.get_num_threads() == count


def test_the_precision_of_a_fit_is_that_of_its_arithmetic(place: Path) -> None:
    write_checkpoint(place / "source", dtype=torch.float64)
    (place / "recipe.yaml").write_text(
        recipe_text("./source", {"n_embd": 24, "n_head": 3}, fit=fit_section(steps=1, heldout_tokens=32))
    )
    began = time.monotonic()
    metrics = convert(load_recipe(place / "recipe.yaml")).metrics
    took = time.monotonic() - began
    assert metrics["fit"]["precision"] == "float64"
    assert 0.8 * took <= sum(metrics["seconds"].values()) <= took, "the stages are all of a run"

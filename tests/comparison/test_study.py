"""How a study goes on after a stop: what it has staged and what it is given, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.experiments import trained_here
from support.faults import around

from ligo_convert.comparison import study
from ligo_convert.comparison.compare import compare
from ligo_convert.comparison.finished_jobs import JOBS, finished_jobs
from ligo_convert.comparison.scheduler import TrainingJob
from ligo_convert.conversion.step_results import keep_result, staged_results
from ligo_convert.io.files import partial_path
from ligo_convert.io.staging import WORK, Staging
from ligo_convert.io.strict_json import json_bytes
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import load_recipe


class Stopped(Exception):
    pass


class Told(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


# --- a stop at the end ------------------------------------------------------------------------------------------------


def result_of(loop: study.JobLoop, job: TrainingJob) -> dict[str, Any]:
    """What a worker would return."""
    if job.run is None:
        return {"flops_a_second": 1e9}
    flops = [loop.experiment.run_flops(loop.experiment.baseline, job.run.steps, done=step) for step in (0, job.last)]
    points = [
        {"step": step, "flops": cost, "loss": 5.0 - step / 100} for step, cost in zip((0, job.last), flops, strict=True)
    ]
    loss = 5.0 - job.last / 100
    return {"curve": points, "flops": flops[-1], "loss": loss, "validation_loss": loss, "accuracy": None}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A recipe whose source no entry uses; jobs are done in no time, and the names of those that were done."""
    trained_here(tmp_path, methods=["late"], steps=100)
    names: list[str] = []

    def work(loop: study.JobLoop, _arguments: Mapping[str, Any]) -> None:
        while (job := loop.next_job()) is not None:
            names.append(job.name)
            loop.done(job, result_of(loop, job))

    monkeypatch.setattr(study.JobLoop, "carry_out", work)
    # No states are written.
    monkeypatch.setattr(study.JobLoop, "_is_there", lambda _loop, _name: True)
    return names


def stop_at(effect: str, out: Path) -> None:
    """Run the comparison until it would do this effect on its staging directory, or on the work directory in it."""
    places = (partial_path(out), partial_path(out) / WORK)

    def act(name: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        if name == effect and path in places:
            raise Stopped
        return function(path, *arguments)

    with around(act), pytest.raises(Stopped):
        compare(load_recipe(out.parent / "recipe.yaml"), out, methods=["late"])


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["rename", "rename_new"])
def test_a_stop_before_the_output_has_its_name_costs_no_job(effect: str, trained: list[str], tmp_path: Path) -> None:
    """Before the work directory is moved away and after that: the files of the source that no entry uses are deleted by then."""
    out = tmp_path / "out"
    stop_at(effect, out)
    assert not (partial_path(out) / "ligo" / "source").exists()
    count = len(trained)
    assert count > 10
    told = Told()
    done = compare(load_recipe(tmp_path / "recipe.yaml"), out, methods=["late"], progress=told)
    assert done.changed
    assert len(trained) == count, "no job is done again"
    assert "resuming from the staged files of an earlier run" in told.said
    assert not [text for text in told.warned if "done again" in text]
    assert not (out / "ligo" / "source").exists()


@pytest.mark.slow
def test_a_damaged_tokenizer_of_the_source_is_made_again_and_costs_no_job(trained: list[str], tmp_path: Path) -> None:
    out, found = tmp_path / "out", list[bytes]()
    file = partial_path(out) / "ligo" / "source" / "tokenizer.json"

    def keep(*_arguments: object, **_names: object) -> None:
        found.append(file.read_bytes())
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "_stage_weakest_source", keep)
        for _ in range(2):
            with pytest.raises(Stopped):
                compare(load_recipe(tmp_path / "recipe.yaml"), out, methods=["late"])
            file.write_bytes(found[0][:-9])
    assert found[1] == found[0]
    assert compare(load_recipe(tmp_path / "recipe.yaml"), out, methods=["late"]).changed
    assert len(trained) == len(set(trained)), "no job is done again"


# --- finished jobs that are named later -------------------------------------------------------------------------------

GROUND = {"recipe, source and data": "r", "training split": "s"}


def finished(folder: Path, jobs: Mapping[str, Mapping[str, Any]], ground: Mapping[str, Any] = GROUND) -> Path:
    (folder / JOBS).parent.mkdir(parents=True)
    (folder / JOBS).write_bytes(json_bytes(finished_jobs(jobs, ground)))
    return folder


def reused(out: Path, *folders: Path) -> tuple[dict[str, Any], Told]:
    """What a study takes from the folders, where it has done the job `own` itself."""
    told = Told()
    with Staging.open(out, key="a" * 64) as staging:
        found = study._reused(staging, folders, GROUND, told, noun="comparison")
        keep_result(staging, "jobs", {"own": {"loss": 1.0}})
    return found, told


def test_a_resumed_study_adds_the_finished_jobs_that_are_named_later(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = finished(tmp_path / "first", {"a": {"loss": 2.0}})
    second = finished(tmp_path / "second", {"own": {"loss": 3.0}, "b": {"loss": 4.0}})
    assert reused(out)[0] == {}
    found, told = reused(out, first)
    assert found == {"a": {"loss": 2.0}}
    assert told.said == ["1 finished jobs are reused"]
    # What the study has done itself stays its own.
    assert reused(out, second)[0] == {"a": {"loss": 2.0}, "b": {"loss": 4.0}}
    assert reused(out)[0] == {"a": {"loss": 2.0}, "b": {"loss": 4.0}}


def test_a_folder_that_cannot_be_reused_later_costs_nothing_that_is_staged(tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = finished(tmp_path / "good", {"a": {"loss": 2.0}})
    other = finished(tmp_path / "other", {"b": {"loss": 2.0}}, {**GROUND, "training split": "t"})
    reused(out)
    found, told = reused(out, tmp_path / "gone", other, good)
    assert found == {"a": {"loss": 2.0}}
    gone, differs = told.warned
    assert gone.startswith(f"{tmp_path / 'gone' / JOBS}: no finished jobs to reuse: No such file")
    assert "the comparison cannot be reused: it differs in training split" in differs
    assert all(text.endswith("the comparison goes on with the jobs that it has") for text in told.warned)
    with Staging.open(out, key="a" * 64) as staging:
        assert staged_results(staging)["jobs"] == {"own": {"loss": 1.0}}

"""A whole comparison through the command line: what it leaves, what a second run does, what it refuses, how it goes on after a stop."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.damage import DAMAGES
from support.warm_cli import Ended, Running, WarmCli

METHODS = ["scratch", "late", "lemon", "ligo-paper", "freeze+layer-drop"]
RECIPE: Mapping[str, Any] = {
    "version": 1,
    "source": {
        "pretrain": {
            "config": {
                "model_type": "gpt2",
                "vocab_size": 300,
                "n_positions": 16,
                "n_embd": 16,
                "n_head": 2,
                "n_layer": 2,
            },
            "steps": 10,
            "batch_size": 4,
            "sequence_length": 16,
        }
    },
    "target": {"config": {"n_embd": 24, "n_head": 3, "n_layer": 4}},
    "growth": {"width": "lemon", "depth": "identity"},
    "fit": {
        "steps": 4,
        "batch_size": 4,
        "sequence_length": 16,
        "heldout_tokens": 128,
        "evaluate_every": 2,
        "data": {"stdlib": True},
    },
    "compare": {
        "steps": 20,
        "methods": METHODS,
        "learning_rates": [5e-3],
        "rate_factors": [1.0],
        "optimizers": ["adamw", "muon"],
        "decays": [0.4],
        "tuning_fraction": 0.5,
        "scratch_fractions": [0.5, 1.0],
        "budget_fractions": [0.5, 1.0],
        "controls": [],
        "fit_examples": 4,
        "eval_points": 4,
    },
    "output": {"dir": "out/grown"},
}
FILES = {"compare.json", "compare.png", "report.html", "ligo/jobs.json"}
PATIENCE = 90.0  # seconds that a run may take to come to a point; a busy machine is slow


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmCli]:
    server = WarmCli(tmp_path_factory.mktemp("streams"))
    yield server
    server.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    return tmp_path


COMMAND = ("compare", "recipe.yaml", "--out", "out", "--json")


@pytest.fixture(scope="module")
def whole(warm: WarmCli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A comparison that nothing has stopped, by one worker."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    done = warm.run(*COMMAND, "--jobs", "1", "--logger", "tensorboard=curves", cwd=folder)
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture
def record(whole: tuple[Path, Ended]) -> dict[str, Any]:
    found = json.loads((whole[0] / "out" / "compare.json").read_text())
    assert isinstance(found, dict)
    return found


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(place: Path) -> list[str]:
    """What lies beside the recipe and the curves for viewers."""
    return sorted(path.name for path in place.iterdir() if path.name not in ("recipe.yaml", "curves"))


# --- what it leaves ---------------------------------------------------------------------------------------------------


def test_the_output_is_whole_and_nothing_lies_beside_it(whole: tuple[Path, Ended]) -> None:
    folder, _ = whole
    assert names(folder) == ["out"]
    found = {str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*") if path.is_file()}
    # And the source that was trained for it.
    assert {name for name in found if not name.startswith("ligo/source/")} == FILES
    assert "ligo/source/model.safetensors" in found
    assert (folder / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "out" / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert all(name in page for name in METHODS)


def test_every_finished_run_has_a_curve_for_viewers(whole: tuple[Path, Ended], record: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = whole
    curves = {}
    for path in (folder / "curves").iterdir():
        events = EventAccumulator(str(path)).Reload()
        curves[path.name] = [(one.step, one.value) for one in events.Scalars("loss")]
    for name, entry in {**record["methods"], **record["controls"]}.items():
        longest = [(point["step"], pytest.approx(point["loss"], rel=1e-6)) for point in entry["curve"]]
        named = "".join(letter if letter.isalnum() or letter in "-_.=+" else "_" for letter in f"{name} (seed 0")
        assert longest in [curve for run, curve in curves.items() if run.startswith(named)], name
    # And the shorter ones.
    assert len(curves) > len(record["methods"]) + len(record["controls"])


def test_one_object_is_printed(whole: tuple[Path, Ended], record: dict[str, Any]) -> None:
    _, done = whole
    assert done.out.count("\n") == 1
    assert json.loads(done.out) == {"out": "out", "changed": True, **record}


def test_the_layout_is_as_documented(record: dict[str, Any]) -> None:
    """Ends, curves and savings of every method, and the models that never grow beside them."""
    assert record["format"] == "ligo-comparison/3"
    assert list(record["methods"]) == METHODS
    assert list(record["controls"]) == ["source-size"]
    for name, entry in {**record["methods"], **record["controls"]}.items():
        assert entry["savings"].keys() == {"paper", "net"}
        flops = [end["flops"] for end in entry["ends"]]
        assert flops == sorted(set(flops)), name
        assert len(flops) == 2
        assert all(isinstance(end["loss"], float) for end in entry["ends"])
        steps = [point["step"] for point in entry["curve"]]
        assert steps == sorted(set(steps)), name
        assert steps[0] == 0
        assert steps[-1] == entry["ends"][-1]["step"]
        assert entry["curve"][-1]["loss"] == entry["ends"][-1]["loss"], (
            "what is read at the end is the end of the curve"
        )
        # One step of the target is a twentieth; costs of stages are rounded to steps.
        assert flops[-1] == pytest.approx(record["budget"]["flops"], rel=0.15), name
    assert {run["optimizer"] for run in record["optimizer"]["tried"]} == {"adamw", "muon"}
    assert record["optimizer"]["chosen"]["learning_rate"] == 5e-3
    assert [source["steps"] for source in record["sources"]] == [10]


def test_curves_begin_where_their_starts_are(record: dict[str, Any]) -> None:
    """An exact start at the source's own loss; drawn weights near that of guessing; what is fitted has paid for it before it begins."""
    first = {name: method["curve"][0] for name, method in record["methods"].items()}
    (source,) = record["sources"]
    # Growth is exact to float32's rounding.
    assert first["lemon"]["loss"] == pytest.approx(source["loss"], abs=1e-4)
    assert first["freeze+layer-drop"]["loss"] == pytest.approx(source["loss"], abs=1e-4)
    guessing = 5.704  # log 300
    assert first["scratch"]["loss"] == pytest.approx(guessing, abs=0.1)
    assert source["loss"] < guessing
    assert first["ligo-paper"]["flops"] == record["methods"]["ligo-paper"]["flops"]["fit"] > 0
    assert all(point["flops"] == 0 for name, point in first.items() if name != "ligo-paper")


def test_what_is_unfair_is_told(whole: tuple[Path, Ended], record: dict[str, Any]) -> None:
    rules = {warning["rule"] for warning in record["fairness_warnings"]}
    assert {"scratch-undertrained", "few-learning-rates", "single-decay"} <= rules
    assert whole[1].err.count("fairness:") >= 3, "warnings known in advance are printed in advance"


# --- again ------------------------------------------------------------------------------------------------------------


def test_a_figure_that_changed_is_not_reported(whole: tuple[Path, Ended], warm: WarmCli, tmp_path: Path) -> None:
    place = shutil.copytree(whole[0], tmp_path / "place")
    path = place / "out" / "compare.json"
    record = json.loads(path.read_text())
    record["methods"]["lemon"]["savings"]["net"] = 99.0
    path.write_text(json.dumps(record))
    done = warm.run(*COMMAND, cwd=place)
    assert (done.code, done.out) == (7, "")
    assert "changed since it was written" in "".join(done.err.split("\n"))


def test_again_changes_nothing(whole: tuple[Path, Ended], warm: WarmCli) -> None:
    folder, done = whole
    before = snapshot(folder)
    again = warm.run(*COMMAND, cwd=folder)
    assert again.code == 0, again.err
    assert json.loads(again.out) == {**json.loads(done.out), "changed": False}
    assert snapshot(folder) == before
    assert names(folder) == ["out"]


@pytest.mark.parametrize(
    "change", [("--steps", "21"), ("--seeds", "1"), ("--methods", "lemon"), ("--set", "compare.eval_points=7")]
)
def test_another_comparison_in_its_place_is_refused(
    change: tuple[str, ...], whole: tuple[Path, Ended], warm: WarmCli
) -> None:
    folder, _ = whole
    before = snapshot(folder)
    done = warm.run(*COMMAND, *change, cwd=folder)
    assert done.code == 6
    assert "contains a different comparison" in done.err
    assert done.out == ""
    assert snapshot(folder) == before
    assert names(folder) == ["out"]


def test_something_else_in_its_place_is_refused(place: Path, warm: WarmCli) -> None:
    for name, content in {"notes.txt": "mine", "compare.json": '{"mine": 1}'}.items():
        shutil.rmtree(place / "out", ignore_errors=True)
        (place / "out").mkdir()
        (place / "out" / name).write_text(content)
        done = warm.run(*COMMAND, cwd=place)
        assert done.code == 6, done.err
        assert names(place) == ["out"]
        assert (place / "out" / name).read_text() == content


# --- finished jobs of another comparison -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smaller(warm: WarmCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, and a finished comparison of two methods in `first`."""
    folder = tmp_path_factory.mktemp("smaller")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    done = warm.run("compare", "recipe.yaml", "--methods", "lemon,late", "--out", "first", "--jobs", "1", cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.mark.slow
def test_more_methods_from_finished_jobs_are_the_same_comparison(
    smaller: Path, whole: tuple[Path, Ended], warm: WarmCli
) -> None:
    """Bit for bit what one comparison of all methods writes; what was trained is not trained again."""
    done = warm.run(*COMMAND, "--reuse", "first", "--jobs", "1", cwd=smaller)
    assert done.code == 0, done.err
    ended = {line.split(" (")[0] for line in done.err.split("\n") if " (seed 0" in line}
    # The state of the source is not kept, and methods start from it.
    assert ended == {"ligo-paper", "freeze+layer-drop", "source-size"}
    same(smaller, whole)


@pytest.mark.slow
def test_more_seeds_from_finished_jobs_after_a_stop(smaller: Path, warm: WarmCli) -> None:
    """If the stopped run began with the finished jobs, so does the one that goes on, named again or not; else it adds them."""
    seeds = ("compare", "recipe.yaml", "--methods", "lemon", "--seeds", "0,1", "--jobs", "1", "--out")
    reuse = ("--reuse", "first")
    assert warm.run(*seeds, "plain", cwd=smaller).code == 0
    for out, before, after in (("again", reuse, ()), ("later", (), reuse)):
        staged = smaller / f".{out}.ligo-partial" / ".work" / "results.json"
        running = warm.start(*seeds, out, *before, cwd=smaller, save_often=True)
        wait_for(lambda staged=staged: staged.exists() and "jobs" in json.loads(staged.read_text()), running)  # type: ignore[misc]
        running.send(signal.SIGKILL)
        assert running.wait(within=300).code == -signal.SIGKILL
        done = warm.run(*seeds, out, *after, cwd=smaller)
        assert done.code == 0, done.err
        assert "finished jobs are reused" in done.err
        assert {name: digest for name, (digest, _) in snapshot(smaller / out).items()} == {
            name: digest for name, (digest, _) in snapshot(smaller / "plain").items()
        }


@pytest.mark.parametrize(
    ("folder", "arguments", "told"),
    [
        ("first", ("--set", "compare.eval_points=7"), "it differs in compare.eval_points"),
        ("first", ("--steps", "24"), "it differs in training split, compare.steps"),
        ("first", ("--set", "source.pretrain.steps=9"), "it differs in recipe, source and data"),
        ("nowhere", (), "no finished jobs to reuse: No such file or directory"),
        ("changed", (), "changed since they were written"),
        ("other", (), "not of format ligo-jobs/1"),
        ("broken", (), "no finished jobs to reuse"),
    ],
)
def test_finished_jobs_that_do_not_fit_are_refused(
    folder: str, arguments: tuple[str, ...], told: str, smaller: Path, warm: WarmCli, tmp_path: Path
) -> None:
    jobs = json.loads((smaller / "first" / "ligo" / "jobs.json").read_text())
    next(iter(jobs["jobs"].values()))["flops"] = 1.0
    for name, text in {"changed": json.dumps(jobs), "other": "{}", "broken": '{"format"'}.items():
        (tmp_path / name / "ligo").mkdir(parents=True)
        (tmp_path / name / "ligo" / "jobs.json").write_text(text)
    shutil.copytree(smaller / "first", tmp_path / "first")
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    done = warm.run(*COMMAND, *arguments, "--reuse", folder, "--jobs", "1", cwd=tmp_path)
    assert (done.code, done.out) == (2, ""), done.err
    assert told in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--methods", "nonsense"), "no method 'nonsense'"),
        (("--methods", "scratch,lemom"), "did you mean lemon?"),
        (("--methods", "scratch+fit"), "drawn weights have no operator to learn"),
        (("--methods", "lemon+fast"), "no option 'fast'"),
        (("--methods", "hyperclone"), "not a whole multiple"),
        (("--seeds", "one"), "not a list of whole numbers"),
        (("--steps", "0"), "--steps"),
        (("--set", "compare.optimizers=[sgd]"), "sgd"),
        (("--set", "compare.decays=[0]"), "greater than 0"),
        (("--methods", "lemon/identity@2"), "between 0 and 1"),
        (("--set", "compare.token_drop=1"), "token_drop"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments: tuple[str, ...], told: str, place: Path, warm: WarmCli) -> None:
    done = warm.run(*COMMAND, *arguments, cwd=place)
    assert done.code == 2, done.err
    assert told in " ".join(done.err.split())
    assert done.out == ""
    assert names(place) == []


def test_training_that_comes_to_nothing_at_every_rate_is_the_recipes_fault(place: Path, warm: WarmCli) -> None:
    rates = ("--set", "compare.learning_rates=[1e30]")
    done = warm.run(*COMMAND, *rates, "--methods", "lemon", "--steps", "8", "--jobs", "1", cwd=place)
    assert done.code == 2, done.err
    assert "not finite" in done.err
    assert not (place / "out").exists()


# --- several workers, and stops ---------------------------------------------------------------------------------------


def same(place: Path, whole: tuple[Path, Ended]) -> None:
    """All files of two comparisons, bit for bit: nothing in them tells of time, of workers or of stops."""
    found, wanted = (
        {name: digest for name, (digest, _) in snapshot(folder / "out").items()} for folder in (place, whole[0])
    )
    assert found == wanted


@pytest.mark.slow
def test_two_workers_come_to_the_same(place: Path, whole: tuple[Path, Ended], warm: WarmCli) -> None:
    """To the last bit: a run has the threads of its recipe, and no share of the cores."""
    done = warm.run(*COMMAND, "--jobs", "2", cwd=place)
    assert done.code == 0, done.err
    assert names(place) == ["out"]
    same(place, whole)


def wait_for(what: Callable[[], bool], running: Running) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, running.err
        time.sleep(0.02)


def jobs_done(place: Path) -> int:
    """How many jobs have a staged result. The file is replaced as a whole."""
    results = place / ".out.ligo-partial" / ".work" / "results.json"
    return len(json.loads(results.read_text()).get("jobs", {}).get("value", {})) if results.exists() else 0


@pytest.mark.slow
def test_a_comparison_that_is_stopped_goes_on(place: Path, whole: tuple[Path, Ended], warm: WarmCli) -> None:
    """Twice by a signal, while a rate is tried and while a target is trained, and once by SIGKILL in the middle of a write."""
    for seen in (3, 12):
        running = warm.start(*COMMAND, "--jobs", "1", cwd=place, save_often=True)
        wait_for(lambda seen=seen: jobs_done(place) >= seen, running)  # type: ignore[misc]
        running.send(signal.SIGTERM)
        stopped = running.wait(within=300)
        assert stopped.code == 128 + signal.SIGTERM, stopped.err
        assert "run the same command again" in stopped.err
        assert stopped.out == ""
        assert names(place) == [".out.ligo-partial"]
    killed = warm.run(*COMMAND, "--jobs", "1", cwd=place, kill_at=40)
    assert killed.code == -signal.SIGKILL
    assert names(place) == [".out.ligo-partial"]
    done = warm.run(*COMMAND, "--jobs", "1", cwd=place)
    assert done.code == 0, done.err
    assert "resuming from the staged files of an earlier run" in done.err
    assert json.loads(done.out)["changed"] is True
    assert names(place) == ["out"]
    same(place, whole)


@pytest.mark.slow
def test_damaged_states_and_operators_are_made_again(
    place: Path, whole: tuple[Path, Ended], warm: WarmCli, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Stopped on the way; then every state is damaged, each in another way, or the results are."""
    running = warm.start(*COMMAND, "--jobs", "1", cwd=place, save_often=True)
    wait_for(lambda: jobs_done(place) >= 8, running)
    running.send(signal.SIGKILL)
    assert running.wait(within=300).code == -signal.SIGKILL
    for what in ("states/*.safetensors", "results.json"):
        copy = tmp_path_factory.mktemp("damaged") / "place"
        shutil.copytree(place, copy)
        files = sorted((copy / ".out.ligo-partial" / ".work").glob(what))
        assert files
        for file, damage in zip(files, itertools.cycle(DAMAGES.values()), strict=False):
            damage(file)
        done = warm.run(*COMMAND, "--jobs", "1", cwd=copy)
        assert done.code == 0, done.err
        same(copy, whole)


@pytest.mark.slow
def test_workers_stop_with_their_parent(place: Path, warm: WarmCli) -> None:
    """SIGTERM of the parent alone: nothing is left of it or of them, and what is staged is whole."""
    running = warm.start(*COMMAND, "--jobs", "2", cwd=place)
    wait_for(lambda: jobs_done(place) >= 1, running)
    assert alive(running.pid) > 1
    running.send(signal.SIGTERM)
    assert running.wait(within=300).code == 128 + signal.SIGTERM
    end = time.monotonic() + PATIENCE
    while alive(running.pid):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert names(place) == [".out.ligo-partial"]
    assert jobs_done(place) >= 1


def alive(group: int) -> int:
    """How many processes of a group live."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, found = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        count += int(found) == group and state != "Z"
    return count

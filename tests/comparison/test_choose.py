"""A whole choice through the command line: what it leaves, what a second run does, how it goes on after a stop, what it refuses."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.source_models import fit_section, recipe_text, write_checkpoint, write_text
from support.warm_cli import Ended, WarmCli

from ligo_convert.recipes.recipe import load_recipe

COMPARE = {"learning_rates": [5e-3], "optimizers": ["adamw"], "decays": [0.4], "rate_factors": [1.0]}
CHOOSE = {
    "steps": 80,
    "shares": [0.1, 0.2],
    "source_rate_factors": [1.0],
    "candidates": ["copy/identity", "copy/stack", "copy/identity@0.3+source"],
}
COMMAND = ("choose", "recipe.yaml", "--out", "out", "--json", "--jobs", "1")
PATIENCE = 90.0  # seconds that a run may take to come to a point; a busy machine is slow


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmCli]:
    server = WarmCli(tmp_path_factory.mktemp("streams"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "model")


def write_recipe(folder: Path, source: Path) -> Path:
    """A recipe with a comment, as people write them."""
    (folder / "corpus").mkdir()
    write_text(folder / "corpus" / "a.txt")
    fit = fit_section(text=str(folder / "corpus" / "*.txt"))
    text = recipe_text(source, {"n_layer": 4}, fit=fit, compare=COMPARE, choose=CHOOSE, growth={"width": "copy"})
    (folder / "recipe.yaml").write_text(f"# mine\n{text}")
    return folder


@pytest.fixture
def place(tmp_path: Path, source: Path) -> Path:
    return write_recipe(tmp_path, source)


@pytest.fixture(scope="module")
def whole(warm: WarmCli, source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    folder = write_recipe(tmp_path_factory.mktemp("whole"), source)
    done = warm.run(*COMMAND, "--write", "chosen.yaml", cwd=folder)
    assert done.code == 0, done.err
    return folder, done


def record_of(place: Path) -> dict[str, Any]:
    found = json.loads((place / "out" / "choose.json").read_text())
    assert isinstance(found, dict)
    return found


# Trains about twenty short runs.
def test_a_choice_is_whole_and_can_be_asked_again(whole: tuple[Path, Ended], warm: WarmCli) -> None:
    folder, done = whole
    record = record_of(folder)
    assert json.loads(done.out) == {"out": "out", "changed": True, **record}
    assert record["format"] == "ligo-choice/2"
    rows = {row["name"]: row for row in record["candidates"]}
    assert set(rows) == {"scratch", "source-size", "source, trained on", "half-way", *CHOOSE["candidates"]}  # type: ignore[misc]
    assert record["choice"]["name"] in rows
    assert [len(rows[name]["trials"]) for name in ("scratch", "source-size", "source, trained on")] == [2, 2, 2]
    assert sorted(len(rows[name]["trials"]) for name in ("copy/identity", "copy/stack")) == [1, 2]
    for row in rows.values():
        assert row["projection"] is not None
        for trial in row["trials"]:
            assert trial["flops"] == pytest.approx(trial["share"] * record["budget"]["flops"], rel=0.15)
    # The source is drawn, and knows nothing of its 300 tokens.
    assert 5.5 < rows["copy/identity"]["source_loss"] == rows["source, trained on"]["source_loss"] < 7
    assert 0 < record["cost"]["share"] < 3
    # At most the logarithm of the vocabulary, which the few held-out tokens do not exhaust.
    assert 3 < record["early"]["frequency_loss"] < 6
    assert (record["longer"] is None) == (record["choice"]["confidence"] == "clear")
    assert "all trials: about" in done.err
    again = warm.run(*COMMAND, cwd=folder)
    assert json.loads(again.out) == {**json.loads(done.out), "changed": False}
    told = warm.run(*(word for word in COMMAND if word != "--json"), cwd=folder)
    assert record["text"][0].split(";")[0] in " ".join(told.out.split())
    assert "at 20.0%" in " ".join(told.out.split())
    assert record["longer"] is None or record["longer"]["command"] in told.out, "a command is printed on one line"


def test_the_choice_is_written_as_a_recipe(whole: tuple[Path, Ended]) -> None:
    folder, done = whole
    choice, file = record_of(folder)["choice"], folder / "chosen.yaml"
    if choice["not_written"] is not None:
        assert not file.exists()
        assert "no recipe is written" in done.err
        return
    assert file.read_text().startswith("# mine\n")
    recipe = load_recipe(file)
    assert (recipe.growth.width, recipe.growth.depth) == (choice["width"], choice["depth"])
    assert recipe.train is not None
    advised = {key: choice[key] for key in ("steps", "optimizer", "learning_rate", "decay")}
    assert recipe.train.model_dump(include=set(advised)) == advised


@pytest.mark.slow
def test_it_goes_on_after_a_stop(place: Path, whole: tuple[Path, Ended], warm: WarmCli) -> None:
    results = place / ".out.ligo-partial" / ".work" / "results.json"
    running = warm.start(*COMMAND, cwd=place)
    end = time.monotonic() + PATIENCE
    while not (results.exists() and results.read_text().count('"validation_loss"') > 2):
        assert time.monotonic() < end, running.err
        time.sleep(0.02)
    running.send(signal.SIGTERM)
    assert running.wait(within=300).code == 128 + signal.SIGTERM
    assert not (place / "out").exists()
    done = warm.run(*COMMAND, cwd=place)
    assert done.code == 0, done.err
    assert "resuming from the staged files" in done.err
    assert record_of(place) == record_of(whole[0])


def test_what_stands_in_the_way_is_refused(whole: tuple[Path, Ended], place: Path, warm: WarmCli) -> None:
    folder, _ = whole
    for code, told, arguments, where in (
        (6, "contains a different choice", ("--steps", "90"), folder),
        (6, "contains a different choice", ("--set", "choose.shares=[0.1,0.3]"), folder),
        (6, "the file exists", ("--write", "recipe.yaml"), place),
        (2, "a file in", ("--write", "/nowhere/chosen.yaml"), place),
        (2, "no method 'nonsense'", ("--candidates", "nonsense"), place),
        (2, "no candidate is named", ("--candidates", ","), place),
        (2, "choose.shares", ("--set", "choose.shares=[0.1]"), place),
        (2, "nothing to choose", ("--set", "target.config={n_layer: 2}"), place),
    ):
        done = warm.run(*COMMAND, *arguments, cwd=where)
        assert done.code == code, done.err
        assert told in " ".join(done.err.split())
        assert done.out == ""
    assert sorted(path.name for path in place.iterdir()) == ["corpus", "recipe.yaml"]
    record = record_of(folder)
    record["choice"]["name"] = "scratch"
    (place / "out").mkdir()
    (place / "out" / "choose.json").write_text(json.dumps(record))
    done = warm.run(*COMMAND, cwd=place)
    assert (done.code, done.out) == (7, "")
    assert "the record of the choice changed" in " ".join(done.err.split())

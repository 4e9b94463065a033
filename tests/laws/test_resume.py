"""Stops of every kind, in real processes: nothing half in the output's place, and the same bytes after going on."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.outputs import hidden, same
from support.slow import rest_slow
from support.source_models import GROWN, fit_section, recipe_text, write_checkpoint, write_text
from support.warm_cli import Ended, WarmCli

import ligo_convert

KILLS = 12
PRETRAIN = {
    "config": {"model_type": "gpt2", "vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_head": 2, "n_layer": 2},
    "steps": 4,
    "batch_size": 2,
    "sequence_length": 16,
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmCli]:
    server = WarmCli(tmp_path_factory.mktemp("streams"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a source, a corpus and recipes, to be copied."""
    folder = tmp_path_factory.mktemp("base") / "place"
    (folder / "corpus").mkdir(parents=True)
    write_text(folder / "corpus" / "a.txt")
    write_checkpoint(folder / "source")
    long = fit_section(steps=100_000)
    shards = {"max_shard_size": "30KB"}
    texts = {
        "fit": recipe_text("./source", GROWN["gpt2"], fit=fit_section(), output=shards),
        "long": recipe_text("./source", GROWN["gpt2"], fit=long, output=shards),
        "own": recipe_text("", GROWN["gpt2"], fit=fit_section()),
        "own-long": recipe_text("", GROWN["gpt2"], fit=fit_section()),
    }
    for name, text in texts.items():
        recipe = json.loads(text)
        if name.startswith("own"):
            recipe["source"] = {"pretrain": {**PRETRAIN, **({"steps": 100_000} if name == "own-long" else {})}}
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    return folder


@pytest.fixture
def place(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "place")


@pytest.fixture(scope="module")
def whole(base: Path, warm: WarmCli, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Outputs of runs that nothing stopped, by recipe."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("whole") / "place")
    for name in ("fit", "own"):
        done = warm.run("run", f"{name}.yaml", "--out", name, "--json", cwd=folder)
        assert done.code == 0, done.err
        done = warm.run("fit", f"{name}.yaml", "--operator", f"{name}.operator", cwd=folder)
        assert done.code == 0, done.err
    return {name: folder / name for name in ("fit", "own", "fit.operator", "own.operator")}


_lengths: dict[tuple[str, ...], int] = {}


def count_of(warm: WarmCli, whole: dict[str, Path], place: Path, *arguments: str) -> int:
    """The number of effects of a command line, counted once."""
    if arguments not in _lengths:
        assert whole
        scratch = shutil.copytree(place, place.parent / f"count-{len(_lengths)}")
        running = warm.start(*arguments, cwd=scratch, count_to=place.parent / "effects", save_often=True)
        assert running.wait(within=300).code == 0
        _lengths[arguments] = int((place.parent / "effects").read_text())
    return _lengths[arguments]


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", range(KILLS))
@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    point: int, warm: WarmCli, place: Path, whole: dict[str, Path]
) -> None:
    """Killed at twelve places all over it, and every second time once more while it goes on."""
    arguments = ("run", "fit.yaml", "--out", "out", "--json")
    total = count_of(warm, whole, place, *arguments)
    first = warm.run(*arguments, cwd=place, kill_at=(2 * point + 1) * total // (2 * KILLS), save_often=True)
    assert first.code == -signal.SIGKILL
    assert first.out == ""
    if (place / "out").exists():
        # Only what follows the last rename is missing: nothing of the output.
        same(place / "out", whole["fit"])
    if point % 2:
        second = warm.run(*arguments, cwd=place, kill_at=5 + 7 * point, save_often=True)
        assert second.code in (0, -signal.SIGKILL)
    last = warm.run(*arguments, cwd=place)
    assert last.code == 0, last.err
    same(place / "out", whole["fit"])
    assert hidden(place) == []
    if point % 4 == 0:
        assert warm.run("verify", "out", "--source", "source", cwd=place).code == 0


@pytest.mark.parametrize("point", [2, 4])
@pytest.mark.slow
def test_a_source_in_training_and_a_fit_alone_go_on(
    point: int, warm: WarmCli, place: Path, whole: dict[str, Path]
) -> None:
    for arguments, made in (
        (("run", "own.yaml", "--out", "out"), "own"),
        (("fit", "fit.yaml", "--operator", "fit.operator"), "fit.operator"),
        (("fit", "own.yaml", "--operator", "own.operator"), "own.operator"),
    ):
        total = count_of(warm, whole, place, *arguments)
        assert warm.run(*arguments, cwd=place, kill_at=point * total // 6, save_often=True).code == -signal.SIGKILL
        result = place / arguments[-1]
        assert not result.exists()
        done = warm.run(*arguments, cwd=place)
        assert done.code == 0, done.err
        if result.is_dir():
            same(result, whole[made])
            shutil.rmtree(result)
        else:
            assert result.read_bytes() == whole[made].read_bytes()
        assert hidden(place) == []


@pytest.mark.slow
def test_work_of_another_recipe_is_not_gone_on_with(warm: WarmCli, place: Path) -> None:
    assert warm.run("run", "fit.yaml", cwd=place, kill_at=60).code == -signal.SIGKILL
    assert hidden(place) == [".out.ligo-partial"]
    before = sorted((place / ".out.ligo-partial").rglob("*"))
    for change in (("--set", "fit.steps=7"), ("--set", "growth.seed=1")):
        done = warm.run("run", "fit.yaml", *change, cwd=place)
        assert done.code == 6
        assert "unfinished work of another recipe" in done.err
    write_text(place / "corpus" / "a.txt", seed=1)
    assert warm.run("run", "fit.yaml", cwd=place).code == 6
    assert sorted((place / ".out.ligo-partial").rglob("*")) == before
    write_text(place / "corpus" / "a.txt")
    assert warm.run("run", "fit.yaml", cwd=place).code == 0


# --- signals ----------------------------------------------------------------------------------------------------------


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def stopped(done: Ended, number: int) -> None:
    assert done.code == 128 + number, done
    assert done.seconds < 5
    assert done.out == ""
    assert f"stopped by {signal.Signals(number).name}" in done.err
    assert "run the same command again to resume" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("recipe", ["long", "own-long"])
def test_a_signal_during_training_stops_within_seconds(
    number: signal.Signals, recipe: str, warm: WarmCli, place: Path
) -> None:
    """The first ten seconds of a training are not saved; what was staged before it is there."""
    running = warm.start("run", f"{recipe}.yaml", "--json", cwd=place)
    work = place / ".out.ligo-partial" / ".work" / "results.json"
    config = place / ".out.ligo-partial" / "ligo" / "source" / "tokenizer.json"
    until(work.exists if recipe == "long" else config.exists, "training never began")
    time.sleep(0.5)
    running.send(number)
    stopped(running.wait(within=300), number)
    assert not (place / "out").exists()
    assert hidden(place) == [".out.ligo-partial"]
    again = warm.start("run", f"{recipe}.yaml", "--json", cwd=place)
    until(lambda: "resuming from the staged files of an earlier run" in again.err, "it did not go on")
    again.send(number)
    stopped(again.wait(within=300), number)


@pytest.mark.parametrize(
    ("after", "number"),
    rest_slow(
        itertools.product([0.0, 0.2, 0.5], [signal.SIGINT, signal.SIGTERM]),
        lambda pair: pair in ((0.0, signal.SIGTERM), (0.5, signal.SIGINT)),
        pairs=True,
    ),
)
def test_a_signal_at_any_moment_is_answered_and_the_run_goes_on(
    number: signal.Signals, after: float, warm: WarmCli, place: Path, whole: dict[str, Path]
) -> None:
    running = warm.start("run", "fit.yaml", "--json", cwd=place)
    until(lambda: (place / ".out.ligo-partial").exists() or (place / "out").exists(), "nothing was begun")
    time.sleep(after)
    running.send(number)
    done = running.wait(within=300)
    if done.code == 0:
        assert json.loads(done.out)["changed"] is True
    else:
        stopped(done, number)
        assert not (place / "out").exists()
    assert warm.run("run", "fit.yaml", "--json", cwd=place).code == 0
    same(place / "out", whole["fit"])


def test_a_second_signal_does_not_wait(warm: WarmCli, place: Path) -> None:
    running = warm.start("run", "long.yaml", cwd=place)
    until((place / ".out.ligo-partial").exists, "nothing was begun")
    running.send(signal.SIGTERM)
    running.send(signal.SIGTERM)
    assert running.wait(within=300).code in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert not (place / "out").exists()


# --- two at once, and too little room ---------------------------------------------------------------------------------


def test_the_second_of_two_runs_is_turned_away(warm: WarmCli, place: Path) -> None:
    first = warm.start("run", "long.yaml", cwd=place)
    until((place / ".out.ligo-partial" / ".work" / "run").exists, "nothing was begun")
    second = warm.run("run", "long.yaml", cwd=place)
    assert second.code == 6
    assert "another run is writing here" in second.err
    first.send(signal.SIGTERM)
    assert first.wait(within=300).code == 128 + signal.SIGTERM


def test_a_limit_on_the_size_of_files(warm: WarmCli, place: Path, whole: dict[str, Path]) -> None:
    done = warm.run("run", "fit.yaml", cwd=place, limit=(resource.RLIMIT_FSIZE, 20_000))
    assert (done.code, done.out) == (5, "")
    assert "ulimit -f" in done.err
    assert not (place / "out").exists()
    assert warm.run("run", "fit.yaml", cwd=place).code == 0
    same(place / "out", whole["fit"])


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can act as another account, which it takes to meet a place of somebody else"
)
def test_a_place_of_somebody_else(warm: WarmCli, place: Path) -> None:
    """Root may write anywhere; the account nobody may not."""
    installed = [Path(ligo_convert.__file__), Path(sys.prefix)]
    if any(not folder.stat().st_mode & 0o001 for path in installed for folder in path.parents):
        pytest.skip("the package is installed where another account cannot read it")
    # Temporary folders are their owner's alone, and lie deeper where tests run side by side.
    for path in (place, *place.rglob("*"), *place.parents[:5]):
        if not path.is_mount():
            path.chmod(path.stat().st_mode | 0o055)
    for command in ("plan", "run"):
        done = warm.run(command, "fit.yaml", cwd=place, user=65534)
        assert (done.code, done.out) == (5, ""), done
        assert "permission denied" in done.err
    assert hidden(place) == []

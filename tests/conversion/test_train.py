"""`train`: a model from a source, a grown output or nothing, that grows on the way, and can be stopped anywhere."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import faults
from support.optimizer_states import with_state
from support.outputs import hidden, same
from support.recorded import RecordedProgress
from support.source_models import GROWN, SIZES, recipe_text, write_checkpoint, write_text
from support.torchrun import Torchrun, paused
from support.warm_cli import WarmCli

from ligo_convert.conversion.convert import convert
from ligo_convert.conversion.train import train_model
from ligo_convert.conversion.train_plan import plan_training
from ligo_convert.errors import LigoError, MachineError, OutputBusy, RecipeError
from ligo_convert.importing.sandbox import support as no_sandbox
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import Recipe, load_recipe
from ligo_convert.training.processes import Processes
from ligo_convert.training.state import read_optimizer_state

DRAWN = {"pretrain": {"config": {"model_type": "gpt2", **SIZES["gpt2"], "n_layer": 1}}}
SCHEDULE: list[dict[str, Any]] = [
    {"at": 0.3, "target": {"n_layer": 2}, "depth": "stack", "warmup_steps": 1},
    {"at": 8, "state": "copy"},
]


def train_section(**changes: object) -> dict[str, object]:
    """A training of a second."""
    return {
        "steps": 12,
        "batch_size": 4,
        "sequence_length": 16,
        "heldout_tokens": 256,
        "evaluate_every": 4,
        "threads": 1,
        "learning_rate": 3e-3,
        "data": {"text": ["a.txt"]},
        **changes,
    }


def text_of(source: Mapping[str, object] | str, *, schedule: object = None, **sections: Any) -> str:
    recipe = json.loads(recipe_text("", GROWN["gpt2"], train=train_section(), **sections))
    recipe["source"] = {"model": source} if isinstance(source, str) else source
    if schedule is not None:
        recipe["growth"]["schedule"] = schedule
    return json.dumps(recipe, indent=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a source, and the recipe of a training that begins with drawn weights and grows twice."""
    folder = tmp_path_factory.mktemp("train")
    write_text(folder / "a.txt")
    write_checkpoint(folder / "source")
    (folder / "grow.yaml").write_text(text_of(DRAWN, schedule=SCHEDULE))
    return folder


def loaded(place: Path, out: Path, name: str = "grow.yaml", **changes: object) -> Recipe:
    return load_recipe(
        place / name, out=str(out), overrides=[f"{key}={json.dumps(value)}" for key, value in changes.items()]
    )


@pytest.fixture(scope="module")
def grown(place: Path) -> Path:
    """The output of that training, which nothing stopped."""
    train_model(loaded(place, place / "grown"), device="cpu")
    return place / "grown"


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "ligo" / "train.jsonl").read_text().splitlines()]


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_model_grows_on_the_way_from_nothing(place: Path, grown: Path) -> None:
    report = verify(grown, load=True)
    assert report["loaded"]["missing_keys"] == report["loaded"]["unexpected_keys"] == []
    config = json.loads((grown / "config.json").read_text())
    assert {key: config[key] for key in GROWN["gpt2"]} == GROWN["gpt2"]
    done = train_model(loaded(place, grown), device="cpu")
    assert not done.changed
    found = done.json()
    assert (found["steps"], found["tokens"], found["start"]) == (12, 12 * 4 * 16, "drawn weights")
    assert set(found["loss"]) == {"first", "last", "validation", "test"}
    assert found["flops"] == plan_training(loaded(place, grown)).flops
    assert [(growth["step"], growth["to"]) for growth in found["growths"]] == [
        (4, {"layer": 2}),
        (8, {"embed": 24, "heads": 3, "mlp": 96, "layer": 3}),
    ]
    # The second growth is exact: the loss after it is the loss before it.
    exact = found["growths"][1]
    assert exact["loss_after"] == pytest.approx(exact["loss_before"], abs=1e-4)
    assert [line["step"] for line in log_of(grown)] == [0, 1, 4, 4, 8, 8, 12]
    # The rate rises again after the first growth, within a fifth of its stage: not at all in a stage of four steps.
    for name in ("README.md", "ligo/fit.png", "tokenizer.json", "ligo/recipe.yaml"):
        assert (grown / name).is_file(), name
    assert not (grown / "ligo" / "source").exists()
    assert hidden(place) == []


def test_another_recipe_in_its_place_is_refused(place: Path, grown: Path) -> None:
    for changes in ({"train.steps": 13}, {"growth.schedule": SCHEDULE[1:]}):
        with pytest.raises(OutputBusy):
            train_model(loaded(place, grown, **changes), device="cpu")
    # What a conversion depends on is not changed by the keys of a training.
    base = loaded(place, grown, "grow.yaml", **{"source": {"model": "./source"}})
    other = loaded(
        place, grown, "grow.yaml", **{"source": {"model": "./source"}, "train": None, "growth.schedule": None}
    )
    assert base.digest(source={}, data=None) == other.digest(source={}, data=None)


def test_an_optimizer_that_torch_lacks_is_refused_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the source is trained, and before anything is staged."""
    monkeypatch.delattr(torch.optim, "Muon")
    before = sorted(place.iterdir())
    with pytest.raises(MachineError, match="no Muon") as error:
        train_model(loaded(place, place / "muon", **{"train.optimizer": "muon"}), device="cpu")
    assert error.value.exit_code == 5
    assert sorted(place.iterdir()) == before


def test_a_trained_model_is_not_derived_again(grown: Path, place: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be derived"):
        verify(grown, source=str(place / "source"))
    broken = shutil.copytree(grown, place / "broken")
    (broken / "ligo" / "training_state.safetensors").unlink()
    with pytest.raises(LigoError) as caught:
        verify(broken)
    assert caught.value.exit_code == 7


# --- where it starts --------------------------------------------------------------------------------------------------


def test_it_starts_from_a_source_a_grown_output_and_its_own_output(place: Path, tmp_path: Path) -> None:
    (place / "plain.yaml").write_text(text_of("./source"))
    first = train_model(loaded(place, tmp_path / "first", "plain.yaml"), device="cpu").json()
    # Without a schedule the source grows at step 0.
    assert [growth["step"] for growth in first["growths"]] == [0]
    assert first["growths"][0]["loss_after"] == pytest.approx(first["growths"][0]["loss_before"], abs=1e-4)
    assert first["loss"]["last"] < first["loss"]["first"]

    # A grown output trains on as it is, and a trained one with its optimizer's state.
    convert(loaded(place, tmp_path / "grown", "plain.yaml"), device="cpu")
    for source, carried in (("grown", False), ("first", True)):
        changes = {"source.model": str(tmp_path / source), "target": {"config": {}}, "train.steps": 2}
        recipe = loaded(place, tmp_path / f"on-{source}", "plain.yaml", **changes)
        found = train_model(recipe, device="cpu").json()
        assert found["growths"] == []
        before, after = (load_file(tmp_path / name / "model.safetensors") for name in (source, f"on-{source}"))
        assert before.keys() == after.keys()
        steps = {
            float(state["step"])
            for state in read_optimizer_state(tmp_path / f"on-{source}" / "ligo/training_state.safetensors").values()
        }
        assert steps == ({14.0} if carried else {2.0})
        assert verify(tmp_path / f"on-{source}", load=True)["weights"]["finite"]

    # A source that the recipe trains comes first, and is kept.
    trained = {"pretrain": {**DRAWN["pretrain"], "steps": 2, "batch_size": 2}}
    found = train_model(loaded(place, tmp_path / "own", "plain.yaml", source=trained), device="cpu").json()
    assert found["start"] == "source"
    assert (tmp_path / "own" / "ligo" / "source" / "model.safetensors").is_file()
    assert verify(tmp_path / "own")


def test_a_model_that_was_grown_with_its_optimizer_trains_on(place: Path, grown: Path, tmp_path: Path) -> None:
    """Some seconds: a run and a training. The loss goes on where it was, and so do the moments."""
    (place / "more.yaml").write_text(text_of("./grown"))
    changes = {"target": {"config": {"n_layer": 4}}, "growth.state": "carry"}
    convert(loaded(place, tmp_path / "larger", "more.yaml", **changes), device="cpu")
    assert verify(tmp_path / "larger", source=str(grown))["derived"]["training"] == 1
    changes = {"source.model": str(tmp_path / "larger"), "target": {"config": {}}, "train.steps": 2}
    train_model(loaded(place, tmp_path / "on", "more.yaml", **changes), device="cpu")
    before, first = log_of(grown)[-1], log_of(tmp_path / "on")[0]
    assert (before["step"], first["step"]) == (12, 0)
    assert first["validation_loss"] == pytest.approx(before["validation_loss"], abs=1e-4)
    old, new = (
        {float(parts["step"]) for parts in read_optimizer_state(out / "ligo/training_state.safetensors").values()}
        for out in (grown, tmp_path / "on")
    )
    # What the source had goes on at its last step, each layer from its own; the layer that is new has begun.
    assert max(old) == 12.0
    assert new == {count + 2 for count in old} | {2.0}


@pytest.mark.skipif(no_sandbox() is not None, reason=str(no_sandbox()))
def test_the_optimizer_of_another_program_is_taken_along(place: Path, tmp_path: Path) -> None:
    """Some seconds: a training, and a confined process that reads a pickle."""
    (place / "plain.yaml").write_text(text_of("./source"))
    source = shutil.copytree(place / "source", tmp_path / "source")
    moments = with_state(source, steps=3)
    changes = {"source.model": str(source), "target": {"config": {}}, "train.steps": 2}
    recipe = loaded(place, tmp_path / "out", "plain.yaml", **changes)
    train_model(recipe, device="cpu")
    state = read_optimizer_state(tmp_path / "out" / "ligo/training_state.safetensors")
    assert set(state) == set(moments)
    assert {float(parts["step"]) for parts in state.values()} == {5.0}
    assert "optimizer.pt" in (tmp_path / "out" / "ligo" / "provenance.json").read_text()
    with_state(source, steps=4)
    with pytest.raises(OutputBusy, match=r"optimizer\.pt"):
        train_model(recipe, device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(no_sandbox() is not None, reason=str(no_sandbox()))
def test_an_optimizer_that_is_not_understood_stays_behind(place: Path, tmp_path: Path) -> None:
    """Slow: as the test before it."""
    (place / "plain.yaml").write_text(text_of("./source"))
    source = shutil.copytree(place / "source", tmp_path / "source")
    torch.save({"quantised": torch.zeros(3)}, source / "optimizer.pt")
    progress = RecordedProgress()
    changes = {"source.model": str(source), "target": {"config": {}}, "train.steps": 2}
    train_model(loaded(place, tmp_path / "out", "plain.yaml", **changes), device="cpu", progress=progress)
    assert any("optimizer.pt is not taken along" in line for line in progress.warned)
    state = read_optimizer_state(tmp_path / "out" / "ligo/training_state.safetensors")
    assert {float(parts["step"]) for parts in state.values()} == {2.0}


def test_muon_cosine_and_an_optimizer_of_another_rule(place: Path, grown: Path, tmp_path: Path) -> None:
    """AdamW's state beside the source serves Muon only for the tensors that stay with AdamW."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9, and the installed torch is older")
    (place / "on.yaml").write_text(text_of("./grown"))
    changes = {"target": {"config": {}}, "train.optimizer": "muon", "train.schedule": "cosine", "train.steps": 3}
    train_model(loaded(place, tmp_path / "muon", "on.yaml", **changes), device="cpu")
    state = read_optimizer_state(tmp_path / "muon" / "ligo" / "training_state.safetensors")
    assert set(state[_matrix(state)]) == {"momentum_buffer"}
    assert max(float(parts["step"]) for parts in state.values() if "step" in parts) == 15.0


def _matrix(state: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    return next(name for name in state if "c_attn" in name and name.endswith("weight"))


# --- stops ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saving_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ligo_convert.training.loop.SAVE_EVERY_SECONDS", -1.0)
    return


@pytest.mark.usefixtures("saving_often")
def test_a_training_that_failed_goes_on_to_the_same_bytes(place: Path, grown: Path, tmp_path: Path) -> None:
    """Failed in the first stage and in the last one. The slow test kills it all over."""
    log: list[Any] = []
    with faults.record(log):
        train_model(loaded(place, tmp_path / "count"), device="cpu")
    same(tmp_path / "count", grown)
    for part in (0.3, 0.8):
        out = tmp_path / f"out-{part}"
        with faults.inject(int(part * len(log)), number=errno.ENOSPC), pytest.raises(MachineError):
            train_model(loaded(place, out), device="cpu")
        assert not out.exists()
        assert train_model(loaded(place, out), device="cpu").changed
        same(out, grown)


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_to_the_same_bytes(place: Path, grown: Path, tmp_path: Path) -> None:
    server = WarmCli(tmp_path)
    try:
        scratch = shutil.copytree(place, tmp_path / "place", ignore=shutil.ignore_patterns("grown"))
        arguments = ("train", "grow.yaml", "--device", "cpu", "--json")
        running = server.start(*arguments, "--out", "count", cwd=scratch, count_to=tmp_path / "n", save_often=True)
        assert running.wait(within=300).code == 0
        total = int((tmp_path / "n").read_text())
        for point in range(6):
            out = ("--out", f"out{point}")
            killed = server.run(*arguments, *out, cwd=scratch, kill_at=(2 * point + 1) * total // 12, save_often=True)
            assert killed.code == -signal.SIGKILL
            done = server.run(*arguments, *out, cwd=scratch)
            assert done.code == 0, done.err
            assert json.loads(done.out)["steps"] == 12
            same(scratch / f"out{point}", grown)
    finally:
        server.close()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "key", "what"),
    [
        ([{"at": 0.5, "target": {"n_layer": 2}}, {"at": 0.4}], "at", "does not begin after the one before it"),
        ([{"at": 0.5, "target": {"n_layer": 2}}, {"at": 6}], "at", "does not begin after the one before it"),
        ([{"at": 12}], "at", "begins after the last step"),
        ([{"at": 2.5}], "at", "neither a share"),
        ([{"at": 2, "target": {"n_embd": 8}}, {"at": 4}], "target", "shrink|smaller|fewer"),
        ([{"at": 2, "target": {"n_layer": 1}}, {"at": 4}], "target", "does not grow the model"),
        ([{"at": 2}, {"at": 4}], "target", "does not grow the model"),
        ([{"at": 2, "target": {"n_layer": 2}}], "target", "does not end at the recipe's target"),
        ([{"at": 2, "target": {"layers": 2}}, {"at": 4}], "target", "layers"),
        ([{"at": 2, "wide": "lemon"}], "wide", "unknown key"),
        ([{"at": 2, "width": "lemn"}], "width", "did you mean 'lemon'"),
        ([{"at": -1}], "at", "at least 0"),
    ],
)
def test_a_schedule_that_cannot_be(
    schedule: list[dict[str, Any]], key: str, what: str, place: Path, tmp_path: Path
) -> None:
    path = place / "wrong.yaml"
    path.write_text(text_of(DRAWN, schedule=schedule))
    with pytest.raises(RecipeError, match=what) as caught:
        plan_training(load_recipe(path, out=str(tmp_path / "out")))
    found = re.fullmatch(r".*wrong\.yaml:(\d+):(\d+)", str(caught.value.where))
    assert found, caught.value.where
    lines = path.read_text().splitlines()
    # The line is that of the key, or of its stage if the key is not there.
    assert f'"{key}"' in lines[int(found[1]) - 1] or lines[int(found[1]) - 1].strip() == "{"
    assert caught.value.exit_code == 2


def test_what_a_training_needs(place: Path, tmp_path: Path) -> None:
    (place / "plain.yaml").write_text(text_of("./source"))
    for changes, what in (
        ({"train": None}, "no `train` section"),
        ({"train.data": None}, "no data to train on"),
        ({"train.warmup_steps": 12}, "leaves no step"),
        ({"source": DRAWN, "train.steps": 1, "growth.schedule": [{"at": 0.4}]}, "more stages than steps"),
        ({"source": DRAWN}, "how many steps the source is trained"),
        ({"train.sequence_length": 100}, r"train\.sequence_length: longer than the positions"),
    ):
        with pytest.raises(RecipeError, match=what) as caught:
            plan_training(loaded(place, tmp_path / "out", "plain.yaml", **changes))
        assert caught.value.exit_code == 2
    recipe = load_recipe(place / "grow.yaml", out=str(tmp_path / "out"))
    with pytest.raises(RecipeError, match="how many steps the source is trained"):
        convert(recipe, device="cpu")
    diverged = {"train.learning_rate": 1e30, "train.steps": 3, "growth.schedule": [{"at": 1}]}
    with pytest.raises(RecipeError, match="diverged"):
        train_model(loaded(place, tmp_path / "nan", **diverged), device="cpu")
    assert not (tmp_path / "nan").exists()


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_the_same_model_with_the_same_bits_each_time(
    place: Path, grown: Path, tmp_path: Path
) -> None:
    """Slow: torchrun starts four processes that import torch."""

    def train(out: str) -> dict[str, Any]:
        arguments = ("train", str(place / "grow.yaml"), "--out", str(tmp_path / out), "--device", "cpu", "--json")
        with Torchrun(*arguments, count=2, folder=tmp_path) as running:
            code, printed, err = running.wait(within=300)
        assert code == 0, err
        found = json.loads(printed)
        assert isinstance(found, dict)
        return found

    found = train("one")
    assert found["processes"] == 2
    alone = train_model(loaded(place, grown), device="cpu").json()
    assert found["loss"] == pytest.approx(alone["loss"], abs=1e-4)
    assert found["flops"] == alone["flops"]
    train("two")
    same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_that_are_stopped_go_on_to_the_same_bytes(place: Path, tmp_path: Path) -> None:
    """Slow: torchrun starts ten processes. Stopped by SIGTERM, by the death of one process, and of all; then in one process."""
    recipe = json.loads(text_of(DRAWN, schedule=[{"at": 0.3, "target": {"n_layer": 2}}, {"at": 0.6}]))
    recipe["train"] |= {"steps": 240, "evaluate_every": 40, "save_every": 3}
    (place / "long.yaml").write_text(json.dumps(recipe))

    def start(out: str) -> Torchrun:
        arguments = ("train", str(place / "long.yaml"), "--out", str(tmp_path / out), "--device", "cpu", "--json")
        return Torchrun(*arguments, count=2, folder=tmp_path)

    with start("wanted") as running:
        code, _, err = running.wait(within=300)
    assert code == 0, err
    staged = tmp_path / ".out.ligo-partial"
    for stage, how in enumerate(("terminate", "one dies", "all die")):
        with start("out") as running:
            running.until((staged / ".work" / f"train-steps-{stage}.safetensors").exists)
            ranks = running.ranks()
            assert set(ranks) == {0, 1}
            if how == "terminate":
                running.process.terminate()
            elif how == "one dies":
                # torchrun also ends the first process, which may come before it has seen the other's end: torchrun waits for it here.
                with paused(running.process.pid):
                    os.kill(ranks[1], signal.SIGKILL)
                    running.until(lambda running=running: "another process of this training has ended" in running.err())
            else:
                running.kill()
            code, _, err = running.wait(within=300)
        assert code != 0
        assert not (tmp_path / "out").exists()
        assert "a bug in" not in err
    shutil.copytree(staged, tmp_path / ".alone.ligo-partial")
    with start("out") as running:
        code, printed, err = running.wait(within=300)
    assert code == 0, err
    same(tmp_path / "out", tmp_path / "wanted")

    # In another number of processes the same training goes on, and says what that means.
    progress = RecordedProgress()
    recipe = load_recipe(place / "long.yaml", out=str(tmp_path / "alone"))
    found = train_model(recipe, device="cpu", progress=progress).json()
    assert found["processes"] == 1
    assert found["loss"] == pytest.approx(json.loads(printed)["loss"], abs=1e-3)
    assert any("begun in 2 process(es) and goes on in 1" in warning for warning in progress.warned)


@pytest.mark.slow
def test_a_mistake_in_a_recipe_is_told_as_one_by_all_processes(place: Path, tmp_path: Path) -> None:
    """Slow: torchrun starts two processes."""
    arguments = ("train", str(place / "grow.yaml"), "--set", "train.batch_size=5", "--out", str(tmp_path / "out"))
    with Torchrun(*arguments, "--device", "cpu", count=2, folder=tmp_path) as running:
        code, _, err = running.wait(within=300)
    assert code != 0
    assert "train.batch_size: the processes cannot share a batch equally" in err
    assert "a bug in" not in err
    assert not (tmp_path / "out").exists()


def test_another_number_of_processes_is_told(place: Path, grown: Path, tmp_path: Path) -> None:
    recipe = loaded(place, tmp_path / "out")
    with pytest.raises(ValueError, match="process group"):  # there is no other process
        train_model(recipe, device="cpu", processes=Processes(rank=0, size=2))
    progress = RecordedProgress()
    train_model(recipe, device="cpu", progress=progress)
    assert [line for line in progress.warned if "begun in 2 process(es) and goes on in 1" in line]
    same(tmp_path / "out", grown)


def test_a_batch_is_shared_equally(place: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a multiple of 3") as caught:
        train_model(loaded(place, tmp_path / "out"), device="cpu", processes=Processes(rank=0, size=3))
    assert "batch_size" in str(caught.value)
    shares = [Processes(rank=rank, size=3).rows(12) for rank in range(3)]
    assert [row for share in shares for row in share] == list(range(12))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_models_train_alike(place: Path, grown: Path, tmp_path: Path) -> None:
    """Slow: compiling takes half a minute. Each of three sizes is compiled to train and to measure, and never again."""
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    train_model(loaded(place, tmp_path / "compiled", **{"train.compile": True}), device="cpu")
    assert counters["stats"]["unique_graphs"] == 6
    assert not counters["recompiles"]
    for eager, compiled in zip(log_of(grown), log_of(tmp_path / "compiled"), strict=True):
        for name in ("loss", "validation_loss"):
            assert compiled.get(name) == pytest.approx(eager.get(name), abs=1e-4)

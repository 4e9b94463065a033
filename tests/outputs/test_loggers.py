"""Loggers for viewers: what the real TensorBoard and Weights & Biases read back, and what happens where a logger fails."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ligo_convert.errors import MachineError, MissingExtra, RecipeError
from ligo_convert.outputs import loggers
from ligo_convert.outputs.loggers import LOGGERS, logging_to, parse_logger
from ligo_convert.progress import MetricLogger, Progress, values_of

LINE = {"step": 1, "loss": 2.5, "learning_rate": {"width": 1e-4, "depth": 1e-2}, "tokens": 32, "seconds": 0.1}


class Heard(Progress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def log(wanted: Mapping[str, Path], steps: range, progress: Progress | None = None, *, run: str = "fit") -> None:
    progress = progress or Heard()
    with logging_to(wanted, progress):
        for step in steps:
            progress.measure(run, {**LINE, "step": step, "loss": 3.0 - step / 10})


def test_tensorboard_reads_what_was_measured(tmp_path: Path) -> None:
    log({"tensorboard": tmp_path / "curves"}, range(1, 4))
    found = read_scalars(tmp_path / "curves" / "fit")
    assert set(found) == {"loss", "learning_rate/width", "learning_rate/depth", "tokens", "seconds"}
    assert found["loss"] == [(step, pytest.approx(3.0 - step / 10)) for step in (1, 2, 3)]


def test_steps_that_a_resumed_run_repeats_are_there_once(tmp_path: Path) -> None:
    log({"tensorboard": tmp_path}, range(1, 8))
    log({"tensorboard": tmp_path}, range(5, 11))
    assert [step for step, _ in read_scalars(tmp_path / "fit")["loss"]] == list(range(1, 11))


def test_names_of_runs_become_folders_of_their_own(tmp_path: Path) -> None:
    names = [
        "lemon (seed 0, muon 0.02): 20 steps",
        "lemon (seed 1, muon 0.02): 20 steps",
        "../../out",
        "..",
        "a/b",
        "a_b",
    ]
    for name in names:
        log({"tensorboard": tmp_path / "curves"}, range(1, 2), run=name)
    assert [path.name for path in tmp_path.iterdir()] == ["curves"]
    folders = [path for path in (tmp_path / "curves").iterdir() if path.is_dir()]
    assert len(folders) == len(names)
    assert all(read_scalars(folder)["loss"] for folder in folders)


def test_wandb_writes_an_offline_run_without_names_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a-secret-argument"
    monkeypatch.setattr("sys.argv", ["ligo-convert", secret])
    log({"wandb": tmp_path / "curves"}, range(1, 4))
    (run,) = (tmp_path / "curves" / "wandb").glob("offline-run-*/run-*.wandb")
    written = run.read_bytes()
    for wanted in (b"loss", b"learning_rate/width", b"2.9", b"2.7"):
        assert wanted in written
    for private in (secret, str(tmp_path), str(Path.home()), socket.gethostname() + "."):
        assert private.encode() not in written


@pytest.mark.parametrize("text", ["tensorboard", "tensorboard=", "=curves", "csv=curves", "", "\x1b[2J=x"])
def test_a_faulty_option_names_what_there_is(text: str) -> None:
    with pytest.raises(RecipeError, match="tensorboard=DIR, wandb=DIR") as raised:
        parse_logger(text)
    assert "\x1b" not in str(raised.value)


def test_a_logger_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    for name in LOGGERS:
        with pytest.raises(MissingExtra, match=rf"ligo-convert\[{name}\]"):
            parse_logger(f"{name}=curves")


def test_a_folder_that_cannot_be_made_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="another folder"):
        log({"tensorboard": tmp_path / "file" / "curves"}, range(1))


class _Failing:
    def __init__(self, folder: Path) -> None:
        self.calls = 0

    def write(self, run: str, step: int, values: Mapping[str, float]) -> None:
        self.calls += 1
        if step == 2:
            raise OSError(28, "No space left on device")
        assert step < 2, "it is left out after its first error"

    def close(self) -> None:
        raise AssertionError("it is left out after its first error")


def test_a_logger_that_fails_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table: dict[str, type[MetricLogger]] = {"failing": _Failing}
    monkeypatch.setattr(loggers, "LOGGERS", table)
    progress = Heard()
    log({"failing": tmp_path}, range(1, 6), progress)
    assert progress.warnings == [
        "--logger failing failed and is left out from here on: OSError: [Errno 28] No space left on device"
    ]
    assert progress.loggers == ()


def test_what_is_not_finite_is_left_out() -> None:
    line: dict[str, Any] = {"step": 1, "loss": math.nan, "gradient_norm": math.inf, "tokens": 3, "note": "x"}
    assert values_of(line) == {"tokens": 3.0}

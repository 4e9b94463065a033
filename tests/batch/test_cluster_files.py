"""Shards from the environment of an array of tasks, and the cluster files to copy."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import click
import pytest

from ligo_convert.cli.main import _ARRAY, _share

FILES = Path(__file__).parents[2] / "docs/guide/clusters"


def set_array(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    for name in _ARRAY:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name if name in _ARRAY else f"SLURM_ARRAY_TASK_{name}", str(value))


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ({}, (0, 1)),
        ({"ID": 3, "MIN": 0, "MAX": 7, "STEP": 1, "COUNT": 8}, (3, 8)),
        ({"ID": 12, "MIN": 10, "MAX": 12, "STEP": 1, "COUNT": 3}, (2, 3)),
        ({"ID": 4, "MIN": 0, "MAX": 6, "STEP": 2, "COUNT": 4}, (2, 4)),
        ({"ID": 3, "MIN": 3, "MAX": 3, "STEP": 1, "COUNT": 1}, (0, 1)),
        ({"JOB_COMPLETION_INDEX": 1, "JOB_COMPLETIONS": 4}, (1, 4)),
    ],
)
def test_a_task_of_an_array_gets_its_shard(
    values: dict[str, int], share: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_array(monkeypatch, **values)
    assert _share(None) == share


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("number", [1, 3, 7])
def test_an_array_with_gaps_needs_the_shard_option(number: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_array(monkeypatch, ID=number, MIN=1, MAX=7, STEP=step, COUNT=3)
    with pytest.raises(click.BadParameter, match=r'have gaps.*--shard "\$SLURM_ARRAY_TASK_ID/N"'):
        _share(None)
    assert _share(f"{number}/8") == (number, 8)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"ID": 3, "MIN": 0}, "not the number of tasks"),
        ({"JOB_COMPLETION_INDEX": 1}, "not the number of tasks"),
        ({"JOB_COMPLETION_INDEX": 4, "JOB_COMPLETIONS": 4}, "task index 4 is not below the number of tasks 4"),
    ],
)
def test_a_task_without_a_known_shard_fails_with_the_reason(
    values: dict[str, int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_array(monkeypatch, **values)
    with pytest.raises(click.BadParameter, match=why):
        _share(None)


# --- files to copy ----------------------------------------------------------------------------------------------------


def run(script: Path, *arguments: str, folder: Path, commands: dict[str, str], **environment: str) -> str:
    """Run a script with stub commands. Returns the exit code, each call of a stub on a line, and stderr."""
    tools = folder / "tools"
    tools.mkdir()
    for name, then in commands.items():
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "{folder}/called"\n{then}\n')
        (tools / name).chmod(0o755)
    process = subprocess.run(
        ["bash", str(script), *arguments],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "PATH": f"{tools}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    called = folder / "called"
    return f"{process.returncode}\n{called.read_text() if called.exists() else ''}{process.stderr}"


def test_a_slurm_task_uses_its_cores_and_runs_its_shard_of_the_whole_array(tmp_path: Path) -> None:
    activate = tmp_path / "ligo/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    slurm = {"SLURM_CPUS_PER_TASK": "8", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "5"}
    called = run(
        FILES / "slurm.sh",
        "zoo.yaml",
        folder=tmp_path,
        commands={"srun": ""},
        SLURM_SUBMIT_DIR=str(tmp_path),
        **slurm,
    )
    assert called == "0\nsrun --cpus-per-task=8 ligo-convert batch zoo.yaml --shard 3/8 --jobs 1 --json\n"
    text = (FILES / "slurm.sh").read_text()
    assert "--array=0-7\n" in text
    assert "\nparts=8 " in text


def test_a_machine_joins_a_cluster_when_the_first_one_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = tmp_path / "ray.sh"
        text = (FILES / "ray.sh").read_text()
        script.write_text(text.replace("port=6379", f"port={port}"))
        folder = tmp_path / "there"
        folder.mkdir()
        called = run(script, "--join", "127.0.0.1", folder=folder, commands={"ray": ""})
        assert called == f"0\nray start --address 127.0.0.1:{port} --disable-usage-stats --block\n"
    script.write_text(text.replace("port=6379", f"port={port}").replace("wait_minutes=10", "wait_minutes=0"))
    folder = tmp_path / "gone"
    folder.mkdir()
    assert run(script, "--join", "127.0.0.1", folder=folder, commands={"ray": ""}) == (
        f"1\nno answer from 127.0.0.1:{port}\n"
    )

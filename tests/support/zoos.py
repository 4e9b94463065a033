"""Small manifests for tests, and the command that runs them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from support.checkpoints import HERE
from support.processes import HANDLE_SIGINT, finish, kill_session
from support.source_models import DEEPER, write_checkpoint, write_text

Zoo = Callable[..., Path]
CHAIN = (
    {"name": "first", "recipe": "deeper.yaml"},
    {"name": "second", "recipe": "deeper.yaml", "source": {"from": "first"}, "target": {"n_layer": 8}},
)
POISON = {"name": "poisoned", "recipe": "deeper.yaml", "source": "nowhere/at/all/x"}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sources") / "source")


@pytest.fixture
def zoo(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """Return a function that writes a manifest beside two recipes: `deeper.yaml` copies layers, `fitted.yaml` learns for two steps."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    deeper = {
        "version": 1,
        "source": {"model": str(source)},
        "target": {"config": DEEPER["gpt2"]},
        "growth": {"width": "copy", "depth": "stack"},
        "output": {"dir": "out"},
    }
    fit = {"steps": 2, "batch_size": 2, "sequence_length": 16, "heldout_tokens": 256, "data": {"text": ["text.txt"]}}
    (tmp_path / "deeper.yaml").write_text(json.dumps(deeper))
    (tmp_path / "fitted.yaml").write_text(json.dumps({**deeper, "fit": fit}))

    def write(*entries: Mapping[str, object], **more: object) -> Path:
        path = tmp_path / "zoo.yaml"
        path.write_text(json.dumps({"version": 1, "out": "zoo", "entries": entries, **more}))
        return path

    return write


def cli(manifest: Path, *options: str, before: str = "", **environment: str) -> subprocess.Popen[str]:
    """Start a batch in its own process and session, so that a test finds every process it leaves behind.

    Args:
        before: Python code that the process runs first.
    """
    program = f"{HANDLE_SIGINT}\n{before}\nfrom ligo_convert.cli.main import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "batch", str(manifest), *options],
        env={**os.environ, "PYTHONPATH": HERE, "OMP_NUM_THREADS": "1", **environment},
        cwd=manifest.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(condition: Callable[[], bool], process: subprocess.Popen[str], *, seconds: float = 120.0) -> None:
    """Wait until a condition holds while a process runs. Kill the process if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, finish(process)
        if time.monotonic() > deadline:
            kill_session(process)
            raise AssertionError(f"the condition did not hold within {seconds:g} s\n{finish(process)[1]}")
        time.sleep(0.02)


def weights(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("*.safetensors")}

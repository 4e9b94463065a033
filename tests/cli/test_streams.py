"""Standard streams that are closed, full or read by nobody: the work is done, and its exit code says what could not be printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.light_models import write_light_recipe, write_light_source

ROOT = Path(__file__).parents[2]
LIMIT = 120.0
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device is one of Linux")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("streams")
    write_light_source(place / "source")
    write_light_recipe(place / "recipe.yaml")
    return place


def shell(place: Path, command: str, redirected: str) -> subprocess.CompletedProcess[bytes]:
    """A real process under a shell that redirects its streams; a reader that ends at once is `| true`."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m ligo_convert {command} {redirected}"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=LIMIT,
    )


@pytest.mark.parametrize("command", ["--help", "plan recipe.yaml", "plan recipe.yaml --json"])
@pytest.mark.parametrize(
    ("redirected", "code", "words"),
    [
        (">/dev/full", 5, b"cannot be printed: No space left"),
        (">&-", 5, b"cannot be printed: Bad file descriptor"),
        ("| true", 141, b""),
        (">&- 2>&-", 5, b""),
        ("2>/dev/full >/dev/null", 0, b""),
    ],
)
def test_a_result_that_cannot_be_printed_is_no_bug(
    place: Path, command: str, redirected: str, code: int, words: bytes
) -> None:
    done = shell(place, command, redirected)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"bug" not in done.stderr


@pytest.mark.slow  # four real processes import torch
def test_the_work_is_done_though_nothing_can_be_printed(place: Path, tmp_path: Path) -> None:
    """With all three streams closed, the first files of the work would also get their numbers, and what is printed."""
    usual = json.loads(shell(place, f"run recipe.yaml --json --out {tmp_path / 'usual'}", "").stdout)
    assert usual["changed"] is True
    for number, (redirected, code) in enumerate(
        {">/dev/full 2>/dev/full": 5, "| true": 141, "<&- >&- 2>&-": 5}.items()
    ):
        out = tmp_path / str(number)
        assert shell(place, f"run recipe.yaml --out {out}", redirected).returncode == code
        for name in ("model.safetensors", "config.json", "ligo/recipe.yaml", "ligo/operator.safetensors"):
            assert (out / name).read_bytes() == (tmp_path / "usual" / name).read_bytes()
        assert (out / "ligo" / "SHA256SUMS").is_file()


def test_a_fault_of_the_work_keeps_its_code(place: Path) -> None:
    for redirected in (">/dev/full", ">&-", "| true", ">&- 2>&-"):
        done = shell(place, "plan missing.yaml", redirected)
        assert done.returncode == 2
        assert b"printed" not in done.stderr


def test_a_letter_that_the_encoding_lacks_is_escaped(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "n\u00e4me"
    folder.symlink_to(place / "source")
    done = subprocess.run(
        [sys.executable, "-m", "ligo_convert", "inspect", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"n\\xe4me" in done.stdout


def test_a_signal_ends_a_process_that_cannot_say_so(place: Path) -> None:
    """A call into a library that does not end, and a full stderr: the process ends all the same."""
    code = (
        "import hashlib, os, sys\nimport ligo_convert.conversion.train_plan\nfrom ligo_convert.cli.main import main\n"
        "def long(_):\n"
        "    os.write(1, b'begun')\n"
        "    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 300_000_000)\n"
        "ligo_convert.conversion.train_plan.plan_recipe = long\n"
        "sys.argv = ['ligo-convert', 'plan', 'recipe.yaml']\nmain()"
    )
    with (
        Path("/dev/full").open("wb") as full,
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=full,
        ) as running,
    ):
        assert running.stdout is not None
        assert running.stdout.read(5) == b"begun"
        running.terminate()
        try:
            assert running.wait(timeout=30) == 128 + signal.SIGTERM
        finally:
            running.kill()

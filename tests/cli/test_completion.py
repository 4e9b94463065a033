"""Completion in a shell: what a shell asks for, and what it gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from ligo_convert.cli.main import cli
from ligo_convert.families.registry import FAMILIES
from ligo_convert.recipes.examples import examples

ROOT = Path(__file__).parents[2]


def completed(*typed: str) -> list[str]:
    """What a shell offers for the last word."""
    asked = ShellComplete(cli, {}, "ligo-convert", "_LIGO_CONVERT_COMPLETE")
    return [item.value for item in asked.get_completions(list(typed[:-1]), typed[-1])]


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (("ru",), ["run"]),
        (("describe", "qw"), ["qwen2", "qwen2_moe", "qwen3", "qwen3_moe"]),
        (("run", "a.yaml", "--set", "fit.st"), ["fit.steps="]),
        (("run", "a.yaml", "--set", "growth.width=le"), ["growth.width=lemon"]),
        (("run", "a.yaml", "--set", "train.optimizer="), ["train.optimizer=adamw", "train.optimizer=muon"]),
        (("run", "a.yaml", "--set", "compare.compile="), ["compare.compile=true", "compare.compile=false"]),
        (("run", "a.yaml", "--set", "fit.steps="), []),
        (("compare", "a.yaml", "--methods", "late,lem"), ["late,lemon"]),
        (("choose", "a.yaml", "--candidates", "hyper"), ["hyperclone"]),
        (("methods", "mean"), ["mean-preserving"]),
        (("run", "--example", "quick"), ["quickstart"]),
        (("init", "--example", "deit"), ["deit_s_to_b"]),
    ],
)
def test_names_are_completed(typed: tuple[str, ...], wanted: list[str]) -> None:
    assert completed(*typed) == wanted


def test_all_there_is_is_offered() -> None:
    assert completed("describe", "") == list(FAMILIES)
    assert completed("plan", "--example", "") == list(examples())
    keys = completed("run", "a.yaml", "--set", "")
    assert {"source.model=", "fit.data.text=", "compare.seeds=", "growth.operator.tie="} <= set(keys)
    assert not {"fit=", "fit.data=", "growth="} & set(keys), "sections have no value of their own"


def test_a_shell_gets_its_script() -> None:
    """As docs/guide/cli.md says."""
    done = subprocess.run(
        [sys.executable, "-c", "from ligo_convert.cli.main import main; main()"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "_LIGO_CONVERT_COMPLETE": "bash_source"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "_ligo_convert_completion" in done.stdout, done.stderr

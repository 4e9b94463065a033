"""Configs and weights enter the libraries through a few calls, and each of them refuses foreign code and pickles."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ligo_convert
from ligo_convert.cli.main import main

ROOT = Path(ligo_convert.__file__).parents[1]
FILES = [path for folder in ("ligo_convert", "scripts", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]

# Methods that read a config from a directory or the Hub, and the functions that build a model from a config: who may call them.
LOADERS = ("from_pretrained", "from_config", "from_name")
DOORS = {
    "for_model": {"training/library_config.py"},
    "create_model": {"training/functional_model.py", "outputs/loading.py", "in_memory.py"},
}


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Every method call of a source by the method's name, those in programs that stand in a string too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr, node
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "\nfrom transformers import" in node.value
        ):
            yield from calls(node.value)


def test_the_law_sees_calls_in_programs_too() -> None:
    program = "LOAD = '''\nfrom transformers import A\nA.from_pretrained(x)\n'''\nb.from_config(y)"
    assert sorted(name for name, _ in calls(program)) == ["from_config", "from_pretrained"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_loading_call_refuses_foreign_code_and_pickles(path: Path) -> None:
    for name, call in calls(path.read_text(encoding="utf-8")):
        given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        if name in LOADERS:
            assert given.get("trust_remote_code") is False, f"{path}:{call.lineno}: pass trust_remote_code=False"
            weights = not any(kind in ast.unparse(call.func) for kind in ("Tokenizer", "Config"))
            if weights and name == "from_pretrained":
                assert given.get("use_safetensors") is True, f"{path}:{call.lineno}: pass use_safetensors=True"
        if name in DOORS and path.is_relative_to(ROOT / "ligo_convert"):
            module = path.relative_to(ROOT / "ligo_convert").as_posix()
            assert module in DOORS[name], f"{path}:{call.lineno}: use training.library_config"


def test_the_command_line_turns_kernels_from_the_hub_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_HUB_KERNELS", "1")
    monkeypatch.setattr(sys, "argv", ["ligo-convert", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["USE_HUB_KERNELS"] == "0"

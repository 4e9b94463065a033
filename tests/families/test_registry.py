"""Families from outside the package: a user's file, and entry points of installed packages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.registered import families_restored
from support.source_models import recipe_text, write_case

from ligo_convert.cli.main import main
from ligo_convert.errors import MachineError, RecipeError, SourceError
from ligo_convert.families import registry
from ligo_convert.families.registry import FAMILIES, family_source, find_family, load_family_file

# A table of its own name for models that the library knows as Llama.
COPY = """from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.llama import LLAMA

ALPACA = replace(LLAMA, name="alpaca")
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The registry is a table of the process: every test leaves it as it was."""
    with families_restored():
        yield


def written(folder: Path, text: str, name: str = "alpaca.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line in this process."""
    monkeypatch.setattr(sys, "argv", ["ligo-convert", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_file_adds_its_families_and_leaves_those_it_imports(tmp_path: Path) -> None:
    before = dict(FAMILIES)
    (family,) = load_family_file(written(tmp_path, COPY))
    assert list(FAMILIES.items()) == [("alpaca", family), *before.items()]
    assert find_family({"model_type": "llama"}, where="config.json") is family
    source = family_source("alpaca")
    assert source is not None
    assert source.json() == {"kind": "file", "sha256": hashlib.sha256(COPY.encode()).hexdigest()}
    assert family_source("llama") is None
    # The same file once more is no clash.
    assert [found.name for found in load_family_file(tmp_path / "alpaca.py")] == ["alpaca"]


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        (COPY.replace("alpaca", "gpt2"), "the family name 'gpt2' is already in use", None),
        (COPY + 'OTHER = replace(LLAMA, name="alpaca", model_type="x")\n', "'alpaca' is defined twice", None),
        (COPY + 'OTHER = replace(LLAMA, name="vicuna")\n', "have the same model_type 'llama'", None),
        (COPY + "def broken(:\n", "the family file is not valid Python", 8),
        (COPY + "1 / 0\n", "the family file failed with ZeroDivisionError: division by zero", 8),
        (COPY + "raise SystemExit(0)\n", "the family file failed with SystemExit", 8),
        ("NUMBER = 1\n", "the file defines no family", None),
        (COPY.replace('name="alpaca"', 'name="alpaca", heads=()'), "the family 'alpaca' is not valid: `heads`", None),
        (
            COPY.replace('name="alpaca"', 'name="alpaca", tensors={"a.weight": "embed <- nowhere"}'),
            "'nowhere' is neither an axis nor a stream",
            None,
        ),
        (COPY.replace('name="alpaca"', 'name="alpaca", defaults={}'), "the family 'alpaca' is not valid", None),
    ],
)
def test_an_unusable_file_is_refused_and_changes_nothing(
    text: str, message: str, line: int | None, tmp_path: Path
) -> None:
    before = dict(FAMILIES)
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_family_file(path)
    assert message in str(caught.value)
    assert caught.value.where == (str(path) if line is None else f"{path}:{line}")
    assert list(FAMILIES.items()) == list(before.items())


def test_a_file_that_was_edited_is_loaded_again(tmp_path: Path) -> None:
    path = written(tmp_path, COPY)
    (first,) = load_family_file(path)
    names = list(FAMILIES)
    for broken in ("ALPACA = 1\n", "syntax error", COPY.replace("alpaca", "llama")):
        with pytest.raises(RecipeError):
            load_family_file(written(tmp_path, broken))
        assert FAMILIES["alpaca"] is first
        assert list(FAMILIES) == names
    (second,) = load_family_file(written(tmp_path, COPY.replace('name="alpaca"', 'name="alpaca", paper="new"')))
    assert FAMILIES["alpaca"] is second
    assert second.paper == "new"
    (renamed,) = load_family_file(written(tmp_path, COPY.replace("alpaca", "vicuna")))
    assert FAMILIES["vicuna"] is renamed
    assert "alpaca" not in FAMILIES
    assert registry.family_files() == (path,)


def test_a_missing_file_and_another_one_of_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the family file"):
        load_family_file(tmp_path / "nothing.py")
    load_family_file(written(tmp_path, COPY))
    with pytest.raises(RecipeError, match="already in use"):
        load_family_file(written(tmp_path, COPY + "# changed\n", "other.py"))


def test_an_installed_package_registers_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = COPY.replace('name="alpaca"', 'name="alpaca", model_type="alpaca"')
    written(tmp_path, text + 'CLASH = replace(LLAMA, name="vicuna")\nNUMBER = 1\n', "plugin_of_a_test.py")

    def registered(value: str) -> None:
        entry = importlib.metadata.EntryPoint(name="alpaca", value=value, group="ligo_convert.families")
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
        registry._register_plugins()

    registered("plugin_of_a_test:ALPACA")
    assert find_family({"model_type": "alpaca"}, where="config.json").name == "alpaca"
    source = family_source("alpaca")
    assert source is not None
    assert source.kind == "plugin"
    assert source.sha256 == hashlib.sha256((tmp_path / "plugin_of_a_test.py").read_bytes()).hexdigest()
    with pytest.raises(MachineError, match="clashes with llama"):
        registered("plugin_of_a_test:CLASH")
    for value in ("plugin_of_a_test:NUMBER", "plugin_of_a_test:MISSING", "no_such_module_at_all:X"):
        with pytest.raises(MachineError, match="a family that cannot be used"):
            registered(value)


def test_the_command_line_refuses_a_broken_file_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "def broken(:\n")
    code, out, err = command(monkeypatch, capsys, "plan", tmp_path / "recipe.yaml", "--family", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path}:1: the family file is not valid Python")
    code, _, err = command(monkeypatch, capsys, "describe", "llama", "--family", written(tmp_path, COPY))
    assert (code, err) == (0, "")
    code, out, _ = command(monkeypatch, capsys, "describe", "alpaca", "--family", tmp_path / "alpaca.py", "--json")
    assert (code, json.loads(out)["family"]) == (0, "alpaca")
    words = ("batch", tmp_path / "zoo.yaml", "--family", tmp_path / "alpaca.py", "--engine", "ray")
    code, _, err = command(monkeypatch, capsys, *words)
    assert (code, "the machines of a cluster may not have the file" in err) == (2, True)


@pytest.mark.slow  # a worker process imports torch
def test_worker_processes_load_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_case(tmp_path / "source", "llama")
    (tmp_path / "recipe.yaml").write_text(
        recipe_text(
            "source", {"num_hidden_layers": 5}, growth={"width": "copy", "depth": "identity"}, output={"dir": "out"}
        )
    )
    (tmp_path / "many.yaml").write_text("{version: 1, out: outs, entries: [{name: a, recipe: recipe.yaml}]}")
    file = written(tmp_path, COPY)
    words = ("batch", "many.yaml", "--jobs", "2", "--json", "--family", file)
    code, out, err = command(monkeypatch, capsys, *words)
    assert code == 0, err
    assert json.loads(out)["entries"]["a"]["family"] == "alpaca"
    code, out, _ = command(monkeypatch, capsys, *words)
    assert json.loads(out)["entries"]["a"]["again"] is True
    # Another file is another run, which its output is no result of.
    written(tmp_path, COPY + "# changed\n")
    assert command(monkeypatch, capsys, *words)[0] == 6


def test_a_family_of_a_file_goes_through_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planned, run, inspected and verified; applied to a sibling; and another file of the same name is another run."""
    monkeypatch.chdir(tmp_path)
    write_case(tmp_path / "source", "llama")
    changes = {"num_hidden_layers": 5}
    (tmp_path / "recipe.yaml").write_text(
        recipe_text("source", changes, growth={"width": "copy", "depth": "identity"}, output={"dir": "out"})
    )
    file = written(tmp_path, COPY)

    def call(*words: object, own: bool = True) -> tuple[int, Any]:
        code, out, err = command(monkeypatch, capsys, *words, "--json", *(("--family", file) if own else ()))
        return code, json.loads(out) if code == 0 else err

    code, planned = call("plan", "recipe.yaml")
    assert (code, planned["family"]) == (0, "alpaca")
    code, result = call("run", "recipe.yaml")
    assert (code, result["family"], result["changed"]) == (0, "alpaca", True)
    assert call("run", "recipe.yaml")[1]["changed"] is False
    assert call("inspect", "out")[0] == 0
    assert call("verify", "out", "--source", "source")[1]["family"] == "alpaca"
    assert call("apply", "out/ligo/operator.safetensors", "source", "applied")[0] == 0
    digest = {"kind": "file", "digest": {"sha256": hashlib.sha256(COPY.encode()).hexdigest()}}
    for folder in ("out", "applied"):
        statement = json.loads((tmp_path / folder / "ligo/provenance.json").read_text())
        definition = statement["predicate"]["buildDefinition"]
        assert definition["internalParameters"]["family"] == "alpaca"
        assert definition["internalParameters"]["familySource"] == digest
    forget("alpaca")
    code, err = call("verify", "out", own=False)
    assert code == 3
    assert "load its table with --family FILE" in err
    file.write_text(COPY + "# another file\n")
    code, err = call("verify", "out")
    assert code == 7
    assert "is not the one that the output was made with" in err
    # The recipe's digest holds that of the file.
    assert call("run", "recipe.yaml")[0] == 6
    forget("alpaca")
    assert call("run", "recipe.yaml", own=False)[0] == 6
    with pytest.raises(SourceError, match="model_type 'alpaca' is not supported"):
        find_family({"model_type": "alpaca"}, where="config.json")


def forget(name: str) -> None:
    """Take a loaded family away again, as in a new process."""
    del FAMILIES[name]
    del registry._SOURCES[name]

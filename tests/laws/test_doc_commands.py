"""The commands that the documentation shows: each is one, with options that exist; the first steps run as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from support.source_models import write_checkpoint, write_text

from ligo_convert.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

SECONDS = 300  # for one command, on a busy machine


def shell_lines(page: Path) -> Iterator[str]:
    """Yield the commands of a page's shell blocks, and of the comment at the head of a recipe."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        blocks = [re.sub(r"^#  +", "", line) for line in head.splitlines() if re.match(r"#  +ligo-convert ", line)]
        # A command may go on in the next line.
        blocks = [block for block in blocks if not block.endswith("\\")]
    else:
        blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for block in blocks:
        yield from filter(None, block.replace("\\\n", " ").splitlines())


def words_of(line: str) -> list[str]:
    """The words of a command without comment, without variables that are set before it."""
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[:1] == ["torchrun"]:
        words = ["ligo-convert", *words[words.index("ligo_convert") + 1 :]]
    return words


COMMANDS = [
    pytest.param(line, id=f"{page.name}: {line[:60]}") for page in (*PAGES, *RECIPES) for line in shell_lines(page)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_documentation_is_one(line: str) -> None:
    program, *arguments = words_of(line)
    if program != "ligo-convert":
        assert program in ("pip", "python", "hf"), program
        return
    name, *arguments = arguments
    command = cli.commands[name]
    # As the group makes it: a command keeps the form of its help option.
    context = click.Context(command, info_name=name, parent=click.Context(cli, **cli.context_settings))
    given, rest, _ = command.make_parser(context).parse_args(arguments)
    assert not rest, f"{rest} is too much"
    for parameter in command.params:
        value = given.get(str(parameter.name))
        if isinstance(parameter, click.Argument) and parameter.required:
            assert value not in (None, ()), f"{parameter.name} is missing"
        if isinstance(parameter.type, click.Choice) and isinstance(value, str):
            assert value in parameter.type.choices
    example = given.get("example")
    if isinstance(example, str):
        assert (ROOT / "recipes" / f"{example}.yaml").is_file()
    recipe = given.get("recipe")
    if isinstance(recipe, str) and recipe.startswith("recipes/"):
        assert (ROOT / recipe).is_file()


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 60


@pytest.mark.slow
def test_the_first_steps_run_as_they_stand(tmp_path: Path) -> None:
    """Every command of getting-started.md in order, in one directory, with fewer steps of training."""
    page = ROOT / "docs" / "getting-started.md"
    write_checkpoint(tmp_path / "my-gpt2")
    recipe, training = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    # The model here is a tiny one.
    recipe = recipe.replace("n_layer: 24, n_embd: 1024, n_head: 16", "n_layer: 4, n_embd: 24, n_head: 3")
    training = training.replace("steps: 2000", "steps: 4, sequence_length: 16, batch_size: 2")
    # The page shows what may stand in the file that `init` writes, and what is added for `train`.
    written = {"plan": recipe, "train": recipe + training}
    (tmp_path / "corpus").mkdir()
    write_text(tmp_path / "corpus" / "a.txt")
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    program = shutil.which("ligo-convert", path=environment["PATH"])
    assert program is not None, "the package is installed"
    done = []
    for line in shell_lines(page):
        words = words_of(line)
        if words[0] != "ligo-convert":
            continue
        fewer = {}
        if "quickstart" in words and words[1] == "run":
            fewer = {"LIGO_CONVERT_RUN_SET": "fit.steps=5 source.pretrain.steps=20"}
        if words[1] in written:
            (tmp_path / "recipe.yaml").write_text(written[words[1]])
        ended = subprocess.run(
            words,
            cwd=tmp_path,
            env={**environment, **fewer},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert ended.returncode == 0, f"{line}\n{ended.stderr}"
        done.append(words[1])
    assert done == ["run", "inspect", "verify", "init", "plan", "run", "train"]
    assert json.loads((tmp_path / "out" / "grown" / "config.json").read_text())["n_layer"] == 4
    assert (tmp_path / "out" / "trained" / "model.safetensors").is_file()

"""The command line: exit codes, what goes to stdout and what to stderr, errors in a few lines, nothing heavy without need."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import click
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support.faults import inject
from support.source_models import DEEPER, GROWN, fit_section, recipe_text, write_checkpoint, write_text

from ligo_convert.cli.main import SECTIONS, cli, main
from ligo_convert.comparison.methods import METHODS
from ligo_convert.comparison.strategies import OPTIONS, STRATEGIES
from ligo_convert.families.registry import FAMILIES
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.recipes.recipe import SCHEMA_COMMENT

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
LIMIT = 120.0  # seconds that a child process may take
HEAVY = ("torch", "transformers", "tokenizers", "datasets", "matplotlib", "timm", "huggingface_hub")


@dataclass(frozen=True, kw_only=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        found = json.loads(self.out)
        assert self.out == self.out.strip() + "\n"
        assert "\n" not in self.out.strip()
        assert isinstance(found, dict)
        return found


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """The command line in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["ligo-convert", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int) or code is None
        assert "Traceback" not in err or "--debug" in arguments
        return Ended(code=code or 0, out=out, err=err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """A working directory with a recipe, a source and a corpus."""
    folder = tmp_path / "place"
    (folder / "corpus").mkdir(parents=True)
    write_text(folder / "corpus" / "a.txt")
    shutil.copytree(model, folder / "source")
    (folder / "recipe.yaml").write_text(recipe_text("./source", GROWN["gpt2"]))
    (folder / "copies.yaml").write_text(
        recipe_text("./source", DEEPER["gpt2"], growth={"width": "copy", "depth": "stack"})
    )
    (folder / "fit.yaml").write_text(recipe_text("./source", GROWN["gpt2"], fit=fit_section()))
    monkeypatch.chdir(folder)
    return folder


def python(code: str, *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Ended:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    return Ended(code=done.returncode, out=done.stdout, err=done.stderr)


# --- what is printed --------------------------------------------------------------------------------------------------


def test_run_prints_one_object(call: Call, place: Path) -> None:
    found = call("run", "fit.yaml", "--json").json
    assert found["out"] == "out"
    assert found["family"] == "gpt2"
    assert found["parameters"].keys() == {"source", "target"}
    assert found["loss"].keys() >= {"source", "initial", "fitted"}
    assert all(isinstance(found["loss"][name], float) for name in ("source", "initial", "fitted"))
    assert found["flops"].keys() == {"fit", "target_step"}
    assert found["preservation"].keys() >= {"verdict", "max_logit_difference", "loss_difference"}
    assert found["seconds"].keys() == {"plan", "fit", "write", "verify"}
    assert found["peak_rss_bytes"] > 0
    again = call("run", "fit.yaml", "--json")
    assert again.json == {**found, "changed": False}
    assert "nothing to do" in again.err


def test_copies_have_no_figures(call: Call, place: Path) -> None:
    found = call("run", "copies.yaml", "--json").json
    assert found["loss"] == {"source": None, "initial": None, "fitted": None, "random_target": None}
    kept = found["preservation"]
    assert [kept[name] for name in ("verdict", "max_logit_difference", "loss_difference")] == [None, None, None]


def test_nonfinite_figures_are_null(call: Call, place: Path) -> None:
    path = place / "source" / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.0.ln_1.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    arguments = ("recipe.yaml", "--set", "source.allow_nonfinite=true")
    first = call("run", *arguments, "--json").json
    assert first["preservation"]["verdict"] is None
    assert first["preservation"]["max_logit_difference"] is None
    assert first["verification"]["finite"] is False
    assert call("run", *arguments, "--json").json == {**first, "changed": False}
    for text in (call("run", *arguments), call("verify", "out")):
        assert text.code == 0
        assert "some values NaN or infinite" in text.out


def run_lines(report: str) -> dict[str, Any]:
    """Run the Python lines of a report, and return what they name."""
    lines = report.partition("Load it in Python:\n")[2].partition("\nNext:")[0]
    names: dict[str, Any] = {}
    exec(textwrap.dedent(lines), names)
    return names


@pytest.mark.parametrize("recipe", ["recipe.yaml", "copies.yaml", "fit.yaml"])
def test_reports_are_text_on_stdout(recipe: str, call: Call, place: Path) -> None:
    planned = call("plan", recipe, "--rows")
    assert planned.code == 0
    row = "transformer.h.{layer}.attn.c_attn.weight"
    assert row in planned.out
    assert row not in call("plan", recipe).out
    assert f"ligo-convert run {recipe}" in planned.out
    assert "12.4k -> " in planned.out
    assert ("in silent layers" in planned.out) == (recipe != "copies.yaml")
    done = call("run", recipe, "-q")
    assert (done.code, done.err) == (0, "")
    assert "out" in done.out
    assert ("fitted operator" in done.out) == (recipe == "fit.yaml")
    loaded = run_lines(done.out)
    assert type(loaded["model"]).__name__ == "GPT2LMHeadModel"
    assert loaded["tokenizer"].vocab_size == loaded["model"].config.vocab_size
    inspected = call("inspect", "out").out
    assert "{" not in inspected, "no record is printed"
    assert run_lines(inspected).keys() >= {"model", "tokenizer"}
    for line in ("width ", "parameters", "n_embd 16 -> 24" if recipe != "copies.yaml" else "n_layer 2 -> 4", "license"):
        assert line in inspected
    assert (", fitted " in inspected) == (recipe == "fit.yaml")
    again = call("run", recipe)
    assert (again.code, again.out) == (0, done.out)
    verified = call("verify", "out", "--source", "source", "--load", "-q")
    assert (verified.code, verified.err) == (0, "")
    assert "bit for bit" in verified.out
    assert "GPT2LMHeadModel" in verified.out


@pytest.mark.slow
def test_plan_prints_one_object_and_writes_nothing(call: Call, place: Path) -> None:
    before = sorted(place.rglob("*"))
    found = call("plan", "fit.yaml", "--json").json
    assert found["axes"]["embed"] == {"source": 16, "target": 24}
    assert found["source"] == {"label": "source", "revision": None, "at_hand": True}
    assert found["config_edits"]["n_layer"] == {"source": 2, "target": 3}
    assert sum(file["nbytes"] for file in found["files"]) == found["nbytes"]
    assert found["growth"]["learned_parameters"] > 0
    assert sorted(place.rglob("*")) == before
    assert call("run", "fit.yaml").code == 0
    assert (place / "out" / "model.safetensors").stat().st_size == found["nbytes"]


def test_a_plan_with_training_says_how_long_it_may_take(
    call: Call, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ligo_convert.cli.expected_time._GPU", place / "no-gpu")
    assert re.search(r"^time +about .+ to .+ on this processor", call("plan", "fit.yaml").out, re.MULTILINE)
    assert "on this processor" not in call("plan", "copies.yaml").out


@pytest.mark.slow
def test_a_plan_says_what_a_run_would_use(call: Call, place: Path) -> None:
    planned, done = call("plan", "fit.yaml", "--json").json, call("run", "fit.yaml", "--json").json
    assert planned["parameters"] == done["parameters"]
    assert planned["flops"] == done["flops"]
    assert planned["preservation"]["verdict"] == done["preservation"]["verdict"]


def test_curves_for_a_viewer(call: Call, place: Path) -> None:
    """The curve of a fit is that of its log, and what is written does not depend on who looks at it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call("run", "fit.yaml", "--out", "plain").code == 0
    assert call("run", "fit.yaml", "--out", "logged", "--logger", "tensorboard=curves").code == 0
    operator = Path("ligo/operator.safetensors")
    assert (Path("plain") / operator).read_bytes() == (Path("logged") / operator).read_bytes()
    lines = [json.loads(line) for line in Path("logged/ligo/fit.jsonl").read_text().splitlines()]
    events = EventAccumulator("curves/fit").Reload()
    for name in ("loss", "validation_loss", "initial_validation_loss"):
        expected = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]
        assert [(one.step, one.value) for one in events.Scalars(name)] == expected
        assert expected
    # The next command logs nothing.
    assert call("run", "fit.yaml", "--out", "again").code == 0
    assert [path.name for path in Path("curves").iterdir()] == ["fit"]


def test_fit_apply_and_inspect(call: Call, place: Path) -> None:
    figures = call("fit", "fit.yaml", "--operator", "grown.safetensors", "--json").json
    assert figures["operator"] == "grown.safetensors"
    assert figures["fit"]["steps"] == 6
    assert call("fit", "fit.yaml", "--operator", "grown.safetensors").code == 6
    report = call("fit", "fit.yaml", "--operator", "again.safetensors")
    assert (report.code, "held-out loss" in report.out) == (0, True)
    assert (place / "again.safetensors").read_bytes() == (place / "grown.safetensors").read_bytes()
    applied = call("apply", "grown.safetensors", "source", "out", "--json").json
    assert (applied["out"], applied["changed"]) == ("out", True)
    assert call("apply", "grown.safetensors", "source", "text").code == 0
    assert not json.loads(call("apply", "grown.safetensors", "source", "out", "--json").out)["changed"]
    assert call("apply", "grown.safetensors", "source", "source/out").code == 2
    kinds = {
        "source": "checkpoint",
        "out": "output",
        "grown.safetensors": "operator",
        "out/ligo/operator.safetensors": "operator",
    }
    for path, kind in kinds.items():
        found = call("inspect", path, "--json").json
        assert (found["kind"], found["path"]) == (kind, path)
        text = call("inspect", path)
        assert (text.code, text.err) == (0, "")
        assert kind in text.out
    assert call("inspect", "out", "--json").json["axes"]["embed"] == 24
    assert call("inspect", "grown.safetensors", "--json").json["axes"]["embed"] == {"source": 16, "target": 24}


def test_what_is_there(call: Call) -> None:
    found = call("families", "--json").json["families"]
    assert [family["name"] for family in found] == list(FAMILIES)
    starts = call("methods", "--json").json["methods"]
    assert [(start["axis"], start["name"]) for start in starts] == [
        *(("width", name) for name in WIDTHS),
        *(("depth", name) for name in DEPTHS),
        *(("strategy", name) for name in STRATEGIES),
        *(("option", f"+{name}") for name in OPTIONS),
        *(("compare", name) for name in (*METHODS, "schedule")),
    ]
    assert all(start["summary"] and start["paper"] and start["cost"] for start in starts)
    listed, rest = call("families").out.split("\n\n")
    assert len(listed.splitlines()) == 1 + len(found), "one line each"
    assert "describe NAME" in rest
    page = call("methods").out.splitlines()
    for start in starts:
        assert any(line.split()[0] == start["name"] and start["summary"] in line for line in page if line.strip())
    for name, family in FAMILIES.items():
        described = call("describe", name, "--json").json
        assert [row["pattern"] for row in described["rows"]] == [row.pattern for row in family.rows]
        text = call("describe", name).out
        assert all(row.pattern in text for row in family.rows)
        assert f"{described['parameters']:,}" in text
    one = call("methods", "copy", "--json").json["methods"]
    assert [(start["axis"], start["name"]) for start in one] == [
        ("width", "copy"),
        ("depth", "copy"),
        ("option", "+copy"),
    ]
    lemon = call("methods", "lemon").out
    assert all(start["summary"] in lemon and start["paper"] in lemon for start in starts if start["name"] == "lemon")
    missing = call("methods", "lemn")
    assert (missing.code, "did you mean 'lemon'?" in missing.err) == (2, True)
    wrong = call("describe", "gpt2s")
    assert wrong.code == 2
    assert "did you mean 'gpt2'?" in wrong.err


# --- nothing heavy without need ---------------------------------------------------------------------------------------


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom ligo_convert.cli.main import cli\n"
        "for arguments in (['--help'], ['--version'], ['-h'], *([name, '--help'] for name in cli.commands)):\n"
        "    done = CliRunner().invoke(cli, arguments)\n"
        "    assert done.exit_code == 0, (arguments, done.output)\n"
        "    assert len(done.output) > 10\n"
        "print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    done = python(code, *HEAVY, "numpy", "rich", "pydantic", "safetensors", "ruamel")
    assert (done.code, done.out.strip()) == (0, "[]"), done.err


def test_every_command_explains_itself() -> None:
    assert cli.commands.keys() >= {
        "run",
        "plan",
        "fit",
        "apply",
        "inspect",
        "verify",
        "families",
        "methods",
        "describe",
    }
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, (name, parameter.name)


def test_help_has_every_command_once_and_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [name for commands in SECTIONS.values() for name in commands]
    assert sorted(listed) == sorted(cli.commands)
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(cli, ["--help"]).output
    assert max(map(len, shown.splitlines())) <= 80
    for commands in SECTIONS.values():
        for line in commands.values():
            assert line in shown


def test_an_example_stands_for_a_recipe(call: Call, place: Path) -> None:
    names = call("examples", "--json").json["examples"]
    assert names.keys() == {path.stem for path in RECIPES}
    assert all(len(line) > 20 for line in names.values())
    assert "quickstart" in call("examples").out
    # A plan of the file and one of the name are the same.
    quickstart = ROOT / "recipes" / "quickstart.yaml"
    assert call("plan", "--example", "quickstart", "--json").out == call("plan", quickstart, "--json").out
    copied = call("init", "--example", "quickstart")
    assert (copied.code, copied.out) == (0, "wrote quickstart.yaml\n")
    (first, *rest), (named, *lines) = (
        path.read_text().splitlines() for path in (place / "quickstart.yaml", quickstart)
    )
    assert rest == lines
    # Where the copy lies, the relative path would not lead to the schema.
    assert (
        Path(first.removeprefix(SCHEMA_COMMENT)) == (quickstart.parent / named.removeprefix(SCHEMA_COMMENT)).resolve()
    )
    assert call("init", "--example", "quickstart", "--out", "-").out == (place / "quickstart.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan"], "Missing argument 'RECIPE', or --example NAME."),
        (["plan", "recipe.yaml", "--example", "quickstart"], "RECIPE and --example exclude each other."),
        (["plan", "--example", "quickstar"], "no example 'quickstar'\n  did you mean quickstart?"),
        (["init"], "Missing argument 'SOURCE', or --example NAME."),
        (["init", "source", "--example", "quickstart"], "--example stands alone"),
        (["init", "source", "--size", "gpt2", "--grow", "n_layer=4"], "--grow and --size exclude each other."),
        (["init", "source", "--grow", "n_layer"], "--grow 'n_layer': expected KEY=VALUE"),
        (["init", "source", "--grow", "n_layer=[1"], "--grow 'n_layer'"),
        (["-q", "plan", "-v", "recipe.yaml"], "--quiet and --verbose exclude each other."),
    ],
)
def test_what_excludes_each_other_is_said(arguments: list[str], says: str, call: Call, place: Path) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_options_come_from_the_environment(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGO_CONVERT_VERSION", "1.2.3")
    monkeypatch.setenv("LIGO_CONVERT_PLAN_OUT", "elsewhere")
    monkeypatch.setenv("LIGO_CONVERT_PLAN_SET", "output.dtype=bfloat16")
    small, whole = (
        call("plan", "recipe.yaml", "--json", *more).json["nbytes"] for more in ((), ("--set", "output.dir=a"))
    )
    assert 1.9 * small < whole
    monkeypatch.setenv("LIGO_CONVERT_PLAN_DEVICE", "abacus")
    refused = call("plan", "recipe.yaml")
    assert (refused.code, "'abacus' is not one of" in refused.err) == (2, True)


def test_a_recipe_on_standard_input(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def give(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    give((place / "recipe.yaml").read_text())
    planned = call("plan", "-", "--json").json
    assert planned == call("plan", "recipe.yaml", "--json").json
    give((place / "recipe.yaml").read_text())
    assert call("plan", "-", "--out", "elsewhere").out.rstrip().endswith("ligo-convert run -")
    for text, says in (("", "standard input: a recipe is a mapping"), ("version: 2", "standard input:1:10: version")):
        give(text)
        done = call("plan", "-")
        assert (done.code, done.out) == (2, "")
        assert says in done.err
    give((place / "fit.yaml").read_text())
    refused = call("choose", "-", "--write", "new.yaml")
    assert (refused.code, "comes from standard input" in refused.err) == (2, True), refused.err


def test_init_writes_a_recipe_that_runs(call: Call, place: Path) -> None:
    source = next(path for path in place.iterdir() if (path / "config.json").is_file())
    done = call("init", source.name, "--grow", "n_layer=4", "--out", "mine.yaml")
    assert done.code == 0, done.err
    assert "Wrote mine.yaml" in done.out
    assert "ligo-convert run mine.yaml" in done.out
    again = call("init", source.name, "--grow", "n_layer=4", "--out", "mine.yaml")
    assert (again.code, again.out) == (6, "")
    ran = call("run", "mine.yaml", "--json").json
    assert ran["preservation"]["verdict"] in ("exact", None)
    # Printed, nothing is written.
    before = sorted(place.iterdir())
    printed = call("init", source.name, "--grow", "n_layer=4", "--out", "-")
    assert printed.out == (place / "mine.yaml").read_text().replace("mine.yaml", f"{source.name}_grown.yaml")
    data = call("init", source.name, "--grow", "n_layer=4", "--out", "-", "--json").json
    assert (data["text"], data["recipe"]) == (printed.out, None)
    assert sorted(place.iterdir()) == before


def test_progress_without_a_terminal(call: Call, place: Path) -> None:
    done = call("run", "recipe.yaml")
    assert done.code == 0
    stages = [line.partition(":")[0] for line in done.err.splitlines()]
    assert stages.index("checking the source") < stages.index("writing"), done.err
    assert call("run", "recipe.yaml", "-q").err == ""
    lines = [json.loads(line) for line in call("run", "recipe.yaml", "--log-format", "json").err.splitlines()]
    assert {line["event"] for line in lines} <= {"begin", "done", "message"}
    assert {"stage", "text", "time"} <= next(line for line in lines if line["event"] == "begin").keys()


@pytest.mark.parametrize("given", [["--log-format", "json"], ["--log-format=json"], []])
def test_errors_are_json_if_asked(given: list[str], call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not given:
        monkeypatch.setenv("LIGO_CONVERT_LOG_FORMAT", "json")
    for arguments, wanted in (
        (
            ["plan", "nothing.yaml", *given],
            {"text": "no such file", "where": "nothing.yaml", "exit_code": 2, "hint": ANY},
        ),
        (["plan", *given, "--nothing"], {"text": "No such option '--nothing'.", "exit_code": 2}),
    ):
        done = call(*arguments)
        found = json.loads(done.err)
        assert (done.code, done.out, found.pop("event")) == (2, "", "error")
        assert found.pop("time")
        assert found == wanted


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_that_come_along_plan_at_once_and_without_torch(recipe: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ligo_convert.cli.main import cli\n"
        "cli.main(['plan', sys.argv[1], '--out', 'out', '--json'], 'x', standalone_mode=False)\n"
        "print([name for name in sys.argv[2:] if name in sys.modules], file=sys.stderr)"
    )
    began = time.monotonic()
    heavy = [name for name in HEAVY if name != "huggingface_hub"]
    done = python(code, recipe, *heavy, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")})
    assert done.err.splitlines()[-1] == "[]", done.err
    assert time.monotonic() - began < 5, "two seconds on an idle machine"
    assert json.loads(done.out)["nbytes"] > 10**5
    assert not (tmp_path / "out").exists()


def test_a_plan_without_the_source_says_so(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(place / "hub"))
    recipe = next(path for path in RECIPES if path.stem == "gpt2_base_to_medium")
    data = ("--set", "fit.data={stdlib: true}", "--out", "out")
    planned = call("plan", recipe, *data)
    assert planned.code == 0
    assert "openai-community/gpt2 (not at hand)" in planned.out
    assert "355M" in planned.out
    done = call("run", recipe, *data)
    assert done.code == 4
    assert "openai-community/gpt2" in done.err


def test_a_machine_without_cuda(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = call("run", "recipe.yaml", "--device", "cuda")
    assert (done.code, done.out) == (5, "")
    assert "no CUDA device" in done.err
    assert not (place / "out").exists()
    assert call("run", "recipe.yaml", "--device", "auto").code == 0


# --- errors -----------------------------------------------------------------------------------------------------------

FAULTY = """version: 1
source: {model: ./source}
target: {config: {n_embd: 24, n_head: 3}}
growth:
  width: lemon
  depth: identity
output: {dir: out}
"""
# what to replace in FAULTY, by what, where the error is, what it says
FAULTS = {
    "unknown key": ("{dir: out}", "{dir: out, dtyp: float32}", "recipe.yaml:7:20", "did you mean 'dtype'?"),
    "unknown start": ("lemon", "lemmon", "recipe.yaml:5:10", "did you mean 'lemon'?"),
    "wrong type": ("{model: ./source}", "{model: 7}", "recipe.yaml:2:17", "should be text, not 7"),
    "duplicate key": ("  depth: identity", "  width: copy", "recipe.yaml:6:3", "width"),
    "missing key": ("output: {dir: out}", "", "recipe.yaml", "output"),
    "broken yaml": ("{model: ./source}", "{model: ./source", "recipe.yaml:", ""),
    "unknown target key": ("n_embd", "n_embedding", "recipe.yaml:3:19", "did you mean 'n_embd'?"),
    "smaller": ("{n_embd: 24, n_head: 3}", "{n_embd: 8}", "recipe.yaml:3:19", "smaller"),
    "uneven hyperclone": ("lemon", "hyperclone", "recipe.yaml:4:1", "hyperclone"),
    "copy of what grows": ("identity", "copy}", "recipe.yaml", ""),
    "a secret": ("{dir: out}", "{dir: out, token: hf_secretSecretSecret}", "recipe.yaml:7:20", "HF_TOKEN"),
}


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("command", ["plan", "run", "fit"])
def test_a_faulty_recipe_is_shown_where_it_is(what: str, command: str, call: Call, place: Path) -> None:
    old, new, where, text = FAULTS[what]
    assert old in FAULTY
    (place / "recipe.yaml").write_text(FAULTY.replace(old, new))
    before = sorted(place.rglob("*"))
    done = call(command, "recipe.yaml", *(("--operator", "x") if command == "fit" else ()))
    # A fit writes no output directory: a recipe without one is none of its faults.
    if command == "fit" and what in ("unknown target key", "smaller", "uneven hyperclone", "missing key"):
        where, text = "recipe.yaml", "no `fit`"
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {where}"), done.err
    assert text in done.err
    assert "secretSecret" not in done.err
    assert len(done.err.splitlines()) <= 8, done.err
    assert sorted(place.rglob("*")) == before


USAGE: dict[str, tuple[tuple[str, ...], str]] = {
    "no recipe": (("run", "none.yaml"), "none.yaml"),
    "a folder": (("plan", "corpus"), "corpus"),
    "no command": (("grow",), "grow"),
    "no argument": (("run",), "RECIPE"),
    "unknown option": (("run", "recipe.yaml", "--fast"), "--fast"),
    "unknown device": (("run", "recipe.yaml", "--device", "tpu"), "tpu"),
    "no such key": (("plan", "recipe.yaml", "--set", "growth.wdth=copy"), "did you mean 'width'?"),
    "no equals sign": (("plan", "recipe.yaml", "--set", "growth.width"), "KEY=VALUE"),
    "a key below a value": (("plan", "recipe.yaml", "--set", "version.major=1"), "version"),
    "an empty output": (("plan", "recipe.yaml", "--out", ""), "output.dir"),
    "the working directory": (("run", "recipe.yaml", "--out", "."), "working directory"),
    "the root": (("run", "recipe.yaml", "--out", "/"), "root"),
    "inside the source": (("run", "recipe.yaml", "--out", "source/out"), "inside the source"),
    "fit without fit": (("fit", "recipe.yaml", "--operator", "x"), "no `fit`"),
    "no family": (("describe", "x"), "`ligo-convert families` lists them"),
}


@pytest.mark.parametrize("what", USAGE)
def test_usage_is_2(what: str, call: Call, place: Path) -> None:
    arguments, text = USAGE[what]
    before = sorted(place.rglob("*"))
    done = call(*arguments)
    assert (done.code, done.out) == (2, ""), done
    assert text in done.err
    assert sorted(place.rglob("*")) == before


CODES: dict[str, tuple[int, tuple[str, ...], str]] = {
    "no source": (3, ("run", "recipe.yaml", "--source", "./nowhere"), "no such directory"),
    "no source to plan": (3, ("plan", "recipe.yaml", "--source", "./nowhere"), "no such directory"),
    "a source without weights": (3, ("plan", "recipe.yaml", "--source", "./empty"), "safetensors"),
    "nothing to inspect": (3, ("inspect", "nowhere"), "nowhere"),
    "no checkpoint": (3, ("inspect", "corpus"), "config.json"),
    "no operator": (3, ("inspect", "recipe.yaml"), "recipe.yaml"),
    "apply no operator": (3, ("apply", "recipe.yaml", "source", "out"), "recipe.yaml"),
    "apply to nothing": (3, ("apply", "op.safetensors", "./nowhere", "out"), "no such"),
    "verify nothing": (7, ("verify", "nowhere"), "no such directory"),
    "verify a file": (7, ("verify", "recipe.yaml"), "no such directory"),
    "verify a checkpoint": (7, ("verify", "source"), "SHA256SUMS"),
    "taken": (6, ("run", "recipe.yaml", "--out", "corpus"), "corpus"),
    "taken, planned": (6, ("plan", "recipe.yaml", "--out", "corpus"), "corpus"),
    "a source as the output": (6, ("run", "recipe.yaml", "--out", "empty"), "empty"),
    "a file in the way": (5, ("run", "recipe.yaml", "--out", "recipe.yaml/out"), "recipe.yaml"),
}


@pytest.mark.parametrize("what", CODES)
def test_exit_codes(what: str, call: Call, place: Path) -> None:
    code, arguments, text = CODES[what]
    (place / "empty").mkdir()
    shutil.copy(place / "source" / "config.json", place / "empty")
    before = sorted(place.rglob("*"))
    done = call(*arguments)
    assert (done.code, done.out) == (code, ""), done
    assert re.search("^error: ", done.err, re.MULTILINE)
    assert text in done.err
    assert sorted(place.rglob("*")) == before


def test_verify_says_what_differs(call: Call, place: Path) -> None:
    assert call("run", "recipe.yaml").code == 0
    data = bytearray((place / "out" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (place / "out" / "model.safetensors").write_bytes(data)
    for arguments in (("verify", "out"), ("verify", "out", "--source", "source"), ("run", "recipe.yaml")):
        done = call(*arguments, "--json")
        assert (done.code, done.out) == (7, "")
        assert re.search(r"out/model\.safetensors: .*\n  expected: [0-9a-f]{64}\n  found:    [0-9a-f]{64}", done.err)


def test_a_bug_is_ours(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by \x1b[31mzero")

    monkeypatch.setattr("ligo_convert.conversion.train_plan.plan_recipe", broken)
    done = call("plan", "recipe.yaml")
    assert (done.code, done.out) == (70, "")
    assert "a bug in ligo-convert: ZeroDivisionError: by \\x1b[31mzero" in done.err
    assert "report" in done.err
    told = call("--debug", "plan", "recipe.yaml")
    assert told.code == 70
    assert "Traceback" in told.err
    assert "\x1b" not in told.err


def test_a_signal_during_a_long_call_into_a_library(place: Path) -> None:
    code = (
        "import hashlib, sys\nimport ligo_convert.conversion.train_plan\nfrom ligo_convert.cli.main import main\n"
        "def long(_):\n"
        "    print('begun', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 300_000_000)\n"
        "ligo_convert.conversion.train_plan.plan_recipe = long\n"
        "sys.argv = ['ligo-convert', 'plan', 'recipe.yaml']\nmain()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # `readline` takes no time limit of its own.
    deadline = threading.Timer(LIMIT, running.kill)
    deadline.start()
    with running:
        assert running.stdout is not None
        begun = running.stdout.readline()
        deadline.cancel()
        assert begun == "begun\n"
        began = time.monotonic()
        running.terminate()
        try:
            _, err = running.communicate(timeout=LIMIT)
        finally:
            running.kill()
        assert running.returncode == 128 + signal.SIGTERM
        assert time.monotonic() - began < 5
    assert err == "error: stopped by SIGTERM\n  run the same command again to resume\n"


def test_too_little_memory_is_no_bug(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ligo_convert.conversion.train_plan.plan_recipe", hungry)
    done = call("plan", "recipe.yaml")
    assert done.code == 5
    assert "out of memory" in done.err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("sticky", [False, True])
def test_a_full_disk_is_5_and_the_run_goes_on_afterwards(number: int, sticky: bool, call: Call, place: Path) -> None:
    assert call("run", "recipe.yaml", "--out", "whole").code == 0
    for at in range(4, 200, 23):
        with inject(at, number=number, sticky=sticky) as count:
            done = call("run", "recipe.yaml")
        if count[0] <= at:
            assert done.code == 0
            break
        assert (done.code, done.out) == (5, ""), (at, done.err)
        assert not (place / "out").exists() or done.err == ""
        # What is finished, but for the last sync of its name, is found finished.
    assert call("run", "recipe.yaml").code == 0
    for name in ("model.safetensors", "ligo/operator.safetensors", "ligo/recipe.yaml", "config.json"):
        assert (place / "out" / name).read_bytes() == (place / "whole" / name).read_bytes()
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(".")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc, a place where nobody may write")
def test_a_place_where_nothing_can_be_made(call: Call, place: Path) -> None:
    for command in ("plan", "run"):
        done = call(command, "recipe.yaml", "--out", "/proc/ligo/out")
        assert (done.code, done.out) == (5, "")
        assert "/proc" in done.err


def test_no_room_is_said_before_any_work(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ligo_convert.io.files._free", lambda _: 1000)
    for command in ("plan", "run"):
        done = call(command, "recipe.yaml")
        assert done.code == 5
        assert "not enough room" in done.err
        assert re.search(r"expected: [\d,]+ bytes free\n  found:    1,000 bytes free", done.err)
    assert sorted(path.name for path in place.iterdir() if path.name.startswith((".", "out"))) == []


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    code = "from ligo_convert.cli.main import main; main()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code, "describe", "gpt2"],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=LIMIT,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_module_runs_as_the_command_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ligo_convert", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    assert re.fullmatch(r"ligo-convert \d+\.\d+\.\d+\n", done.stdout)


# --- what others wrote, on this terminal ------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\u202e[link=http://x]y[/link][/]\x9b31m"


def clean(text: str) -> bool:
    return not any(character in text for character in ("\x1b", "\x07", "\u202e", "\x9b"))


def test_hostile_names_are_shown_and_steer_nothing(call: Call, place: Path) -> None:
    path = place / "source" / "model.safetensors"
    good = load_file(path)
    save_file({**good, EVIL: good["transformer.ln_f.bias"].clone()}, path, metadata={"format": "pt"})
    for arguments in (("plan", "recipe.yaml"), ("run", "recipe.yaml"), ("inspect", "source")):
        done = call(*arguments)
        assert done.code == (0 if arguments[0] == "inspect" else 3)
        assert clean(done.out)
        assert clean(done.err)
        assert "\\x1b]0;owned\\x07\\u202e[link=http://x]y[/link][/]\\x9b31m" in done.out + done.err


def test_a_hostile_folder_is_shown_and_steers_nothing(call: Call, place: Path) -> None:
    name = EVIL.replace("/", "_")
    shutil.copytree(place / "source", place / name)
    calls: dict[int, tuple[tuple[str, ...], ...]] = {
        0: (("inspect", name),),
        2: (("plan", "recipe.yaml", "--source", f"./{name}"), ("run", "recipe.yaml", "--out", name)),
        3: (("apply", name, "source", "out"), ("inspect", f"{name}x")),
        7: (("verify", name),),
    }
    for code, some in calls.items():
        for arguments in some:
            done = call(*arguments)
            assert (arguments, done.code) == (arguments, code)
            assert clean(done.out + done.err)
            assert "\\x1b]0;owned" in done.out + done.err


def test_markup_and_bidi_in_a_folder_s_name(call: Call, place: Path) -> None:
    """Names without control characters are taken, and stand as they are wherever they are shown."""
    name = "a\u202eb [link=http:__x]y[_link][bold]<b>|`c`"
    shutil.copytree(place / "source", place / name)
    shown = name.replace("\u202e", "\\u202e")
    assert shown in call("plan", "recipe.yaml", "--source", f"./{name}").out
    done = call("run", "recipe.yaml", "--source", f"./{name}", "--out", f"./{name} out")
    assert done.code == 0
    assert clean(done.out + done.err)
    assert f"{shown} out" in done.out
    assert call("verify", f"{name} out", "--source", name).code == 0
    card = (place / f"{name} out" / "README.md").read_text()
    assert clean(card)
    assert "![" not in card


def test_hostile_config_values_are_shown_and_steer_nothing(call: Call, place: Path) -> None:
    path = place / "source" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_type": EVIL}))
    for arguments in (("plan", "recipe.yaml"), ("inspect", "source")):
        done = call(*arguments)
        assert clean(done.out + done.err)
        assert "\\x1b]0;owned" in done.out + done.err
    (place / "recipe.yaml").write_text(recipe_text("./source", {EVIL: 1}))
    path.write_text(json.dumps(config))
    done = call("plan", "recipe.yaml")
    assert done.code == 2
    assert clean(done.err)

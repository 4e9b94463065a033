"""The command line: parse arguments, call the pipeline, print the result.

Input: arguments. Output: results on stdout, progress and messages on stderr, an exit code.
Slow libraries are imported inside commands, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import click

from ligo_convert.cli.completion import (
    complete_examples,
    complete_families,
    complete_keys,
    complete_loggers,
    complete_method,
    complete_methods,
)
from ligo_convert.cli.log_lines import DEFAULT_LOG, Level, LogSettings, LogWriter
from ligo_convert.cli.streams import Streams
from ligo_convert.errors import Interrupted, LigoError, MachineError, RecipeError, brief, printable
from ligo_convert.signals import Stopped, answered

if TYPE_CHECKING:
    from ligo_convert.progress import Progress
    from ligo_convert.recipes.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        import importlib.metadata

        click.echo(f"ligo-convert {importlib.metadata.version('ligo-convert')}")
        context.exit()


class _Log:
    """What is shown on stderr. Errors are shown after the command has ended, so this outlives its context.

    Attributes:
        settings: the form of the lines, and what is left out.
        loggers: key of `outputs.loggers.LOGGERS` -> folder for the curves of trainings.
    """

    settings = DEFAULT_LOG
    loggers: ClassVar[Mapping[str, Path]] = {}

    @classmethod
    def set_level(cls, context: click.Context, parameter: click.Parameter, asked: bool) -> None:
        if not asked or context.resilient_parsing:
            return
        level: Level = "quiet" if parameter.name == "quiet" else "verbose"
        if cls.settings.level not in ("normal", level):
            raise click.UsageError("--quiet and --verbose exclude each other.", context)
        cls.settings = replace(cls.settings, level=level)

    @classmethod
    def set_loggers(cls, context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> None:
        if context.resilient_parsing:
            return
        cls.loggers = {}
        if texts:
            from ligo_convert.outputs.loggers import parse_logger

            cls.loggers = dict(map(parse_logger, texts))

    @classmethod
    def set_form(cls, context: click.Context, parameter: click.Parameter, form: Literal["text", "json"] | None) -> None:
        if form is not None and not context.resilient_parsing:
            cls.settings = replace(cls.settings, form=form)


def _common_options() -> list[click.Parameter]:
    """Return the options that stand before or after the name of every command."""
    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_Log.set_level,
            envvar="LIGO_CONVERT_QUIET",
            help="Show only warnings and errors on stderr.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_Log.set_level,
            envvar="LIGO_CONVERT_VERBOSE",
            help="Write a line about the work every 5 seconds, not every 30, and also on a terminal.",
        ),
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            expose_value=False,
            callback=_Log.set_form,
            envvar="LIGO_CONVERT_LOG_FORMAT",
            help="Form of the lines on stderr. json: one object a line, errors included.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Print the version.",
        ),
        # `main` reads it from the arguments before they are parsed.
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            help="Show a traceback with an error.",
        ),
    ]


class _Command(click.Command):
    """A command that accepts the common options after its name as well."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for parameter in self.params:
            if isinstance(parameter, click.Option):
                long = next(option for option in parameter.opts if option.startswith("--"))
                parameter.envvar = f"LIGO_CONVERT_{self.name}_{long[2:]}".upper().replace("-", "_")
        self.params += _common_options()


# Heading -> commands in the order of a workflow, with a line about each.
SECTIONS: dict[str, dict[str, str]] = {
    "Grow a model": {
        "init": "write a recipe to start from",
        "examples": "list the recipes that come with ligo-convert",
        "import": "turn a pickled checkpoint into safetensors first",
        "plan": "show what a recipe will do; reads no weights",
        "run": "carry out a recipe: grow, write, verify",
        "inspect": "show what a checkpoint, operator or output holds",
        "verify": "check the digests and tensors of an output",
        "publish": "upload an output to the Hub",
        "batch": "run many recipes",
    },
    "Train it, and find out whether growing pays": {
        "choose": "try ways to grow for a short while, and pick one",
        "train": "train a model, growing it on the way if asked",
        "compare": "measure what growing saves against scratch",
    },
    "Use one operator for many checkpoints": {
        "fit": "learn the growth operator of a recipe, and no more",
        "apply": "grow a checkpoint with a stored operator",
    },
    "Look up": {
        "families": "list the model families",
        "describe": "show the tensors of a family",
        "methods": "list the growth methods",
    },
}

EXAMPLES = """\
  ligo-convert run --example quickstart      # needs no model and no network
  ligo-convert init openai-community/gpt2    # writes gpt2_grown.yaml
  ligo-convert plan gpt2_grown.yaml
  ligo-convert run gpt2_grown.yaml
  ligo-convert verify out/gpt2-medium --load"""


class _Group(click.Group):
    command_class = _Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl(list(commands.items()))
        with formatter.section("Examples"):
            formatter.write(EXAMPLES + "\n")

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params += _common_options()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Grow a small pretrained transformer into a larger one.

    Write a recipe, check it with `plan`, and carry it out with `run`.
    """


def _recipe_options(command: Command) -> Command:
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            shell_complete=complete_keys,
            help="Set a recipe key, such as fit.steps=20. Repeatable.",
        ),
        click.option("--out", metavar="DIR", help="Output directory. Replaces output.dir."),
        click.option(
            "--source", metavar="MODEL", help="Source model: a directory or a Hub id. Replaces the recipe's source."
        ),
        click.option(
            "--example",
            metavar="NAME",
            is_eager=True,
            expose_value=False,
            callback=_name_example,
            shell_complete=complete_examples,
            help="Use a recipe that comes with ligo-convert, instead of RECIPE; `examples` lists them.",
        ),
        click.argument("recipe", type=click.Path(path_type=Path), required=False, callback=_recipe_or_example),
    ):
        command = option(command)
    return command


_EXAMPLE = "ligo_convert.example"  # key of click's context


def _name_example(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    context.meta[_EXAMPLE] = name


def _recipe_or_example(context: click.Context, parameter: click.Parameter, recipe: Path | None) -> Path | None:
    """Return the file of the recipe: RECIPE or `--example NAME`, and one of them must be given."""
    name = context.meta.get(_EXAMPLE)
    if context.resilient_parsing:
        return recipe
    if name is None:
        if recipe is None:
            raise click.UsageError("Missing argument 'RECIPE', or --example NAME.", context)
        return recipe
    if recipe is not None:
        raise click.UsageError("RECIPE and --example exclude each other.", context)
    from ligo_convert.recipes.examples import example_file

    return example_file(name)


def _load_families(context: click.Context, parameter: click.Parameter, files: tuple[Path, ...]) -> None:
    if files and not context.resilient_parsing:
        from ligo_convert.families.registry import load_family_file

        for file in files:
            load_family_file(file)


_family_files = click.option(
    "--family",
    "family_files",
    type=click.Path(path_type=Path),
    multiple=True,
    expose_value=False,
    callback=_load_families,
    metavar="FILE",
    help="Run this Python file and use the families it defines; repeatable.",
)

_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")

_device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Device for models."
)


_loggers = click.option(
    "--logger",
    multiple=True,
    expose_value=False,
    callback=_Log.set_loggers,
    shell_complete=complete_loggers,
    metavar="NAME=DIR",
    help="Also write the curves of every training to DIR: tensorboard=DIR, or wandb=DIR (offline). Repeatable.",
)


def _load(recipe: Path, overrides: tuple[str, ...], source: str | None, out: str | None) -> Recipe:
    from ligo_convert.recipes.recipe import load_recipe

    return load_recipe(recipe, overrides=overrides, source=source, out=out)


@cli.command()
@_as_json
def examples(as_json: bool) -> None:
    """List the recipes that come with ligo-convert, for `--example NAME`."""
    from ligo_convert.cli.reports import pairs_report
    from ligo_convert.recipes.examples import examples as known
    from ligo_convert.recipes.examples import first_sentence

    found = {name: first_sentence(path) for name, path in known().items()}
    _print({"examples": found}, as_json, lambda: pairs_report(found))


@cli.command()
@click.argument("source", required=False)
@click.option(
    "--example",
    metavar="NAME",
    shell_complete=complete_examples,
    help="Copy a recipe that comes with ligo-convert, instead; `examples` lists them.",
)
@click.option(
    "--grow",
    "keys",
    multiple=True,
    metavar="KEY=VALUE",
    help="Config key of the target, such as n_layer=24. Repeatable.",
)
@click.option("--size", metavar="NAME", help="A published size of the source's family. Default: the next larger one.")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit of a source on the Hub.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="File to write; `-` prints the recipe.")
@_family_files
@_as_json
def init(
    source: str | None,
    example: str | None,
    keys: tuple[str, ...],
    size: str | None,
    revision: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write a recipe to start from for SOURCE, a directory or a Hub id: sizes, and the growth method that preserves it best."""
    from ligo_convert.cli.reports import suggestion_report
    from ligo_convert.conversion.new_recipe import default_file, suggest_recipe
    from ligo_convert.io.files import write_file

    prints = out is not None and str(out) == "-"
    if example is not None:
        if source is not None or keys or size is not None:
            raise click.UsageError("--example stands alone: it is copied as it is.")
        _copy_example(example, None if prints else out or Path(f"{example}.yaml"), as_json)
        return
    if source is None:
        raise click.UsageError("Missing argument 'SOURCE', or --example NAME.")
    if keys and size is not None:
        raise click.UsageError("--grow and --size exclude each other.")
    file = Path(default_file(source, size)) if out is None or prints else out
    suggestion = suggest_recipe(source, file, revision=revision, grow=dict(map(_grown_key, keys)), size=size)
    if not prints:
        write_file(file, suggestion.text.encode())
    data = {**suggestion.json(), "recipe": None if prints else str(file), "text": suggestion.text}
    if prints and not as_json:
        click.echo(suggestion.text, nl=False)
    else:
        _print(data, as_json, lambda: suggestion_report(suggestion, file))


def _copy_example(name: str, file: Path | None, as_json: bool) -> None:
    """Copy an example to a file; without one, print it."""
    from ligo_convert.io.files import write_file
    from ligo_convert.recipes.examples import example_text

    text = example_text(name)
    if file is not None:
        write_file(file, text.encode())
    told = text if file is None else f"wrote {printable(file)}\n"
    _print({"recipe": None if file is None else str(file), "text": text}, as_json, lambda: click.echo(told, nl=False))


def _grown_key(text: str) -> tuple[str, object]:
    """Parse `--grow KEY=VALUE`, a value in YAML."""
    from ligo_convert.io.strict_yaml import parse_value

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise RecipeError("expected KEY=VALUE", where=f"--grow {brief(text)}", hint="for example --grow n_layer=24")
    return key, parse_value(value, label=f"--grow {brief(key)}").data


@cli.command()
@_recipe_options
@click.option(
    "--with-optimizer",
    is_flag=True,
    help="Also grow the optimizer's state beside the source, a checkpoint of a training. Sets growth.state, unless the recipe does.",
)
@_loggers
@_device
@_family_files
@_as_json
def run(
    recipe: Path,
    source: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    with_optimizer: bool,
    device: str,
    as_json: bool,
) -> None:
    """Convert a model as a recipe describes. Run it again to resume after an interruption."""
    from ligo_convert.cli.reports import publish_report, run_report

    with _showing() as progress:
        loaded = _load(recipe, overrides, source, out)
        if with_optimizer and loaded.growth.state is None:
            from ligo_convert.growth.state_maps import DEFAULT_POLICY

            loaded = _load(recipe, (*overrides, f"growth.state={DEFAULT_POLICY}"), source, out)
        from ligo_convert.conversion.run import run_recipe

        delivered = run_recipe(loaded, device=device, progress=progress)
    _print(delivered.json(), as_json, lambda: run_report(delivered.outcome))
    if delivered.published is not None and not as_json:
        publish_report(delivered.published)


@cli.command()
@_recipe_options
@click.option("--rows", is_flag=True, help="Also print the shapes of every tensor.")
@_device
@_family_files
@_as_json
def plan(
    recipe: Path,
    source: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    rows: bool,
    device: str,
    as_json: bool,
) -> None:
    """Show what a recipe will do: sizes, memory, preservation. Reads no weights."""
    from ligo_convert.cli.reports import plan_report
    from ligo_convert.conversion.plan import plan_json
    from ligo_convert.conversion.train_plan import plan_with_training

    made, training = plan_with_training(_load(recipe, overrides, source, out))
    data = plan_json(made) | ({} if training is None else {"train": training.json()})
    _print(data, as_json, lambda: plan_report(made, training, rows=rows))


@cli.command()
@_recipe_options
@click.option(
    "--operator", "file", type=click.Path(path_type=Path), required=True, help="File to write the operator to."
)
@_loggers
@_device
@_family_files
@_as_json
def fit(
    recipe: Path,
    source: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    file: Path,
    device: str,
    as_json: bool,
) -> None:
    """Fit the operator of a recipe and write only the operator."""
    from ligo_convert.cli.reports import fit_report

    with _showing() as progress:
        # A fit writes no output directory, so the recipe needs none.
        loaded = _load(recipe, overrides, source, out or f"{file}.out")
        from ligo_convert.conversion.convert import fit_operator

        figures = fit_operator(loaded, file, device=device, progress=progress)
    _print(figures, as_json, lambda: fit_report(figures))


@cli.command()
@_recipe_options
@_loggers
@_device
@_family_files
@_as_json
def train(
    recipe: Path, source: str | None, out: str | None, overrides: tuple[str, ...], device: str, as_json: bool
) -> None:
    """Train a model, growing on the way where growth.schedule says so. Run it again to resume after an interruption.

    Started by torchrun, its processes share every batch: torchrun --nproc-per-node N -m ligo_convert train RECIPE
    """
    from ligo_convert.cli.reports import train_report

    if int(os.environ.get("RANK", "0")) and "TORCHELASTIC_RUN_ID" in os.environ:
        from ligo_convert.environment import choose_device
        from ligo_convert.training.follower import follow
        from ligo_convert.training.processes import joined

        with joined(choose_device(device)) as others:
            assert others is not None, "torchrun has started this process"
            follow(others)
        return
    with _showing() as progress:
        loaded = _load(recipe, overrides, source, out)
        from ligo_convert.conversion.train import train_alone_or_leading

        outcome = train_alone_or_leading(loaded, device=device, progress=progress)
    _print(outcome.json(), as_json, lambda: train_report(outcome))


@cli.command()
@click.argument("operator", type=click.Path(path_type=Path))
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@_family_files
@_as_json
def apply(operator: Path, source: str, out: Path, as_json: bool) -> None:
    """Grow SOURCE with a stored OPERATOR and write the directory OUT. SOURCE must have the shape the operator was made for."""
    from ligo_convert.cli.reports import run_report

    with _showing() as progress:
        from ligo_convert.conversion.apply import apply_operator

        outcome = apply_operator(operator, source, out, progress=progress)
    _print(outcome.json(), as_json, lambda: run_report(outcome))


@cli.command()
@_recipe_options
@click.option(
    "--methods",
    metavar="A,B,...",
    shell_complete=complete_methods,
    help="Methods to compare, separated by commas; `methods` lists them. Replaces compare.methods.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of training from scratch. Replaces compare.steps.")
@click.option("--seeds", metavar="0,1,...", help="Seeds, separated by commas. Replaces compare.seeds.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Worker processes. Default: one for each core; one in total on a GPU."
)
@click.option(
    "--reuse",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
    help="Take the finished jobs of another comparison of this recipe and budget. Can be repeated.",
)
@click.option("--costs", is_flag=True, help="Print what the comparison would cost, and train nothing.")
@_loggers
@_device
@_family_files
@_as_json
def compare(
    recipe: Path,
    source: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    methods: str | None,
    steps: int | None,
    seeds: str | None,
    jobs: int | None,
    reuse: tuple[Path, ...],
    costs: bool,
    device: str,
    as_json: bool,
) -> None:
    """Train the target from several starting points and measure what each saves against training from scratch."""
    from ligo_convert.cli.comparison_report import print_comparison, print_costs

    named = _names(methods, "--methods", noun="method")
    with _showing() as progress:
        loaded = _load(recipe, overrides, source, out)
        from ligo_convert.comparison.compare import compare as carry_out
        from ligo_convert.comparison.compare import plan_comparison

        if costs:
            figures = plan_comparison(loaded, methods=named, steps=steps, seeds=_numbers(seeds, "--seeds"))
            _print(figures, as_json, lambda: print_costs(figures))
            return
        outcome = carry_out(
            loaded,
            # A conversion and a comparison of the same recipe write different directories.
            Path(out) if out is not None else Path(f"{loaded.output.dir}-compare"),
            methods=named,
            steps=steps,
            seeds=_numbers(seeds, "--seeds"),
            jobs=jobs or 0,
            device=device,
            reuse=reuse,
            progress=progress,
        )
    _print(outcome.json(), as_json, lambda: print_comparison(outcome.record, outcome.out))


@cli.command()
@_recipe_options
@click.option(
    "--candidates",
    metavar="A,B,...",
    shell_complete=complete_methods,
    help="Methods to try, separated by commas; `methods` lists them. Replaces choose.candidates.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="The budget that the choice is for, in steps of training from scratch. Replaces choose.steps.",
)
@click.option(
    "--seeds", metavar="0,1,...", help="Seeds of the longest trials, separated by commas. Replaces choose.seeds."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Worker processes. Default: one for each core; one in total on a GPU."
)
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the recipe with the choice filled in to FILE, beside the recipe.",
)
@_loggers
@_device
@_family_files
@_as_json
def choose(
    recipe: Path,
    source: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    candidates: str | None,
    steps: int | None,
    seeds: str | None,
    jobs: int | None,
    write: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Try several ways to grow for a short while, and say which to take: which start, when, how much, or not at all."""
    from ligo_convert.cli.choice_report import print_choice

    named = _names(candidates, "--candidates", noun="candidate")
    with _showing() as progress:
        loaded = _load(recipe, overrides, source, out)
        from ligo_convert.comparison.choose import choose as carry_out
        from ligo_convert.comparison.chosen_recipe import check_file, write_chosen

        if write is not None:
            check_file(loaded, write)
        outcome = carry_out(
            loaded,
            Path(out) if out is not None else Path(f"{loaded.output.dir}-choose"),
            candidates=named,
            steps=steps,
            seeds=_numbers(seeds, "--seeds"),
            jobs=jobs or 0,
            device=device,
            progress=progress,
        )
        if write is not None and not write_chosen(loaded, outcome.record, write):
            why = outcome.record["choice"]["not_written"] or "the recipe's source is not the one of this run"
            progress.warn(f"no recipe is written: {why}")
    _print(outcome.json(), as_json, lambda: print_choice(outcome.record, outcome.out))


def _names(text: str | None, option: str, *, noun: str) -> list[str] | None:
    """Parse names separated by commas."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise click.BadParameter(f"no {noun} is named", param_hint=option)
    return names


def _numbers(text: str | None, option: str) -> list[int] | None:
    """Parse whole numbers separated by commas."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(map(_is_number, parts)):
        raise click.BadParameter(
            f"{brief(text)} is not a list of whole numbers of at most {_MOST_DIGITS} digits, such as 0,1,2",
            param_hint=option,
        )
    return [int(part) for part in parts]


# Seeds and counts fit into 64 bits; Python refuses to read numbers of thousands of digits.
_MOST_DIGITS = 18


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@_family_files
@_as_json
def inspect(path: Path, as_json: bool) -> None:
    """Show the content of a checkpoint, an operator file or an output directory."""
    from ligo_convert.cli.inspect import inspect_path
    from ligo_convert.cli.inspect_report import inspect_report

    found = inspect_path(path)
    _print(found, as_json, lambda: inspect_report(found))


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--source", metavar="MODEL", help="Grow every tensor again from this source and compare.")
@click.option("--load", is_flag=True, help="Also load the model with transformers or timm.")
@_family_files
@_as_json
def verify(directory: Path, source: str | None, load: bool, as_json: bool) -> None:
    """Check the digests and tensors of an output directory."""
    from ligo_convert.cli.reports import verify_report

    with _showing() as progress:
        from ligo_convert.outputs.verify import verify as check

        report = check(directory, source=source, load=load, progress=progress)
    _print(report, as_json, lambda: verify_report(report))


@cli.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="What runs the entries."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Entries to run at the same time."
)
@click.option(
    "--shard", metavar="I/N", help="Run only part I (from 0) of N. Default: taken from a Slurm array or Kubernetes Job."
)
@click.option(
    "--address", metavar="HOST:PORT", help="Ray cluster address. Default: $RAY_ADDRESS, else start a local cluster."
)
@_device
@_family_files
@_as_json
def batch(
    manifest: Path, engine: str, jobs: int, shard: str | None, address: str | None, device: str, as_json: bool
) -> None:
    """Run every recipe of a MANIFEST. Run it again to do the entries that are not done."""
    from ligo_convert.cli.progress_bars import shown_batch
    from ligo_convert.cli.reports import batch_report

    share = _share(shard)
    from ligo_convert.batch.manifest import load_manifest
    from ligo_convert.families.registry import files_loaded

    if files_loaded() and engine != "local":
        raise click.BadParameter(
            "the machines of a cluster may not have the file; use --engine local, or install the family as a package",
            param_hint="--family",
        )

    loaded = load_manifest(manifest)
    from ligo_convert.batch.scheduler import run_batch, shard_entries

    with shown_batch(shard_entries(loaded, share), _Log.settings) as watcher:
        done = run_batch(loaded, engine=engine, jobs=jobs, shard=share, address=address, device=device, watcher=watcher)
    _print(done.json(), as_json, lambda: batch_report(done))
    if done.exit_code:
        raise click.exceptions.Exit(done.exit_code)


def _share(text: str | None) -> tuple[int, int]:
    """Parse `--shard I/N`. Without it, read the part from the environment."""
    if text is None:
        return _share_of_array()
    number, slash, count = text.partition("/")
    if not slash or not all(map(_is_number, (number, count))):
        raise click.BadParameter(f"{brief(text)} does not have the form I/N, such as 0/4", param_hint="--shard")
    if not int(number) < int(count):
        raise click.BadParameter(f"{text!r}: I must be smaller than N, and counts from 0", param_hint="--shard")
    return int(number), int(count)


def _share_of_array() -> tuple[int, int]:
    """Return (index, count) of this Slurm array task or Kubernetes indexed Job; (0, 1) outside of both."""
    found = {name: os.environ.get(name, "") for name in _ARRAY}
    number = {name: int(value) for name, value in found.items() if _is_number(value)}
    if "SLURM_ARRAY_TASK_ID" in number:
        first, step = number.get("SLURM_ARRAY_TASK_MIN", 0), number.get("SLURM_ARRAY_TASK_STEP") or 1
        count = number.get("SLURM_ARRAY_TASK_COUNT")
        index, left = divmod(number["SLURM_ARRAY_TASK_ID"] - first, step)
        last = number.get("SLURM_ARRAY_TASK_MAX")
        # With --array=1,3,7 the environment has the ends and the length of the list, but not the position of this task in it.
        if count is not None and (left or index not in range(count) or last not in (None, first + (count - 1) * step)):
            raise click.BadParameter(
                f"the task ids of this Slurm array have gaps, so the part of task {number['SLURM_ARRAY_TASK_ID']} among {count} is unknown."
                ' To repeat tasks of an earlier array 0-(N-1), give --shard "$SLURM_ARRAY_TASK_ID/N";'
                " otherwise make the array a range, such as --array=0-7",
                param_hint="--shard",
            )
    elif "JOB_COMPLETION_INDEX" in number:
        count, index = number.get("JOB_COMPLETIONS"), number["JOB_COMPLETION_INDEX"]
    else:
        return 0, 1
    if count is None:
        raise click.BadParameter(
            "the environment gives the index of this task but not the number of tasks: give --shard I/N",
            param_hint="--shard",
        )
    if not index < count:
        raise click.BadParameter(
            f"task index {index} is not below the number of tasks {count}: set JOB_COMPLETIONS to the Job's `completions`",
            param_hint="--shard",
        )
    return index, count


_ARRAY = (
    *(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT")),
    *("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
)


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("repo", metavar="REPO_ID")
@click.option("--public", is_flag=True, help="Create a repository that everyone can read. Default: private.")
@click.option("--branch", metavar="NAME", default="main", show_default=True, help="Branch to update.")
@click.option("--pr", "pull_request", is_flag=True, help="Open a pull request instead of updating the branch.")
@click.option("--tag", metavar="NAME", help="Tag the commit.")
@click.option("--license", metavar="ID", help="Licence id. Default: the licence in the source's model card.")
@click.option("--replace", is_flag=True, help="Delete files in the repository that were not uploaded by ligo-convert.")
@click.option("--dry-run", is_flag=True, help="Check everything and list the changes, but upload nothing.")
@_family_files
@_as_json
def publish(
    directory: Path,
    repo: str,
    public: bool,
    branch: str,
    pull_request: bool,
    tag: str | None,
    license: str | None,
    replace: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish an output directory DIR to the Hub as REPO_ID, completely or not at all. Run it again to resume after an interruption."""
    from ligo_convert.cli.progress_bars import message_console
    from ligo_convert.cli.reports import contents_report, foreseen_report, publish_report

    with _showing() as progress:
        from ligo_convert.outputs.bundle import pack
        from ligo_convert.outputs.hub_destination import HubDestination

        destination = HubDestination(
            repo=repo, public=public, branch=branch, pull_request=pull_request, tag=tag, replace=replace
        )
        destination.check_options()
        if not dry_run:
            destination.check_access()
        packed = pack(directory, license=license, progress=progress)
        foreseen = destination.plan(packed, progress=progress) if dry_run else None
    if foreseen is not None:
        _print(foreseen, as_json, lambda: foreseen_report(packed, foreseen))
        return
    # Between two groups of bars: what else is written to a terminal while bars are drawn is drawn over.
    if _Log.settings.form == "text" and _Log.settings.level != "quiet":
        contents_report(packed, console=message_console())
    with _showing() as progress:
        published = destination.put(packed, progress=progress)
    _print(published.json(), as_json, lambda: publish_report(published))


@cli.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--key", metavar="KEY", help="Where the weights are inside the file, such as state_dict_ema or a.b.")
@click.option("--strip", metavar="PREFIX", default="", help="Prefix to take off every tensor's name, such as model.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The model's config.json.")
@click.option("--architecture", metavar="NAME", help="timm architecture, such as deit_small_patch16_224.")
@click.option("--no-sandbox", is_flag=True, help="Read a file that you trust on a system without Landlock and seccomp.")
@_as_json
def import_(
    path: Path,
    directory: Path,
    key: str | None,
    strip: str,
    config: Path | None,
    architecture: str | None,
    no_sandbox: bool,
    as_json: bool,
) -> None:
    """Write a pickled checkpoint (.bin, .pt, .pth, .ckpt) as safetensors to the new directory DIR.

    PATH is a file, a directory with pytorch_model.bin or its shards, or a sharded checkpoint of torch.distributed.checkpoint. A process
    without rights and without a network reads it.
    """
    from ligo_convert.cli.reports import import_report

    with _showing() as progress:
        from ligo_convert.importing.import_checkpoint import ImportSettings, import_checkpoint

        settings = ImportSettings(
            key=key, strip=strip, config=config, architecture=architecture, confine=not no_sandbox
        )
        report = import_checkpoint(path, directory, settings, progress=progress)
    _print(report, as_json, lambda: import_report(report))


@cli.command()
@_as_json
def families(as_json: bool) -> None:
    """List the supported model families."""
    from ligo_convert.cli.inspect import families_list
    from ligo_convert.cli.reports import families_report

    found = families_list()
    _print({"families": found}, as_json, lambda: families_report(found))


@cli.command()
@click.argument("name", required=False, shell_complete=complete_method)
@_as_json
def methods(name: str | None, as_json: bool) -> None:
    """List width and depth methods, training strategies and the methods of `compare`; with NAME, everything about one."""
    from ligo_convert.cli.inspect import methods_list, methods_named
    from ligo_convert.cli.reports import method_report, methods_report

    if name is None:
        found = methods_list()
        _print({"methods": found}, as_json, lambda: methods_report(found))
    else:
        found = methods_named(name)
        _print({"methods": found}, as_json, lambda: method_report(found))


@cli.command()
@click.argument("family", shell_complete=complete_families)
@_family_files
@_as_json
def describe(family: str, as_json: bool) -> None:
    """Show the table of a FAMILY at its default sizes."""
    from ligo_convert.cli.inspect import describe_family
    from ligo_convert.cli.reports import describe_report

    found = describe_family(family)
    _print(found, as_json, lambda: describe_report(found))


def _print(data: dict[str, Any], as_json: bool, report: Callable[[], None]) -> None:
    if as_json:
        click.echo(json.dumps(data, default=str, allow_nan=False))
    else:
        report()


@contextmanager
def _showing() -> Iterator[Progress]:
    """Show progress on stderr: bars on a terminal, lines elsewhere."""
    from ligo_convert.cli.progress_bars import shown_progress

    with shown_progress(_Log.settings) as progress:
        if not _Log.loggers:
            yield progress
            return
        from ligo_convert.outputs.loggers import logging_to

        with logging_to(_Log.loggers, progress):
            yield progress


# Characters of a line about the command line: click repeats the whole word that it does not understand.
_MESSAGE = 600


def main() -> None:
    """Run the command line. Every error becomes a few lines on stderr and an exit code."""
    # torch reads this when it is imported. By default OpenMP's threads spin while they wait for each other, which is many times
    # slower when another process takes a core (measured in docs/development/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # transformers reads this when it is imported: it must not fetch kernels from the Hub and run them.
    os.environ["USE_HUB_KERNELS"] = "0"
    debug = "--debug" in sys.argv[1:]
    _Log.settings = _log_before_parsing(sys.argv[1:])
    streams = Streams()
    code = _run(debug)
    if code == 0:
        # What went wrong with the work says more than what went wrong with the report.
        try:
            code = streams.finish()
        except MachineError as error:
            code = _fail(error, debug)
    sys.exit(code)


def _log_before_parsing(arguments: list[str]) -> LogSettings:
    """Return the form that the arguments ask for, for errors in the arguments themselves."""
    options = [f"{one}={other}" for one, other in pairwise([*arguments, ""])] + arguments
    form = "json" if "--log-format=json" in options else os.environ.get("LIGO_CONVERT_LOG_FORMAT", "").lower()
    return replace(DEFAULT_LOG, form="json" if form == "json" else "text")


def _run(debug: bool) -> int:
    """Carry out the command line and return its exit code."""
    try:
        with answered():
            return int(cli.main(prog_name="ligo-convert", standalone_mode=False) or 0)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if _Log.settings.form == "json":
            LogWriter(sys.stderr, _Log.settings).error(RecipeError(error.format_message()))
            return 2
        told = io.StringIO()
        error.show(file=told)
        for line in told.getvalue().splitlines():
            click.echo(line if len(line) <= _MESSAGE else f"{line[:_MESSAGE]}...", err=True)
        return 2
    except Stopped as stop:
        return _fail(Interrupted(stop.number), debug)
    except LigoError as error:
        return _fail(error, debug)
    except MemoryError:
        return _fail(
            MachineError("out of memory", hint="`ligo-convert plan` prints how much memory a run needs"), debug
        )
    except Exception as error:  # noqa: BLE001  the last boundary: an unexpected exception is reported as a bug, without a traceback
        bug = LigoError(
            f"a bug in ligo-convert: {type(error).__name__}: {error}",
            hint="please report it with the output of `ligo-convert --debug ...`",
        )
        bug.__cause__ = error
        return _fail(bug, debug)


def _fail(error: LigoError, debug: bool) -> int:
    if debug:
        import traceback

        for line in "".join(traceback.format_exception(error)).splitlines():
            click.echo(printable(line), err=True)
    LogWriter(sys.stderr, _Log.settings).error(error)
    return error.exit_code

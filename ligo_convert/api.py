"""The functions of `import ligo_convert` that do what the commands do: plan, convert, train, fit, apply, verify, publish."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ligo_convert.cli.progress_bars import shown_progress
from ligo_convert.conversion.plan import Plan
from ligo_convert.conversion.run_record import ConversionResult
from ligo_convert.conversion.train_plan import plan_with_training
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import read_operator
from ligo_convert.outputs.publish import Report
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.recipes.recipe import load_recipe as read_recipe

# Paths may be text, and a recipe may be given by its file.
RecipeOrPath = Recipe | str | Path


def load_recipe(
    path: str | Path, *, overrides: tuple[str, ...] = (), source: str | None = None, out: str | None = None
) -> Recipe:
    """Read a recipe file.

    Args:
        path: the YAML file.
        overrides: `KEY=VALUE` with dotted keys, as `--set` takes them.
        source: a directory or a Hub id, in place of the recipe's source.
        out: a directory, in place of `output.dir`.

    Raises:
        RecipeError: the file is not a valid recipe. The message names file, line and column of every fault.
    """
    return read_recipe(Path(path), overrides=overrides, source=source, out=out)


def plan(recipe: RecipeOrPath) -> Plan:
    """Plan a recipe from configs and headers: sizes, memory, FLOPs, expected preservation. Reads no weights.

    Raises:
        LigoError: anything that would make the conversion fail and can be known now.
    """
    return plan_with_training(_recipe(recipe))[0]


def convert(recipe: RecipeOrPath, *, device: str = "auto", progress: Progress | bool | None = None) -> ConversionResult:
    """Carry out a recipe and write its output directory. A second call resumes an interrupted one.

    Args:
        recipe: a recipe, or its file.
        device: `auto`, `cpu` or `cuda`.
        progress: True: bars on a terminal and in a notebook, lines elsewhere; an object: receives progress and messages; None: silent.

    Raises:
        LigoError: the output directory is then absent, or unchanged.
    """
    from ligo_convert.conversion.convert import convert as run

    with _shown(progress) as shown:
        return run(_recipe(recipe), device=device, progress=shown)


def train(recipe: RecipeOrPath, *, device: str = "auto", progress: Progress | bool | None = None) -> ConversionResult:
    """Train the model of a recipe, growing on the way where `growth.schedule` says so. A second call resumes an interrupted one.

    Args:
        recipe: a recipe with a `train` section, or its file.
        device: `auto`, `cpu` or `cuda`.
        progress: True: bars on a terminal and in a notebook, lines elsewhere; an object: receives progress and messages; None: silent.

    Raises:
        LigoError: the output directory is then absent, or unchanged.
    """
    from ligo_convert.conversion.train import train_model

    with _shown(progress) as shown:
        return train_model(_recipe(recipe), device=device, progress=shown)


def fit_operator(
    recipe: RecipeOrPath, file: str | Path, *, device: str = "auto", progress: Progress | bool | None = None
) -> dict[str, Any]:
    """Fit the operator of a recipe and write only that, as a safetensors file. Returns the figures.

    Args:
        recipe: a recipe with a `fit` section, or its file.
        file: where to write the operator; it must not exist.
        device: `auto`, `cpu` or `cuda`.
        progress: True: bars on a terminal and in a notebook, lines elsewhere; an object: receives progress and messages; None: silent.

    Raises:
        LigoError: no operator was written.
    """
    from ligo_convert.conversion.convert import fit_operator as run

    with _shown(progress) as shown:
        return run(_recipe(recipe), Path(file), device=device, progress=shown)


def apply_operator(
    operator: str | Path, source: str | Path, out: str | Path, *, progress: Progress | bool | None = None
) -> ConversionResult:
    """Grow a checkpoint with a stored operator and write an output directory.

    Args:
        operator: the operator's file.
        source: a directory or Hub id of a checkpoint with the shape that the operator was made for.
        out: the output directory.
        progress: True: bars on a terminal and in a notebook, lines elsewhere; an object: receives progress and messages; None: silent.

    Raises:
        LigoError: the output directory is then absent, or unchanged.
    """
    from ligo_convert.conversion.apply import apply_operator as run

    with _shown(progress) as shown:
        return run(Path(operator), str(source), Path(out), progress=shown)


def verify(
    directory: str | Path,
    *,
    source: str | Path | None = None,
    load: bool = False,
    progress: Progress | bool | None = None,
) -> dict[str, Any]:
    """Check an output directory: every digest, every tensor's name, shape and values. Returns a report.

    Args:
        directory: the output directory.
        source: a directory or Hub id; every tensor is grown again from it and compared.
        load: also load the model with its library.
        progress: True: bars on a terminal and in a notebook, lines elsewhere; an object: receives progress and messages; None: silent.

    Raises:
        VerificationError: the directory is not what was written.
    """
    from ligo_convert.outputs.verify import verify as run

    with _shown(progress) as shown:
        return run(Path(directory), source=None if source is None else str(source), load=load, progress=shown)


def publish(
    directory: str | Path,
    repo: str,
    *,
    public: bool = False,
    branch: str = "main",
    pull_request: bool = False,
    tag: str | None = None,
    replace: bool = False,
    license: str | None = None,
    progress: Progress | bool | None = None,
) -> Report:
    """Publish an output directory to the Hugging Face Hub, completely or not at all. Returns a report with `json()`.

    Args:
        directory: the output directory.
        repo: `org/name`; created where it does not exist.
        public: create a repository that everyone can read. Default: private.
        branch: the branch to update.
        pull_request: open a pull request instead of updating the branch.
        tag: a tag for the commit.
        replace: delete files in the repository that were not uploaded by ligo-convert.
        license: licence id. Default: the licence of the source.
        progress: True: bars on a terminal and in a notebook, lines elsewhere; an object: receives progress and messages; None: silent.

    Raises:
        PublishRefused: no licence, no permission, or files of others in the way.
        HubUnreachable: the Hub cannot be reached.
        VerificationError: the directory, or what arrived on the Hub, is not what was written.
    """
    from ligo_convert.outputs.publish import publish as run

    with _shown(progress) as shown:
        return run(
            Path(directory),
            "hub",
            repo=repo,
            public=public,
            branch=branch,
            pull_request=pull_request,
            tag=tag,
            replace=replace,
            license=license,
            progress=shown,
        )


def load_operator(file: str | Path) -> Operator:
    """Read an operator file. Raises SourceError where it is not a valid operator."""
    return read_operator(Path(file))


def _recipe(recipe: RecipeOrPath) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))


def _shown(progress: Progress | bool | None) -> AbstractContextManager[Progress]:
    """Return what receives progress and messages while a block runs."""
    if progress is True:
        return shown_progress()
    return nullcontext(progress or Progress())

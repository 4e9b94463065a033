"""Check a recipe's data section against the family, without reading the data."""

from __future__ import annotations

from pathlib import Path

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.data.chat_template import no_template, template_text
from ligo_convert.data.corpus import check_data
from ligo_convert.data.data_source import DataFacts
from ligo_convert.data.images import check_classes, class_folders
from ligo_convert.data.tokenizers import check_tokenizer
from ligo_convert.errors import DataMissing, MissingExtra, RecipeError
from ligo_convert.families.schema import Family
from ligo_convert.growth.growth_plan import GrowthPlan
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.recipes.schema import DataConfig, FitConfig


def check_data_section(
    recipe: Recipe,
    family: Family,
    source: CheckpointReader | None,
    start: GrowthPlan,
    warnings: list[str],
    *,
    needed: bool,
) -> DataFacts | None:
    """Return what is known about the training data; None where the recipe has none or it was not found.

    Args:
        warnings: receives a warning for missing data that is not needed yet.
        needed: whether the data, and the libraries that read it, must be present.

    Raises:
        RecipeError: the data section does not fit the family.
        DataMissing, MissingExtra: the data or a library is missing, and `needed`.
    """
    if recipe.fit is None:
        if recipe.source.pretrain is not None:
            raise RecipeError(
                "source.pretrain trains on fit.data, but the recipe has no `fit` section",
                where=recipe.where("source", "pretrain"),
            )
        return None
    facts = _find_data(recipe, recipe.fit, family, warnings, needed=needed)
    _check_steps(recipe, recipe.fit, family, start)
    if family.reads == "images":
        if facts is not None:
            _check_classes(recipe, recipe.fit.data, family, start)
        return facts
    if recipe.fit.data.tokenizer is not None:
        place = recipe.base / Path(recipe.fit.data.tokenizer).expanduser()
        if place.is_dir():
            _check_tokenizer(recipe, recipe.fit.data, place, label=recipe.fit.data.tokenizer)
    elif source is not None:
        _check_tokenizer(recipe, recipe.fit.data, source.root, label=source.label)
    elif recipe.source.pretrain is not None and recipe.fit.data.format == "chat":
        raise _at_data(recipe, no_template("the tokenizer that is trained for the source"))
    return facts


def _check_tokenizer(recipe: Recipe, data: DataConfig, place: Path, *, label: str) -> None:
    """Require a tokenizer, with a chat template where the data are conversations. Raises RecipeError."""
    check_tokenizer(place, label=label)
    if data.format == "chat" and template_text(place) is None:
        raise _at_data(recipe, no_template(label))


def _find_data(
    recipe: Recipe, fit: FitConfig, family: Family, warnings: list[str], *, needed: bool
) -> DataFacts | None:
    """Return what is known about the data; None, with a warning, where it is missing and not `needed`."""
    try:
        return check_data(fit.data, base=recipe.base, wants=family.reads)
    except MissingExtra as error:
        if needed:
            raise
        warnings.append(f"{error.what}; {error.hint}")
    except DataMissing as error:
        if needed:
            raise _at_data(recipe, error) from None
        warnings.append(f"{error.what}: {recipe.where('fit', 'data')}; a run needs it")
    except RecipeError as error:
        raise _at_data(recipe, error) from None
    return None


def _check_steps(recipe: Recipe, fit: FitConfig, family: Family, start: GrowthPlan) -> None:
    """Require sequences that fit the model's positions, and a warmup that ends before the fit. Raises RecipeError."""
    positions = family.longest(start.source)
    for name, length in _sequence_lengths(recipe):
        if positions is not None and length > positions:
            raise RecipeError(
                f"{'.'.join(name)}: longer than the positions of the model",
                where=recipe.where(*name),
                expected=f"at most {positions}",
                found=length,
            )
    warmup = fit.warmup_steps
    if warmup and warmup >= fit.steps:
        raise RecipeError(
            "fit.warmup_steps: the warmup leaves no step to train at the peak rate",
            where=recipe.where("fit", "warmup_steps"),
            expected=f"fewer than fit.steps, {fit.steps}",
            found=warmup,
        )


def _at_data(recipe: Recipe, error: RecipeError) -> RecipeError:
    """Return the error with its location in the recipe."""
    at, found = recipe.where("fit", "data"), str(error.where)
    error.where = at if found in ("", str(recipe.base)) else f"{at}: {found}"
    return error


def _check_classes(recipe: Recipe, data: DataConfig, family: Family, start: GrowthPlan) -> None:
    """Require as many class folders as the target has classes; any number for a model without a head. Raises RecipeError."""
    assert data.images is not None, "a family that reads images has fit.data.images"
    folder = recipe.base / Path(data.images).expanduser()
    wanted = family.class_count(start.target)
    try:
        check_classes(class_folders(folder), wanted, where=data.images)
    except RecipeError as error:
        raise _at_data(recipe, error) from None


def _sequence_lengths(recipe: Recipe) -> list[tuple[tuple[str, ...], int]]:
    """Return every sequence length of the recipe with its key."""
    lengths: list[tuple[tuple[str, ...], int]] = []
    if recipe.fit is not None:
        lengths.append((("fit", "sequence_length"), recipe.fit.sequence_length))
    if recipe.source.pretrain is not None:
        lengths.append((("source", "pretrain", "sequence_length"), recipe.source.pretrain.sequence_length))
    return lengths

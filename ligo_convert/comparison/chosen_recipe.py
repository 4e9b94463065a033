"""Write a recipe with the choice of `choose` filled in.

Input: the recipe's file and the record of a choice.
Output: a YAML file beside the recipe, with the recipe's own comments and order of keys, that `train` carries out as it was chosen; no file
where `train` cannot.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from ligo_convert.comparison.strategies import STRATEGIES
from ligo_convert.errors import OutputBusy, RecipeError
from ligo_convert.io.files import write_file
from ligo_convert.recipes.recipe import STDIN, Recipe
from ligo_convert.recipes.schema import GrowthStageConfig

WIDTH = 4096  # columns before a line is broken

DROPPING = ("layer-drop", "token-drop")  # options for which `train` has no key

PLAIN = "plain"  # the strategy that trains the whole target from the first step to the last

_MANY = 100  # layers of a target that every strategy can take apart


def check_file(recipe: Recipe, file: Path) -> None:
    """Require that a recipe can be written to `file`: it does not exist, and lies in the folder of the recipe, whose paths stay valid.

    Raises:
        OutputBusy: the file exists.
        RecipeError: the file lies in another folder, or the recipe comes from standard input.
    """
    if recipe.path.name == STDIN:
        raise RecipeError(
            "--write copies the recipe's file, and this recipe comes from standard input",
            where="--write",
            hint="give a file",
        )
    if file.absolute().parent.resolve() != recipe.path.parent.resolve():
        raise RecipeError(
            "the recipe's paths are relative to its folder, so the new recipe has to lie there",
            where="--write",
            expected=f"a file in {recipe.path.parent}",
            found=str(file),
        )
    if file.exists():
        raise OutputBusy("the file exists", where=file, hint="choose another name for --write")


def why_not_written(choice: Mapping[str, Any], *, pretrains: bool) -> str | None:
    """Return why no recipe of `train` does what was chosen, and what to do instead; None if one does.

    Args:
        choice: `choice` of the record.
        pretrains: whether the recipe has `source.pretrain`: with it, `growth.schedule` begins with drawn weights.
    """
    kind, at = choice["kind"], choice["at"]
    if not choice["grows"]:
        return "the choice is not a growth of its source"
    if not choice["steps"]:
        return "the budget does not pay for its source; give more steps, or a source that costs less"
    without = _without_key(choice)
    if without is not None:
        return without
    if choice["follows_schedule"]:
        return None
    how = f"growth.width: {choice['width']}, growth.depth: {choice['depth']}"
    if choice["width"] is None:
        return (
            "the first of its models is not of the source's size; give its config as source.pretrain.config, and the others in"
            " growth.schedule (docs/guide/training.md)"
        )
    if pretrains and kind == "grown later":
        return (
            "with source.pretrain and growth.schedule, `train` begins with random weights; train the source first, and give it as"
            f" source.model, with {how}, growth.schedule: [{{at: {at:g}}}]"
        )
    if not pretrains and kind == "grown on the way":
        return (
            "with source.model, `train` begins with the source; give the source's config as source.pretrain.config instead, with"
            f" {how}, growth.schedule: [{{at: {at:g}}}]"
        )
    if pretrains and at is None and choice["state"] not in (None, "reset"):
        return (
            "`train` takes no optimizer's state from a source that the recipe trains; train the source with `train` first, and give it as"
            f" source.model, with {how}, growth.state: {choice['state']}"
        )
    return None


def _without_key(choice: Mapping[str, Any]) -> str | None:
    """Return what `train` has no key for, and what to do instead; None if it has a key for all."""
    names = [name for name in choice["options"] if name in DROPPING]
    if choice["strategy"] is not None and not _trains_all(choice["strategy"]):
        names.append(f"the strategy {choice['strategy']}")
    if choice["fit"] == "operator" and not names:
        return (
            f"`train` learns no operator; set growth.width: {choice['width']} and growth.depth: {choice['depth']}, let `ligo-convert run`"
            " learn it with the recipe's `fit`, and give its output to `train` as source.model, with target: {config: {}}"
        )
    names += [f"a learned {choice['fit']}"] if choice["fit"] is not None else []
    if not names:
        return None
    return f"`train` has no key for {' and '.join(names)}; train it with your own script, or choose among candidates without that"


def _trains_all(strategy: str) -> bool:
    """Return whether every step of a strategy trains the whole model on the data alone."""
    parts = STRATEGIES[strategy].parts(_MANY)
    return all(part.trains == "all" and not part.submodels and not part.teacher for part in parts)


def write_chosen(recipe: Recipe, record: Mapping[str, Any], file: Path) -> bool:
    """Write the recipe with the choice filled in; False, and no file, if `why_not_written` says so of the recipe's file.

    `--set` and `--source` of this run are not part of it: they stand on the command line.
    """
    choice = record["choice"]
    yaml = YAML(typ="rt", pure=True)
    yaml.width = WIDTH
    yaml.preserve_quotes = True
    data = yaml.load(recipe.path.read_text(encoding="utf-8"))
    source = data.get("source")
    pretrains = recipe.source.pretrain is not None if source is None else source.get("pretrain") is not None
    if why_not_written(choice, pretrains=pretrains) is not None:
        return False
    if not choice["follows_schedule"]:
        _fill_growth(_section(data, "growth"), choice)
    if choice["kind"] == "part way":
        data["target"] = {"config": dict(choice["asked"])}
    _fill_train(_section(data, "train"), recipe, record)
    text = io.StringIO()
    yaml.dump(data, text)
    write_file(file, text.getvalue().encode())
    return True


def _section(data: CommentedMap, name: str) -> CommentedMap:
    if data.get(name) is None:
        data[name] = CommentedMap()
    section: CommentedMap = data[name]
    return section


def _fill_growth(growth: CommentedMap, choice: Mapping[str, Any]) -> None:
    growth["width"], growth["depth"] = choice["width"], choice["depth"]
    growth.pop("schedule", None)
    if (growth.get("operator") or {}).get("tie") is not None:
        # The maps of the trials are not tied.
        del growth["operator"]["tie"]
        growth["operator"]["keying"] = "source"
    if choice["at"] is None:
        if choice["state"] not in (None, "reset"):
            growth["state"] = choice["state"]
        return
    stage = {"at": choice["at"]}
    if choice["state"] != GrowthStageConfig.model_fields["state"].default:
        stage["state"] = choice["state"]
    if choice["warmup_steps"]:
        stage["warmup_steps"] = choice["warmup_steps"]
    growth["schedule"] = [stage]


def _fill_train(train: CommentedMap, recipe: Recipe, record: Mapping[str, Any]) -> None:
    """Fill in what the choice advises and the trials were trained with, where the section leaves it open."""
    choice, batch_size = record["choice"], record["budget"]["batch_size"]
    fit, compare = recipe.fit, recipe.compare
    found: dict[str, Any] = {}
    if "steps" not in train:
        found |= {"steps": choice["steps"], "batch_size": batch_size}
        if fit is not None and "sequence_length" in fit.model_fields_set:
            found["sequence_length"] = fit.sequence_length
    found |= {"optimizer": choice["optimizer"], "learning_rate": choice["learning_rate"]}
    if choice["shape"] == "cosine":
        found["schedule"] = "cosine"
    elif train.get("schedule") != "cosine":
        found["decay"] = choice["decay"]
    if compare is not None and "weight_decay" in compare.model_fields_set:
        found["weight_decay"] = compare.weight_decay
    if compare is not None and "warmup_fraction" in compare.model_fields_set:
        found["warmup_steps"] = max(1, round(compare.warmup_fraction * train.get("steps", choice["steps"])))
    if fit is not None and "mask_probability" in fit.model_fields_set:
        found["mask_probability"] = fit.mask_probability
    # In front of the section's own keys, whose last one may be followed by an empty line.
    for place, key in enumerate(key for key in found if key not in train):
        train.insert(place, key, found[key])

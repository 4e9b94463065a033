"""Write a recipe to start from: what a checkpoint can grow into, by which method, as commented YAML.

Input: a checkpoint, and the size that is wanted, if any.
Output: a `Suggestion`: the text of a recipe, and the sizes and growth methods it was chosen from. Only configs and headers are read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.conversion.plan import DEFAULT_KEYING, inventory_of
from ligo_convert.errors import RecipeError, close_matches, printable
from ligo_convert.families.configs import flat_config
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.notation import size_keys
from ligo_convert.families.registry import find_family
from ligo_convert.families.schema import Family
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.growth_plan import GrowthPlan, GrowthSettings, plan_growth
from ligo_convert.growth.verdict import RANK
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.hub.resolve import open_source
from ligo_convert.recipes.examples import schema_comment
from ligo_convert.units import amount

# Width methods in the order in which they are tried. The first that preserves the function best is taken.
TRIED = ("lemon", "hyperclone", "mean-preserving", "zero")

# A published size with more parameters than this many times the source's is no default: published growths are 2 to 4 times.
MOST_GROWTH = 8

# Characters of a name that need no quotes in YAML, and are harmless in a file name.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_NUMBER_LIKE = re.compile(r"(?i)(true|false|null|yes|no|on|off|y|n)")


@dataclass(frozen=True, kw_only=True)
class SizeChoice:
    """A size that the source can grow into.

    Attributes:
        name: name of the published model with these sizes; "" for sizes that were asked for or derived.
        changes: config keys that differ from the source's, with their new values.
        parameters: number of parameters of the target.
        growth: the plan of the growth.
    """

    name: str
    changes: Mapping[str, object]
    parameters: int
    growth: GrowthPlan

    def json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        growth = self.growth.growth
        return {
            "name": self.name or None,
            "config": dict(self.changes),
            "parameters": self.parameters,
            "growth": {"width": growth.width, "depth": growth.depth},
            "preservation": {"verdict": self.growth.verdict, "reasons": list(self.growth.reasons)},
        }


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A recipe to start from.

    Attributes:
        text: the recipe.
        label: the source's Hub id or folder name.
        family: the family's name.
        parameters: number of parameters of the source.
        chosen: the size in the recipe.
        others: the other published sizes that the source can grow into, smallest first.
    """

    text: str
    label: str
    family: str
    parameters: int
    chosen: SizeChoice
    others: tuple[SizeChoice, ...]

    def json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {
            "source": self.label,
            "family": self.family,
            "parameters": {"source": self.parameters, "target": self.chosen.parameters},
            "chosen": self.chosen.json(),
            "others": [other.json() for other in self.others],
        }


def suggest_recipe(
    source: str,
    path: Path,
    *,
    revision: str = "main",
    grow: Mapping[str, object] | None = None,
    size: str | None = None,
) -> Suggestion:
    """Return a recipe for a source.

    Args:
        source: a directory, relative to the working directory, or a Hub id.
        path: the file that the recipe will be written to; a local source is named relative to it.
        revision: branch, tag or commit of a source on the Hub.
        grow: config keys of the target with their values; None for a published size.
        size: name of the published size to choose; None for the next larger one, or twice the layers if that is not near.

    Raises:
        RecipeError: the source cannot grow as asked.
        SourceError, SourceChanged, MachineError: as `open_source`.
    """
    with open_source(source, revision=revision, base=Path.cwd(), weights=False) as reader:
        label, local = reader.label, reader.revision is None
        family, inventory = _family_of(reader)
        config = dict(reader.config)
    own = inventory.family.parameters(inventory.rows, config)
    published = sorted(
        (
            choice
            for name, changes in _published(family, config).items()
            if (choice := _choice(name, changes, family, inventory, config)) is not None
        ),
        key=lambda choice: choice.parameters,
    )
    if grow:
        chosen = _planned("", grow, family, inventory, config, where="--grow")
    elif size is not None:
        chosen = _named(size, published, family)
    elif published and published[0].parameters <= MOST_GROWTH * own:
        chosen = published[0]
    else:
        chosen = _deeper(family, inventory, config)
    suggestion = Suggestion(
        text="",
        label=label,
        family=family.name,
        parameters=own,
        chosen=chosen,
        others=tuple(other for other in published if other.name != chosen.name),
    )
    named = _relative(source, path) if local else source
    text = _recipe_text(suggestion, family, named, path, revision=None if local else revision)
    return replace(suggestion, text=text)


def _family_of(reader: CheckpointReader) -> tuple[Family, Inventory]:
    config = dict(reader.config)
    family = find_family(config, where=f"{reader.label}: config.json", names=reader.tensors)
    inventory = inventory_of(family, config, reader, reader.label)
    return inventory.family, inventory


def _published(family: Family, config: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return the published sizes of a family: name -> the keys that differ from the source's."""
    own = family.complete(config)
    fixed = {key for axis in (*family.never_grown, family.labels) if axis for key in size_keys(family.axes[axis])}
    keys = [key for key in family.size_keys if key not in fixed]
    found: dict[str, dict[str, object]] = {}
    for name in family.architectures:
        complete = family.complete(flat_config({"architecture": name}, where=name))
        found[name] = {key: complete[key] for key in keys if key in complete}
    found.update({name: dict(sizes) for name, sizes in family.published.items()})
    return {
        name: {key: value for key, value in sizes.items() if own.get(key) != value} for name, sizes in found.items()
    }


def _choice(
    name: str, changes: Mapping[str, object], family: Family, inventory: Inventory, config: Mapping[str, object]
) -> SizeChoice | None:
    """Return a size as a choice; None if the source has this size, or cannot grow into it."""
    if not changes:
        return None
    try:
        return _planned(name, changes, family, inventory, config, where=name)
    except RecipeError:
        return None


def _planned(
    name: str,
    changes: Mapping[str, object],
    family: Family,
    inventory: Inventory,
    config: Mapping[str, object],
    *,
    where: str,
) -> SizeChoice:
    """Return a size with the growth methods that preserve the function best. Raises RecipeError if the source cannot grow into it."""
    target = family.resize(config, changes, where=where)

    def plan(width: str, depth: str) -> GrowthPlan:
        settings = GrowthSettings(width=width, depth=depth, keying=DEFAULT_KEYING, tie=None, seed=0)
        return plan_growth(family, settings, config, target, asked=changes, where=where, source_family=inventory.family)

    widest = plan("mean-preserving", "identity")
    depth = "identity" if any(found.silent for found in widest.depths.values()) else "copy"
    tried: list[GrowthPlan] = []
    for width in TRIED if widest.grows_width else ("copy",):
        try:
            tried.append(plan(width, depth))
        except RecipeError:
            continue  # it promises what it cannot keep at this ratio
        if tried[-1].verdict == "exact":
            break
    best = min(tried, key=lambda found: RANK[found.verdict])
    parameters = family.parameters(family.rows_for(target), target)
    return SizeChoice(name=name, changes=dict(changes), parameters=parameters, growth=best)


def _named(size: str, published: list[SizeChoice], family: Family) -> SizeChoice:
    names = [choice.name for choice in published]
    for choice in published:
        if choice.name == size:
            return choice
    known = size in family.published or size in family.architectures
    near = [] if known else close_matches(size, names)
    raise RecipeError(
        f"--size: the source cannot grow into {size}" if known else f"--size: no published size {size!r}",
        expected=", ".join(names) or "none of the published sizes is larger than the source",
        hint=f"did you mean {near[0]}?" if near else "give config keys with --grow",
    )


def _deeper(family: Family, inventory: Inventory, config: Mapping[str, object]) -> SizeChoice:
    """Return the source with twice the layers, for a source without a published size near it."""
    axis = family.depth_axes[0]
    (key, *_) = size_keys(family.axes[axis])
    layers = family.sizes(config)[axis]
    return _planned("", {key: 2 * layers}, family, inventory, config, where=key)


def _relative(source: str, path: Path) -> str:
    """Return a local source as the recipe names it: relative to the recipe's folder, unless it was given from the root."""
    given = Path(source).expanduser()
    if given.is_absolute():
        return str(given)
    found = os.path.relpath(given.absolute(), path.absolute().parent)
    return found if found.startswith("..") else f"./{found}"


# --- the text ---------------------------------------------------------------------------------------------------------

_TEXT_DATA = "text: [corpus/*.txt]         # your text: .txt, .jsonl or .parquet"
_IMAGE_DATA = "images: photos/              # your images, a folder for each class"


def _recipe_text(suggestion: Suggestion, family: Family, source: str, path: Path, *, revision: str | None) -> str:
    """Return the recipe as commented YAML."""
    chosen = suggestion.chosen
    growth = chosen.growth.growth
    name = chosen.name or f"{_last(suggestion.label)}-grown"
    file = path.name
    sizes = f"{amount(suggestion.parameters)} to {amount(chosen.parameters)} parameters"
    lines = [
        f"# {printable(suggestion.label)} to {name}: {sizes}."
        if chosen.name
        else f"# {printable(suggestion.label)}, grown: {sizes}.",
        "#",
        f"#   ligo-convert plan {file}    # sizes, memory, disk, preservation; reads no weights",
        f"#   ligo-convert run {file}     # run it again to resume after an interruption",
        "version: 1",
        "source:",
        f"  model: {_yaml(source)}",
        *([f"  revision: {_yaml(revision)}"] if revision is not None else []),
        "target:",
    ]
    if suggestion.others:
        lines.append(
            "  # Other published sizes, with parameters, and what `lemon` or the nearest method preserves there:"
        )
        lines += [
            f"  #   {other.name} ({amount(other.parameters)}, {other.growth.verdict}): {_flow(other.changes)}"
            for other in suggestion.others
        ]
    lines += [
        "  # Keys of the source's own config.json.",
        f"  config: {_flow(chosen.changes)}",
        "growth:",
        f"  width: {growth.width}",
        f"    # {WIDTHS[growth.width].summary}",
        f"  depth: {growth.depth}",
        f"    # {DEPTHS[growth.depth].summary}",
        f"# Expected: {_kept(chosen)}",
        *(f"#   {printable(reason)}" for reason in chosen.growth.reasons),
        "#",
        "# Learn the growth operator on data before it is applied. Try the recipe without it first.",
        "# fit:",
        "#   steps: 100",
        "#   data:",
        f"#     {_IMAGE_DATA if family.reads == 'images' else _TEXT_DATA}",
        "output:",
        f"  dir: {_yaml(f'out/{name}')}",
        "# publish: {repo: YOU/NAME, license: apache-2.0}",
    ]
    return schema_comment() + "\n".join(lines) + "\n"


def _kept(choice: SizeChoice) -> str:
    says = {
        "exact": "keeps the source's function exactly",
        "near": "keeps the source's loss nearly",
        "lossy": "changes the function",
    }
    return f"{choice.growth.growth.width} with {choice.growth.growth.depth} {says[choice.growth.verdict]}"


def _last(label: str) -> str:
    """Return the last part of a Hub id or folder name, as far as it is plain."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", label.rstrip("/").rpartition("/")[2]).strip("-.") or "model"


def default_file(source: str, size: str | None) -> str:
    """Return the name of the recipe's file: that of the source, and of the size if one was chosen."""
    stem = _last(str(Path(source)))
    return f"{stem}_to_{_last(size)}.yaml" if size is not None else f"{stem}_grown.yaml"


def _flow(values: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{key}: {_yaml(value)}" for key, value in values.items()) + "}"


def _yaml(value: object) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _NUMBER_LIKE.fullmatch(value):
        return value
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*", value) and "/" in value:
        return value
    return json.dumps(value)

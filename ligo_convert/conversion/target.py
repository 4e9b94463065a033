"""TODO: one sentence."""

from __future__ import annotations

from collections.abc import Mapping

from ligo_convert.errors import RecipeError
from ligo_convert.families.configs import flat_config
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.notation import size_keys
from ligo_convert.families.registry import FAMILIES, find_family
from ligo_convert.families.schema import Family
from ligo_convert.hub.resolve import read_config
from ligo_convert.recipes.recipe import Recipe


def family_of_target(recipe: Recipe, inventory: Inventory) -> Family:
    """The family narrowed to the target's class: the source's, unless the recipe asks for another head."""
    asked = recipe.target.architecture
    if asked in (None, inventory.family.architecture):
        return inventory.family
    names = [head.architecture for head in inventory.family.heads]
    if asked not in names:
        raise RecipeError(
            f"{inventory.family.name} has no class {asked!r} here",
            where=recipe.where("target", "architecture"),
            expected=" or ".join(dict.fromkeys(names)),
        )
    return inventory.family.for_architecture(asked)


def left_out_parts(inventory: Inventory, family: Family) -> list[str]:
    """What the source has and the target will not."""
    found = list(inventory.left_out)
    found += [row.pattern for row in inventory.rows if row.layout.part not in ("", *family.chosen.parts)]
    if not found:
        return []
    return [
        f"left out, as {family.architecture} has no place for it: {', '.join(found[:4])}" + ("..." if found[4:] else "")
    ]


def target_changes(recipe: Recipe, family: Family, config: Mapping[str, object]) -> tuple[dict[str, object], str]:
    """What the recipe wants changed in the source's config, and where it says so."""
    if recipe.target.model is None:
        changes = dict(recipe.target.config or {})
        unknown = [key for key in changes if key not in {*config, *family.defaults, *family.size_keys}]
        # What is wrong with sizes is often wrong with several of them together.
        at = unknown[:1] or (list(changes) if len(changes) == 1 else [])
        return changes, recipe.where("target", "config", *at)
    where = recipe.where("target", "model")
    wanted = target_model_config(recipe)
    if find_family(wanted, where=where).name != family.name:
        raise RecipeError(
            "a model grows within its family", where=where, expected=family.model_type, found=wanted.get("model_type")
        )
    complete, old = family.complete(wanted), family.complete(config)
    # The head is the source's: another number of classes is asked for in target.config.
    head = size_keys(family.axes[family.labels]) if family.labels else ()
    keys = [key for key in (*family.size_keys, *family.defaults) if key in wanted or key in family.size_keys]
    keys = [key for key in keys if key not in head]
    # A key that decides a size may be left out by both: the library works it out.
    return {key: complete[key] for key in keys if key in complete and complete[key] != old.get(key)}, where


def target_model_config(recipe: Recipe) -> dict[str, object]:
    """The config of `target.model`: what a name of timm's stands for, or what lies in a directory or on the Hub."""
    name = recipe.target.model
    assert name is not None
    # timm's names have a tag of the weights behind a dot.
    if any(name.partition(".")[0] in known.architectures for known in FAMILIES.values()):
        return flat_config({"architecture": name}, where=recipe.where("target", "model"))
    return read_config(name, revision=recipe.target.revision, base=recipe.base)

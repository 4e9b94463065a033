"""Work out the target of a recipe: its class, and the config keys that change."""

from __future__ import annotations

from collections.abc import Mapping

from ligo_convert.errors import RecipeError
from ligo_convert.families.configs import flat_config, with_tokens
from ligo_convert.families.inventory import Inventory, named_architectures
from ligo_convert.families.notation import size_keys
from ligo_convert.families.registry import FAMILIES, find_family
from ligo_convert.families.schema import Family
from ligo_convert.hub.resolve import read_config
from ligo_convert.recipes.recipe import Recipe


def family_of_target(recipe: Recipe, inventory: Inventory, target: Mapping[str, object]) -> Family:
    """Return the family narrowed to the target's class: the source's class, unless the recipe names another or the config decides it.

    Args:
        target: the target's config.
    """
    architecture = recipe.target.architecture
    if architecture in (None, inventory.family.architecture):
        return inventory.family.for_config(target)
    names = [head.architecture for head in inventory.family.heads]
    if architecture not in names:
        raise RecipeError(
            f"{inventory.family.name} has no class {architecture!r}",
            where=recipe.where("target", "architecture"),
            expected=" or ".join(dict.fromkeys(names)),
        )
    return inventory.family.for_architecture(architecture).for_config(target)


def left_out_parts(inventory: Inventory, family: Family) -> list[str]:
    """Return warnings about a class that config.json names and the source is not of, and about tensors that the target leaves out."""
    source, named = inventory.family, named_architectures(inventory.config)
    warnings = []
    if named and source.library == "transformers" and source.architecture not in named:
        warnings.append(f"config.json names {named[0]}, and the tensors are those of {source.architecture}")
    names = list(inventory.left_out)
    names += [row.pattern for row in inventory.rows if row.layout.part not in ("", *family.chosen.parts)]
    if not names:
        return warnings
    return [
        *warnings,
        f"left out, because {family.architecture} has no such tensors: {', '.join(names[:4])}"
        + ("..." if names[4:] else ""),
    ]


def target_changes(recipe: Recipe, family: Family, config: Mapping[str, object]) -> tuple[dict[str, object], str]:
    """Return the config keys that the recipe changes, with their new values, and the location of that request in the recipe."""
    changes = dict(recipe.target.config or {})
    unknown = [key for key in changes if key not in {*config, *family.defaults, *family.size_keys}]
    if recipe.target.model is None or unknown:
        # An error about sizes often concerns several keys: then the whole section is shown.
        at = unknown[:1] or (list(changes) if len(changes) == 1 else [])
        return with_tokens(family, config, changes), recipe.where("target", "config", *at)
    where = recipe.where("target", "model")
    wanted = target_model_config(recipe)
    if (other := find_family(wanted, where=where)).name != family.name:
        raise RecipeError(
            "target.model belongs to another family than the source",
            where=where,
            expected=family.name,
            found=other.name,
        )
    complete, old = family.complete(wanted), family.complete(config)
    # The target keeps the source's number of classes; target.config can change it.
    head = size_keys(family.axes[family.labels]) if family.labels else ()
    keys = [key for key in (*family.size_keys, *family.defaults) if key in wanted or key in family.size_keys]
    keys = [key for key in keys if key not in head]
    # Both configs may omit a key that the library derives.
    named = {key: complete[key] for key in keys if key in complete and complete[key] != old.get(key)}
    return with_tokens(family, config, {**named, **changes}), where


def target_model_config(recipe: Recipe) -> dict[str, object]:
    """Return the config of `target.model`, which is a timm name, a directory or a Hub id."""
    name = recipe.target.model
    assert name is not None
    # A timm name may end with a dot and the tag of its weights.
    if any(name.partition(".")[0] in known.architectures for known in FAMILIES.values()):
        return flat_config({"architecture": name}, where=recipe.where("target", "model"))
    return read_config(name, revision=recipe.target.revision, base=recipe.base)

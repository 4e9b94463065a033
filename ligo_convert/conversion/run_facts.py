"""Facts by which two runs are told apart, as plain text, so that an occupied output says what differs.

Input: the recipe, the digests of the source's files, the versions. Output: what -> value, in the order in which differences are reported.
The key of a run (`run_record.run_key`) decides whether two runs are the same; these facts only explain its difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ligo_convert.environment import versions
from ligo_convert.families.registry import family_source

# Where a result goes is no part of what it is.
_NOT_COMPARED = ("output.dir", "publish")


def run_facts(
    recipe: Mapping[str, Any], digests: Mapping[str, str], family: str, *, others: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Return the facts of a run that is about to begin.

    Args:
        recipe: the recipe's public form.
        digests: SHA-256 of the source's files, by name.
        family: name of the family.
        others: more facts that the provenance of an output does not hold, such as the digest of the data.
    """
    source = family_source(family)
    return _facts(recipe, digests, versions(), None if source is None else source.sha256) | {
        what: str(value) for what, value in (others or {}).items()
    }


def statement_facts(statement: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts of a finished run from its provenance."""
    definition = statement["predicate"]["buildDefinition"]
    recipe = definition.get("externalParameters", {}).get("recipe")
    files = [item for item in definition["resolvedDependencies"] if item.get("annotations", {}).get("role") == "source"]
    made = statement["predicate"]["runDetails"].get("builder", {}).get("version")
    recorded = definition["internalParameters"].get("familySource")
    return _facts(
        recipe if isinstance(recipe, Mapping) else {},
        {str(item["name"]): str(item["digest"]["sha256"]) for item in files},
        made if isinstance(made, Mapping) else {},
        None if recorded is None else str(recorded["digest"]["sha256"]),
    )


def _facts(
    recipe: Mapping[str, Any], digests: Mapping[str, str], made_with: Mapping[str, Any], family: str | None
) -> dict[str, str]:
    return {
        **{f"recipe: {key}": value for key, value in _flat(recipe)},
        **{f"source: {name}": f"SHA-256 {digest}" for name, digest in sorted(digests.items())},
        **{f"version of {name}": str(version) for name, version in sorted(made_with.items())},
        **({} if family is None else {"family file": f"SHA-256 {family}"}),
    }


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted keys of a recipe with their values as JSON."""
    for key, value in recipe.items():
        name = f"{prefix}{key}"
        if name in _NOT_COMPARED:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, json.dumps(value, default=str)

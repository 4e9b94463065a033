"""Choose the weights of a training loop's checkpoint, and take the names of wrappers off its tensors.

Input: the dictionaries of a pickled file. Output: one dictionary and the plain name of each of its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from ligo_convert.errors import RecipeError, SourceError, some
from ligo_convert.importing.pickle_reader import Group
from ligo_convert.io.strict_json import short

# Wrapper modules put these in front of the names: DataParallel and DistributedDataParallel, then torch.compile.
_LEADING = ("module.", "_orig_mod.")

# A compiled or sharded part of a model has its wrapper's name inside the path, and a part of a path is named so for no other reason.
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def choose_group(groups: Sequence[Group], *, key: str | None, label: str) -> Group:
    """Return the dictionary that holds the weights.

    Args:
        groups: all dictionaries with tensors in the file.
        key: the keys that lead to the dictionary, separated by dots; None takes the only one there is.
        label: name of the file in messages.

    Raises:
        SourceError: the file holds no tensors.
        RecipeError: several dictionaries hold weights and `key` chooses none of them.
    """
    if key is not None:
        for group in groups:
            if group.label == key:
                return group
        raise RecipeError(
            f"nothing with tensors has the key {short(key)!r}",
            where=label,
            expected=some([group.label for group in groups], 8) or "tensors",
        )
    # A lone counter or scale stored as a tensor is not a model.
    weights = [group for group in groups if group.refused or any(tensor.spec.shape for tensor in group.tensors)]
    if not weights:
        raise SourceError("the file holds no weights", where=label, expected="a dictionary from names to tensors")
    if len(weights) > 1:
        raise RecipeError(
            "the file holds several sets of weights",
            where=label,
            found=some([f"{group.label} ({len(group.tensors)} tensors)" for group in weights], 8),
            hint="choose one with --key, such as --key " + short(weights[0].label),
        )
    return weights[0]


def plain_names(names: Sequence[str], *, strip: str = "", label: str) -> dict[str, str]:
    """Return name in the file -> name without wrappers.

    Args:
        names: the names of all tensors.
        strip: a prefix of every name to take off, such as `model.`; empty for none.
        label: name of the file in messages.

    Raises:
        RecipeError: a name does not begin with `strip`.
        SourceError: two names are equal without their wrappers.
    """
    plain = {name: name for name in names}
    while prefix := next((text for text in _LEADING if all(name.startswith(text) for name in plain.values())), None):
        plain = {stored: name.removeprefix(prefix) for stored, name in plain.items()}
    for wrapper in _INSIDE:
        plain = {stored: _without(wrapper, name) for stored, name in plain.items()}
    if strip:
        other = next((name for name in plain.values() if not name.startswith(strip)), None)
        if other is not None:
            raise RecipeError(
                f"not every name begins with {short(strip)!r}", where=f"{label}: {short(other)}", hint="check --strip"
            )
        plain = {stored: name.removeprefix(strip) for stored, name in plain.items()}
    stored_as: dict[str, str] = {}
    for stored, name in plain.items():
        if name in stored_as or not name:
            twin = stored_as.get(name, "no name")
            raise SourceError(f"without wrappers, {short(stored)} is {short(twin)}", where=label)
        stored_as[name] = stored
    return plain


def _without(part: str, name: str) -> str:
    """Take a whole part of a dotted path out of `name`, wherever it stands."""
    inside = f".{name}"
    while f".{part}" in inside:
        inside = inside.replace(f".{part}", ".")
    return inside[1:]

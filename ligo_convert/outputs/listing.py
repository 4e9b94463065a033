"""Check that an output directory has the files that it must have, and none that it cannot have.

Input: the names that SHA256SUMS lists, and the provenance. Output: nothing, or a VerificationError that names the file.

`outputs.checksums` finds files that are not listed. This module finds listed ones that no run writes: SHA256SUMS and provenance are not
signed, so whoever puts pickled weights, code or an adapter into a directory can list it there, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.file_kinds import kind_of
from ligo_convert.checkpoints.files import CARD, CONFIG, INDEX, WEIGHTS
from ligo_convert.checkpoints.headers import parse_index
from ligo_convert.checkpoints.model_files import PRIVATE_NAME
from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.errors import SourceError, VerificationError
from ligo_convert.families.schema import Family
from ligo_convert.growth.operator import Operator
from ligo_convert.io.files import reporting
from ligo_convert.outputs.carried import PRIVATE_TEXT, WidenedInput, carried_files, contents, parse_weights, widths_of
from ligo_convert.outputs.layout import PROVENANCE, RECIPE, REQUIRED, is_own, training_state_name
from ligo_convert.outputs.provenance import kind_of_output, metrics_of


def check_complete(root: Path, names: Collection[str], kind: str | None = None) -> None:
    """Raise VerificationError if SHA256SUMS lists less than an output has.

    Args:
        kind: kind of the output, a key of `layout.REQUIRED`; None for what every output has.
    """
    required = (RECIPE, PROVENANCE) if kind is None else REQUIRED[kind]
    missing = [name for name in (CONFIG, CARD, *required) if name not in names]
    if WEIGHTS not in names and INDEX not in names:
        missing.append(WEIGHTS)
    if missing:
        raise VerificationError(
            "an output directory has this file, and SHA256SUMS does not list it",
            where=root / missing[0],
            expected="a file",
            found="no such file",
            hint="run the recipe again in another directory",
        )


def check_known(root: Path, names: Collection[str], statement: Mapping[str, Any]) -> None:
    """Raise VerificationError if SHA256SUMS lists a file that no run writes."""
    recorded = recorded_files(statement, "carried", "rewritten")
    training = filter(training_state_name, recorded_files(statement, "training"))
    known = {CONFIG, CARD, *_weight_files(root, names), *training}
    made_by = kind_of_output(statement)
    for name in sorted(names):
        carried = name in recorded and kind_of(name).action in ("carry", "module")
        if name not in known and not is_own(name, made_by) and not carried:
            raise VerificationError(
                "no run writes this file, and a loader or a reader could take it for a part of the model",
                where=root / name,
                expected="the files of the run, and those that it carried from its source",
                found=f"a file that SHA256SUMS lists ({kind_of(name).what})",
                hint="do not use the directory: somebody added the file after the run",
            )


def recorded_files(statement: Mapping[str, Any], *lists: str) -> set[str]:
    """Return the names in these lists of files that a statement records."""
    files = metrics_of(statement).get("files")
    found = [files.get(key) for key in lists] if isinstance(files, Mapping) else []
    return {name for names in found if isinstance(names, list) for name in names if isinstance(name, str)}


def _private(statement: Mapping[str, Any]) -> set[str]:
    """Return the paths that were left behind because they were private on the machine on which the output was made."""
    files = metrics_of(statement).get("files")
    left = files.get("left_behind") if isinstance(files, Mapping) else None
    items = [item for item in left if isinstance(item, Mapping)] if isinstance(left, list) else []
    reasons = {str(item.get("path")): str(item.get("reason")) for item in items}
    return {path for path, reason in reasons.items() if path == PRIVATE_NAME or PRIVATE_TEXT in reason}


def _weight_files(root: Path, names: Collection[str]) -> Iterator[str]:
    """Yield the names of the weight files: those that the index names, or the only one."""
    if INDEX not in names:
        yield WEIGHTS
        return
    with reporting(root / INDEX, "read"):
        data = (root / INDEX).read_bytes()
    try:
        index = parse_index(data, label=INDEX)
    except SourceError as error:
        raise VerificationError(error.what, where=root / INDEX) from None
    yield INDEX
    yield from index.weight_map.values()


def check_carried(
    root: Path,
    digests: Mapping[str, str],
    statement: Mapping[str, Any],
    source: CheckpointReader,
    family: Family,
    operator: Operator,
    *,
    exact: Callable[[], bool],
) -> int:
    """Derive every carried file again and compare it byte for byte.

    Args:
        digests: name -> SHA-256 of the files of the output.
        exact: tells whether grown weights of modules must be equal bit for bit; asked only where they are not.

    Returns:
        The number of files.

    Raises:
        VerificationError: a file differs or is missing, or the output has one more.
    """
    widths = widths_of(family, source.config, operator.target, operator.rewrites, len(operator.terms))
    carried = carried_files(source, widths)
    found = {*carried.copied, *carried.changes}
    extra = sorted(recorded_files(statement, "carried", "rewritten") - found - {CONFIG})
    if extra:
        raise VerificationError(
            "the source does not give this file", where=root / extra[0], found="a file of the output"
        )
    private = _private(statement)
    for name, data in contents(carried, source, family, operator):
        expected = hashlib.sha256(data).hexdigest()
        if digests.get(name) == expected:
            continue
        if name not in digests and {name, PRIVATE_NAME} & private:
            continue
        grown = isinstance(carried.changes.get(name), WidenedInput) and name in digests
        if not grown or exact() or not _close(root / name, data):
            raise VerificationError(
                "the file differs from the one that its source gives",
                where=root / name,
                expected=expected,
                found=digests.get(name, "no such file"),
            )
    return len(found)


def _close(path: Path, data: bytes) -> bool:
    """Return True if two files of weights hold the same tensors up to rounding."""
    import torch
    from safetensors.torch import load

    with reporting(path, "read"):
        stored = path.read_bytes()
    specs: list[dict[str, TensorSpec]] = []
    try:
        for content in (stored, data):
            specs.append({name: tensor.spec for name, tensor in parse_weights(content, path.name).tensors.items()})
    except SourceError:
        return False
    if specs[0] != specs[1]:
        return False
    one, two = load(stored), load(data)
    return all(torch.allclose(one[name].float(), two[name].float(), rtol=1e-2, atol=1e-5) for name in one)

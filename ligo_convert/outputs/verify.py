"""Verify an output directory: every byte, every tensor, and that the library loads it.

Input: a directory, optionally its source. Output: a report. Any failure raises VerificationError (exit code 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.tensors import TensorSpec, nonfinite_count
from ligo_convert.checkpoints.writer import rehash
from ligo_convert.environment import processor
from ligo_convert.errors import RecipeError, SourceError, VerificationError
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.registry import family_source, find_family
from ligo_convert.families.schema import Family
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import UnknownFamily, family_of, read_operator
from ligo_convert.growth.stream import grow
from ligo_convert.hub.resolve import open_source
from ligo_convert.outputs.checksums import check_sums
from ligo_convert.outputs.derived_state import check_training_files
from ligo_convert.outputs.layout import OPERATOR, PROVENANCE
from ligo_convert.outputs.listing import check_carried, check_complete, check_known
from ligo_convert.outputs.loading import check_loads
from ligo_convert.outputs.provenance import check_subjects, kind_of_output, metrics_of, read_statement
from ligo_convert.progress import Progress

# Allowed difference of a recomputed tensor on another kind of processor, in units in the last place of the tensor's largest value.
ROUNDING = 32


def check_weights(
    root: Path, specs: Mapping[str, TensorSpec], *, allow_nonfinite: bool, progress: Progress, values: bool = True
) -> dict[str, Any]:
    """Read written weights back and check names, shapes, dtypes and that all values are finite.

    Args:
        root: the directory of the checkpoint.
        specs: the planned tensors by name.
        allow_nonfinite: accept NaN and infinite values.
        progress: receives the progress of reading.
        values: False reads the headers only, for bytes whose values were checked while writing and whose digests were verified.

    Returns:
        `tensors`, their number, and `finite`, whether all values that were read are finite.

    Raises:
        VerificationError: a tensor is not as planned, or a value is not finite.
    """
    nonfinite = 0
    try:
        with open_source(str(root.absolute()), base=root) as written:
            found = {name: tensor.spec for name, tensor in written.tensors.items()}
            if found != dict(specs):
                different = sorted({*found.items()} ^ {*specs.items()}, key=lambda pair: pair[0])
                raise VerificationError(
                    "the tensors differ from the planned ones",
                    where=root,
                    found=", ".join(name for name, _ in different[:4]),
                )
            to_read = specs if values else {}
            total = sum(spec.nbytes for spec in to_read.values())
            with progress.task("reading back", total, unit="bytes") as task:
                for name, spec in to_read.items():
                    bad = nonfinite_count(written.read(name), spec.dtype)
                    nonfinite += bad
                    task.advance(spec.nbytes)
                    if bad and not allow_nonfinite:
                        raise VerificationError(f"{bad} values are NaN or infinite", where=f"{root.name}: {name}")
    except SourceError as error:
        raise VerificationError(
            f"the written checkpoint cannot be read back: {error.what}", where=error.where
        ) from None
    return {"tensors": len(specs), "finite": nonfinite == 0}


def verify(
    directory: Path, *, source: str | None = None, load: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Verify a finished output directory.

    Args:
        directory: the output directory.
        source: the source checkpoint. If given, every tensor is recomputed and compared, those of the optimizer's state included: bit for
            bit on the kind of processor that wrote it, up to rounding on another. The recorded Hub id stands for the recorded commit.
        load: also load the model with its library, one weight at a time if it does not fit in memory.
        progress: receives the progress of the checks.

    Returns:
        The report that `verify --json` prints.

    Raises:
        VerificationError: something differs from what was recorded.
        RecipeError: a source is given for a trained model, which no operator derives from its source.
    """
    progress = progress or Progress()
    if not directory.is_dir():
        raise VerificationError("no such directory", where=directory, hint="give the output directory of a run")
    report: dict[str, Any] = {"out": str(directory)}
    with progress.task("checking digests"):
        digests = check_sums(directory)
    report["files"] = len(digests)
    check_complete(directory, digests)
    statement = read_statement((directory / PROVENANCE).read_bytes(), label=PROVENANCE)
    check_subjects(statement, digests)
    kind = kind_of_output(statement)
    check_complete(directory, digests, kind)
    check_known(directory, digests, statement)
    operator = _read_operator(directory) if kind == "growth" else None
    family = family_of(operator) if operator is not None else _trained_family(directory)
    _check_family_source(statement, family)
    specs = _table_specs(directory, family)
    report["family"] = family.name
    report["weights"] = check_weights(directory, specs, allow_nonfinite=_allows_nonfinite(statement), progress=progress)
    if source is not None:
        if operator is None:
            raise RecipeError(
                "a trained model cannot be derived from its source again",
                where="--source",
                hint="leave --source out, or train again with ligo/recipe.yaml and compare the digests of the weights",
            )
        report["derived"] = _derive_again(directory, digests, statement, operator, family, specs, source, progress)
    if load:
        report["loaded"] = check_loads(directory, family)
    return report


def _trained_family(directory: Path) -> Family:
    """Return the family of the model, narrowed to its class. Raises VerificationError if config.json and weights belong to none."""
    try:
        with open_source(str(directory.absolute()), base=directory, weights=False) as written:
            tensors = {name: tensor.spec for name, tensor in written.tensors.items()}
            family = find_family(written.config, where="config.json", names=tensors)
            return claim_tensors(family, written.config, tensors, label=directory.name).family
    except SourceError as error:
        raise VerificationError(f"not a complete checkpoint: {error.what}", where=error.where) from None


def _check_family_source(statement: Mapping[str, Any], family: Family) -> None:
    """Require the family to be defined by the same file as when the output was made. Raises VerificationError."""
    recorded = statement["predicate"]["buildDefinition"]["internalParameters"].get("familySource")
    digest = recorded.get("digest") if isinstance(recorded, Mapping) else None
    expected = digest.get("sha256") if isinstance(digest, Mapping) else recorded
    source = family_source(family.name)
    found = source.sha256 if source else None
    if expected != found:
        raise VerificationError(
            f"the table of the family {family.name} is not the one that the output was made with",
            where=PROVENANCE,
            expected=f"a file with SHA-256 {expected}" if expected else "the built-in family",
            found=f"a file with SHA-256 {found}" if found else "the built-in family",
        )


def _allows_nonfinite(statement: Mapping[str, Any]) -> bool:
    definition = statement["predicate"]["buildDefinition"]
    return bool(definition["internalParameters"].get("nonfiniteAllowed", False))


def _table_specs(directory: Path, family: Family) -> dict[str, TensorSpec]:
    """Return the stored tensors. Raises VerificationError if they differ from the family's table at the sizes in config.json."""
    try:
        with open_source(str(directory.absolute()), base=directory, weights=False) as written:
            if find_family(written.config, where="config.json").name != family.name:
                raise VerificationError("config.json belongs to another family", where=directory, expected=family.name)
            tensors = {name: tensor.spec for name, tensor in written.tensors.items()}
            claim_tensors(family, written.config, tensors, label=directory.name)
    except SourceError as error:
        raise VerificationError(f"not a complete {family.name} checkpoint: {error.what}", where=error.where) from None
    return tensors


def _read_operator(directory: Path) -> Operator:
    """Return the operator of an output. Raises VerificationError if the file is not one, UnknownFamily if it may well be one."""
    try:
        return read_operator(directory / OPERATOR)
    except UnknownFamily:
        raise
    except SourceError as error:
        raise VerificationError(f"not an operator: {error.what}", where=directory / OPERATOR) from None


def _derive_again(
    directory: Path,
    written: Mapping[str, str],
    statement: Mapping[str, Any],
    operator: Operator,
    family: Family,
    specs: Mapping[str, TensorSpec],
    source: str,
    progress: Progress,
) -> dict[str, Any]:
    """Grow every tensor and derive every carried file again, and compare. Raises VerificationError that names the first difference."""
    files = _source_files(statement)
    recorded = {item["name"]: item["digest"]["sha256"] for item in files}
    with (
        open_source(source, revision=_revision_of(files, source), base=Path.cwd()) as old,
        open_source(str(directory.absolute()), base=directory) as new,
    ):
        digests = old.digest()
        for name, expected in recorded.items():
            if digests.get(name) != expected:
                raise VerificationError(
                    "this is not the source of the model",
                    where=f"{old.label}/{name}",
                    expected=expected,
                    found=digests.get(name, "no such file"),
                )
        inventory = claim_tensors(
            family, old.config, {name: tensor.spec for name, tensor in old.tensors.items()}, label=old.label
        )
        ordered = tuple(specs.values())
        identical = 0

        def exact() -> bool:
            # Called where bytes differ, because it imports torch.
            return _written_on(statement) == processor()

        with progress.task("recomputing every tensor", len(ordered), unit="tensors") as task:
            for name, data in grow(old.read, family, inventory, operator, ordered):
                if memoryview(data).cast("B") == new.read(name):
                    identical += 1
                elif exact() or not _equal_to_rounding(data, new.read(name), specs[name]):
                    raise VerificationError(
                        "the tensor differs from the result of source and operator", where=f"{directory.name}: {name}"
                    )
                task.advance()
        carried = check_carried(directory, written, statement, old, family, operator, exact=exact)
        training = check_training_files(
            directory,
            written,
            statement,
            old,
            inventory,
            operator,
            exact=exact,
            close=_equal_to_rounding,
            progress=progress,
        )
        old.recheck()
    found = {"source": old.label, "tensors": len(ordered), "identical": identical, "files": carried}
    return found | ({"training": training} if training else {})


def _source_files(statement: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return [item for item in dependencies if item.get("annotations", {}).get("role") == "source"]


def _revision_of(files: list[Mapping[str, Any]], source: str) -> str:
    """Return the recorded commit if `source` is the recorded repository, otherwise `main`: branches may have moved since."""
    recorded = {
        str(item["annotations"]["revision"])
        for item in files
        if item["annotations"].get("model") == source and item["annotations"].get("revision")
    }
    return recorded.pop() if len(recorded) == 1 else "main"


def _written_on(statement: Mapping[str, Any]) -> object:
    verification = metrics_of(statement).get("verification")
    return verification.get("processor") if isinstance(verification, Mapping) else None


def _equal_to_rounding(one: Any, two: Any, spec: TensorSpec) -> bool:
    """Return True if two tensors differ by no more than a different order of summation explains.

    Processors of different kinds sum in different orders. The digests already show that the bytes on disk did not change.
    """
    import torch

    from ligo_convert.checkpoints.torch_io import TORCH_DTYPES, tensor_from_bytes

    first, second = (tensor_from_bytes(bytearray(data), spec).double() for data in (one, two))
    # The rounding error of a sum of n products is about sqrt(n) units in the last place of its largest terms; n is at most thousands.
    scale = float(first.abs().max()) * torch.finfo(TORCH_DTYPES[spec.dtype]).eps
    return bool((first - second).abs().max() <= ROUNDING * scale)


def check_digests(root: Path, digests: Mapping[str, str]) -> None:
    """Hash written files again. Raises VerificationError if the bytes on disk differ from the bytes written."""
    for name, expected in digests.items():
        found = rehash(root / name)
        if found != expected:
            raise VerificationError(
                "the bytes on disk differ from the bytes written", where=root / name, expected=expected, found=found
            )

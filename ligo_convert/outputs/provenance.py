"""Write and read the provenance of an output: inputs, recipe, software, results, in a standard format.

Input: a `Record` of plain values and the SHA-256 of every output file. Output: an in-toto Statement v1 with a SLSA provenance v1 predicate
(docs/reference/provenance-format.md).

The statement is not signed. It documents a run and reveals changed files; it proves no identity and supports no SLSA level.
"""

from __future__ import annotations

import json
import math
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ligo_convert.errors import LigoError, SourceError, VerificationError
from ligo_convert.hub.names import is_commit, is_hub_id
from ligo_convert.io.strict_json import strict_json
from ligo_convert.outputs.layout import CHECKSUMS, PROVENANCE
from ligo_convert.outputs.privacy import check_nothing_private, public_name

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"

# Kind of an output -> type of its build.
BUILD_TYPES = {"growth": "urn:ligo-convert:growth:v1", "training": "urn:ligo-convert:training:v1"}

BUILDER = "urn:ligo-convert:builder:v1"

METRICS = "urn:ligo-convert:metrics:v1"

PRESERVATION = "urn:ligo-convert:preservation:v1"

_HEX = re.compile(r"[0-9a-f]{64}")

# Config keys that a library writes for its own use. They may contain a path and do not describe the model.
_LOCAL_KEYS = frozenset(("_name_or_path", "name_or_path", "transformers_version"))


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything that is known at the end of a run, as plain JSON values.

    Attributes:
        family: name of the family.
        recipe: `Recipe.public()`.
        recipe_digest: SHA-256 in hex.
        key: SHA-256, in hex, of recipe, source and versions; identifies a finished output.
        source: `label` (Hub id or directory name), `revision` (commit on the Hub, or None), `files` {name: sha256},
            `pretrained_here`, `license` (or None).
        data: `digest`, `kind`, `tokens` or `images` {slice: count}, `tokenizer` {file: sha256}; None without training.
        operator: `head`, the library's class of the target; for a growth `digest` of the file, `keying`, `tie`, `parameters` {"width",
            "depth"}, `starts`.
        source_config: config of the source.
        target_config: config of the target.
        metrics: as `run --json` prints them.
        versions: package -> version.
        drawn: parts that were randomly initialised as in the library.
        nonfinite_allowed: whether NaN and infinite values were accepted.
        started: UTC, ISO 8601, whole seconds.
        finished: UTC, ISO 8601, whole seconds.
        training: of a run that took the state of a training along: `policy`, `files` {name: sha256}.
        kind: what made the output: a `growth` by an operator, or a `training`.
        family_source: of a family that is not built in: `kind` (`file` or `plugin`) and `sha256` of the file that defines it.
    """

    family: str
    recipe: Mapping[str, Any]
    recipe_digest: str
    key: str
    source: Mapping[str, Any]
    data: Mapping[str, Any] | None
    operator: Mapping[str, Any]
    source_config: Mapping[str, Any]
    target_config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    versions: Mapping[str, str]
    drawn: Sequence[str]
    nonfinite_allowed: bool
    started: str
    finished: str
    family_source: Mapping[str, str] | None = None
    training: Mapping[str, Any] | None = None
    kind: Literal["growth", "training"] = "growth"

    @property
    def hub_id(self) -> str | None:
        """The source's Hub id; None for a directory or a source that the recipe trained."""
        label, commit = str(self.source["label"]), str(self.source["revision"])
        of_hub = not self.source["pretrained_here"] and is_hub_id(label) and is_commit(commit)
        return label if of_hub else None

    @property
    def source_name(self) -> str:
        """The source's public name; the name of a directory only if it contains nothing private."""
        return public_name(str(self.source["label"]), of_hub=self.hub_id is not None)

    @property
    def data_section(self) -> Mapping[str, Any]:
        """The recipe's data; empty if it has none."""
        section = self.recipe.get("train") if self.kind == "training" else self.recipe.get("fit")
        return (section or {}).get("data") or {}

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """The Hub ids that the record names on purpose."""
        data = self.data_section
        found = [
            self.hub_id,
            (self.recipe.get("source") or {}).get("model"),
            (self.recipe.get("target") or {}).get("model"),
            (data.get("hub") or {}).get("id"),
            data.get("tokenizer"),
        ]
        return tuple(name for name in found if isinstance(name, str) and not name.startswith("."))

    def config_changes(self) -> dict[str, dict[str, Any]]:
        """Return the config keys that differ, each with its values under `source` and `target`; a missing key has no value."""
        sides = {"source": self.source_config, "target": self.target_config}
        changes = {}
        for key in sorted({*self.source_config, *self.target_config} - _LOCAL_KEYS):
            values = {side: config[key] for side, config in sides.items() if key in config}
            if len(values) == 1 or values["source"] != values["target"]:
                changes[key] = values
        return changes

    def strings(self) -> Iterator[str]:
        """Yield every string that came from outside, except Hub ids and configs, which are public."""
        # The label is replaced by `source_name`.
        public = {*self.hub_ids, self.source["label"]}
        parts = (self.recipe, self.source, self.data, self.operator, self.metrics, self.drawn)
        return (text for text in _strings(parts) if text not in public)


def statement(record: Record, outputs: Mapping[str, str]) -> dict[str, Any]:
    """Return the in-toto statement of a run.

    Args:
        record: the record of the run.
        outputs: relative file name with forward slashes -> SHA-256 in hex. The statement itself and SHA256SUMS are ignored.
    """
    left_out = (PROVENANCE, CHECKSUMS)
    metrics = {name: value for name, value in record.metrics.items() if name != "preservation"}
    found = {
        "_type": STATEMENT_TYPE,
        "subject": [_resource(name, outputs[name]) for name in sorted(outputs) if name not in left_out],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPES[record.kind],
                "externalParameters": {"recipe": record.recipe, "recipeDigest": {"sha256": record.recipe_digest}},
                "internalParameters": {
                    "key": record.key,
                    "family": record.family,
                    **_family_source(record),
                    **({} if record.training is None else {"trainingState": record.training}),
                    "config": record.config_changes(),
                    **_operator(record),
                    "drawn": record.drawn,
                    "nonfiniteAllowed": record.nonfinite_allowed,
                },
                "resolvedDependencies": [*_source_files(record), *_data(record)],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": dict(sorted(record.versions.items()))},
                "metadata": {
                    "invocationId": record.key,
                    "startedOn": record.started,
                    "finishedOn": record.finished,
                },
                "byproducts": [*_preservation(record), {"name": "metrics", "uri": METRICS, "annotations": metrics}],
            },
        },
    }
    plain = _plain(found)
    assert isinstance(plain, dict)
    return plain


def _operator(record: Record) -> dict[str, Any]:
    """The operator of a growth; for a training, the library's class of the model."""
    if record.kind == "training":
        return {"architecture": record.operator["head"]}
    return {"operator": {**record.operator, "digest": {"sha256": record.operator["digest"]}}}


def _preservation(record: Record) -> list[dict[str, Any]]:
    """The byproduct on what a growth preserved. A training preserves nothing."""
    if record.kind == "training":
        return []
    return [{"name": "preservation", "uri": PRESERVATION, "annotations": record.metrics["preservation"]}]


def kind_of_output(found: Mapping[str, Any]) -> str:
    """Return what made the output that a statement from `read_statement` describes: `growth` or `training`."""
    built = found["predicate"]["buildDefinition"]["buildType"]
    return next(kind for kind, known in BUILD_TYPES.items() if known == built)


def _family_source(record: Record) -> dict[str, Any]:
    """The parameter `familySource` of a family that is not built in."""
    if record.family_source is None:
        return {}
    source = record.family_source
    return {"familySource": {"kind": source["kind"], "digest": {"sha256": source["sha256"]}}}


def statement_bytes(record: Record, outputs: Mapping[str, str]) -> bytes:
    """Serialise the statement to ASCII JSON, the same bytes for the same record. Raises LigoError if it contains something private."""
    text = json.dumps(statement(record, outputs), indent=2, allow_nan=False) + "\n"
    check_nothing_private(text, where=PROVENANCE, names_in=record.strings(), public=record.hub_ids)
    return text.encode("ascii")


def read_statement(data: bytes, *, label: str) -> dict[str, Any]:
    """Parse a statement and check the parts that this program uses. Raises VerificationError for any other document."""
    try:
        found = strict_json(data, label=label)
    except SourceError as error:
        raise VerificationError(f"not a provenance statement: {error.what}", where=error.where) from None
    expectations: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
        (("_type",), (STATEMENT_TYPE,)),
        (("predicateType",), (PREDICATE_TYPE,)),
        (("predicate", "buildDefinition", "buildType"), tuple(BUILD_TYPES.values())),
    )
    for path, expected in expectations:
        value = _value_at(found, path, str, label)
        if value not in expected:
            where = f"{label}: {'.'.join(path)}"
            raise VerificationError(
                "not a provenance statement of ligo-convert", where=where, expected=" or ".join(expected), found=value
            )
    definition = ("predicate", "buildDefinition")
    if not _HEX.fullmatch(_value_at(found, (*definition, "internalParameters", "key"), str, label)):
        raise VerificationError("the key is not a SHA-256 digest", where=f"{label}: internalParameters.key")
    _value_at(found, (*definition, "internalParameters", "nonfiniteAllowed"), bool, label)
    resources: tuple[tuple[str, ...], ...] = (("subject",), (*definition, "resolvedDependencies"))
    for path in resources:
        for number, item in enumerate(_value_at(found, path, list, label)):
            _check_resource(item, f"{label}: {path[-1]}[{number}]")
    internal = _value_at(found, (*definition, "internalParameters"), dict, label)
    if "familySource" in internal:
        where = f"{label}: internalParameters.familySource"
        if not _HEX.fullmatch(_value_at(internal["familySource"], ("digest", "sha256"), str, where)):
            raise VerificationError("the digest is not a SHA-256 digest", where=where)
    for number, item in enumerate(_value_at(found, ("predicate", "runDetails", "byproducts"), list, label)):
        where = f"{label}: byproducts[{number}]"
        _value_at(item, ("name",), str, where)
        _value_at(item, ("annotations",), dict, where)
    return found


def metrics_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a statement from `read_statement` as they were recorded, with NaN and infinity as numbers."""
    parts = {item["name"]: item["annotations"] for item in found["predicate"]["runDetails"]["byproducts"]}
    # A training has none: it preserves nothing.
    preserved = {"preservation": parts.get("preservation")} if kind_of_output(found) == "growth" else {}
    metrics = _numbers({**parts.get("metrics", {}), **preserved})
    assert isinstance(metrics, dict)
    return metrics


def check_subjects(found: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Raise VerificationError unless a statement lists exactly the files and digests that `check_sums` returned."""
    stated = {item["name"]: item["digest"]["sha256"] for item in found["subject"]}
    if len(stated) != len(found["subject"]):
        raise VerificationError("a file is listed twice", where=f"{PROVENANCE}: subject")
    there = {name: digest for name, digest in digests.items() if name not in (PROVENANCE, CHECKSUMS)}
    for name in sorted({*stated, *there}):
        if stated.get(name) != there.get(name):
            raise VerificationError(
                "the provenance describes other files",
                where=name,
                expected=stated.get(name, "no such file"),
                found=there.get(name, "no such file"),
            )


def _resource(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _source_files(record: Record) -> Iterator[dict[str, Any]]:
    annotations: dict[str, Any] = {"role": "source", "model": record.source_name}
    for key in ("revision", "license"):
        if record.source[key] is not None:
            annotations[key] = record.source[key]
    if record.source["pretrained_here"]:
        annotations["trainedHere"] = True
    for name, sha256 in sorted(record.source["files"].items()):
        resource = _resource(name, sha256)
        if record.hub_id is not None:
            resource["uri"] = package_url(record.hub_id, str(record.source["revision"]), name)
        yield {**resource, "annotations": annotations}


def _data(record: Record) -> Iterator[dict[str, Any]]:
    if record.data is None:
        return
    unit = "images" if "images" in record.data else "tokens"
    annotations = {"role": "data", "kind": record.data["kind"], unit: record.data[unit]}
    yield {**_resource("data", record.data["digest"]), "annotations": annotations}
    for name, sha256 in sorted((record.data.get("tokenizer") or {}).items()):
        yield {**_resource(name, sha256), "annotations": {"role": "tokenizer"}}


def package_url(hub_id: str, commit: str, name: str) -> str:
    """Return the package URL of a file on the Hub: `pkg:huggingface/org/name@commit#file`."""
    parts = "/".join(urllib.parse.quote(part, safe="") for part in hub_id.split("/"))
    return f"pkg:huggingface/{parts}@{urllib.parse.quote(commit, safe='')}#{urllib.parse.quote(name)}"


def _plain(value: object) -> object:
    """Convert `value` to JSON types. JSON has no NaN or infinity, so they become strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise LigoError(f"a record holds plain values only, not {type(value).__name__}")


def _numbers(value: object) -> object:
    """Undo `_plain` for numbers: the strings for NaN and infinity become numbers."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity") else value


def _value_at(value: object, path: Sequence[str], kind: type, label: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, kind):
        where = f"{label}: {'.'.join(path)}"
        raise VerificationError(
            "the provenance lacks a value", where=where, expected=kind.__name__, found=_short(value)
        )
    return value


def _check_resource(item: object, where: str) -> None:
    _value_at(item, ("name",), str, where)
    if not _HEX.fullmatch(_value_at(item, ("digest", "sha256"), str, where)):
        raise VerificationError("the digest is not a SHA-256 digest", where=where)
    if isinstance(item, dict) and "annotations" in item:
        _value_at(item, ("annotations",), dict, where)


def _short(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)

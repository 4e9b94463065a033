"""Provenance: what went in, what was done, what came out, in a form that others read and check.

What comes in: a `Record` of plain values and the SHA-256 of every output file. What goes out: an in-toto Statement v1 with a SLSA
provenance v1 predicate (docs/reference/provenance-format.md), and SHA256SUMS, which covers every file. Neither is signed: they say what this
program did, and show a changed byte; they prove nobody's identity and support no SLSA level.
"""

from __future__ import annotations

import json
import math
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ligo_convert.errors import LigoError, SourceError, VerificationError
from ligo_convert.hub.names import is_commit, is_hub_id
from ligo_convert.io.strict_json import strict_json
from ligo_convert.outputs.layout import CHECKSUMS, PROVENANCE
from ligo_convert.outputs.privacy import check_nothing_private, public_name

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"

BUILD_TYPE = "urn:ligo-convert:growth:v1"

BUILDER = "urn:ligo-convert:builder:v1"

METRICS = "urn:ligo-convert:metrics:v1"

PRESERVATION = "urn:ligo-convert:preservation:v1"

_HEX = re.compile(r"[0-9a-f]{64}")

# Keys that a library writes for itself; they may hold a path, and say nothing about the model.
_LOCAL_KEYS = frozenset(("_name_or_path", "name_or_path", "transformers_version"))


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything the pipeline knows at the end, as plain JSON values.

    Attributes:
        family: the family's name. recipe: `Recipe.public()`. recipe_digest: SHA-256, hex.
        key: SHA-256, hex, of recipe, source and versions: a finished output is recognised by it.
        source: `label` (Hub id or a directory's name), `revision` (the Hub's commit or None), `files` {name: sha256},
            `pretrained_here`, `license` (or None).
        data: `digest`, `kind`, `tokens` or `images` {slice: count}, `tokenizer` {file: sha256}; None where nothing was learned.
        operator: `digest` of its file, `keying`, `tie`, `parameters` {"width", "depth"}, `starts`.
        source_config, target_config: configs. metrics: as `run --json` prints them. versions: package -> version.
        drawn: what was drawn as the library initialises. nonfinite_allowed: whether NaN and infinity were let through.
        started, finished: UTC, ISO 8601, whole seconds.
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

    @property
    def hub_id(self) -> str | None:
        """The source's Hub id; None where it is a directory, or was trained by this recipe."""
        label, commit = str(self.source["label"]), str(self.source["revision"])
        of_hub = not self.source["pretrained_here"] and is_hub_id(label) and is_commit(commit)
        return label if of_hub else None

    @property
    def source_name(self) -> str:
        """What the source is called in public: the name of a directory only where it gives nobody away."""
        return public_name(str(self.source["label"]), of_hub=self.hub_id is not None)

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """The Hub ids that the record names on purpose."""
        data = (self.recipe.get("fit") or {}).get("data") or {}
        found = [
            self.hub_id,
            (self.recipe.get("source") or {}).get("model"),
            (self.recipe.get("target") or {}).get("model"),
            (data.get("hub") or {}).get("id"),
            data.get("tokenizer"),
        ]
        return tuple(name for name in found if isinstance(name, str) and not name.startswith("."))

    def config_changes(self) -> dict[str, dict[str, Any]]:
        """Config keys that differ, with `source` and `target`; a side that lacks the key is left out."""
        sides = {"source": self.source_config, "target": self.target_config}
        changes = {}
        for key in sorted({*self.source_config, *self.target_config} - _LOCAL_KEYS):
            values = {side: config[key] for side, config in sides.items() if key in config}
            if len(values) == 1 or values["source"] != values["target"]:
                changes[key] = values
        return changes

    def strings(self) -> Iterator[str]:
        """Every string of the record that came from outside, but for Hub ids and configs, which are public by nature."""
        # The label goes out as `source_name`.
        public = {*self.hub_ids, self.source["label"]}
        parts = (self.recipe, self.source, self.data, self.operator, self.metrics, self.drawn)
        return (text for text in _strings(parts) if text not in public)


def statement(record: Record, outputs: Mapping[str, str]) -> dict[str, Any]:
    """The in-toto statement of a run.

    Args:
        outputs: file name, relative and with forward slashes -> SHA-256, hex; the statement and SHA256SUMS themselves are left out.
    """
    left_out = (PROVENANCE, CHECKSUMS)
    metrics = {name: value for name, value in record.metrics.items() if name != "preservation"}
    found = {
        "_type": STATEMENT_TYPE,
        "subject": [_resource(name, outputs[name]) for name in sorted(outputs) if name not in left_out],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": record.recipe, "recipeDigest": {"sha256": record.recipe_digest}},
                "internalParameters": {
                    "key": record.key,
                    "family": record.family,
                    **_family_source(record),
                    "config": record.config_changes(),
                    "operator": {**record.operator, "digest": {"sha256": record.operator["digest"]}},
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
                "byproducts": [
                    {"name": "preservation", "uri": PRESERVATION, "annotations": record.metrics["preservation"]},
                    {"name": "metrics", "uri": METRICS, "annotations": metrics},
                ],
            },
        },
    }
    plain = _plain(found)
    assert isinstance(plain, dict)
    return plain


def _family_source(record: Record) -> dict[str, Any]:
    """The parameter `familySource` of a family that is not built in."""
    if record.family_source is None:
        return {}
    source = record.family_source
    return {"familySource": {"kind": source["kind"], "digest": {"sha256": source["sha256"]}}}


def statement_bytes(record: Record, outputs: Mapping[str, str]) -> bytes:
    """The statement as JSON in ASCII; the same record gives the same bytes. Raises LigoError where it holds something private."""
    text = json.dumps(statement(record, outputs), indent=2, allow_nan=False) + "\n"
    check_nothing_private(text, where=PROVENANCE, names_in=record.strings(), public=record.hub_ids)
    return text.encode("ascii")


def read_statement(data: bytes, *, label: str) -> dict[str, Any]:
    """A statement of ours, checked as far as this program relies on it. Raises VerificationError where it is none."""
    try:
        found = strict_json(data, label=label)
    except SourceError as error:
        raise VerificationError(f"not a provenance statement: {error.what}", where=error.where) from None
    expectations: tuple[tuple[tuple[str, ...], str], ...] = (
        (("_type",), STATEMENT_TYPE),
        (("predicateType",), PREDICATE_TYPE),
        (("predicate", "buildDefinition", "buildType"), BUILD_TYPE),
    )
    for path, expected in expectations:
        value = _at(found, path, str, label)
        if value != expected:
            where = f"{label}: {'.'.join(path)}"
            raise VerificationError(
                "not a provenance statement of this program", where=where, expected=expected, found=value
            )
    definition = ("predicate", "buildDefinition")
    if not _HEX.fullmatch(_at(found, (*definition, "internalParameters", "key"), str, label)):
        raise VerificationError("the key is no SHA-256", where=f"{label}: internalParameters.key")
    _at(found, (*definition, "internalParameters", "nonfiniteAllowed"), bool, label)
    resources: tuple[tuple[str, ...], ...] = (("subject",), (*definition, "resolvedDependencies"))
    for path in resources:
        for number, item in enumerate(_at(found, path, list, label)):
            _check_resource(item, f"{label}: {path[-1]}[{number}]")
    for number, item in enumerate(_at(found, ("predicate", "runDetails", "byproducts"), list, label)):
        where = f"{label}: byproducts[{number}]"
        _at(item, ("name",), str, where)
        _at(item, ("annotations",), dict, where)
    return found


def metrics_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a statement that `read_statement` has read, as they were recorded."""
    parts = {item["name"]: item["annotations"] for item in found["predicate"]["runDetails"]["byproducts"]}
    metrics = _numbers({**parts.get("metrics", {}), "preservation": parts.get("preservation")})
    assert isinstance(metrics, dict)
    return metrics


def check_subjects(found: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Require that a statement is about the files beside it: the same names and digests as `check_sums` gave. Raises VerificationError."""
    stated = {item["name"]: item["digest"]["sha256"] for item in found["subject"]}
    if len(stated) != len(found["subject"]):
        raise VerificationError("a file is stated twice", where=f"{PROVENANCE}: subject")
    there = {name: digest for name, digest in digests.items() if name not in (PROVENANCE, CHECKSUMS)}
    for name in sorted({*stated, *there}):
        if stated.get(name) != there.get(name):
            raise VerificationError(
                "the provenance is about other files than these",
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
    """The package URL of a file of the Hub: `pkg:huggingface/org/name@commit#file`."""
    parts = "/".join(urllib.parse.quote(part, safe="") for part in hub_id.split("/"))
    return f"pkg:huggingface/{parts}@{urllib.parse.quote(commit, safe='')}#{urllib.parse.quote(name)}"


def _plain(value: object) -> object:
    """`value` as JSON holds it. JSON has no NaN and no infinity: they go as their names."""
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
    """What `_plain` was given: the names of NaN and infinity are numbers again."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity") else value


def _at(value: object, path: Sequence[str], kind: type, label: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, kind):
        where = f"{label}: {'.'.join(path)}"
        raise VerificationError(
            "the provenance lacks something", where=where, expected=kind.__name__, found=_short(value)
        )
    return value


def _check_resource(item: object, where: str) -> None:
    _at(item, ("name",), str, where)
    if not _HEX.fullmatch(_at(item, ("digest", "sha256"), str, where)):
        raise VerificationError("the digest is no SHA-256", where=where)
    if isinstance(item, dict) and "annotations" in item:
        _at(item, ("annotations",), dict, where)


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

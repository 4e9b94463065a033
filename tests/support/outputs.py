"""Compare output directories of the same conversion, and forge them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ligo_convert.conversion.convert import ConversionResult

# The clock's figures and what vouches for them; all else is the same however often a run was stopped.
LOGS = ("ligo/fit.jsonl", "ligo/train.jsonl")

TIMED = ("README.md", "ligo/provenance.json", *LOGS, "ligo/fit.png", "ligo/SHA256SUMS")


def same(found: Path, wanted: Path) -> None:
    """The same files; the same bytes in all that hold no time; the same losses in the log."""
    names = sorted(str(path.relative_to(wanted)) for path in wanted.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()) == names
    for name in names:
        if name not in TIMED:
            assert (found / name).read_bytes() == (wanted / name).read_bytes(), name
    for log in (name for name in LOGS if name in names):
        lines = [
            [{**json.loads(line), "seconds": None} for line in (out / log).read_text().splitlines()]
            for out in (found, wanted)
        ]
        assert lines[0] == lines[1]


def hidden(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name.startswith("."))


def resign(out: Path, *names: str) -> None:
    """Let provenance and sums vouch for what is there now, as somebody would who wants to pass off a change."""
    provenance = out / "ligo" / "provenance.json"
    statement = json.loads(provenance.read_text())
    for subject in statement["subject"]:
        if subject["name"] in names:
            subject["digest"]["sha256"] = hashlib.sha256((out / subject["name"]).read_bytes()).hexdigest()
    provenance.write_text(json.dumps(statement))
    lines = []
    for line in (out / "ligo" / "SHA256SUMS").read_text().splitlines():
        name = line[66:]
        lines.append(f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n")
    (out / "ligo" / "SHA256SUMS").write_text("".join(lines))


def drawn_of(outcome: ConversionResult) -> list[str]:
    """What provenance.json names as drawn: rows, layers and new entries that took nothing from the source."""
    statement = json.loads((outcome.out / "ligo" / "provenance.json").read_text())
    drawn: list[str] = statement["predicate"]["buildDefinition"]["internalParameters"]["drawn"]
    return drawn

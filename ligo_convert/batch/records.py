"""Records of finished entries: written once, reused while nothing that the entry depends on has changed.

Input: an entry's assignment and the outputs of its dependencies. Output: a record in the state folder, or the decision that an earlier one
still holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ligo_convert.batch.fingerprints import inputs_digest, recipe_inputs
from ligo_convert.batch.job import DONE, FAILED, Assignment, output_of, recipe_of
from ligo_convert.environment import versions
from ligo_convert.errors import LigoError
from ligo_convert.families.registry import family_digests
from ligo_convert.io.leases import Leases
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.outputs.checksums import read_sums
from ligo_convert.outputs.layout import CHECKSUMS

# Fields of an assignment that do not change its result.
_NOT_IN_KEY = ("cache", "device", "threads", "family_files")


class EntryRecords:
    """Read and write the records of entries.

    Args:
        leases: of the state folder.
        dependency_reports: for an entry's name, the reports of the entries it depends on, by name.
    """

    def __init__(
        self, leases: Leases, dependency_reports: Callable[[str], Mapping[str, Mapping[str, Any] | None]]
    ) -> None:
        self._leases, self._dependency_reports = leases, dependency_reports
        self._versions = versions()

    def key(self, assignment: Assignment) -> str | None:
        """Digest everything an entry's result depends on; None if that cannot be found out.

        That is its manifest entry, its recipe's text, the versions, the state of the files it reads, and its dependencies' outputs.
        """
        fields = {name: value for name, value in vars(assignment).items() if name not in _NOT_IN_KEY}
        paths = [Path(path) for path in (assignment.operator, assignment.source) if path is not None]
        # A relative path is the name of a Hub repository.
        paths = [path for path in paths if path.is_absolute()]
        text = None
        if assignment.recipe is not None:
            try:
                text = hashlib.sha256(Path(assignment.recipe).read_bytes()).hexdigest()
                paths += recipe_inputs(recipe_of(assignment))
            except Exception:  # noqa: BLE001  planning the entry fails with the same error and reports it
                return None
        inputs = inputs_digest(paths)
        if inputs is None:
            return None
        needs = {name: _output_digest(report) for name, report in self._dependency_reports(assignment.name).items()}
        return sha256_of(
            {
                **{"entry": fields, "recipe": text, "versions": self._versions, "inputs": inputs, "needs": needs},
                "families": family_digests(),
            }
        )

    def finished(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the record of an entry that was done before, if it still holds and its output is unchanged."""
        record = self._record(assignment, DONE)
        if record is None or record["sums"] is None:
            return None
        # The record is for every machine that shares the state folder: where the output lies, the entry itself says.
        record["report"] = {"out": str(output_of(assignment)), **(record["report"] or {})}
        return record if record["sums"] == _output_digest(record["report"]) else None

    def failed(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return the record of an entry that failed, if nothing has changed since."""
        return self._record(assignment, FAILED)

    def _record(self, assignment: Assignment, state: str) -> dict[str, Any] | None:
        """Return the record of an entry if it ended in this state and nothing that it depends on has changed since."""
        match record := self._leases.read_record(assignment.name):
            case {
                "state": found,
                "key": str(key),
                "code": int(),
                "why": str() | None,
                "report": dict() | None,
                "seconds": int() | float(),
                "sums": str() | None,
            } if found == state:
                return record if key == self.key(assignment) else None
        return None

    def write(self, name: str, result: Mapping[str, Any], *, key: str | None, seconds: float) -> bool:
        """Record a result and release the entry's lease.

        Returns False if the lease was lost: another process's record counts.

        Raises:
            LigoError: the record cannot be written.
        """
        report = result["report"]
        record = {
            "key": key,
            **{field: result[field] for field in ("state", "code", "why")},
            "report": report and {field: value for field, value in report.items() if field != "out"},
            "seconds": round(seconds, 3),
            "sums": _output_digest(report),
        }
        return self._leases.complete(name, record)


def _output_digest(report: Mapping[str, Any] | None) -> str | None:
    """Digest an output's SHA256SUMS and the sizes of the files that it lists; None if one of them is gone.

    The bytes of the files are not read: a batch would read every finished output again each time. `verify` reads them.
    """
    try:
        out = Path(str((report or {})["out"]))
        data = (out / CHECKSUMS).read_bytes()
        sizes = {name: (out / name).stat().st_size for name in read_sums(data)}
    except (KeyError, OSError, LigoError):
        return None
    return sha256_of({"sums": hashlib.sha256(data).hexdigest(), "sizes": sizes})

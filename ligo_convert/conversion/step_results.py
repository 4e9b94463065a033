"""Results of finished steps, kept in the staging directory so that a resumed run does not repeat them."""

from __future__ import annotations

import json
from typing import Any

from ligo_convert.errors import OutputBusy
from ligo_convert.io.staging import WORK, Staging

RESULTS = f"{WORK}/results.json"


def staged_results(staging: Staging) -> dict[str, Any]:
    """Return the results of finished steps, by step name."""
    path = staging.path / RESULTS
    return json.loads(path.read_text()) if path.exists() else {}


def keep_result(staging: Staging, name: str, value: object) -> None:
    """Store the result of a finished step: plain JSON values."""
    staging.write_bytes(RESULTS, json.dumps({**staged_results(staging), name: value}).encode())


def same_data(staging: Staging, digest: str) -> None:
    """Require that a resumed run uses the data it started with. Raises OutputBusy."""
    started_with = staged_results(staging).get("data_digest")
    if started_with is None:
        keep_result(staging, "data_digest", digest)
    elif started_with != digest:
        raise OutputBusy(
            "the training data changed since this run started",
            where=staging.path,
            expected=started_with,
            found=digest,
            hint="delete that directory to start again",
        )

"""TODO: one sentence."""

from __future__ import annotations

import json
from typing import Any

from ligo_convert.errors import OutputBusy
from ligo_convert.io.staging import WORK, Staging

RESULTS = f"{WORK}/results.json"


def staged_results(staging: Staging) -> dict[str, Any]:
    """What finished steps have left behind."""
    path = staging.path / RESULTS
    return json.loads(path.read_text()) if path.exists() else {}


def keep_result(staging: Staging, name: str, value: object) -> None:
    staging.write_bytes(RESULTS, json.dumps({**staged_results(staging), name: value}).encode())


def same_data(staging: Staging, digest: str) -> None:
    """Work that was begun on one slice must not go on with another."""
    before = staged_results(staging).get("data_digest")
    if before is None:
        keep_result(staging, "data_digest", digest)
    elif before != digest:
        raise OutputBusy(
            "the data has changed since this output was begun",
            where=staging.path,
            expected=before,
            found=digest,
            hint="remove that directory to begin anew",
        )

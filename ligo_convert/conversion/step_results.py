"""Results of finished steps, kept in the staging directory so that a resumed run does not repeat them.

A result names the files of its step and their digests. Where one of them is gone or another, the step is done again, and so is every step
after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ligo_convert.errors import OutputBusy
from ligo_convert.io.staging import WORK, Staging

RESULTS = f"{WORK}/results.json"


def staged_results(staging: Staging) -> dict[str, Any]:
    """Return the results of finished steps, by step name."""
    return {name: step["value"] for name, step in _steps(staging).items()}


def _steps(staging: Staging) -> dict[str, Any]:
    """Return the finished steps whose files are as they were, in the order in which they finished."""
    # The journal lists the digest of this file, so its bytes are those that `keep_result` wrote.
    data = staging.read(RESULTS)
    steps: dict[str, Any] = {} if data is None else json.loads(data)
    for number, (name, step) in enumerate(steps.items()):
        changed = [file for file, digest in step["files"].items() if staging.digest(file) != digest]
        if changed:
            kept = dict(list(steps.items())[:number])
            staging.warn(changed[0], f"missing or damaged, and the step {name!r} needs it", "the step is done again")
            _write(staging, kept)
            return kept
    return steps


def _write(staging: Staging, steps: dict[str, Any]) -> None:
    staging.write_bytes(RESULTS, json.dumps(steps).encode())


def begin_step(staging: Staging, *, state: str = "") -> None:
    """Remove every staged file that no finished step made: a step that is done again may make another result.

    Args:
        state: the step's own training state, from which it goes on.
    """
    kept = {RESULTS, state, *(file for step in _steps(staging).values() for file in step["files"])}
    for file in {*staging.digests(), *staging.files()} - kept:
        staging.remove(file)


def keep_result(staging: Staging, name: str, value: object, *, files: Iterable[str] = ()) -> None:
    """Store the result of a finished step.

    Args:
        staging: the staging directory.
        name: the step's name.
        value: plain JSON values.
        files: the staged files of the step.
    """
    step = {"value": value, "files": {file: staging.digest(file) for file in files}}
    _write(staging, {**_steps(staging), name: step})


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

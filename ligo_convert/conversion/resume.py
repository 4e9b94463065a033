"""Recognise a finished output directory, so that a repeated run changes nothing.

Input: an output directory and the key of a run.
Output: the result of the run that wrote the directory, if it was the same run and the directory verifies; else an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ligo_convert.conversion.run_facts import statement_facts
from ligo_convert.conversion.run_record import ConversionResult
from ligo_convert.errors import OutputBusy, SourceError, VerificationError
from ligo_convert.io.files import check_place
from ligo_convert.io.staging import Facts, clear_leftovers, occupied
from ligo_convert.outputs.layout import PROVENANCE
from ligo_convert.outputs.metrics import is_metrics
from ligo_convert.outputs.provenance import metrics_of, read_statement
from ligo_convert.outputs.verify import verify
from ligo_convert.progress import Progress


def finished_statement(out: Path) -> dict[str, Any] | None:
    """Return the provenance of a finished output; None where there is none. Raises OutputBusy where the directory holds something else."""
    try:
        return read_statement((out / PROVENANCE).read_bytes(), label=str(out / PROVENANCE))
    except (FileNotFoundError, NotADirectoryError):
        check_place(out)
        return None
    except (SourceError, VerificationError):
        raise OutputBusy(
            "the output directory holds other files", where=out, hint="choose another output directory"
        ) from None


def reuse_finished(
    out: Path,
    statement: Mapping[str, Any],
    key: str,
    *,
    facts: Facts,
    family: str,
    label: str,
    progress: Progress,
    complete: Callable[[Mapping[str, Any]], bool] = is_metrics,
) -> ConversionResult:
    """Verify the finished output of the same run and return its result.

    Args:
        facts: facts of this run, for the message where another run wrote the output.
        complete: whether the recorded metrics have every figure of this kind of run.

    Raises:
        OutputBusy: another run wrote the output.
    """
    clear_leftovers(out)
    written_by = statement["predicate"]["buildDefinition"]["internalParameters"]["key"]
    if written_by != key:
        raise occupied(
            "the output directory holds the result of another recipe, source or version",
            statement_facts(statement),
            facts,
            where=out,
            hint="choose another output directory, or move this one; existing outputs are never overwritten",
        )
    verify(out, progress=progress)
    metrics = metrics_of(statement)
    if not complete(metrics):
        raise VerificationError("the provenance does not hold the figures of a run", where=out / PROVENANCE)
    progress.say(f"{out} is complete and verified; nothing to do")
    return ConversionResult(out=out, family=family, label=label, metrics=metrics, changed=False)

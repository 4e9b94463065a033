"""A finished output directory, met by a run that would write it.

What comes in: an output directory and the key of a run. What goes out: the outcome of the run that made it, where that was the same run,
and the directory is whole; a refusal otherwise. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ligo_convert.conversion.run_record import ConversionResult
from ligo_convert.errors import OutputBusy, SourceError, VerificationError
from ligo_convert.io.files import check_place
from ligo_convert.io.staging import clear_leftovers
from ligo_convert.outputs.layout import PROVENANCE
from ligo_convert.outputs.provenance import metrics_of, read_statement
from ligo_convert.outputs.verify import verify
from ligo_convert.progress import Progress


def finished_statement(out: Path) -> dict[str, Any] | None:
    """The provenance of what lies in the output's place; None where nothing does. Raises OutputBusy where it is not ours."""
    try:
        return read_statement((out / PROVENANCE).read_bytes(), label=str(out / PROVENANCE))
    except (FileNotFoundError, NotADirectoryError):
        check_place(out)
        return None
    except (SourceError, VerificationError):
        raise OutputBusy("the output directory holds something else", where=out, hint="choose another") from None


def reuse_finished(
    out: Path, statement: Mapping[str, Any], key: str, *, family: str, label: str, progress: Progress
) -> ConversionResult:
    """A finished output of the same run: verified, and left as it is. Raises OutputBusy where it is of another one."""
    clear_leftovers(out)
    found = statement["predicate"]["buildDefinition"]["internalParameters"]["key"]
    if found != key:
        raise OutputBusy(
            "the output directory holds the result of another recipe, source or version",
            where=out,
            hint="choose another output directory, or move this one away; nothing is ever overwritten",
        )
    verify(out, progress=progress)
    progress.say(f"{out} is finished and whole; nothing to do")
    return ConversionResult(out=out, family=family, label=label, metrics=metrics_of(statement), changed=False)

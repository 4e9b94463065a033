"""Writing and verifying the weights: the part of a run that needs no recipe.

What comes in: a `WriteJob` (what grows by which operator into which files) and the source. What goes out: weight files in the staging directory,
verified there: digests, the family's table, finite values, the real library.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ligo_convert.checkpoints.reader import CheckpointReader, DigestMemo
from ligo_convert.checkpoints.tensors import TensorSpec, nonfinite_count
from ligo_convert.checkpoints.writer import ShardPlan, Writer
from ligo_convert.environment import processor
from ligo_convert.errors import SourceError
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import Family
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.stream import grow
from ligo_convert.io.staging import Staging
from ligo_convert.outputs.side_files import write_model_files, write_new_parameters
from ligo_convert.outputs.verify import check_digests, check_loads, check_weights
from ligo_convert.progress import Progress


@dataclass(frozen=True, kw_only=True)
class WriteJob:
    """What is written from what: the part of a run that needs no recipe."""

    family: Family
    inventory: Inventory
    operator: Operator
    specs: tuple[TensorSpec, ...]
    shards: ShardPlan
    allow_nonfinite: bool


def now() -> str:
    """UTC, to the second, as the record states it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(kw_only=True)
class Clock:
    """Seconds by stage, and when it began."""

    started: str = field(default_factory=lambda: now())
    seconds: dict[str, float] = field(default_factory=lambda: {"plan": 0.0, "fit": 0.0, "write": 0.0, "verify": 0.0})

    @contextlib.contextmanager
    def running(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds[stage] + time.monotonic() - began, 3)


def digest_source(source: CheckpointReader, progress: Progress, *, memo: DigestMemo | None = None) -> dict[str, str]:
    """The source's digests, with a bar."""
    total = sum(file.size for file in source.files)
    with progress.task("digesting the source", total, unit="bytes") as task:
        return source.digest(task.advance, memo=memo)


def write_job(
    job: WriteJob, source: CheckpointReader, staging: Staging, clock: Clock, progress: Progress, *, loads: bool
) -> tuple[dict[str, str], dict[str, Any]]:
    """Stream the target into the staging directory and verify it there: digests, table, finite values, the real library."""
    with clock.running("write"), progress.task("writing", job.shards.nbytes, unit="bytes") as task:
        with Writer(staging, job.shards, on_bytes=task.advance) as writer:
            wanted = frozenset(spec.name for spec in writer.pending())
            specs = {spec.name: spec for spec in job.specs}
            for name, data in grow(source.read, job.family, job.inventory, job.operator, job.specs, wanted=wanted):
                bad = 0 if job.allow_nonfinite else nonfinite_count(data, specs[name].dtype)
                if bad:
                    raise SourceError(
                        f"{bad} of {specs[name].elements} grown values are NaN or infinite",
                        where=name,
                        hint="a wider output.dtype may hold them; source.allow_nonfinite: true writes them all the same",
                    )
                writer.put(name, data)
            weights = writer.close()
        write_model_files(job.family, job.operator.target, job.specs, source, staging)
        write_new_parameters(job.family, job.operator, staging)
        source.recheck()
    with clock.running("verify"):
        check_digests(staging.path, weights)
        checks: dict[str, Any] = {
            "digests": len(weights),
            # Values were looked at as they were written, and the digests say that these are the same bytes; where non-finite ones are
            # allowed they are counted here.
            **check_weights(
                staging.path,
                specs,
                allow_nonfinite=job.allow_nonfinite,
                progress=progress,
                values=job.allow_nonfinite,
            ),
            "loaded": None,
            "processor": None,
        }
        if loads:
            # Where nothing is computed torch is not imported, and there is no order of summation to remember.
            checks["processor"] = processor()
            with progress.task(f"loading in {job.family.library}"):
                checks["loaded"] = check_loads(staging.path, job.family)
    return weights, checks

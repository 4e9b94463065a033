"""Write the target's weights and verify them: the part of a run that needs no recipe.

Input: a `WriteJob` and the source.
Output: weight files in the staging directory, verified there: digests, tensor names and shapes, finite values, loading in the library.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import TensorSpec, nonfinite_count
from ligo_convert.checkpoints.writer import ShardPlan, Writer
from ligo_convert.environment import processor
from ligo_convert.errors import SourceError
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import Family
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.stream import grow
from ligo_convert.io.staging import Staging
from ligo_convert.outputs.carried import CarriedFiles
from ligo_convert.outputs.loading import check_loads
from ligo_convert.outputs.side_files import write_carried, write_model_files, write_new_parameters
from ligo_convert.outputs.verify import check_digests, check_weights
from ligo_convert.progress import Progress


@dataclass(frozen=True, kw_only=True)
class WriteJob:
    """What to write.

    Attributes:
        family: the family, narrowed to the target's class.
        inventory: the source's tensors.
        operator: the growth operator to apply.
        specs: the target's tensors.
        shards: the weight files and the tensors in each.
        allow_nonfinite: whether NaN and infinity are written instead of refused.
        carried: what becomes of the source's files beside the weights.
    """

    family: Family
    inventory: Inventory
    operator: Operator
    specs: tuple[TensorSpec, ...]
    shards: ShardPlan
    allow_nonfinite: bool
    carried: CarriedFiles


def now() -> str:
    """Return the time in UTC, to the second, as the provenance states it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# Stages of a run in their order. A run reports those that it went through, and always those of every conversion.
STAGES = ("plan", "pretrain", "fit", "train", "write", "verify")

_OPTIONAL = ("pretrain", "train")


@dataclass(kw_only=True)
class Clock:
    """Start time of a run, and its wall-clock seconds by stage."""

    started: str = field(default_factory=lambda: now())
    _spent: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Count the time of the block for a stage of `STAGES`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[stage] = self._spent.get(stage, 0.0) + time.monotonic() - began

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of every stage so far, in the order of the stages."""
        return {
            stage: round(self._spent.get(stage, 0.0), 3)
            for stage in STAGES
            if stage in self._spent or (stage not in _OPTIONAL and not (stage == "fit" and "train" in self._spent))
        }


def write_job(
    job: WriteJob,
    source: CheckpointReader,
    staging: Staging,
    clock: Clock,
    progress: Progress,
    *,
    loads: bool,
    streams: bool = False,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Write the target into the staging directory and verify it there.

    Args:
        loads: whether to load the result in the real library as well.
        streams: whether to load it one weight at a time, even if it fits in memory.

    Returns:
        SHA-256 of the weight files by name, and what the verification counted.
    """
    with clock.running("write"):
        weights = _write_weights(job, source, staging, progress)
        write_model_files(job.family, job.operator.target, job.specs, source, staging)
        write_carried(job.carried, source, job.family, job.operator, staging)
        write_new_parameters(job.family, job.operator, staging)
        source.recheck()
    with clock.running("verify"):
        return weights, _verify_weights(job, weights, staging, progress, loads=loads, streams=streams)


def _write_weights(job: WriteJob, source: CheckpointReader, staging: Staging, progress: Progress) -> dict[str, str]:
    """Grow the tensors that are not staged yet, one at a time. Return SHA-256 of the weight files by name."""
    specs = {spec.name: spec for spec in job.specs}
    with (
        progress.task("writing", job.shards.nbytes, unit="bytes") as task,
        Writer(staging, job.shards, on_bytes=task.advance) as writer,
    ):
        wanted = frozenset(spec.name for spec in writer.pending())
        for name, data in grow(source.read, job.family, job.inventory, job.operator, job.specs, wanted=wanted):
            bad = 0 if job.allow_nonfinite else nonfinite_count(data, specs[name].dtype)
            if bad:
                raise SourceError(
                    f"{bad} of {specs[name].elements} grown values are NaN or infinite",
                    where=name,
                    hint="a wider output.dtype may hold them; source.allow_nonfinite: true writes them anyway",
                )
            writer.put(name, data)
        return writer.close()


def _verify_weights(
    job: WriteJob, weights: dict[str, str], staging: Staging, progress: Progress, *, loads: bool, streams: bool
) -> dict[str, Any]:
    """Verify the staged weights. Return what was counted, as `verification` of the metrics."""
    check_digests(staging.path, weights)
    checks: dict[str, Any] = {
        "digests": len(weights),
        # Values were checked as they were written, and the digests show that the bytes are the same. Only where non-finite values
        # are allowed are they counted here.
        **check_weights(
            staging.path,
            {spec.name: spec for spec in job.specs},
            allow_nonfinite=job.allow_nonfinite,
            progress=progress,
            values=job.allow_nonfinite,
        ),
        "loaded": None,
        "processor": None,
    }
    if loads:
        # Sums in floating point depend on the processor. Without a computation there is nothing to record.
        checks["processor"] = processor()
        with progress.task(f"loading in {job.family.library}"):
            checks["loaded"] = check_loads(staging.path, job.family, streams=streams)
    return checks

"""TODO: one sentence."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import nonfinite_count
from ligo_convert.conversion.plan import Plan
from ligo_convert.errors import SourceError
from ligo_convert.io.cache import ResultCache
from ligo_convert.progress import Progress

if TYPE_CHECKING:
    from ligo_convert.families.inventory import Inventory


def check_finite(source: CheckpointReader, *, allow: bool, progress: Progress) -> None:
    """Refuse a source that holds NaN or infinity. Raises SourceError naming the tensor and how many."""
    total = sum(tensor.spec.nbytes for tensor in source.tensors.values())
    with progress.task("checking the source", total, unit="bytes") as task:
        for name, tensor in source.tensors.items():
            spec = tensor.spec
            bad = 0 if allow else nonfinite_count(source.read(name), spec.dtype)
            task.advance(spec.nbytes)
            if bad:
                raise SourceError(
                    f"{bad} of {spec.elements} values are NaN or infinite",
                    where=f"{source.label}: {name}",
                    hint="set source.allow_nonfinite: true to convert it all the same",
                )


def check_copies(source: CheckpointReader, inventory: Inventory) -> None:
    """Tied tensors that are stored twice must be one. Raises SourceError."""
    for alias, canonical in inventory.copies:
        if bytes(source.read(alias)) != bytes(source.read(canonical)):
            raise SourceError(
                f"{alias} is not {canonical}, though config.json ties them",
                where=source.label,
                hint="set tie_word_embeddings to false in its config.json if the head is a matrix of its own",
            )


def enter_or_none(stack: contextlib.ExitStack, source: CheckpointReader | None) -> CheckpointReader | None:
    return stack.enter_context(source) if source is not None else None


def scan_source(
    source: CheckpointReader, plan: Plan, progress: Progress, *, memo: ResultCache | None = None
) -> dict[str, str]:
    """Digest the source and look at its values, side by side: both read everything, and neither needs the other."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        digests = beside.submit(source.digest, memo=memo)
        check_copies(source, plan.inventory)
        check_finite(source, allow=plan.recipe.source.allow_nonfinite, progress=progress)
        return digests.result()

"""Check the contents of a source, and digest its files, before a conversion uses it."""

from __future__ import annotations

from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import nonfinite_count
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.progress import Progress

if TYPE_CHECKING:
    from ligo_convert.families.inventory import Inventory


def scan_source(
    source: CheckpointReader,
    inventory: Inventory,
    progress: Progress,
    *,
    allow_nonfinite: bool,
) -> dict[str, str]:
    """Check the source's values and digest its files, both at once: each reads everything.

    Returns:
        SHA-256 of the source's files, by name.
    """
    stopped = Event()

    def go_on(nbytes: int) -> None:
        if stopped.is_set():
            raise CancelledError

    with ThreadPoolExecutor(max_workers=1) as pool:
        digests = pool.submit(source.digest, go_on)
        try:
            check_copies(source, inventory)
            check_finite(source, allow=allow_nonfinite, progress=progress)
            return digests.result()
        finally:
            # Leaving the block waits for the thread. After an error or a signal it ends within one block of the file.
            stopped.set()


def check_finite(source: CheckpointReader, *, allow: bool, progress: Progress) -> None:
    """Refuse a source with NaN or infinite values. Raises SourceError, which names the tensor and the number of values."""
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
                    hint="set source.allow_nonfinite: true to convert the model anyway",
                )


def check_copies(source: CheckpointReader, inventory: Inventory) -> None:
    """Require that tied tensors that are stored twice hold the same bytes. Raises SourceError."""
    for alias, canonical in inventory.copies:
        if bytes(source.read(alias)) != bytes(source.read(canonical)):
            raise SourceError(
                f"{alias} differs from {canonical}, but config.json ties them",
                where=source.label,
                hint="set tie_word_embeddings to false in its config.json if the head has its own weights",
            )


def refuse_other_sources(policy: str | None, *, trained: bool, hub: bool, where: str) -> None:
    """Raise RecipeError for a source that can have no state of a training beside it."""
    if policy is not None and (trained or hub):
        raise RecipeError(
            "growth.state: the state of the optimizer is read from a local directory, and the source is "
            + ("trained by this recipe" if trained else "a repository of the Hub"),
            where=where,
            hint="remove growth.state and --with-optimizer, or name the directory of the training's checkpoint",
        )

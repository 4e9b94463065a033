"""Checks of a source: an error, or a signal, does not wait until the source has been hashed to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.source_models import change_weights, write_checkpoint

from ligo_convert.checkpoints import reader
from ligo_convert.conversion.source_checks import scan_source
from ligo_convert.errors import SourceError
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.registry import find_family
from ligo_convert.hub.resolve import open_source
from ligo_convert.progress import Progress


@pytest.mark.parametrize("stopped_by", ["an error", "a signal"])
def test_what_stops_the_check_stops_the_digest(
    stopped_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk so slow that hashing the source would take half a minute."""
    directory = write_checkpoint(tmp_path / "source")
    if stopped_by == "an error":
        change_weights(
            directory, lambda tensors: {name: tensor.fill_(float("nan")) for name, tensor in tensors.items()}
        )
    real = reader.blocks

    def slow(fd: int, size: int, *, label: str) -> Iterator[memoryview]:
        for block in real(fd, size, label=label):
            for start in range(0, len(block), len(block) // 600):
                time.sleep(0.05)
                yield block[start : start + len(block) // 600]

    monkeypatch.setattr(reader, "blocks", slow)

    class Signalled(Progress):
        def task(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    with open_source(str(directory), base=tmp_path) as source:
        specs = {name: tensor.spec for name, tensor in source.tensors.items()}
        inventory = claim_tensors(find_family(source.config, where=""), source.config, specs, label="source")
        began = time.monotonic()
        progress = Progress() if stopped_by == "an error" else Signalled()
        with pytest.raises(SourceError if stopped_by == "an error" else KeyboardInterrupt):
            scan_source(source, inventory, progress, allow_nonfinite=False)
        assert time.monotonic() - began < 10

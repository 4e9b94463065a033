"""Store the state of a training run as one safetensors file, so that a run can resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ligo_convert.checkpoints.small_files import read_safetensors
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.checkpoints.writer import safetensors_pieces
from ligo_convert.io.files import make_folder, write_file
from ligo_convert.io.staging import WORK, Staging

if TYPE_CHECKING:
    from typing_extensions import Buffer


class FolderState:
    """Training state as a file at any path (a `training.loop.StateStore`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        make_folder(self.path.parent)
        write_file(self.path, _state_pieces(arrays, text), replace=True)

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        return _read_state(self.path)


class StagedState:
    """Training state as a file in a staging directory (a `training.loop.StateStore`)."""

    def __init__(self, staging: Staging, name: str) -> None:
        self.staging, self.name = staging, f"{WORK}/{name}.safetensors"

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        self.staging.write_bytes(self.name, _state_pieces(arrays, text))

    @property
    def path(self) -> Path:
        return self.staging.path / self.name

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        return _read_state(self.path)

    def drop(self) -> None:
        self.staging.remove(self.name)


_TEXT = "state"


def _state_pieces(arrays: Mapping[str, np.ndarray], text: str) -> Iterator[Buffer]:
    tensors = []
    for name, array in sorted(arrays.items()):
        flat = np.ascontiguousarray(array)
        spec = TensorSpec(name=name, dtype={4: "F32", 8: "F64"}[flat.itemsize], shape=flat.shape)
        tensors.append((spec, flat.reshape(-1).view(np.uint8).data))
    # Stored as a tensor: a long log does not fit into the header's metadata.
    data = text.encode()
    tensors.append((TensorSpec(name=_TEXT, dtype="U8", shape=(len(data),)), memoryview(data)))
    return safetensors_pieces(tensors, {"format": "pt"})


def _read_state(path: Path) -> tuple[dict[str, np.ndarray], str] | None:
    if not path.exists():
        return None
    arrays, _ = read_safetensors(path)
    return arrays, arrays.pop(_TEXT).tobytes().decode()

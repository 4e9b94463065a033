"""Store the state of a training run as one safetensors file, so that a run can resume.

The file states its owner and the SHA-256 of its content. A state that is damaged, or that belongs to another run, is discarded and said.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ligo_convert.checkpoints.small_files import read_safetensors
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.checkpoints.writer import safetensors_pieces
from ligo_convert.errors import LigoError, SourceError
from ligo_convert.io.files import make_folder, remove_any, write_file
from ligo_convert.io.staging import WORK, Staging

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ligo_convert.training.optimizers import Moments

# Folder of the states of a comparison, in its work directory.
STATES = "states"


class FolderState:
    """Training state as a file at any path (a `training.loop.StateStore`).

    Args:
        path: the file.
        owner: what the state belongs to; the state of another owner is discarded.
        warn: receives one line for a state that is discarded.
    """

    def __init__(self, path: Path, *, owner: str, warn: Callable[[str], None]) -> None:
        self.path, self._owner, self._warn = path, owner, warn

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        make_folder(self.path.parent)
        if self.path.is_dir():
            self.discard("a directory where a file is due")
        write_file(self.path, _state_pieces(arrays, text, self._owner), replace=True)

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        if not os.path.lexists(self.path):
            return None
        try:
            return _read_state(self.path, self._owner)
        except _Damaged as error:
            self.discard(str(error))
            return None

    def remove(self) -> None:
        """Delete the file, if there is one."""
        remove_any(self.path)

    def discard(self, why: str) -> None:
        self._warn(f"the training state {self.path.name}: {why}; discarded, and its steps are done again")
        remove_any(self.path)


def state_of(work: Path, name: str, *, key: str, warn: Callable[[str], None]) -> FolderState:
    """Return the storage of a state by its name, among the states of one comparison.

    Args:
        work: folder of the comparison.
        key: identifies the comparison and its source; states of another key are discarded.
    """
    return FolderState(work / STATES / f"{name}.safetensors", owner=f"{key}/{name}", warn=warn)


class StagedState:
    """Training state as a file in a staging directory (a `training.loop.StateStore`)."""

    def __init__(self, staging: Staging, name: str) -> None:
        self.staging, self.name = staging, f"{WORK}/{name}.safetensors"

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        self.staging.write_bytes(self.name, _state_pieces(arrays, text, self.name))

    @property
    def path(self) -> Path:
        return self.staging.path / self.name

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        if self.staging.digest(self.name) is None:
            return None
        try:
            return _read_state(self.path, self.name)
        except _Damaged as error:
            self.discard(str(error))
            return None

    def discard(self, why: str) -> None:
        self.staging.discard_file(self.name, why)

    def drop(self) -> None:
        self.staging.remove(self.name)


def optimizer_state(moments: Moments) -> Iterator[Buffer]:
    """Return the pieces of a file with the state of an optimizer, which `read_optimizer_state` reads."""
    from ligo_convert.training.optimizers import stored_moments

    arrays, steps = stored_moments(moments)
    return _state_pieces(arrays, json.dumps({"steps": steps}), _OPTIMIZER)


def read_optimizer_state(path: Path) -> Moments:
    """Return the state of an optimizer by canonical tensor name. Raises SourceError if the file does not hold one."""
    from ligo_convert.training.optimizers import read_moments

    try:
        arrays, text = _read_state(path, _OPTIMIZER)
        steps = json.loads(text)["steps"]
        return read_moments(arrays, {str(name): float(count) for name, count in steps.items()})
    except (_Damaged, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"not the state of an optimizer: {error}",
            where=path,
            hint="remove the file to train with a fresh optimizer",
        ) from None


_OPTIMIZER = "optimizer"

_TEXT = "state"

_FORMAT = "ligo-training-state/1"


class _Damaged(Exception):
    """A state that cannot be used."""


def _state_pieces(arrays: Mapping[str, np.ndarray], text: str, owner: str) -> Iterator[Buffer]:
    tensors = []
    for name, array in sorted(arrays.items()):
        flat = np.ascontiguousarray(array)
        spec = TensorSpec(name=name, dtype={4: "F32", 8: "F64"}[flat.itemsize], shape=flat.shape)
        tensors.append((spec, flat.reshape(-1).view(np.uint8).data))
    # Stored as a tensor: a long log does not fit into the header's metadata.
    data = text.encode()
    tensors.append((TensorSpec(name=_TEXT, dtype="U8", shape=(len(data),)), memoryview(data)))
    metadata = {"format": "pt", "kind": _FORMAT, "owner": owner, "sha256": _digest(arrays, data, owner)}
    return safetensors_pieces(tensors, metadata)


def _digest(arrays: Mapping[str, np.ndarray], text: bytes, owner: str) -> str:
    """Return the SHA-256, in hex, of all that a state file holds."""
    sha256 = hashlib.sha256(f"{_FORMAT}\0{owner}\0{len(text)}\0".encode() + text)
    for name, array in sorted(arrays.items()):
        sha256.update(f"{name}\0{array.dtype.itemsize}\0{array.shape}\0".encode())
        sha256.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


def _read_state(path: Path, owner: str) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays and the text of a state. Raises _Damaged if it is not the state that its owner saved."""
    if path.is_symlink() or not path.is_file():
        raise _Damaged("not a regular file")
    try:
        arrays, metadata = read_safetensors(path)
    except LigoError as error:
        raise _Damaged(error.what) from None
    if metadata.get("kind") != _FORMAT or _TEXT not in arrays:
        raise _Damaged("a state of another format")
    if metadata.get("owner") != owner:
        raise _Damaged("the state of another run")
    text = arrays.pop(_TEXT).tobytes()
    if metadata.get("sha256") != _digest(arrays, text, owner):
        raise _Damaged("the SHA-256 in the file is not that of its content")
    return arrays, text.decode()

"""What may happen to a file between two runs: every kind of damage, one at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], None]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _zero_end(path: Path) -> None:
    """What a file system without ordered data may leave after a power loss."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def _be_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def _be_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _be_of_wrong_type(path: Path) -> None:
    path.write_text(json.dumps([1, {"family": ["x"]}]) + "\n")


DAMAGES: dict[str, Damage] = {
    "flipped bit": _flip,
    "empty": lambda path: path.write_bytes(b"") and None,
    "half": _halve,
    "zeros": _zero_end,
    "directory": _be_directory,
    "link": _be_dangling_link,
    "wrong type": _be_of_wrong_type,
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\n") and None,
}


def swap_with(other: Path) -> Damage:
    """Put another file, such as that of another run, in the place of this one."""
    return lambda path: shutil.copyfile(other, path) and None

"""What a power loss may leave: a model of a file system over the effects of a real run.

`Recorder` notes every effect of a block at `fs.EFFECTS`. `Recorder.losses(at)` yields states that a power loss after the first `at`
effects may leave. The model is harsher than any file system that is in use:

* The bytes of a file are on the disk when the file is synced. Bytes written later are there, or not, or zeros are there, or half of them.
* A name is on the disk when its directory is synced: a created, removed or renamed one. Of the changes since then any may be lost,
  whatever their order. A rename is atomic; it is on the disk when the directory of the new name is synced.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import faults

# A tree as plain data: name -> bytes of a file, or the tree of a directory.
Tree = dict[str, "bytes | Tree"]


@dataclass(frozen=True)
class _Name:
    """A change of names: `node` is added to a directory under a name, and removed from another; either may be missing."""

    node: int
    added: tuple[int, str] | None = None
    removed: tuple[int, str] | None = None


@dataclass(frozen=True)
class _Write:
    node: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class _Truncate:
    node: int
    length: int


@dataclass(frozen=True)
class _Sync:
    node: int


@dataclass
class _Disk:
    """Files and directories by number; 0 is the root. What is not in `files` is a directory."""

    files: dict[int, bytearray] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)

    def do(self, effect: _Name | _Write | _Truncate) -> None:
        if isinstance(effect, _Name):
            if effect.removed is not None:
                directory, name = effect.removed
                if self.names.get(directory, {}).get(name) == effect.node:
                    del self.names[directory][name]
            if effect.added is not None:
                self.names.setdefault(effect.added[0], {})[effect.added[1]] = effect.node
            return
        data = self.files.setdefault(effect.node, bytearray())
        if isinstance(effect, _Truncate):
            del data[effect.length :]
        else:
            data.extend(bytes(max(0, effect.offset - len(data))))
            data[effect.offset : effect.offset + len(effect.data)] = effect.data

    def tree(self, node: int = 0) -> Tree:
        return {
            name: bytes(self.files[child]) if child in self.files else self.tree(child)
            for name, child in self.names.get(node, {}).items()
        }


class Recorder:
    """Records the effects of a block below a folder.

    Attributes:
        effects: what was done, in order; an effect of the file system is one of them or two.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.effects: list[_Name | _Write | _Truncate | _Sync] = []
        self._start, self._now = _Disk(), _Disk()
        self._next = 1
        self._inodes: dict[int, int] = {root.stat().st_ino: 0}
        for path in sorted(root.rglob("*")):
            node = self._node(path, new=True)
            effects: list[_Name | _Write] = [_Name(node, added=self._place(path))]
            if path.is_file():
                effects.append(_Write(node, 0, path.read_bytes()))
            for effect in effects:
                self._start.do(effect)
                self._now.do(effect)

    def _node(self, path: Path, *, new: bool = False) -> int:
        inode = path.lstat().st_ino
        if new:
            self._inodes[inode] = self._next
            self._next += 1
        return self._inodes[inode]

    def _place(self, path: Path) -> tuple[int, str]:
        return self._node(path.parent), path.name

    @contextmanager
    def recording(self) -> Iterator[None]:
        with faults.around(self._act):
            yield

    def _act(self, effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        before = len(self.effects)
        result = getattr(self, f"_{effect}", self._named)(effect, function, path, arguments)
        for done in self.effects[before:]:
            if not isinstance(done, _Sync):
                self._now.do(done)
        return result

    def _open(self, effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        new = not os.path.lexists(path)
        result = function(path, *arguments)
        if new:
            node = self._node(path, new=True)
            self.effects += [_Truncate(node, 0), _Name(node, added=self._place(path))]
        return result

    def _write(self, effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        descriptor, data = arguments
        # Files are written in sequence, and journals appended to.
        offset = os.fstat(descriptor).st_size
        result = function(path, descriptor, data)
        self.effects.append(_Write(self._inodes[os.fstat(descriptor).st_ino], offset, bytes(data)[:result]))
        return result

    def _truncate(self, effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        result = function(path, *arguments)
        self.effects.append(_Truncate(self._inodes[os.fstat(arguments[0]).st_ino], arguments[1]))
        return result

    def _fsync(self, effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        self.effects.append(_Sync(self._inodes[os.fstat(arguments[0]).st_ino]))
        return None  # the sync itself would only cost time

    _fsync_directory = _fsync

    def _named(self, effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        if effect == "mkdir":
            result = function(path, *arguments)
            self.effects.append(_Name(self._node(path, new=True), added=self._place(path)))
            return result
        node, place = self._node(path), self._place(path)
        result = function(path, *arguments)
        if effect in ("unlink", "rmdir"):
            self.effects.append(_Name(node, removed=place))
        else:
            added = self._place(arguments[0])
            self.effects.append(_Name(node, added=added, removed=None if effect == "link" else place))
        return result

    def whole(self) -> Tree:
        """The tree after all effects, as the model has it."""
        return self._now.tree()

    def losses(self, at: int, draw: random.Random, *, most: int = 12) -> Iterator[Tree]:
        """Yield trees that a power loss after the first `at` effects may leave: nothing unsynced, all of it, all but one, some."""
        done, unsynced = self.effects[:at], set[int]()
        for number, effect in enumerate(done):
            if isinstance(effect, _Sync):
                unsynced -= {other for other in unsynced if _is_kept(done[other], effect.node)}
            else:
                unsynced.add(number)
        pending = sorted(unsynced)
        choices: list[frozenset[int]] = [frozenset(), frozenset(pending)]
        choices += [frozenset(pending) - {number} for number in draw.sample(pending, min(len(pending), most // 2))]
        choices += [frozenset(number for number in pending if draw.random() < 0.5) for _ in range(most // 2)]
        for lost in dict.fromkeys(choices):
            disk = _Disk()
            for effect in _everything(self._start):
                disk.do(effect)
            for number, effect in enumerate(done):
                if isinstance(effect, _Sync):
                    continue
                if number not in lost:
                    disk.do(effect)
                elif isinstance(effect, _Write):
                    # The size may have grown although the bytes never came.
                    kind = draw.randrange(3)
                    if kind:
                        half = effect.data[: len(effect.data) // 2] if kind == 2 else b""
                        disk.do(_Write(effect.node, effect.offset, half + bytes(len(effect.data) - len(half))))
                elif isinstance(effect, _Truncate):
                    disk.files.setdefault(effect.node, bytearray())
            yield disk.tree()


def _is_kept(effect: _Name | _Write | _Truncate | _Sync, synced: int) -> bool:
    """Return True if syncing a file or directory puts an effect on the disk."""
    if isinstance(effect, _Name):
        place = effect.added or effect.removed
        return place is not None and place[0] == synced
    return effect.node == synced


def _everything(disk: _Disk) -> Iterator[_Name | _Write]:
    for directory, names in disk.names.items():
        for name, node in names.items():
            yield _Name(node, added=(directory, name))
    for node, data in disk.files.items():
        yield _Write(node, 0, bytes(data))


def build(tree: Tree, folder: Path) -> Path:
    """Write a tree into a new folder."""
    folder.mkdir(parents=True)
    for name, content in tree.items():
        if isinstance(content, dict):
            build(content, folder / name)
        else:
            (folder / name).write_bytes(content)
    return folder


def files_of(tree: Tree, prefix: str = "") -> dict[str, bytes]:
    """The files of a tree by POSIX path."""
    found: dict[str, bytes] = {}
    for name, content in tree.items():
        if isinstance(content, dict):
            found.update(files_of(content, f"{prefix}{name}/"))
        else:
            found[prefix + name] = content
    return found


def tree_of(folder: Path) -> Tree:
    return {path.name: tree_of(path) if path.is_dir() else path.read_bytes() for path in sorted(folder.iterdir())}

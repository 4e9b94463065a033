"""The staging directory of an output: written file by file, resumable, committed in one atomic step.

The output NAME is staged as `.NAME.ligo-partial` in the same parent directory and renamed to NAME when it is complete. The lock on the
staging directory is held through the directory's own descriptor: the kernel releases it when the process ends, and it follows the rename.
Staged files survive a stop, and the next run resumes from them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING

from ligo_convert.errors import LigoError, MachineError, OutputBusy
from ligo_convert.io.files import (
    Handle,
    absolute_path,
    do,
    hold,
    machine_error,
    make_folder,
    output_path,
    partial_path,
    refuse_taken,
    reporting,
    sync_directory,
    sync_file,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

WORK = ".work"


class Staging:
    """The staging directory of an output directory, locked by this process until `close`.

    File names are relative POSIX paths below `path`. As a context manager it releases the lock on exit and keeps the staged files.

    Attributes:
        out: absolute path of the output directory.
        path: the staging directory; it becomes `out`.
        work: subdirectory for journals and states; it is not part of `out`.
        resumed: True if an earlier run with the same key left the directory.
    """

    def __init__(self, out: Path, descriptor: int, key: str) -> None:
        self.out, self.path, self.work = out, partial_path(out), partial_path(out) / WORK
        self._descriptor: int | None = descriptor
        self._handles: list[Handle] = []
        self._run = secrets.token_hex(16)
        self.resumed = self._find_earlier_work(key)
        make_folder(self.work / "new")
        if not self.resumed:
            self.write_bytes(f"{WORK}/key", f"{key}\n".encode())
        # On file systems with unreliable locks, the latest run overwrites this file, and earlier runs notice at the commit.
        self.write_bytes(f"{WORK}/run", self._run.encode())

    @classmethod
    def open(cls, out: Path, *, key: str) -> Staging:
        """Create the staging directory of `out`, or open an existing one to resume.

        Args:
            out: the output directory.
            key: one line that identifies the work; only staged work with the same key is resumed.

        Raises:
            RecipeError: `out` cannot be an output directory.
            OutputBusy: `out` is not empty, another run holds the staging directory, or it holds other work.
            MachineError: the directory cannot be created or opened.
        """
        assert len(key.splitlines()) == 1, "a key is one line"
        out = output_path(out)
        make_folder(out.parent)
        path = partial_path(out)

        def opening() -> int:
            refuse_taken(out)
            with contextlib.suppress(FileExistsError):
                do("mkdir", path, passing=(FileExistsError,))
            try:
                return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):  # a file, or a link
                    raise _not_ours(path) from None
                raise machine_error(error, path, "open") from error

        descriptor = hold(path, opening)
        try:
            refuse_taken(out)
            return cls(out, descriptor, key)
        except BaseException:
            with contextlib.suppress(MachineError):  # leave no empty directory behind
                do("rmdir", path)
            os.close(descriptor)
            raise

    def _find_earlier_work(self, key: str) -> bool:
        """Return True if the directory holds work with `key`, False if it is empty. Raises OutputBusy for anything else."""
        aside = _aside(self.out)
        if os.path.lexists(aside):
            _refuse_strange_work(aside)
            with reporting(self.path, "list"):
                names = {entry.name for entry in self.path.iterdir()}
            if names and WORK not in names:
                # An earlier commit stopped between its two renames.
                do("rename", aside, self.work)
                sync_directory(self.path)
                sync_directory(self.out.parent)
            else:
                # An earlier commit stopped after both renames, and its output has been moved away.
                _remove_work(aside)
        staged_key = _read_key(self.work)
        if staged_key is None:
            with reporting(self.path, "list"):
                if {entry.name for entry in self.path.iterdir()} - {WORK} or (
                    os.path.lexists(self.work) and {entry.name for entry in self.work.iterdir()} - {"new"}
                ):
                    raise _not_ours(self.path)
            return False
        if staged_key != key:
            raise OutputBusy(
                "the staging directory holds unfinished work of another recipe, source or version",
                where=self.path,
                expected=key,
                found=staged_key,
                hint=f"run that recipe again to finish it, remove {self.path}, or choose another output directory",
            )
        return True

    def _target(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or PurePosixPath(name).as_posix() != name:
            raise LigoError("not a file name inside the output directory", where=name)
        return self.path.joinpath(*parts)

    def create(self, name: str, *, nbytes: int = 0) -> Handle:
        """Open a new file for sequential writing. It appears as `name` when it is closed. `nbytes` is the expected size, for messages."""
        target = self._target(name)
        if target.parent != self.path:
            make_folder(target.parent)
        temporary = self.work / "new" / name.replace("%", "%25").replace("/", "%2F")
        self._handles = [handle for handle in self._handles if handle.open]
        self._handles.append(Handle(temporary, target, nbytes=nbytes))
        return self._handles[-1]

    def write_bytes(self, name: str, data: Buffer | Iterator[Buffer]) -> None:
        """Write a whole file durably. `data` is a buffer or an iterator of buffers."""
        with self.create(name) as handle:
            for piece in data if isinstance(data, Iterator) else (data,):
                handle.write(piece)

    def remove(self, name: str) -> None:
        """Remove the file `name` durably. Does nothing if it does not exist."""
        target = self._target(name)
        with contextlib.suppress(FileNotFoundError):
            do("unlink", target, passing=(FileNotFoundError,))
            sync_directory(target.parent)

    def append_line(self, name: str, line: str) -> None:
        """Append one line durably. First cut off an incomplete last line of an earlier run."""
        assert "\n" not in line, "a line holds no line break"
        target = self._target(name)
        make_folder(target.parent)
        new = not target.exists()
        descriptor: int = do("open", target, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW)
        try:
            whole = _whole_lines(target)
            if os.fstat(descriptor).st_size != len(whole):
                do("truncate", target, descriptor, len(whole))
            view = memoryview(f"{line}\n".encode())
            while view:
                count: int = do("write", target, descriptor, view, needed=len(view))
                view = view[count:]
            do("fsync", target, descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_directory(target.parent)

    def read_lines(self, name: str) -> list[str]:
        """Return the complete lines of a file written by `append_line`; empty if the file does not exist.

        Invalid UTF-8 is decoded to U+FFFD. Callers validate each line.
        """
        return _whole_lines(self._target(name)).decode(errors="replace").split("\n")[:-1]

    def files(self) -> list[str]:
        """Return the sorted names of the staged output files."""
        return sorted(
            path.relative_to(self.path).as_posix()
            for path, is_directory in _tree(self.path, without=self.work)
            if not is_directory
        )

    def commit(self) -> None:
        """Rename the staging directory to the output directory, atomically and durably.

        Raises:
            OutputBusy: the output directory appeared meanwhile, or another run has taken over the staging directory.
            MachineError: a sync or rename failed; the output directory is then either absent or complete.
        """
        assert self._descriptor is not None, "the staging directory is closed"
        assert not any(handle.open for handle in self._handles), "a file is still open"
        with reporting(self.work / "run", "read"):
            if (self.work / "run").read_text() != self._run:
                raise OutputBusy("another run has taken over the staging directory", where=self.path)
        for path, is_directory in _tree(self.path, without=self.work):
            if is_directory:
                sync_directory(path)
            else:  # may have been written by an earlier run or a library
                sync_file(path)
        # Move the work directory instead of removing it: after a stop here, the next run still finds the key.
        do("rename", self.work, _aside(self.out))
        sync_directory(self.path)
        sync_directory(self.out.parent)
        refuse_taken(self.out)
        with contextlib.suppress(FileNotFoundError):
            do("rmdir", self.out, passing=(FileNotFoundError,))
        try:
            do("rename_new", self.path, self.out, passing=(FileExistsError,))
        except FileExistsError:
            refuse_taken(self.out)
            raise OutputBusy("the output directory appeared meanwhile", where=self.out, hint="remove it") from None
        sync_directory(self.out.parent)
        clear_leftovers(self.out)

    def discard(self) -> None:
        """Remove the staging directory with all files and release the lock. No output is made."""
        for path, is_directory in _tree(self.path, without=self.work):
            if path != self.path:
                do("rmdir" if is_directory else "unlink", path)
        _remove_work(self.work)
        do("rmdir", self.path)
        sync_directory(self.out.parent)
        self.close()

    def close(self) -> None:
        """Release the lock. Staged files stay; files that are still open are removed."""
        for handle in self._handles:
            handle.abort()
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):  # no locks on this file system
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold a copy of the descriptor
            os.close(descriptor)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def clear_leftovers(out: Path) -> None:
    """Remove the work directory of a commit that stopped after its last rename."""
    out = absolute_path(out)
    aside = _aside(out)
    if os.path.lexists(aside) and out.is_dir() and not os.path.lexists(partial_path(out)):
        _refuse_strange_work(aside)
        _remove_work(aside)


def _aside(target: Path) -> Path:
    """Return the path of the work directory while the staging directory is renamed."""
    return target.with_name(f".{target.name}.ligo-partial.work")


def _tree(directory: Path, *, without: Path | None = None) -> Iterator[tuple[Path, bool]]:
    """Yield everything below `directory` except `without`, then `directory` itself, each with True if it is a directory."""
    with reporting(directory, "list"):
        names = sorted(entry.name for entry in directory.iterdir())
    for path in (directory / name for name in names):
        if path == without:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _tree(path)
        elif path.is_file() and not path.is_symlink():
            yield path, False
        else:
            raise OutputBusy(
                "neither a file nor a directory, and not made by this program", where=path, hint="move it away"
            )
    yield directory, True


def _remove_work(directory: Path) -> None:
    """Remove a work directory, its key last, so that a partly removed directory is still recognised."""
    if not directory.exists():
        return
    for path, is_directory in sorted(_tree(directory), key=lambda pair: pair[0] == directory / "key"):
        if path != directory:
            with contextlib.suppress(FileNotFoundError):
                do("rmdir" if is_directory else "unlink", path, passing=(FileNotFoundError,))
    with contextlib.suppress(FileNotFoundError):
        do("rmdir", directory, passing=(FileNotFoundError,))


def _read_key(work: Path) -> str | None:
    with reporting(work / "key", "read"):
        try:
            return (work / "key").read_text(errors="replace").rstrip("\n")
        except FileNotFoundError:
            return None


def _refuse_strange_work(aside: Path) -> None:
    with reporting(aside, "list"):
        ours = not aside.is_symlink() and aside.is_dir() and ((aside / "key").is_file() or not any(aside.iterdir()))
    if not ours:
        raise _not_ours(aside)


def _not_ours(path: Path) -> OutputBusy:
    return OutputBusy(
        "the path of the staging directory is taken by something that this program did not create",
        where=path,
        hint=f"remove {path}, or choose another output directory",
    )


def _whole_lines(path: Path) -> bytes:
    with reporting(path, "read"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return b""
    return data[: data.rfind(b"\n") + 1]

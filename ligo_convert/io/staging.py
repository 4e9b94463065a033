"""The staging directory of an output: files in, one at a time and resumable, and one atomic commit out.

A directory is staged as `.NAME.ligo-partial` beside NAME, locked through its own descriptor (the kernel frees that lock
whenever the process ends, and it follows the rename), and renamed to NAME once it is whole. What is staged survives a
stop, for the next run.
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
    """The staging directory of an output directory, held by this process until `close`.

    Attributes:
        out: the output directory, absolute.
        path: the staging directory, which becomes `out`.
        work: a directory in it for what is no output: journals, states. It is gone from `out`.
        resumed: whether an earlier run with the same key left it.

    Names are relative POSIX paths below `path`. A context manager; leaving it keeps what is staged and frees the lock.
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
        # Where locks lie, as on some network file systems, the last run to come writes this, and the others see it.
        self.write_bytes(f"{WORK}/run", self._run.encode())

    @classmethod
    def open(cls, out: Path, *, key: str) -> Staging:
        """Make or find the staging directory of `out`; `key` (one line) says which work it may go on with.

        Raises:
            RecipeError: `out` is a place no output may take.
            OutputBusy: something is in `out`; another run has the staging directory; or it holds other work.
            MachineError: the machine refuses.
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
            with contextlib.suppress(MachineError):  # nothing stays where nothing was begun
                do("rmdir", path)
            os.close(descriptor)
            raise

    def _find_earlier_work(self, key: str) -> bool:
        """Whether work under `key` is here. OutputBusy if other work, or anything else, is."""
        aside = _aside(self.out)
        if os.path.lexists(aside):
            _refuse_strange_work(aside)
            with reporting(self.path, "list"):
                names = {entry.name for entry in self.path.iterdir()}
            if names and WORK not in names:
                # A commit stopped between its two renames.
                do("rename", aside, self.work)
                sync_directory(self.path)
                sync_directory(self.out.parent)
            else:
                # A commit stopped after both; its output has been taken away since.
                _remove_work(aside)
        found = _read_key(self.work)
        if found is None:
            with reporting(self.path, "list"):
                if {entry.name for entry in self.path.iterdir()} - {WORK} or (
                    os.path.lexists(self.work) and {entry.name for entry in self.work.iterdir()} - {"new"}
                ):
                    raise _not_ours(self.path)
            return False
        if found != key:
            raise OutputBusy(
                "unfinished work of another recipe, source or version is staged for this output directory",
                where=self.path,
                expected=key,
                found=found,
                hint=f"run that one again to finish it; or remove {self.path}; or choose another output directory",
            )
        return True

    def _target(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or PurePosixPath(name).as_posix() != name:
            raise LigoError("not a name of a file inside the output directory", where=name)
        return self.path.joinpath(*parts)

    def create(self, name: str, *, nbytes: int = 0) -> Handle:
        """A file to be written in sequence, which shows under `name` once it is closed. `nbytes`: the size to come."""
        target = self._target(name)
        if target.parent != self.path:
            make_folder(target.parent)
        temporary = self.work / "new" / name.replace("%", "%25").replace("/", "%2F")
        self._handles = [handle for handle in self._handles if handle.open]
        self._handles.append(Handle(temporary, target, nbytes=nbytes))
        return self._handles[-1]

    def write_bytes(self, name: str, data: Buffer | Iterator[Buffer]) -> None:
        """Write a whole file, durably; `data` is a buffer, or an iterator of them."""
        with self.create(name) as handle:
            for piece in data if isinstance(data, Iterator) else (data,):
                handle.write(piece)

    def remove(self, name: str) -> None:
        """Remove the file `name`, durably; nothing happens where there is none."""
        target = self._target(name)
        with contextlib.suppress(FileNotFoundError):
            do("unlink", target, passing=(FileNotFoundError,))
            sync_directory(target.parent)

    def append_line(self, name: str, line: str) -> None:
        """Append one line, durably. A torn line that an earlier run left at the end is cut off first."""
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
        """The whole lines of a file of `append_line`, without a torn last one; none where there is no such file.

        Bytes that are no UTF-8 come out as U+FFFD: a reader checks its lines anyway.
        """
        return _whole_lines(self._target(name)).decode(errors="replace").split("\n")[:-1]

    def files(self) -> list[str]:
        """Sorted names of the files that the output holds so far."""
        return sorted(
            path.relative_to(self.path).as_posix()
            for path, is_directory in _tree(self.path, without=self.work)
            if not is_directory
        )

    def commit(self) -> None:
        """Make the staged directory the output directory, in one step and for good.

        Raises:
            OutputBusy: something has appeared in its place, or another run has taken the staging directory over.
            MachineError: the machine refuses; the output directory is absent, or whole.
        """
        assert self._descriptor is not None, "the staging directory is closed"
        assert not any(handle.open for handle in self._handles), "a file is still open"
        with reporting(self.work / "run", "read"):
            if (self.work / "run").read_text() != self._run:
                raise OutputBusy("another run has taken over the staging directory", where=self.path)
        for path, is_directory in _tree(self.path, without=self.work):
            if is_directory:
                sync_directory(path)
            else:  # an earlier run, or a library, may have written it
                sync_file(path)
        # Aside, not away: a staging directory without its key, left by a stop right here, would be a stranger's.
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
        """Remove everything that is staged, and the staging directory: there will be no output. The lock is freed."""
        for path, is_directory in _tree(self.path, without=self.work):
            if path != self.path:
                do("rmdir" if is_directory else "unlink", path)
        _remove_work(self.work)
        do("rmdir", self.path)
        sync_directory(self.out.parent)
        self.close()

    def close(self) -> None:
        """Free the lock; what is staged stays, but for files still open."""
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
    """Remove what a commit stopped right after its last rename left beside the finished output directory `out`."""
    out = absolute_path(out)
    aside = _aside(out)
    if os.path.lexists(aside) and out.is_dir() and not os.path.lexists(partial_path(out)):
        _refuse_strange_work(aside)
        _remove_work(aside)


def _aside(target: Path) -> Path:
    """Where the work directory waits while its staging directory is renamed."""
    return target.with_name(f".{target.name}.ligo-partial.work")


def _tree(directory: Path, *, without: Path | None = None) -> Iterator[tuple[Path, bool]]:
    """Everything below `directory` but `without`, then `directory` itself; with each, whether it is a directory."""
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
    """Remove a work directory, its key last: what is left by a stop on the way is still known as ours."""
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
        "this program did not make what is there, and needs the place to stage its output",
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

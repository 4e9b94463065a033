"""All changes to the file system: durable files, locks and checks of output paths.

Input: bytes and paths.
Output: a file with either its old or its new content, never a part of it, whatever stops the run.

A file is written under a temporary name, synced and renamed; then its directory is synced. All changes pass through the table `EFFECTS`, so
that a test can make any one of them fail or end the process at that point.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ligo_convert.errors import MachineError, OutputBusy, OutputLocked, RecipeError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)

_TRIES = 100


# --- effects ---------------------------------------------------------------------------------------------------------


def _fsync(path: Path, descriptor: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: plain fsync stops at the drive's cache
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            return
    os.fsync(descriptor)


def _fsync_directory(path: Path, descriptor: int) -> None:
    try:
        _fsync(path, descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a directory. Any other error is a failure.
        if error.errno not in _UNSUPPORTED:
            raise


def _exclusive_rename() -> Callable[[bytes, bytes], int] | None:
    """Return the C library's rename that never replaces: it returns 0, or sets the ctypes errno. None if there is no such function."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        working_directory, no_replace = -100, 1  # AT_FDCWD, RENAME_NOREPLACE
        return lambda old, new: int(library.renameat2(working_directory, old, working_directory, new, no_replace))
    if hasattr(library, "renamex_np"):
        exclusive = 4  # RENAME_EXCL
        return lambda old, new: int(library.renamex_np(old, new, exclusive))
    return None


def _rename_new(path: Path, target: Path) -> None:
    """Rename `path` to `target`. Raises FileExistsError if `target` exists, even as an empty directory."""
    call = _exclusive_rename()
    if call is not None:
        if call(os.fsencode(path), os.fsencode(target)) == 0:
            return
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number), str(path), None, str(target))
    # Atomic only between runs of this program, not against other programs.
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path), None, str(target))
        path.rename(target)
    finally:
        os.close(descriptor)


# The first argument is the path that the effect changes. File modes are left to the umask.
EFFECTS: dict[str, Callable[..., Any]] = {
    "mkdir": lambda path: path.mkdir(0o777),
    "open": lambda path, flags: os.open(path, flags, 0o666),
    "write": lambda path, descriptor, data: os.write(descriptor, data),
    "truncate": lambda path, descriptor, length: os.ftruncate(descriptor, length),
    "fsync": _fsync,
    "fsync_directory": _fsync_directory,
    "rename": lambda path, target: path.rename(target),
    "rename_new": _rename_new,
    "link": lambda path, target: target.hardlink_to(path),
    "unlink": lambda path: path.unlink(),
    "rmdir": lambda path: path.rmdir(),
}

_VERBS = {
    "mkdir": "create this directory",
    "open": "open for writing",
    "write": "write",
    "truncate": "truncate",
    "fsync": "sync to the disk",
    "fsync_directory": "sync to the disk",
    "rename": "rename",
    "rename_new": "rename",
    "link": "link",
    "unlink": "remove",
    "rmdir": "remove",
}


def do(
    effect: str,
    path: Path,
    *arguments: object,
    needed: int | None = None,
    passing: tuple[type[OSError], ...] = (),
) -> Any:
    """Run one of `EFFECTS` on `path` and convert an OSError to a MachineError.

    Args:
        effect: key of `EFFECTS`.
        path: the path that the effect changes.
        arguments: further arguments of the effect.
        needed: bytes still to be written, for the message about a full disk.
        passing: kinds of OSError that are raised unchanged.
    """
    try:
        return EFFECTS[effect](path, *arguments)
    except passing:
        raise
    except OSError as error:
        raise machine_error(error, path, _VERBS[effect], needed=needed) from error


# --- errors --------------------------------------------------------------------------------------------------

_FREE_SPACE = "free some disk space, then run the same command again"

_WRITABLE = "choose a path that this user may write to"

_REASONS = {
    errno.ENOSPC: ("the disk is full", _FREE_SPACE),
    errno.EDQUOT: ("the disk quota is used up", _FREE_SPACE),
    errno.EACCES: ("permission denied", _WRITABLE),
    errno.EPERM: ("permission denied", _WRITABLE),
    errno.EROFS: ("the file system is read-only", _WRITABLE),
    errno.EFBIG: (
        "the file would be larger than the file system or the limit of this process (ulimit -f) allows",
        "raise the limit, or lower output.max_shard_size",
    ),
    errno.EIO: (
        "input/output error",
        "the disk or its connection failed; check the system log before the next run",
    ),
}


def machine_error(error: OSError, path: Path, verb: str, *, needed: int | None = None) -> MachineError:
    """Convert an OSError to a MachineError.

    Args:
        error: the error of the system call.
        path: the file or directory.
        verb: the action that failed, such as `write`.
        needed: bytes still to be written, if known.
    """
    number = error.errno or 0
    reason, hint = _REASONS.get(number, (os.strerror(number) if number else str(error), ""))
    expected = found = None
    if number in (errno.ENOSPC, errno.EDQUOT):
        expected = None if needed is None else f"{needed:,} more bytes of disk space"
        with contextlib.suppress(OSError):  # the free space is optional; report the original error
            found = f"{_free(path):,} bytes free"
    return MachineError(f"cannot {verb}: {reason}", where=path, expected=expected, found=found, hint=hint)


@contextlib.contextmanager
def reporting(path: Path, verb: str) -> Iterator[None]:
    """Convert an OSError of a block that only reads to a MachineError about `path`."""
    try:
        yield
    except OSError as error:
        raise machine_error(error, path, verb) from error


def _nearest(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists."""
    return next(directory for directory in (path, *path.parents) if directory.exists())


def _free(path: Path) -> int:
    status = os.statvfs(_nearest(path))
    return status.f_bavail * status.f_frsize


def check_room(directory: Path, nbytes: int) -> None:
    """Raise MachineError if the file system of `directory` has fewer than `nbytes` bytes free. The directory need not exist."""
    with reporting(directory, "read the free disk space"):
        free = _free(Path(os.path.realpath(directory)))
    if free < nbytes:
        raise MachineError(
            "not enough room on the disk",
            where=directory,
            expected=f"{nbytes:,} bytes free",
            found=f"{free:,} bytes free",
            hint=_FREE_SPACE,
        )


# --- output paths -----------------------------------------------------------------------------------------------------------


def absolute_path(path: Path) -> Path:
    """Return `path` with resolved parents. Its last name is kept, even if it is a link."""
    if "\0" in str(path):
        raise RecipeError("a path cannot hold a NUL character", where=path)
    with reporting(path, "find the working directory"):
        if path.name in ("", ".."):
            return Path(os.path.realpath(path))
        return Path(os.path.realpath(path.parent)) / path.name


def output_path(out: Path) -> Path:
    """Return the absolute path of an output directory.

    Raises:
        RecipeError: it is the root, the working directory, or a parent of the working directory.
    """
    absolute, working = absolute_path(out), Path.cwd()
    target = Path(os.path.realpath(absolute))
    if target in (working, *working.parents):
        name = "the root of the file system" if target == Path(target.anchor) else "in use as the working directory"
        if target not in (working, Path(target.anchor)):
            name = "a directory that holds the working directory"
        raise RecipeError(f"the output directory is {name}", where=out, hint="name a new directory inside it")
    return absolute


def partial_path(target: Path) -> Path:
    """Return the temporary name of `target` while it is written."""
    return target.with_name(f".{target.name}.ligo-partial")


def refuse_taken(out: Path) -> None:
    """Raise OutputBusy unless `out` does not exist or is an empty directory."""
    with reporting(out, "read"):
        try:
            mode = out.lstat().st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            if out.is_mount():
                raise MachineError(
                    "the output directory is a mount point, so it cannot be created in one step",
                    where=out,
                    hint="name a new directory inside it",
                )
            if next(out.iterdir(), None) is None:
                return
    kind = {stat.S_IFDIR: "is not empty", stat.S_IFLNK: "is a symbolic link"}.get(stat.S_IFMT(mode), "is a file")
    raise OutputBusy(
        f"the output directory {kind}",
        where=out,
        expected="no such path, or an empty directory",
        hint="choose another output directory, or move this one away; nothing is ever overwritten",
    )


def check_place(out: Path) -> None:
    """Check that the directory `out` can be created: create and remove a directory beside it.

    Raises:
        RecipeError: `out` cannot be an output directory.
        OutputBusy: `out` exists and is not empty.
        MachineError: no directory can be created there.
    """
    out = output_path(out)
    refuse_taken(out)
    with reporting(out, "read"):
        # The same name each time: what a run leaves that is stopped between the two, the next one removes.
        probe = _nearest(out.parent) / f".{out.name}.ligo-probe"
    # Checking permissions is not enough: they do not cover read-only mounts, nor the root user.
    with contextlib.suppress(FileExistsError):
        do("mkdir", probe, passing=(FileExistsError,))
    with contextlib.suppress(FileNotFoundError):
        do("rmdir", probe, passing=(FileNotFoundError,))


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, durably."""
    with reporting(folder, "read"):
        missing = [directory for directory in (folder, *folder.parents) if not directory.is_dir()]
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another run may have created it
            do("mkdir", directory, passing=(FileExistsError,))
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Sync the names in `directory` to the disk."""
    with reporting(directory, "open"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        do("fsync_directory", directory, descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Sync the bytes of a file that another process or library wrote to the disk."""
    with reporting(path, "open"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        do("fsync", path, descriptor)
    finally:
        os.close(descriptor)


def remove_any(path: Path) -> None:
    """Remove whatever has this name, if anything has: a file, a link (not what it points to), a directory with all in it."""
    with reporting(path, "read"):
        if not os.path.lexists(path):
            return
        is_directory = path.is_dir() and not path.is_symlink()
        contents = sorted(path.iterdir()) if is_directory else []
    for entry in contents:
        remove_any(entry)
    with contextlib.suppress(FileNotFoundError):
        do("rmdir" if is_directory else "unlink", path, passing=(FileNotFoundError,))


# --- locks and files --------------------------------------------------------------------------------------------------


def hold(path: Path, opening: Callable[[], int]) -> int:
    """Open `path` with `opening` and lock it for this process. Raises OutputBusy if another process holds the lock."""
    for _ in range(_TRIES):
        try:
            descriptor = opening()
        except FileNotFoundError:
            continue  # renamed away between two calls
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputLocked(path) from None
            except OSError as error:
                # The file system has no locks. The file `run`, read again before the commit, detects another run instead.
                if error.errno not in (*_UNSUPPORTED, errno.ENOLCK):
                    raise machine_error(error, path, "lock") from error
            # The previous owner of the lock may have renamed the entry; then this lock is on a finished output.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OutputBusy(
        "the path kept changing while this run tried to lock it",
        where=path,
        hint="stop the other process that writes there",
    )


def flat(data: Buffer) -> memoryview:
    """Return the bytes of a C-contiguous buffer of any shape and format, without a copy."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


class Handle:
    """A file that is written in sequence under a temporary name. `close` syncs it and then renames it to its final name.

    As a context manager it closes, or aborts on an exception.

    Attributes:
        written: bytes written so far.
        open: False after `close` or `abort`.
    """

    def __init__(self, temporary: Path, target: Path, *, nbytes: int = 0, replace: bool = True) -> None:
        """Create the temporary file.

        Args:
            temporary: the path while the file is written.
            target: the final path.
            nbytes: the expected size, for messages.
            replace: True if `target` may exist.
        """
        self.written = 0
        self._temporary, self._target, self._nbytes, self._replace = temporary, target, nbytes, replace
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        self._descriptor = hold(temporary, lambda: int(do("open", temporary, flags, passing=(FileNotFoundError,))))
        self.open = self._temporary_exists = True
        with self._aborting():
            do("truncate", temporary, self._descriptor, 0)

    def write(self, data: Buffer) -> None:
        """Append all of `data`, any C-contiguous buffer. On failure, remove the file and raise MachineError."""
        view = flat(data)
        with self._aborting():
            while view:
                needed = max(self._nbytes - self.written, len(view))
                count: int = do("write", self._target, self._descriptor, view, needed=needed)
                self.written += count
                view = view[count:]

    def close(self) -> None:
        """Sync the data, rename the file, sync the directory. Raises OutputBusy if the name exists and may not be replaced."""
        if not self.open:
            return
        with self._aborting():
            with reporting(self._target, "write"):
                if os.fstat(self._descriptor).st_size != self.written:
                    raise OSError(errno.EIO, "the file is shorter than the bytes written to it")
            do("fsync", self._target, self._descriptor)
            self._synced()
            try:
                effect = "rename" if self._replace else "rename_new"
                do(effect, self._temporary, self._target, passing=(FileExistsError,))
            except FileExistsError:
                raise _file_there(self._target) from None
            self._temporary_exists = False
        self._release()
        sync_directory(self._target.parent)

    def _synced(self) -> None:
        """Called by `close` when the data is on the disk, before the file has its name."""

    def abort(self) -> None:
        """Remove the file."""
        # A temporary name marks the file as incomplete, so a failure here does no harm, and the earlier error is reported.
        with contextlib.suppress(MachineError):
            if self.open and self._temporary_exists:
                do("unlink", self._temporary)
        with contextlib.suppress(MachineError):
            self._release()

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        assert self.open, f"{self._target} is closed"
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _release(self) -> None:
        if self.open:
            self.open = False
            with reporting(self._target, "close"):
                os.close(self._descriptor)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _file_there(path: Path) -> OutputBusy:
    return OutputBusy("the path already exists", where=path, hint="choose another name, or move it away")


def write_file(path: Path, data: Buffer | Iterator[Buffer], *, replace: bool = False) -> None:
    """Write one file, completely and durably or not at all.

    Args:
        path: the file.
        data: a buffer, or an iterator of buffers.
        replace: True if `path` may exist.

    Raises:
        OutputBusy: `path` exists and `replace` is false, or it is a directory, or another run is writing it.
        MachineError: the file cannot be written.
    """
    path = absolute_path(path)
    with reporting(path, "read"):
        if path.is_dir() or (os.path.lexists(path) and not replace):
            raise _file_there(path)
    make_folder(path.parent)
    with Handle(partial_path(path), path, replace=replace) as handle:
        for piece in data if isinstance(data, Iterator) else (data,):
            handle.write(piece)

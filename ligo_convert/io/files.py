"""Every effect on the file system: durable files, locks, and places where an output may be made.

In: bytes and paths. Out: a file that is old or new, never half, whatever stops the run. All effects pass through the
table `EFFECTS`, so a test can make any one of them fail, or end the process there.

The protocol: a file is written under a temporary name, synced, renamed, and its directory synced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
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


# --- the seam ---------------------------------------------------------------------------------------------------------


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
        # Some network and FUSE file systems have no sync of a directory to offer; any other failure is one.
        if error.errno not in _UNSUPPORTED:
            raise


def _exclusive_rename() -> Callable[[bytes, bytes], int] | None:
    """The C library's rename that never replaces; returns 0, or sets the ctypes errno."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        here, no_replace = -100, 1  # AT_FDCWD, RENAME_NOREPLACE
        return lambda old, new: int(library.renameat2(here, old, here, new, no_replace))
    if hasattr(library, "renamex_np"):
        exclusive = 4  # RENAME_EXCL
        return lambda old, new: int(library.renamex_np(old, new, exclusive))
    return None


def _rename_new(path: Path, target: Path) -> None:
    """Rename `path` to `target`; FileExistsError where `target` is there, even as an empty directory."""
    call = _exclusive_rename()
    if call is not None:
        if call(os.fsencode(path), os.fsencode(target)) == 0:
            return
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number), str(path), None, str(target))
    # Not atomic against strangers, only against other runs of this program.
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path), None, str(target))
        path.rename(target)
    finally:
        os.close(descriptor)


# Each takes the path it is about first. Modes are left to the umask.
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
    "mkdir": "make this directory",
    "open": "open for writing",
    "write": "write",
    "truncate": "truncate",
    "fsync": "bring to the disk",
    "fsync_directory": "bring to the disk",
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
    """Do one of `EFFECTS` on `path`: an OSError comes out as MachineError, but for those of `passing`.

    `needed`: bytes, for the message of a full disk.
    """
    try:
        return EFFECTS[effect](path, *arguments)
    except passing:
        raise
    except OSError as error:
        raise machine_error(error, path, _VERBS[effect], needed=needed) from error


# --- what went wrong --------------------------------------------------------------------------------------------------

_ROOM = "free some room, then run the same command again"

_PLACE = "choose a place that this user may write to"

_REASONS = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EACCES: ("permission denied", _PLACE),
    errno.EPERM: ("permission denied", _PLACE),
    errno.EROFS: ("the file system is read-only", _PLACE),
    errno.EFBIG: (
        "the file would be larger than the file system or the limit of this process (ulimit -f) allows",
        "raise the limit, or lower output.max_shard_size",
    ),
    errno.EIO: (
        "input/output error",
        "the disk or its connection fails, and nothing was tried twice: read the system's log before another run",
    ),
}


def machine_error(error: OSError, path: Path, verb: str, *, needed: int | None = None) -> MachineError:
    """The MachineError for `error` met when trying to `verb` at `path`; `needed` is in bytes, where known."""
    number = error.errno or 0
    reason, hint = _REASONS.get(number, (os.strerror(number) if number else str(error), ""))
    expected = found = None
    if number in (errno.ENOSPC, errno.EDQUOT):
        expected = None if needed is None else f"room for {needed:,} bytes more"
        with contextlib.suppress(OSError):  # the free space is an extra; the first error is the one to tell
            found = f"{_free(path):,} bytes free"
    return MachineError(f"cannot {verb}: {reason}", where=path, expected=expected, found=found, hint=hint)


@contextlib.contextmanager
def reporting(path: Path, verb: str) -> Iterator[None]:
    """Turn an OSError of the block, one that only reads, into a MachineError about `path`."""
    try:
        yield
    except OSError as error:
        raise machine_error(error, path, verb) from error


def _nearest(path: Path) -> Path:
    """The nearest of `path` and its parents that exists."""
    return next(directory for directory in (path, *path.parents) if directory.exists())


def _free(path: Path) -> int:
    room = os.statvfs(_nearest(path))
    return room.f_bavail * room.f_frsize


def check_room(directory: Path, nbytes: int) -> None:
    """Raise MachineError if the file system of `directory`, which need not exist yet, has fewer than `nbytes` free."""
    with reporting(directory, "find out the free space"):
        free = _free(Path(os.path.realpath(directory)))
    if free < nbytes:
        raise MachineError(
            "not enough room on the disk",
            where=directory,
            expected=f"{nbytes:,} bytes free",
            found=f"{free:,} bytes free",
            hint=_ROOM,
        )


# --- places -----------------------------------------------------------------------------------------------------------


def absolute_path(path: Path) -> Path:
    """`path` with its parents resolved and its own name kept, link or not."""
    if "\0" in str(path):
        raise RecipeError("a path cannot hold a NUL character", where=path)
    with reporting(path, "find the working directory"):
        if path.name in ("", ".."):
            return Path(os.path.realpath(path))
        return Path(os.path.realpath(path.parent)) / path.name


def output_path(out: Path) -> Path:
    """The absolute path of an output directory.

    Raises:
        RecipeError: it is the root, the working directory, or a directory that holds the working directory.
    """
    absolute, here = absolute_path(out), Path.cwd()
    target = Path(os.path.realpath(absolute))
    if target in (here, *here.parents):
        name = "the root of the file system" if target == Path(target.anchor) else "in use as the working directory"
        if target not in (here, Path(target.anchor)):
            name = "a directory that holds the working directory"
        raise RecipeError(f"the output directory is {name}", where=out, hint="name a new directory inside it")
    return absolute


def partial_path(target: Path) -> Path:
    """Where `target` is made until it is whole."""
    return target.with_name(f".{target.name}.ligo-partial")


def refuse_taken(out: Path) -> None:
    """Raise OutputBusy unless `out` is absent or an empty directory."""
    with reporting(out, "look"):
        try:
            mode = out.lstat().st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            if out.is_mount():
                raise MachineError(
                    "the output directory is a mount point and cannot be put in place in one step",
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
    """See that the directory `out` could be made, by trying to make one where it would be; leaves nothing behind.

    Raises:
        RecipeError: `out` is a place no output may take.
        OutputBusy: something is there.
        MachineError: nothing can be created there.
    """
    out = output_path(out)
    refuse_taken(out)
    with reporting(out, "look"):
        probe = _nearest(out.parent) / f".{secrets.token_hex(8)}.ligo-partial"
    # Asking for permissions is not enough: they say nothing about read-only mounts, nor about root.
    do("mkdir", probe)
    do("rmdir", probe)


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, durably."""
    with reporting(folder, "look"):
        missing = [directory for directory in (folder, *folder.parents) if not directory.is_dir()]
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another run may have made it since
            do("mkdir", directory, passing=(FileExistsError,))
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Bring the names in `directory` to the disk."""
    with reporting(directory, "open"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        do("fsync_directory", directory, descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Bring the bytes of a file that someone else wrote to the disk."""
    with reporting(path, "open"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        do("fsync", path, descriptor)
    finally:
        os.close(descriptor)


# --- locks and files --------------------------------------------------------------------------------------------------


def hold(path: Path, opening: Callable[[], int]) -> int:
    """A descriptor of `path`, opened by `opening` and locked for this process alone; OutputBusy if another has it."""
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
                # No locks on this file system: the run's own mark, read again before the commit, has to do.
                if error.errno not in (*_UNSUPPORTED, errno.ENOLCK):
                    raise machine_error(error, path, "lock") from error
            # Whoever had the lock may have renamed the entry meanwhile; then the lock is on something finished.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OutputBusy("it kept changing while this run tried to take it", where=path, hint="see who else writes there")


def flat(data: Buffer) -> memoryview:
    """The bytes of a C-contiguous buffer of any shape and format, not copied."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


class Handle:
    """A file written in sequence under a temporary name; `close` makes it whole, durable and visible, in this order.

    As a context manager it closes, or aborts on an exception. Attributes: `written`, in bytes so far; `open`.
    """

    def __init__(self, temporary: Path, target: Path, *, nbytes: int = 0, replace: bool = True) -> None:
        """`nbytes` is the size to come, for messages; `replace` allows that `target` exists."""
        self.written = 0
        self._temporary, self._target, self._nbytes, self._replace = temporary, target, nbytes, replace
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        self._descriptor = hold(temporary, lambda: int(do("open", temporary, flags, passing=(FileNotFoundError,))))
        self.open = self._temporary_there = True
        with self._aborting():
            do("truncate", temporary, self._descriptor, 0)

    def write(self, data: Buffer) -> None:
        """Append all of `data`, any C-contiguous buffer. MachineError, and the file is gone, where that fails."""
        view = flat(data)
        with self._aborting():
            while view:
                needed = max(self._nbytes - self.written, len(view))
                count: int = do("write", self._target, self._descriptor, view, needed=needed)
                self.written += count
                view = view[count:]

    def close(self) -> None:
        """Sync the data, give the file its name, sync the directory. OutputBusy if the name must be new and is not."""
        if not self.open:
            return
        with self._aborting():
            with reporting(self._target, "write"):
                if os.fstat(self._descriptor).st_size != self.written:
                    raise OSError(errno.EIO, "bytes that were accepted are not in the file")
            do("fsync", self._target, self._descriptor)
            try:
                effect = "rename" if self._replace else "rename_new"
                do(effect, self._temporary, self._target, passing=(FileExistsError,))
            except FileExistsError:
                raise _file_there(self._target) from None
            self._temporary_there = False
        self._release()
        sync_directory(self._target.parent)

    def abort(self) -> None:
        """Give up the file."""
        # The temporary name says that the file is not whole, so that failing here harms nothing; and there is an
        # earlier error to tell.
        with contextlib.suppress(MachineError):
            if self.open and self._temporary_there:
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
    return OutputBusy("there is something already", where=path, hint="choose another name, or move it away")


def write_file(path: Path, data: Buffer | Iterator[Buffer], *, replace: bool = False) -> None:
    """Write one file, whole and durably or not at all; `data` is a buffer, or an iterator of them.

    Raises:
        OutputBusy: `path` exists and `replace` is false, or it is a directory, or another run is writing it.
        MachineError: the machine refuses.
    """
    path = absolute_path(path)
    with reporting(path, "look"):
        if path.is_dir() or (os.path.lexists(path) and not replace):
            raise _file_there(path)
    make_folder(path.parent)
    with Handle(partial_path(path), path, replace=replace) as handle:
        for piece in data if isinstance(data, Iterator) else (data,):
            handle.write(piece)

"""Every effect on the file system: durable files, a staged output directory, its lock, its one atomic commit.

In: bytes and relative names. Out: an output directory that is either absent or complete, whatever stops the run.
All effects pass through the table `EFFECTS`, so a test can make any one of them fail, or end the process there.

The protocol: a file is written under a temporary name, synced, renamed, and its directory synced. A directory is
staged as `.NAME.ligo-partial` beside NAME, locked through its own descriptor (the kernel frees that lock whenever the
process ends, and it follows the rename), and renamed to NAME once it is whole. What is staged survives a stop, for the
next run.
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
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ligo_convert.errors import LigoError, MachineError, OutputBusy, RecipeError

if TYPE_CHECKING:
    from typing_extensions import Buffer

WORK = ".work"
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
    "unlink": "remove",
    "rmdir": "remove",
}


def _do(
    effect: str,
    path: Path,
    *arguments: object,
    needed: int | None = None,
    passing: tuple[type[OSError], ...] = (),
) -> Any:
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


def _absolute(path: Path) -> Path:
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
    absolute, here = _absolute(out), Path.cwd()
    target = Path(os.path.realpath(absolute))
    if target in (here, *here.parents):
        name = "the root of the file system" if target == Path(target.anchor) else "in use as the working directory"
        if target not in (here, Path(target.anchor)):
            name = "a directory that holds the working directory"
        raise RecipeError(f"the output directory is {name}", where=out, hint="name a new directory inside it")
    return absolute


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.ligo-partial")


def _aside(target: Path) -> Path:
    """Where the work directory waits while its staging directory is renamed."""
    return target.with_name(f".{target.name}.ligo-partial.work")


def _refuse_taken(out: Path) -> None:
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
    _refuse_taken(out)
    with reporting(out, "look"):
        probe = _nearest(out.parent) / f".{secrets.token_hex(8)}.ligo-partial"
    # Asking for permissions is not enough: they say nothing about read-only mounts, nor about root.
    _do("mkdir", probe)
    _do("rmdir", probe)


def _make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, durably."""
    with reporting(folder, "look"):
        missing = [directory for directory in (folder, *folder.parents) if not directory.is_dir()]
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another run may have made it since
            _do("mkdir", directory, passing=(FileExistsError,))
        _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    with reporting(directory, "open"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _do("fsync_directory", directory, descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with reporting(path, "open"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        _do("fsync", path, descriptor)
    finally:
        os.close(descriptor)


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
                _do("rmdir" if is_directory else "unlink", path, passing=(FileNotFoundError,))
    with contextlib.suppress(FileNotFoundError):
        _do("rmdir", directory, passing=(FileNotFoundError,))


# --- locks and files --------------------------------------------------------------------------------------------------


def _hold(path: Path, opening: Callable[[], int]) -> int:
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
                raise OutputBusy(
                    "another run is writing here", where=path, hint="wait for it, or choose another output"
                ) from None
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
        self._descriptor = _hold(temporary, lambda: int(_do("open", temporary, flags, passing=(FileNotFoundError,))))
        self.open = self._temporary_there = True
        with self._aborting():
            _do("truncate", temporary, self._descriptor, 0)

    def write(self, data: Buffer) -> None:
        """Append all of `data`, any C-contiguous buffer. MachineError, and the file is gone, where that fails."""
        view = flat(data)
        with self._aborting():
            while view:
                needed = max(self._nbytes - self.written, len(view))
                count: int = _do("write", self._target, self._descriptor, view, needed=needed)
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
            _do("fsync", self._target, self._descriptor)
            try:
                effect = "rename" if self._replace else "rename_new"
                _do(effect, self._temporary, self._target, passing=(FileExistsError,))
            except FileExistsError:
                raise _file_there(self._target) from None
            self._temporary_there = False
        self._release()
        _sync_directory(self._target.parent)

    def abort(self) -> None:
        """Give up the file."""
        # The temporary name says that the file is not whole, so that failing here harms nothing; and there is an
        # earlier error to tell.
        with contextlib.suppress(MachineError):
            if self.open and self._temporary_there:
                _do("unlink", self._temporary)
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
    path = _absolute(path)
    with reporting(path, "look"):
        if path.is_dir() or (os.path.lexists(path) and not replace):
            raise _file_there(path)
    _make_folder(path.parent)
    with Handle(_partial(path), path, replace=replace) as handle:
        for piece in data if isinstance(data, Iterator) else (data,):
            handle.write(piece)


# --- the staged directory ---------------------------------------------------------------------------------------------


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
        self.out, self.path, self.work = out, _partial(out), _partial(out) / WORK
        self._descriptor: int | None = descriptor
        self._handles: list[Handle] = []
        self._run = secrets.token_hex(16)
        self.resumed = self._find_earlier_work(key)
        _make_folder(self.work / "new")
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
        _make_folder(out.parent)
        path = _partial(out)

        def opening() -> int:
            _refuse_taken(out)
            with contextlib.suppress(FileExistsError):
                _do("mkdir", path, passing=(FileExistsError,))
            try:
                return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):  # a file, or a link
                    raise _not_ours(path) from None
                raise machine_error(error, path, "open") from error

        descriptor = _hold(path, opening)
        try:
            _refuse_taken(out)
            return cls(out, descriptor, key)
        except BaseException:
            with contextlib.suppress(MachineError):  # nothing stays where nothing was begun
                _do("rmdir", path)
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
                _do("rename", aside, self.work)
                _sync_directory(self.path)
                _sync_directory(self.out.parent)
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
            _make_folder(target.parent)
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
            _do("unlink", target, passing=(FileNotFoundError,))
            _sync_directory(target.parent)

    def append_line(self, name: str, line: str) -> None:
        """Append one line, durably. A torn line that an earlier run left at the end is cut off first."""
        assert "\n" not in line, "a line holds no line break"
        target = self._target(name)
        _make_folder(target.parent)
        new = not target.exists()
        descriptor: int = _do("open", target, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW)
        try:
            whole = _whole_lines(target)
            if os.fstat(descriptor).st_size != len(whole):
                _do("truncate", target, descriptor, len(whole))
            view = memoryview(f"{line}\n".encode())
            while view:
                count: int = _do("write", target, descriptor, view, needed=len(view))
                view = view[count:]
            _do("fsync", target, descriptor)
        finally:
            os.close(descriptor)
        if new:
            _sync_directory(target.parent)

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
                _sync_directory(path)
            else:  # an earlier run, or a library, may have written it
                _sync_file(path)
        # Aside, not away: a staging directory without its key, left by a stop right here, would be a stranger's.
        _do("rename", self.work, _aside(self.out))
        _sync_directory(self.path)
        _sync_directory(self.out.parent)
        _refuse_taken(self.out)
        with contextlib.suppress(FileNotFoundError):
            _do("rmdir", self.out, passing=(FileNotFoundError,))
        try:
            _do("rename_new", self.path, self.out, passing=(FileExistsError,))
        except FileExistsError:
            _refuse_taken(self.out)
            raise OutputBusy("the output directory appeared meanwhile", where=self.out, hint="remove it") from None
        _sync_directory(self.out.parent)
        clear_leftovers(self.out)

    def discard(self) -> None:
        """Remove everything that is staged, and the staging directory: there will be no output. The lock is freed."""
        for path, is_directory in _tree(self.path, without=self.work):
            if path != self.path:
                _do("rmdir" if is_directory else "unlink", path)
        _remove_work(self.work)
        _do("rmdir", self.path)
        _sync_directory(self.out.parent)
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
    out = _absolute(out)
    aside = _aside(out)
    if os.path.lexists(aside) and out.is_dir() and not os.path.lexists(_partial(out)):
        _refuse_strange_work(aside)
        _remove_work(aside)


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

"""Share results among conversions on one machine or on one shared file system.

Input: a folder. Output: entries in it, named by what they hold. The process that needs an entry first computes it while the others wait.
The cache is optional: with no cache, an empty cache or a read-only cache, conversions write the same bytes. Two processes that compute
the same entry waste time and do no harm: the first to finish is kept.

An entry states its kind, its key and the SHA-256 of its files (`ENTRY`). All are compared when the entry is used. An entry that is damaged,
or that holds the files of another key, is discarded with a warning and computed again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from ligo_convert.errors import LigoError, OutputBusy, VerificationError
from ligo_convert.io.files import do, make_folder, remove_any, reporting, sync_directory, write_file
from ligo_convert.io.leases import STALE_SECONDS, Watch, heartbeat, read_marker
from ligo_convert.io.sealed import read_sealed, seal
from ligo_convert.progress import Progress

POLL_SECONDS = 1.0

# The file of an entry that states its kind, key and digests.
ENTRY = "entry.json"

FORMAT = "ligo-cache-entry/1"

_BLOCK = 1 << 20


class CacheEntry:
    """One entry of a cache, from `ResultCache.lock_entry`.

    Attributes:
        path: its directory.
    """

    def __init__(self, cache: ResultCache, kind: str, key: str) -> None:
        self.path, self._cache, self._kind, self._key = cache.folder / f"{kind}-{key}", cache, kind, key

    def digests(self) -> dict[str, str] | None:
        """Return the SHA-256 of each file by POSIX path, as the entry states them; None if there is no entry.

        An entry that is damaged, or another one's, is discarded with a warning.
        """
        if not os.path.lexists(self.path):
            return None
        try:
            return self._stated()
        except VerificationError as error:
            self.discard(error.what)
            return None

    def _stated(self) -> dict[str, str]:
        if self.path.is_symlink() or not self.path.is_dir():
            raise VerificationError("not a directory", where=self.path)
        stated = read_sealed(FORMAT, self.path / ENTRY)
        match stated:
            case None:
                raise VerificationError(f"{ENTRY} is missing", where=self.path)
            case {"kind": self._kind, "key": self._key, "files": dict(files)}:
                pass
            case _:
                raise VerificationError("the entry of another kind or key", where=self.path)
        for name, digest in files.items():
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or "\0" in name or not isinstance(digest, str):
                raise VerificationError("a name that leaves the entry", where=self.path)
        return files

    def restore(self, place: Callable[[str, Iterator[bytes], str], object]) -> bool:
        """Copy the files of the entry out of the cache. Returns False if there is no entry, or if it is damaged; it is then discarded.

        Args:
            place: receives name, bytes and SHA-256 of each file, in order. It raises VerificationError, and keeps nothing, if the bytes
                have another digest.
        """
        digests = self.digests()
        if digests is None:
            return False
        try:
            for name, digest in digests.items():
                place(name, self._blocks(name), digest)
        except VerificationError as error:
            self.discard(f"{error.where}: {error.what}")
            return False
        return True

    def read(self, name: str) -> bytes | None:
        """Return the bytes of one small file. None if there is no entry, or if it is damaged; it is then discarded."""
        data: list[bytes] = []
        digests = self.digests()
        if digests is None:
            return None
        try:
            data.extend(self._blocks(name))
            if hashlib.sha256(b"".join(data)).hexdigest() != digests.get(name):
                raise VerificationError("these are not the expected bytes", where=name)
        except VerificationError as error:
            self.discard(f"{name}: {error.what}")
            return None
        return b"".join(data)

    def _blocks(self, name: str) -> Iterator[bytes]:
        if Path(os.path.realpath(self.path / name)) != Path(os.path.realpath(self.path)) / name:
            raise VerificationError("behind a symbolic link", where=name)
        yield from _blocks_of_regular(self.path / name)

    def store(self, files: Mapping[str, Path | bytes]) -> None:
        """Fill the entry atomically.

        Args:
            files: POSIX path inside the entry -> its bytes, or a file to copy.
        """
        self._cache.fill(self.path, self._kind, self._key, files)

    def discard(self, why: str) -> None:
        """Remove the entry, and say so."""
        self._cache.discard(self.path, why)


class ResultCache:
    """A folder of results by kind and key.

    Args:
        folder: where the results are stored.
        progress: reports waiting, damaged entries, and results that could not be stored.
    """

    def __init__(self, folder: Path, progress: Progress | None = None) -> None:
        self.folder, self._progress, self._warned = folder, progress or Progress(), False

    def with_progress(self, progress: Progress) -> ResultCache:
        """Return a view of the same cache that reports to `progress`."""
        return ResultCache(self.folder, progress)

    @contextlib.contextmanager
    def lock_entry(self, kind: str, key: str) -> Iterator[CacheEntry]:
        """Yield an entry. If `restore` returns False, the caller computes the entry and calls `store`.

        While the block runs, other processes wait for the entry, unless they give up on this one: see `_wait`.

        Args:
            kind: what the entry is, for example `fit`.
            key: identifies everything that the result depends on.
        """
        entry = CacheEntry(self, kind, key)
        with contextlib.ExitStack() as stack:
            if entry.digests() is None:
                with self._best_effort():
                    lock = self.folder / f"{entry.path.name}.lock"
                    make_folder(self.folder)
                    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                    descriptor: int = do("open", lock, flags)
                    stack.callback(os.close, descriptor)
                    if self._wait(kind, entry.path, lock, descriptor):
                        for unfinished in self.folder.glob(_temporary_name(entry.path, "*")):
                            remove_any(unfinished)
                    # Also without the lock: of many that gave up waiting, one computes the entry and the others wait for its heartbeat.
                    stack.enter_context(heartbeat(lock))
            yield entry

    def fill(self, entry: Path, kind: str, key: str, files: Mapping[str, Path | bytes]) -> None:
        """See `CacheEntry.store`."""
        temporary = entry.with_name(_temporary_name(entry, secrets.token_hex(8)))
        with self._best_effort():
            try:
                do("mkdir", temporary)
                digests: dict[str, str] = {}
                for name, content in files.items():
                    target = temporary / name
                    make_folder(target.parent)
                    sha256 = hashlib.sha256()
                    write_file(
                        target, _hashed(iter((content,)) if isinstance(content, bytes) else blocks_of(content), sha256)
                    )
                    digests[name] = sha256.hexdigest()
                write_file(temporary / ENTRY, seal(FORMAT, {"kind": kind, "key": key, "files": digests}))
                with contextlib.suppress(FileExistsError):  # another process was faster
                    do("rename_new", temporary, entry, passing=(FileExistsError,))
                sync_directory(self.folder)
            finally:
                remove_any(temporary)

    def discard(self, entry: Path, why: str) -> None:
        """See `CacheEntry.discard`. An entry that cannot be removed is computed again each time."""
        self._progress.warn(f"the shared cache: {entry.name}: {why}; the entry is discarded, and computed again")
        with self._best_effort():
            remove_any(entry)

    def _wait(self, kind: str, entry: Path, lock: Path, descriptor: int) -> bool:
        """Wait for the lock of an entry.

        Returns True with the lock. Returns False if the entry appeared, if the file system has no locks, or if the holder showed no
        heartbeat for `STALE_SECONDS`: a lock on a network file system may outlive the machine that held it.
        """
        state = _try_lock(descriptor)
        if state != "busy":
            return state == "acquired"
        watch = Watch()
        with self._progress.task(f"waiting for another process to compute the same {kind}"):
            while not entry.is_dir():
                state = _try_lock(descriptor)
                if state != "busy":
                    return state == "acquired"
                if watch.idle(lock.name, read_marker(lock)) > STALE_SECONDS:
                    self._progress.say(f"the process computing this {kind} stopped responding; computing it here")
                    return False
                time.sleep(POLL_SECONDS)
        return False

    @contextlib.contextmanager
    def _best_effort(self) -> Iterator[None]:
        """Turn an error of the block into one warning per cache: a full disk stays full, and the result is not lost."""
        try:
            yield
        except OutputBusy:
            pass  # another process is storing the same entry
        except LigoError as error:
            if not self._warned:
                self._warned = True
                self._progress.warn(
                    f"cannot write to the shared cache ({error.what}); other entries will recompute these results"
                )


def _try_lock(descriptor: int) -> Literal["acquired", "busy", "unsupported"]:
    """Try to lock a file. `unsupported`: the file system has no working locks; then two processes may compute one entry."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return "busy" if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK) else "unsupported"
    return "acquired"


def _temporary_name(entry: Path, token: str) -> str:
    """Name an entry that is being written. The next holder of the lock removes what a killed process left under such a name."""
    return f".{entry.name}.{token}.new"


def _hashed(blocks: Iterator[bytes], sha256: hashlib._Hash) -> Iterator[bytes]:
    """Yield the blocks, and add each to a digest."""
    for block in blocks:
        sha256.update(block)
        yield block


def _blocks_of_regular(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file of an entry. Raises VerificationError if it is no regular file, or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise VerificationError(f"cannot be read ({error.strerror})", where=path.name) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise VerificationError("not a regular file", where=path.name)
    with os.fdopen(descriptor, "rb") as file:
        try:
            while block := file.read(_BLOCK):
                yield block
        except OSError as error:
            raise VerificationError(f"cannot be read ({error.strerror})", where=path.name) from None


def files_in(entry: Path) -> dict[str, Path]:
    """Return the files below a directory by POSIX path."""
    with reporting(entry, "list"):
        return {path.relative_to(entry).as_posix(): path for path in sorted(entry.rglob("*")) if path.is_file()}


def blocks_of(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks of 1 MiB."""
    with reporting(path, "read"), path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block

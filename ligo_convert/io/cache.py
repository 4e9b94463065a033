"""Share results among conversions on one machine or on one shared file system.

Input: a folder. Output: entries in it, named by what they hold. The process that needs an entry first computes it while the others wait.
The cache is optional: with no cache, an empty cache or a read-only cache, conversions write the same bytes. Two processes that compute
the same entry waste time and do no harm: the first to finish is kept.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ligo_convert.errors import LigoError, OutputBusy
from ligo_convert.io.files import do, make_folder, reporting, sync_directory, write_file
from ligo_convert.io.leases import STALE_SECONDS, Watch, heartbeat, read_marker
from ligo_convert.progress import Progress

POLL_SECONDS = 1.0

_BLOCK = 1 << 20


class ResultCache:
    """A folder of results by kind and key.

    Args:
        folder: where the results are stored.
        progress: reports waiting, and results that could not be stored.
    """

    def __init__(self, folder: Path, progress: Progress | None = None) -> None:
        self.folder, self._progress, self._warned = folder, progress or Progress(), False

    def with_progress(self, progress: Progress) -> ResultCache:
        """Return a view of the same cache that reports to `progress`."""
        return ResultCache(self.folder, progress)

    @contextlib.contextmanager
    def lock_entry(self, kind: str, key: str) -> Iterator[Path]:
        """Yield the directory of an entry. If it does not exist, the caller computes the entry and calls `store`.

        While the block runs, other processes wait for the entry, unless they give up on this one: see `_wait`.

        Args:
            kind: what the entry is, for example `fit`.
            key: identifies everything that the result depends on.
        """
        entry = self.folder / f"{kind}-{key}"
        with contextlib.ExitStack() as stack:
            if not entry.is_dir():
                with self._best_effort():
                    lock = self.folder / f"{entry.name}.lock"
                    make_folder(self.folder)
                    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                    descriptor: int = do("open", lock, flags)
                    stack.callback(os.close, descriptor)
                    if self._wait(kind, entry, lock, descriptor):
                        for unfinished in self.folder.glob(_temporary_name(entry, "*")):
                            _remove_tree(unfinished)
                    # Also without the lock: of many that gave up waiting, one computes the entry and the others wait for its heartbeat.
                    stack.enter_context(heartbeat(lock))
            yield entry

    def store(self, entry: Path, files: Mapping[str, Path | bytes]) -> None:
        """Fill an entry atomically.

        Args:
            entry: the directory that `lock_entry` yielded.
            files: POSIX path inside the entry -> its bytes, or a file to copy.
        """
        temporary = entry.with_name(_temporary_name(entry, secrets.token_hex(8)))
        with self._best_effort():
            try:
                do("mkdir", temporary)
                for name, content in files.items():
                    target = temporary / name
                    make_folder(target.parent)
                    write_file(target, iter((content,)) if isinstance(content, bytes) else blocks_of(content))
                with contextlib.suppress(FileExistsError):  # another process was faster
                    do("rename_new", temporary, entry, passing=(FileExistsError,))
                sync_directory(self.folder)
            finally:
                _remove_tree(temporary)

    def get_json(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return a small result stored by `set_json`, or None if it is missing or unreadable."""
        try:
            value = json.loads((self.folder / f"{kind}-{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def set_json(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        """Store a small result without locking: it is cheap to compute twice."""
        with self._best_effort():
            make_folder(self.folder)
            write_file(self.folder / f"{kind}-{key}.json", iter((json.dumps(value).encode(),)), replace=True)

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


def _remove_tree(folder: Path) -> None:
    """Remove a folder and everything in it, if it exists."""
    with reporting(folder, "list"):
        contents = sorted(folder.rglob("*"), reverse=True)
    for path in (*contents, folder):
        with contextlib.suppress(FileNotFoundError):
            do("rmdir" if path.is_dir() else "unlink", path, passing=(FileNotFoundError,))


def files_in(entry: Path) -> dict[str, Path]:
    """Return the files of a stored entry by POSIX path."""
    with reporting(entry, "list"):
        return {path.relative_to(entry).as_posix(): path for path in sorted(entry.rglob("*")) if path.is_file()}


def blocks_of(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks of 1 MiB."""
    with reporting(path, "read"), path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block

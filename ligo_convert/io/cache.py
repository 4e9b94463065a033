"""What many conversions on one machine, or on one shared file system, have in common is made once and found by the others.

What comes in: a folder. What goes out: places in it by what they hold, each filled by whoever comes first while the others wait, as long as
something is seen of whoever fills it. Nothing here is needed for a result: without a shelf, with an empty one, or with one that cannot be
written, the same bytes come out. Two who make the same thing cost time: the first to be done is kept.
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
    """A folder of results by kind and key. The key says all that a result depends on.

    `progress` is told who is waited for, and what could not be kept.
    """

    def __init__(self, folder: Path, progress: Progress | None = None) -> None:
        self.folder, self._progress, self._warned = folder, progress or Progress(), False

    def telling(self, progress: Progress) -> ResultCache:
        """The same shelf, of which `progress` is told."""
        return ResultCache(self.folder, progress)

    @contextlib.contextmanager
    def one(self, kind: str, key: str) -> Iterator[Path]:
        """The place of a result. Where it is not there, it is for the caller to make, and to `put`; no other makes it meanwhile.

        No other that can be seen, that is: see `_wait`.
        """
        place = self.folder / f"{kind}-{key}"
        with contextlib.ExitStack() as stack:
            if not place.is_dir():
                with self._at_best():
                    lock = self.folder / f"{place.name}.lock"
                    make_folder(self.folder)
                    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                    descriptor: int = do("open", lock, flags)
                    stack.callback(os.close, descriptor)
                    if self._wait(kind, place, lock, descriptor):
                        for left in self.folder.glob(_new_of(place, "*")):
                            _clear(left)
                    # From now on for whoever waits, with or without the lock: so that of many one goes on.
                    stack.enter_context(heartbeat(lock))
            yield place

    def put(self, place: Path, files: Mapping[str, Path | bytes]) -> None:
        """Fill a place, whole or not at all: name (a POSIX path) -> bytes, or the file to copy."""
        new = place.with_name(_new_of(place, secrets.token_hex(8)))
        with self._at_best():
            try:
                do("mkdir", new)
                for name, content in files.items():
                    target = new / name
                    make_folder(target.parent)
                    write_file(target, iter((content,)) if isinstance(content, bytes) else blocks_of(content))
                with contextlib.suppress(FileExistsError):  # made by another meanwhile
                    do("rename_new", new, place, passing=(FileExistsError,))
                sync_directory(self.folder)
            finally:
                _clear(new)

    def recall(self, kind: str, key: str) -> dict[str, Any] | None:
        """A small result that anybody may make: plain data; None where there is none, or none that can be read."""
        try:
            found = json.loads((self.folder / f"{kind}-{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def note(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        """Keep a small result."""
        with self._at_best():
            make_folder(self.folder)
            write_file(self.folder / f"{kind}-{key}.json", iter((json.dumps(value).encode(),)), replace=True)

    def _wait(self, kind: str, place: Path, lock: Path, descriptor: int) -> bool:
        """Wait for the lock: True with it. False where it is no more needed, cannot be had, or its holder was not seen for a minute.

        The system frees the lock of a process that ends; but a lock on a network file system may outlive the machine that had it.
        """
        state = _try(descriptor)
        if state != "another's":
            return state == "ours"
        watch = Watch()
        with self._progress.task(f"waiting for another to make the same {kind}"):
            while not place.is_dir():
                state = _try(descriptor)
                if state != "another's":
                    return state == "ours"
                if watch.idle(lock.name, read_marker(lock)) > STALE_SECONDS:
                    self._progress.say(f"nothing was seen for a while of who makes the same {kind}: it is made here")
                    return False
                time.sleep(POLL_SECONDS)
        return False

    @contextlib.contextmanager
    def _at_best(self) -> Iterator[None]:
        """What fails here is told and harms nothing. Told once: a disk that is full stays so."""
        try:
            yield
        except OutputBusy:
            pass  # another keeps the same just now
        except LigoError as error:
            if not self._warned:
                self._warned = True
                self._progress.warn(
                    f"what others could use is not kept for them, and is made again where it is needed: {error.what}"
                )


def _try(descriptor: int) -> Literal["ours", "another's", "none"]:
    """Ask for a lock. `none`: there are no locks here, or none that work; then two may make the same."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return "another's" if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK) else "none"
    return "ours"


def _new_of(place: Path, token: str) -> str:
    """What a place is called until it is whole. What a killed process leaves of it, the next that has the lock clears away."""
    return f".{place.name}.{token}.new"


def _clear(folder: Path) -> None:
    """Remove a folder and all that is in it, if it is there."""
    with reporting(folder, "list"):
        inside = sorted(folder.rglob("*"), reverse=True)
    for path in (*inside, folder):
        with contextlib.suppress(FileNotFoundError):
            do("rmdir" if path.is_dir() else "unlink", path, passing=(FileNotFoundError,))


def files_in(place: Path) -> dict[str, Path]:
    """The files of a place that was filled, by name."""
    with reporting(place, "list"):
        return {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}


def blocks_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file, some at a time."""
    with reporting(path, "read"), path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block

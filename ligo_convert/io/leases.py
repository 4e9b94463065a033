"""Leases on work that any number of processes, on any number of machines, share through a folder.

Input: a folder and names of work. Output: a lease that no other process holds, or the record of finished work. A lease is a hard link to a
file that its holder touches every few seconds (the heartbeat). It is taken over when its holder is dead, or has shown no heartbeat for
`STALE_SECONDS` by the observer's own clock.

No file system offers "remove this name if it still is that file". So only the holder of an eviction lock removes a lease. That lock is a
hard link too, named for the content of the lease. Two processes that both find a lease stale therefore cannot remove the lease that one
of them, or a third process, has acquired in its place. One case remains: a process that is stopped for a minute while it holds an
eviction lock loses that lock. If it then continues, it sees that the lease it moved away is a new one and puts it back; if a further
process has acquired the lease in that moment, this last lease counts. A process that has lost a lease learns it from `is_held` and
`complete`, and writes no record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ligo_convert.errors import VerificationError
from ligo_convert.io.files import do, make_folder, remove_any, write_file
from ligo_convert.io.sealed import read_sealed, seal

_RECORD = "ligo-work-record/1"

# No lease, lock or heartbeat file is larger.
_MARKER_BYTES = 1 << 16


class Leases:
    """Leases and records of finished work in a shared folder.

    A context manager: while it is open a heartbeat keeps its leases alive; when it closes, it releases those it still holds.

    Args:
        folder: shared by all processes.
        warn: receives the name and one line for each record that is damaged and therefore discarded.
    """

    def __init__(self, folder: Path, *, warn: Callable[[str, str], None] = lambda name, text: None) -> None:
        self.folder, self._warn = folder, warn
        run = secrets.token_hex(8)
        self._identity = json.dumps({**process_identity(), "run": run}).encode()
        # Every lease of this process links to this file. A new link shows its holder at once, touching the file is the heartbeat of all of
        # them, and a lease that was taken over no longer links to it.
        self._own = folder / "leases" / f".{run}"
        self._held: set[str] = set()
        self._watch = Watch()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        make_folder(self.folder / "leases")
        make_folder(self.folder / "done")
        write_file(self._own, self._identity)
        self._open.callback(_remove, self._own)
        self._open.enter_context(heartbeat(self._own))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            for name in list(self._held):
                self.release(name)

    def acquire(self, name: str) -> bool:
        """Acquire the lease of a piece of work. Returns False if another process holds it."""
        if not self._take_link(self._path(name)):
            return False
        self._held.add(name)
        return True

    def release(self, name: str) -> None:
        """Release a lease. If another process holds its eviction lock, that process removes it."""
        self._held.discard(name)
        self._evict(self._path(name), self._identity)

    def is_held(self, name: str) -> bool:
        """Return True if this process still holds a lease: without a heartbeat it may have been taken over."""
        return name in self._held and _content(self._path(name)) == self._identity

    def complete(self, name: str, record: Mapping[str, Any]) -> bool:
        """Write the record of a piece of work for all processes, and release its lease.

        Returns False, and writes nothing, if the lease was lost: the new holder's record counts.
        """
        if not self.is_held(name):
            self._held.discard(name)
            return False
        path = self._record(name)
        if path.is_dir():
            remove_any(path)
        write_file(path, seal(_RECORD, {"name": name, "record": record}), replace=True)
        self.release(name)
        return True

    def clear(self, name: str) -> None:
        """Remove the record of an earlier attempt. The caller holds the lease."""
        remove_any(self._record(name))

    def read_record(self, name: str) -> dict[str, Any] | None:
        """Return the record of a piece of work; None if there is none. A damaged one, or another work's, is discarded with a warning."""
        path = self._record(name)
        try:
            match read_sealed(_RECORD, path):
                case None:
                    return None
                case {"name": str(found), "record": dict(record)} if found == name:
                    return record
            why = "the record of other work"
        except VerificationError as error:
            why = error.what
        self._warn(name, f"its record is damaged ({why}); it is discarded, and the work is looked at again")
        remove_any(path)
        return None

    def _record(self, name: str) -> Path:
        return self.folder / "done" / f"{name}.json"

    def _path(self, name: str) -> Path:
        return self.folder / "leases" / name

    def _take_link(self, path: Path) -> bool:
        """Create a lease or an eviction lock, after removing a stale one. Returns False if another process holds it."""
        if self._link(path):
            return True
        stale = self._stale(path)
        if stale is None or not self._evict(path, stale):
            return False
        self._watch.forget(path.name)
        return self._link(path)

    def _link(self, path: Path) -> bool:
        """Create a hard link. The file system refuses an existing name atomically, network file systems included."""
        if path.is_symlink() or path.is_dir():  # never a lease: nothing here makes one
            remove_any(path)
        try:
            do("link", self._own, path, passing=(FileExistsError,))
        except FileExistsError:
            # If the server's answer is lost, its client sends the request again, and finds the link that the first request made.
            return _content(path) == self._identity
        return True

    def _stale(self, path: Path) -> bytes | None:
        """Return the content of a link whose holder is gone. None if there is no link, or its holder may be alive."""
        marker = read_marker(path)
        if marker is None:
            return None
        stale = is_dead(_parsed(marker[0])) or self._watch.idle(path.name, marker) > STALE_SECONDS
        return marker[0] if stale else None

    def _evict(self, path: Path, content: bytes) -> bool:
        """Remove the link with this content and no other.

        Returns False if there is no such link, or if another process holds its eviction lock.
        """
        lock = path.with_name(f".{path.name}.{hashlib.sha256(content).hexdigest()[:16]}.evict")
        if not self._take_link(lock):
            return False
        try:
            # The previous holder of the eviction lock may have removed the link already.
            return _content(path) == content and self._move_aside(path, content)
        finally:
            if _content(lock) == self._identity:
                _remove(lock)

    def _move_aside(self, path: Path, content: bytes) -> bool:
        aside = path.with_name(f".{path.name}{self._own.name}.aside")
        with contextlib.suppress(FileNotFoundError):
            do("rename", path, aside, passing=(FileNotFoundError,))
        try:
            if _content(aside) == content:
                return True
            # The eviction lock was lost, and this is another process's new lease: put it back.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                do("link", aside, path, passing=(FileNotFoundError, FileExistsError))
            return False
        finally:
            _remove(aside)


def _content(path: Path) -> bytes | None:
    marker = read_marker(path)
    return None if marker is None else marker[0]


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        identity = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return identity if isinstance(identity, dict) else {}


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        do("unlink", path, passing=(FileNotFoundError,))


# --- who is alive -----------------------------------------------------------------------------------------------------

TOUCH_SECONDS = 5.0

STALE_SECONDS = 60.0

# The most that the time between two looks counts. A file server that hangs for minutes stops heartbeats and observers alike; the first
# observer to continue must not take the others for dead.
LOOK_SECONDS = 15.0

# The inode of a Linux machine's initial process namespace, which containers do not use (PROC_PID_INIT_INO in the kernel).
_INITIAL = 4026531836

_PROC = Path("/proc")


def process_identity(proc: Path = _PROC) -> dict[str, Any]:
    """Describe this process so that another can tell whether it is alive.

    A process number is valid in one process namespace of one boot, so both are included; a value is None if the system does not provide it.

    Args:
        proc: where the proc file system is mounted.
    """
    boot = pids = None
    with contextlib.suppress(OSError):
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip() or None
    with contextlib.suppress(OSError):
        pids = (proc / "self/ns/pid").stat().st_ino
    pid = os.getpid()
    return {"host": platform.node(), "boot": boot, "pids": pids, "pid": pid, "started": _started(pid, proc)}


def is_dead(other: Mapping[str, Any], proc: Path = _PROC) -> bool:
    """Return True if a process, described by its `process_identity`, is certainly dead. False if that cannot be known."""
    me = process_identity(proc)
    if other.get("host") != me["host"]:
        return False
    if other.get("boot") != me["boot"]:
        # The machine was rebooted, unless two machines share a name: a pod that is recreated on another machine keeps its name.
        return None not in (other.get("boot"), me["boot"]) and other.get("pids") == me["pids"] == _INITIAL
    if other.get("pids") != me["pids"]:
        return False
    if None in (me["boot"], me["pids"]) and sys.platform == "linux":
        return False  # it may be in another container; systems without /proc have no namespaces either
    pid = other.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    # The number may have been reused by a process that started later.
    recorded, current = other.get("started"), _started(pid, proc)
    return None not in (recorded, current) and recorded != current


def _started(pid: int, proc: Path) -> int | None:
    """Return when a process started, in clock ticks since boot."""
    try:
        # The program's name, in parentheses, may contain any character.
        return int((proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def read_marker(path: Path) -> tuple[bytes, int] | None:
    """Return a small file's content and modification time in nanoseconds; None if it cannot be read."""
    try:
        # A network file system asks its server when a file is opened; it may answer a plain `stat` from its cache. Opening a FIFO would
        # block, and a link may lead anywhere.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            return file.read(_MARKER_BYTES), os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


class Watch:
    """Measure how long files that are read repeatedly have not changed."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float, float]] = {}

    def idle(self, name: str, marker: object) -> float:
        """Return for how many seconds of observation, up to now, the marker of a name has stayed the same."""
        now = time.monotonic()
        before, idle, last_look = self._seen.get(name, (None, 0.0, now))
        idle = idle + min(now - last_look, LOOK_SECONDS) if marker == before else 0.0
        self._seen[name] = (marker, idle, now)
        return idle

    def forget(self, name: str) -> None:
        """Start anew for a name."""
        self._seen.pop(name, None)


@contextlib.contextmanager
def heartbeat(path: Path) -> Iterator[None]:
    """Touch a file every `TOUCH_SECONDS` during the block, to show other processes that this one is alive."""
    ended = threading.Event()

    def touch() -> None:
        while True:
            with contextlib.suppress(OSError):
                os.utime(path)
            if ended.wait(TOUCH_SECONDS):
                return

    threading.Thread(target=touch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()

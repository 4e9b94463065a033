"""Who does what, among any number of processes on any number of machines that share a folder.

What comes in: a folder and names of work. What goes out: a claim that nobody else has, or the record that somebody has finished. A claim is
a file that only one can make: a hard link to a file that its maker touches again and again. It is taken from one who is gone, or who was
watched and does so no more (`presence`).

No file system offers "remove this name if it still is that file". So a claim is removed only by the holder of the turn to remove just this
one: a link too, named for what the claim says, which one alone can make. Two who both find a claim stale cannot take away what one of them,
or a third, has made in its place. What remains: a process that is stopped for a minute in the middle of its turn loses
the turn. Should it go on, the claim that it then takes away is seen to be another, and is put back; if a further process has made a
claim in that moment, this one is the claim that counts. Whoever has lost a claim, in this way or by not being seen for too long, learns it
from `holds` and `finish`, and keeps no record.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ligo_convert.io.files import do, make_folder, write_file


class Leases:
    """Claims and finished work in a folder that is shared.

    A context manager: while it is open, what it holds is kept alive; at its end, what is still held is given back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run = secrets.token_hex(8)
        self._mine = json.dumps({**process_identity(), "run": run}).encode()
        # All claims are links to this one file: they say whose they are as soon as they are seen, and to touch it is to touch them, but
        # none that has been lost.
        self._own = folder / "claims" / f".{run}"
        self._held: set[str] = set()
        self._watch = Watch()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        make_folder(self.folder / "claims")
        make_folder(self.folder / "done")
        write_file(self._own, self._mine)
        self._open.callback(_remove, self._own)
        self._open.enter_context(heartbeat(self._own))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._open:
            for name in list(self._held):
                self.release(name)

    def take(self, name: str) -> bool:
        """Claim a piece of work; False where another has it."""
        if not self._win(self._path(name)):
            return False
        self._held.add(name)
        return True

    def release(self, name: str) -> None:
        """Give a claim back."""
        self._held.discard(name)
        # Where somebody has the turn to take it away, that one does.
        self._end(self._path(name), self._mine)

    def holds(self, name: str) -> bool:
        """Whether a claim is still ours: one that could not be touched for long may have been taken."""
        return name in self._held and _content(self._path(name)) == self._mine

    def finish(self, name: str, record: Mapping[str, Any]) -> bool:
        """Keep what came of a piece of work, for all to see, and give the claim back.

        Returns False where the claim has been lost: nothing is written then, as what counts is what its new holder finds.
        """
        if not self.holds(name):
            self._held.discard(name)
            return False
        write_file(self.folder / "done" / f"{name}.json", json.dumps(record, default=str).encode(), replace=True)
        self.release(name)
        return True

    def forget(self, name: str) -> None:
        """Take away what an earlier attempt at a piece of work, claimed now, has come to."""
        _remove(self.folder / "done" / f"{name}.json")

    def record(self, name: str) -> dict[str, Any] | None:
        """What came of a piece of work; None where nothing has yet, or nothing that can be read."""
        try:
            found = json.loads((self.folder / "done" / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _path(self, name: str) -> Path:
        return self.folder / "claims" / name

    def _win(self, path: Path) -> bool:
        """Make a link that nobody else has: a claim, or a turn. One of somebody who is gone is taken away first."""
        if self._link(path):
            return True
        stale = self._stale(path)
        if stale is None or not self._end(path, stale):
            return False
        self._watch.forget(path.name)
        return self._link(path)

    def _link(self, path: Path) -> bool:
        """In one step: a hard link is refused where the name is there, on network file systems, too."""
        try:
            do("link", self._own, path, passing=(FileExistsError,))
        except FileExistsError:
            # A server's answer that was lost on the way makes its client ask again: then what is there is ours.
            return _content(path) == self._mine
        return True

    def _stale(self, path: Path) -> bytes | None:
        """What a link says whose maker is gone. None where there is no link, or its maker may be there."""
        seen = read_marker(path)
        if seen is None:
            return None
        owner = _plain(seen[0])
        return seen[0] if is_dead(owner) or self._watch.idle(path.name, seen) > STALE_SECONDS else None

    def _end(self, path: Path, content: bytes) -> bool:
        """Take away the link that says `content`, and no other. False where it is not there, or another has the turn to do so."""
        turn = path.with_name(f".{path.name}.{hashlib.sha256(content).hexdigest()[:16]}.turn")
        if not self._win(turn):
            return False
        try:
            # Looked at again: whoever had the turn before may have done it.
            return _content(path) == content and self._set_aside(path, content)
        finally:
            if _content(turn) == self._mine:
                _remove(turn)

    def _set_aside(self, path: Path, content: bytes) -> bool:
        aside = path.with_name(f".{path.name}{self._own.name}.aside")
        with contextlib.suppress(FileNotFoundError):
            do("rename", path, aside, passing=(FileNotFoundError,))
        try:
            if _content(aside) == content:
                return True
            # Our turn was taken from us, and what was here is somebody's new claim.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                do("link", aside, path, passing=(FileNotFoundError, FileExistsError))
            return False
        finally:
            _remove(aside)


def _content(path: Path) -> bytes | None:
    seen = read_marker(path)
    return None if seen is None else seen[0]


def _plain(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        do("unlink", path, passing=(FileNotFoundError,))


TOUCH_SECONDS = 5.0

STALE_SECONDS = 60.0

# What one interval between two looks may add to what was watched. A file server that hangs for minutes stops those who touch and those
# who look alike, and whoever looks first afterwards must not take the others for gone.
LOOK_SECONDS = 15.0

# The inode of a Linux machine's own process namespace, in which no container is (PROC_PID_INIT_INO of the kernel).
_INITIAL = 4026531836

_PROC = Path("/proc")


def process_identity(proc: Path = _PROC) -> dict[str, Any]:
    """Which process this is, so that another can ask whether it lives: a process number means something in one namespace of one boot.

    None where the system does not say.
    """
    boot = pids = None
    with contextlib.suppress(OSError):
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip() or None
    with contextlib.suppress(OSError):
        pids = (proc / "self/ns/pid").stat().st_ino
    pid = os.getpid()
    return {"host": platform.node(), "boot": boot, "pids": pids, "pid": pid, "started": _started(pid, proc)}


def is_dead(other: Mapping[str, Any], proc: Path = _PROC) -> bool:
    """Whether a process that has said who it is (`process_identity`) is gone for certain. False where one cannot know."""
    me = process_identity(proc)
    if other.get("host") != me["host"]:
        return False
    if other.get("boot") != me["boot"]:
        # The machine has been started anew, unless two have one name: a pod that is made again elsewhere keeps its own.
        return None not in (other.get("boot"), me["boot"]) and other.get("pids") == me["pids"] == _INITIAL
    if other.get("pids") != me["pids"]:
        return False
    if None in (me["boot"], me["pids"]) and sys.platform == "linux":
        return False  # it may be another container; systems without /proc have no namespaces either
    pid = other.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    # A number is given again to another process, which has begun later.
    then, now = other.get("started"), _started(pid, proc)
    return None not in (then, now) and then != now


def _started(pid: int, proc: Path) -> int | None:
    """When a process began, in ticks since the machine did."""
    try:
        # The name of the program, in parentheses, may hold anything.
        return int((proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def read_marker(path: Path) -> tuple[bytes, int] | None:
    """A small file as it is now, and when it was last touched; None where it cannot be read."""
    try:
        # A network file system asks its server when a file is opened; a mere `stat` may be answered from what it remembers.
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


class Watch:
    """For how long nothing was seen to change of things that are looked at again and again."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float, float]] = {}

    def idle(self, name: str, seen: object) -> float:
        """Seconds of watching, up to this look, in which `seen` of a name has stayed the same."""
        now = time.monotonic()
        before, idle, looked = self._seen.get(name, (None, 0.0, now))
        idle = idle + min(now - looked, LOOK_SECONDS) if seen == before else 0.0
        self._seen[name] = (seen, idle, now)
        return idle

    def forget(self, name: str) -> None:
        self._seen.pop(name, None)


@contextlib.contextmanager
def heartbeat(path: Path) -> Iterator[None]:
    """While it is open, others see that this process is there: a file is touched again and again."""
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

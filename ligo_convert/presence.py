"""Whether somebody with whom a folder is shared is still there.

What comes in: what processes say of themselves, and files that they touch. What goes out: that one is gone for certain, or for how long
nothing was seen of it. On one machine one can ask. Of another one has to watch, by one's own clock: no two clocks need to agree.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TOUCH_SECONDS = 5.0
STALE_SECONDS = 60.0
# What one interval between two looks may add to what was watched. A file server that hangs for minutes stops those who touch and those
# who look alike, and whoever looks first afterwards must not take the others for gone.
LOOK_SECONDS = 15.0
# The inode of a Linux machine's own process namespace, in which no container is (PROC_PID_INIT_INO of the kernel).
_INITIAL = 4026531836
_PROC = Path("/proc")


def myself(proc: Path = _PROC) -> dict[str, Any]:
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


def is_gone(other: Mapping[str, Any], proc: Path = _PROC) -> bool:
    """Whether a process that has said who it is (`myself`) is gone for certain. False where one cannot know."""
    me = myself(proc)
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


def look(path: Path) -> tuple[bytes, int] | None:
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
def touched(path: Path) -> Iterator[None]:
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

"""Who does what, among any number of processes on any number of machines that share a folder.

What comes in: a folder and names of work. What goes out: a claim that nobody else has, or the record that somebody has finished. A claim is
a file that only one can make; whoever holds it touches it again and again. It is taken from one who does so no more: found out by watching
for a while, by one's own clock, so that no two clocks need to agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ligo_convert.fs import do, make_folder, write_file

TOUCH_SECONDS = 5.0
STALE_SECONDS = 60.0


class Claims:
    """Claims and finished work in a folder that is shared.

    A context manager: while it is open, what it holds is kept alive; at its end, what is still held is given back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._me = {"host": platform.node(), "pid": os.getpid(), "run": secrets.token_hex(8)}
        self._held: set[str] = set()
        self._seen: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._toucher = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> Self:
        make_folder(self.folder / "claims")
        make_folder(self.folder / "done")
        self._toucher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Claim a piece of work; False where another has it."""
        path = self._path(name)
        # Whole under a name of its own first: a claim that is seen says whose it is.
        mine = path.with_name(f".{name}.{self._me['run']}")
        write_file(mine, json.dumps(self._me).encode(), replace=True)
        try:
            if not self._link(mine, path):
                if not self._is_stale(name):
                    return False
                self._depose(name)
                if not self._link(mine, path):
                    return False
        finally:
            do("unlink", mine)
        with self._lock:
            self._held.add(name)
        return True

    def release(self, name: str) -> None:
        """Give a claim back."""
        with self._lock:
            self._held.discard(name)
        if self._owner(name) == self._me:
            with contextlib.suppress(FileNotFoundError):
                do("unlink", self._path(name), passing=(FileNotFoundError,))

    def holds(self, name: str) -> bool:
        """Whether a claim is still ours: one that could not be touched for long may have been taken."""
        return name in self._held and self._owner(name) == self._me

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        """Keep what came of a piece of work, for all to see, and give the claim back."""
        write_file(self.folder / "done" / f"{name}.json", json.dumps(record, default=str).encode(), replace=True)
        self.release(name)

    def forget(self, name: str) -> None:
        """Take away what an earlier attempt at a piece of work, claimed now, has come to."""
        with contextlib.suppress(FileNotFoundError):
            do("unlink", self.folder / "done" / f"{name}.json", passing=(FileNotFoundError,))

    def record(self, name: str) -> dict[str, Any] | None:
        """What came of a piece of work; None where nothing has yet, or nothing that can be read."""
        try:
            found = json.loads((self.folder / "done" / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _path(self, name: str) -> Path:
        return self.folder / "claims" / name

    def _link(self, mine: Path, path: Path) -> bool:
        """Make the claim in one step. A hard link is refused where the name is there, on network file systems, too."""
        try:
            do("link", mine, path, passing=(FileExistsError,))
        except FileExistsError:
            return False
        return True

    def _owner(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads(self._path(name).read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _is_stale(self, name: str) -> bool:
        """Whether whoever made a claim is gone: on this machine one can ask, of another one has to watch."""
        owner = self._owner(name)
        if owner is not None and owner.get("host") == self._me["host"] and not _alive(owner.get("pid")):
            return True
        try:
            mark = f"{owner}{self._path(name).stat().st_mtime_ns}"
        except FileNotFoundError:
            return False
        before, since = self._seen.get(name, ("", 0.0))
        if mark != before:
            self._seen[name] = (mark, time.monotonic())
            return False
        return time.monotonic() - since > STALE_SECONDS

    def _depose(self, name: str) -> None:
        """Take a stale claim away. Of several who try, one succeeds."""
        aside = self._path(name).with_name(f".{name}.{self._me['run']}.stale")
        with contextlib.suppress(FileNotFoundError):
            do("rename", self._path(name), aside, passing=(FileNotFoundError,))
            do("unlink", aside)

    def _touch(self) -> None:
        while not self._ended.wait(TOUCH_SECONDS):
            with self._lock:
                held = list(self._held)
            for name in held:
                # One that is gone was taken by another: `holds` says so.
                with contextlib.suppress(OSError):
                    os.utime(self._path(name))


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

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
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ligo_convert.fs import do, make_folder, write_file
from ligo_convert.presence import STALE_SECONDS, Watch, is_gone, look, myself, touched


class Claims:
    """Claims and finished work in a folder that is shared.

    A context manager: while it is open, what it holds is kept alive; at its end, what is still held is given back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run = secrets.token_hex(8)
        self._mine = json.dumps({**myself(), "run": run}).encode()
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
        self._open.enter_context(touched(self._own))
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
        seen = look(path)
        if seen is None:
            return None
        owner = _plain(seen[0])
        return seen[0] if is_gone(owner) or self._watch.idle(path.name, seen) > STALE_SECONDS else None

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
    seen = look(path)
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

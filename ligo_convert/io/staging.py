"""The staging directory of an output: written file by file, resumable, committed in one atomic step.

The output NAME is staged as `.NAME.ligo-partial` in the same parent directory and renamed to NAME when it is complete. The lock on the
staging directory is held through the directory's own descriptor: the kernel releases it when the process ends, and it follows the rename.
Staged files survive a stop, and the next run resumes from them.

A journal lists the SHA-256 of every staged file. Its line is written after the file is synced and before the file gets its name. The next
run hashes every staged file and discards, with a warning, each file that the journal does not list with this digest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING

from ligo_convert.errors import (
    LigoError,
    MachineError,
    OutputBusy,
    VerificationError,
    some,
)
from ligo_convert.io.files import (
    Handle,
    absolute_path,
    do,
    flat,
    hold,
    machine_error,
    make_folder,
    output_path,
    partial_path,
    refuse_taken,
    remove_any,
    reporting,
    sync_directory,
    sync_file,
)
from ligo_convert.progress import Progress

if TYPE_CHECKING:
    from typing_extensions import Buffer

WORK = ".work"

JOURNAL = f"{WORK}/journal.jsonl"

FACTS = "facts.json"

# What a run depends on -> its value, as text for messages.
Facts = Mapping[str, str]

FORMAT = "ligo-staging/1"

# Bytes that are hashed in a thread of their own while the kernel copies them. Smaller pieces are not worth the switch.
_BLOCK = 1 << 20


class StagedFile(Handle):
    """A file that is written in sequence and hashed meanwhile. `close` enters its digest in the journal before the file gets its name."""

    def __init__(
        self, temporary: Path, target: Path, *, nbytes: int, pool: ThreadPoolExecutor, enter: Callable[[str, int], None]
    ) -> None:
        self._sha256, self._pool, self._enter = hashlib.sha256(), pool, enter
        super().__init__(temporary, target, nbytes=nbytes)

    def write(self, data: Buffer) -> None:
        view = flat(data)
        if len(view) < _BLOCK:
            self._sha256.update(view)
            super().write(view)
            return
        # Hashing and writing both release the GIL.
        digest = self._pool.submit(self._sha256.update, view)
        try:
            super().write(view)
        finally:
            digest.result()

    def _synced(self) -> None:
        self._enter(self.sha256, self.written)

    @property
    def sha256(self) -> str:
        """Return the SHA-256, in hex, of the bytes written so far."""
        return self._sha256.hexdigest()


class Staging:
    """The staging directory of an output directory, locked by this process until `close`.

    File names are relative POSIX paths below `path`. As a context manager it releases the lock on exit and keeps the
    staged files, unless the error is permanent.

    Attributes:
        out: absolute path of the output directory.
        path: the staging directory; it becomes `out`.
        work: subdirectory for journals and states; it is not part of `out`.
        resumed: True if an earlier run with the same key left the directory.
    """

    def __init__(self, out: Path, descriptor: int, key: str, progress: Progress, facts: Facts) -> None:
        self.out, self.path, self.work = out, partial_path(out), partial_path(out) / WORK
        self._descriptor: int | None = descriptor
        self._handles: list[StagedFile] = []
        self._digests: dict[str, str] = {}
        self._progress = progress
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest")
        self._run = secrets.token_hex(16)
        self.resumed = self._find_earlier_work(key, facts)
        if self.resumed:
            remove_any(self.work / "new")
            self._check_staged()
        make_folder(self.work / "new")
        if not self.resumed:
            self._write_own("key", f"{key}\n{FORMAT} {_sha256(key.encode())}\n")
        if facts:
            self._keep_facts(facts)
        # On file systems with unreliable locks, the latest run overwrites this file, and earlier runs notice at the commit.
        self._write_own("run", self._run)

    def _keep_facts(self, facts: Facts) -> None:
        """Write what the key depends on beside it, or again where it is damaged or tells of another run."""
        path = self.work / FACTS
        if os.path.lexists(path):
            found = _read_facts(self.work)
            if found == facts:
                return
            if not found:
                self.warn(f"{WORK}/{FACTS}", "damaged", "written again")
            remove_any(path)
        text = json.dumps(facts)
        self._write_own(FACTS, f"{text}\n{_sha256(text.encode())}\n")

    @classmethod
    def open(cls, out: Path, *, key: str, facts: Facts | None = None, progress: Progress | None = None) -> Staging:
        """Create the staging directory of `out`, or open an existing one to resume.

        A staged file whose SHA-256 is not the one in the journal is discarded with a warning.

        Args:
            out: the output directory.
            key: one line that identifies the work; only staged work with the same key is resumed.
            facts: what the key depends on, for the message where the directory holds other work.
            progress: receives the warnings.

        Raises:
            RecipeError: `out` cannot be an output directory.
            OutputBusy: `out` is not empty, another run holds the staging directory, or it holds other work.
            MachineError: the directory cannot be created or opened.
        """
        assert len(key.splitlines()) == 1, "a key is one line"
        out = output_path(out)
        make_folder(out.parent)
        path = partial_path(out)

        def opening() -> int:
            refuse_taken(out)
            with contextlib.suppress(FileExistsError):
                do("mkdir", path, passing=(FileExistsError,))
            try:
                return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):  # a file, or a link
                    raise _not_ours(path) from None
                raise machine_error(error, path, "open") from error

        descriptor = hold(path, opening)
        try:
            refuse_taken(out)
            return cls(out, descriptor, key, progress or Progress(), facts or {})
        except BaseException:
            with contextlib.suppress(MachineError):  # leave no empty directory behind
                do("rmdir", path)
            os.close(descriptor)
            raise

    def _find_earlier_work(self, key: str, facts: Facts) -> bool:
        """Return True if the directory holds work with `key`, False if it is empty. Raises OutputBusy for anything else."""
        aside = _aside(self.out)
        if os.path.lexists(aside):
            _refuse_strange_work(aside)
            with reporting(self.path, "list"):
                names = {entry.name for entry in self.path.iterdir()}
            if names and WORK not in names:
                # An earlier commit stopped between its two renames.
                do("rename", aside, self.work)
                sync_directory(self.path)
                sync_directory(self.out.parent)
            else:
                # An earlier commit stopped after both renames, and its output has been moved away.
                _remove_work(aside)
        try:
            staged_key = _read_key(self.work)
        except ValueError as error:
            self.warn(f"{WORK}/key", f"{error}", "all staged work is discarded, and the run starts again")
            for entry in (*self.path.iterdir(), *self.work.iterdir()):
                if entry not in (self.work, self.work / "new"):
                    remove_any(entry)
            return False
        if staged_key is None:
            with reporting(self.path, "list"):
                if {entry.name for entry in self.path.iterdir()} - {WORK} or (
                    os.path.lexists(self.work) and {entry.name for entry in self.work.iterdir()} - {"new"}
                ):
                    raise _not_ours(self.path)
            return False
        if staged_key != key:
            then = _read_facts(self.work) if facts else {}
            raise occupied(
                "the staging directory holds unfinished work of another recipe, source or version",
                then or {"key": staged_key},
                facts if then else {"key": key},
                where=self.path,
                hint=f"run that recipe again to finish it, remove {self.path}, or choose another output directory",
            )
        return True

    def warn(self, what: str, why: str, consequence: str) -> None:
        """Warn about a staged file: which, what is wrong with it, what is done again."""
        self._progress.warn(f"{self.path.name}/{what}: {why}; {consequence}")

    def _check_staged(self) -> None:
        """Hash every staged file. Discard what the journal does not list with this digest, and say so."""
        journal = self._read_journal()
        damaged: dict[str, list[str]] = {}
        with reporting(self.path, "read"):
            for path in sorted([*_below(self.path, without=self.work), *(self.path / name for name in journal)]):
                name = path.relative_to(self.path).as_posix()
                if name in self._digests or not os.path.lexists(path):
                    continue
                why = _damage(path)
                if not why:
                    found = _sha256_of(path)
                    if found in journal.get(name, ()):
                        self._digests[name] = found
                        continue
                    why = "the SHA-256 is not the one in the journal" if name in journal else "not in the journal"
                damaged.setdefault(why, []).append(name)
                remove_any(path)
        for why, names in damaged.items():
            self.warn(some(names), why, "discarded, and made again")

    def _read_journal(self) -> dict[str, set[str]]:
        """Return every digest that each file had when it was staged. A damaged line is left out: its file is then made again."""
        path, journal = self._target(JOURNAL), dict[str, set[str]]()
        if os.path.lexists(path) and _damage(path):
            self.warn(JOURNAL, _damage(path), "all staged files are discarded, and made again")
            remove_any(path)
        for line in self.read_lines(JOURNAL):
            with contextlib.suppress(ValueError, RecursionError, LigoError):
                match json.loads(line):
                    case {"file": str(name), "sha256": str(digest)}:
                        self._target(name)
                        journal.setdefault(name, set()).add(digest)
        return journal

    def _enter(self, name: str, digest: str, nbytes: int, expected: str | None) -> None:
        """Enter a file that is on the disk, and about to get its name, in the journal."""
        if expected not in (None, digest):
            raise VerificationError("these are not the expected bytes", where=name, expected=expected, found=digest)
        self.append_line(JOURNAL, json.dumps({"file": name, "sha256": digest, "nbytes": nbytes}))
        self._digests[name] = digest

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of a staged file as this run wrote it, or found it in agreement with the journal; None if there is none."""
        return self._digests.get(name)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a small staged file. None if there is none, or if it is damaged: it is then discarded with a warning."""
        target, why = self._target(name), ""
        if name not in self._digests:
            return None
        with reporting(target, "read"):
            why = _damage(target) if os.path.lexists(target) else "missing"
            data = b"" if why else target.read_bytes()
        if not why and _sha256(data) == self._digests[name]:
            return data
        self.warn(name, why or "the SHA-256 is not the one in the journal", "discarded, and made again")
        self.remove(name)
        return None

    def discard_file(self, name: str, why: str) -> None:
        """Remove a staged file that cannot be used, and say so."""
        self.warn(name, why, "discarded, and made again")
        self.remove(name)

    def _target(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or PurePosixPath(name).as_posix() != name:
            raise LigoError("not a file name inside the output directory", where=name)
        return self.path.joinpath(*parts)

    def create(self, name: str, *, nbytes: int = 0, sha256: str | None = None) -> StagedFile:
        """Open a new file for sequential writing. It appears as `name` when it is closed.

        Args:
            name: the file's name.
            nbytes: the expected size, for messages.
            sha256: the digest that the bytes must have, in hex; None if it is not known. Closing the file raises VerificationError, and
                leaves no file, if they have another one.
        """
        target = self._target(name)
        if target.parent != self.path:
            make_folder(target.parent)
        if target.is_dir():  # nothing of ours; a file cannot be renamed over it
            self.warn(name, "a directory where a file is due", "discarded")
            remove_any(target)
        temporary = self.work / "new" / name.replace("%", "%25").replace("/", "%2F")
        self._handles = [handle for handle in self._handles if handle.open]
        self._handles.append(
            StagedFile(
                temporary,
                target,
                nbytes=nbytes,
                pool=self._pool,
                enter=lambda digest, size: self._enter(name, digest, size, sha256),
            )
        )
        return self._handles[-1]

    def write_bytes(self, name: str, data: Buffer | Iterator[Buffer], *, sha256: str | None = None) -> None:
        """Write a whole file durably. `data` is a buffer or an iterator of buffers; `sha256`: see `create`."""
        with self.create(name, sha256=sha256) as handle:
            for piece in data if isinstance(data, Iterator) else (data,):
                handle.write(piece)

    def _write_own(self, name: str, text: str) -> None:
        """Write a file that tells whose the directory is: the journal does not list it."""
        target = self.work / name
        if target.is_dir():
            remove_any(target)
        with Handle(self.work / "new" / name, target) as handle:
            handle.write(text.encode())

    def remove(self, name: str) -> None:
        """Remove the file `name` durably. Does nothing if it does not exist."""
        target = self._target(name)
        self._digests.pop(name, None)
        with contextlib.suppress(FileNotFoundError):
            do("unlink", target, passing=(FileNotFoundError,))
            sync_directory(target.parent)

    def append_line(self, name: str, line: str) -> None:
        """Append one line durably. First cut off an incomplete last line of an earlier run."""
        assert "\n" not in line, "a line holds no line break"
        target = self._target(name)
        make_folder(target.parent)
        new = not target.exists()
        descriptor: int = do("open", target, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW)
        try:
            whole = _whole_lines(target)
            if os.fstat(descriptor).st_size != len(whole):
                do("truncate", target, descriptor, len(whole))
            view = memoryview(f"{line}\n".encode())
            while view:
                count: int = do("write", target, descriptor, view, needed=len(view))
                view = view[count:]
            do("fsync", target, descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_directory(target.parent)

    def read_lines(self, name: str) -> list[str]:
        """Return the complete lines of a file written by `append_line`; empty if the file does not exist.

        Invalid UTF-8 is decoded to U+FFFD. Callers validate each line.
        """
        return _whole_lines(self._target(name)).decode(errors="replace").split("\n")[:-1]

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every staged file, journals and results of steps included, by name."""
        return dict(self._digests)

    def files(self) -> list[str]:
        """Return the sorted names of the staged output files."""
        return sorted(
            path.relative_to(self.path).as_posix()
            for path, is_directory in _tree(self.path, without=self.work)
            if not is_directory
        )

    def commit(self) -> None:
        """Rename the staging directory to the output directory, atomically and durably.

        Raises:
            OutputBusy: the output directory appeared meanwhile, or another run has taken over the staging directory.
            MachineError: a sync or rename failed; the output directory is then either absent or complete.
        """
        assert self._descriptor is not None, "the staging directory is closed"
        assert not any(handle.open for handle in self._handles), "a file is still open"
        with reporting(self.work / "run", "read"):
            if (self.work / "run").read_bytes() != self._run.encode():
                raise OutputBusy("another run has taken over the staging directory", where=self.path)
        for path, is_directory in _tree(self.path, without=self.work):
            if is_directory:
                sync_directory(path)
            else:  # may have been written by an earlier run or a library
                sync_file(path)
        # Move the work directory instead of removing it: after a stop here, the next run still finds the key.
        do("rename", self.work, _aside(self.out))
        sync_directory(self.path)
        sync_directory(self.out.parent)
        refuse_taken(self.out)
        with contextlib.suppress(FileNotFoundError):
            do("rmdir", self.out, passing=(FileNotFoundError,))
        try:
            do("rename_new", self.path, self.out, passing=(FileExistsError,))
        except FileExistsError:
            refuse_taken(self.out)
            raise OutputBusy("the output directory appeared meanwhile", where=self.out, hint="remove it") from None
        sync_directory(self.out.parent)
        clear_leftovers(self.out)

    def discard(self) -> None:
        """Remove the staging directory with all files and release the lock. No output is made."""
        for path, is_directory in _tree(self.path, without=self.work):
            if path != self.path:
                do("rmdir" if is_directory else "unlink", path)
        _remove_work(self.work)
        do("rmdir", self.path)
        sync_directory(self.out.parent)
        self.close()

    def close(self) -> None:
        """Release the lock. Staged files stay; files that are still open are removed."""
        for handle in self._handles:
            handle.abort()
        self._pool.shutdown()
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):  # no locks on this file system
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold a copy of the descriptor
            os.close(descriptor)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # A mended recipe or source has another key: the staged files would only block it.
        if isinstance(error, LigoError) and error.permanent and self._descriptor is not None:
            for handle in self._handles:
                handle.abort()
            with contextlib.suppress(LigoError):  # the refusal is what the user must see
                self.discard()
        self.close()


def clear_leftovers(out: Path) -> None:
    """Remove the work directory of a commit that stopped after its last rename."""
    out = absolute_path(out)
    aside = _aside(out)
    if os.path.lexists(aside) and out.is_dir() and not os.path.lexists(partial_path(out)):
        _refuse_strange_work(aside)
        _remove_work(aside)


def _aside(target: Path) -> Path:
    """Return the path of the work directory while the staging directory is renamed."""
    return target.with_name(f".{target.name}.ligo-partial.work")


def _tree(directory: Path, *, without: Path | None = None) -> Iterator[tuple[Path, bool]]:
    """Yield everything below `directory` except `without`, then `directory` itself, each with True if it is a directory."""
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
    """Remove a work directory, its key last, so that a partly removed directory is still recognised."""
    if not directory.exists():
        return
    with reporting(directory, "list"):
        entries = sorted(directory.iterdir(), key=lambda path: (path.name == "key", path.name))
    for path in (*entries, directory):
        remove_any(path)


def _read_facts(work: Path) -> dict[str, str]:
    """Return the facts of the staged work; empty where they are missing or damaged. They only explain a refusal."""
    path = work / FACTS
    if not os.path.lexists(path) or _damage(path):
        return {}
    with reporting(path, "read"):
        text, _, digest = path.read_bytes().partition(b"\n")
    if digest != f"{_sha256(text)}\n".encode():
        return {}
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        return {str(what): str(value) for what, value in found.items()} if isinstance(found, dict) else {}
    return {}


def occupied(what: str, then: Facts, now: Facts, *, where: Path, hint: str) -> OutputBusy:
    """Return the error for an output that another run occupies, with what differs between the runs.

    Args:
        what: the problem.
        then: facts of the run that is there.
        now: facts of this run; those that only one run has count only where the other tells of that kind at all.
        where: the directory.
        hint: what to do.
    """
    told = {name.partition(":")[0] for name in then} & {name.partition(":")[0] for name in now}
    names = [name for name in dict.fromkeys([*now, *then]) if name.partition(":")[0] in told]
    differing = [name for name in names if then.get(name) != now.get(name)]
    if not differing:
        return OutputBusy(
            what,
            where=where,
            hint=f"the recipe names other data, another target model, or another state of the training\n{hint}",
        )
    first, more = differing[0], f"also different: {some(differing[1:])}\n" if differing[1:] else ""
    return OutputBusy(
        what,
        where=where,
        expected=f"{first} = {now.get(first, 'not given')}",
        found=f"{first} = {then.get(first, 'not given')}",
        hint=more + hint,
    )


def _read_key(work: Path) -> str | None:
    """Return the key of the staged work; None if there is no key file. Raises ValueError if the key of our own work is damaged."""
    path, ours = work / "key", (work / "new").is_dir()
    with reporting(path, "read"):
        if not os.path.lexists(path):
            return None
        why = _damage(path)
        lines = [] if why else path.read_bytes().decode(errors="replace").split("\n")
    if not why:
        if len(lines) == 2 and not lines[1] and re.fullmatch(r"[0-9a-f]{64}", lines[0]):
            return lines[
                0
            ]  # written before the journal; the work of this key is discarded, as the journal lists nothing of it
        if len(lines) == 3 and lines[1:] == [f"{FORMAT} {_sha256(lines[0].encode(errors='replace'))}", ""]:
            return lines[0]
        why = "damaged, or of another format"
    if not ours:
        raise _not_ours(work.parent)
    raise ValueError(why)


def _damage(path: Path) -> str:
    """Return why a path cannot be a staged file; empty if it is a regular file."""
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode):
        return ""
    return {stat.S_IFDIR: "a directory where a file is due", stat.S_IFLNK: "a symbolic link where a file is due"}.get(
        stat.S_IFMT(mode), "not a regular file"
    )


def _below(directory: Path, *, without: Path) -> Iterator[Path]:
    """Yield everything below a directory that is no directory itself, except what is in `without`. Links are not followed."""
    for path in directory.iterdir():
        if path == without:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _below(path, without=without)
        else:
            yield path


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_strange_work(aside: Path) -> None:
    with reporting(aside, "list"):
        ours = (
            not aside.is_symlink()
            and aside.is_dir()
            and (os.path.lexists(aside / "key") or (aside / "new").is_dir() or not any(aside.iterdir()))
        )
    if not ours:
        raise _not_ours(aside)


def _not_ours(path: Path) -> OutputBusy:
    return OutputBusy(
        "the path of the staging directory is taken by something that this program did not create",
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

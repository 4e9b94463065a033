"""Laws of the file system layer: a file is old or new, nothing is replaced unasked, errors say what."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import faults
from support.staged import ENVIRONMENT, KEY, absent_or_whole, content, job

from ligo_convert.errors import MachineError, OutputBusy, RecipeError
from ligo_convert.io import files as fs
from ligo_convert.io.files import check_place, write_file
from ligo_convert.io.staging import Staging


@pytest.mark.parametrize("supported", [True, False], ids=["kernel", "fallback"])
@pytest.mark.parametrize("kind", ["empty directory", "file", "nothing"])
def test_the_last_rename_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool, kind: str
) -> None:
    def unsupported(old: bytes, new: bytes) -> int:
        ctypes.set_errno(errno.ENOSYS)
        return -1

    if not supported:
        monkeypatch.setattr(fs, "_exclusive_rename", lambda: unsupported)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    if kind == "empty directory":
        target.mkdir()
    elif kind == "file":
        target.write_text("precious")
    if kind == "nothing":
        fs.EFFECTS["rename_new"](source, target)
        assert target.is_dir()
        assert not source.exists()
    else:
        with pytest.raises(FileExistsError):
            fs.EFFECTS["rename_new"](source, target)
        assert source.is_dir()


def test_places_no_output_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    (tmp_path / "link").symlink_to(here)
    for out, words in [
        ("/", "root of the file system"),
        (".", "working directory"),
        ("..", "holds the working directory"),
        (str(tmp_path), "holds the working directory"),
        (str(tmp_path / "link"), "in use as the working directory"),
        ("x/..", "in use as the working directory"),
        ("a\0b", "NUL"),
    ]:
        for attempt in (lambda out=out: Staging.open(Path(out), key=KEY), lambda out=out: check_place(Path(out))):
            with pytest.raises(RecipeError, match=words):
                attempt()
    assert list(here.iterdir()) == []
    job(Path("x"))
    assert absent_or_whole(here / "x")


def test_missing_parents_are_made_and_a_probe_leaves_nothing(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "b" / "OUT")
    assert list(tmp_path.iterdir()) == []
    job(tmp_path / "a" / "b" / "OUT")
    assert absent_or_whole(tmp_path / "a" / "b" / "OUT")


def test_a_file_among_the_parents_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for attempt in (lambda: check_place(tmp_path / "a" / "OUT"), lambda: job(tmp_path / "a" / "OUT")):
        with pytest.raises(MachineError, match="Not a directory"):
            attempt()


# --- the machine refuses ----------------------------------------------------------------------------------------------


def in_own_mounts(script: str, *arguments: str) -> str:
    """Run a shell script where it may mount, or skip the test."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True, timeout=60).returncode
    ):
        pytest.skip("a full disk is made by a mount of one's own, which this system does not allow")
    command = ["unshare", "-rm", "sh", "-euc", script, "sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


TRY = """
import sys
from pathlib import Path
from ligo_convert.io import files as fs
from ligo_convert.errors import LigoError
from ligo_convert.io.staging import Staging
def attempt(function, *arguments, **named):
    try:
        function(*arguments, **named)
        print("fine")
    except LigoError as error:
        print(type(error).__name__, error)
"""


def test_a_full_disk_says_how_much_is_needed_and_how_much_is_there(tmp_path: Path) -> None:
    script = TRY + (
        "out = Path(sys.argv[1]) / 'OUT'\n"
        "attempt(fs.check_room, out, 10**9)\n"
        "attempt(fs.check_room, out, 10**5)\n"
        "with Staging.open(out, key='k') as staging:\n"
        "    attempt(staging.write_bytes, 'small', bytes(10**5))\n"
        "    attempt(staging.write_bytes, 'big', bytes(10**7))\n"
        "    attempt(staging.write_bytes, 'small2', bytes(10**6))\n"
        "    print(staging.files(), out.exists())\n"
        "    staging.commit()\n"
        "print(sorted(path.name for path in out.iterdir()))\n"
    )
    output = in_own_mounts(
        'mount -t tmpfs -o size=2m none "$1"; exec "$2" -c "$3" "$1"', str(tmp_path), sys.executable, script
    )
    lines = output.splitlines()
    assert "MachineError" in lines[0]
    assert "not enough room on the disk" in lines[0]
    assert lines[1] == "  expected: 1,000,000,000 bytes free"
    assert "bytes free" in lines[2]
    assert lines[4:6] == ["fine", "fine"]
    assert "big: cannot write: the disk is full" in lines[6]
    assert lines[7].endswith("more bytes of disk space")
    assert lines[8].startswith("  found:    0 bytes free")
    assert lines[10:] == ["fine", "['small', 'small2'] False", "['small', 'small2']"]


def test_a_read_only_disk_is_told_at_once(tmp_path: Path) -> None:
    script = TRY + (
        "out = Path(sys.argv[1]) / 'OUT'\n"
        "attempt(fs.check_place, out)\n"
        "attempt(fs.check_place, out / 'deeper')\n"
        "attempt(Staging.open, out, key='k')\n"
        "attempt(fs.write_file, out, b'')\n"
    )
    output = in_own_mounts(
        'mount -t tmpfs -o ro none "$1"; exec "$2" -c "$3" "$1"', str(tmp_path), sys.executable, script
    )
    assert output.count("MachineError") == output.count("the file system is read-only") == 4


def test_a_mount_point_is_refused_with_the_way_out(tmp_path: Path) -> None:
    script = TRY + "attempt(Staging.open, Path(sys.argv[1]), key='k')\n"
    output = in_own_mounts('mount -t tmpfs none "$1"; exec "$2" -c "$3" "$1"', str(tmp_path), sys.executable, script)
    assert "MachineError" in output
    assert "mount point" in output
    assert "name a new directory inside it" in output


def test_a_directory_without_permission_is_told(tmp_path: Path) -> None:
    # Permissions do not hold for root: become somebody else.
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755 if os.getuid() == 0 else 0o555)

    def attempt() -> None:
        if os.getuid() == 0:
            os.chdir(closed)
            os.setuid(65534)
        for function in (
            lambda: check_place(Path("x/OUT")),
            lambda: Staging.open(Path("x/OUT"), key=KEY),
            lambda: write_file(Path("x/file"), b""),
        ):
            with pytest.raises(MachineError, match="permission denied"):
                function()

    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == closed.owner() and directory != Path(directory.anchor):
            directory.chmod(directory.stat().st_mode | 0o555)
        if directory.name.startswith("pytest-of-"):
            break
    assert faults.in_child(attempt) == 0


def test_a_limit_on_file_sizes_is_told(tmp_path: Path) -> None:
    def attempt() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with Staging.open(tmp_path / "OUT", key=KEY) as staging:
            staging.write_bytes("small", bytes(1000))
            with pytest.raises(MachineError, match="larger than the file system or the limit") as caught:
                staging.write_bytes("big", bytes(1001))
            assert "max_shard_size" in caught.value.hint
            assert staging.files() == ["small"]

    assert faults.in_child(attempt) == 0


def test_the_error_for_a_quota_says_what_is_missing(tmp_path: Path) -> None:
    with (
        faults.inject(20, number=errno.EDQUOT, sticky=True),
        pytest.raises(MachineError, match="the disk quota is used up"),
    ):
        job(tmp_path / "OUT")


# --- single files -----------------------------------------------------------------------------------------------------


def test_a_single_file_is_written_whole_and_replaces_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "new" / "operator.safetensors"
    write_file(path, iter([b"one", b""]))
    with pytest.raises(OutputBusy, match="the path already exists"):
        write_file(path, b"two")
    assert path.read_bytes() == b"one"
    write_file(path, b"two", replace=True)
    assert path.read_bytes() == b"two"
    path.with_name("dir").mkdir()
    with pytest.raises(OutputBusy, match="the path already exists"):
        write_file(path.with_name("dir"), b"two", replace=True)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["dir", "operator.safetensors"]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("number", [None, errno.EIO], ids=["killed", "EIO"])
def test_a_single_file_is_old_or_new_after_any_stop(tmp_path: Path, replace: bool, number: int | None) -> None:
    for at in range(20):
        path = tmp_path / str(at) / "file"
        path.parent.mkdir()
        if replace:
            path.write_bytes(b"old")

        def attempt(path: Path = path, at: int = at) -> None:
            with faults.inject(at, number=number) as count:
                try:
                    write_file(path, iter([b"new", b"er"]), replace=replace)
                except MachineError:
                    return
            assert count[0] <= at

        assert faults.in_child(attempt) in (0, -signal.SIGKILL)
        assert (path.read_bytes() if path.exists() else None) in ((b"old" if replace else None), b"newer")
        if not path.exists() or replace:
            write_file(path, b"newer", replace=replace)
        assert content(path.parent) == {"file": b"newer"}


def test_a_lock_on_a_file_that_was_finished_meanwhile_does_not_empty_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, temporary = tmp_path / "file", tmp_path / ".file.ligo-partial"
    temporary.write_bytes(b"first")
    flock = fcntl.flock

    def finish_before_locking(descriptor: int, operation: int) -> None:
        if temporary.exists() and not path.exists():
            temporary.rename(path)  # what the run does that had the lock until now
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", finish_before_locking)
    with pytest.raises(OutputBusy, match="the path already exists"):
        write_file(path, b"second")
    assert content(tmp_path) == {"file": b"first"}


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def pieces() -> Iterator[bytes]:
        yield b"ours"
        path.write_bytes(b"theirs")

    with pytest.raises(OutputBusy, match="the path already exists"):
        write_file(path, pieces())
    assert content(tmp_path) == {"file": b"theirs"}

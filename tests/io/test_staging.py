"""Laws of the staging directory: an output is absent or whole, one run at a time, a stopped one is gone on with."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import faults
from support.staged import ENVIRONMENT, FILES, KEY, absent_or_whole, content, finish, job

from ligo_convert.errors import LigoError, MachineError, OutputBusy, VerificationError
from ligo_convert.io import files as fs
from ligo_convert.io.files import check_place, write_file
from ligo_convert.io.staging import Staging

# --- stops and failures at every effect -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_at_any_effect_leaves_nothing_or_all_and_the_next_one_finishes(tmp_path: Path) -> None:
    kills = 0
    while True:
        out = tmp_path / str(kills) / "new" / "OUT"

        def killed(out: Path = out, at: int = kills) -> None:
            with faults.inject(at, number=None):
                job(out)

        status = faults.in_child(killed)
        absent_or_whole(out)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        finish(out)
        kills += 1
    assert kills > 40


@pytest.mark.slow
def test_a_run_killed_twice_finishes_the_third_time(tmp_path: Path) -> None:
    for first in range(0, 70, 3):
        for second in range(first % 4, 70, 9):
            out = tmp_path / f"{first}-{second}" / "OUT"
            for at in (first, second):

                def killed(out: Path = out, at: int = at) -> None:
                    with faults.inject(at, number=None):
                        finish(out)

                assert faults.in_child(killed) in (0, -signal.SIGKILL)
                absent_or_whole(out)
            finish(out)


@pytest.mark.parametrize("done", [False, True], ids=["not-done", "done-but-reported"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "sticky"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_any_failing_effect_is_told_and_the_next_run_finishes(
    tmp_path: Path, number: int, sticky: bool, done: bool
) -> None:
    failures = 0
    while True:
        out = tmp_path / str(failures) / "OUT"
        with faults.inject(failures, number=number, sticky=sticky, done=done) as count:
            told = None
            try:
                job(out)
            except MachineError as error:
                told = error
        whole = absent_or_whole(out)
        if count[0] <= failures:
            assert whole
            assert told is None
            break
        assert told is not None
        assert {errno.ENOSPC: "disk is full", errno.EIO: "input/output error"}[number] in told.what
        assert str(tmp_path) in told.where
        finish(out)
        failures += 1
    assert failures > 40


def test_a_failed_sync_is_not_tried_again(tmp_path: Path) -> None:
    log: list[str] = []

    def act(effect: str, function: Any, path: Path, arguments: tuple[Any, ...]) -> Any:
        log.append(effect)
        if effect == "fsync" and path.name == "config.json":
            raise OSError(errno.EIO, "")
        return function(path, *arguments)

    with faults.around(act), pytest.raises(MachineError, match="check the system log"):
        job(tmp_path / "OUT")
    assert log[-2:] == ["fsync", "unlink"]


def test_short_writes_are_gone_on_with(tmp_path: Path) -> None:
    def act(effect: str, function: Any, path: Path, arguments: tuple[Any, ...]) -> Any:
        if effect == "write":
            descriptor, data = arguments
            return function(path, descriptor, data[: max(1, len(data) // 3)])
        return function(path, *arguments)

    with faults.around(act):
        job(tmp_path / "OUT")
    assert absent_or_whole(tmp_path / "OUT")


def test_a_write_that_lies_about_its_size_is_noticed(tmp_path: Path) -> None:
    def act(effect: str, function: Any, path: Path, arguments: tuple[Any, ...]) -> Any:
        if effect == "write" and path.name == "config.json":
            return len(arguments[1])
        return function(path, *arguments)

    with faults.around(act), pytest.raises(MachineError, match="input/output error"):
        job(tmp_path / "OUT")
    finish(tmp_path / "OUT")


def test_effects_come_in_the_order_that_survives_power_loss(tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    log: list[tuple[str, Path, tuple[Any, ...]]] = []
    with faults.record(log):
        job(out)
    staging = tmp_path / ".OUT.ligo-partial"
    final = next(i for i, (effect, path, _) in enumerate(log) if effect == "rename_new" and path == staging)
    assert log[final][2] == (out,)
    for name in FILES:
        target = staging / name
        renamed = next(i for i, (effect, _, to) in enumerate(log) if effect == "rename" and to == (target,))
        effects = [effect for effect, path, _ in log[:renamed] if path == target]
        assert effects == ["write", "fsync"] or (effects == ["fsync"] and not FILES[name])
        assert log[renamed + 1][:2] == ("fsync_directory", target.parent)
        assert renamed < final
    # Each folder was synced after the last file came into it, and each new folder in the one above it.
    for i, (effect, path, _) in enumerate(log):
        if effect == "mkdir" and path != staging:
            assert log[i + 1][:2] == ("fsync_directory", path.parent)
    assert not [entry for entry in log[final:] if entry[0] in ("write", "fsync", "open", "mkdir", "rename")]
    assert log[final + 1][:2] == ("fsync_directory", tmp_path)
    assert {effect for effect, _, _ in log[final + 2 :]} == {"unlink", "rmdir"}
    # What makes the staging directory nameless is on the disk before the output has its name.
    assert [entry[:2] for entry in log[final - 3 : final]] == [
        ("rename", staging / ".work"),
        ("fsync_directory", staging),
        ("fsync_directory", tmp_path),
    ]


def test_files_that_others_wrote_into_the_staging_directory_are_synced(tmp_path: Path) -> None:
    log: list[tuple[str, Path, tuple[Any, ...]]] = []
    with faults.record(log), Staging.open(tmp_path / "OUT", key=KEY) as staging:
        (staging.path / "sub").mkdir()
        (staging.path / "sub" / "tokenizer.json").write_bytes(b"{}")
        staging.commit()
    assert ("fsync", staging.path / "sub" / "tokenizer.json") in [entry[:2] for entry in log]
    assert ("fsync_directory", staging.path / "sub") in [entry[:2] for entry in log]


def test_a_link_in_the_staging_directory_is_not_published(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        (staging.path / "passwords").symlink_to("/etc/passwd")
        with pytest.raises(OutputBusy, match="neither a file nor a directory"):
            staging.commit()
    assert not (tmp_path / "OUT").exists()


# --- what is in the way -----------------------------------------------------------------------------------------------


def test_an_empty_output_directory_is_taken_and_its_modes_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "OUT").mkdir()
    before = os.umask(0o027)
    try:
        job(tmp_path / "OUT")
        write_file(tmp_path / "one", b"1")
    finally:
        os.umask(before)
    assert absent_or_whole(tmp_path / "OUT")
    assert (tmp_path / "OUT").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "OUT" / "ligo").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "OUT" / "config.json").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("kind", "words"),
    [("full", "is not empty"), ("file", "is a file"), ("link", "is a symbolic link"), ("dangling", "symbolic link")],
)
def test_whatever_is_there_is_refused_before_anything_is_made(tmp_path: Path, kind: str, words: str) -> None:
    out = tmp_path / "OUT"
    if kind == "full":
        out.mkdir()
        (out / "old").write_text("precious")
    elif kind == "file":
        out.write_text("precious")
    else:
        if kind == "link":
            (tmp_path / "elsewhere").mkdir()
        out.symlink_to("elsewhere")
    before = sorted(tmp_path.rglob("*"))
    for attempt in (lambda: Staging.open(out, key=KEY), lambda: check_place(out)):
        with pytest.raises(OutputBusy, match=words) as caught:
            attempt()
        assert str(out) in caught.value.where
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("late", ["full", "file", "link"])
def test_what_appears_before_the_commit_is_not_replaced(tmp_path: Path, late: str) -> None:
    out = tmp_path / "OUT"
    with Staging.open(out, key=KEY) as staging:
        staging.write_bytes("config.json", b"ours")
        if late == "full":
            out.mkdir()
            (out / "theirs").write_text("precious")
        elif late == "file":
            out.write_text("precious")
        else:
            out.symlink_to("nowhere")
        with pytest.raises(OutputBusy):
            staging.commit()
    if late == "full":
        assert content(out) == {"theirs": b"precious"}
        shutil.rmtree(out)
    else:
        assert out.is_symlink() if late == "link" else out.read_text() == "precious"
        out.unlink()
    # The work is still there and still known.
    with Staging.open(out, key=KEY) as staging:
        assert staging.resumed
        assert staging.files() == ["config.json"]
        staging.commit()
    assert content(out) == {"config.json": b"ours"}


def test_a_run_commits_where_the_kernel_has_no_exclusive_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fs, "_exclusive_rename", lambda: None)
    job(tmp_path / "OUT")
    assert absent_or_whole(tmp_path / "OUT")


# --- staged work ------------------------------------------------------------------------------------------------------


def test_staged_work_outlives_an_error_and_is_gone_on_with_under_the_same_key(tmp_path: Path) -> None:
    out = tmp_path / "OUT"

    def fail() -> None:
        with Staging.open(out, key=KEY) as staging:
            assert not staging.resumed
            staging.write_bytes("config.json", b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not out.exists()
    with pytest.raises(OutputBusy, match="unfinished work of another recipe") as caught:
        Staging.open(out, key="b" * 64)
    assert (caught.value.expected, caught.value.found) == (f"key = {'b' * 64}", f"key = {KEY}")
    assert "remove" in caught.value.hint
    with Staging.open(out, key=KEY) as staging:
        assert staging.resumed
        assert staging.files() == ["config.json"]
        staging.remove("config.json")
        staging.remove("config.json")
        assert staging.files() == []


@pytest.mark.parametrize("kind", ["directory", "work", "file", "link", "aside"])
def test_a_stranger_in_the_staging_place_is_left_alone(tmp_path: Path, kind: str) -> None:
    staging = tmp_path / ".OUT.ligo-partial"
    if kind == "directory":
        staging.mkdir()
        (staging / "thesis.tex").write_text("precious")
    elif kind == "work":
        (staging / ".work").mkdir(parents=True)
        (staging / ".work" / "thesis.tex").write_text("precious")
    elif kind == "file":
        staging.write_text("precious")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        staging.symlink_to("elsewhere")
    else:
        (tmp_path / ".OUT.ligo-partial.work").mkdir()
        (tmp_path / ".OUT.ligo-partial.work" / "thesis.tex").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputBusy, match="did not create") as caught:
        Staging.open(tmp_path / "OUT", key=KEY)
    assert "ligo-partial" in caught.value.where
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", ".", "a//b", "./a", "a\0b"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        for attempt in (
            lambda: staging.write_bytes(name, b""),
            lambda: staging.create(name),
            lambda: staging.remove(name),
            lambda: staging.append_line(name, ""),
            lambda: staging.read_lines(name),
        ):
            with pytest.raises(LigoError, match="not a file name inside"):
                attempt()


def test_a_file_shows_only_once_it_is_whole(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        handle = staging.create("a/b%2Fc")
        handle.write(b"12")
        assert staging.files() == []
        handle.abort()
        assert staging.files() == []
        assert list((staging.work / "new").iterdir()) == []
        with staging.create("a/b%2Fc") as handle:
            handle.write(memoryview(b"1234").cast("B", (2, 2)))
            handle.write(b"")
            assert handle.written == 4
        assert staging.files() == ["a/b%2Fc"]
        staging.write_bytes("a/b%2Fc", iter([b"5", bytearray(b"6")]))
        staging.commit()
    assert content(tmp_path / "OUT") == {"a/b%2Fc": b"56"}


def test_a_file_with_other_bytes_than_expected_gets_no_name(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        with pytest.raises(VerificationError, match="not the expected bytes"):
            staging.write_bytes("a", b"1", sha256=hashlib.sha256(b"2").hexdigest())
        assert staging.files() == []
        assert staging.digest("a") is None
        staging.write_bytes("a", b"2", sha256=hashlib.sha256(b"2").hexdigest())
        assert staging.files() == ["a"]


def test_two_writers_of_one_file_are_told_apart(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "OUT", key=KEY) as staging, staging.create("a") as first:
        first.write(b"first")
        with pytest.raises(OutputBusy, match="another run"):
            staging.create("a")


def test_a_file_still_open_at_the_end_is_dropped(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        staging.create("a").write(b"half")
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        assert staging.files() == []
        assert list((staging.work / "new").iterdir()) == []
        staging.write_bytes("a", b"whole")


def stage_some(out: Path, key: str = KEY) -> Staging:
    staging = Staging.open(out, key=key)
    for name, data in FILES.items():
        staging.write_bytes(name, data)
    staging.append_line(".work/steps.jsonl", "one")
    staging.write_bytes(".work/deep/state", b"state")
    return staging


def test_what_is_discarded_leaves_no_trace_and_frees_the_lock(tmp_path: Path) -> None:
    with stage_some(tmp_path / "OUT") as staging:
        staging.create("half").write(b"half")
        staging.discard()
        assert list(tmp_path.iterdir()) == []
        assert not open_handles(tmp_path)
        # At once, by another process, and for other work.
        assert faults.in_child(lambda: Staging.open(tmp_path / "OUT", key="other").close()) == 0
    assert (tmp_path / ".OUT.ligo-partial" / ".work" / "key").read_text().startswith("other\n")


def open_handles(folder: Path) -> list[str]:
    """What this process has open below `folder`; nothing is seen where /proc is missing."""
    links = Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").is_dir() else ()
    targets = []
    for link in links:
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
            targets.append(str(link.readlink()))
    return [target for target in targets if target.startswith(str(folder))]


@pytest.mark.parametrize("number", [None, errno.EIO], ids=["killed", "EIO"])
def test_a_discard_stopped_at_any_effect_is_gone_on_with(tmp_path: Path, number: int | None) -> None:
    stops = 0
    while True:
        out = tmp_path / str(stops) / "OUT"
        stage_some(out).close()

        def stopped(out: Path = out, at: int = stops) -> None:
            with Staging.open(out, key=KEY) as staging, faults.inject(at, number=number) as count:
                try:
                    staging.discard()
                except MachineError:
                    assert count[0] > at
                else:
                    assert count[0] <= at
                    assert list(out.parent.iterdir()) == []
                    os._exit(77)

        status = faults.in_child(stopped)
        if status == 77:
            break
        assert status == (-signal.SIGKILL if number is None else 0)
        # What is left is still known as ours: the next run goes on with it, or begins anew.
        if (out.parent / ".OUT.ligo-partial").exists() and stops % 2:
            with Staging.open(out, key=KEY) as staging:
                staging.discard()
            assert list(out.parent.iterdir()) == []
        finish(out)
        stops += 1
    assert stops > 10


def test_a_discard_never_touches_a_finished_output(tmp_path: Path) -> None:
    job(tmp_path / "OUT")
    with pytest.raises(OutputBusy):
        Staging.open(tmp_path / "OUT", key=KEY)
    staging = stage_some(tmp_path / "NEW")
    (tmp_path / "NEW").mkdir()
    write_file(tmp_path / "NEW" / "file", b"theirs")
    staging.discard()
    assert content(tmp_path / "OUT") == FILES
    assert content(tmp_path / "NEW") == {"file": b"theirs"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["NEW", "OUT"]


def test_lines_are_kept_and_a_torn_one_is_not(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        assert staging.read_lines("log") == []
        staging.append_line("log", "one")
        staging.append_line("log", "zw\u00f6lf")
        path = staging.path / "log"
        whole = path.read_bytes()
        for torn in (b"thr", b"\xc3", b"\0\0\0"):
            path.write_bytes(whole + torn)
            assert staging.read_lines("log") == ["one", "zw\u00f6lf"]
        staging.append_line("log", "three")
        assert path.read_bytes() == whole + b"three\n"
        path.write_bytes(b"\xff\n" + whole)
        assert staging.read_lines("log") == ["\ufffd", "one", "zw\u00f6lf"]


# --- two runs ---------------------------------------------------------------------------------------------------------


HOLDER = """
import sys, time
from pathlib import Path
from ligo_convert.io.staging import Staging
staging = Staging.open(Path(sys.argv[1]), key=sys.argv[2])
staging.write_bytes("config.json", b"theirs")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the staging directory of OUT."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "OUT"), KEY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_run_is_turned_away_at_once_and_a_killed_one_holds_nothing(
    tmp_path: Path, holder: subprocess.Popen[bytes]
) -> None:
    start = time.monotonic()
    with pytest.raises(OutputBusy, match="another run is writing here"):
        Staging.open(tmp_path / "OUT", key=KEY)
    assert time.monotonic() - start < 1
    holder.kill()
    holder.wait(timeout=60)
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        assert staging.resumed
        assert staging.files() == ["config.json"]


def test_of_many_runs_at_once_one_wins_and_nothing_is_mixed(tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    start = time.time() + 0.3

    def run(number: int) -> Callable[[], None]:
        def contend() -> None:
            time.sleep(max(0.0, start - time.time()))
            try:
                with Staging.open(out, key=KEY) as staging:
                    for name in "abcdefgh":
                        staging.write_bytes(name, str(number).encode())
                    staging.commit()
            except OutputBusy:
                os._exit(6)

        return contend

    children = [faults.start(run(number)) for number in range(6)]
    statuses = [faults.wait(child) for child in children]
    assert sorted(statuses) == [0, 6, 6, 6, 6, 6]
    winner = str(statuses.index(0)).encode()
    assert content(out) == dict.fromkeys("abcdefgh", winner)
    assert [path.name for path in tmp_path.iterdir()] == ["OUT"]


def test_without_locks_the_run_that_was_taken_over_does_not_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Staging.open(tmp_path / "OUT", key=KEY) as first, Staging.open(tmp_path / "OUT", key=KEY) as second:
        second.write_bytes("config.json", b"second")
        with pytest.raises(OutputBusy, match="taken over"):
            first.commit()
        second.commit()
    assert content(tmp_path / "OUT") == {"config.json": b"second"}


def test_a_lock_on_a_directory_that_was_committed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "OUT"
    flock = fcntl.flock
    racing = [Staging.open(out, key=KEY)]
    racing[0].write_bytes("config.json", b"first")

    def commit_before_locking(descriptor: int, operation: int) -> None:
        while racing:
            first = racing.pop()
            first.commit()
            first.close()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", commit_before_locking)
    with pytest.raises(OutputBusy, match="is not empty"):
        Staging.open(out, key=KEY)
    assert content(out) == {"config.json": b"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["OUT"]

"""Leases: one process acquires a lease, in any order of steps; a process that has lost one learns it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import faults
from support.checkpoints import HERE

from ligo_convert.io import leases
from ligo_convert.io.leases import Leases

SELF = leases.process_identity()


def dead() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait(timeout=60)
    return process.pid


def lease_of(folder: Path, **identity: Any) -> Path:
    """Write a lease as a process with this identity would."""
    (folder / "leases").mkdir(exist_ok=True)
    path = folder / "leases/a"
    path.write_text(json.dumps({**SELF, "run": "theirs", **identity}))
    return path


@contextmanager
def between(at: int, meanwhile: Callable[[], None]) -> Iterator[list[str]]:
    """Call `meanwhile` just before the effect numbered `at` of the block. Yields the effects of the block."""
    effects: list[str] = []

    def act(effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        effects.append(effect)
        if len(effects) == at + 1:
            effects.append("meanwhile")
            meanwhile()
            effects[at + 1 :] = []
        return function(path, *arguments)

    with faults.around(act):
        yield effects


def interleavings(tmp_path: Path, attempt: Callable[[Leases], bool]) -> list[tuple[bool, bool, str]]:
    """Let two processes acquire a stale lease, one completely before each step of the other. Returns who got it and who holds it."""
    found = []
    for at in range(100):
        folder = tmp_path / str(at)
        with Leases(folder) as one, Leases(folder) as two:
            lease_of(folder, pid=dead())
            others = []
            with between(at, lambda one=one, others=others: others.append(one.acquire("a"))) as effects:  # type: ignore[misc]
                ours = attempt(two)
            if at >= len(effects):
                return found
            found.append((others[0], ours, "one" if one.is_held("a") else "two" if two.is_held("a") else "nobody"))
    raise AssertionError("the block has more than 100 effects")


def test_one_of_two_processes_acquires_a_stale_lease_in_any_order(tmp_path: Path) -> None:
    found = interleavings(tmp_path, lambda two: two.acquire("a"))
    assert len(found) > 3
    for theirs, ours, holder in found:
        assert [theirs, ours].count(True) <= 1
        assert holder == ("one" if theirs else "two" if ours else "nobody")
    assert {holder for _, _, holder in found} >= {"one", "two"}


def test_a_stale_lease_is_acquired_once_and_released(tmp_path: Path) -> None:
    with Leases(tmp_path) as one, Leases(tmp_path) as two:
        lease_of(tmp_path, pid=dead())
        assert sorted([one.acquire("a"), two.acquire("a")]) == [False, True]
        assert sorted(path.name for path in (tmp_path / "leases").iterdir() if not path.name.startswith(".")) == ["a"]
    assert list((tmp_path / "leases").iterdir()) == []


def test_a_new_lease_that_was_moved_aside_is_put_back(tmp_path: Path) -> None:
    with Leases(tmp_path) as one, Leases(tmp_path) as two:
        path = lease_of(tmp_path, pid=dead())
        fresh = []

        def third() -> None:  # a third process evicted us and acquired the lease in between
            path.unlink()
            fresh.append(one.acquire("a"))

        with between(-1, lambda: None) as effects:
            assert two.acquire("a")
        two.release("a")
        path = lease_of(tmp_path, pid=dead())
        with between(effects.index("rename"), third):
            assert not two.acquire("a")
        assert fresh == [True]
        assert one.is_held("a")
        assert one.complete("a", {"state": "done"})


def test_a_process_that_lost_its_lease_writes_no_record(tmp_path: Path) -> None:
    with Leases(tmp_path) as one, Leases(tmp_path) as two:
        assert one.acquire("a")
        (tmp_path / "leases/a").unlink()
        assert two.acquire("a")
        assert two.complete("a", {"state": "done"})
        assert not one.complete("a", {"state": "failed"})
        assert two.read_record("a") == {"state": "done"}
        assert two.acquire("a")
        one.release("a")
        assert two.is_held("a")


def test_the_heartbeat_leaves_another_process_s_lease_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TOUCH_SECONDS", 0.02)
    with Leases(tmp_path) as held:
        assert held.acquire("a")
        path = tmp_path / "leases/a"
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert path.stat().st_mtime > 0, "our own lease gets a heartbeat"
        path.unlink()
        lease_of(tmp_path, host="elsewhere")
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert path.stat().st_mtime == 0


def test_a_process_killed_at_any_step_blocks_nobody(tmp_path: Path) -> None:
    def die() -> None:
        with Leases(tmp_path) as held, faults.inject(at, number=None):
            held.acquire("a")
            held.release("a")

    deaths = 0
    for at in range(100):
        lease_of(tmp_path, pid=dead())
        if faults.in_child(die) == 0:
            break
        deaths += 1
        with Leases(tmp_path) as held:
            assert held.acquire("a"), f"killed at its effect {at}"
    assert deaths > 6


def test_a_stale_eviction_lock_of_another_machine_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ligo_convert.io.leases.STALE_SECONDS", 0.1)
    path = lease_of(tmp_path, pid=dead())
    content = path.read_bytes()
    with Leases(tmp_path) as one:
        locks: list[Path] = []

        def note(effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
            locks.extend(target for target in arguments if isinstance(target, Path) and target.suffix == ".evict")
            return function(path, *arguments)

        with faults.around(note):
            assert one.acquire("a")
        one.release("a")
        path.write_bytes(content)
        locks[0].write_text(json.dumps({**SELF, "host": "elsewhere", "run": "deposer"}))
        assert not one.acquire("a")
        time.sleep(0.2)
        assert one.acquire("a")


@pytest.mark.parametrize(
    ("identity", "dead_for_sure"),
    [
        ({}, False),
        ({"pid": "dead"}, True),
        ({"pid": "dead", "host": "elsewhere"}, False),
        ({"pid": "dead", "pids": 1}, False),  # a number of another namespace
        ({"pid": "dead", "pids": None, "boot": None}, False),  # an identity without namespaces
        ({"started": 1}, True),  # the number was reused
        ({"started": None}, False),
        ({"boot": "another"}, True),
        ({"boot": "another", "pids": 1}, False),  # a pod of this name on another machine
        ({"pid": "seven"}, False),
        ({"pid": 2**70}, True),
    ],
)
def test_a_process_is_dead_only_if_that_is_certain(
    identity: dict[str, Any], dead_for_sure: bool, tmp_path: Path
) -> None:
    proc = tmp_path / "proc"
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text("this\n")
    (proc / "self").mkdir()
    (proc / str(os.getpid())).mkdir()
    (proc / str(os.getpid()) / "stat").write_text(f"{os.getpid()} (a) name) S {' '.join(str(n) for n in range(4, 53))}")
    me = {**SELF, "boot": "this", "pids": leases._INITIAL, "pid": os.getpid(), "started": 22}
    other = {**me, **identity}
    if other["pid"] == "dead":
        other["pid"] = dead()

    with pytest.MonkeyPatch.context() as patch:
        # No file has the inode number of the kernel's namespace.
        patch.setattr(leases, "process_identity", lambda proc: me)
        assert leases.is_dead(other, proc) == dead_for_sure


def test_a_process_is_alive_by_its_own_identity() -> None:
    assert leases.process_identity() == SELF
    assert SELF["pid"] == os.getpid()
    assert not leases.is_dead(SELF)


def test_a_system_without_proc_has_one_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = leases.process_identity(tmp_path)
    assert (me["boot"], me["pids"], me["started"]) == (None, None, None)
    for platform, gone in (("darwin", True), ("linux", False)):
        monkeypatch.setattr("sys.platform", platform)
        assert leases.is_dead({**me, "pid": dead()}, tmp_path) == gone


def test_a_long_pause_between_two_looks_counts_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, clock = leases.Watch(), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    idle = []
    for clock[0] in (0.0, 5.0, 500.0, 505.0):
        idle.append(watch.idle("a", "same"))
    assert idle == [0.0, 5.0, 20.0, 25.0]
    assert watch.idle("a", "other") == 0.0


def test_a_record_under_the_name_of_another_is_discarded(tmp_path: Path) -> None:
    warned: list[str] = []
    with Leases(tmp_path, warn=lambda name, text: warned.append(f"{name}: {text}")) as leases:
        assert leases.acquire("a")
        leases.complete("a", {"state": "done"})
        (tmp_path / "done" / "a.json").rename(tmp_path / "done" / "b.json")
        assert leases.read_record("b") is None
        assert len(warned) == 1
        assert "b: its record is damaged (the record of other work)" in warned[0]
        assert not (tmp_path / "done" / "b.json").exists()


def test_a_lease_is_exclusive_until_it_is_released(tmp_path: Path) -> None:
    with Leases(tmp_path) as one, Leases(tmp_path) as two:
        assert one.acquire("a")
        assert not two.acquire("a")
        assert one.is_held("a")
        one.complete("a", {"state": "done"})
        assert two.read_record("a") == {"state": "done"}
        assert two.acquire("a")
        two.clear("a")
        assert one.read_record("a") is None
    assert not list((tmp_path / "leases").iterdir())


def test_the_lease_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    lines = [
        "import os, sys",
        "from pathlib import Path",
        "from ligo_convert.io.leases import Leases",
        "with Leases(Path(sys.argv[1])) as held:",
        "    assert held.acquire('a')",
        "    os._exit(0)",
    ]
    program = "\n".join(lines)
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": HERE}, check=True, timeout=60
    )
    assert (tmp_path / "leases/a").exists()
    with Leases(tmp_path) as held:
        assert held.acquire("a")


def test_the_lease_of_another_machine_is_taken_over_without_a_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ligo_convert.io.leases.STALE_SECONDS", 0.2)
    with Leases(tmp_path) as held:
        path = tmp_path / "leases/a"
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "run": "x"}))
        os.utime(path, (0, 0))  # whatever its clock says
        assert not held.acquire("a")  # first look
        time.sleep(0.3)
        os.utime(path)
        assert not held.acquire("a")  # touched since
        time.sleep(0.3)
        assert held.acquire("a")


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"[" * 100_000, b'{"pid": ["x"]}', b"null", b"\xff\xfe"])
def test_a_damaged_lease_is_taken_over_without_a_heartbeat(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ligo_convert.io.leases.STALE_SECONDS", 0.05)
    with Leases(tmp_path) as held:
        (tmp_path / "leases/a").write_bytes(content)
        assert not held.acquire("a")  # first look
        time.sleep(0.1)
        assert held.acquire("a")
        assert held.is_held("a")

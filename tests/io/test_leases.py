"""Claims: of any who try, one succeeds, in whatever order their steps fall; and whoever has lost a claim learns it."""

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
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def claim_of(folder: Path, **said: Any) -> Path:
    """A claim as a process that says this of itself has made it."""
    (folder / "claims").mkdir(exist_ok=True)
    path = folder / "claims/a"
    path.write_text(json.dumps({**SELF, "run": "theirs", **said}))
    return path


@contextmanager
def between(at: int, meanwhile: Callable[[], None]) -> Iterator[list[str]]:
    """Let `meanwhile` happen just before the effect numbered `at` of the block. Yields the effects that were asked for."""
    asked: list[str] = []

    def act(effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        asked.append(effect)
        if len(asked) == at + 1:
            asked.append("meanwhile")
            meanwhile()
            asked[at + 1 :] = []
        return function(path, *arguments)

    with faults.around(act):
        yield asked


def interleavings(tmp_path: Path, judge: Callable[[Leases], bool]) -> list[tuple[bool, bool, str]]:
    """Two take the claim of one who is gone; the other does it whole before each step of the first in turn. Who got it, and whose it is."""
    found = []
    for at in range(100):
        folder = tmp_path / str(at)
        with Leases(folder) as one, Leases(folder) as two:
            claim_of(folder, pid=dead())
            others = []
            with between(at, lambda one=one, others=others: others.append(one.take("a"))) as asked:  # type: ignore[misc]
                ours = judge(two)
            if at >= len(asked):
                return found
            found.append((others[0], ours, "one" if one.holds("a") else "two" if two.holds("a") else "nobody"))
    raise AssertionError("there is no end to it")


def test_of_two_who_take_a_stale_claim_one_succeeds_whatever_the_order(tmp_path: Path) -> None:
    found = interleavings(tmp_path, lambda two: two.take("a"))
    assert len(found) > 3
    for theirs, ours, holder in found:
        assert [theirs, ours].count(True) <= 1
        assert holder == ("one" if theirs else "two" if ours else "nobody")
    assert {holder for _, _, holder in found} >= {"one", "two"}


def test_a_claim_that_nobody_got_is_there_for_the_next(tmp_path: Path) -> None:
    with Leases(tmp_path) as one, Leases(tmp_path) as two:
        claim_of(tmp_path, pid=dead())
        assert sorted([one.take("a"), two.take("a")]) == [False, True]
        assert sorted(path.name for path in (tmp_path / "claims").iterdir() if not path.name.startswith(".")) == ["a"]
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_fresh_claim_that_was_moved_aside_is_put_back(tmp_path: Path) -> None:
    with Leases(tmp_path) as one, Leases(tmp_path) as two:
        path = claim_of(tmp_path, pid=dead())
        fresh = []

        def third() -> None:  # another in whose turn ours was taken for gone: the claim changes under our hands
            path.unlink()
            fresh.append(one.take("a"))

        with between(-1, lambda: None) as effects:
            assert two.take("a")
        two.release("a")
        path = claim_of(tmp_path, pid=dead())
        with between(effects.index("rename"), third):
            assert not two.take("a")
        assert fresh == [True]
        assert one.holds("a")
        assert one.finish("a", {"state": "done"})


def test_whoever_has_lost_a_claim_keeps_no_record(tmp_path: Path) -> None:
    with Leases(tmp_path) as one, Leases(tmp_path) as two:
        assert one.take("a")
        (tmp_path / "claims/a").unlink()
        assert two.take("a")
        assert two.finish("a", {"state": "done"})
        assert not one.finish("a", {"state": "failed"})
        assert two.record("a") == {"state": "done"}
        assert two.take("a")
        one.release("a")
        assert two.holds("a")


def test_the_claim_of_another_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TOUCH_SECONDS", 0.02)
    with Leases(tmp_path) as claims:
        assert claims.take("a")
        path = tmp_path / "claims/a"
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert path.stat().st_mtime > 0, "ours is touched"
        path.unlink()
        claim_of(tmp_path, host="elsewhere")
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert path.stat().st_mtime == 0


def test_one_who_dies_in_its_turn_keeps_nobody_out(tmp_path: Path) -> None:
    def die() -> None:
        with Leases(tmp_path) as claims, faults.inject(at, number=None):
            claims.take("a")
            claims.release("a")

    deaths = 0
    for at in range(100):
        claim_of(tmp_path, pid=dead())
        if faults.in_child(die) == 0:
            break
        deaths += 1
        with Leases(tmp_path) as claims:
            assert claims.take("a"), f"killed at its effect {at}"
    assert deaths > 6


def test_a_turn_of_another_machine_is_taken_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ligo_convert.io.leases.STALE_SECONDS", 0.1)
    path = claim_of(tmp_path, pid=dead())
    content = path.read_bytes()
    with Leases(tmp_path) as one:
        turns: list[Path] = []

        def note(effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
            turns.extend(target for target in arguments if isinstance(target, Path) and target.suffix == ".turn")
            return function(path, *arguments)

        with faults.around(note):
            assert one.take("a")
        one.release("a")
        path.write_bytes(content)
        turns[0].write_text(json.dumps({**SELF, "host": "elsewhere", "run": "deposer"}))
        assert not one.take("a")
        time.sleep(0.2)
        assert one.take("a")


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        ({}, False),
        ({"pid": "dead"}, True),
        ({"pid": "dead", "host": "elsewhere"}, False),
        ({"pid": "dead", "pids": 1}, False),  # the number means something else here
        ({"pid": "dead", "pids": None, "boot": None}, False),  # a claim of an earlier version
        ({"started": 1}, True),  # the number has been given to another process since
        ({"started": None}, False),
        ({"boot": "another"}, True),
        ({"boot": "another", "pids": 1}, False),  # a pod of this name on another machine
        ({"pid": "seven"}, False),
        ({"pid": 2**70}, True),
    ],
)
def test_who_is_gone(said: dict[str, Any], gone: bool, tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text("this\n")
    (proc / "self").mkdir()
    (proc / str(os.getpid())).mkdir()
    (proc / str(os.getpid()) / "stat").write_text(f"{os.getpid()} (a) name) S {' '.join(str(n) for n in range(4, 53))}")
    me = {**SELF, "boot": "this", "pids": leases._INITIAL, "pid": os.getpid(), "started": 22}
    other = {**me, **said}
    if other["pid"] == "dead":
        other["pid"] = dead()

    with pytest.MonkeyPatch.context() as patch:
        # A file cannot be made with the kernel's number.
        patch.setattr(leases, "process_identity", lambda proc: me)
        assert leases.is_dead(other, proc) == gone


def test_a_process_says_which_it_is() -> None:
    assert leases.process_identity() == SELF
    assert SELF["pid"] == os.getpid()
    assert not leases.is_dead(SELF)


def test_a_system_without_proc_has_one_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = leases.process_identity(tmp_path)
    assert (me["boot"], me["pids"], me["started"]) == (None, None, None)
    for platform, gone in (("darwin", True), ("linux", False)):
        monkeypatch.setattr("sys.platform", platform)
        assert leases.is_dead({**me, "pid": dead()}, tmp_path) == gone


def test_a_long_look_away_counts_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, clock = leases.Watch(), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    idle = []
    for clock[0] in (0.0, 5.0, 500.0, 505.0):
        idle.append(watch.idle("a", "same"))
    assert idle == [0.0, 5.0, 20.0, 25.0]
    assert watch.idle("a", "other") == 0.0


def test_a_claim_is_one_s_own_until_it_is_given_back(tmp_path: Path) -> None:
    with Leases(tmp_path) as one, Leases(tmp_path) as two:
        assert one.take("a")
        assert not two.take("a")
        assert one.holds("a")
        one.finish("a", {"state": "done"})
        assert two.record("a") == {"state": "done"}
        assert two.take("a")
        two.forget("a")
        assert one.record("a") is None
    assert not list((tmp_path / "claims").iterdir())


def test_a_claim_of_a_process_that_has_died_is_taken(tmp_path: Path) -> None:
    lines = [
        "import os, sys",
        "from pathlib import Path",
        "from ligo_convert.io.leases import Leases",
        "with Leases(Path(sys.argv[1])) as claims:",
        "    assert claims.take('a')",
        "    os._exit(0)",
    ]
    program = "\n".join(lines)
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": HERE}, check=True)
    assert (tmp_path / "claims/a").exists()
    with Leases(tmp_path) as claims:
        assert claims.take("a")


def test_a_claim_of_another_machine_is_taken_when_nobody_touches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ligo_convert.io.leases.STALE_SECONDS", 0.2)
    with Leases(tmp_path) as claims:
        path = tmp_path / "claims/a"
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "run": "x"}))
        os.utime(path, (0, 0))  # whatever its clock says
        assert not claims.take("a")  # seen for the first time
        time.sleep(0.3)
        os.utime(path)
        assert not claims.take("a")  # touched since
        time.sleep(0.3)
        assert claims.take("a")

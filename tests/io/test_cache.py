"""The shelf: what cannot be kept harms nothing, and nobody waits for one who is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import faults
from support.source_models import DEEPER, write_checkpoint, write_text

from ligo_convert.conversion.convert import convert
from ligo_convert.io import leases as presence
from ligo_convert.io.cache import ResultCache, files_in
from ligo_convert.progress import Progress, Task
from ligo_convert.recipes.recipe import load_recipe

FILES: dict[str, Path | bytes] = {"a/b": b"1", "c": b"2"}


class Heard(Progress):
    """What was told."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.said: list[str] = []
        self.warned: list[str] = []

    @contextmanager
    def task(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Task]:
        self.tasks.append(name)
        yield Task()

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "sticky"])
@pytest.mark.parametrize("work", ["note", "put"])
def test_a_full_disk_fails_nothing(work: str, sticky: bool, tmp_path: Path) -> None:
    def do(shelf: ResultCache) -> None:
        if work == "note":
            shelf.note("digest", "key", {"sha256": "1"})
        else:
            with shelf.one("fit", "key") as place:
                shelf.put(place, FILES)

    for at in range(200):
        heard = Heard()
        shelf = ResultCache(tmp_path / str(at)).telling(heard)
        with faults.inject(at, number=errno.ENOSPC, sticky=sticky) as count:
            do(shelf)
        if at >= count[0]:
            assert heard.warned == []
            break
        assert len(heard.warned) == 1
        assert "disk is full" in heard.warned[0]
        do(ResultCache(shelf.folder))
        if work == "put":
            assert files_in(shelf.folder / "fit-key").keys() == FILES.keys()
        else:
            assert shelf.recall("digest", "key") == {"sha256": "1"}
        assert hidden(shelf.folder) == [], f"failed at its effect {at}"
    assert at > 6


def test_what_another_was_faster_to_make_is_left_and_ours_is_cleared_away(tmp_path: Path) -> None:
    shelf = ResultCache(tmp_path)
    with shelf.one("fit", "key") as place:
        ResultCache(tmp_path).put(place, {"theirs": b"1"})
        shelf.put(place, FILES)
    assert files_in(place).keys() == {"theirs"}
    assert hidden(tmp_path) == []


def test_what_a_killed_process_left_half_made_is_cleared_away(tmp_path: Path) -> None:
    def die() -> None:
        shelf = ResultCache(tmp_path)
        with shelf.one("fit", "key") as place, faults.inject(5, number=None):
            shelf.put(place, FILES)

    assert faults.in_child(die) < 0
    assert len(hidden(tmp_path)) == 1
    with ResultCache(tmp_path).one("fit", "key"):
        assert hidden(tmp_path) == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ligo_convert.io.cache.POLL_SECONDS", 0.02)
    monkeypatch.setattr("ligo_convert.io.cache.STALE_SECONDS", 0.5)
    monkeypatch.setattr(presence, "TOUCH_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
def test_one_makes_it_while_the_others_wait_and_say_so(tmp_path: Path) -> None:
    made: list[int] = []
    heard = [Heard() for _ in range(4)]

    def make(number: int) -> None:
        shelf = ResultCache(tmp_path, heard[number])
        with shelf.one("fit", "key") as place:
            if not place.is_dir():
                made.append(number)
                time.sleep(1.0)  # longer than nobody is heard of
                shelf.put(place, FILES)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(one.tasks for one in heard) == [[], *[["waiting for another to make the same fit"]] * 3]
    assert [one.said for one in heard] == [[]] * 4


@pytest.mark.usefixtures("quick")
def test_nobody_waits_for_a_lock_that_nobody_tends(tmp_path: Path) -> None:
    # As a lock that a network file system keeps for a machine that is gone.
    lock = os.open(tmp_path / "fit-key.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    made, heard = [], [Heard() for _ in range(3)]

    def make(number: int) -> None:
        time.sleep(0.1 * number)
        shelf = ResultCache(tmp_path, heard[number])
        with shelf.one("fit", "key") as place:
            if not place.is_dir():
                made.append(number)
                time.sleep(1.0)
                shelf.put(place, FILES)

    threads = [threading.Thread(target=make, args=(number,), daemon=True) for number in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        os.close(lock)
    # The others see that somebody has gone on, and wait for that one.
    assert made == [0]
    assert heard[0].said == ["nothing was seen for a while of who makes the same fit: it is made here"]


def test_what_is_there_is_had_while_another_reads_it(tmp_path: Path) -> None:
    shelf = ResultCache(tmp_path)
    with shelf.one("fit", "key") as place:
        shelf.put(place, FILES)
        heard = Heard()
        with ResultCache(tmp_path, heard).one("fit", "key") as found:
            assert files_in(found).keys() == FILES.keys()
        assert heard.tasks == []


def test_without_locks_two_may_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with ResultCache(tmp_path).one("fit", "key") as place, ResultCache(tmp_path).one("fit", "key") as other:
        ResultCache(tmp_path).put(place, FILES)
        assert other == place


def test_a_run_tells_what_its_shelf_could_not_keep(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(
            {
                "version": 1,
                "source": {"model": str(write_checkpoint(tmp_path / "source"))},
                "target": {"config": DEEPER["gpt2"]},
                "growth": {"width": "copy", "depth": "stack"},
                "fit": {
                    "steps": 1,
                    "batch_size": 2,
                    "sequence_length": 16,
                    "heldout_tokens": 256,
                    "data": {"text": [str(tmp_path / "text.txt")]},
                },
                "output": {"dir": str(tmp_path / "out")},
            }
        )
    )

    def act(effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        if "shelf" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return function(path, *arguments)

    heard = Heard()
    with faults.around(act):
        outcome = convert(load_recipe(tmp_path / "recipe.yaml"), progress=heard, shelf=ResultCache(tmp_path / "shelf"))
    assert outcome.changed
    assert [text for text in heard.warned if "not kept" in text] == heard.warned[:1]

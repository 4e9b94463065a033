"""The cache: what cannot be kept harms nothing, and nobody waits for one who is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import faults
from support.cached import restored
from support.recorded import RecordedProgress
from support.source_models import DEEPER, write_checkpoint, write_text

from ligo_convert.conversion.convert import convert
from ligo_convert.io import leases
from ligo_convert.io.cache import CacheEntry, ResultCache
from ligo_convert.recipes.recipe import load_recipe

CONTENT = {"a/b": b"1", "c": b"2"}
FILES: dict[str, Path | bytes] = {**CONTENT}


def stored(cache: ResultCache) -> dict[str, bytes] | None:
    """What a run takes out of the entry `fit-key`; None where it has to compute it."""
    with cache.lock_entry("fit", "key") as entry:
        return restored(entry)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "sticky"])
def test_a_full_disk_fails_nothing(sticky: bool, tmp_path: Path) -> None:
    def do(cache: ResultCache) -> None:
        with cache.lock_entry("fit", "key") as entry:
            entry.store(FILES)

    for at in range(200):
        progress = RecordedProgress()
        cache = ResultCache(tmp_path / str(at)).with_progress(progress)
        with faults.inject(at, number=errno.ENOSPC, sticky=sticky) as count:
            do(cache)
        if at >= count[0]:
            assert progress.warned == []
            break
        assert len(progress.warned) == 1
        assert "disk is full" in progress.warned[0]
        do(ResultCache(cache.folder))
        assert stored(cache) == CONTENT
        assert hidden(cache.folder) == [], f"failed at its effect {at}"
    assert at > 6


def test_the_first_to_store_an_entry_wins_and_the_other_is_removed(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    with cache.lock_entry("fit", "key") as entry:
        CacheEntry(ResultCache(tmp_path), "fit", "key").store({"theirs": b"1"})
        entry.store(FILES)
    assert stored(cache) == {"theirs": b"1"}
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("other", ["fit-other", "source-key"])
def test_an_entry_under_the_name_of_another_is_discarded(other: str, tmp_path: Path) -> None:
    kind, _, key = other.partition("-")
    CacheEntry(ResultCache(tmp_path), kind, key).store(FILES)
    (tmp_path / other).rename(tmp_path / "fit-key")
    progress = RecordedProgress()
    assert stored(ResultCache(tmp_path).with_progress(progress)) is None
    assert len(progress.warned) == 1
    assert "another kind or key" in progress.warned[0]
    assert not (tmp_path / "fit-key").exists()


def test_an_entry_that_a_killed_process_left_unfinished_is_removed(tmp_path: Path) -> None:
    def die() -> None:
        cache = ResultCache(tmp_path)
        with cache.lock_entry("fit", "key") as entry, faults.inject(5, number=None):
            entry.store(FILES)

    assert faults.in_child(die) < 0
    assert len(hidden(tmp_path)) == 1
    with ResultCache(tmp_path).lock_entry("fit", "key"):
        assert hidden(tmp_path) == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ligo_convert.io.cache.POLL_SECONDS", 0.02)
    monkeypatch.setattr("ligo_convert.io.cache.STALE_SECONDS", 0.5)
    monkeypatch.setattr(leases, "TOUCH_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
def test_one_process_computes_while_the_others_wait_and_report_it(tmp_path: Path) -> None:
    made: list[int] = []
    progress = [RecordedProgress() for _ in range(4)]

    def make(number: int) -> None:
        cache = ResultCache(tmp_path, progress[number])
        with cache.lock_entry("fit", "key") as entry:
            if entry.digests() is None:
                made.append(number)
                time.sleep(1.0)  # longer than nobody is progress of
                entry.store(FILES)

    threads = [threading.Thread(target=make, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(made) == 1
    assert sorted(one.tasks for one in progress) == [[], *[["waiting for another process to compute the same fit"]] * 3]
    assert [one.said for one in progress] == [[]] * 4


@pytest.mark.usefixtures("quick")
def test_a_lock_without_a_heartbeat_is_not_waited_for(tmp_path: Path) -> None:
    # Like a lock that a network file system keeps for a machine that crashed.
    lock = os.open(tmp_path / "fit-key.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    made, progress = [], [RecordedProgress() for _ in range(3)]

    def make(number: int) -> None:
        time.sleep(0.1 * number)
        cache = ResultCache(tmp_path, progress[number])
        with cache.lock_entry("fit", "key") as entry:
            if entry.digests() is None:
                made.append(number)
                time.sleep(1.0)
                entry.store(FILES)

    threads = [threading.Thread(target=make, args=(number,), daemon=True) for number in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        os.close(lock)
    # The others see the heartbeat of the process that took over, and wait for it.
    assert made == [0]
    assert progress[0].said == ["the process computing this fit stopped responding; computing it here"]


def test_a_stored_entry_is_read_without_waiting(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    with cache.lock_entry("fit", "key") as entry:
        entry.store(FILES)
        progress = RecordedProgress()
        assert stored(ResultCache(tmp_path, progress)) == CONTENT
        assert progress.tasks == []


def test_without_locks_two_processes_compute_the_same_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with (
        ResultCache(tmp_path).lock_entry("fit", "key") as entry,
        ResultCache(tmp_path).lock_entry("fit", "key") as other,
    ):
        entry.store(FILES)
        assert other.digests() == entry.digests() != None  # noqa: E711


@pytest.mark.slow
def test_a_run_warns_once_when_the_cache_cannot_be_written(tmp_path: Path) -> None:
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
        if "cache" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return function(path, *arguments)

    progress = RecordedProgress()
    with faults.around(act):
        outcome = convert(
            load_recipe(tmp_path / "recipe.yaml"), progress=progress, cache=ResultCache(tmp_path / "cache")
        )
    assert outcome.changed
    assert [text for text in progress.warned if "cannot write to the shared cache" in text] == progress.warned[:1]

"""Power losses: whatever unsynced part of a run is lost at any point, an output is absent or whole, and the next run ends right."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cached import restored
from support.outputs import hidden, same
from support.power import Recorder, Tree, build, files_of, tree_of
from support.recorded import RecordedProgress
from support.source_models import GROWN, fit_section, recipe_text, write_checkpoint, write_text
from support.staged import FILES, finish, job

from ligo_convert.conversion.convert import convert
from ligo_convert.io.cache import ResultCache
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe


def states(recorder: Recorder, draw: random.Random, *, step: int = 1) -> Iterator[tuple[int, Tree]]:
    """States after a power loss at every effect, or every so many, and after the last one."""
    last = len(recorder.effects)
    for at in (*range(0, last, step), last):
        for tree in recorder.losses(at, draw):
            yield at, tree


def recorded_job(folder: Path) -> Recorder:
    recorder = Recorder(folder)
    with recorder.recording():
        job(folder / "OUT")
    return recorder


def output(tree: Tree) -> dict[str, bytes] | None:
    found = tree.get("OUT", tree.get("out"))
    return files_of(found) if isinstance(found, dict) else None


def test_the_model_ends_where_the_file_system_does(tmp_path: Path) -> None:
    assert recorded_job(tmp_path).whole() == tree_of(tmp_path)


def test_an_output_is_absent_or_whole_and_stays_after_the_end(tmp_path: Path) -> None:
    recorder, seen = recorded_job(tmp_path), 0
    for at, tree in states(recorder, random.Random(0)):
        found = output(tree)
        assert found in (None, FILES), at
        seen += 1
        if at == len(recorder.effects):
            assert found == FILES
    assert seen > 500


def test_the_model_finds_an_output_that_was_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run without the syncs of files, and without those of directories: the model must not be blind to either."""
    for left_out in ("_fsync", "_fsync_directory"):
        with monkeypatch.context() as patch:
            patch.setattr(Recorder, left_out, lambda self, effect, function, path, arguments: None)
            folder = tmp_path / left_out
            folder.mkdir()
            recorder = recorded_job(folder)
        last = len(recorder.effects)
        assert any(
            output(tree) not in (None, FILES) or (at == last and output(tree) is None)
            for at, tree in states(recorder, random.Random(0))
        )


def test_the_next_run_ends_right(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    recorder = recorded_job(tmp_path / "first")
    draw = random.Random(1)
    for number, (_, tree) in enumerate(draw.sample(list(states(recorder, draw)), 80)):
        finish(build(tree, tmp_path / str(number)) / "OUT")


def test_an_entry_of_the_cache_is_whole_or_computed_again(tmp_path: Path) -> None:
    content = {"a/b": b"1" * 50, "c": b"2"}
    files: dict[str, Path | bytes] = {**content}

    def taken(cache: ResultCache) -> dict[str, bytes] | None:
        with cache.lock_entry("fit", "key") as entry:
            found = restored(entry)
            if found is not None:
                return found
            entry.store(files)
            return None

    (tmp_path / "first").mkdir()
    recorder = Recorder(tmp_path / "first")
    with recorder.recording():
        taken(ResultCache(tmp_path / "first" / "cache"))
    draw, answers = random.Random(0), list[dict[str, bytes] | None]()
    for number, (_, tree) in enumerate(states(recorder, draw)):
        folder = build(tree, tmp_path / str(number))
        cache = ResultCache(folder / "cache", RecordedProgress())
        answers.append(taken(cache))
        assert answers[-1] in (None, content)
        assert taken(cache) == content
        shutil.rmtree(folder)
    assert None in answers
    assert content in answers


@pytest.mark.slow
def test_a_whole_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit with its states, shards, record and commit: one in five of its effects, and thirty next runs."""
    monkeypatch.setattr("ligo_convert.training.loop.SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("ligo_convert.outputs.side_files.fit_picture", lambda *_, **__: b"a picture")
    write_text(tmp_path / "a.txt", lines=200)
    write_checkpoint(tmp_path / "source")
    section: dict[str, Any] = {**fit_section(), "steps": 2, "heldout_tokens": 32, "evaluate_every": 1}
    section["data"] = {"text": [str(tmp_path / "a.txt")]}
    text = recipe_text(str(tmp_path / "source"), GROWN["gpt2"], fit=section, output={"max_shard_size": "30KB"})
    (tmp_path / "fit.yaml").write_text(json.dumps(json.loads(text)))

    def run(place: Path) -> None:
        convert(load_recipe(tmp_path / "fit.yaml", out=str(place / "out")), device="cpu")

    first = tmp_path / "first"
    first.mkdir()
    recorder = Recorder(first)
    with recorder.recording():
        run(first)
    assert recorder.whole() == tree_of(first)
    whole, draw = output(tree_of(first)), random.Random(0)
    kept: list[Tree] = []
    for at, tree in states(recorder, draw, step=5):
        found = output(tree)
        assert found is None or found == whole, at
        if at == len(recorder.effects):
            assert found == whole
        if draw.random() < 0.05:
            kept.append(tree)
    for number, tree in enumerate(draw.sample(kept, 30)):
        place = build(tree, tmp_path / str(number))
        run(place)
        same(place / "out", first / "out")
        assert hidden(place) == []
        assert verify(place / "out")["files"]
        shutil.rmtree(place)

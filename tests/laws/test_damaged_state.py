"""Damage between two runs: whatever happened to a file that a stopped run left, the next run says so and ends with the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import faults
from support.damage import DAMAGES, Damage, swap_with
from support.outputs import hidden, same
from support.recorded import RecordedProgress
from support.source_models import DEEPER, GROWN, fit_section, recipe_text, write_checkpoint, write_text

from ligo_convert.batch.manifest import load_manifest
from ligo_convert.batch.scheduler import Watcher, run_batch
from ligo_convert.conversion.convert import convert
from ligo_convert.errors import OutputBusy, VerificationError
from ligo_convert.io.cache import ResultCache
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe

FIT = {**fit_section(), "steps": 2, "heldout_tokens": 32, "evaluate_every": 1}
PRETRAIN = {
    "config": {"model_type": "gpt2", "vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_head": 2, "n_layer": 2},
    "steps": 3,
    "batch_size": 2,
    "sequence_length": 16,
}
PARTIAL = ".out.ligo-partial"
# Damage that is done to what takes long to make again.
FEW = ("flipped bit", "half", "directory")


class Stopped(Exception):
    """The process ended."""


@contextmanager
def stop_after(name: str) -> Iterator[None]:
    """End the process, as far as the disk can tell, right after something got a name that begins so: every later effect fails."""
    reached = False

    def act(effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        nonlocal reached
        if reached:
            raise Stopped
        result = function(path, *arguments)
        reached = effect.startswith("rename") and arguments[0].name.startswith(name)
        return result

    with faults.around(act):
        yield


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Where a run is stopped: `after` this name appeared, in the run of `recipe`."""

    recipe: str
    after: str


STOPS = {
    "in training": Stop(recipe="own", after="pretrain-state.safetensors"),
    "in the fit": Stop(recipe="fit", after="fit-state.safetensors"),
    "between shards": Stop(recipe="fit", after="model-00001"),
    "trained": Stop(recipe="own", after="fit-state.safetensors"),
    "in the commit": Stop(recipe="fit", after=".out.ligo-partial.work"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "place"
    (folder / "corpus").mkdir(parents=True)
    write_text(folder / "corpus" / "a.txt")
    write_checkpoint(folder / "source")
    for name in ("fit", "own"):
        text = recipe_text("./source", GROWN["gpt2"], fit=FIT, output={"max_shard_size": "30KB"})
        recipe = json.loads(text) | ({"source": {"pretrain": PRETRAIN}} if name == "own" else {})
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is saved after every step; the picture of the fit, half of such a run's time, is drawn elsewhere."""
    monkeypatch.setattr("ligo_convert.training.loop.SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("ligo_convert.outputs.side_files.fit_picture", lambda *_, **__: b"a picture")


def run(place: Path, recipe: str, *, out: str = "out", cache: Path | None = None) -> RecordedProgress:
    """Carry out a recipe of a place; the output is verified there."""
    progress = RecordedProgress()
    loaded = load_recipe(place / f"{recipe}.yaml", out=str(place / out))
    convert(loaded, device="cpu", progress=progress, cache=None if cache is None else ResultCache(cache))
    return progress


class Runs:
    """Outputs of runs that nothing stopped, and places where a run was stopped, each made when it is first asked for."""

    def __init__(self, base: Path, folder: Callable[[], Path]) -> None:
        self._base, self._folder, self._made = base, folder, dict[str, Path]()

    def output(self, recipe: str) -> Path:
        if recipe not in self._made:
            self._made[recipe] = self.place()
            run(self._made[recipe], recipe)
        return self._made[recipe] / "out"

    def stopped(self, name: str) -> Path:
        if name not in self._made:
            place = self.place()
            with stop_after(STOPS[name].after), pytest.raises(Stopped):
                run(place, STOPS[name].recipe)
            self._made[name] = place
        return self._made[name]

    def place(self) -> Path:
        return shutil.copytree(self._base, self._folder() / "place")


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(base, lambda: tmp_path_factory.mktemp("runs"))


def left(place: Path) -> list[Path]:
    """Every file that a stopped run left, relative to its place."""
    found = [path for name in hidden(place) for path in sorted((place / name).rglob("*")) if path.is_file()]
    return [path.relative_to(place) for path in found]


def check(runs: Runs, tmp_path: Path, stop: str, name: Path, damage: Damage, *, said: bool = True) -> None:
    """Damage one file that a stopped run left, and go on."""
    place = shutil.copytree(runs.stopped(stop), tmp_path / "place", symlinks=True)
    damage(place / name)
    progress = run(place, STOPS[stop].recipe)
    same(place / "out", runs.output(STOPS[stop].recipe))
    assert hidden(place) == []
    # What is written anew whatever it was, and what only counts, need not be mentioned.
    if said and name.name not in ("run", "journal.jsonl") and "new" not in name.parts:
        assert any(name.name in text for text in progress.warned), (name, progress.warned)
    assert verify(place / "out")["files"]
    shutil.rmtree(place)


def test_every_file_with_one_flipped_bit_is_made_again(runs: Runs, tmp_path: Path) -> None:
    """Eight runs, each of one file: the staged operator, the state of the fit, a shard, the journals, the key."""
    for stop, wanted in (("in the fit", "fit-state"), ("between shards", "")):
        names = [name for name in left(runs.stopped(stop)) if wanted in name.name]
        assert names
        for name in names:
            check(runs, tmp_path, stop, name, DAMAGES["flipped bit"])


@pytest.mark.slow
def test_every_file_with_every_damage_is_made_again(runs: Runs, tmp_path: Path) -> None:
    """Each kind of file with each kind of damage, at one of the places where a run was stopped."""
    tried: set[tuple[str, str]] = set()
    for stop in STOPS:
        for name in left(runs.stopped(stop)):
            for kind, damage in DAMAGES.items():
                role = name.name if "source" not in name.parts or name.suffix == ".safetensors" else "side file"
                if (role, kind) not in tried and (STOPS[stop].recipe == "fit" or kind in FEW):
                    tried.add((role, kind))
                    # A line more is no line: it is cut off.
                    check(runs, tmp_path, stop, name, damage, said=(role, kind) != ("key", "one byte more"))
    assert len(tried) > 70


@pytest.mark.slow
def test_a_file_of_another_run_is_not_taken(runs: Runs, tmp_path: Path, base: Path) -> None:
    """The same names, written by a run of another seed."""
    other = shutil.copytree(base, tmp_path / "other")
    recipe = json.loads((other / "fit.yaml").read_text())
    recipe["fit"]["seed"] = 1
    (other / "fit.yaml").write_text(json.dumps(recipe))
    with stop_after(STOPS["between shards"].after), pytest.raises(Stopped):
        run(other, "fit")
    for name in left(runs.stopped("between shards")):
        theirs, ours = (other / name).read_bytes(), (runs.stopped("between shards") / name).read_bytes()
        if name.name == "key":
            with pytest.raises(OutputBusy, match="unfinished work of another recipe"):
                check(runs, tmp_path, "between shards", name, swap_with(other / name))
            shutil.rmtree(tmp_path / "place")
        elif theirs != ours:
            # The facts only explain a refusal: they are written again without a word.
            check(runs, tmp_path, "between shards", name, swap_with(other / name), said=name.name != "facts.json")
    place = runs.stopped("between shards")
    operator, shard = (
        next(name for name in left(place) if name.name.startswith(start)) for start in ("operator", "model")
    )
    check(runs, tmp_path, "between shards", operator, swap_with(place / shard))
    check(runs, tmp_path, "between shards", shard, swap_with(place / operator))


def test_staged_work_of_the_format_before_the_journal_is_discarded(runs: Runs, tmp_path: Path) -> None:
    place = shutil.copytree(runs.stopped("between shards"), tmp_path / "place")
    work = place / PARTIAL / ".work"
    key = (work / "key").read_text().splitlines()[0]
    (work / "key").write_text(f"{key}\n")
    (work / "journal.jsonl").rename(work / "shards.jsonl")
    progress = run(place, "fit")
    same(place / "out", runs.output("fit"))
    assert any("not in the journal" in text for text in progress.warned)


@pytest.mark.parametrize("name", ["config.json", "ligo/operator.safetensors"])
def test_a_bit_that_is_lost_before_the_commit_is_not_vouched_for(name: str, runs: Runs) -> None:
    """SHA256SUMS and provenance state what was written, and every file is read back."""
    place = runs.place()

    def act(effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        if effect == "rename" and arguments[0].name == "provenance.json":
            DAMAGES["flipped bit"](place / PARTIAL / name)
        return function(path, *arguments)

    with faults.around(act), pytest.raises(VerificationError, match="differ from the bytes written"):
        run(place, "fit")
    assert not (place / "out").exists()
    assert any(Path(name).name in text for text in run(place, "fit").warned)
    same(place / "out", runs.output("fit"))


# --- the shared cache -------------------------------------------------------------------------------------------------


def cached(runs: Runs, recipe: str, folder: Path) -> tuple[Path, list[Path]]:
    """A place, and the entries that a run of the recipe there left in `cache`, as relative paths."""
    place = folder / "cached"
    if not place.exists():
        shutil.copytree(runs.place(), place)
        run(place, recipe, cache=place / "cache")
        shutil.rmtree(place / "out")
    return place, [path.relative_to(place) for path in sorted((place / "cache").rglob("*")) if path.is_file()]


def check_cached(runs: Runs, tmp_path: Path, recipe: str, name: Path, damage: Damage) -> None:
    """Damage one file of the cache, and run again elsewhere: the same bytes, said once, and mended for the run after it."""
    before, _ = cached(runs, recipe, tmp_path)
    place = shutil.copytree(before, tmp_path / "place")
    damage(place / name)
    progress = run(place, recipe, cache=place / "cache")
    same(place / "out", runs.output(recipe))
    if name.suffix != ".lock":
        assert [text for text in progress.warned if name.parts[1] in text], (name, progress.warned)
        if damage is DAMAGES["flipped bit"]:
            shutil.rmtree(place / "out")
            assert not [text for text in run(place, recipe, cache=place / "cache").warned if "cache" in text]
    shutil.rmtree(place)


def test_a_flipped_bit_in_the_shared_cache_is_not_taken(runs: Runs, tmp_path: Path) -> None:
    for name in cached(runs, "fit", tmp_path)[1]:
        check_cached(runs, tmp_path, "fit", name, DAMAGES["flipped bit"])


def test_an_entry_under_the_name_of_another_key_is_not_taken(runs: Runs, tmp_path: Path) -> None:
    """The fit of another seed, whole, with its own digests, in the place of this one."""
    place, names = cached(runs, "fit", tmp_path)
    recipe = json.loads((place / "fit.yaml").read_text())
    recipe["fit"]["seed"] = 1
    (place / "other.yaml").write_text(json.dumps(recipe))
    run(place, "other", out="other", cache=place / "cache")
    ours = next(name.parts[1] for name in names if name.suffix != ".lock")
    (theirs,) = [path for path in (place / "cache").iterdir() if path.is_dir() and path.name != ours]
    shutil.rmtree(place / "cache" / ours)
    theirs.rename(place / "cache" / ours)
    progress = run(place, "fit", cache=place / "cache")
    assert any("another kind or key" in text for text in progress.warned)
    same(place / "out", runs.output("fit"))


@pytest.mark.slow
def test_every_damage_to_the_shared_cache_is_mended(runs: Runs, tmp_path: Path) -> None:
    for recipe in ("fit", "own"):
        folder = tmp_path / recipe
        folder.mkdir()
        roles = {name.name: name for name in cached(runs, recipe, folder)[1]}
        for name in roles.values():
            if recipe == "own" and "fit-" in name.parts[1]:
                continue
            for kind, damage in DAMAGES.items():
                # A line more at the end of JSON is no damage; training a source takes its time.
                if (name.suffix, kind) != (".json", "one byte more") and (recipe == "fit" or kind in FEW):
                    check_cached(runs, folder, recipe, name, damage)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "one byte more"])
def test_a_damaged_record_of_a_batch_is_made_again(
    kind: str, batch: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, before = batch
    place = shutil.copytree(manifest.parent, tmp_path / "place")
    monkeypatch.chdir(place)
    (record,) = (place / "zoo.ligo-batch" / "done").iterdir()
    DAMAGES[kind](record)
    said: list[str] = []
    done = run_batch(
        load_manifest(place / manifest.name), watcher=Watcher(on_message=lambda _, text: said.append(text))
    )
    assert done.exit_code == 0
    assert files(place / "zoo" / "one") == before
    assert any("its record is damaged" in text for text in said)
    assert not run_batch(load_manifest(place / manifest.name)).statuses["one"].why
    assert run_batch(load_manifest(place / manifest.name)).statuses["one"].reused


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A finished batch of one entry that copies layers: its manifest, and the files of its output."""
    folder = tmp_path_factory.mktemp("batch")
    write_checkpoint(folder / "source")
    recipe = json.loads(recipe_text("./source", DEEPER["gpt2"])) | {"growth": {"width": "copy", "depth": "stack"}}
    (folder / "deeper.yaml").write_text(json.dumps(recipe))
    manifest = {"version": 1, "out": "zoo", "entries": [{"name": "one", "recipe": "deeper.yaml"}]}
    (folder / "zoo.yaml").write_text(json.dumps(manifest))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where a manifest's outputs and state are
        assert run_batch(load_manifest(folder / "zoo.yaml")).exit_code == 0
    return folder / "zoo.yaml", files(folder / "zoo" / "one")


def test_an_output_of_a_batch_that_lost_bytes_is_not_called_done(
    batch: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(batch[0].parent, tmp_path / "place")
    monkeypatch.chdir(place)
    weights = place / "zoo" / "one" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = run_batch(load_manifest(place / "zoo.yaml"))
    assert done.exit_code == 7
    assert "changed since it was written" in str(done.statuses["one"].why)


def test_a_lease_that_is_no_file_stops_nobody(
    batch: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(batch[0].parent, tmp_path / "place")
    monkeypatch.chdir(place)
    shutil.rmtree(place / "zoo.ligo-batch" / "done")
    (place / "zoo.ligo-batch" / "leases" / "one").mkdir()
    assert run_batch(load_manifest(place / "zoo.yaml")).exit_code == 0

"""A destination is a class and a row in a table: here a folder, which exists only in this test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.source_models import DEEPER, write_checkpoint

from ligo_convert.conversion.convert import convert
from ligo_convert.errors import MachineError, PublishRefused, RecipeError, VerificationError
from ligo_convert.outputs.bundle import Bundle, pack
from ligo_convert.outputs.publish import DESTINATIONS, Destination, publish
from ligo_convert.outputs.verify import verify
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import load_recipe


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    bundle: Bundle
    folder: Path

    def json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), **self.bundle.contents()}


@dataclass(frozen=True, kw_only=True)
class FolderDestination:
    """Publish to a new folder on this machine."""

    folder: Path

    def check_options(self) -> None:
        if not self.folder.is_absolute():
            raise RecipeError("not an absolute path", where=self.folder)

    def check_access(self) -> None:
        if not self.folder.parent.is_dir():
            raise MachineError("no such directory", where=self.folder.parent)

    def check_beforehand(self, *, license: str | None, progress: Progress) -> None:
        self.check_options()
        self.check_access()
        self._require_free()

    def plan(self, bundle: Bundle, *, progress: Progress) -> dict[str, Any]:
        self._require_free()
        return {"folder": str(self.folder), "changed": True, **bundle.contents()}

    def put(self, bundle: Bundle, *, progress: Progress) -> FolderReport:
        self._require_free()
        staging = self.folder.with_name(f".{self.folder.name}-{bundle.digest[:16]}")
        for name, file in bundle.files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(file.read())
        verify(staging)
        staging.rename(self.folder)
        return FolderReport(bundle=bundle, folder=self.folder)

    def _require_free(self) -> None:
        if self.folder.exists():
            raise PublishRefused("the folder exists", where=self.folder, hint="name another folder")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output directory of a model whose source states a licence."""
    folder = tmp_path_factory.mktemp("grown")
    source = write_checkpoint(folder / "source")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    recipe = {
        "version": 1,
        "source": {"model": str(source)},
        "target": {"config": DEEPER["gpt2"]},
        "growth": {"width": "copy", "depth": "stack"},
        "output": {"dir": str(folder / "out")},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return convert(load_recipe(folder / "recipe.yaml")).out


@pytest.fixture(autouse=True)
def folder_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DESTINATIONS, "folder", FolderDestination)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_a_new_destination_gets_the_bundle_byte_for_byte(grown: Path, tmp_path: Path) -> None:
    report = publish(grown, "folder", folder=tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(grown)
    assert report.json()["license"] == "apache-2.0"
    assert {file["name"] for file in report.json()["files"]} == set(contents(grown))


def test_a_stated_licence_is_in_the_published_copy_only(grown: Path, tmp_path: Path) -> None:
    before = contents(grown)
    publish(grown, "folder", folder=tmp_path / "copy", license="mit")
    assert "license: mit" in (tmp_path / "copy" / "README.md").read_text()
    assert verify(tmp_path / "copy")["files"] == len(before) - 1
    assert contents(grown) == before


def test_a_plan_changes_nothing(grown: Path, tmp_path: Path) -> None:
    destination: Destination = FolderDestination(folder=tmp_path / "copy")
    destination.check_beforehand(license=None, progress=Progress())
    plan = destination.plan(pack(grown), progress=Progress())
    assert {file["name"] for file in plan["files"]} == set(contents(grown))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "error"),
    [("copy", RecipeError), ("/no-such-folder/copy", MachineError)],
    ids=["options", "access"],
)
def test_options_and_access_are_checked_before_the_directory_is_read(folder: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        publish(Path("no-such-output"), "folder", folder=Path(folder))


def test_a_taken_place_and_a_damaged_directory_are_refused(grown: Path, tmp_path: Path) -> None:
    publish(grown, "folder", folder=tmp_path / "copy")
    with pytest.raises(PublishRefused, match="the folder exists"):
        publish(grown, "folder", folder=tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text("{}")
    with pytest.raises(VerificationError):
        publish(tmp_path / "copy", "folder", folder=tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_an_unknown_destination_is_refused(grown: Path) -> None:
    with pytest.raises(RecipeError, match="no such destination"):
        publish(grown, "moon")


def test_every_destination_has_every_method() -> None:
    methods: list[Callable[..., Any]] = [
        Destination.check_options,
        Destination.check_access,
        Destination.check_beforehand,
        Destination.plan,
        Destination.put,
    ]
    for name, destination in DESTINATIONS.items():
        for method in methods:
            assert callable(getattr(destination, method.__name__, None)), f"{name} lacks {method.__name__}"

"""The wheel: it holds the examples and the schema, and works outside a clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
LIMIT = 300.0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel. A wheel is installed by unpacking it."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=LIMIT,
    )
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(place / "site")
    return place / "site"


def run(installed: Path, *arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-m", "ligo_convert", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_what_a_clone_has(installed: Path) -> None:
    assert {path.stem for path in (installed / "ligo_convert" / "examples").glob("*.yaml")} == RECIPES
    for name in ("recipes/recipe.schema.json", "outputs/measured.json", "comparison/page.html.j2", "py.typed"):
        assert (installed / "ligo_convert" / name).is_file(), name
    assert not [path for path in installed.rglob("*") if "tests" in path.parts or path.name == "results.md"]


def test_an_example_of_the_wheel_plans_in_any_folder(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, "examples", cwd=tmp_path)
    assert set(listed.split()) >= RECIPES
    assert "exact" in run(installed, "plan", "--example", "quickstart", cwd=tmp_path)
    run(installed, "init", "--example", "quickstart", cwd=tmp_path)
    first = (tmp_path / "quickstart.yaml").read_text().splitlines()[0]
    assert first.endswith(str(installed / "ligo_convert" / "recipes" / "recipe.schema.json"))

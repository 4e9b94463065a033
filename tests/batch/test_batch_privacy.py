"""What a batch writes and prints is shared by machines and people: no home, account, machine or absolute path is in it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from support.light_models import write_light_recipe, write_light_source

from ligo_convert.outputs.privacy import place_of, without_places

ROOT = Path(__file__).parents[2]
CANARY = "kanarienvogel"


def test_nothing_private_is_in_the_state_or_the_report(tmp_path: Path) -> None:
    home = tmp_path / CANARY
    place = home / "project"
    write_light_source(place / "source")
    write_light_recipe(place / "recipe.yaml", depth="stack")
    entries = [
        {"name": "good", "recipe": "recipe.yaml"},
        {"name": "lost", "recipe": "recipe.yaml", "source": "./nowhere"},
        {"name": "unread", "recipe": "missing.yaml"},
        {"name": "wrong", "recipe": "recipe.yaml", "set": {"growth.width": 1}},
        {"name": "elsewhere", "recipe": "recipe.yaml", "source": f"{tmp_path}/{CANARY}-data/model"},
    ]
    (place / "many.yaml").write_text(json.dumps({"version": 1, "out": "outs", "entries": entries}))
    kept = {key: value for key, value in os.environ.items() if key != "TMPDIR"}
    for again in (False, True):
        done = subprocess.run(
            [sys.executable, "-m", "ligo_convert", "batch", "many.yaml", "--json"],
            cwd=place,
            env={**kept, "HOME": str(home), "USER": CANARY, "LOGNAME": CANARY, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        report = json.loads(done.stdout)
        assert report["entries"]["good"] == {
            **report["entries"]["good"],
            "state": "done",
            "out": "outs/good",
            "again": again,
        }
        assert [report["entries"][name]["code"] for name in ("lost", "unread", "wrong", "elsewhere")] == [3, 2, 2, 3]
        assert report["entries"]["lost"]["why"] == "nowhere: no such directory"
        assert report["state"] == "outs.ligo-batch"
        texts = {"stdout": done.stdout}
        texts |= {
            str(file): file.read_text("latin-1")
            for file in place.rglob("*")
            if file.is_file() and file.name != "many.yaml"
        }
        for name, text in texts.items():
            assert str(tmp_path) not in text, name
            assert CANARY not in text, name
            assert name.startswith("stdout") or platform.node() not in text, name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HOME/a/b: no such file", "~/a/b: no such file"),
        ("HOME", "~"),
        ("HOMEr/x is another's", ".../x is another's"),
        ("found: /etc/secret/model, /x", "found: .../model, .../x"),
        ("expected a/b or ./c/d and 1/2", "expected a/b or ./c/d and 1/2"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
    ],
)
def test_paths_of_a_message_are_cut(text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "hom"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert without_places(text.replace("HOME", str(home))) == expected
    assert place_of(home / "a") == "~/a"
    assert place_of(Path.cwd() / "a" / "b") == "a/b"
    assert place_of(Path("/nowhere/a")) == "/nowhere/a"

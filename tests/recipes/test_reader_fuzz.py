"""Crafted recipes and manifests: whatever a file holds, it is read, or refused with a documented code in a few lines."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ligo_convert.batch.manifest import load_manifest
from ligo_convert.batch.scheduler import shard_entries
from ligo_convert.conversion.plan import plan_json, plan_recipe
from ligo_convert.errors import LigoError
from ligo_convert.limits import ENTRIES
from ligo_convert.recipes.recipe import load_recipe

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 29}
RECIPE: dict[str, Any] = {
    "version": 1,
    "source": {"config": GPT2, "allow_nonfinite": False},
    "target": {"config": {"n_layer": 4, "n_embd": 16, "n_head": 4}, "architecture": "GPT2LMHeadModel"},
    "growth": {"width": "zero", "depth": "stack", "seed": 1, "operator": {"keying": "shared"}},
    "fit": {
        "steps": 4,
        "batch_size": 2,
        "sequence_length": 8,
        "learning_rate": {"width": 1e-3, "depth": 1e-2},
        "warmup_steps": 1,
        "data": {"text": ["t.txt"]},
    },
    "output": {"dir": "out", "dtype": "float32", "max_shard_size": "2GB"},
    "publish": {"repo": "a/b", "license": "mit", "public": False, "branch": "main", "tag": "v1"},
    "compare": {"methods": ["scratch"], "steps": 10, "learning_rates": [1e-3], "seeds": [0]},
}
MANIFEST: dict[str, Any] = {
    "version": 1,
    "out": "outs",
    "state": "state",
    "set": {"growth.seed": 3},
    "publish": {"repo": "me/{name}", "license": "mit"},
    "resources": {"cpus": 1, "gpus": 0, "memory": "1GB"},
    "entries": [
        {"name": "a", "recipe": "recipe.yaml", "target": {"n_layer": 6}, "set": {"growth.width": "zero"}},
        {"name": "b", "recipe": "recipe.yaml", "source": {"from": "a"}, "after": ["a"], "publish": False},
        {"name": "t", "recipe": "recipe.yaml", "table": [{"name": "t1"}, {"publish": {"repo": "x/y"}}]},
        {"recipes": ["rec*.yaml"], "sources": ["s*"], "name": "g"},
        {"name": "o", "operator": {"from": "a"}, "source": "./source"},
    ],
}
WORDS = [
    "",
    " ",
    "x" * 5000,
    "\0",
    "\u202e",
    "\ud800",
    "~nobody/x",
    "~",
    "/",
    "..",
    "../source",
    "file:///x",
    "**",
    "[",
]
WORDS += ["hf_abcdefghijklmnopqrstuv", "a/b", "a/b/c", "2GB", ".nan", "copy", "a\nb", "{name}", "%s", "/dev/zero", "#"]
VALUES: list[Any] = [None, True, 0, -1, 1.5, 1e308, 10**18, 2**63, [], {}, [[]], [None], [{}], {"": ""}, *WORDS]
VALUES += [
    {"from": "a"},
    {"from": "nobody"},
    {"from": 1},
    {"repo": 1},
    ["x"] * 50,
    {"x": {"y": {"z": 1}}},
    [[[[[]]]] * 3],
]
KEYS = ["", "config", "model", "name", "set", "target", "table", "out", "extra", "publish", "\u202e", "x" * 300]
MARKS = [
    '"',
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\\",
    "\x01",
    "\t",
    "\n",
    "# ",
    "- ",
    "&a ",
    "*a",
    "!x ",
    "<<: ",
    "\u2028",
    "? ",
]


def places(data: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield from places(value, (*path, key))


def mutated(data: dict[str, Any], chance: random.Random) -> str:
    """The text of `data` with a few values, keys or characters replaced."""
    data = copy.deepcopy(data)
    for _ in range(chance.choice([1, 1, 2, 3])):
        path = chance.choice([path for path in places(data) if path] or [()])
        if not path:
            break
        owner: Any = data
        for key in path[:-1]:
            owner = owner[key]
        act, last = chance.random(), path[-1]
        if act < 0.6:
            owner[last] = chance.choice(VALUES)
        elif act < 0.7:
            del owner[last]
        elif act < 0.8 and isinstance(owner, dict):
            owner[chance.choice(KEYS)] = owner.pop(last) if chance.random() < 0.5 else chance.choice(VALUES)
        else:
            owner[last] = [owner[last]] if act < 0.9 else {"x": owner[last]}
    text = json.dumps(data)
    if chance.random() < 0.15:
        at = chance.randrange(len(text))
        text = text[:at] + chance.choice(MARKS) + text[at + chance.choice([0, 1, 5]) :]
    return text[: chance.randrange(len(text))] if chance.random() < 0.05 else text


def read_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    recipe.public()
    recipe.digest(source={}, data=None)
    plan_json(plan_recipe(recipe))


def read_manifest(path: Path) -> None:
    manifest = load_manifest(path)
    assert sorted(manifest.order) == sorted(manifest.entries)
    shard_entries(manifest, (0, 2))


def refused_by(read: Callable[[Path], None], path: Path, text: str) -> LigoError | None:
    try:
        read(path)
    except LigoError as error:
        return error
    except Exception as error:
        raise AssertionError(text) from error
    return None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    (tmp_path / "t.txt").write_text("text\n" * 100)
    plain = {key: value for key, value in RECIPE.items() if key not in ("fit", "compare", "publish")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain))
    return tmp_path


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("data", "read"), [(RECIPE, read_recipe), (MANIFEST, read_manifest)], ids=["recipe", "manifest"]
)
def test_every_mutation_is_read_or_refused(
    place: Path, data: dict[str, Any], read: Callable[[Path], None], seed: int
) -> None:
    chance = random.Random(seed)
    path = place / "case.yaml"
    for _ in range(80):
        text = mutated(data, chance)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        refusal = refused_by(read, path, text)
        if refusal is not None:
            assert refusal.exit_code in (2, 3, 5, 6, 8), text
            assert len(str(refusal)) < 8000, text


WRONG_PUBLISH: list[tuple[dict[str, Any], str]] = [
    ({"publish": {"repo": {"x": 1}}}, "publish.repo"),
    ({"publish": {"repo": "a/{name}", "licence": "mit"}}, "publish.licence"),
    ({"publish": {"repo": "a/{name}", "public": "yes"}}, "publish.public"),
]


@pytest.mark.parametrize(("publish", "key"), WRONG_PUBLISH)
@pytest.mark.parametrize("level", ["manifest", "entry", "row"])
def test_a_fault_of_publish_is_located_where_it_stands(
    place: Path, publish: dict[str, Any], key: str, level: str
) -> None:
    entry: dict[str, Any] = {"name": "a", "recipe": "recipe.yaml", "table": [{"name": "b"}, {"name": "c"}]}
    content: dict[str, Any] = {"version": 1, "out": "outs", "entries": [entry]}
    {"manifest": content, "entry": entry, "row": entry["table"][1]}[level].update(publish)
    path = place / "many.yaml"
    path.write_text(json.dumps(content, indent=1))
    with pytest.raises(LigoError) as caught:
        load_manifest(path)
    assert caught.value.exit_code == 2
    lines = path.read_text().splitlines()
    number = next(index for index, line in enumerate(lines, 1) if f'"{key.partition(".")[2]}"' in line)
    assert f"many.yaml:{number}:" in str(caught.value)
    assert str(caught.value).count(key) <= 2  # once for all entries, and in the line that is shown


def test_a_manifest_that_multiplies_is_refused(place: Path) -> None:
    for number in range(60):
        (place / f"s{number}").mkdir()
        (place / f"recipe{number}.yaml").write_text("{}")
    many = {"name": "g", "recipes": ["recipe*.yaml"] * 900, "sources": ["s*/", "s*"] * 450}
    path = place / "many.yaml"
    path.write_text(json.dumps({"version": 1, "out": "outs", "entries": [many]}))
    with pytest.raises(LigoError, match=f"{ENTRIES.most:,} entries") as caught:
        load_manifest(path)
    assert caught.value.exit_code == 2
    path.write_text(json.dumps({"version": 1, "out": "outs", "entries": [{**many, "recipes": ["*"] * 20_000}]}))
    with pytest.raises(LigoError, match="at most 1,000 entries"):
        load_manifest(path)


@pytest.mark.parametrize("circle", [False, True])
def test_a_long_chain_of_entries_is_sorted_in_time(place: Path, circle: bool) -> None:
    count = 2500
    entries = [
        {
            "name": f"e{number}",
            "operator": "operator",
            "source": "./source",
            "after": [f"e{number - 1}"] if number else [],
        }
        for number in range(count)
    ]
    if circle:
        entries[0]["after"] = [f"e{count - 1}"]
    path = place / "many.yaml"
    path.write_text(json.dumps({"version": 1, "out": "outs", "entries": entries}))
    if circle:
        with pytest.raises(LigoError, match="depend on each other"):
            load_manifest(path)
        return
    manifest = load_manifest(path)
    assert manifest.order == tuple(f"e{number}" for number in range(count))
    assert len(shard_entries(manifest, (0, 2))) == count

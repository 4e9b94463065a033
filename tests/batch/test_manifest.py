"""Manifests: expansion to entries, dependencies, and every error at its position."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ligo_convert.batch.manifest import Manifest, load_manifest
from ligo_convert.batch.scheduler import shard_entries
from ligo_convert.errors import RecipeError

Load = Callable[[str], Manifest]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that loads a manifest beside recipes a.yaml and b.yaml and sources one and two."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("version: 1\n")
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)

    def call(text: str) -> Manifest:
        (tmp_path / "zoo.yaml").write_text(text)
        return load_manifest(tmp_path / "zoo.yaml")

    return call


def names(manifest: Manifest) -> list[str]:
    return list(manifest.entries)


def test_an_entry_is_named_by_its_recipe_and_writes_where_the_manifest_says(load: Load, tmp_path: Path) -> None:
    manifest = load("version: 1\nout: out/zoo\nentries: [{recipe: a.yaml}]\n")
    entry = manifest.entries["a"]
    assert entry.recipe == tmp_path / "a.yaml"
    assert entry.out == tmp_path / "out/zoo/a"
    assert entry.where.endswith("zoo.yaml:3:11")
    assert manifest.state == tmp_path / "out/zoo.ligo-batch"
    assert load("version: 1\nentries: [{recipe: a.yaml}]\n").entries["a"].out is None  # where the recipe says


def test_a_glob_is_an_entry_for_each(load: Load, tmp_path: Path) -> None:
    manifest = load("version: 1\nentries: [{recipes: ['*.yaml']}]\n")
    assert names(manifest) == ["a", "b", "zoo"]
    manifest = load("version: 1\nout: o\nentries: [{name: step, recipe: a.yaml, sources: [runs/*]}]\n")
    assert names(manifest) == ["step-one", "step-two"]
    assert manifest.entries["step-two"].source == str(tmp_path / "runs/two")


def test_a_table_lays_its_rows_over_the_entry(load: Load) -> None:
    manifest = load(
        "version: 1\nout: o\nset: {fit.steps: 1, fit.seed: 1}\nentries:\n"
        "- recipe: a.yaml\n  name: base\n  set: {fit.steps: 2, x.y: [1]}\n  table:\n"
        "  - {source: runs/one, set: {fit.steps: 3}}\n"
        "  - {source: org/model, name: named, target: {n_layer: 4}}\n"
    )
    assert names(manifest) == ["base-1", "named"]
    first, second = manifest.entries.values()
    assert {*first.overrides} == {"fit.steps=3", "fit.seed=1", "x.y=[1]"}
    assert {*second.overrides} == {"fit.steps=2", "fit.seed=1", "x.y=[1]", 'target={"config": {"n_layer": 4}}'}
    assert second.source == "org/model"


def test_an_entry_comes_after_those_that_it_needs(load: Load, tmp_path: Path) -> None:
    manifest = load(
        "version: 1\nout: o\nentries:\n"
        "- {name: large, recipe: a.yaml, source: {from: medium}}\n"
        "- {name: sibling, operator: {from: medium}, source: runs/one}\n"
        "- {name: medium, recipe: a.yaml}\n"
        "- {name: last, recipe: b.yaml, after: [large]}\n"
        "- {name: stored, operator: some/operator.safetensors, source: runs/two}\n"
    )
    # As they were written for those who read, and in an order for those who do.
    order = manifest.order
    assert names(manifest) == ["large", "sibling", "medium", "last", "stored"]
    assert sorted(order) == sorted(names(manifest))
    for name, entry in manifest.entries.items():
        assert all(order.index(other) < order.index(name) for other in entry.after)
    assert manifest.entries["large"].source == str(tmp_path / "o/medium")
    assert manifest.entries["sibling"].operator == tmp_path / "o/medium/ligo/operator.safetensors"
    assert manifest.entries["sibling"].after == ("medium",)
    assert manifest.entries["stored"].operator == tmp_path / "some/operator.safetensors"


def test_publishing_and_resources_are_said_once_for_all_or_for_each(load: Load) -> None:
    manifest = load(
        "version: 1\nout: o\npublish: {repo: 'org/x-{name}', license: mit}\nresources: {cpus: 2, memory: 4GB}\nentries:\n"
        "- {recipe: a.yaml, resources: {gpus: 1}}\n"
        "- {recipe: b.yaml, publish: false}\n"
        "- {name: c, recipe: b.yaml, publish: {repo: other/c, public: true}}\n"
    )
    published = {
        name: entry.publish and (entry.publish["repo"], entry.publish["public"])
        for name, entry in manifest.entries.items()
    }
    assert published == {"a": ("org/x-a", False), "b": None, "c": ("other/c", True)}
    resources = manifest.entries["a"].resources
    assert (resources.cpus, resources.gpus, resources.memory) == (2.0, 1.0, 4 * 10**9)


FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown key": ("- {recipe: a.yaml, sourze: x}", ("zoo.yaml:4:20", "sourze", "did you mean 'source'")),
    "in a table's row": (
        "- recipe: a.yaml\n  table:\n  - {target: [1]}",
        ("zoo.yaml:6:14", "target", "should be a mapping"),
    ),
    "in a table's entry": ("- recipe: 3\n  table:\n  - {name: x}", ("zoo.yaml:4:11", "recipe")),
    "no table": ("- {recipe: a.yaml, table: 3}", ("should be a list of mappings",)),
    "two kinds": ("- {recipe: a.yaml, operator: x}", ("exactly one of",)),
    "no kind": ("- {name: x}", ("exactly one of",)),
    "nothing matches": ("- {recipes: [nothing-*.yaml]}", ("zoo.yaml:4:14", "no file matches")),
    "no such entry": ("- {recipe: a.yaml, source: {from: b}}", ("there is no entry 'b'",)),
    "twice": ("- {recipe: a.yaml}\n- {recipe: a.yaml}", ("zoo.yaml:5:3", "the name a is used twice")),
    "one place": (
        "- {recipe: a.yaml, out: here}\n- {recipe: b.yaml, out: here}",
        ("writes to the same output directory as a",),
    ),
    "circle": (
        "- {recipe: a.yaml, after: [b]}\n- {recipe: b.yaml, source: {from: a}}",
        ("depend on each other: a, b",),
    ),
    "itself": ("- {recipe: a.yaml, source: {from: a}}", ("depend on each other",)),
    "no name": ("- {recipe: a.yaml, name: 'a/b'}", ("is not a valid name",)),
    "a place or an entry": ("- {recipe: a.yaml, source: {form: b}}", ("{from: NAME}",)),
    "operator of nothing": ("- {name: x, operator: o.safetensors}", ("an operator needs a source",)),
    "nobody's home": (
        "- {recipe: a.yaml, source: '~nobody-of-this-name/x'}",
        ("zoo.yaml:4:28", "source", "no such home directory"),
    ),
    "nobody's operator": (
        "- {name: x, operator: '~nobody-of-this-name/x', source: runs/one}",
        ("zoo.yaml:4:23", "operator", "no such home directory"),
    ),
    "a long source": (f"- {{recipe: a.yaml, source: ./{'x' * 256}}}", ("zoo.yaml:4:28", "the path is too long")),
    "a long operator": (
        f"- {{name: x, operator: {'x/' * 2048}o, source: runs/one}}",
        ("zoo.yaml:4:23", "the path is too long"),
    ),
    "no text": ('- {recipe: a.yaml, source: "a\\0b"}', ("source", "control character")),
    "a part of several": (
        "- {recipe: a.yaml, resources: {gpus: 1.5}}",
        ("zoo.yaml:4:38", "a whole number, or a fraction"),
    ),
    "a repository": ("- {recipe: a.yaml, publish: {repo: nothing}}", ("publish.repo", "org/name")),
    "a secret": ("- {recipe: a.yaml, publish: {repo: a/b, token: x}}", ("HF_TOKEN",)),
    "set for an operator": (
        "- {name: x, operator: o, source: runs/one, set: {a: 1}}",
        ("set is allowed only with recipe",),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_shown_where_it_was_written(name: str, load: Load) -> None:
    text, words = FAULTS[name]
    with pytest.raises(RecipeError) as caught:
        load(f"version: 1\nout: o\nentries:\n{text}\n")
    for word in words:
        assert word in str(caught.value), str(caught.value)


WHOLE = (
    "version: 1\nsource: {{model: org/model}}\ntarget: {{config: {{n_layer: 4}}}}\n"
    "growth: {{width: copy, depth: stack}}\noutput: {{dir: {out}}}\n"
)


def test_two_that_are_published_to_one_place_are_refused(load: Load, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(WHOLE.format(out=name) + "publish: {repo: Me/all, license: mit}\n")
    here = "- {recipe: one.yaml}\n- {recipe: two.yaml}\n"
    named = "- {recipe: a.yaml, publish: {repo: me/ALL}}\n- {recipe: two.yaml, name: two}\n"
    for top in ("", "publish: {repo: me/all}\n"):
        for entries in (here, named):
            with pytest.raises(RecipeError) as caught:
                load(f"version: 1\nout: o\n{top}entries:\n{entries}")
            assert "two is published to the same repository as " in str(caught.value)
    # On branches of their own, or each in one of its own, they may.
    load(
        "version: 1\nout: o\nentries:\n- {recipe: one.yaml}\n- {recipe: two.yaml, publish: {repo: me/all, branch: b}}\n"
    )
    load("version: 1\nout: o\npublish: {repo: 'me/{name}'}\nentries:\n- {recipe: one.yaml}\n- {recipe: two.yaml}\n")


def test_two_that_write_where_their_recipes_say_may_not_say_the_same(load: Load, tmp_path: Path) -> None:
    for name, out in (("same", "there/it/is"), ("too", "./there/it/../it/is"), ("other", "elsewhere")):
        (tmp_path / f"{name}.yaml").write_text(WHOLE.format(out=out))
    table = "- {recipe: same.yaml, name: row, table: [{set: {growth.seed: 1}}, {target: {n_layer: 6}}]}\n"
    for entries in (table, "- {recipe: same.yaml, name: row-1}\n- {recipe: too.yaml, name: row-2}\n"):
        with pytest.raises(RecipeError) as caught:
            load(f"version: 1\nentries:\n{entries}")
        for word in ("zoo.yaml:", "row-2 writes to the same output directory as row-1"):
            assert word in str(caught.value)
    # What is laid over a recipe counts, and a place for each is none that is shared.
    load(
        "version: 1\nentries:\n- {recipe: same.yaml}\n- {recipe: too.yaml, set: {output.dir: out}}\n- {recipe: other.yaml}\n"
    )
    load(f"version: 1\nout: o\nentries:\n{table}")


@pytest.mark.parametrize(
    "text", ["", "[]", "version: 2\nentries: []", "version: 1\nentries: []", "entries: [{recipe: a.yaml}]"]
)
def test_what_is_no_manifest_is_refused(text: str, load: Load) -> None:
    with pytest.raises(RecipeError):
        load(text)


def test_shares_part_no_chain_and_leave_nothing_out(load: Load) -> None:
    rows: list[dict[str, Any]] = [{"name": f"n{number}", "recipe": "a.yaml"} for number in range(7)]
    # One of them is written before what it needs.
    rows[4]["source"], rows[1]["source"] = {"from": "n5"}, {"from": "n4"}
    manifest = load(json.dumps({"version": 1, "out": "o", "entries": rows}))
    for count in (1, 2, 3, 9):
        dealt = [shard_entries(manifest, (number, count)) for number in range(count)]
        assert sorted(name for share in dealt for name in share) == sorted(names(manifest))
        assert any({"n1", "n4", "n5"} <= set(share) for share in dealt)
        assert max(map(len, dealt)) <= max(3, -(-7 // count) + 1)

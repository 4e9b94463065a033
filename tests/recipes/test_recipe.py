"""Recipes: what is read, what is refused and where, what the command line lays over it, digest and public form."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError

from ligo_convert.errors import RecipeError
from ligo_convert.growth.depth_methods import DEPTHS as DEPTH_METHODS
from ligo_convert.growth.width_methods import WIDTHS as WIDTH_METHODS
from ligo_convert.io.strict_yaml import load, load_file
from ligo_convert.io.yaml_writer import dump_yaml
from ligo_convert.recipes.recipe import (
    SCHEMA_COMMENT,
    SCHEMA_FILE,
    Recipe,
    is_local,
    json_schema,
    load_recipe,
)

RECIPES = Path(__file__).parents[2] / "recipes"

FULL = """\
version: 1
source:
  model: openai-community/gpt2
  revision: main
target:
  config: {n_layer: 24, n_embd: 1024, n_head: 16}
growth:
  width: lemon
  depth: identity
fit:
  steps: 1e2
  batch_size: 16
  sequence_length: 64
  learning_rate: {width: 1, depth: 3e-5}
  seed: 0
  data:
    text: [corpus/*.txt]
output:
  dir: out/gpt2-medium
  dtype: float32
  max_shard_size: 2GB
publish: {repo: org/name, license: mit}
"""

LEAST: dict[str, Any] = {
    "version": 1,
    "source": {"model": "gpt2"},
    "target": {"config": {"n_layer": 24}},
    "growth": {"width": "zero", "depth": "stack"},
    "output": {"dir": "out"},
}

Write = Callable[[object], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write `recipe.yaml` into the working directory and name it as a user there would."""
    monkeypatch.chdir(tmp_path)

    def write(content: object) -> Path:
        path = Path("recipe.yaml")
        path.write_text(content if isinstance(content, str) else dump_yaml(content), encoding="utf-8")
        return path

    return write


def changed(**changes: Any) -> dict[str, Any]:
    """LEAST with some values replaced: `fit__steps=3`; None takes a key away."""
    data = copy.deepcopy(LEAST)
    for key, value in changes.items():
        *owners, last = key.split("__")
        place = data
        for owner in owners:
            place = place.setdefault(owner, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return data


def refusal(path: Path, **arguments: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, **arguments)
    return str(caught.value)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_every_value_arrives(write: Write) -> None:
    recipe = load_recipe(write(FULL))
    assert recipe.source.model == "openai-community/gpt2"
    assert recipe.target.config == {"n_layer": 24, "n_embd": 1024, "n_head": 16}
    assert (recipe.growth.width, recipe.growth.depth) == ("lemon", "identity")
    assert recipe.fit is not None
    assert recipe.fit.steps == 100
    assert type(recipe.fit.steps) is int
    assert recipe.fit.learning_rate.width == 1.0
    assert type(recipe.fit.learning_rate.width) is float
    assert recipe.fit.learning_rate.depth == 3e-5
    assert recipe.fit.data.given == ("text",)
    assert recipe.fit.data.text == ["corpus/*.txt"]
    assert (recipe.output.dir, recipe.output.dtype) == ("out/gpt2-medium", "float32")
    assert recipe.output.max_shard_size == 2 * 10**9
    assert recipe.publish is not None
    assert (recipe.publish.repo, recipe.publish.license, recipe.publish.public) == ("org/name", "mit", False)
    assert recipe.path == Path.cwd() / "recipe.yaml"
    assert recipe.base == recipe.source_base == Path.cwd()


def test_defaults(write: Write) -> None:
    recipe = load_recipe(write(changed(fit={"steps": 1, "data": {"hub": {"id": "org/set"}}})))
    assert recipe.publish is None
    assert (recipe.source.revision, recipe.source.allow_nonfinite) == ("main", False)
    assert (recipe.growth.seed, recipe.growth.operator.keying, recipe.growth.operator.tie) == (0, None, None)
    assert (recipe.output.dtype, recipe.output.max_shard_size) == (None, 5 * 10**9)
    assert recipe.fit is not None
    assert recipe.fit.model_dump(exclude={"steps", "data"}) == {
        "batch_size": 16,
        "sequence_length": 128,
        "learning_rate": {"width": 3e-5, "depth": 1e-2},
        "seed": 0,
        "warmup_steps": None,
        "weight_decay": 0.0,
        "evaluate_every": 10,
        "heldout_tokens": 16384,
        "heldout_images": 512,
        "mask_probability": 0.15,
        "micro_batch_size": None,
        "precision": "auto",
        "threads": None,
    }
    assert recipe.fit.data.model_dump() == {
        "text": None,
        "hub": {"id": "org/set", "name": None, "split": "train", "column": "text", "revision": "main"},
        "images": None,
        "augment": None,
        "dataset": None,
        "column": None,
        "format": None,
        "packing": None,
        "stdlib": False,
        "tokenizer": None,
    }


def test_json_is_a_recipe_too(write: Write) -> None:
    as_json = json.dumps(load(FULL, label="r").data, indent="\t")
    assert load_recipe(write(as_json)) == load_recipe(write(FULL))


@pytest.mark.parametrize(
    "changes",
    [
        {"fit": {"steps": 1, "data": {"stdlib": True}}},
        {"fit": {"steps": 1, "data": {"stdlib": False, "images": "photos/"}}},
        {"fit": {"steps": 1, "data": {"stdlib": True, "tokenizer": "gpt2"}, "warmup_steps": 0}},
        {"target": {"model": "vit_small_patch16_224.augreg_in21k_ft_in1k"}},
        {"target": {"model": "org/name", "revision": "v1.0"}},
        {"target": {"model": "org/name", "config": {"n_layer": 24}}},
        {"source": {"model": "./here", "config": {"model_type": "gpt2"}}},
        {"source": {"config": {"model_type": "gpt2"}}},
        {"source": {"pretrain": {"config": {"model_type": "gpt2"}, "steps": 3}}},
        {"source__config": {"id2label": {"0": "https://example.org"}, "bos_token": "x", "token": 3}},
        {"growth__operator": {"keying": "shared"}},
        {"growth__operator": {"keying": "source", "tie": "paper"}},
        {"publish": {"repo": "org/a.b-c", "public": True}},
        {"version": 1.0},
    ],
)
def test_good_recipes_are_read_and_read_again(write: Write, changes: dict[str, Any]) -> None:
    public = load_recipe(write(changed(**changes))).public()
    assert load_recipe(write(public)).public() == public


def test_null_leaves_a_section_out(write: Write) -> None:
    text = FULL.replace("publish: {repo: org/name, license: mit}", "publish:")
    recipe = load_recipe(write(text), overrides=["fit=null"])
    assert (recipe.fit, recipe.publish) == (None, None)


def test_tie_implies_keying(write: Write) -> None:
    operator = load_recipe(write(changed(growth__operator={"tie": "paper"}))).growth.operator
    assert (operator.tie, operator.keying) == ("paper", "source")


def test_pretraining_reads_sequences_as_long_as_the_fits(write: Write) -> None:
    pretrain = {"config": {"model_type": "gpt2"}, "steps": 2}
    fit = {"steps": 1, "sequence_length": 48, "data": {"stdlib": True}}

    def length(**changes: Any) -> int:
        recipe = load_recipe(write(changed(**changes)))
        assert recipe.source.pretrain is not None
        assert recipe.base == Path.cwd()
        return recipe.source.pretrain.sequence_length

    assert length(source={"pretrain": pretrain}, fit=fit) == 48
    assert length(source={"pretrain": {**pretrain, "sequence_length": 32}}, fit=fit) == 32
    assert length(source={"pretrain": pretrain}) == 128


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [
        ("1KB", 10**3),
        ("500MB", 5 * 10**8),
        ("1GiB", 2**30),
        ("1.5 gb", 15 * 10**8),
        ("2000B", 2000),
        (4096, 4096),
        (1e6, 10**6),
    ],
)
def test_sizes(write: Write, size: object, nbytes: int) -> None:
    assert load_recipe(write(changed(output__max_shard_size=size))).output.max_shard_size == nbytes


def test_nothing_changes_afterwards(write: Write) -> None:
    recipe = load_recipe(write(FULL))
    with pytest.raises(ValidationError):
        recipe.growth.seed = 3


# --- what is refused --------------------------------------------------------------------------------------------------

NOT_A_SIZE = "is not a size: give bytes, or a number with one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB"
CONTROL = "contains a control character"
NO_SECRETS = "not allowed in a recipe; set it in the environment (HF_TOKEN, HF_ENDPOINT)"
NEITHER = "is neither a local directory nor a Hub id (`name` or `org/name`)"
CODE = "would run code from the model repository; remove it"
DEPTHS = "one of copy, stack, top, middle, interpolate, identity, drawn, silent-drawn, direct, random"
FIT_KEYS = (
    "steps, batch_size, sequence_length, learning_rate, seed, warmup_steps, weight_decay, evaluate_every, "
    "heldout_tokens, heldout_images, mask_probability, micro_batch_size, precision, threads, data"
)
CONFIG = "  config: {n_layer: 24, n_embd: 1024, n_head: 16}"
RATES = "  learning_rate: {width: 1, depth: 3e-5}"
MODEL = "  model: openai-community/gpt2"
TEXT = "    text: [corpus/*.txt]"
URL = "is a URL; give a Hub id, or a path without file://"

# (a line of FULL, what stands there instead, line:column, the fault)
BAD = [
    (
        MODEL,
        "  model: ~no-such-user/x",
        "3:10",
        "source.model: no such user: the home directory of '~no-such-user/x' is unknown",
    ),
    ("  batch_size: 16", "  bathc_size: 8", "12:3", "fit.bathc_size: unknown key (did you mean 'batch_size'?)"),
    ("  seed: 0", "  qqq: 0", "15:3", f"fit.qqq: unknown key (keys here: {FIT_KEYS})"),
    ("version: 1", "versoin: 1", "1:1", "versoin: unknown key (did you mean 'version'?)"),
    ("version: 1", "version: 2", "1:10", "version: should be 1, not 2"),
    ("version: 1", "version: true", "1:10", "version: should be a whole number, not true"),
    ("version: 1", 'version: "1"', "1:10", "version: should be 1, not '1'"),
    ("  width: lemon", "  width: lemmon", "8:10", "growth.width: unknown name 'lemmon' (did you mean 'lemon'?)"),
    ("  depth: identity", "  depth: xyz", "9:10", f"growth.depth: unknown name 'xyz' ({DEPTHS})"),
    ("  depth: identity", "  depth: on", "9:10", f"growth.depth: unknown name 'on' ({DEPTHS})"),
    ("  depth: identity", "  depth: [0, 1]", "9:10", f"growth.depth: should be {DEPTHS}, not a list"),
    ("  depth: identity", "  seed: 1", "7:1", f"growth.depth: missing ({DEPTHS})"),
    ("  steps: 1e2", '  steps: "20"', "11:10", "fit.steps: should be a whole number, not '20'"),
    ("  steps: 1e2", "  steps: 1.5", "11:10", "fit.steps: should be a whole number, not 1.5"),
    ("  steps: 1e2", "  steps: true", "11:10", "fit.steps: should be a whole number, not true"),
    ("  steps: 1e2", "  steps:", "11:3", "fit.steps: should be a whole number, not nothing"),
    ("  steps: 1e2", "  steps: 0", "11:10", "fit.steps: should be at least 1, not 0"),
    ("  steps: 1e2", "  steps: 1e20", "11:10", "fit.steps: should be at most 2147483647, not 100000000000000000000"),
    ("  steps: 1e2", "  precision: auto", "10:1", "fit.steps: missing (optimiser steps)"),
    (
        "  steps: 1e2",
        "  steps: 3\n  precision: float16",
        "12:14",
        "fit.precision: should be 'auto', 'float32' or 'bfloat16', not 'float16' (did you mean 'bfloat16'?)",
    ),
    ("  seed: 0", "  seed: -1", "15:9", "fit.seed: should be at least 0, not -1"),
    (RATES, '  learning_rate: {width: "1e-4"}', "14:26", "fit.learning_rate.width: should be a number, not '1e-4'"),
    (RATES, "  learning_rate: {width: false}", "14:26", "fit.learning_rate.width: should be a number, not false"),
    (RATES, "  learning_rate: {width: -1e-4}", "14:26", "fit.learning_rate.width: should be at least 0, not -0.0001"),
    (RATES, "  learning_rate: 3e-5", "14:18", "fit.learning_rate: should be a mapping, not 3e-05"),
    (TEXT, "    text: corpus/*.txt", "17:11", "fit.data.text: should be a list, not 'corpus/*.txt': [corpus/*.txt]"),
    (TEXT, "    text: []", "17:11", "fit.data.text: should have at least 1 entry"),
    (TEXT, "    text: [a, 3]", "17:15", "fit.data.text[1]: should be text, not 3; quote it"),
    (TEXT, '    text: [a, ""]', "17:15", "fit.data.text[1]: is empty"),
    (
        TEXT,
        "    tokenizer: gpt2",
        "16:3",
        "fit.data: give exactly one of text, hub, dataset, images, stdlib (found: none)",
    ),
    (
        TEXT,
        "    text: [a]\n    stdlib: true",
        "16:3",
        "fit.data: give exactly one of text, hub, dataset, images, stdlib (found: text and stdlib)",
    ),
    (
        TEXT,
        "    text: [a]\n    format: completion\n    column: x",
        "16:3",
        "fit.data: column is not allowed with format: completion, which reads the columns prompt and completion",
    ),
    (
        TEXT,
        "    hub: {id: a/b, column: x}\n    column: y",
        "16:3",
        "fit.data: give the column once: as column, or as hub.column",
    ),
    (
        TEXT,
        "    images: x\n    tokenizer: gpt2",
        "16:3",
        "fit.data: tokenizer is allowed only with text or hub or dataset or stdlib, not with images",
    ),
    (
        TEXT,
        "    stdlib: true\n    augment: [flip]",
        "16:3",
        "fit.data: augment is allowed only with images, not with stdlib",
    ),
    (
        TEXT,
        "    images: x\n    augment: [flip, mix]",
        "18:21",
        "fit.data.augment[1]: unknown name 'mix' (one of flip, crop, trivial-augment)",
    ),
    (TEXT, "    stdlib: 1", "17:13", "fit.data.stdlib: should be true or false, not 1"),
    (TEXT, "    hub: {name: x}", "17:5", "fit.data.hub.id: missing (Hub id of the dataset)"),
    (TEXT, "    hub: {id: a/b/c}", "17:15", "fit.data.hub.id: is not a Hub id: give `name` or `org/name`"),
    (TEXT, "    stdlib: true\n    tokenizer: a/b/c", "18:16", f"fit.data.tokenizer: 'a/b/c' {NEITHER}"),
    (MODEL, "  allow_nonfinite: true", "2:1", "source: give exactly one of model, pretrain (found: none)"),
    (MODEL, "  model: 12e3", "3:10", "source.model: should be text, not 12000.0; quote it"),
    (MODEL, "  model: models/gpt2/v1", "3:10", f"source.model: 'models/gpt2/v1' {NEITHER}"),
    (MODEL, '  model: "a\\tb"', "3:10", f"source.model: {CONTROL}"),
    (MODEL, "  model: file:///etc", "3:10", f"source.model: {URL}"),
    (MODEL, "  model: https://example.org/gpt2", "3:10", f"source.model: {URL}"),
    (
        MODEL,
        "  model: gpt2\n  pretrain: {config: {model_type: gpt2}, steps: 3}",
        "2:1",
        "source: give exactly one of model, pretrain (found: model and pretrain)",
    ),
    (
        MODEL,
        "  pretrain: {config: {model_type: gpt2}, steps: 3}",
        "2:1",
        "source: revision is allowed only with model, not with pretrain",
    ),
    ("  revision: main", "  revision: 1234567", "4:13", "source.revision: should be text, not 1234567; quote it"),
    ("  revision: main", "  revision: ../x", "4:13", "source.revision: is not a branch, tag or commit"),
    ("  revision: main", "  config: {auto_map: {AutoModel: x.Y}}", "4:12", f"source.config.auto_map: {CODE}"),
    (
        "  revision: main",
        "  config: {a: {_attn_implementation_internal: x/y}}",
        "4:16",
        f"source.config.a._attn_implementation_internal: {CODE}",
    ),
    ("  revision: main", "  config: [1]", "4:11", "source.config: should be a mapping, not a list"),
    ("  revision: main", "  endpoint: https://example.org", "4:3", f"source.endpoint: {NO_SECRETS}"),
    (CONFIG, "  config: {a: file:///etc/passwd}", "6:15", f"target.config.a: {URL}"),
    (CONFIG, "  architecture: GPT2Model", "5:1", "target: give exactly one of config, model (found: none)"),
    (CONFIG, "  config: {}\n  revision: main", "5:1", "target: revision is allowed only with model, not with config"),
    (CONFIG, "  [a]", "6:3", "target: should be a mapping, not a list"),
    (
        "  dir: out/gpt2-medium",
        "  # none",
        "18:1",
        "output.dir: missing: give output.dir, or --out on the command line",
    ),
    (
        "  dtype: float32",
        "  dtype: fp32",
        "20:10",
        "output.dtype: should be 'float32', 'float16', 'bfloat16' or 'float64', not 'fp32'",
    ),
    ("  dtype: float32", "  token: anything", "20:3", f"output.token: {NO_SECRETS}"),
    ("  max_shard_size: 2GB", "  max_shard_size: 2XB", "21:19", f"output.max_shard_size: {NOT_A_SIZE}"),
    (
        "  max_shard_size: 2GB",
        "  max_shard_size: 999",
        "21:19",
        "output.max_shard_size: should be from 1,000 bytes (1KB) to 1,000,000,000,000,000 bytes",
    ),
    (
        "  max_shard_size: 2GB",
        "  max_shard_size: 1.5",
        "21:19",
        "output.max_shard_size: should be a whole number, not 1.5",
    ),
    (
        "publish: {repo: org/name, license: mit}",
        "publish: {repo: name}",
        "22:17",
        "publish.repo: is not a Hub repository: give `org/name`",
    ),
    (
        "publish: {repo: org/name, license: mit}",
        "publish: {license: mit}",
        "22:1",
        "publish.repo: missing (Hub repository, as org/name)",
    ),
    (
        "  width: lemon",
        "  width: lemon\n  operator: {tie: paper, keying: target}",
        "9:3",
        "growth.operator: tie: paper needs keying: source, not target; remove keying",
    ),
    (
        "  width: lemon",
        "  width: lemon\n  operator: {keying: both}",
        "9:22",
        "growth.operator.keying: should be 'source', 'target' or 'shared', not 'both'",
    ),
    ("  seed: 0", "  seed: 012", "15:9", "012 is a number to some readers and text to others"),
    ("  seed: 0", "  steps: 3", "15:3", "duplicate key 'steps', first in line 11"),
]


@pytest.mark.parametrize(("line", "instead", "where", "what"), BAD, ids=[what[:50] for *_, what in BAD])
def test_a_fault_is_shown_where_it_was_written(write: Write, line: str, instead: str, where: str, what: str) -> None:
    assert FULL.count(f"{line}\n") == 1
    lines = refusal(write(FULL.replace(f"{line}\n", f"{instead}\n"))).splitlines()
    assert lines[0] == f"recipe.yaml:{where}: {what}"
    number, column = map(int, where.split(":"))
    shown = FULL.replace(f"{line}\n", f"{instead}\n").splitlines()[number - 1]
    assert lines[2].index("^") - 4 == column - 1
    if NO_SECRETS not in what:
        assert lines[1] == f"    {shown}"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "a recipe is a mapping with version, source, target, growth and output; the file is empty"),
        ("- a\n", "a recipe is a mapping with version, source, target, growth and output; found a list"),
        ("gpt2\n", "a recipe is a mapping with version, source, target, growth and output; found 'gpt2'"),
    ],
)
def test_a_recipe_is_a_mapping(write: Write, text: str, what: str) -> None:
    assert refusal(write(text)) == f"recipe.yaml: {what}"


def test_every_fault_is_named_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = FULL.replace("width: lemon", "width: lemmon").replace("batch_size: 16", "bathc_size: 16")
    text = text.replace("version: 1\n", "").replace("dtype: float32", "dtype: float31")
    assert refusal(write(text)) == (
        "recipe.yaml:1:1: version: missing: begin with `version: 1`\n"
        "    source:\n"
        "    ^\n"
        "  recipe.yaml:7:10: growth.width: unknown name 'lemmon' (did you mean 'lemon'?)\n"
        "      width: lemmon\n"
        "             ^\n"
        "  recipe.yaml:11:3: fit.bathc_size: unknown key (did you mean 'batch_size'?)\n"
        "      bathc_size: 16\n"
        "      ^\n"
        "  recipe.yaml:19:10: output.dtype: should be 'float32', 'float16', 'bfloat16' or 'float64', not 'float31' "
        "(did you mean 'float32'?)\n"
        "      dtype: float31\n"
        "             ^"
    )


def test_at_most_ten_faults_are_named(write: Write) -> None:
    text = refusal(write({**LEAST, **{f"key{number:02}": 1 for number in range(15)}}))
    assert text.count("unknown key") == 10
    assert text.endswith("\n  and 5 more")


def test_what_others_wrote_is_shown_escaped(write: Write) -> None:
    text = refusal(write(FULL.replace("seed: 0", '"se\\u202ed\\u001b[2J": 0')))
    assert text.startswith("recipe.yaml:15:3: fit.se\\u202ed\\x1b[2J: unknown key")
    assert all(line.isprintable() for line in text.splitlines())


TOKEN = "hf_" + "Abc123" * 6


@pytest.mark.parametrize(
    "instead",
    [
        f"  token: {TOKEN}",
        f"  dtype: {TOKEN}",
        f"  unknown: {TOKEN}",
        f"  {TOKEN}: 3",
        f"  unknown: https://user:{TOKEN}@example.org",
        f"  unknown: [a, {{b: '{TOKEN}'}}]",
        f"  unknown: {{token: {TOKEN}, x: 3}}",
        f"  max_shard_size: '{TOKEN}'",
    ],
)
def test_no_message_holds_a_secret(write: Write, instead: str) -> None:
    path = write(FULL.replace("  dtype: float32", instead).replace("max_shard_size: 2GB", "x: 3"))
    assert TOKEN not in refusal(path)
    assert TOKEN not in refusal(write(FULL), overrides=[instead.strip().replace(": ", "=", 1)])
    assert TOKEN not in refusal(write(FULL), overrides=[f"source.x={TOKEN}", f"{TOKEN}=3", f"a.token={TOKEN}"])
    assert TOKEN not in refusal(write(FULL), source=f"https://user:{TOKEN}@example.org/x")


def test_a_password_is_not_shown_for_a_neighbours_fault(write: Write) -> None:
    assert "swordfish" not in refusal(write(FULL.replace("license: mit", "licence: mit, password: swordfish")))
    assert "swordfish" not in refusal(write(FULL), overrides=["publish={repo: a, token: swordfish}"])


# --- the command line -------------------------------------------------------------------------------------------------


def test_set_replaces_what_stood_there(write: Write) -> None:
    path = write(FULL)
    recipe = load_recipe(path, overrides=["fit.steps=20", "target.config={n_layer: 3}", "fit.data.text=[a, b]"])
    assert recipe.fit is not None
    assert recipe.fit.steps == 20
    assert recipe.target.config == {"n_layer": 3}
    assert recipe.fit.data.text == ["a", "b"]
    assert recipe.fit.batch_size == 16


def test_set_makes_what_is_missing(write: Write) -> None:
    recipe = load_recipe(write(LEAST), overrides=["fit.data.stdlib=true", "fit.steps=1e1", "source.config.n_head=2"])
    assert recipe.fit is not None
    assert recipe.fit.steps == 10
    assert recipe.source.config == {"n_head": 2}


@given(st.permutations(["fit.steps=7", "growth.seed=3", "output.dtype=float16", "fit.data={stdlib: true}"]))
@settings(max_examples=10)
def test_the_order_of_different_sets_changes_nothing(tmp_path_factory: pytest.TempPathFactory, sets: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "order.yaml"
    path.write_text(FULL, encoding="utf-8")
    assert load_recipe(path, overrides=sets) == load_recipe(path, overrides=sorted(sets))
    # Saying it twice, or saying what holds already, changes nothing either; of two the later counts.
    assert load_recipe(path, overrides=[*sets, *sets]) == load_recipe(path, overrides=sets)
    assert load_recipe(path, overrides=["growth.seed=9", *sets]).growth.seed == 3


def test_a_set_says_what_the_file_could_say(write: Write) -> None:
    by_file = load_recipe(write(FULL.replace("steps: 1e2", "steps: 7").replace("width: lemon", "width: copy")))
    assert load_recipe(write(FULL), overrides=["fit.steps=7", "growth.width=copy"]) == by_file


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit.stpes=20", "--set fit.stpes=20: fit.stpes: unknown key (did you mean 'steps'?)"),
        ("ftt.steps=20", "--set ftt.steps=20: ftt: unknown key (did you mean 'fit'?)"),
        ("fit.steps=x", "--set fit.steps=x: fit.steps: should be a whole number, not 'x'"),
        (
            "fit={steps: 0}",
            "--set fit={steps: 0}: fit.steps: should be at least 1, not 0\n"
            "  --set fit={steps: 0}: fit.data: missing (training data)",
        ),
        ("fit.data.hub.name=x", "--set fit.data.hub.name=x: fit.data.hub.id: missing (Hub id of the dataset)"),
        (
            "growth.operator.tie=paperr",
            "--set growth.operator.tie=paperr: growth.operator.tie: should be 'paper', "
            "not 'paperr' (did you mean 'paper'?)",
        ),
        (
            "source.model.x=1",
            "--set source.model.x=1: source.model is 'openai-community/gpt2', not a mapping\n"
            "  replace the whole value of source.model",
        ),
        ("fit.data.text.0=a", "--set fit.data.text.0=a: fit.data.text is a list, not a mapping"),
        ("fit.steps", "--set fit.steps: expected KEY=VALUE\n  for example --set fit.steps=20"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("fit..steps=3", "--set fit..steps=3: expected KEY=VALUE"),
        ("fit.steps=[1", "--set fit.steps: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("fit.steps=012", "--set fit.steps: 012 is a number to some readers and text to others\n    012\n    ^"),
        ("fit.steps=&a 1", "--set fit.steps: an anchor; write the value out where it is used"),
        ("source.model=file:///x", f"--set source.model=file:///x: source.model: {URL}"),
        ("output.endpoint=x", f"--set output.endpoint=...: output.endpoint: {NO_SECRETS}"),
        ("output=null", "--set output=null: output: should be a mapping, not nothing"),
        ("a\x1bb=1", "--set a\\x1bb=1: a\\x1bb: unknown key"),
    ],
)
def test_a_fault_of_a_set_names_the_set(write: Write, override: str, message: str) -> None:
    assert refusal(write(FULL), overrides=[override]).startswith(message)


def test_faults_of_file_and_command_line_stand_together(write: Write) -> None:
    text = refusal(write(FULL.replace("seed: 0", "sed: 0")), overrides=["growth.wdth=3"])
    assert text == (
        "recipe.yaml:15:3: fit.sed: unknown key (did you mean 'seed'?)\n      sed: 0\n      ^\n"
        "  --set growth.wdth=3: growth.wdth: unknown key (did you mean 'width'?)"
    )


def test_a_fault_belongs_to_whoever_wrote_it_last(write: Write) -> None:
    found = refusal(write(FULL), overrides=["fit.steps=x", "fit.steps=y"])
    assert found == "--set fit.steps=y: fit.steps: should be a whole number, not 'y'"
    # The file has the section, so the file lacks the key, whatever else was set in it.
    found = refusal(write(FULL.replace("  steps: 1e2\n", "")), overrides=["fit.seed=3"])
    assert found.startswith("recipe.yaml:10:1: fit.steps: missing (optimiser steps)\n")


def test_the_fault_of_a_value_that_was_replaced_is_none(write: Write) -> None:
    recipe = load_recipe(write(FULL.replace("width: lemon", "width: lemmon")), overrides=["growth.width=lemon"])
    assert recipe.growth.width == "lemon"


def test_a_value_of_a_set_is_as_shallow_as_one_of_the_file(write: Write) -> None:
    deep = "{a: " * 29 + "1" + "}" * 29
    public = load_recipe(write(FULL), overrides=[f"source.config.x={deep}"]).public()
    assert load_recipe(write(public)).public() == public
    too_deep = f"source.config.x={{a: {deep}}}"
    assert "more than 32 mappings and lists within each other" in refusal(write(FULL), overrides=[too_deep])


def test_source_replaces_what_says_where_the_source_is(write: Write, tmp_path: Path) -> None:
    for source in (
        {"model": "a/b", "revision": "v1", "config": {"n": 1}, "allow_nonfinite": True},
        {"pretrain": {"config": {"model_type": "gpt2"}, "steps": 3}, "allow_nonfinite": True},
        {"config": {"n": 1}, "allow_nonfinite": True},
    ):
        found = load_recipe(write(changed(source=source)), source="org/name").source
        assert found.model_dump() == {
            "model": "org/name",
            "revision": "main",
            "config": None,
            "pretrain": None,
            "allow_nonfinite": True,
        }
    (tmp_path / "local").mkdir()
    for given_, model in (
        ("local", tmp_path / "local"),
        ("./none", tmp_path / "none"),
        ("/none/at/all", Path("/none/at/all")),
    ):
        recipe = load_recipe(write(FULL), source=given_)
        assert recipe.source.model == str(model)
        assert recipe.source_is_local


def test_a_hub_id_of_the_command_line_is_no_folder_beside_the_recipe(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "recipes" / "r.yaml"
    (path.parent / "gpt2").mkdir(parents=True)
    path.write_text(dump_yaml(LEAST), encoding="utf-8")
    assert load_recipe(path).source_is_local
    assert load_recipe(path).source_base == path.parent
    recipe = load_recipe(path, source="gpt2")
    assert not recipe.source_is_local
    assert recipe.source_base == Path.cwd() == tmp_path
    assert recipe.public()["source"]["model"] == "gpt2"


def test_out_gives_or_replaces_the_output_directory(write: Write) -> None:
    assert load_recipe(write(FULL), out="else/where").output.dir == "else/where"
    assert load_recipe(write(FULL), out="else/where").output.dtype == "float32"
    assert load_recipe(write(changed(output=None)), out="there").output.dir == "there"
    for path in (changed(output=None), changed(output={})):
        assert "missing: give output.dir, or --out on the command line" in refusal(write(path))


def test_faults_of_source_and_out_name_the_option(write: Write) -> None:
    path = write(FULL)
    assert refusal(path, source="a/b/c") == (
        "--source a/b/c: source.model: 'a/b/c' is neither a local directory nor a Hub id (`name` or `org/name`)"
    )
    assert (
        refusal(path, source="~no-such-user/x")
        == "--source ~no-such-user/x: no such user: the home directory is unknown"
    )
    assert refusal(path, source="") == "--source : source.model: is empty"
    assert refusal(path, source="file:///x") == f"--source file:///x: source.model: {URL}"
    assert refusal(path, out="") == "--out : output.dir: is empty"
    assert refusal(path, out="a\0b") == f"--out a\\x00b: output.dir: {CONTROL}"


KEYS = st.sampled_from(
    [
        "version",
        "source",
        "model",
        "config",
        "pretrain",
        "target",
        "growth",
        "width",
        "operator",
        "tie",
        "fit",
        "steps",
        "data",
        "text",
        "hub",
        "id",
        "output",
        "dir",
        "publish",
        "repo",
        "x",
    ]
)
VALUES = st.sampled_from(
    ["1", "x", "null", "true", "[]", "{}", "[1]", "{x: 1}", "{steps: 1}", "./a", "lemon", "1.5", "''"]
)


@given(st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=4), VALUES), max_size=5), st.booleans())
@settings(max_examples=400, deadline=None)
@pytest.mark.slow
def test_any_command_line_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, sets: list[tuple[list[str], str]], full: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(FULL if full else "source:\nfit: {}\noutput: 3\n", encoding="utf-8")
    overrides = [".".join(keys) + "=" + value for keys, value in sets]
    try:
        recipe = load_recipe(path, overrides=overrides)
    except RecipeError as error:
        refused = error
    else:
        assert recipe.public()
        return
    assert refused.where.startswith((f"{path}:", "--set "))
    assert str(refused)


# --- digest and public form -------------------------------------------------------------------------------------------


def digest(recipe: Recipe, **changes: Any) -> str:
    return recipe.digest(**{"source": {"model.safetensors": "ab"}, "data": "cd", **changes})


SAME = [
    ("  dir: out/gpt2-medium", "  dir: /somewhere/else"),
    ("publish: {repo: org/name, license: mit}", ""),
    ("    text: [corpus/*.txt]", "    text: [/data/a.txt, /data/b.txt]"),
    ("  steps: 1e2", "  steps: 100"),
    ("  max_shard_size: 2GB", "  max_shard_size: 2000000000"),
    ("  max_shard_size: 2GB", "  max_shard_size: 2000 MB"),
    ("  batch_size: 16", "  # the default"),
    ("  seed: 0", "  seed: 0\n  evaluate_every: 10\n  warmup_steps: null"),
    ("  config: {n_layer: 24, n_embd: 1024, n_head: 16}", "  config: {n_head: 16, n_layer: 24, n_embd: 1024}"),
    ("  revision: main", "  config: null"),
    ("version: 1", "# a comment\nversion: 1"),
]

DIFFERENT = [
    ("  model: openai-community/gpt2", "  model: openai-community/gpt2-medium"),
    ("  revision: main", "  revision: v1"),
    ("  revision: main", "  allow_nonfinite: true"),
    ("  config: {n_layer: 24, n_embd: 1024, n_head: 16}", "  config: {n_layer: 25, n_embd: 1024, n_head: 16}"),
    ("  width: lemon", "  width: zero"),
    ("  width: lemon", "  width: lemon\n  seed: 1"),
    ("  width: lemon", "  width: lemon\n  operator: {keying: shared}"),
    ("  steps: 1e2", "  steps: 101"),
    ("  seed: 0", "  seed: 1"),
    ("    text: [corpus/*.txt]", "    stdlib: true"),
    ("  dtype: float32", "  dtype: float16"),
    ("  max_shard_size: 2GB", "  max_shard_size: 2GiB"),
]


@pytest.mark.parametrize(("line", "instead"), SAME)
def test_the_digest_knows_what_changes_nothing(write: Write, line: str, instead: str) -> None:
    assert FULL.count(f"{line}\n") == 1
    before, after = load_recipe(write(FULL)), load_recipe(write(FULL.replace(f"{line}\n", f"{instead}\n")))
    assert digest(before) == digest(after)
    assert dump_yaml(before.public()) == dump_yaml(after.public())


@pytest.mark.parametrize(("line", "instead"), DIFFERENT)
def test_the_digest_knows_what_changes_something(write: Write, line: str, instead: str) -> None:
    assert FULL.count(f"{line}\n") == 1
    before, after = load_recipe(write(FULL)), load_recipe(write(FULL.replace(f"{line}\n", f"{instead}\n")))
    assert digest(before) != digest(after)


def test_the_digest_holds_the_contents(write: Write) -> None:
    recipe = load_recipe(write(FULL))
    digests = {
        digest(recipe),
        digest(recipe, source={"model.safetensors": "ff"}),
        digest(recipe, data="ff"),
        digest(recipe, data=None),
        digest(recipe, target={"commit": "ff"}),
    }
    assert len(digests) == 5
    assert all(len(found) == 64 and set(found) <= set("0123456789abcdef") for found in digests)


def test_the_digest_does_not_know_where_things_lie(write: Write, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    tokenizer = "fit={steps: 1, data: {stdlib: true, tokenizer: ./%s}}"
    recipes = [
        load_recipe(write(FULL), source=place, out=f"{place}-out", overrides=[tokenizer % place])
        for place in ("one", "two", "./one", str(tmp_path / "two"))
    ]
    by_file = changed(
        source={"model": "two"},
        target=load_recipe(Path("recipe.yaml")).target.model_dump(exclude_unset=True),
        growth={"width": "lemon", "depth": "identity"},
        fit={"steps": 1, "data": {"stdlib": True, "tokenizer": "one"}},
        output={"dir": "x", "dtype": "float32", "max_shard_size": "2GB"},
    )
    recipes.append(load_recipe(write(by_file)))
    assert len({digest(recipe) for recipe in recipes}) == 1
    assert len({dump_yaml(recipe.public()) for recipe in recipes}) == 1
    assert digest(recipes[0]) != digest(load_recipe(write(by_file), source="org/name"))


def test_two_local_targets_are_two_recipes(write: Write, tmp_path: Path) -> None:
    one, two = (load_recipe(write(changed(target={"model": place}))) for place in ("./one", "./two"))
    assert digest(one) != digest(two)
    assert digest(one, target={"config.json": "ff"}) == digest(two, target={"config.json": "ff"})


def test_augmentation_is_a_part_of_the_digest(write: Write) -> None:
    """A recipe of images from before the key existed keeps its digest and its public form."""
    plain, none, flip, both = (
        load_recipe(write(FULL.replace("    text: [corpus/*.txt]\n", f"    images: photos\n{line}")))
        for line in ("", "    augment: null\n", "    augment: [flip]\n", "    augment: [flip, crop]\n")
    )
    assert digest(plain) == digest(none) == "23b71f534ea00901702b4357cda3b86cfbd6df58b04fcfb8b35d60d04c4244c2"
    assert "augment" not in plain.public()["fit"]["data"]
    assert flip.public()["fit"]["data"]["augment"] == ["flip"]
    assert len({digest(recipe) for recipe in (plain, flip, both)}) == 3


def test_the_digest_stays_what_it_was(write: Write) -> None:
    """Outputs of earlier versions are recognised by it: a change here is a change of the recipe's version."""
    recipe = load_recipe(write(FULL))
    assert digest(recipe) == "0b860fe4e8bebc521235a9cc4529b30173818eb83857d836a0bf3824d4861825"


def test_the_public_form_is_complete_and_holds_nothing_private(write: Write, tmp_path: Path) -> None:
    home = tmp_path / "home" / "alice"
    config = {
        "_name_or_path": str(home / "gpt2"),
        "vocab_file": str(home / "vocab.json"),
        "nested": [{"cache": "~/alice/cache"}],
        "id2label": {"0": "/m/09x0r"},
    }
    recipe = load_recipe(
        write(
            changed(
                source={"model": str(home / "gpt2"), "config": config},
                target={"model": "../alice/big"},
                fit={"steps": 1, "data": {"text": ["../alice/*.txt"], "tokenizer": str(home)}},
                output={"dir": str(home / "out")},
                publish={"repo": "alice/grown"},
            )
        )
    )
    public = recipe.public()
    text = dump_yaml(public)
    assert "alice" not in text
    assert str(tmp_path) not in text
    assert public == {
        "version": 1,
        "source": {
            "model": "./source",
            "config": {"id2label": {"0": "/m/09x0r"}, "nested": [{"cache": "cache"}], "vocab_file": "vocab.json"},
            "allow_nonfinite": False,
        },
        "target": {"model": "./target", "architecture": None},
        "growth": {
            "width": "zero",
            "depth": "stack",
            "seed": 0,
            "state": None,
            "operator": {"keying": None, "tie": None},
        },
        "fit": {
            "steps": 1,
            "batch_size": 16,
            "sequence_length": 128,
            "learning_rate": {"width": 3e-5, "depth": 0.01},
            "seed": 0,
            "warmup_steps": None,
            "weight_decay": 0.0,
            "evaluate_every": 10,
            "heldout_tokens": 16384,
            "heldout_images": 512,
            "mask_probability": 0.15,
            "micro_batch_size": None,
            "precision": "auto",
            "threads": None,
            "data": {"text": ["./text/*"], "tokenizer": "./tokenizer"},
        },
        "output": {"dir": "out", "dtype": None, "max_shard_size": "5GB"},
    }
    assert load_recipe(write(text)).public() == public


CONFIGS = st.dictionaries(
    st.text(max_size=8).filter(lambda key: "token" not in key),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Urls are refused.
    | st.text(max_size=8).filter(lambda text: "://" not in text),
    max_size=4,
)


@given(
    config=CONFIGS,
    width=st.sampled_from(sorted(WIDTH_METHODS)),
    depth=st.sampled_from(sorted(DEPTH_METHODS)),
    fit=st.none()
    | st.fixed_dictionaries(
        {"steps": st.integers(1, 2**31 - 1), "data": st.sampled_from([{"stdlib": True}, {"text": ["*.txt"]}])},
        optional={"weight_decay": st.floats(0, 1e6), "seed": st.integers(0, 2**63 - 1), "warmup_steps": st.none()},
    ),
    size=st.integers(1000, 10**15),
)
@settings(max_examples=150, deadline=None)
def test_the_public_form_is_read_again_as_itself(
    tmp_path_factory: pytest.TempPathFactory, config: Any, width: str, depth: str, fit: Any, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "again.yaml"
    growth = {"width": width, "depth": depth}
    data = changed(target={"config": config}, growth=growth, fit=fit, output__max_shard_size=size)
    path.write_text(dump_yaml(data), encoding="utf-8")
    recipe = load_recipe(path)
    text = dump_yaml(recipe.public())
    path.write_text(text, encoding="utf-8")
    again = load_recipe(path)
    assert dump_yaml(again.public()) == text
    assert digest(again) == digest(recipe)
    assert again.output.max_shard_size == size


# --- places, schema, import -------------------------------------------------------------------------------------------


def test_what_is_local(tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    for place in ("gpt2", "dangling", "./x", "../x", "/x", "~/x", "."):
        assert is_local(place, tmp_path)
    for place in ("gpt3", "org/name", "x" * 5000, "a\0b"):
        assert not is_local(place, tmp_path)


def kinds(annotation: object) -> list[object]:
    """A type and the types inside it: `list[X] | None` has X."""
    return [annotation, *(kind for part in getattr(annotation, "__args__", ()) for kind in kinds(part))]


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Every section, by name."""
    found = {model.__name__: model}
    for field in model.model_fields.values():
        for kind in kinds(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= sections(kind)
    return found


def test_every_key_is_described() -> None:
    schema = json_schema()
    described = {"Recipe": schema, **schema["$defs"]}
    assert set(described) == set(sections(Recipe))
    for name, section in described.items():
        assert section["additionalProperties"] is False
        for key, properties in section["properties"].items():
            assert properties.get("description"), f"{name}.{key}"
    assert schema["$defs"]["GrowthConfig"]["properties"]["width"]["enum"] == list(WIDTH_METHODS)
    assert set(schema["required"]) == {"version", "source", "target", "growth", "output"}
    json.dumps(schema)


# Recipes and parts of them that the schema must tell apart.
SCHEMA_CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "whole": ({}, True),
    "a number spelled as a float": ({"fit": {"steps": 1e2, "data": {"stdlib": True}}}, True),
    "no steps": ({"fit": {"steps": 0, "data": {"stdlib": True}}}, False),
    "too many": ({"growth": {"width": "lemon", "depth": "identity", "seed": 2**63}}, False),
    "a method that is none": ({"growth": {"width": "lemn", "depth": "identity"}}, False),
    "an unknown key": ({"fitt": {}}, False),
    "a rate as text": ({"compare": {"learning_rates": ["high"]}}, False),
    "rates": ({"compare": {"learning_rates": [1e-3], "seeds": [0, 1], "optimizers": ["adamw"]}}, True),
    "an optimizer that is none": ({"compare": {"optimizers": ["sgd"]}}, False),
    "a size": ({"output": {"dir": "out", "max_shard_size": "2GB"}}, True),
}


@pytest.mark.parametrize("name", SCHEMA_CASES)
def test_the_schema_and_the_loader_agree(name: str, tmp_path: Path) -> None:
    changes, valid = SCHEMA_CASES[name]
    recipe = {
        "version": 1,
        "source": {"model": "org/name"},
        "target": {"config": {"n_layer": 24}},
        "growth": {"width": "lemon", "depth": "identity"},
        "output": {"dir": "out"},
        **changes,
    }
    assert Draft202012Validator(json_schema()).is_valid(recipe) == valid
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    if valid:
        load_recipe(path)
    else:
        with pytest.raises(RecipeError):
            load_recipe(path)


def test_the_schema_is_json_schema_and_shipped() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    # An unknown keyword is no error of the meta-schema: it is passed over, with what it should have said.
    for path, keyword in keywords(schema):
        assert keyword in KEYWORDS, f"{path}: {keyword}"
    text = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("LIGO_UPDATE_DOCS"):
        SCHEMA_FILE.write_text(text)
    assert SCHEMA_FILE.read_text() == text, "LIGO_UPDATE_DOCS=1 updates it"


KEYWORDS = {
    *("$schema", "$defs", "$ref", "type", "properties", "required", "additionalProperties", "title", "description"),
    *("default", "enum", "const", "anyOf", "items", "minItems", "maxItems", "minimum", "maximum", "examples"),
    *("exclusiveMinimum", "exclusiveMaximum"),
}


def keywords(schema: object, path: str = "#") -> Iterator[tuple[str, str]]:
    """Every keyword of a schema with its place. Names of properties and definitions, defaults and choices are no keywords."""
    if isinstance(schema, list):
        for number, item in enumerate(schema):
            yield from keywords(item, f"{path}/{number}")
    elif isinstance(schema, dict):
        for key, value in schema.items():
            yield path, key
            if key in ("properties", "$defs"):
                for name, inner in value.items():
                    yield from keywords(inner, f"{path}/{key}/{name}")
            elif key not in ("default", "enum", "examples", "const"):
                yield from keywords(value, f"{path}/{key}")


# zoo.yaml is a manifest, which has another schema.
@pytest.mark.parametrize(
    "recipe", sorted(path for path in RECIPES.rglob("*.yaml") if path.stem != "zoo"), ids=lambda path: path.stem
)
def test_every_recipe_names_its_schema_and_follows_it(recipe: Path) -> None:
    first = recipe.read_text().splitlines()[0]
    assert first.startswith(SCHEMA_COMMENT)
    named = recipe.parent / first.removeprefix(SCHEMA_COMMENT)
    assert named.resolve() == SCHEMA_FILE
    Draft202012Validator(json_schema()).validate(load_file(recipe).data)


def test_reading_recipes_needs_nothing_heavy() -> None:
    code = (
        "import sys, ligo_convert.recipes.recipe\n"
        "heavy = {'torch', 'transformers', 'timm', 'huggingface_hub', 'matplotlib', 'tokenizers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "[]\n"
    assert done.stderr == ""

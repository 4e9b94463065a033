"""A number of a few digits in an untrusted file costs neither minutes nor gigabytes: it is refused before anything is listed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.light_models import GPT2, write_light_recipe, write_light_source
from support.measured import Cost, Measured

from ligo_convert.limits import AXIS, LABELS, LAYERS

SECONDS, PEAK = 5.0, 500_000_000
# Nothing that is refused by a plan needs torch, which alone takes more than this.
LIGHT_PEAK = 200_000_000
BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 29,
    "max_position_embeddings": 16,
}


@pytest.fixture(scope="module")
def light() -> Iterator[Measured]:
    with Measured("ligo_convert.cli.main", "ligo_convert.conversion.plan", "ligo_convert.cli.inspect") as found:
        yield found


def recipe(path: Path, **sections: object) -> Path:
    return write_light_recipe(path, out=str(path.parent / "out"), **sections)


def refused(cost: Cost, code: int, *words: str, peak: int = LIGHT_PEAK) -> None:
    assert cost.code == code, cost
    assert cost.seconds < SECONDS, cost
    assert cost.peak < peak, cost
    assert "Traceback" not in cost.err
    assert len(cost.err) < 2000
    for word in words:
        assert word in cost.err


@pytest.mark.parametrize("layers", [10**9, LAYERS.most + 1], ids=str)
def test_layers_are_counted_before_they_are_named(light: Measured, tmp_path: Path, layers: int) -> None:
    write_light_source(tmp_path / "source", GPT2)
    write_light_source(tmp_path / "deep", GPT2, n_layer=layers)
    base, word = recipe(tmp_path / "base.yaml"), "n_layer"
    deep = recipe(tmp_path / "target.yaml", target={"config": {"n_layer": layers}})
    pretrain = {"pretrain": {"config": {**GPT2, "n_layer": layers}, "steps": 1}}
    fit = {"steps": 1, "sequence_length": 8, "data": {"stdlib": True}}
    # As many layers as a model may have are held against the stored tensors.
    write_light_source(tmp_path / "deepest", GPT2, n_layer=LAYERS.most - 1)
    refused(light.command("plan", base, "--source", "./deepest", cwd=tmp_path), 3, "28 tensors", word)
    refused(light.command("plan", base, "--source", "./deep", cwd=tmp_path), 3, word)
    refused(light.command("run", base, "--source", "./deep", cwd=tmp_path), 3, word)
    refused(light.command("plan", deep, cwd=tmp_path), 2, word)
    refused(light.command("run", deep, cwd=tmp_path), 2, word)
    refused(light.command("plan", base, "--set", f"target.config.n_layer={layers}", cwd=tmp_path), 2, word)
    refused(light.command("compare", deep, "--methods", "scratch", "--steps", "1", cwd=tmp_path), 2, word)
    stated = recipe(tmp_path / "stated.yaml", source={"config": {**GPT2, "n_layer": layers}})
    refused(light.command("plan", stated, cwd=tmp_path), 3, word)
    trained = recipe(tmp_path / "trained.yaml", source=pretrain, fit=fit)
    refused(light.command("plan", trained, cwd=tmp_path), 3, word)
    inspected = light.command("inspect", "./deep", "--json", cwd=tmp_path)
    assert inspected.code == 0
    assert word in json.loads(inspected.out)["fits"]
    assert inspected.seconds < SECONDS
    assert inspected.peak < LIGHT_PEAK
    manifest = tmp_path / "many.yaml"
    entry = {"recipe": "base.yaml", "set": {"target.config.n_layer": layers}}
    manifest.write_text(json.dumps({"version": 1, "out": "outs", "entries": [{"name": "deep", **entry}]}))
    refused(light.command("batch", manifest, cwd=tmp_path), 2, word)


@pytest.mark.parametrize("key", ["n_embd", "n_inner", "n_head", "vocab_size"])
@pytest.mark.parametrize("size", [AXIS.most + 1, 10**400, 1e300], ids=["2**31", "10**400", "1e300"])
def test_a_size_of_no_model_is_refused(light: Measured, tmp_path: Path, key: str, size: float) -> None:
    write_light_source(tmp_path / "source", GPT2)
    write_light_source(tmp_path / "large", GPT2, **{key: size})
    refused(light.command("plan", recipe(tmp_path / "base.yaml"), "--source", "./large", cwd=tmp_path), 3, key)
    if size != 10**400:  # recipes hold no number of so many digits
        wide = recipe(
            tmp_path / "wide.yaml", target={"config": {key: size}}, growth={"width": "zero", "depth": "stack"}
        )
        refused(light.command("plan", wide, cwd=tmp_path), 2, key)


def test_classes_are_counted_before_they_are_named(light: Measured, tmp_path: Path) -> None:
    for labels in (10**8, 10**12, LABELS.most + 1):
        write_light_source(tmp_path / "source", BERT)
        write_light_source(tmp_path / "many", BERT, num_labels=labels)
        target = {"config": {"num_hidden_layers": 4}}
        base = recipe(tmp_path / "base.yaml", target=target)
        refused(light.command("plan", base, "--source", "./many", cwd=tmp_path), 3, "num_labels")
        changed = recipe(tmp_path / "changed.yaml", target={"config": {"num_labels": labels}})
        refused(light.command("plan", changed, cwd=tmp_path), 2, "num_labels")
    fitting = write_light_source(
        tmp_path / "fitting", BERT, id2label={str(number): f"LABEL_{number}" for number in range(100_000)}
    )
    cost = light.command("plan", base, "--source", fitting, cwd=tmp_path)
    assert cost.code == 0, cost
    assert cost.seconds < SECONDS
    assert cost.peak < PEAK


def test_a_long_value_is_not_repeated_in_the_message(light: Measured, tmp_path: Path) -> None:
    """A config of 4 MB gives an error of a line."""
    write_light_source(tmp_path / "source", GPT2)
    cases = {"n_layer": [1] * 1_000_000, "model_type": [1] * 1_000_000, "scale_attn_weights": "x" * 3_000_000}
    for key, value in cases.items():
        write_light_source(tmp_path / "long", GPT2, **{key: value})
        cost = light.command("plan", recipe(tmp_path / "base.yaml"), "--source", "./long", cwd=tmp_path)
        assert cost.code in (0, 2, 3), (key, cost)
        assert len(cost.err) < 2000, key
        assert cost.seconds < SECONDS
        assert cost.peak < PEAK


def test_numbers_of_the_command_line_are_short(light: Measured, tmp_path: Path) -> None:
    base, digits = recipe(tmp_path / "base.yaml"), "9" * 5000
    refused(light.command("compare", base, "--seeds", digits, cwd=tmp_path), 2, "--seeds")
    refused(light.command("batch", base, "--shard", f"0/{digits}", cwd=tmp_path), 2, "--shard")
    refused(light.command("batch", base, "--jobs", digits, cwd=tmp_path), 2)


def test_shards_without_entries_cost_nothing(light: Measured, tmp_path: Path) -> None:
    write_light_source(tmp_path / "source", GPT2)
    recipe(tmp_path / "base.yaml")
    manifest = tmp_path / "many.yaml"
    manifest.write_text(json.dumps({"version": 1, "out": "outs", "entries": [{"name": "a", "recipe": "base.yaml"}]}))
    cost = light.command("batch", manifest, "--shard", f"5/{10**9}", "--json", cwd=tmp_path)
    assert cost.code == 0, cost
    assert json.loads(cost.out)["entries"] == {}
    assert cost.seconds < SECONDS
    assert cost.peak < LIGHT_PEAK


def test_brackets_of_a_json_file_are_counted_before_it_is_parsed(light: Measured, tmp_path: Path) -> None:
    folder = write_light_source(tmp_path / "source", GPT2)
    header = ('{"a":[' + ",".join(["[]"] * 5_500_000) + "]}").encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    refused(light.command("inspect", folder, cwd=tmp_path), 3, "model.safetensors", "lists and objects")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map":[' + ",".join(["[]"] * 9_000_000) + "]}")
    refused(light.command("inspect", folder, cwd=tmp_path), 3, "index.json", "lists and objects")
    names = {f"tensor{number}": "model-00001-of-00002.safetensors" for number in range(1_000_000)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    refused(light.command("inspect", folder, cwd=tmp_path), 3, "index.json", "tensors", peak=PEAK)

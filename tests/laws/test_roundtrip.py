"""Every family through the disk: written by its library, grown by the whole pipeline, loaded by its library, the same function."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from support.outputs import drawn_of
from support.slow import rest_slow
from support.source_models import (
    change_config,
    change_weights,
    family_named,
    fit_section,
    recipe_text,
    text_sizes,
    weights_of,
    write_case,
    write_images,
    write_text,
)
from support.tiny import CASES, TARGETS, config_of, family_of, inputs_of, logits, model_of, start_of, target_model
from torch.nn.functional import cosine_similarity

from ligo_convert.cli.inspect import inspect_path
from ligo_convert.cli.reports import plan_report, run_report, verify_report
from ligo_convert.conversion.apply import apply_operator
from ligo_convert.conversion.convert import convert, fit_operator
from ligo_convert.conversion.plan import plan_recipe
from ligo_convert.conversion.run_record import ConversionResult
from ligo_convert.conversion.train_plan import plan_training
from ligo_convert.errors import LigoError, RecipeError, SourceError
from ligo_convert.families.configs import flat_config
from ligo_convert.families.notation import expand
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import Family, Head, Row
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.operator_file import read_operator
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import Recipe, load_recipe

Tensors = dict[str, torch.Tensor]
# A library of another order of summation may differ by some units in the last place of float32.
SAME = 1e-6
TASKS = {name: family_of(config_of(name)).task for name in CASES}
TEXT = [name for name in CASES if family_named(name).library == "transformers"]
MASKED = [name for name in CASES if name in FAMILIES and TASKS[name] == "masked-lm"]
ONE_A_TASK = list({task: name for name, task in reversed(TASKS.items())}.values())
VISION = [name for name in CASES if TASKS[name] == "image-classification"]


# --- sources and outputs, each made once ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Checkpoints by case and how they are written."""
    folder, made = tmp_path_factory.mktemp("sources"), dict[str, Path]()

    def get(name: str, **options: Any) -> Path:
        key = json.dumps([name, options], sort_keys=True, default=str)
        if key not in made:
            made[key] = write_case(folder / f"{name.replace(' ', '-')}-{len(made)}", name, **options)
        return made[key]

    return get


class Place:
    """A folder with a corpus and images, in which recipes are written and carried out."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.made = folder, 0, dict[str, ConversionResult]()
        (folder / "corpus").mkdir(parents=True)
        write_text(folder / "corpus" / "a.txt", lines=300)

    def images(self, classes: int) -> str:
        name = f"photos-{classes}"
        if not (self.folder / name).exists():
            write_images(self.folder / name, classes=classes)
        return name

    def recipe(self, source: Path, changes: Mapping[str, object], width: str, depth: str, /, **sections: Any) -> Recipe:
        self.count += 1
        path = self.folder / f"recipe-{self.count}.yaml"
        sections["output"] = {"dir": str(self.folder / f"out-{self.count}"), **sections.get("output", {})}
        sections["growth"] = {"width": width, "depth": depth, **sections.get("growth", {})}
        path.write_text(recipe_text(source, changes, **sections))
        return load_recipe(path)

    def grow(
        self, source: Path, changes: Mapping[str, object], width: str, depth: str = "copy", /, **sections: Any
    ) -> ConversionResult:
        """The finished output of a recipe."""
        key = json.dumps([str(source), changes, width, depth, sections], sort_keys=True)
        if key not in self.made:
            self.made[key] = convert(self.recipe(source, changes, width, depth, **sections))
        return self.made[key]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place") / "work")


def load(out: Path) -> Any:
    """An output in the library that it is for, as its config.json says; no key set has anything in it."""
    config = json.loads((out / "config.json").read_text())
    if "architecture" in config:
        return timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    (named,) = config["architectures"]
    head = FAMILIES[config["model_type"]].for_architecture(named).chosen
    return load_as(out, head, {})


def load_as(out: Path, head: Head, options: Mapping[str, object]) -> Any:
    model, info = getattr(transformers, head.loaded_by).from_pretrained(
        out, output_loading_info=True, dtype="auto", **options
    )
    assert {name: found for name, found in info.items() if found} == {}
    assert type(model).__name__ == head.architecture
    return model.eval()


def states(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What a model's last layer tells of `tokens`."""
    with torch.no_grad():
        # The body alone: a class of its own may take other inputs.
        found = model.base_model(tokens, output_hidden_states=True)
    last: torch.Tensor = found["hidden_states"][-1]
    return last


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


# --- every family, through the disk -----------------------------------------------------------------------------------

GROWTHS = [
    ("even", "hyperclone", "copy"),
    ("uneven", "zero", "copy"),
    ("uneven", "mean-preserving", "copy"),
    ("both", "lemon", "identity"),
    ("both", "net2net", "stack"),
    ("both", "direct", "random"),
    ("depth", "copy", "identity"),
    ("depth", "copy", "interpolate"),
]


def taken(name: str, target: str, width: str, depth: str) -> bool:
    """Whether a start takes a target; what it promises and cannot keep it refuses (see test_parity)."""
    try:
        start_of(name, config_of(name), TARGETS[name][target], width=width, depth=depth)
    except RecipeError:
        return False
    return True


def _grid(name: str) -> list[tuple[str, bool, str, str, str]]:
    others = [(target, "lemon", "identity") for target in CASES[name].others]
    growths = [growth for growth in GROWTHS + others if taken(name, *growth)]
    untied = [("both", "net2net", "stack"), ("even", "hyperclone", "copy")] if family_named(name).tied else []
    return [
        *((name, True, *growth) for growth in growths),
        *((name, False, *growth) for growth in untied),
    ]


GRID = [entry for name in CASES for entry in _grid(name)]


@pytest.mark.parametrize("name", CASES)
def test_every_start_is_tried_on_every_family(name: str) -> None:
    """The grid below leaves out what a start refuses: it must not leave out a start."""
    assert {width for case, _, _, width, _ in GRID if case == name} == {width for _, width, _ in GROWTHS}
    assert {depth for case, _, _, _, depth in GRID if case == name} == {depth for _, _, depth in GROWTHS}


def in_fast_tests(case: tuple[str, bool, str, str, str]) -> bool:
    """Every start for one family, and one start that computes in both axes for every family."""
    return case[0] == "gpt2" or case[1:] == (True, "both", "lemon", "identity")


@pytest.mark.parametrize(
    "case", rest_slow(GRID, in_fast_tests), ids=lambda case: "-".join(str(part).replace(" ", "_") for part in case)
)
def test_an_output_is_the_model_that_the_operator_makes(
    case: tuple[str, bool, str, str, str], sources: Callable[..., Path], place: Place
) -> None:
    name, tied, target, width, depth = case
    config, changes = config_of(name, tied=tied), TARGETS[name][target]
    before = model_of(config, dtype=torch.float32)
    outcome = place.grow(sources(name, tied=tied), changes, width, depth)
    start = start_of(name, config, changes, width=width, depth=depth)
    memory = target_model(initial_operator(start), dict(before.state_dict()), dtype=torch.float32)
    model = load(outcome.out)
    ours, theirs = dict(memory.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    table = family_of(config)
    for key in ours:
        # The stream copies what does not change; in memory it is multiplied by its LayerScale and divided by it again.
        rounding = 2**-22 if any(map(table.is_scale, table.rows_for(config))) else 0
        torch.testing.assert_close(theirs[key], ours[key], rtol=rounding, atol=0, msg=key)
    told, expected = logits(model), logits(memory)
    assert apart(told, expected) <= SAME * max(1.0, float(expected.abs().max()))
    kept = outcome.metrics["preservation"]
    assert kept["planned"] == start.verdict
    if start.verdict == "exact":
        # As the project defines it; measured only where something was computed.
        assert apart(told, logits(before)) <= 1e-4 * max(1.0, float(expected.abs().max()))
        assert kept["verdict"] in (("exact", None) if start.copies_only else ("exact",))
    else:
        # The verdict is no excuse (see test_parity).
        assert apart(told, logits(before)) > 1e-4
    written = json.loads((outcome.out / "config.json").read_text())
    assert written.items() >= changes.items() or written["model_args"].items() >= changes.items()


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_stays_bfloat16(name: str, sources: Callable[..., Path], place: Place) -> None:
    source = sources(name, dtype=torch.bfloat16)
    outcome = place.grow(source, TARGETS[name]["even"], "hyperclone")
    assert {tensor.dtype for tensor in weights_of(outcome.out).values()} == {torch.bfloat16}
    kept = outcome.metrics["preservation"]
    assert kept["verdict"] == "exact", "the verdict is about the map, before rounding"
    assert kept["rounding"]["dtype"] == "bfloat16"
    model = load(outcome.out)
    if family_named(name).library == "transformers":
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", CASES)
def test_an_output_is_verified_inspected_and_left_alone(
    name: str, sources: Callable[..., Path], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = sources(name), TARGETS[name]["even"]
    outcome = place.grow(source, target, "hyperclone")
    report = verify(outcome.out, source=str(source), load=True)
    assert report["family"] == family_named(name).name
    assert report["derived"]["tensors"] == report["derived"]["identical"] == len(weights_of(outcome.out))
    assert not any(found for key, found in report["loaded"].items() if key.endswith("_keys"))
    family = family_named(name)
    sizes = family.sizes({**config_of(name), **target})
    found = inspect_path(outcome.out)
    assert (found["kind"], found["axes"]) == (
        "output",
        {axis: sizes[axis] for axis in family_of(config_of(name)).class_axes},
    )
    recipe = place.recipe(source, target, "hyperclone", "copy", output={"dir": str(outcome.out)})
    again = convert(recipe)
    assert (again.changed, again.json()) == (False, {**outcome.json(), "changed": False})
    verify_report(report)
    run_report(again)
    assert "grown again from" in capsys.readouterr().out


@pytest.mark.parametrize("name", CASES)
def test_a_stored_operator_takes_a_sibling(
    name: str, sources: Callable[..., Path], place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a start makes of one checkpoint it makes of every checkpoint of its shape, byte for byte."""
    target = TARGETS[name]["even"]
    operator = place.grow(sources(name), target, "hyperclone").out / "ligo" / "operator.safetensors"
    sibling = sources(name, seed=7)
    applied = apply_operator(operator, str(sibling), tmp_path / "applied")
    grown = place.grow(sibling, target, "hyperclone")
    for file in ("model.safetensors", "config.json"):
        assert (applied.out / file).read_bytes() == (grown.out / file).read_bytes(), file
    verify(applied.out, source=str(sibling), load=True)
    run_report(applied)
    assert str(applied.out) in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("name", ONE_A_TASK)
def test_an_applied_operator_says_what_it_drew(
    name: str, sources: Callable[..., Path], place: Place, tmp_path: Path
) -> None:
    """Beside the new head (below): the entries and layers that `direct` and `random` draw."""
    outcome = place.grow(sources(name), TARGETS[name]["both"], "direct", "random")
    applied = apply_operator(outcome.out / "ligo" / "operator.safetensors", str(sources(name)), tmp_path / "applied")
    assert_same_tensors(weights_of(applied.out), weights_of(outcome.out))
    drawn = set(drawn_of(outcome))
    assert {"embed (new entries)", "layer (whole)"} <= drawn
    assert {"heads (new entries)", "kv_heads (new entries)"} & drawn
    assert drawn_of(applied) == drawn_of(outcome)


def test_a_source_without_layers_is_grown_and_derived_again(place: Place, tmp_path: Path) -> None:
    source = write_case(tmp_path / "source", "llama", num_hidden_layers=0)
    changes = {**TARGETS["llama"]["even"], "num_hidden_layers": 3}
    outcome = place.grow(source, changes, "lemon", "silent-drawn")
    assert outcome.metrics["preservation"]["verdict"] == "exact"
    assert "layer (whole)" in drawn_of(outcome)
    report = verify(outcome.out, source=str(source), load=True)
    assert report["derived"]["identical"] == report["derived"]["tensors"]


@pytest.mark.parametrize("kept", [{"keying": "target"}, {"tie": "paper"}], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_maps_by_layer_are_the_same_from_their_file(
    name: str, kept: dict[str, str], sources: Callable[..., Path], place: Place
) -> None:
    """An operator with maps for every layer (of two depth axes, in CaiT) is stored, read, and gives the same tensors."""
    outcome = place.grow(sources(name), TARGETS[name]["both"], "net2net", "stack", growth={"operator": kept})
    operator = read_operator(outcome.out / "ligo" / "operator.safetensors")
    axes = {key.partition("@")[2].partition(".")[0] for term in operator.terms for key in term.widths} - {""}
    assert axes == set(family_of(config_of(name)).depth_axes)
    report = verify(outcome.out, source=str(sources(name)), load=True)
    assert report["derived"]["identical"] == report["derived"]["tensors"]


@pytest.mark.parametrize("name", ["bert", "cait"])
def test_a_learned_operator_takes_a_sibling(
    name: str, sources: Callable[..., Path], place: Place, tmp_path: Path
) -> None:
    reads_images = TASKS[name] == "image-classification"
    options = {} if reads_images else {"tokenizer": True}
    target = TARGETS[name]["both"]
    # A step that is better than none is kept: small ones from the exact start of images, any from a start of text that is far from exact.
    rates = {"learning_rate": {"width": 1e-4, "depth": 1e-3}}
    fit = image_fit(place, 5, **rates) if reads_images else text_fit(heldout_tokens=1024, **rates)
    start = ("lemon", "identity") if reads_images else ("net2net", "stack")
    recipe = place.recipe(sources(name, **options), target, *start, fit=fit)
    fit_operator(recipe, tmp_path / "learned.safetensors")
    operator = read_operator(tmp_path / "learned.safetensors")
    depths = [array for key, array in operator.arrays() if "/depth/" in key and "{" in key]
    assert any(bool(((array != 0) & (array != 1)).any()) for array in depths), "something was learned"
    sibling = sources(name, seed=7, **options)
    out = apply_operator(tmp_path / "learned.safetensors", str(sibling), tmp_path / "applied").out
    verify(out, source=str(sibling), load=True)
    # A product's last bit depends on where in memory its factors lie: a clone lies where a read tensor does.
    state = {key: tensor.clone() for key, tensor in load(sibling).state_dict().items()}
    memory = dict(target_model(operator, state, dtype=torch.float32).named_parameters())
    model = dict(load(out).named_parameters())
    assert [key for key in memory if not torch.equal(memory[key], model[key])] == []


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VISION)
def test_both_layouts_of_a_source_grow_to_the_same_bytes(name: str, sources: Callable[..., Path], place: Place) -> None:
    """timm's own config.json says more than it must, and in other words (`img_size` as a pair)."""
    theirs, ours = sources(name), sources(name, own_layout=True)
    assert (theirs / "config.json").read_bytes() != (ours / "config.json").read_bytes()
    one, other = (place.grow(source, TARGETS[name]["even"], "hyperclone").out for source in (theirs, ours))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    written = json.loads((one / "config.json").read_text())
    given = json.loads((theirs / "config.json").read_text())["pretrained_cfg"]
    for key in ("mean", "std", "interpolation", "crop_pct", "classifier", "license"):
        assert written["pretrained_cfg"][key] == given[key], "how images are prepared goes with the weights"
    assert written["model_args"]["img_size"] == config_of(name)["img_size"]
    assert not {"url", "hf_hub_id", "file"} & set(written["pretrained_cfg"])


@pytest.mark.parametrize("name", VISION)
def test_transformers_loads_what_timm_loads(name: str, sources: Callable[..., Path], place: Place) -> None:
    out = place.grow(sources(name), TARGETS[name]["both"], "lemon", "identity").out
    wrapper, info = transformers.AutoModelForImageClassification.from_pretrained(out, output_loading_info=True)
    assert {key: found for key, found in info.items() if found} == {}
    model = load(out)
    pixels = inputs_of(model)["x"].float()
    with torch.no_grad():
        assert apart(wrapper.eval()(pixel_values=pixels).logits, model(pixels)) <= SAME * float(pixels.abs().max())
    settings = timm.data.resolve_model_data_config(model)
    assert settings["input_size"] == (3, 16, 16)
    image = transformers.AutoImageProcessor.from_pretrained(out)
    found = image(np.zeros((20, 24, 3), dtype=np.uint8), return_tensors="pt")["pixel_values"]
    assert tuple(found.shape) == (1, 3, 16, 16)
    # A black image, normalised: the source's mean and deviation.
    expected = [-mean / std for mean, std in zip(settings["mean"], settings["std"], strict=True)]
    assert found[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES.values() if family.library == "timm"])
def test_a_config_that_timm_writes_is_read_as_its_architecture(family: Family, tmp_path: Path) -> None:
    """At real sizes, from the model as timm makes it, without a word of ours: the smallest of every side of image."""
    from timm.models._hub import save_config_for_hf  # what `save_for_hf` calls; it wants no weights

    smallest: dict[object, str] = {}
    for name in sorted(family.architectures, key=lambda name: str(family.architectures[name].get("depth", ""))):
        smallest.setdefault(flat_config({"architecture": name})["img_size"], name)
    for name in smallest.values():
        with torch.device("meta"):
            model = timm.create_model(name)
        save_config_for_hf(model, tmp_path / "config.json")
        found = flat_config(json.loads((tmp_path / "config.json").read_text()))
        expected = flat_config({"architecture": name})
        sizes = family.sizes(expected)
        assert family.sizes(found) == sizes, name
        assert {key for key in family.defaults if found[key] != expected[key]} <= {"num_classes"}, name


def test_a_distilled_model_keeps_both_heads(sources: Callable[..., Path], place: Place) -> None:
    model = load(place.grow(sources("deit"), TARGETS["deit"]["both"], "lemon", "identity").out)
    source = load(sources("deit"))
    pixels = inputs_of(model)["x"].float()
    told = []
    for found in (source, model):
        found.set_distilled_training(True)
        with torch.no_grad():
            # In training mode, without dropout, the two heads are told apart; otherwise their mean is.
            told.append(found.train()(pixels))
    for before, after in zip(*told, strict=True):
        assert apart(before, after) <= 1e-4 * max(1.0, float(before.abs().max()))
    assert apart(*told[1]) > 0.1, "they are two"


# What makes a family what it is -> tensors that its outputs have: were they gone, it would be another model.
PECULIAR = {
    "deit": ("dist_token", "head_dist.weight"),
    "deit3": ("blocks.0.ls1.gamma", "blocks.3.ls2.gamma"),
    "cait": (
        "blocks.3.attn.proj_l.weight",
        "blocks.3.attn.proj_w.bias",
        "blocks.3.gamma_1",
        "blocks_token_only.1.gamma_2",
    ),
}


@pytest.mark.parametrize("name", PECULIAR)
def test_what_makes_a_family_is_in_its_outputs(name: str, sources: Callable[..., Path], place: Place) -> None:
    weights = weights_of(place.grow(sources(name), TARGETS[name]["depth"], "copy", "identity").out)
    assert set(PECULIAR[name]) <= set(weights)
    # no_embed_class: positions are of patches alone.
    assert weights["pos_embed"].shape[1] == {"deit": 6, "deit3": 4, "cait": 4}[name]


@pytest.mark.parametrize("name", VISION)
def test_another_number_of_classes_is_a_new_head_and_nothing_else(
    name: str, sources: Callable[..., Path], place: Place, tmp_path: Path
) -> None:
    family, target = family_named(name), TARGETS[name]["even"]
    outcome = place.grow(sources(name), {**target, "num_classes": 3}, "hyperclone")
    same = weights_of(place.grow(sources(name), target, "hyperclone").out)
    found = weights_of(outcome.out)
    config = {**config_of(name), **target}
    heads = [row.pattern for row in family.rows_for(config) if family.labels in row.layout.streams]
    assert "head.weight" in heads
    assert drawn_of(outcome) == [f"{pattern} (new head)" for pattern in heads]
    for key, tensor in found.items():
        if key in heads:
            assert tensor.shape[0] == 3
            assert_drawn(tensor, deviation=0.02)
        else:
            assert torch.equal(tensor, same[key]), key
    model = load(outcome.out)
    assert logits(model).shape == (3, 3)
    applied = apply_operator(outcome.out / "ligo" / "operator.safetensors", str(sources(name)), tmp_path / "applied")
    assert_same_tensors(weights_of(applied.out), found)
    assert drawn_of(applied) == drawn_of(outcome)
    kept = outcome.metrics["preservation"]
    assert (kept["compared"], kept["verdict"]) == ("hidden states", "exact")
    wrapper = transformers.AutoModelForImageClassification.from_pretrained(outcome.out)
    assert wrapper.num_labels == 3
    verify(outcome.out, source=str(sources(name)), load=True)


def assert_drawn(tensor: torch.Tensor, *, deviation: float) -> None:
    """A new tensor is as the library initialises: biases zero, gains one, weights spread as the config says."""
    if tensor.ndim == 1:
        assert bool((tensor == 0).all() or (tensor == 1).all())
    else:
        # A deviation estimated from n values is good to about 1/sqrt(2n): 5 of those.
        assert float(tensor.std()) == pytest.approx(deviation, rel=5 / (2 * tensor.numel()) ** 0.5)


def test_the_names_of_classes_stay_with_them(sources: Callable[..., Path], place: Place, tmp_path: Path) -> None:
    """timm keeps them beside the sizes; a new head has other classes."""
    names = [f"bird {number}" for number in range(5)]
    named = shutil.copytree(sources("vit"), tmp_path / "named")
    change_config(named, lambda config: {**config, "label_names": names})
    out = place.grow(named, TARGETS["vit"]["even"], "hyperclone").out
    assert json.loads((out / "config.json").read_text()).get("label_names") == names
    assert load(out).pretrained_cfg["label_names"] == names
    out = place.grow(named, {**TARGETS["vit"]["even"], "num_classes": 3}, "hyperclone").out
    assert "bird" not in (out / "config.json").read_text()


def test_a_config_of_timms_older_layout_is_read(sources: Callable[..., Path], place: Place, tmp_path: Path) -> None:
    """Old checkpoints have what `pretrained_cfg` holds now at the top, and no arguments: sizes are the architecture's."""
    mean = [0.1, 0.2, 0.3]
    old = {"architecture": "vit_tiny_patch16_384", "num_classes": 7, "input_size": [3, 384, 384], "mean": mean}
    found = flat_config(old)
    assert (found["img_size"], found["num_classes"], found["in_chans"]) == (384, 7, 3)
    assert found["pretrained_cfg"]["mean"] == mean, "as timm itself reads it"  # type: ignore[index]


@pytest.mark.parametrize("name", VISION)
def test_timm_outputs_are_one_file(name: str, sources: Callable[..., Path], place: Place) -> None:
    """timm reads no shards, whatever the recipe says of them."""
    output = {"max_shard_size": "1KB"}
    out = place.grow(sources(name), TARGETS[name]["even"], "hyperclone", output=output).out
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    load(out)


@pytest.mark.parametrize("name", [name for name in TEXT if name in FAMILIES])
def test_other_outputs_have_as_many_as_the_recipe_says(name: str, sources: Callable[..., Path], place: Place) -> None:
    source = sources(name, shard="10KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    outcome = place.grow(source, TARGETS[name]["even"], "hyperclone", output={"max_shard_size": "20KB"})
    assert len(list(outcome.out.glob("*.safetensors"))) > 1
    load(outcome.out)
    whole = place.grow(sources(name), TARGETS[name]["even"], "hyperclone").out
    assert_same_tensors(weights_of(outcome.out), weights_of(whole))


def assert_same_tensors(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


# --- configs, named in other ways -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_target_may_be_named_by_a_model_of_its_size(name: str, sources: Callable[..., Path], place: Place) -> None:
    changes = TARGETS[name]["both"]
    stated = plan_recipe(place.recipe(sources(name), changes, "net2net", "stack"))
    target = {"config": None, "model": str(sources(name, **changes))}
    found = plan_recipe(place.recipe(sources(name), {}, "net2net", "stack", target=target))
    assert found.specs == stated.specs
    assert found.start.target == stated.start.target


@pytest.mark.parametrize("tag", ["", ".fb_dist_in1k"])
def test_a_target_may_be_named_as_timm_names_it(tag: str, place: Place) -> None:
    source = {"model": None, "config": {"architecture": f"cait_xxs24_224{tag}"}}
    target = {"config": None, "model": f"cait_xxs36_224{tag}"}
    plan = plan_recipe(place.recipe(Path("none"), {}, "copy", "identity", source=source, target=target))
    with torch.device("meta"):
        model = timm.create_model("cait_xxs36_224")
    assert {spec.name: spec.shape for spec in plan.specs} == {
        name: tuple(tensor.shape) for name, tensor in model.named_parameters()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_config_beside_a_model_is_compared_as_far_as_it_says(
    name: str, sources: Callable[..., Path], place: Place
) -> None:
    """A recipe may say of its source what it needs to be planned without it, and no more."""
    family, case = family_named(name), CASES[name]
    stated: dict[str, Any] = dict(case.config)
    if family.library == "transformers":
        stated["model_type"] = family.model_type
    recipe = place.recipe(sources(name), TARGETS[name]["even"], "hyperclone", "copy", source={"config": stated})
    assert plan_recipe(recipe).at_hand
    key = family.size_keys[0] if family.library == "transformers" else "embed_dim"
    if family.library == "timm":
        stated["model_args"] = {**stated["model_args"], key: 24}
    else:
        stated[key] = 24
    recipe = place.recipe(sources(name), TARGETS[name]["even"], "hyperclone", "copy", source={"config": stated})
    refused(place, recipe, RecipeError, 2, rf"source\.config\.{key} differs from")


# --- text encoders: every layout met in the wild ----------------------------------------------------------------------

CLASSIFIERS = ("sequence-classification", "token-classification", "question-answering", "multiple-choice")

HEADS = [(name, head) for name in MASKED for head in FAMILIES[name].heads]


# What has no loss of its own is learned by agreement with its source.
WITHOUT_LOSS = [pair for pair in HEADS if pair[1].task != FAMILIES[pair[0]].heads[0].task]


def named(item: object) -> str:
    return f"{item.architecture}({'+'.join(item.parts)})" if isinstance(item, Head) else str(item)


def rows_of(family: Family, head: Head, config: Mapping[str, object]) -> dict[str, Row]:
    """Name in a checkpoint of a class -> row, tied aliases too."""
    narrow = family.for_head(head)
    return {narrow.written(row.name(layer)): row for row in narrow.rows for layer in narrow.layers(row, config)}


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Checkpoints of a class of an encoder family, as the library writes them; `layout` changes them."""
    folder, made = tmp_path_factory.mktemp("encoders"), dict[str, Path]()

    def get(name: str, head: Head, layout: str = "", *, seed: int = 0, tokenizer: bool = False) -> Path:
        key = json.dumps([name, head.architecture, head.parts, layout, seed, tokenizer])
        if key not in made:
            directory = folder / f"encoder-{len(made)}"
            write_case(directory, name, architecture=head.architecture, seed=seed, tokenizer=tokenizer)
            family, config = FAMILIES[name], json.loads((directory / "config.json").read_text())
            kept = rows_of(family, head, config)
            # The library's class always has a pooler; many a sentence encoder is saved without.
            change_weights(directory, lambda tensors: {name: tensors[name] for name in tensors if name in kept})
            for change in LAYOUTS[layout] if layout else ():
                change(directory, family, head, config)
            made[key] = directory
        return made[key]

    return get


Change = Callable[[Path, Family, Head, Mapping[str, object]], object]


def other_prefix(directory: Path, family: Family, head: Head, _: Mapping[str, object]) -> None:
    """The body without its prefix; where the class has none, with it."""
    prefix = family.optional_prefix
    change_weights(
        directory,
        lambda tensors: {
            prefix + name if head.base else name.removeprefix(prefix): tensor for name, tensor in tensors.items()
        },
    )


def old_names(directory: Path, family: Family, _: Head, __: Mapping[str, object]) -> None:
    """gamma and beta for what a norm multiplies with and adds."""
    old = {new: old for old, new in family.renamed.items()}

    def name_of(name: str) -> str:
        return next((name.removesuffix(new) + old[new] for new in old if name.endswith(new)), name)

    change_weights(directory, lambda tensors: {name_of(name): tensor for name, tensor in tensors.items()})
    assert any(name.endswith(".gamma") for name in weights_of(directory))


def buffers(directory: Path, family: Family, head: Head, config: Mapping[str, object]) -> None:
    names = [family.for_head(head).written(name) for pattern in family.ignored for name in expand(pattern)]
    assert {name.rpartition(".")[2] for name in names} == {"position_ids", "token_type_ids"}
    positions = torch.arange(int(str(config["max_position_embeddings"])))[None]
    change_weights(directory, lambda tensors: {**tensors, **{name: positions.clone() for name in names}})


def tied_copies(*endings: str) -> Change:
    """The head's own copies of what it shares, as many a converter has written them."""

    def change(directory: Path, family: Family, head: Head, _: Mapping[str, object]) -> None:
        def copied(tensors: Tensors) -> Tensors:
            found = {
                alias: tensors[canonical].clone()
                for alias, canonical in family.tied.items()
                if canonical in tensors and alias.endswith(endings) and "lm" in head.parts
            }
            assert bool(found) == ("lm" in head.parts)
            return {**tensors, **found}

        change_weights(directory, copied)

    return change


def alias_alone(directory: Path, family: Family, _: Head, __: Mapping[str, object]) -> None:
    """Of two names of one bias safetensors keeps one, and not always the same."""
    (alias, canonical) = next(pair for pair in family.tied.items() if pair[0].endswith("bias"))
    change_weights(
        directory, lambda tensors: {alias if name == canonical else name: tensor for name, tensor in tensors.items()}
    )


def architectures(*names: str) -> Change:
    def change(directory: Path, _: Family, __: Head, ___: Mapping[str, object]) -> None:
        def changed(config: dict[str, Any]) -> dict[str, Any]:
            del config["architectures"]
            return {**config, "architectures": list(names)} if names else config

        change_config(directory, changed)

    return change


LAYOUTS: dict[str, tuple[Change, ...]] = {
    "prefix": (other_prefix,),
    "old names": (old_names,),
    "buffers": (buffers,),
    "decoder": (tied_copies("weight"),),
    "decoder and its bias": (tied_copies("weight", "bias"),),
    "decoder's bias": (tied_copies("bias"),),
    "decoder's bias alone": (alias_alone,),
    "no class": (architectures(),),
    "another class": (architectures("SomethingForTokenClassification"),),
}
EVERYTHING = (tied_copies("weight", "bias"), old_names, other_prefix, architectures())
LAYOUTS["everything at once"] = EVERYTHING
HEADLESS = ("prefix", "old names", "buffers", "no class", "another class", "everything at once")
LAID_OUT = [
    (name, head, layout)
    for name, head in HEADS
    for layout in LAYOUTS
    # Every layout on the usual class, what a sentence encoder is found with on that, everything at once on all of them.
    if layout == "everything at once"
    or head == FAMILIES[name].heads[0]
    or (layout in HEADLESS and head.task == "encoder" and not head.parts)
]


@pytest.mark.parametrize(("name", "head", "layout"), LAID_OUT, ids=named)
def test_every_layout_of_an_encoder_grows_to_the_same_bytes(
    name: str, head: Head, layout: str, encoders: Callable[..., Path], place: Place
) -> None:
    source = encoders(name, head, layout)
    found = place.grow(source, TARGETS[name]["even"], "hyperclone").out
    plain = place.grow(encoders(name, head), TARGETS[name]["even"], "hyperclone").out
    assert (found / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert json.loads((found / "config.json").read_text()) == json.loads((plain / "config.json").read_text())
    verify(found, source=str(source), load=True)


@pytest.mark.parametrize(("name", "head"), HEADS, ids=named)
def test_an_encoder_grows_into_the_class_that_it_is_of(
    name: str, head: Head, encoders: Callable[..., Path], place: Place
) -> None:
    source = encoders(name, head)
    outcome = place.grow(source, TARGETS[name]["even"], "hyperclone")
    assert json.loads((outcome.out / "config.json").read_text())["architectures"] == [head.architecture]
    # What the source lacks the target lacks.
    assert weights_of(outcome.out).keys() == weights_of(source).keys()
    assert drawn_of(outcome) == []
    models = [load_as(path, head, head.options) for path in (source, outcome.out)]
    tokens = inputs_of(models[0])["input_ids"]
    before, after = (states(model, tokens) for model in models)
    # Whole tiles: the hidden states are the source's, once more.
    assert apart(torch.cat([before, before], dim=-1), after) <= 1e-4 * max(1.0, float(before.abs().max()))
    assert outcome.metrics["preservation"]["verdict"] == "exact"
    verify(outcome.out, source=str(source), load=True)


@pytest.mark.parametrize("name", MASKED)
def test_a_pooler_beside_a_head_that_has_none_is_left_out_and_said(
    name: str, encoders: Callable[..., Path], place: Place, tmp_path: Path
) -> None:
    family, head = FAMILIES[name], FAMILIES[name].heads[0]
    source = shutil.copytree(encoders(name, head), tmp_path / "source")
    poolers = [row.pattern for row in family.table if row.layout.part == "pooler"]
    shapes = {pattern: (16, 16) if pattern.endswith("weight") else (16,) for pattern in poolers}
    change_weights(source, lambda tensors: {**tensors, **{name: torch.randn(shape) for name, shape in shapes.items()}})
    recipe = place.recipe(source, TARGETS[name]["even"], "hyperclone", "copy")
    assert [warning for warning in plan_recipe(recipe).warnings if all(pooler in warning for pooler in poolers)]
    found = convert(recipe)
    plain = place.grow(encoders(name, head), TARGETS[name]["even"], "hyperclone")
    assert_same_tensors(weights_of(found.out), weights_of(plain.out))
    load(found.out)


OTHER_HEADS = [
    (name, head, wanted)
    for name, head in HEADS
    for wanted in dict.fromkeys(found.architecture for found in FAMILIES[name].heads)
    if wanted != head.architecture
    # A classifier is drawn on a body, and left out for one; more of their pairs would try the same again.
    and (
        not {head.task, FAMILIES[name].for_architecture(wanted).task} & {*CLASSIFIERS}
        or not head.parts
        or FAMILIES[name].for_architecture(wanted).task == "encoder"
    )
]


@pytest.mark.parametrize(("name", "head", "wanted"), OTHER_HEADS, ids=named)
def test_another_head_is_drawn_and_named(
    name: str, head: Head, wanted: str, encoders: Callable[..., Path], place: Place, tmp_path: Path
) -> None:
    family = FAMILIES[name].for_architecture(wanted)
    source = encoders(name, head)
    outcome = place.grow(source, TARGETS[name]["even"], "hyperclone", target={"architecture": wanted})
    parts = ("", *head.parts)
    config = {**config_of(name), **TARGETS[name]["even"]}
    new = {row.pattern for row in family.rows_for(config) if row.layout.part not in parts}
    assert {text.removesuffix(" (new head)") for text in drawn_of(outcome)} == new
    assert bool(new) == bool(set(family.chosen.parts) - set(head.parts))
    plain = canonical(place.grow(source, TARGETS[name]["even"], "hyperclone").out, family)
    found = canonical(outcome.out, family)
    for key, tensor in found.items():
        if key in new:
            assert_drawn(tensor, deviation=0.02)
        else:
            assert torch.equal(tensor, plain[key]), key
    model = load(outcome.out)
    assert type(model).__name__ == wanted
    kept = outcome.metrics["preservation"]
    same_head = not new and family.task == head.task != "encoder"
    assert (kept["verdict"], kept["compared"]) == ("exact", "logits" if same_head else "hidden states")
    verify(outcome.out, source=str(source), load=True)
    applied = apply_operator(outcome.out / "ligo" / "operator.safetensors", str(source), tmp_path / "applied")
    assert_same_tensors(weights_of(applied.out), weights_of(outcome.out))
    assert drawn_of(applied) == drawn_of(outcome)


def canonical(out: Path, family: Family) -> Tensors:
    """The tensors of a checkpoint under the names of the family's table."""
    names = {row.name(layer) for row in family.table for layer in family.layers(row, config_of(family.name))}
    found = {family.canonical(name, names): tensor for name, tensor in weights_of(out).items()}
    assert None not in found
    return {str(name): tensor for name, tensor in found.items()}


def sentences(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Cosines between mean-pooled sentences, as sentence encoders are used."""
    pooled = states(model, tokens).mean(1)
    return cosine_similarity(pooled[:, None], pooled[None], dim=-1)


def usual_statistics(tensors: Tensors) -> Tensors:
    """Norms as training leaves them: gains near one, small shifts and biases (here about 5 % and 2 %)."""
    draw = torch.Generator().manual_seed(3)
    return {
        name: tensor
        if tensor.ndim > 1
        else float("LayerNorm.weight" in name)
        + (0.05 if "LayerNorm" in name else 0.02) * torch.randn(tensor.shape, generator=draw)
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("target", "width", "most"),
    [
        # Whole tiles are exact but for the rounding of float32.
        ("even", "hyperclone", 1e-4),
        # Near: the outputs of norms keep their means, or few new entries hold them (docs/reference/exact-starts.md).
        ("uneven", "zero", 5e-3),
        ("uneven", "mean-preserving", 5e-4),
    ],
)
@pytest.mark.parametrize("name", MASKED)
def test_a_sentence_encoder_finds_the_same_sentences_alike(
    name: str, target: str, width: str, most: float, encoders: Callable[..., Path], place: Place, tmp_path: Path
) -> None:
    (head,) = [found for found in FAMILIES[name].heads if found.task == "encoder" and not found.parts]
    source = change_weights(shutil.copytree(encoders(name, head), tmp_path / "source"), usual_statistics)
    out = place.grow(source, TARGETS[name][target], width).out
    tokens = torch.randint(3, 29, (12, 10), generator=torch.Generator().manual_seed(0))
    before, after = (sentences(load_as(path, head, head.options), tokens) for path in (source, out))
    assert apart(before, after) <= most
    assert float(before.min()) < 0.95, "they are not all alike"


# --- learning ---------------------------------------------------------------------------------------------------------

STEPS = 3


def image_fit(place: Place, classes: int, **changes: object) -> dict[str, object]:
    fit = {
        "steps": STEPS,
        "batch_size": 4,
        "heldout_images": 4,
        "evaluate_every": 1,
        "learning_rate": {"width": 1e-3, "depth": 1e-2},
        "data": {"images": place.images(classes)},
    }
    return {**fit, **changes}


def text_fit(**changes: object) -> dict[str, object]:
    return fit_section(steps=STEPS, **changes)


def check_fit(out: Path, steps: int = STEPS) -> list[dict[str, Any]]:
    """The lines of a fit's log, without their times."""
    lines = [json.loads(line) for line in (out / "ligo" / "fit.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert (out / "ligo" / "fit.png").read_bytes().startswith(b"\x89PNG")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("name", rest_slow(VISION, lambda name: name == "cait"))
def test_an_image_model_learns_on_a_folder_a_class(name: str, sources: Callable[..., Path], place: Place) -> None:
    outcome = place.grow(sources(name), TARGETS[name]["both"], "lemon", "identity", fit=image_fit(place, 5))
    loss = outcome.metrics["loss"]
    assert all(math.isfinite(loss[key]) for key in ("source", "initial", "fitted", "random_target"))
    # The same logits give the same loss.
    assert loss["initial"] == pytest.approx(loss["source"], abs=1e-3)
    assert outcome.metrics["preservation"]["images"] > 0
    accuracy = outcome.metrics["accuracy"]
    assert 0 <= accuracy["initial"] == accuracy["source"] <= 1
    check_fit(outcome.out)
    load(outcome.out)
    verify(outcome.out, source=str(sources(name)), load=True)


@pytest.mark.parametrize("name", rest_slow(VISION, lambda name: name == "vit"))
def test_a_new_head_learns_other_classes(name: str, sources: Callable[..., Path], place: Place) -> None:
    fit = image_fit(place, 3)
    outcome = place.grow(sources(name), {**TARGETS[name]["even"], "num_classes": 3}, "hyperclone", fit=fit)
    loss = outcome.metrics["loss"]
    assert loss["source"] is None, "the source knows other classes"
    # A head of small random weights knows nothing of three classes.
    assert loss["initial"] == pytest.approx(math.log(3), abs=0.3)
    assert math.isfinite(loss["fitted"])
    check_fit(outcome.out)
    verify(outcome.out, source=str(sources(name)), load=True)


# Poolings, registers, and models without a head; DeiT and CaiT lose theirs by `num_classes` alone.
POOLED = ("vit encoder", "vit pooled", "vit gap", "eva", "eva rope", "eva pooled", "eva plain")
BARE = {
    "vit encoder": {},
    "vit gap": {},
    "eva": {},
    "vit": {"num_classes": 0},
    "deit": {"num_classes": 0},
    "cait": {"num_classes": 0},
}


@pytest.mark.parametrize("name", POOLED)
def test_every_pooling_grows_and_loads(name: str, sources: Callable[..., Path], place: Place) -> None:
    source = sources(name)
    outcome = place.grow(source, TARGETS[name]["both"], "lemon", "identity")
    kept = outcome.metrics["preservation"]
    assert (kept["verdict"], kept["measured"]) == ("exact", "exact")
    old, new = load(source), load(outcome.out)
    assert (new.global_pool, new.num_classes) == (old.global_pool, old.num_classes)
    assert apart(logits(old.double()), logits(new.double())) <= 1e-4
    verify(outcome.out, source=str(source), load=True)
    # Growing again changes nothing that its config says.
    again = place.grow(outcome.out, {"depth": 4}, "copy", "identity")
    assert load(again.out).global_pool == old.global_pool
    verify(again.out, source=str(outcome.out), load=True)


@pytest.mark.parametrize("name", BARE)
def test_an_image_model_without_a_head_learns_to_agree_with_its_source(
    name: str, sources: Callable[..., Path], place: Place
) -> None:
    """Images of any number of classes: nothing asks for them."""
    source = sources(name, **BARE[name])
    # Not a whole multiple: the norm's output has entries that are in no copy.
    outcome = place.grow(source, TARGETS[name]["uneven"], "lemon", fit=image_fit(place, 3))
    assert outcome.metrics["task"] == "image-encoder"
    kept, loss = outcome.metrics["preservation"], outcome.metrics["loss"]
    assert (kept["compared"], kept["verdict"], kept["measured"]) == ("hidden states", "exact", "exact")
    assert loss["source"] == 0, "the source agrees with itself"
    assert loss["initial"] == pytest.approx(0, abs=1e-9)
    assert loss["fitted"] <= 1e-6, "learning keeps the best"
    assert loss["random_target"] > 0.1
    check_fit(outcome.out)
    assert not [key for key in weights_of(outcome.out) if key.startswith("head")]
    assert load(outcome.out).num_classes == 0
    verify(outcome.out, source=str(source), load=True)
    card = (outcome.out / "README.md").read_text()
    assert "pipeline_tag: image-feature-extraction" in card
    (line,) = [line for line in card.splitlines() if line.startswith("model = timm.create_model(")]
    assert "pretrained=True, num_classes=0)" in line
    assert "cosines between images" in card
    # transformers' wrapper reads it, too.
    wrapper = transformers.AutoModel.from_pretrained(outcome.out)
    assert wrapper.timm_model.num_classes == 0


def test_a_new_head_on_a_bare_image_model(sources: Callable[..., Path], place: Place, tmp_path: Path) -> None:
    source, target = sources("vit encoder"), {**TARGETS["vit encoder"]["even"], "num_classes": 3}
    outcome = place.grow(source, target, "hyperclone", fit=image_fit(place, 3))
    assert drawn_of(outcome) == ["head.weight (new head)", "head.bias (new head)"]
    loss, kept = outcome.metrics["loss"], outcome.metrics["preservation"]
    assert loss["source"] is None
    assert loss["initial"] == pytest.approx(math.log(3), abs=0.3)
    assert (kept["compared"], kept["verdict"]) == ("hidden states", "exact")
    assert logits(load(outcome.out)).shape == (3, 3)
    verify(outcome.out, source=str(source), load=True)
    applied = apply_operator(outcome.out / "ligo" / "operator.safetensors", str(source), tmp_path / "applied")
    assert load(applied.out).num_classes == 3


def test_a_head_may_be_left_out(sources: Callable[..., Path], place: Place) -> None:
    outcome = place.grow(sources("vit"), {**TARGETS["vit"]["even"], "num_classes": 0}, "hyperclone")
    assert load(outcome.out).num_classes == 0
    kept = outcome.metrics["preservation"]
    assert (kept["compared"], kept["verdict"]) == ("hidden states", "exact")
    verify(outcome.out, source=str(sources("vit")), load=True)


def test_a_bare_image_model_has_no_loss_to_train_with(sources: Callable[..., Path], place: Place) -> None:
    recipe = place.recipe(
        sources("vit encoder"),
        TARGETS["vit encoder"]["even"],
        "hyperclone",
        "copy",
        fit=image_fit(place, 3),
        train={"steps": 4},
    )
    with pytest.raises(RecipeError, match="no training loss"):
        plan_training(recipe)


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.slow
def test_a_text_model_learns_and_says_what_it_lost(name: str, sources: Callable[..., Path], place: Place) -> None:
    source = sources(name, tokenizer=True)
    outcome = place.grow(source, TARGETS[name]["both"], "lemon", "identity", fit=text_fit())
    loss = outcome.metrics["loss"]
    assert all(math.isfinite(loss[key]) for key in ("source", "initial", "fitted", "random_target"))
    # The same logits give the same loss.
    assert loss["initial"] == pytest.approx(loss["source"], abs=1e-3)
    check_fit(outcome.out)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (outcome.out / file).read_bytes() == (source / file).read_bytes()
    # The tokenizer beside the weights is the one they were learned with.
    ids = [
        transformers.AutoTokenizer.from_pretrained(path)("the old layer grows").input_ids
        for path in (source, outcome.out)
    ]
    assert ids[0] == ids[1]
    assert max(ids[0]) < load(outcome.out).config.vocab_size


TIMED = {"README.md", "ligo/provenance.json", "ligo/fit.jsonl", "ligo/fit.png", "ligo/SHA256SUMS"}


@pytest.mark.parametrize("name", rest_slow([*MASKED, "deit"], lambda name: name == "deit"))
def test_the_same_fit_twice_gives_the_same_bytes(name: str, sources: Callable[..., Path], place: Place) -> None:
    images = TASKS[name] == "image-classification"
    source = sources(name) if images else sources(name, tokenizer=True)
    fit = image_fit(place, 5) if images else text_fit()
    first = place.grow(source, TARGETS[name]["both"], "lemon", "identity", fit=fit)
    again = convert(place.recipe(source, TARGETS[name]["both"], "lemon", "identity", fit=fit))
    files = {str(path.relative_to(first.out)) for path in first.out.rglob("*") if path.is_file()}
    assert files == {str(path.relative_to(again.out)) for path in again.out.rglob("*") if path.is_file()}
    for file in files - TIMED:
        assert (first.out / file).read_bytes() == (again.out / file).read_bytes(), file
    assert check_fit(first.out) == check_fit(again.out)
    assert first.metrics["loss"] == again.metrics["loss"]


@pytest.mark.parametrize(
    ("name", "head"), rest_slow(WITHOUT_LOSS, lambda pair: pair == WITHOUT_LOSS[0], pairs=True), ids=named
)
def test_a_headless_encoder_learns_to_agree_with_its_source(
    name: str, head: Head, encoders: Callable[..., Path], place: Place
) -> None:
    source = encoders(name, head, tokenizer=True)
    outcome = place.grow(source, TARGETS[name]["even"], "hyperclone", fit=text_fit())
    loss = outcome.metrics["loss"]
    assert loss["source"] == 0, "the source agrees with itself"
    # A relative mean square of what float32 rounds.
    assert loss["initial"] == pytest.approx(0, abs=1e-9)
    assert math.isfinite(loss["fitted"])
    assert loss["fitted"] <= 1e-6, "learning keeps the best"
    assert loss["random_target"] > 0.1
    check_fit(outcome.out)
    verify(outcome.out, source=str(source), load=True)


def test_a_headless_decoder_learns_to_agree_with_its_source(sources: Callable[..., Path], place: Place) -> None:
    """Its tokenizer has no mask, and its text needs none."""
    source = sources("gpt2", tokenizer=True, architecture="GPT2Model")
    outcome = place.grow(source, TARGETS["gpt2"]["even"], "hyperclone", fit=text_fit())
    loss = outcome.metrics["loss"]
    assert loss["initial"] == pytest.approx(0, abs=1e-9)
    assert loss["fitted"] <= 1e-6, "learning keeps the best"
    assert loss["random_target"] > 0.1
    verify(outcome.out, source=str(source), load=True)


@pytest.mark.parametrize(
    ("name", "head"), rest_slow(WITHOUT_LOSS, lambda pair: pair == WITHOUT_LOSS[0], pairs=True), ids=named
)
def test_a_new_head_learns_to_fill_in_masks(name: str, head: Head, encoders: Callable[..., Path], place: Place) -> None:
    source, wanted = encoders(name, head, tokenizer=True), FAMILIES[name].heads[0].architecture
    outcome = place.grow(source, TARGETS[name]["even"], "hyperclone", fit=text_fit(), target={"architecture": wanted})
    loss = outcome.metrics["loss"]
    assert loss["source"] is None, "the source has no such head"
    assert math.isfinite(loss["initial"])
    assert loss["fitted"] <= loss["initial"] + 0.5
    kept = outcome.metrics["preservation"]
    assert (kept["verdict"], kept["measured"]) == ("exact", "exact"), "source and target read the same tokens"
    check_fit(outcome.out)
    assert type(load(outcome.out)).__name__ == wanted
    verify(outcome.out, source=str(source), load=True)


@pytest.mark.parametrize("name", rest_slow([*MASKED, *VISION], lambda name: name in ("bert", "vit")))
def test_a_recipe_trains_its_own_source(name: str, place: Place) -> None:
    images = TASKS[name] == "image-classification"
    config = config_of(name, **({} if images else text_sizes(family_named(name))))
    pretrain = {"config": {key: value for key, value in config.items() if key != "dtype"}, "steps": 2, "batch_size": 4}
    if not images:
        pretrain["sequence_length"] = 16
    fit = image_fit(place, 5) if images else text_fit()
    source = {"model": None, "pretrain": pretrain}
    recipe = place.recipe(Path("none"), TARGETS[name]["both"], "lemon", "identity", fit=fit, source=source)
    outcome = convert(recipe)
    loss = outcome.metrics["loss"]
    assert loss["initial"] == pytest.approx(loss["source"], abs=1e-3)
    assert outcome.metrics["pretrain"]["steps"] == 2
    # The source lies beside what grew from it, as its library reads it.
    load(outcome.out / "ligo" / "source")
    load(outcome.out)
    verify(outcome.out, source=str(outcome.out / "ligo" / "source"), load=True)


# --- what people see --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", ONE_A_TASK)
def test_plan_and_run_report_every_task(
    name: str,
    learned: bool,
    sources: Callable[..., Path],
    place: Place,
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = TASKS[name]
    source = sources(name) if task == "image-classification" else sources(name, tokenizer=True)
    fit = image_fit(place, 5) if task == "image-classification" else text_fit()
    sections: dict[str, Any] = {"fit": fit} if learned else {}
    recipe = place.recipe(source, TARGETS[name]["even"], "hyperclone", "copy", **sections)
    plan_report(plan_recipe(recipe))
    planned = capsys.readouterr().out
    assert "preservation" in planned
    fitted = re.search(r"^fit  .*", planned, re.MULTILINE)
    assert (fitted is not None) == learned
    assert fitted is None or ("images" in fitted[0]) == (task == "image-classification")
    outcome = place.grow(source, TARGETS[name]["even"], "hyperclone", **sections)
    assert outcome.metrics["task"] == task
    run_report(outcome)
    told = capsys.readouterr().out
    compared = "hidden states" if task == "encoder" else "logits"
    assert f"exact: {compared} differ by at most" in told
    assert ("fitted operator" in told) == learned
    card = (outcome.out / "README.md").read_text()
    assert f"library_name: {family_named(name).library}" in card
    assert "Exact" in card
    json.dumps(outcome.json(), allow_nan=False)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(place: Place, recipe: Recipe, kind: type[LigoError], code: int, text: str) -> None:
    """A plan and a run refuse alike, say what to do, and leave nothing behind."""
    before = sorted(path for path in place.folder.iterdir())
    for do in (plan_recipe, convert):
        with pytest.raises(LigoError, match=text) as caught:
            do(recipe)
        assert isinstance(caught.value, kind)
        assert caught.value.exit_code == code
    assert sorted(path for path in place.folder.iterdir()) == before


@pytest.mark.parametrize("classes", [3, 6])
def test_folders_that_are_not_the_models_classes_are_refused(
    classes: int, sources: Callable[..., Path], place: Place
) -> None:
    fit = image_fit(place, classes)
    recipe = place.recipe(sources("vit"), TARGETS["vit"]["even"], "hyperclone", "copy", fit=fit)
    text = rf"(?s)classes.*expected: *5 folders.*found: *{classes}.*target\.config\.num_classes"
    refused(place, recipe, RecipeError, 2, text)


def test_images_that_are_none_are_refused(sources: Callable[..., Path], place: Place) -> None:
    photos = write_images(place.folder / "photos-broken", classes=5)
    (photos / "class-2" / "notes.txt").write_text("no image")
    fit = image_fit(place, 5, data={"images": "photos-broken"})
    recipe = place.recipe(sources("vit"), TARGETS["vit"]["even"], "hyperclone", "copy", fit=fit)
    refused(place, recipe, RecipeError, 2, r"(?s)notes\.txt.*not an image file.*JPEG")
    fit = image_fit(place, 5, data={"images": "no-photos"})
    recipe = place.recipe(sources("vit"), TARGETS["vit"]["even"], "hyperclone", "copy", fit=fit)
    refused(place, recipe, RecipeError, 2, r"(?s)no-photos.*folder")


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_a_text_model_is_refused_images(task: str, sources: Callable[..., Path], place: Place) -> None:
    name = next(name for name in CASES if TASKS[name] == task)
    fit = text_fit(data={"images": place.images(5)})
    recipe = place.recipe(sources(name, tokenizer=True), TARGETS[name]["even"], "hyperclone", "copy", fit=fit)
    refused(place, recipe, RecipeError, 2, r"(?s)text.*data\.text")


@pytest.mark.parametrize("data", [{"text": ["corpus/*.txt"]}, {"stdlib": True}])
def test_an_image_model_is_refused_text(data: dict[str, object], sources: Callable[..., Path], place: Place) -> None:
    fit = image_fit(place, 5, data=data)
    recipe = place.recipe(sources("cait"), TARGETS["cait"]["even"], "hyperclone", "copy", fit=fit)
    refused(place, recipe, RecipeError, 2, r"(?s)image.*data\.images")


# An architecture that no family lists -> what is near it.
UNKNOWN = {
    "cait_xxs25_224": "cait_xxs24_224",
    "convnext_tiny.fb_in1k": "ligo-convert families",
    "vit_base_patch16_clip_224": "vit_",
}


@pytest.mark.parametrize("architecture", UNKNOWN)
def test_an_architecture_that_no_family_lists_is_refused(
    architecture: str, sources: Callable[..., Path], place: Place, tmp_path: Path
) -> None:
    source = shutil.copytree(sources("cait", own_layout=True), tmp_path / "source")
    change_config(source, lambda config: {**config, "architecture": architecture})
    recipe = place.recipe(source, {"embed_dim": 32}, "hyperclone", "copy")
    refused(place, recipe, SourceError, 3, rf"(?s){architecture}.*{UNKNOWN[architecture]}")


# What timm's models can be told that no table describes; each is in `model_args` of some checkpoint.
NOT_DESCRIBED = {
    "norms in attention": {"qk_norm": True},
    "pooled": {"global_pool": "max"},
    "another activation": {"act_layer": "relu"},
}


@pytest.mark.parametrize("what", NOT_DESCRIBED)
def test_a_model_that_the_table_does_not_describe_is_refused(
    what: str, sources: Callable[..., Path], place: Place, tmp_path: Path
) -> None:
    source = shutil.copytree(sources("vit", own_layout=True), tmp_path / "source")
    change = NOT_DESCRIBED[what]

    def changed(config: dict[str, Any]) -> dict[str, Any]:
        beside = {key: change[key] for key in change if key in config}
        return {**config, **beside, "model_args": {**config["model_args"], **change}}

    change_config(source, changed)
    recipe = place.recipe(source, {"embed_dim": 32, "num_heads": 4}, "hyperclone", "copy")
    refused(place, recipe, SourceError, 3, f"(?s){next(iter(change))}")


# What a config key brings into a model that is not in this source.
BROUGHT = {
    "LayerScale": ("vit", {}, {"init_values": 1e-5}),
    "biases of attention": ("llama", {"attention_bias": False}, {"attention_bias": True}),
    "biases of the feed-forward": ("llama", {}, {"mlp_bias": True}),
}


@pytest.mark.parametrize("what", BROUGHT)
def test_a_target_with_tensors_that_its_source_lacks_is_refused(
    what: str, sources: Callable[..., Path], place: Place
) -> None:
    name, without, brings = BROUGHT[what]
    recipe = place.recipe(sources(name, **without), {**TARGETS[name]["even"], **brings}, "zero", "copy")
    refused(place, recipe, RecipeError, 2, next(iter(brings)))


@pytest.mark.parametrize("name", [name for name in MASKED if FAMILIES[name].norm.placement == "post"])
@pytest.mark.parametrize("width", ["lemon", "hyperclone"])
def test_a_promise_that_post_norm_breaks_is_refused(
    name: str, width: str, sources: Callable[..., Path], place: Place
) -> None:
    recipe = place.recipe(sources(name), TARGETS[name]["uneven"], width, "copy")
    # What is said to do instead must work here: hyperclone and lemon are both refused.
    refused(place, recipe, RecipeError, 2, r"(?s)growth\.width.*embed grows from 16 to 24.*`mean-preserving`.*`zero`")


@pytest.mark.parametrize("wanted", ["BertLMHeadModel", "GPT2LMHeadModel"])
def test_a_head_that_a_family_has_not_is_refused(wanted: str, sources: Callable[..., Path], place: Place) -> None:
    target = {"architecture": wanted}
    recipe = place.recipe(sources("bert"), TARGETS["bert"]["even"], "hyperclone", "copy", target=target)
    refused(place, recipe, RecipeError, 2, rf"(?s){wanted}.*BertForMaskedLM or BertForPreTraining")


def test_an_operator_of_another_head_is_refused(
    sources: Callable[..., Path], encoders: Callable[..., Path], place: Place, tmp_path: Path
) -> None:
    """A sentence encoder has nothing that the head of a masked language model could be grown from."""
    operator = place.grow(sources("bert"), TARGETS["bert"]["even"], "hyperclone").out / "ligo" / "operator.safetensors"
    headless = encoders("bert", FAMILIES["bert"].heads[-1])
    with pytest.raises(SourceError, match=r"(?s)lacks.*cls\.predictions"):
        apply_operator(operator, str(headless), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_grid_has_no_case_twice() -> None:
    assert len(GRID) == len(set(GRID))
    assert {name for name, _ in itertools.groupby(case[0] for case in GRID)} == set(CASES)

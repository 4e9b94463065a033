"""Vision transformers of transformers: real tiny checkpoints grow, load in the library, and read images as its processors do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.source_models import change_weights, fit_section, recipe_text, write_case, write_images
from support.tiny import (
    ALL_CASES,
    TARGETS,
    config_of,
    family_of,
    grown_state,
    inputs_of,
    logits,
    model_of,
    start_of,
    state_of,
    target_model,
)

import ligo_convert
from ligo_convert.conversion.convert import convert
from ligo_convert.data.images import Preparation
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families import registry
from ligo_convert.families.configs import flat_config, image_preprocessing
from ligo_convert.families.registry import FAMILIES, find_family
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.maps import kronecker
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.outputs.usage import family_of_output, loading_lines
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe

VISION = [
    name
    for name, case in ALL_CASES.items()
    if (family := FAMILIES[case.family or name]).library == "transformers" and family.reads == "images"
]
CLASSIFIERS = [name for name in VISION if family_of(config_of(name)).task == "image-classification"]
PROCESSOR = "preprocessor_config.json"


def loaded(place: Path, name: str) -> torch.nn.Module:
    """The model of a directory as the library loads it by its usual class; every key must match."""
    family = family_of(config_of(name))
    model, info = getattr(transformers, family.auto_class).from_pretrained(
        place, output_loading_info=True, dtype=torch.float64, **family.chosen.options
    )
    assert type(model).__name__ == family.architecture
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("name", VISION)
def test_a_checkpoint_of_the_library_grows_and_loads_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_case(tmp_path / "source", name)
    side = config_of(name)["image_size"]
    transformers.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(source)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(source, TARGETS[name]["both"]))
    outcome = convert(load_recipe(recipe))
    assert outcome.metrics["preservation"]["verdict"] == "exact"
    verify(outcome.out, source=str(source), load=True)
    before, after = loaded(source, name), loaded(outcome.out, name)
    expected = logits(before)
    assert float((logits(after) - expected).abs().max() / expected.abs().max()) < 1e-5
    assert (outcome.out / PROCESSOR).read_bytes() == (source / PROCESSOR).read_bytes()
    lines = list(loading_lines(family_of_output(outcome.out), "out", tokenizer=False, processor=True))
    assert lines[-1] == 'processor = AutoImageProcessor.from_pretrained("out")'
    assert lines[-1] in (outcome.out / "README.md").read_text().replace('"."', '"out"')
    made: dict[str, object] = {}
    exec("\n".join(lines), made)
    assert type(made["model"]) is type(after)


@pytest.mark.parametrize("name", VISION)
def test_a_model_in_memory_grows(name: str) -> None:
    model = model_of(config_of(name), dtype=torch.float32)
    grown = ligo_convert.grow(model, TARGETS[name]["both"], progress=False)
    assert type(grown) is type(model)
    assert grown.ligo.preservation["verdict"] == "exact"
    before = logits(model)
    assert float((logits(grown) - before).abs().max() / before.abs().max()) < 1e-4
    # The model is built anew from the config that it has.
    again = type(grown)(grown.config, **family_of(config_of(name)).chosen.options).eval()
    again.load_state_dict(grown.state_dict())
    assert torch.equal(logits(again), logits(grown))


@pytest.mark.parametrize("name", VISION)
def test_an_operator_is_fitted_to_batches_in_memory(name: str) -> None:
    model = model_of(config_of(name), dtype=torch.float32)
    rng = np.random.default_rng(0)
    batches = [
        {"pixel_values": inputs_of(model, batch=4)["pixel_values"].float(), "labels": rng.integers(0, 2, size=4)}
        for _ in range(4)
    ]
    grown = ligo_convert.grow(model, TARGETS[name]["both"], data=batches, steps=2, depth="stack", progress=False)
    assert grown.ligo.fit is not None
    assert grown.ligo.loss["fitted"] <= grown.ligo.loss["initial"] * 1.1


@pytest.mark.parametrize("name", VISION)
def test_an_operator_is_fitted_to_a_folder_of_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_case(tmp_path / "source", name)
    side = config_of(name)["image_size"]
    transformers.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(source)
    write_images(tmp_path / "photos", classes=5)
    fit = {**fit_section(), "data": {"images": "photos"}, "heldout_images": 4}
    del fit["sequence_length"], fit["heldout_tokens"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        recipe_text(source, TARGETS[name]["both"], growth={"width": "net2net", "depth": "stack"}, fit=fit)
    )
    outcome = convert(load_recipe(recipe))
    assert outcome.metrics["fit"]["steps"] == 6
    assert outcome.metrics["task"] == family_of(config_of(name)).task
    loaded(outcome.out, name)


PROCESSORS = {
    "squash": lambda: transformers.ViTImageProcessor(size={"height": 16, "width": 16}),
    "crop": lambda: transformers.BitImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, resample=3
    ),
    "plain": lambda: transformers.ViTImageProcessor(size={"height": 16, "width": 16}, do_normalize=False, resample=3),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", [(40, 40), (40, 24), (31, 57)])
def test_images_are_prepared_as_the_librarys_processor_does(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    processor = PROCESSORS[name]()
    processor.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / PROCESSOR).read_text())
    smooth = np.outer(np.linspace(0, 200, shape[0]), np.linspace(0, 1, shape[1]))[..., None] + np.array([0, 20, 50])
    image = Image.fromarray(smooth.astype(np.uint8))
    image.save(tmp_path / "image.png")
    preparation = Preparation(channels=3, **image_preprocessing({"image_size": 16}, stated))
    ours = preparation.normalised(preparation.pixels(tmp_path / "image.png")[None])
    theirs = np.asarray(processor(images=image, return_tensors="np")["pixel_values"])
    # The library resizes by torch, this by PIL: they round to steps of 1/255, which a narrow deviation widens.
    assert ours.shape == theirs.shape
    assert float(np.abs(ours - theirs).max()) < 3 / 255 / 0.25


@pytest.mark.parametrize(
    "stated", [{"do_rescale": False}, {"rescale_factor": 1.0}, {"do_rescale": None}, {"rescale_factor": "a"}]
)
def test_a_processor_with_another_range_is_refused(stated: dict[str, object]) -> None:
    with pytest.raises(SourceError, match="cannot be prepared"):
        image_preprocessing({"image_size": 16}, stated)


@pytest.mark.parametrize("stated", [{"image_std": [0, 1, 1]}, {"image_mean": [0.5]}, {"image_mean": ["a", 0, 0]}])
def test_numbers_that_prepare_no_image_are_refused(stated: dict[str, object]) -> None:
    with pytest.raises(SourceError, match="cannot be prepared") as caught:
        Preparation(channels=3, **image_preprocessing({"image_size": 16}, stated))
    assert caught.value.where == PROCESSOR


TIMM = {"model_type": "vit", "img_size": 32, "patch_size": 4, "embed_dim": 24}
LIBRARY = {"model_type": "vit", "image_size": 32, "patch_size": 4, "hidden_size": 24}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        # Flat configs, as recipes and operator files have them.
        (TIMM, "vit"),
        ({**TIMM, "architecture": "vit_tiny_patch16_224"}, "vit"),
        ({"model_type": "vit"}, "vit"),
        ({"model_type": "vit", "depth": 3, "patch_size": 4}, "vit"),
        (LIBRARY, "transformers_vit"),
        ({"model_type": "vit", "num_hidden_layers": 3}, "transformers_vit"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "transformers_vit"),
        ({"model_type": "vit", "patch_size": 4, "architectures": ["ViTForImageClassification"]}, "transformers_vit"),
        ({"model_type": "vit", "architectures": "ViTModel"}, "vit"),
        ({**TIMM, "model_type": "deit"}, "deit"),
        ({**LIBRARY, "model_type": "deit"}, "transformers_deit"),
    ],
)
def test_a_model_type_of_both_libraries(config: dict[str, object], name: str) -> None:
    assert find_family(flat_config(config), where="config.json").name == name


def test_a_users_family_comes_before_the_built_in_one_of_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_FILES", {})
    monkeypatch.setattr(registry, "_SOURCES", {})
    before = dict(FAMILIES)
    file = tmp_path / "own.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from ligo_convert.families.definitions.transformers_vit import TRANSFORMERS_VIT\n"
        'OWN = replace(TRANSFORMERS_VIT, name="own_vit")\n'
    )
    try:
        registry.load_family_file(file)
        assert find_family(LIBRARY, where="config.json").name == "own_vit"
        assert find_family(TIMM, where="config.json").name == "vit"
    finally:
        FAMILIES.clear()
        FAMILIES.update(before)


def test_a_pooled_token_without_a_width_of_its_own_grows_with_the_width() -> None:
    config = {key: value for key, value in config_of("transformers_vit encoder").items() if key != "pooler_output_size"}
    model = model_of({**config, "pooler_output_size": None}, dtype=torch.float64)
    model.config.pooler_output_size = None
    grown = ligo_convert.grow(model, TARGETS["transformers_vit encoder"]["even"], progress=False)
    with torch.no_grad():
        old, new = (found(**inputs_of(found)).pooler_output for found in (model, grown))
    assert (old.shape[-1], new.shape[-1]) == (16, 32)
    assert sorted({round(float(value), 9) for value in old[0]}) == sorted({round(float(value), 9) for value in new[0]})


def test_a_class_that_is_not_supported_is_refused() -> None:
    model = transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**LIBRARY, num_hidden_layers=1))
    with pytest.raises(SourceError, match="ViTForMaskedImageModeling is not supported"):
        ligo_convert.grow(model, {"num_hidden_layers": 2}, progress=False)


def pooled(model: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(**inputs).pooler_output
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize(
    ("target", "width"),
    [("even", "lemon"), ("even", "hyperclone"), ("uneven", "lemon"), ("both", "lemon"), ("depth", "lemon")],
)
def test_an_attention_pool_keeps_what_it_returns(target: str, width: str) -> None:
    """The state of a model is measured in front of its pool, so what the pool returns is compared here."""
    config = config_of("siglip_vision_model")
    model = model_of(config)
    plan = start_of(
        "siglip_vision_model", config, TARGETS["siglip_vision_model"][target], width=width, depth="identity"
    )
    assert plan.verdict == "exact"
    operator = initial_operator(plan, dtype=np.float64)
    grown = target_model(operator, state_of(config, model))
    inputs = inputs_of(model)
    old, new = pooled(model, **inputs), pooled(grown, **inputs)
    stream = operator.stream(operator.terms[0], "pooled", None, None, None)
    write = torch.tensor(kronecker([axis.write for axis in stream]) if stream else np.eye(old.shape[-1]))
    assert torch.allclose(new, old @ write.T, rtol=0, atol=1e-11)
    assert float((new - new.mean()).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["vit_map", "vit_map encoder"])
def test_what_timm_reads_behind_an_attention_pool_is_exact_at_whole_multiples(name: str) -> None:
    """The pool's output is read without a norm: a stream that is scaled would be seen."""
    plans = {
        (target, width): start_of(name, config_of(name), TARGETS[name][target], width=width, depth="identity").verdict
        for target, width in (
            ("even", "lemon"),
            ("even", "hyperclone"),
            ("uneven", "mean-preserving"),
            ("depth", "copy"),
        )
    }
    assert list(plans.values()) == ["exact", "exact", "near", "exact"]
    with pytest.raises(RecipeError, match="an attention pool only whole multiples are exact"):
        start_of(name, config_of(name), TARGETS[name]["uneven"], width="lemon", depth="identity")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_width_that_rewrites_the_stream_does_not_keep_the_pool(width: str) -> None:
    verdicts = {}
    for name in ("siglip_vision_model", "siglip_vision_model without pool"):
        config = config_of(name)
        if width in ("copy", "hyperclone"):
            with pytest.raises(RecipeError):
                start_of(name, config, TARGETS[name]["uneven"], width=width, depth="identity")
            return
        plan = start_of(name, config, TARGETS[name]["uneven"], width=width, depth="identity")
        verdicts[name] = plan.verdict
        grown_state(initial_operator(plan, dtype=np.float64), state_of(config, model_of(config)))
        if plan.rewrites:
            assert ("pooled: a norm of its own" in "; ".join(plan.reasons)) == (name == "siglip_vision_model")
    assert width != "zero" or verdicts == dict(zip(verdicts, ("lossy", "exact"), strict=True))


def test_old_names_are_read(tmp_path: Path) -> None:
    """Before transformers 5 the names of the vision tower began with `vision_model.`."""
    source = write_case(tmp_path / "source", "siglip_vision_model")
    new = model_of(config_of("siglip_vision_model"), dtype=torch.float32)
    change_weights(source, lambda tensors: {f"vision_model.{name}": tensor for name, tensor in tensors.items()})
    assert torch.allclose(logits(loaded(source, "siglip_vision_model")), logits(new).double(), atol=1e-5)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        recipe_text(source, TARGETS["siglip_vision_model"]["even"], output={"dir": str(tmp_path / "out")})
    )
    loaded(convert(load_recipe(recipe)).out, "siglip_vision_model")


@pytest.mark.parametrize(
    "sizes",
    [
        {"image_size": [16, 32], "patch_size": [8, 4]},
        {"image_size": 20, "num_channels": 1},
        {"image_size": 23, "patch_size": 4, "head_dim": 6},
    ],
)
@pytest.mark.parametrize("name", ["transformers_vit", "dinov2 classifier"])
def test_images_of_other_shapes(name: str, sizes: dict[str, object]) -> None:
    model = model_of({**config_of(name), **sizes}, dtype=torch.float32)
    grown = ligo_convert.grow(model, TARGETS[name]["both"], progress=False)
    assert grown.ligo.preservation["verdict"] == "exact"
    with pytest.raises(RecipeError, match="image_height cannot grow"):
        ligo_convert.grow(model, {"image_size": 24}, progress=False)


def test_a_model_without_a_pooler_grows() -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**LIBRARY, num_hidden_layers=1), add_pooling_layer=False)
    grown = ligo_convert.grow(model, {"hidden_size": 36}, progress=False)
    assert (grown.ligo.preservation["verdict"], grown.pooler) == ("exact", None)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_another_number_of_classes_is_a_new_head(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_case(tmp_path / "source", name)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(source, {**TARGETS[name]["even"], "num_labels": 3}))
    outcome = convert(load_recipe(recipe))
    assert outcome.metrics["preservation"]["verdict"] == "exact"
    assert logits(loaded(outcome.out, name)).shape[-1] == 3


@pytest.mark.parametrize(
    ("source", "target", "found"),
    [("transformers_vit", "vit_base_patch16_224", "vit"), ("vit", "library", "transformers_vit")],
)
def test_a_target_of_the_other_library_is_refused(source: str, target: str, found: str, tmp_path: Path) -> None:
    write_case(tmp_path / "source", source)
    write_case(tmp_path / "library", "transformers_vit")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        recipe_text("source", {}, target={"model": target, "config": {}}, output={"dir": str(tmp_path / "out")})
    )
    with pytest.raises(RecipeError, match="another family") as caught:
        ligo_convert.plan(load_recipe(recipe))
    assert (caught.value.expected, caught.value.found) == (source, found)


def test_a_recipe_trains_a_source_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", classes=5)
    fit = {**fit_section(), "data": {"images": "photos"}, "heldout_images": 4}
    del fit["sequence_length"], fit["heldout_tokens"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = {"model_type": "vit", "image_size": 16, "patch_size": 8, "num_labels": 5, **sizes}
    source = {"model": None, "pretrain": {"config": config, "steps": 3, "batch_size": 2}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text("-", TARGETS["transformers_vit"]["even"], source=source, fit=fit))
    outcome = convert(load_recipe(recipe))
    assert (outcome.family, outcome.metrics["preservation"]["verdict"]) == ("transformers_vit", "exact")
    loaded(outcome.out, "transformers_vit")

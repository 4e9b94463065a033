"""Odd checkpoints are read as the library's own loader reads them: what it renames, drops, ignores and reshapes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from support.registered import families_restored
from support.source_models import change_config, change_weights, family_named, recipe_text, weights_of, write_case
from support.tiny import CASES, config_of, start_of

from ligo_convert import grow
from ligo_convert.checkpoints.torch_io import tensor_from_bytes
from ligo_convert.cli.inspect import inspect_path
from ligo_convert.conversion.convert import convert
from ligo_convert.conversion.plan import Plan, plan_recipe
from ligo_convert.data.images import Preparation
from ligo_convert.errors import OutputBusy, RecipeError, SourceError, VerificationError
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.parameters import model_parameters
from ligo_convert.families.registry import FAMILIES, find_family
from ligo_convert.growth.operator_file import read_operator
from ligo_convert.hub.resolve import open_source
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe
from ligo_convert.training.model_tensors import tensors_of

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Mapping[str, torch.Tensor]]
ROTARY = [name for name, case in CASES.items() if family_named(name).rotary_axes]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One plain checkpoint of each case."""
    folder, made = tmp_path_factory.mktemp("sources"), dict[str, Path]()

    def get(name: str, **options: Any) -> Path:
        key = json.dumps([name, options], sort_keys=True)
        if key not in made:
            made[key] = write_case(folder / f"source-{len(made)}", name, **options)
        return made[key]

    return get


def read_by_library(source: Path) -> Tensors:
    """Every parameter as the library loads it; nothing may be missing or of another shape."""
    config = json.loads((source / "config.json").read_text())
    if "architecture" in config:
        model: Any = timm.create_model(f"local-dir:{source}", pretrained=True)
    else:
        (named,) = config["architectures"]
        model, info = getattr(transformers, named).from_pretrained(source, output_loading_info=True, dtype="auto")
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if "architecture" in config:
        return values
    family = find_family(config, where="config.json").for_architecture(config["architectures"][0])
    return {
        family.written(name): tensor for name, tensor in tensors_of(model_parameters(family, config), values).items()
    }


def read_by_us(source: Path) -> Tensors:
    """Every tensor that a row claims, by the name that the library gives it, in the shape of its row."""
    with open_source(str(source), base=source) as opened:
        specs = {name: tensor.spec for name, tensor in opened.tensors.items()}
        family = find_family(opened.config, where="config.json")
        found = claim_tensors(family, opened.config, specs, label="source")
        return {
            found.family.written(name): tensor_from_bytes(opened.read(spec.name), spec)
            for name, spec in found.stored.items()
        }


def assert_same(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def grown(source: Path, name: str, folder: Path) -> bytes:
    """The weights of the source grown by one layer, a copy of its last."""
    changes = {key: value for key, value in CASES[name].depth.items() if key != "depth_token_only"}
    folder.mkdir()
    out = {"dir": str(folder / "out")}
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_text(source, changes, growth={"width": "copy", "depth": "stack"}, output=out))
    return (convert(load_recipe(recipe)).out / "model.safetensors").read_bytes()


def renamed(changes: Mapping[str, str]) -> Change:
    def change(tensors: Tensors) -> Tensors:
        return {_replaced(name, changes): tensor for name, tensor in tensors.items()}

    return change


def _replaced(name: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        name = name.replace(old, new)
    return name


def wrapped(prefix: str) -> Change:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def added(**more: tuple[int, ...]) -> Change:
    """With more tensors; `__` stands for the dot of a name."""
    return lambda tensors: {**tensors, **{key.replace("__", "."): torch.ones(shape) for key, shape in more.items()}}


def reshaped(name: str, shape: tuple[int, ...]) -> Change:
    return lambda tensors: {key: tensor.reshape(shape) if key == name else tensor for key, tensor in tensors.items()}


CACHES = ("inv_freq", "original_inv_freq", "cos_cached", "sin_cached")
OLD_NORMS = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
ROTARY_CACHES = (
    added(**{f"model__rotary_emb__{cache}": (4,) for cache in CACHES}),
    added(**{f"model__layers__1__self_attn__rotary_emb__{cache}": (4,) for cache in CACHES}),
)
LINEAR_PATCHES = reshaped("patch_embed.proj.weight", (16, 3 * 8 * 8))
REPRESENTATION = added(pre_logits__fc__weight=(16, 16), pre_logits__fc__bias=(16,))
AUTHORS_SCALES = renamed({"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"})
MASKS = added(transformer__h__0__attn__bias=(1, 1, 12, 12), transformer__h__1__attn__masked_bias=())
# One checkpoint of each case, odd in every way that its library reads.
ODD: dict[str, tuple[Change, ...]] = {
    **dict.fromkeys(ROTARY, ROTARY_CACHES),
    "llama": (*ROTARY_CACHES, renamed({"model.": ""})),
    "qwen2": (*ROTARY_CACHES, renamed({"lm_head": "model.lm_head"})),
    "gpt2": (MASKS, renamed({"transformer.": ""})),
    "bert": (renamed(OLD_NORMS), added(bert__embeddings__position_ids=(1, 16))),
    "roberta": (renamed(OLD_NORMS), added(roberta__embeddings__position_ids=(1, 16))),
    "vit": (LINEAR_PATCHES, REPRESENTATION, wrapped("module.")),
    "deit": (reshaped("patch_embed.proj.weight", (16, 3, 8 * 8)), wrapped("_orig_mod.")),
    "deit3": (AUTHORS_SCALES, wrapped("_orig_mod.module.")),
    "cait": (wrapped("module._orig_mod."),),
}


def test_every_case_is_tried_with_an_odd_checkpoint() -> None:
    assert {family_named(name).name for name in ODD} == {family_named(name).name for name in CASES}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_checkpoint_is_read_as_its_library_reads_it(
    name: str, sources: Callable[..., Path], tmp_path: Path
) -> None:
    plain = sources(name, tied=name != "qwen2")
    source = shutil.copytree(plain, tmp_path / "source")
    for change in ODD[name]:
        change_weights(source, change)
    assert weights_of(source).keys() != weights_of(plain).keys()
    assert_same(read_by_library(source), read_by_library(plain))
    assert_same(read_by_us(source), read_by_library(source))
    assert grown(source, name, tmp_path / "odd") == grown(plain, name, tmp_path / "plain")


CAUSAL = [name for name in CASES if family_named(name).task == "causal-lm"]


def as_body(source: Path, name: str, architecture: str) -> Any:
    """A checkpoint in the library's class without a head; nothing may be missing, left over or of another shape."""
    model, info = transformers.AutoModel.from_pretrained(source, output_loading_info=True, dtype="auto")
    assert {key: found for key, found in info.items() if found} == {}
    assert type(model).__name__ == architecture
    return model.eval()


@pytest.mark.parametrize("name", CAUSAL)
def test_a_decoder_without_a_head_grows_as_its_body(name: str, tmp_path: Path) -> None:
    """Half of them are tied in config.json, as embedding models built on tied decoders are."""
    family = family_named(name)
    body = family.heads[-1].architecture
    tied = bool(CAUSAL.index(name) % 2)
    source = write_case(tmp_path / "source", name, architecture=body, tied=tied)
    assert_same(read_by_us(source), read_by_library(source))
    recipe = tmp_path / "recipe.yaml"
    growth = {"width": "hyperclone", "depth": "copy"}
    recipe.write_text(recipe_text(source, CASES[name].even, growth=growth, output={"dir": str(tmp_path / "out")}))
    done = convert(load_recipe(recipe))
    assert json.loads((done.out / "config.json").read_text())["architectures"] == [body]
    assert done.metrics["preservation"]["verdict"] == "exact"
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        before, after = (as_body(path, name, body)(tokens).last_hidden_state for path in (source, done.out))
    # Whole tiles: the hidden states are the source's, once more.
    assert torch.allclose(torch.cat([before, before], dim=-1), after, atol=1e-4 * max(1.0, float(before.abs().max())))
    verify(done.out, source=str(source), load=True)


# What config.json names, whether the names have the prefix, tied -> the class that it is read as; None for a refusal.
BODIES = [
    (["LlamaForCausalLM"], False, False, "LlamaModel"),
    (["LlamaForCausalLM"], False, True, "LlamaForCausalLM"),
    (["LlamaForCausalLM"], True, False, None),
    (["LlamaModel"], True, False, "LlamaModel"),
    (["LlamaModel"], True, True, "LlamaModel"),
    (None, False, False, "LlamaModel"),
    (None, False, True, "LlamaForCausalLM"),
]


@pytest.mark.parametrize(("named", "prefix", "tied", "expected"), BODIES)
def test_the_class_of_a_decoder_without_a_head_on_disk(
    named: list[str] | None,
    prefix: bool,
    tied: bool,
    expected: str | None,
    sources: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source = shutil.copytree(sources("llama", architecture="LlamaModel"), tmp_path / "source")
    change_config(source, lambda config: {**config, "architectures": named, "tie_word_embeddings": tied})
    if prefix:
        change_weights(source, wrapped("model."))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(source, CASES["llama"].depth, growth={"width": "copy", "depth": "stack"}))
    if expected is None:
        with pytest.raises(SourceError, match="the tensors of its head are in no weight file") as caught:
            plan_recipe(load_recipe(recipe))
        assert caught.value.expected == "lm_head.weight"
        assert 'set architectures to ["LlamaModel"]' in caught.value.hint
        return
    plan = plan_recipe(load_recipe(recipe))
    assert plan.family.architecture == expected
    told = f"config.json names LlamaForCausalLM, and the tensors are those of {expected}"
    assert (told in plan.warnings) == (named is not None and expected not in named)


MORE = {"max_position_embeddings": 64}
LONG = {"original_max_position_embeddings": 16, "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
# Rotary positions of the source -> whether its function depends on the most positions in the config.
LIMITS: list[tuple[dict[str, object] | None, bool]] = [
    (None, False),
    ({"rope_type": "default"}, False),
    ({"rope_type": "linear", "factor": 2.0}, False),
    ({"type": "linear", "factor": 2.0}, False),
    ({"rope_type": "dynamic", "factor": 2.0}, True),
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, False),
    ({"rope_type": "yarn", "factor": 2.0}, True),
    ({"rope_type": "longrope", **LONG}, True),
    ({"rope_type": "longrope", "factor": 2.0, **LONG}, False),
    (
        {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        False,
    ),
]


def frequencies(config: Mapping[str, object], positions: int) -> torch.Tensor:
    """What the library's rotary positions compute for tokens 0 to 47."""
    made = transformers.LlamaConfig(**{**copy.deepcopy(dict(config)), "max_position_embeddings": positions})
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(made)
    return torch.stack(rotary(torch.zeros(1, 48, 64), torch.arange(48)[None]))


@pytest.mark.parametrize(("rope", "reads"), LIMITS)
def test_more_positions_are_exact_where_the_library_does_not_compute_with_them(
    rope: dict[str, object] | None, reads: bool
) -> None:
    config = {"model_type": "llama", **CASES["llama"].config, **({} if rope is None else {"rope_scaling": dict(rope)})}
    # Yarn tells low from high frequencies only where a head has many.
    library = {**{key: value for key, value in config.items() if key != "model_type"}, "head_dim": 64}
    same = torch.equal(frequencies(library, 32), frequencies(library, 64))
    assert same != reads, "the case is not what its row says"
    changed = family_named("llama").changed_function(config, {**config, **MORE})
    assert changed == (("max_position_embeddings",) if reads else ())


@pytest.mark.parametrize("name", ROTARY)
def test_every_rotary_family_has_more_positions_for_nothing(name: str) -> None:
    start = start_of(name, config_of(name), {**CASES[name].even, **MORE}, width="hyperclone")
    assert (start.verdict, start.target["max_position_embeddings"]) == ("exact", 64)


def test_a_refused_promise_names_the_way_out_and_target_config_takes_it(
    sources: Callable[..., Path], tmp_path: Path
) -> None:
    larger = write_case(tmp_path / "larger", "llama", **CASES["llama"].even, **MORE)
    rope = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
    source = change_config(shutil.copytree(sources("llama"), tmp_path / "source"), lambda config: {**config, **rope})
    change_config(larger, lambda config: {**config, **rope})

    def planned(**target: object) -> Plan:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(recipe_text(source, {}, target={"config": None, "model": "./larger", **target}))
        return plan_recipe(load_recipe(recipe))

    with pytest.raises(RecipeError, match="changes max_position_embeddings") as caught:
        planned()
    assert "target.config (max_position_embeddings: 32)" in caught.value.hint
    plan = planned(config={"max_position_embeddings": 32})
    assert plan.start.verdict == "exact"
    assert plan.family.sizes(plan.start.target)["embed"] == CASES["llama"].even["hidden_size"]
    with pytest.raises(RecipeError, match="has no such config key") as caught:
        planned(config={"max_positions": 32})
    assert "recipe.yaml" in caught.value.where


# Case -> what a config.json that names no model is told to name.
NAMELESS = {
    "bert": 'those of bert: put "model_type": "bert" into config.json',
    # An encoder without a head has no prefix, and several families have its other names.
    "bert encoder": 'put "model_type": "bert" or "model_type": "',
    "roberta": '"model_type": "roberta"',
    "gpt2": '"model_type": "gpt2"',
    "qwen2": '"model_type": "qwen2"',
    "phi3": '"model_type": "phi3"',
    "mistral": '"model_type": "mistral"',
    "vit": '"architecture": "NAME", where NAME is timm',
    "cait": 'those of cait: put "architecture"',
}


@pytest.mark.parametrize("name", NAMELESS)
def test_a_config_that_names_no_model_is_told_what_the_tensors_are(
    name: str, sources: Callable[..., Path], tmp_path: Path
) -> None:
    source = shutil.copytree(sources(name), tmp_path / "source")
    unnamed = ("model_type", "architectures", "architecture")
    change_config(source, lambda config: {key: value for key, value in config.items() if key not in unnamed})
    (tmp_path / "recipe.yaml").write_text(recipe_text(source, {}))
    with pytest.raises(SourceError, match="names no model_type") as caught:
        plan_recipe(load_recipe(tmp_path / "recipe.yaml"))
    assert NAMELESS[name] in caught.value.hint
    assert NAMELESS[name] in inspect_path(source)["fits"]


@pytest.fixture
def families() -> Iterator[dict[str, Any]]:
    """The table of families, to change."""
    with families_restored() as table:
        yield table


@pytest.mark.parametrize("other", ["camembert", "xlm-roberta"])
def test_a_model_under_another_name_is_read_as_the_hint_says(
    other: str, tmp_path: Path, families: dict[str, Any]
) -> None:
    """The library implements it by the same tensors and the same computation, as its own class proves."""
    # Both have tables of their own. Without them they are RoBERTa under another name.
    del families[find_family({"model_type": other}, where="case").name]
    families["roberta"] = replace(FAMILIES["roberta"], other_names=(other,))
    config = transformers.AutoConfig.for_model(other, **{**CASES["roberta"].config, "pad_token_id": 1})
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_config(config).eval()
    source = tmp_path / "source"
    model.save_pretrained(source)
    hint = 'set model_type to "roberta" and architectures to ["RobertaForMaskedLM"]'
    assert hint in inspect_path(source)["fits"]
    roberta = {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]}
    change_config(source, lambda stored: {**stored, **roberta})
    assert_same(read_by_us(source), read_by_library(source))
    tokens = torch.arange(3, 11)[None]
    renamed = transformers.RobertaForMaskedLM.from_pretrained(source).eval()
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, renamed(tokens).logits)


def test_another_computation_on_like_tensors_is_not_assumed(sources: Callable[..., Path], tmp_path: Path) -> None:
    source = shutil.copytree(sources("phi3"), tmp_path / "source")
    change_config(source, lambda config: {**config, "model_type": "apertus"})
    fits = inspect_path(source)["fits"]
    assert "the tensor names are those of phi3; another model_type may compute another function" in fits


SIDES: list[tuple[str, dict[str, object]]] = [
    ("vit_tiny_patch16_224", {"img_size": (16, 32), "patch_size": 8}),
    ("vit_tiny_patch16_224", {"img_size": [32, 16], "patch_size": [8, 4], "in_chans": 1, "dynamic_img_size": True}),
    ("deit_tiny_distilled_patch16_224", {"img_size": (16, 32), "patch_size": (4, 8)}),
    ("cait_xxs24_224", {"img_size": (16, 32), "patch_size": 8, "depth_token_only": 1}),
]


@pytest.mark.parametrize(("architecture", "sides"), SIDES)
def test_images_and_patches_that_are_not_square(
    architecture: str, sides: dict[str, object], tmp_path: Path, sources: Callable[..., Path]
) -> None:
    arguments = {"embed_dim": 16, "depth": 2, "num_heads": 2, **sides}
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=5, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    timm.models.save_for_hf(model, tmp_path / "source", model_args=arguments, safe_serialization=True)
    assert_same(read_by_us(tmp_path / "source"), read_by_library(tmp_path / "source"))
    recipe = tmp_path / "recipe.yaml"
    out = {"dir": str(tmp_path / "out")}
    recipe.write_text(recipe_text("./source", {"embed_dim": 32, "num_heads": 4, "depth": 3}, output=out))
    done = convert(load_recipe(recipe))
    assert done.metrics["preservation"]["verdict"] == "exact"
    verify(done.out, source=str(tmp_path / "source"), load=True)
    found = timm.create_model(f"local-dir:{done.out}", pretrained=True)
    assert found.patch_embed.img_size == tuple(sides["img_size"])  # type: ignore[arg-type]
    images = torch.randn(2, model.patch_embed.proj.in_channels, *found.patch_embed.img_size)
    with torch.no_grad():
        before, after = model.eval()(images), found.eval()(images)
    assert torch.allclose(before, after, atol=1e-4)
    # In memory, from the modules alone.
    twice = grow(model, {"embed_dim": 32, "num_heads": 4}, width="hyperclone", depth="copy")
    with torch.no_grad():
        assert torch.allclose(before, twice.eval()(images), atol=1e-4)
    # As many patches in another order are another model.
    turned = {"img_size": list(reversed(sides["img_size"])), "patch_size": sides["patch_size"]}  # type: ignore[call-overload]
    recipe.write_text(recipe_text("./source", turned))
    with pytest.raises(RecipeError, match="cannot grow"):
        plan_recipe(load_recipe(recipe))


@pytest.mark.parametrize("image", [(40, 30), (30, 40), (100, 20)])
@pytest.mark.parametrize("size", [(16, 32), (32, 16), (24, 24)])
def test_images_are_cropped_as_timm_crops_them(image: tuple[int, int], size: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, size=(*image, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    settings = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 0.9}
    preparation = Preparation(size=size, channels=3, **settings)  # type: ignore[arg-type]
    ours = preparation.normalised(preparation.pixels(tmp_path / "a.png")[None])[0]
    theirs = timm.data.create_transform((3, *size), **settings)(Image.open(tmp_path / "a.png"))  # type: ignore[arg-type]
    assert np.allclose(ours, theirs.numpy(), atol=1e-6)


def refusal(source: Path) -> str:
    with pytest.raises(SourceError) as caught:
        read_by_us(source)
    return str(caught.value)


# Case, the change of its tensors, the change of its config, what the refusal says.
TOLD: list[tuple[str, Change, dict[str, object], tuple[str, ...]]] = [
    ("llama", wrapped("base_model.model."), {}, ("PEFT adapter", "merge_and_unload")),
    ("qwen2", added(model__layers__0__self_attn__q_proj__lora_A__weight=(2, 16)), {}, ("PEFT adapter",)),
    ("mistral", added(model__layers__0__mlp__up_proj__scales=(2, 16)), {}, ("quantised", "original checkpoint")),
    ("mistral", added(lm_head__biases=(2, 16)), {"quantization": {"bits": 4}}, ("config.json has a quantization",)),
    ("bert", wrapped("module."), {}, ("training wrapper", "transformers does not strip it")),
    ("llama", lambda tensors: tensors, {"attention_bias": False}, ("attention_bias = False", "set attention_bias")),
    (
        "bert",
        added(regressor__weight=(2, 16)),
        {"architectures": ["BertForRegression"]},
        ("config.json names BertForRegression", "BertForMaskedLM", "AutoModel.from_pretrained"),
    ),
    (
        "bert",
        added(classifier__weight=(2, 16)),
        {"architectures": ["BertForSequenceClassification"]},
        ("config.json names BertForSequenceClassification", "bert.pooler.dense.weight", "incomplete"),
    ),
    ("vit", reshaped("pos_embed", (1, 1, 80)), {}, ("timm would adapt it", "save_for_hf")),
    ("vit", added(blocks__0__gamma_1=(16,)), {}, ("no row claims blocks.0.gamma_1",)),
]


@pytest.mark.parametrize(("name", "change", "config", "told"), TOLD)
def test_a_refusal_tells_what_the_names_are_and_what_to_do(
    name: str,
    change: Change,
    config: dict[str, object],
    told: tuple[str, ...],
    sources: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source = change_weights(shutil.copytree(sources(name), tmp_path / "source"), change)
    change_config(source, lambda stored: {**stored, **config})
    message = refusal(source)
    assert [words for words in told if words not in message] == [], message


def test_a_checkpoint_where_an_output_or_an_operator_is_wanted_is_called_one(
    sources: Callable[..., Path], tmp_path: Path
) -> None:
    source = sources("llama")
    with pytest.raises(VerificationError, match="this is a checkpoint, not an output of ligo-convert") as caught:
        verify(source)
    assert "ligo/SHA256SUMS" in str(caught.value.expected)
    assert "ligo-convert inspect" in caught.value.hint
    with pytest.raises(VerificationError, match="this is not an output of ligo-convert"):
        verify(tmp_path)
    with pytest.raises(SourceError, match="a directory, not an operator file") as refused:
        read_operator(source)
    assert "ligo-convert run" in refused.value.hint
    (tmp_path / "ligo").mkdir()
    (tmp_path / "ligo" / "operator.safetensors").touch()
    with pytest.raises(SourceError) as refused:
        read_operator(tmp_path)
    assert refused.value.hint.endswith("ligo/operator.safetensors")
    with pytest.raises(VerificationError, match="SHA256SUMS is missing"):
        verify(tmp_path)


def test_an_occupied_output_names_what_differs(sources: Callable[..., Path], tmp_path: Path) -> None:
    source = shutil.copytree(sources("gpt2"), tmp_path / "source")
    out, recipe = tmp_path / "out", tmp_path / "recipe.yaml"

    def carry_out(**growth: object) -> None:
        growth = {"width": "copy", "depth": "stack", **growth}
        recipe.write_text(recipe_text("./source", CASES["gpt2"].depth, growth=growth, output={"dir": str(out)}))
        convert(load_recipe(recipe))

    carry_out()
    with pytest.raises(OutputBusy, match="the result of another recipe") as caught:
        carry_out(depth="interpolate", seed=7)
    assert caught.value.expected == 'recipe: growth.depth = "interpolate"'
    assert caught.value.found == 'recipe: growth.depth = "stack"'
    assert "also different: recipe: growth.seed" in caught.value.hint
    change_weights(source, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    with pytest.raises(OutputBusy, match="the result of another recipe") as caught:
        carry_out()
    assert str(caught.value.expected).startswith("source: model.safetensors = SHA-256 ")
    shutil.rmtree(out)
    # Unfinished work tells the same.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ligo_convert.conversion.convert.write_job", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            carry_out()
    with pytest.raises(OutputBusy, match="unfinished work of another recipe") as caught:
        carry_out(seed=7)
    assert (caught.value.expected, caught.value.found) == ("recipe: growth.seed = 7", "recipe: growth.seed = 0")
    carry_out()


@pytest.mark.parametrize("written_by", [None, {"format": "mlx"}, {"format": "tf"}, {"format": "pt", "more": "x"}])
def test_the_format_in_the_metadata_changes_nothing(
    written_by: dict[str, str] | None, sources: Callable[..., Path], tmp_path: Path
) -> None:
    """mlx-lm writes its own name there, and other tools write nothing; the library reads the same tensors."""
    source = shutil.copytree(sources("llama"), tmp_path / "source")
    save_file(weights_of(source), source / "model.safetensors", metadata=written_by)
    assert_same(read_by_library(source), read_by_library(sources("llama")))
    assert_same(read_by_us(source), read_by_library(source))


def test_a_recipe_with_a_mistyped_directory_is_told_the_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "recipe.yaml").write_text(recipe_text("sorce/", {}))
    with pytest.raises(RecipeError, match="did you mean the directory source"):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(SourceError, match="no such file or directory") as caught:
        inspect_path(tmp_path / "sorce")
    assert caught.value.hint == "did you mean the directory source?"

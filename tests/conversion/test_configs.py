"""How configs enter the libraries: the planned config is written, no key brings code along, refusals come first."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from support.source_models import (
    GROWN,
    change_config,
    family_named,
    fit_section,
    recipe_text,
    write_case,
    write_checkpoint,
    write_text,
)
from support.tiny import CASES, TARGETS

import ligo_convert
from ligo_convert.cli.inspect import inspect_path
from ligo_convert.comparison.compare import compare
from ligo_convert.conversion.apply import apply_operator
from ligo_convert.conversion.convert import convert, fit_operator
from ligo_convert.conversion.plan import plan_recipe
from ligo_convert.errors import LigoError, RecipeError, SourceError, WrongResult
from ligo_convert.families.library_names import ACTIVATIONS, ROPE_TYPES
from ligo_convert.families.registry import FAMILIES
from ligo_convert.outputs.loading import check_loads
from ligo_convert.outputs.side_files import json_bytes, target_config
from ligo_convert.recipes.recipe import Recipe, load_recipe
from ligo_convert.training import preservation

# Old-style rotary positions, whose mapping the config classes of transformers 5 write into. The head size of every case is 4 or 8.
OLD_ROTARY: dict[str, dict[str, object]] = {
    "llama": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "mistral": {"type": "linear", "factor": 2.0},
    "qwen2": {"type": "yarn", "factor": 4.0},
    "qwen3": {"type": "dynamic", "factor": 2.0},
    "phi3": {"type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [1.5, 2.0]},
    "starcoder2": {"type": "linear", "factor": 2.0},
}
# Plain keys that no library knows, with a value that could be written into.
UNKNOWN = {"trained_by": {"who": "a team", "runs": [1, 2]}, "note": None}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("gpt2") / "source")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama") / "source", "llama")


def recipe_of(place: Path, model: Path | str, target: Mapping[str, object], /, **sections: object) -> Recipe:
    (place / "recipe.yaml").write_text(recipe_text(model, target, **sections))
    return load_recipe(Path(os.path.relpath(place / "recipe.yaml")))


def left_behind(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name.startswith(".") or path.name == "out")


def with_keys(source: Path, place: Path, **keys: object) -> Path:
    return change_config(shutil.copytree(source, place / "source"), lambda config: {**config, **keys})


# --- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("bert full", "bert encoder")])
def test_the_planned_config_is_written_by_run_and_apply(name: str, place: Path) -> None:
    family, rotary = family_named(name), OLD_ROTARY.get(name)

    def old(config: dict[str, Any]) -> dict[str, Any]:
        if rotary is None:
            return {**config, **(UNKNOWN if family.library == "transformers" else {})}
        kept = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype")}
        return {**kept, **UNKNOWN, "rope_theta": 10000.0, "rope_scaling": rotary, "torch_dtype": "float32"}

    source = change_config(write_case(place / "source", name), old)
    stored = json.loads((source / "config.json").read_text())
    recipe = recipe_of(place, source, TARGETS[name]["even"])
    plan = plan_recipe(recipe)
    planned = json_bytes(target_config(plan.family, plan.start.target, plan.specs, stored=stored))
    convert(recipe)
    assert (place / "out" / "config.json").read_bytes() == planned
    apply_operator(place / "out" / "ligo" / "operator.safetensors", str(source), place / "applied")
    assert (place / "applied" / "config.json").read_bytes() == planned
    written = json.loads(planned)
    if family.library == "transformers":
        same = {key: value for key, value in stored.items() if key in written and key not in plan.asked}
        # The epsilon of the norms may be scaled by the map.
        same = {**same, family.norm.epsilon: written[family.norm.epsilon], "dtype": "float32"}
        assert {key: written[key] for key in same} == same
        assert {*UNKNOWN, *(("rope_scaling", "rope_theta") if rotary else ())} <= {*written}


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "qwen3", "phi3"])
def test_a_model_grown_in_memory_has_the_config_that_run_writes(name: str, place: Path) -> None:
    keys = {**UNKNOWN, "return_dict": False, "id2label": {"0": "a", "1": "b", "2": "c"}}
    if name in OLD_ROTARY:
        keys |= {
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": OLD_ROTARY[name].get("type"), **OLD_ROTARY[name]}
        }
    source = change_config(write_case(place / "source", name), lambda config: {**config, **keys})
    convert(recipe_of(place, source, TARGETS[name]["both"], growth={"width": "zero"}))
    model = getattr(transformers, family_named(name).auto_class).from_pretrained(source)
    before = model.config.to_dict()
    ligo_convert.grow(model, TARGETS[name]["both"], width="zero").save_pretrained(place / "saved")
    assert model.config.to_dict() == before
    written, saved = (transformers.AutoConfig.from_pretrained(place / where).to_dict() for where in ("out", "saved"))
    for key in ("transformers_version", "_name_or_path"):
        written[key] = saved[key]
    assert written == saved


@pytest.mark.parametrize("name", ["gpt2", "bert", "bert encoder"])
def test_keys_that_change_the_form_of_a_result_are_carried_and_not_handed_on(name: str, place: Path) -> None:
    form = {
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "use_cache": False,
        "torchscript": True,
        "chunk_size_feed_forward": 7,
        "num_labels": 3,
    }
    source = change_config(write_case(place / "source", name), lambda config: {**config, **form})
    outcome = convert(recipe_of(place, source, TARGETS[name]["even"]))
    assert outcome.metrics["preservation"]["verdict"] == outcome.metrics["preservation"]["planned"]
    written = json.loads((place / "out" / "config.json").read_text())
    assert {key: written[key] for key in form} == form


# --- no config brings code along ---------------------------------------------------------------------------------------


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A package `kernels` is installed; the list receives the names of the kernels that are fetched."""
    from transformers import modeling_utils
    from transformers.integrations import hub_kernels

    fetched: list[str] = []

    def fetch(name: str, *_: object, **__: object) -> None:
        fetched.append(name)
        raise AssertionError(f"the kernel {name} is fetched and run")

    for module in (hub_kernels, modeling_utils):
        monkeypatch.setattr(module, "is_kernels_available", lambda *_: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", fetch)
    return fetched


IMPLEMENTATIONS = {
    "attn_implementation": {"": "org/kernel"},
    "_attn_implementation": "org/kernel",
    "experts_implementation": "org/kernel",
    "auto_map": {"AutoConfig": "configuration_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"},
    "custom_pipelines": {"text-generation": {"impl": "pipeline_evil.Pipeline"}},
}


@pytest.mark.parametrize("key", IMPLEMENTATIONS)
def test_no_source_chooses_code(key: str, llama: Path, place: Path, kernels: list[str]) -> None:
    source = with_keys(llama, place, **{key: IMPLEMENTATIONS[key]})
    (source / "modeling_evil.py").write_text("raise SystemExit('evil code runs')\n")
    recipe = recipe_of(place, "./source", GROWN["llama"])
    assert [warning for warning in plan_recipe(recipe).warnings if f"{key} is ignored and not written" in warning]
    convert(recipe)
    assert key not in json.loads((place / "out" / "config.json").read_text())
    inspect_path(Path("source"))
    assert kernels == []


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_implementation": "org/kernel"},
        {"attn_implementation": {"": "org/kernel"}},
        {"_attn_implementation": "flash_attention_2"},
        {"auto_map": IMPLEMENTATIONS["auto_map"]},
        {"quantization_config": {"quant_method": "mxfp4"}},
    ],
    ids=str,
)
def test_loading_a_stranger_s_directory_runs_no_code(
    keys: dict[str, object], llama: Path, place: Path, kernels: list[str]
) -> None:
    check_loads(with_keys(llama, place, **keys), FAMILIES["llama"])
    assert kernels == []


def test_timm_loads_the_checked_weights_and_no_file_that_a_config_names(place: Path) -> None:
    source = write_case(place / "source", "vit")
    elsewhere = {"file": str(place / "elsewhere.pth"), "custom_load": True, "url": "http://localhost/x.pth"}
    change_config(source, lambda config: {**config, "pretrained_cfg": {**config["pretrained_cfg"], **elsewhere}})
    assert check_loads(source, FAMILIES["vit"])["class"] == "VisionTransformer"


@pytest.mark.parametrize("key", [*IMPLEMENTATIONS, "_attn_implementation_internal", "trust_remote_code"])
def test_a_recipe_chooses_no_code(key: str, place: Path) -> None:
    pretrain = {"config": {"model_type": "gpt2", **dict(GROWN["gpt2"]), key: IMPLEMENTATIONS.get(key, "org/kernel")}}
    (place / "recipe.yaml").write_text(recipe_text("x", {"n_embd": 48}, source={"model": None, "pretrain": pretrain}))
    with pytest.raises(RecipeError, match=rf"source\.pretrain\.config\.{key}: "):
        load_recipe(place / "recipe.yaml")


# --- what the library refuses ------------------------------------------------------------------------------------------

# Refused from headers alone: family, key, value that the library does not take.
WRONG: list[tuple[str, str, object]] = [
    ("gpt2", "activation_function", 1.5),
    ("gpt2", "activation_function", "foo"),
    ("gpt2", "layer_norm_epsilon", "1e-5"),
    ("gpt2", "scale_attn_weights", "yes"),
    ("gpt2", "initializer_range", True),
    ("llama", "hidden_act", None),
    ("llama", "max_position_embeddings", "64"),
    ("llama", "rope_scaling", {"rope_type": "foo", "factor": 2.0}),
    ("llama", "rope_scaling", "linear"),
    ("llama", "eos_token_id", [0, "1"]),
    ("llama", "rope_parameters", {"type": "su", "rope_theta": 10000.0}),
]


@pytest.mark.parametrize(("family", "key", "value"), WRONG)
def test_a_value_of_the_wrong_kind_is_refused_by_the_plan(
    family: str, key: str, value: object, gpt2: Path, llama: Path, place: Path
) -> None:
    model = {"gpt2": gpt2, "llama": llama}[family]
    for kind, recipe in (
        (SourceError, recipe_of(place, with_keys(model, place, **{key: value}), GROWN[family])),
        (RecipeError, recipe_of(place, model, {**GROWN[family], key: value})),
    ):
        if kind is RecipeError and key == "rope_scaling":
            continue  # no key that a target may set
        for do in (plan_recipe, convert):
            with pytest.raises(LigoError, match=key) as caught:
                do(recipe)
            assert type(caught.value) is kind
            assert left_behind(place) == []
    convert(recipe_of(place, model, GROWN[family]))


# Refused by the library itself, as the first act of the run.
REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("gpt2", {"problem_type": "single_label_classification", "num_labels": 1}, "problem_type"),
    ("gpt2", {"use_cache": "no"}, "use_cache"),
    ("gpt2", {"attn_pdrop": 1.5}, "attn_pdrop|probability"),
    ("gpt2", {"use_return_dict": True}, "use_return_dict"),
    ("gpt2", {"id2label": {"a": "b"}}, "config"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0}}, "rope"),
]


@pytest.mark.parametrize(("family", "keys", "named"), REFUSED)
def test_what_the_library_refuses_is_refused_before_any_staging(
    family: str, keys: dict[str, object], named: str, gpt2: Path, llama: Path, place: Path
) -> None:
    model = {"gpt2": gpt2, "llama": llama}[family]
    source = with_keys(model, place, **keys)
    with pytest.raises(SourceError, match=named) as caught:
        convert(recipe_of(place, source, GROWN[family]))
    assert caught.value.where == "source/config.json"
    assert left_behind(place) == []
    settable = {key: value for key, value in keys.items() if key in FAMILIES[family].defaults}
    if settable:
        with pytest.raises(RecipeError, match=named) as wrong:
            convert(recipe_of(place, model, {**GROWN[family], **settable}))
        assert wrong.value.where.startswith("recipe.yaml:")
        assert left_behind(place) == []
    convert(recipe_of(place, model, GROWN[family]))
    with pytest.raises(SourceError, match=named):
        apply_operator(place / "out" / "ligo" / "operator.safetensors", str(source), place / "applied")


def test_a_trained_source_and_a_comparison_are_refused_first_too(gpt2: Path, place: Path) -> None:
    (place / "corpus").mkdir()
    write_text(place / "corpus" / "a.txt")
    config = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 64, "n_embd": 16, "n_head": 2, "n_layer": 2}
    pretrain = {"config": {**config, "use_cache": "no"}, "steps": 2, "batch_size": 2, "sequence_length": 16}
    own = recipe_of(place, "", GROWN["gpt2"], source={"model": None, "pretrain": pretrain}, fit=fit_section())
    with pytest.raises(RecipeError, match="use_cache") as caught:
        convert(own)
    line = (place / "recipe.yaml").read_text().splitlines()[int(caught.value.where.split(":")[1]) - 1]
    assert "use_cache" in line
    compared = recipe_of(place, with_keys(gpt2, place, use_cache="no"), GROWN["gpt2"], fit=fit_section())
    with pytest.raises(SourceError, match="use_cache"):
        compare(compared, place / "out", methods=["scratch"], steps=8)
    assert left_behind(place) == []


def test_a_mended_recipe_follows_a_refusal_that_came_late(gpt2: Path, place: Path) -> None:
    (place / "corpus").mkdir()
    text = place / "corpus" / "a.txt"
    text.write_text("too short for three slices\n")
    recipe = recipe_of(place, gpt2, GROWN["gpt2"], fit=fit_section())
    refusals: tuple[Callable[[], object], ...] = (
        lambda: convert(recipe),
        lambda: fit_operator(recipe, place / "grown.operator"),
    )
    for refusal in refusals:
        with pytest.raises(RecipeError, match="tokens"):
            refusal()
        assert left_behind(place) == []
    write_text(text)
    convert(recipe_of(place, gpt2, GROWN["gpt2"], fit=fit_section(steps=2)))


def test_a_result_that_is_wrong_leaves_nothing(gpt2: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(place, gpt2, GROWN["gpt2"])
    with monkeypatch.context() as patch:
        patch.setattr(preservation, "EXACT", -1.0)  # no growth is as exact as that
        with pytest.raises(WrongResult, match="preserves the function by its mathematics"):
            convert(recipe)
    assert left_behind(place) == []
    convert(recipe_of(place, gpt2, GROWN["gpt2"], growth={"width": "zero"}))


# --- the names that a plan knows ---------------------------------------------------------------------------------------


def test_a_plan_knows_the_names_that_the_library_knows() -> None:
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert {*ACTIVATIONS} == {*ACT2FN}
    assert {*ROPE_TYPES} == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.library == "transformers"])
def test_a_plan_refuses_no_value_of_the_library_s_own_config(name: str) -> None:
    family = FAMILIES[name]
    assert family.wrong_value(transformers.AutoConfig.for_model(family.model_type).to_dict()) is None
    assert not family.activation or family.activation in family.defaults

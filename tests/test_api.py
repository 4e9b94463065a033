"""The public Python API: the names of the package, and `ligo_convert.grow` on real models."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import itertools
import math
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.source_models import (
    GROWN,
    VOCABULARY,
    fit_section,
    recipe_text,
    tokenizer_files,
    write_checkpoint,
    write_text,
)
from support.tiny import TARGETS, config_of, logits, model_of

import ligo_convert
import ligo_convert.in_memory
from ligo_convert.errors import RecipeError, SourceError


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "phi3", "bert", "roberta"])
def test_a_grown_model_computes_what_its_source_does(family: str, tied: bool) -> None:
    model = model_of(config_of(family, tied=tied), dtype=torch.float32)
    grown = ligo_convert.grow(model, TARGETS[family]["both"])
    assert type(grown) is type(model)
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(logits(grown), logits(model), rtol=0, atol=1e-4 * float(logits(model).abs().max()))
    assert (grown.get_output_embeddings().weight is grown.get_input_embeddings().weight) == tied


def test_data_makes_it_learn() -> None:
    torch.manual_seed(0)
    model = model_of(config_of("gpt2"), dtype=torch.float32)
    pattern = torch.arange(12).repeat(4, 1)
    batches = [pattern for _ in range(6)]

    def loss(found: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(found(input_ids=pattern, labels=pattern).loss)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    target = {"n_embd": 24, "n_head": 3, "n_layer": 3}
    start = ligo_convert.grow(model, target)
    learned = ligo_convert.grow(model, target, data=batches, steps=10, learning_rate={"width": 1e-2})
    assert loss(learned) < loss(start) - 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "the source stays"


# --- the package ------------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, ligo_convert; dir(ligo_convert); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_planning_a_recipe_imports_no_torch() -> None:
    code = "import sys, ligo_convert; ligo_convert.plan, ligo_convert.load_recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_every_public_name_is_there() -> None:
    assert set(ligo_convert.__all__) <= set(dir(ligo_convert))
    for name in ligo_convert.__all__:
        value = getattr(ligo_convert, name)
        assert not isinstance(value, types.ModuleType), name
        assert name == "FAMILIES" or value.__doc__, name
    for name in ("plan", "convert", "verify", "publish", "grow"):
        # A package of the same name would take the function's place when something imports it.
        assert importlib.util.find_spec(f"ligo_convert.{name}") is None
    with pytest.raises(AttributeError, match="no attribute 'shrink'"):
        _ = ligo_convert.shrink


def test_packages_stay_importable() -> None:
    import ligo_convert.outputs.publish
    import ligo_convert.recipes.recipe

    assert ligo_convert.recipes.recipe.Recipe is ligo_convert.Recipe
    assert ligo_convert.publish is not ligo_convert.outputs.publish


def test_a_recipe_from_its_file_to_a_verified_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "source")
    (tmp_path / "corpus").mkdir()
    write_text(tmp_path / "corpus" / "a.txt")
    Path("recipe.yaml").write_text(recipe_text("./source", GROWN["gpt2"], fit=fit_section()))
    recipe = ligo_convert.load_recipe("recipe.yaml", overrides=("fit.steps=2",))
    assert isinstance(recipe, ligo_convert.Recipe)
    planned = ligo_convert.plan("recipe.yaml")
    result = ligo_convert.convert(recipe)
    assert result.metrics["parameters"] == planned.parameters
    assert ligo_convert.verify("out", source="source", load=True)["derived"]["identical"] > 0
    figures = ligo_convert.fit_operator(recipe, "operator.safetensors")
    assert figures["loss"]["fitted"] is not None
    operator = ligo_convert.load_operator("operator.safetensors")
    assert isinstance(operator, ligo_convert.Operator)
    assert ligo_convert.FAMILIES[operator.family].name == "gpt2"
    ligo_convert.apply_operator("operator.safetensors", "source", "applied")
    assert Path("applied/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


# --- grow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "bert",
        "vit",
        "vit encoder",
        "vit pooled",
        "vit gap",
        "eva",
        "eva rope",
        "eva pooled",
        "eva plain",
        "cait",
        "deit",
        "deit3",
    ],
)
def test_the_figures_hang_on_the_grown_model(name: str) -> None:
    model = model_of(config_of(name), dtype=torch.float32)
    kind = "even" if name == "bert" else "both"
    grown = ligo_convert.grow(model, TARGETS[name][kind], progress=False)
    assert type(grown) is type(model)
    report = grown.ligo
    assert isinstance(report, ligo_convert.GrowthReport)
    assert report.preservation["verdict"] == "exact"
    assert report.loss == {"source": None, "initial": None, "fitted": None}
    sizes = {"source": model, "target": grown}
    assert report.parameters == {key: sum(p.numel() for p in found.parameters()) for key, found in sizes.items()}
    masks = report.new_parameter_masks()
    assert {key: tuple(mask.shape) for key, mask in masks.items()} == {
        key: tuple(parameter.shape) for key, parameter in grown.named_parameters()
    }
    assert sum(int(mask.sum()) for mask in masks.values()) == report.new_parameters["counts"]["new"] > 0
    torch.testing.assert_close(logits(grown), logits(model), rtol=0, atol=1e-4 * float(logits(model).abs().max()))


def test_a_grown_model_is_saved_as_any_other(tmp_path: Path) -> None:
    grown = ligo_convert.grow(model_of(config_of("gpt2"), dtype=torch.float32), TARGETS["gpt2"]["both"])
    grown.save_pretrained(tmp_path)
    again = type(grown).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(grown))
    assert copy.deepcopy(grown).ligo.parameters == grown.ligo.parameters


def test_dtype_stays() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        grown = ligo_convert.grow(model_of(config_of("gpt2"), dtype=dtype), TARGETS["gpt2"]["both"])
        assert {parameter.dtype for parameter in grown.parameters()} == {dtype}
        assert grown.ligo.preservation["verdict"] == "exact"


IDS = [torch.randint(0, 29, (2, 8), generator=torch.Generator().manual_seed(number)) for number in range(6)]


def batches_of(kind: str) -> object:
    """The same six batches of token ids as different kinds of data."""
    import datasets

    rows = torch.cat(IDS)
    match kind:
        case "list of tensors":
            return IDS
        case "generator":
            return ({"input_ids": ids} for ids in itertools.cycle(IDS))
        case "DataLoader":
            return torch.utils.data.DataLoader([{"input_ids": row} for row in rows], batch_size=2)
        case "Dataset":
            return datasets.Dataset.from_dict({"input_ids": rows.tolist(), "label": [0] * len(rows)})
        case "one tensor":
            return rows
        case _:
            return [row.tolist() for row in rows]


@pytest.mark.parametrize(
    "kind", ["list of tensors", "generator", "DataLoader", "Dataset", "one tensor", "list of lists"]
)
def test_data_comes_in_many_forms(kind: str) -> None:
    model = model_of(config_of("gpt2"), dtype=torch.float32)
    report = ligo_convert.grow(model, {"n_layer": 3}, data=batches_of(kind), batch_size=2, steps=4).ligo
    assert report.fit["steps"] == len(report.log) == 4
    assert all(isinstance(value, float) for value in report.loss.values())
    if kind != "generator":
        # Six batches: four are trained on, one chooses, the last reports.
        with torch.no_grad():
            expected = float(model(input_ids=IDS[-1], labels=IDS[-1]).loss)
        assert report.loss["source"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_texts_are_tokenized(family: str, as_dataset: bool, tmp_path: Path) -> None:
    import datasets

    for name, content in tokenizer_files(family, tmp_path / "training").items():
        (tmp_path / name).write_bytes(content)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = model_of(config_of(family, vocab_size=VOCABULARY), dtype=torch.float32)
    texts = [f"line {number} of a text that is long enough" for number in range(200)]
    data = datasets.Dataset.from_dict({"text": texts}) if as_dataset else texts
    options = {"tokenizer": tokenizer, "sequence_length": 8, "batch_size": 4, "steps": 2}
    depth = TARGETS[family]["depth"]
    report = ligo_convert.grow(model, depth, data=data, **options).ligo
    assert report.fit["steps"] == 2
    assert report.loss == ligo_convert.grow(model, depth, data=data, **options).ligo.loss
    with pytest.raises(RecipeError, match="need a tokenizer"):
        ligo_convert.grow(model, depth, data=data)


@pytest.mark.parametrize("as_mapping", [False, True])
def test_a_vision_transformer_learns_from_images(as_mapping: bool) -> None:
    model = model_of(config_of("vit"), dtype=torch.float32)
    pairs = [(torch.randn(2, 3, 16, 16), torch.tensor([0, 4])) for _ in range(4)]
    data = [{"pixel_values": images, "labels": labels} for images, labels in pairs] if as_mapping else pairs
    report = ligo_convert.grow(model, TARGETS["vit"]["both"], data=data, steps=2).ligo
    assert report.fit["steps"] == 2
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model(pairs[-1][0]), pairs[-1][1])
    assert report.loss["source"] == pytest.approx(float(expected), abs=1e-5)


def test_progress_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(config_of("gpt2"), dtype=torch.float32)
    for progress, shown in ((True, True), (False, False), (None, False)):
        ligo_convert.grow(model, {"n_layer": 3}, data=IDS, steps=2, progress=progress)
        found = capsys.readouterr()
        assert found.out == ""
        assert ("fitting the operator: 2 steps" in found.err) == shown


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a width method that does not exist": ({"width": "lemmon"}, "did you mean 'lemon'"),
    "a depth method that does not exist": ({"depth": "idenity"}, "did you mean 'identity'"),
    "a keying that does not exist": ({"keying": "rows"}, "unknown keying"),
    "a tie that does not exist": ({"tie": "code"}, "unknown tie"),
    "a config key that does not exist": ({"changes": {"n_layers": 3}}, "did you mean 'n_layer'"),
    "a size that is text": ({"changes": {"n_layer": "many"}}, "n_layer"),
    "changes that are a list": ({"changes": ["n_layer"]}, "not a mapping"),
    "a smaller target": ({"changes": {"n_layer": 1}}, "smaller"),
    "no steps": ({"steps": 0}, "steps"),
    "half a batch": ({"batch_size": 0.5}, "batch_size"),
    "a rate of something else": ({"learning_rate": {"lr": 1}}, "learning_rate"),
    "a rate that is a number": ({"learning_rate": 1e-3}, "not a mapping"),
    "a seed that is text": ({"seed": "a"}, "seed"),
    "data that is a number": ({"data": 3}, "an iterable"),
    "data that is a text": ({"data": "a text"}, "single text"),
    "data that is one batch": ({"data": {"input_ids": IDS[0]}}, "single batch"),
    "data with several splits": ({"data": {"train": IDS}}, 'data\\["train"\\]'),
    "items that are no batches": ({"data": [object()] * 3}, "token ids"),
    "fields that are unknown": ({"data": [{"a": 1}] * 3}, "a mapping with a"),
    "ids out of range": ({"data": [torch.full((1, 4), 29)] * 3}, "out of range"),
    "sequences that are too long": ({"data": [torch.zeros(1, 13, dtype=torch.long)] * 3}, "too long"),
    "examples of several lengths": ({"data": [[1, 2], [1, 2, 3]] * 3}, "differ in shape"),
    "ragged lists": ({"data": [[[1, 2], [3]]] * 3}, "unequal length"),
    "no data at all": ({"data": []}, "too few batches"),
    "two batches": ({"data": IDS[:2]}, "too few batches"),
    "batches of floats": ({"data": [torch.zeros(1, 4)] * 3}, "token ids"),
    "a tokenizer that is a name": ({"data": ["a"] * 3, "tokenizer": "gpt2"}, "not a tokenizer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_recipe_errors(mistake: str) -> None:
    arguments, message = MISTAKES[mistake]
    model = model_of(config_of("gpt2"), dtype=torch.float32)
    with pytest.raises(RecipeError, match=message):
        ligo_convert.grow(model, **{"changes": {"n_layer": 3}, **arguments})


@pytest.mark.parametrize("model", ["openai-community/gpt2", torch.nn.Linear(2, 2), None], ids=repr)
def test_what_is_no_supported_model_is_a_source_error(model: Any) -> None:
    with pytest.raises(SourceError, match="model of transformers or timm"):
        ligo_convert.grow(model, {"n_layer": 3})


def test_a_model_without_weights_is_a_source_error() -> None:
    model = model_of(config_of("gpt2"), dtype=torch.float32).to("meta")
    with pytest.raises(SourceError, match="meta device"):
        ligo_convert.grow(model, {"n_layer": 3})


def test_a_timm_model_without_a_classifier_grows_and_may_get_one() -> None:
    model = model_of(config_of("vit"), dtype=torch.float32)
    model.reset_classifier(0)
    # Nobody asks for the classes of its images.
    data = [{"pixel_values": torch.randn(2, 3, 16, 16)} for _ in range(4)]
    grown = ligo_convert.grow(model, TARGETS["vit"]["uneven"], width="lemon", depth="copy", data=data, steps=2)
    assert (grown.num_classes, grown.ligo.loss["source"]) == (0, 0.0)
    assert grown.ligo.loss["initial"] == pytest.approx(0, abs=1e-9)
    headed = ligo_convert.grow(model, {**TARGETS["vit"]["even"], "num_classes": 7})
    assert headed(data[0]["pixel_values"]).shape == (2, 7)
    assert headed.ligo.preservation["verdict"] == "exact"
    with pytest.raises(RecipeError, match="cannot learn from this data"):
        ligo_convert.grow(headed, {"depth": 3}, data=data, steps=2)


def test_a_class_that_no_family_lists_is_refused() -> None:
    from transformers import GPT2DoubleHeadsModel

    model = GPT2DoubleHeadsModel(model_of(config_of("gpt2")).config)
    with pytest.raises(SourceError, match="GPT2DoubleHeadsModel is not supported"):
        ligo_convert.grow(model, {"n_layer": 3})


def test_batches_that_a_masked_language_model_cannot_learn_from_are_refused() -> None:
    model, ids = model_of(config_of("bert"), dtype=torch.float32), torch.randint(3, 29, (2, 8))
    cases = {
        "learns from `labels`": [ids, ids],
        "several lengths": [{"input_ids": ids, "labels": ids}, {"input_ids": ids[:, :6], "labels": ids[:, :6]}],
        "padded before": [{"input_ids": ids, "labels": ids, "attention_mask": torch.arange(8).expand(2, 8) > 2}] * 3,
    }
    for message, data in cases.items():
        with pytest.raises(RecipeError, match=message):
            ligo_convert.grow(model, TARGETS["bert"]["depth"], data=data)


def test_labels_that_give_no_loss_or_another_loss_are_refused() -> None:
    ids = torch.randint(3, 29, (2, 8))
    masked = ids.masked_fill(torch.arange(8) > 0, -100)
    cases: list[tuple[str, str, object]] = [
        ("gpt2", "no token with a label", [{"input_ids": ids, "labels": masked}] * 3),
        ("gpt2", "no next token", [ids[:, :1]] * 3),
        ("bert", "no token with a label", [{"input_ids": ids, "labels": torch.full_like(ids, -100)}] * 3),
    ]
    for family, message, data in cases:
        with pytest.raises(RecipeError, match=message):
            ligo_convert.grow(
                model_of(config_of(family), dtype=torch.float32), TARGETS[family]["depth"], data=data, steps=1
            )


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_padding_and_labels_count_as_transformers_counts_them(family: str) -> None:
    """The source's loss of one padded batch is the one of the library, whatever the padding holds."""
    model: Any = model_of(config_of(family), dtype=torch.float32)
    ids = torch.randint(3, 29, (2, 8))
    mask = torch.arange(8).expand(2, 8) < torch.tensor([[5], [8]])
    labels = ids.masked_fill(torch.arange(8) < 2, -100)
    padded = {"input_ids": ids, "labels": labels, "attention_mask": mask.long()}
    with torch.no_grad():
        expected = float(model(**{**padded, "labels": labels.masked_fill(~mask, -100)}).loss)
    for filling in (3, 7):
        batch = {**padded, "input_ids": ids.masked_fill(~mask, filling)}
        grown = ligo_convert.grow(model, TARGETS[family]["depth"], data=[batch] * 3, steps=1)
        assert grown.ligo.loss["source"] == pytest.approx(expected, rel=1e-5)
    # Single examples, of which some have no padding, are stacked.
    examples = [{name: array[row % 2] for name, array in padded.items()} for row in range(8)]
    stacked = ligo_convert.grow(model, TARGETS[family]["depth"], data=examples, batch_size=2, steps=1)
    assert stacked.ligo.loss["source"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_row_without_labels_does_not_spoil_a_fit(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are computed one at a time where memory is short, and a loss over nothing is no number."""
    real = ligo_convert.in_memory._fit_settings
    monkeypatch.setattr(
        ligo_convert.in_memory,
        "_fit_settings",
        lambda *given, **named: replace(real(*given, **named), micro_batch_size=1),
    )
    ids = torch.randint(3, 29, (2, 8))
    labels = ids.masked_fill(torch.tensor([[False], [True]]), -100)
    grown = ligo_convert.grow(
        model_of(config_of(family), dtype=torch.float32), TARGETS[family]["depth"],
        data=[{"input_ids": ids, "labels": labels}] * 4, steps=2,
    )  # fmt: skip
    assert all(math.isfinite(line["loss"]) for line in grown.ligo.log)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in grown.parameters())


def test_a_head_that_the_config_calls_tied_must_be_tied() -> None:
    model: Any = model_of(config_of("gpt2", tied=True), dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    with pytest.raises(SourceError, match=r"lm_head\.weight differs from .*wte\.weight"):
        ligo_convert.grow(model, {"n_layer": 3})


def test_parameters_that_are_not_finite_are_refused() -> None:
    model: Any = model_of(config_of("gpt2"), dtype=torch.float32)
    with torch.no_grad():
        model.transformer.wte.weight[3, 1] = float("nan")
    with pytest.raises(SourceError, match=r"1 of .* values are NaN or infinite"):
        ligo_convert.grow(model, {"n_layer": 3})


def test_a_model_that_its_config_calls_quantised_is_refused() -> None:
    model: Any = model_of(config_of("gpt2"), dtype=torch.float32)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(SourceError, match=r"quantization_config \(bitsandbytes\)"):
        ligo_convert.grow(model, {"n_layer": 3})


def test_every_public_name_is_documented_with_its_signature() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "python-api.md").read_text(encoding="utf-8")
    for name in ligo_convert.__all__:
        _, heading, text = page.partition(f"### `{name}`\n")
        assert heading, name
        value = getattr(ligo_convert, name)
        if inspect.isfunction(value):
            signature = text.partition("\n\n\n")[0].partition("->")[0]
            assert all(f"    {parameter}: " in signature for parameter in inspect.signature(value).parameters), name


def test_publishing_under_an_impossible_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not the name of a repository"):
        ligo_convert.publish(tmp_path, "no name")

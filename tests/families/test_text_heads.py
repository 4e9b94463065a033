"""Classifiers and other heads on text models: which class a checkpoint is of, growth with the head, another number of classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.outputs import drawn_of
from support.source_models import change_config, change_weights, family_named, recipe_text, weights_of, write_case
from support.tiny import CASES, config_of, model_of

import ligo_convert
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.conversion.apply import apply_operator
from ligo_convert.conversion.convert import ConversionResult, convert
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.notation import NotationError
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import Family, Head
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe

CLASSIFYING = ("sequence-classification", "token-classification", "question-answering", "multiple-choice")

LABELS = {0: "no", 1: "perhaps", 2: "yes"}

TEXT = [name for name in CASES if name in FAMILIES and FAMILIES[name].library == "transformers"]

HEADS = [(name, head) for name in TEXT for head in FAMILIES[name].heads if head.task in CLASSIFYING]


def named(item: object) -> str:
    return item.architecture if isinstance(item, Head) else str(item)


def classifier(directory: Path, name: str, head: Head, **changes: object) -> Path:
    """A checkpoint of a class with a head, as the library writes it, with three named classes."""
    # The library needs two "classes" of a question-answering head: the first and the last token.
    labels = {"id2label": LABELS, "label2id": {label: number for number, label in LABELS.items()}}
    labels = labels if head.task != "question-answering" else {}
    return write_case(directory, name, architecture=head.architecture, **{**labels, **changes})


def grown(
    source: Path, name: str, changes: Mapping[str, object], *, depth: str = "copy", **target: object
) -> ConversionResult:
    recipe = source.parent / "recipe.yaml"
    sections = {"growth": {"width": "hyperclone", "depth": depth}, "output": {"dir": str(source.parent / "out")}}
    recipe.write_text(recipe_text(source, changes, **sections, **({"target": target} if target else {})))
    return convert(load_recipe(recipe))


def loaded(directory: Path, head: Head) -> Any:
    """The checkpoint in the library's class; nothing may be missing, left over or of another shape."""
    model, info = getattr(transformers, head.loaded_by).from_pretrained(
        directory, output_loading_info=True, dtype="auto"
    )
    assert {key: found for key, found in info.items() if found} == {}
    assert type(model).__name__ == head.architecture
    return model.eval()


def answers(model: Any) -> torch.Tensor:
    """The logits of a padded batch: the last text is shorter than the others."""
    rng, padding = np.random.default_rng(1), model.config.pad_token_id
    tokens = torch.tensor(rng.integers(3, 29, size=(3, 8)))
    mask = torch.ones_like(tokens)
    if padding is not None:
        tokens[2, 5:], mask[2, 5:] = padding, 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if type(model).__name__.endswith("MultipleChoice"):
        inputs = {key: value[:, None] for key, value in inputs.items()}
    with torch.no_grad():
        found = model(**inputs)
    return torch.stack([found.start_logits, found.end_logits]) if "start_logits" in found else found.logits


@pytest.mark.parametrize(("name", "head"), HEADS, ids=named)
def test_a_head_grows_with_its_body_and_keeps_every_logit(name: str, head: Head, tmp_path: Path) -> None:
    pads = {} if FAMILIES[name].norm.placement == "post" else {"pad_token_id": 0}
    source = classifier(tmp_path / "source", name, head, **pads)
    deeper = "identity" if FAMILIES[name].norm.placement == "pre" else "copy"
    changes = {**CASES[name].even, **(CASES[name].depth if deeper == "identity" else {})}
    done = grown(source, name, changes, depth=deeper)
    kept = done.metrics["preservation"]
    assert (kept["verdict"], kept["compared"]) == ("exact", "logits")
    assert [name for name in drawn_of(done) if "(new head)" in name] == []
    written = json.loads((done.out / "config.json").read_text())
    assert written["architectures"] == [head.architecture]
    assert written.get("id2label") == json.loads((source / "config.json").read_text()).get("id2label")
    before, after = (answers(loaded(path, head)) for path in (source, done.out))
    assert before.shape == after.shape
    assert float((before - after).abs().max()) <= 1e-4 * max(1.0, float(before.abs().max()))
    assert float(before.std()) > 1e-3
    verify(done.out, source=str(source), load=True)


SEQUENCE = [(name, head) for name, head in HEADS if head.task == "sequence-classification" and "nsp" not in head.parts]


@pytest.mark.parametrize(("name", "head"), SEQUENCE, ids=named)
def test_another_number_of_classes_draws_a_new_head(name: str, head: Head, tmp_path: Path) -> None:
    source = classifier(tmp_path / "source", name, head)
    done = grown(source, name, {**CASES[name].even, "num_labels": 5})
    family = family_named(name).for_architecture(head.architecture)
    labelled = [row.pattern for row in family.rows if "label" in row.layout.streams]
    assert drawn_of(done) == [f"{pattern} (new head)" for pattern in labelled]
    assert "id2label" not in json.loads((done.out / "config.json").read_text()), "the names are those of other classes"
    model = loaded(done.out, head)
    assert model.config.num_labels == 5
    assert done.metrics["preservation"]["compared"] == "hidden states"
    assert done.metrics["preservation"]["verdict"] == "exact"
    verify(done.out, source=str(source), load=True)


def test_the_target_can_name_its_classes(tmp_path: Path) -> None:
    head = FAMILIES["bert"].for_architecture("BertForTokenClassification").chosen
    source = classifier(tmp_path / "source", "bert", head)
    names = {"0": "O", "1": "B-PER", "2": "I-PER", "3": "B-LOC"}
    done = grown(source, "bert", {**CASES["bert"].even, "id2label": names})
    model = loaded(done.out, head)
    assert model.config.id2label == {int(number): label for number, label in names.items()}
    assert model.config.label2id == {label: int(number) for number, label in names.items()}
    assert model.classifier.weight.shape == (4, 32)


def test_as_many_classes_keep_the_head_and_its_names(tmp_path: Path) -> None:
    head = FAMILIES["llama"].for_architecture("LlamaForSequenceClassification").chosen
    source = classifier(tmp_path / "source", "llama", head)
    done = grown(source, "llama", {**CASES["llama"].even, "num_labels": 3})
    assert drawn_of(done) == []
    assert loaded(done.out, head).config.id2label == LABELS


@pytest.mark.parametrize(
    ("architecture", "labels"), [("BertForSequenceClassification", {"num_labels": 3}), ("BertForQuestionAnswering", {})]
)
def test_a_body_gets_a_new_head(architecture: str, labels: Mapping[str, object], tmp_path: Path) -> None:
    source = write_case(tmp_path / "source", "bert", architecture="BertModel")
    done = grown(source, "bert", {}, architecture=architecture, config={**CASES["bert"].even, **labels})
    head = FAMILIES["bert"].for_architecture(architecture).chosen
    assert loaded(done.out, head).config.num_labels == labels.get("num_labels", 2)
    assert all("(new head)" in name for name in drawn_of(done))
    assert drawn_of(done)


def test_the_number_of_classes_is_no_size_of_a_model_without_classes(tmp_path: Path) -> None:
    """An operator of a language model fits one whose config names other classes: many a config names some."""
    family = FAMILIES["gpt2"]
    assert {"label", "span"} & {*family.class_axes} == set()
    assert {"label", "span"} & {*family.for_architecture("GPT2ForTokenClassification").class_axes} == {"label"}
    source = write_case(tmp_path / "source", "gpt2")
    done = grown(source, "gpt2", CASES["gpt2"].even)
    other = shutil.copytree(source, tmp_path / "other")
    change_config(other, lambda config: {**config, "id2label": {"0": "a", "1": "b", "2": "c"}})
    applied = apply_operator(done.out / "ligo" / "operator.safetensors", str(other), tmp_path / "applied")
    assert weights_of(applied.out).keys() == weights_of(done.out).keys()


def test_no_class_has_two_rows_of_one_name() -> None:
    bert = FAMILIES["bert"]
    both = Head(parts=("sequence", "token"), task="encoder", architecture="Both", auto_class="AutoModel")
    with pytest.raises(NotationError, match=r"bert: Both has two rows of the pattern classifier\.weight"):
        replace(bert, heads=(*bert.heads, both)).table  # noqa: B018


# --- which class a checkpoint is of -----------------------------------------------------------------------------------


def specs_of(family: Family, config: Mapping[str, object]) -> dict[str, TensorSpec]:
    rows = family.rows_for(config)
    specs = [spec for _, _, spec in family.tensors_of(rows, config, dtype="F32")]
    return {
        family.written(spec.name): TensorSpec(name=family.written(spec.name), dtype="F32", shape=spec.shape)
        for spec in specs
    }


# Class of the tensors, tensors added, classes in config.json that are named, number of classes -> the class it is read as.
READ_AS: list[tuple[str, tuple[str, ...], list[str] | None, int, str]] = [
    ("BertForTokenClassification", (), None, 3, "BertForTokenClassification"),
    ("BertForSequenceClassification", (), None, 3, "BertForSequenceClassification"),
    # The rows of the two have other shapes, unless there is one class; then config.json says which it is.
    ("BertForMultipleChoice", (), None, 3, "BertForMultipleChoice"),
    ("BertForMultipleChoice", (), ["BertForMultipleChoice"], 1, "BertForMultipleChoice"),
    ("BertForSequenceClassification", (), ["BertForSequenceClassification"], 1, "BertForSequenceClassification"),
    # Old token classifiers were saved with the pooler that they do not use.
    ("BertForTokenClassification", ("pooler",), ["BertForTokenClassification"], 3, "BertForTokenClassification"),
    ("BertForTokenClassification", ("pooler",), None, 3, "BertForSequenceClassification"),
    ("BertForQuestionAnswering", (), None, 2, "BertForQuestionAnswering"),
    ("RobertaForSequenceClassification", (), None, 3, "RobertaForSequenceClassification"),
    ("LlamaForSequenceClassification", (), None, 3, "LlamaForSequenceClassification"),
    ("LlamaForTokenClassification", (), None, 3, "LlamaForTokenClassification"),
    ("LlamaForQuestionAnswering", (), None, 2, "LlamaForQuestionAnswering"),
    ("GPT2ForTokenClassification", (), None, 3, "GPT2ForTokenClassification"),
]


@pytest.mark.parametrize(("of", "parts", "names", "classes", "expected"), READ_AS)
def test_the_tensors_and_the_named_class_tell_the_class(
    of: str, parts: tuple[str, ...], names: list[str] | None, classes: int, expected: str
) -> None:
    (name,) = [name for name, head in HEADS if head.architecture == of]
    config = {**config_of(name), "num_labels": classes, "architectures": names}
    family = FAMILIES[name].for_architecture(of)
    specs = specs_of(family, config)
    for row in family.table:
        if row.layout.part in parts:
            specs[row.pattern] = TensorSpec(
                name=row.pattern, dtype="F32", shape=family.shape(row, family.sizes(config))
            )
    found = claim_tensors(FAMILIES[name], config, specs, label="source")
    assert found.family.architecture == expected
    assert set(found.left_out) == set(specs) - {spec.name for spec in found.stored.values()}
    assert bool(found.left_out) == (bool(parts) and expected == of)


def test_a_head_for_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    head = FAMILIES["bert"].for_architecture("BertForTokenClassification").chosen
    source = classifier(tmp_path / "source", "bert", head)
    change_config(
        source, lambda config: {**config, "id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    )
    with pytest.raises(SourceError, match=r"(?s)classifier\.bias.*\[2\].*\[3\]"):
        grown(source, "bert", CASES["bert"].even)


def test_a_class_that_lacks_a_part_of_its_head_is_refused(tmp_path: Path) -> None:
    """Without this the classifier would be left out, and the body grown alone."""
    head = FAMILIES["bert"].for_architecture("BertForSequenceClassification").chosen
    source = classifier(tmp_path / "source", "bert", head)
    change_weights(source, lambda tensors: {name: tensors[name] for name in tensors if "pooler" not in name})
    with pytest.raises(SourceError, match=r"(?s)names BertForSequenceClassification.*bert\.pooler\.dense\.weight"):
        grown(source, "bert", CASES["bert"].even)


def test_a_reward_model_has_one_class(tmp_path: Path) -> None:
    head = FAMILIES["qwen2"].for_architecture("Qwen2ForSequenceClassification").chosen
    source = classifier(
        tmp_path / "source", "qwen2", head, id2label={0: "reward"}, label2id={"reward": 0}, pad_token_id=0
    )
    done = grown(source, "qwen2", CASES["qwen2"].even)
    before, after = (answers(loaded(path, head)) for path in (source, done.out))
    assert before.shape == (3, 1)
    assert float((before - after).abs().max()) <= 1e-4 * max(1.0, float(before.abs().max()))


def test_a_decoder_that_names_no_padding_is_measured_all_the_same(tmp_path: Path) -> None:
    """The library refuses a batch then: it would not know which token is the last."""
    head = FAMILIES["gpt2"].for_architecture("GPT2ForSequenceClassification").chosen
    source = classifier(tmp_path / "source", "gpt2", head)
    assert json.loads((source / "config.json").read_text()).get("pad_token_id") is None
    done = grown(source, "gpt2", CASES["gpt2"].even)
    assert done.metrics["preservation"]["verdict"] == "exact"
    assert json.loads((done.out / "config.json").read_text()).get("pad_token_id") is None


def test_a_classifier_in_memory_grows_into_one() -> None:
    config = config_of("roberta", id2label=LABELS, label2id={label: number for number, label in LABELS.items()})
    model: Any = model_of({**config, "architectures": ["RobertaForTokenClassification"]}, dtype=torch.float32)
    taller: Any = ligo_convert.grow(model, CASES["roberta"].even, width="hyperclone", depth="copy")
    assert type(taller).__name__ == "RobertaForTokenClassification"
    assert taller.config.id2label == LABELS
    before, after = answers(model), answers(taller)
    assert float((before - after).abs().max()) <= 1e-4 * max(1.0, float(before.abs().max()))


def test_a_number_of_classes_is_an_axis_that_does_not_grow(tmp_path: Path) -> None:
    """Its width may not be asked of a growth method, and no class of the source is mixed into another."""
    head = FAMILIES["llama"].for_architecture("LlamaForTokenClassification").chosen
    source = classifier(tmp_path / "source", "llama", head)
    done = grown(source, "llama", {"num_labels": 2})
    assert weights_of(done.out)["score.weight"].shape == (2, 16)
    with pytest.raises(RecipeError, match="num_labels"):
        grown(shutil.copytree(source, tmp_path / "other" / "source"), "llama", {"num_labels": 0})

"""The classes of transformers and timm that grow are those in docs/reference/library-scan.json: no fewer, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from support.registered import families_restored
from support.scripts import load_script

from ligo_convert.families.registry import FAMILIES, family_source

SCAN = load_script("scan_libraries")

# The record is of these versions; with others, classes may have come.
SAME = SCAN.read_record()[0] == SCAN.versions()

UPDATE = f"if this is meant, update the record: {SCAN.COMMAND}"


@pytest.fixture
def families() -> Iterator[dict[str, Any]]:
    """The table of families, to change."""
    with families_restored() as table:
        yield table


@pytest.fixture(scope="module")
def subjects() -> list[Any]:
    return SCAN.subjects()


@pytest.fixture(scope="module")
def recorded() -> list[Any]:
    return SCAN.read_record()[1]


def test_what_grew_still_grows_and_nothing_else_does(subjects: list[Any], recorded: list[Any]) -> None:
    """The classes that a family may claim are built again, and no other can grow.

    Of timm's architectures each family has one built here; `test_schema.py` compares all of them with the library's models.
    """
    known = SCAN.known_subjects(subjects)
    built = SCAN.sampled(known)
    left_out = {(subject.kind, subject.type) for subject in set(known) - set(built)}
    kept = [record for record in recorded if (record.kind, record.type) not in left_out]
    assert SCAN.differences(SCAN.scan(built), kept, gained=SAME) == [], UPDATE
    assert left_out <= {record.key[:2] for record in recorded if record.verdict == "grows"}, UPDATE


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_record_is_of_every_class(subjects: list[Any], recorded: list[Any]) -> None:
    found = SCAN.scan(subjects)
    assert SCAN.differences(found, recorded, gained=SAME) == [], UPDATE
    if SAME:
        assert {record.key: record for record in found} == {record.key: record for record in recorded}, UPDATE


@pytest.mark.skipif(not SAME, reason="the record is of other versions of the libraries")
def test_the_record_has_a_line_for_every_class(subjects: list[Any], recorded: list[Any]) -> None:
    assert {(record.kind, record.type) for record in recorded} == {(one.kind, one.type) for one in subjects}
    assert len({record.key for record in recorded}) == len(recorded) == len(subjects)


def test_every_family_is_scanned(recorded: list[Any]) -> None:
    """A family may be valid only where a config says what the library's default does not: `NEEDED` in the script says it."""
    grown = {record.family for record in recorded if record.verdict == "grows"}
    assert [name for name in FAMILIES if family_source(name) is None and name not in grown] == [], UPDATE


def test_a_family_taken_out_is_noticed(subjects: list[Any], recorded: list[Any], families: dict[str, Any]) -> None:
    kept = [record for record in recorded if record.family in ("gpt2", "llama")]
    del families["llama"]
    known = SCAN.known_subjects(subjects)
    assert not any(subject.type == "llama" for subject in known)
    found = SCAN.scan(subject for subject in known if subject.type in ("gpt2", "gpt-sw3"))
    lost = SCAN.differences(found, kept, gained=True)
    assert any(line.startswith("causal-lm llama LlamaForCausalLM: grew, and does not") for line in lost)
    assert all(" llama " in line for line in lost)


def test_a_table_that_lacks_a_row_is_noticed(recorded: list[Any], families: dict[str, Any]) -> None:
    from dataclasses import replace

    llama = FAMILIES["llama"]
    tensors = {name: layout for name, layout in llama.tensors.items() if name != "model.norm.weight"}
    families["llama"] = replace(llama, tensors=tensors)
    subject = SCAN.Subject(kind="causal-lm", type="llama", name="LlamaForCausalLM")
    kept = [record for record in recorded if record.key == ("causal-lm", "llama", "LlamaForCausalLM")]
    (line,) = SCAN.differences(SCAN.scan([subject]), kept, gained=True)
    assert line.endswith("does not: llama: no row claims model.norm.weight")


def test_what_grows_and_is_not_recorded_is_noticed() -> None:
    subject = SCAN.Subject(kind="causal-lm", type="llama", name="LlamaForCausalLM")
    (line,) = SCAN.differences(SCAN.scan([subject]), [], gained=True)
    assert line == f"causal-lm llama LlamaForCausalLM: grows, and is not recorded: {SCAN.COMMAND}"
    assert SCAN.differences(SCAN.scan([subject]), [], gained=False) == []


def test_a_refusal_says_what_the_nearest_table_lacks(families: dict[str, Any]) -> None:
    del families["qwen3"]
    found = SCAN.judge(SCAN.Subject(kind="causal-lm", type="qwen3", name="Qwen3ForCausalLM"))
    assert found.verdict == "refused"
    assert found.lacks == ("model.layers.*.self_attn.k_norm.weight", "model.layers.*.self_attn.q_norm.weight")
    assert found.differs == 2
    assert found.family in FAMILIES


def test_a_class_that_cannot_be_built_is_not_tried() -> None:
    found = SCAN.judge(SCAN.Subject(kind="other", type="llama", name="NoSuchModel"))
    assert found.verdict == "not tried"
    assert found.why.startswith("AttributeError")


TINY = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 29}
# Tied tensors; names that differ on disk; tensors that are merged on load.
WRITTEN = {
    "GPT2LMHeadModel": ("gpt2", {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 29, "n_positions": 16}),
    "ViTForImageClassification": ("vit", {**TINY, "image_size": 16, "patch_size": 8}),
    "BertForMaskedLM": ("bert", TINY),
    "GPTNeoXForCausalLM": ("gpt_neox", TINY),
    "MixtralForCausalLM": ("mixtral", {**TINY, "num_key_value_heads": 2, "num_local_experts": 2}),
    "T5ForConditionalGeneration": ("t5", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_tensors_on_disk_are_those_that_the_library_writes(name: str, tmp_path: Path) -> None:
    model_type, sizes = WRITTEN[name]
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        empty = getattr(transformers, name)(config)
    getattr(transformers, name)(config).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        written = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    assert {key: tuple(tensor.shape) for key, tensor in SCAN.disk_tensors(empty).items()} == written

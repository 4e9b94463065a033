"""What stands beside the weights survives growth: bytes are carried, sizes rewritten, and the rest is named as left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.pipelines import (
    NORMALIZE,
    SENTENCES,
    TARGET,
    WIDTH,
    Spec,
    dense,
    old_pooling,
    pooling,
    write_modules,
    write_pipeline,
)
from support.source_models import recipe_text, write_checkpoint

from ligo_convert.conversion.apply import apply_operator
from ligo_convert.conversion.convert import convert
from ligo_convert.conversion.plan import plan_json, plan_recipe
from ligo_convert.growth.operator_file import family_of, read_operator
from ligo_convert.hub.resolve import open_source
from ligo_convert.outputs.carried import CarriedFiles, Widths, carried_files, contents, widths_of
from ligo_convert.outputs.verify import verify
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import load_recipe

TILES = Widths(old=WIDTH, new=2 * WIDTH, deepens=True, readable=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with all that a real one has beside it, and more."""
    directory = write_pipeline(tmp_path_factory.mktemp("pipeline") / "source", [old_pooling("cls_token"), NORMALIZE])
    (directory / "LICENSE").write_text("Do as you like.\n")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    (directory / "modeling_odd.py").write_text("raise SystemExit")
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x02")
    (directory / "onnx").mkdir()
    (directory / "onnx" / "model.onnx").write_bytes(b"1")
    return directory


def grow(source: Path, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    recipe = out.parent / f"{out.name}.yaml"
    recipe.write_text(recipe_text(source, TARGET, growth={"width": "lemon"}, output={"dir": str(out)}))
    return convert(load_recipe(recipe), progress=progress).json()


@pytest.fixture(scope="module")
def out(source: Path) -> Path:
    grow(source, source.parent / "out")
    return source.parent / "out"


def test_a_pipeline_is_carried_and_the_rest_is_named(source: Path, out: Path) -> None:
    carried = (
        "LICENSE",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
        "vocab.txt",
    )
    for name in carried:
        assert (out / name).read_bytes() == (source / name).read_bytes()
    old, new = (json.loads((place / "1_Pooling/config.json").read_text()) for place in (source, out))
    assert new == {**old, "word_embedding_dimension": 32}
    again = grow(source, out)  # a finished output says the same
    assert not again["changed"]
    assert again["files"]["carried"] == list(carried)
    assert again["files"]["rewritten"] == ["1_Pooling/config.json", "config.json"]
    assert [item["path"] for item in again["files"]["left_behind"]] == [
        "README.md",
        "modeling_odd.py",
        "onnx/",
        "pytorch_model.bin",
    ]
    card = (out / "README.md").read_text()
    assert "library_name: sentence-transformers\npipeline_tag: sentence-similarity\n" in card
    assert 'model = SentenceTransformer(".")' in card
    for name in (*carried, "onnx/", "modeling_odd.py", "pytorch_model.bin", "1_Pooling/config.json"):
        assert f"`{name}`" in card
    planned = plan_json(plan_recipe(load_recipe(out.parent / "out.yaml")))
    assert planned["side_files"] == again["files"]
    listed = (out / "ligo" / "SHA256SUMS").read_text()
    assert "  1_Pooling/config.json\n" in listed
    assert "  LICENSE\n" in listed
    materials = json.loads((out / "ligo/provenance.json").read_text())["predicate"]["buildDefinition"]
    assert {"LICENSE", "1_Pooling/config.json", "modules.json"} <= {
        item["name"] for item in materials["resolvedDependencies"]
    }


def test_a_stored_operator_carries_the_same_files(source: Path, out: Path, tmp_path: Path) -> None:
    found = apply_operator(out / "ligo" / "operator.safetensors", str(source), tmp_path / "applied")
    assert found.json()["files"] == grow(source, out)["files"]
    for name in found.json()["files"]["carried"]:
        assert (tmp_path / "applied" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "applied/1_Pooling/config.json").read_bytes() == (out / "1_Pooling/config.json").read_bytes()


def changed(source: Path, modules: Sequence[Spec], place: Path) -> Path:
    """The source with other modules."""
    shutil.copytree(source, place)
    return write_modules(place, modules)


def regrown(source: Path, modules: Sequence[Spec], out: Path, place: Path) -> tuple[Path, Path]:
    """The source and its output with other modules. The weights are those of `out`: they do not depend on the modules."""
    old = changed(source, modules, place / "source")
    shutil.copytree(out, place / "out", ignore=shutil.ignore_patterns("1_Pooling"))
    operator = read_operator(out / "ligo" / "operator.safetensors")
    family = family_of(operator)
    with open_source(str(old), base=place) as reader:
        widths = widths_of(family, reader.config, operator.target, operator.rewrites, len(operator.terms))
        for name, data in contents(carried_files(reader, widths), reader, family, operator):
            (place / "out" / name).parent.mkdir(exist_ok=True)
            (place / "out" / name).write_bytes(data)
    return old, place / "out"


PIPELINES: dict[str, list[Spec]] = {
    "cls": [pooling("cls"), NORMALIZE],
    "cls, old": [old_pooling("cls_token"), NORMALIZE],
    "mean": [pooling("mean")],
    "max": [pooling("max"), NORMALIZE],
    "weighted mean": [old_pooling("weightedmean_tokens"), NORMALIZE],
    "last token": [pooling("lasttoken")],
    "two modes": [pooling(["cls", "max"]), ("Dropout", {"dropout": 0.1}, {}), NORMALIZE],
    "two modes, old": [old_pooling("cls_token", "mean_tokens"), NORMALIZE],
    "dense": [pooling("mean"), dense(WIDTH, 12), NORMALIZE, dense(12, 8)],
    "dense of two modes": [pooling(["mean", "cls"]), dense(2 * WIDTH, 6, use_residual=True)],
    "dense on tokens": [dense(WIDTH, 10, module_input_name="token_embeddings"), pooling("max", width=10)],
}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_library_gives_the_cosines_of_the_source(name: str, source: Path, out: Path, tmp_path: Path) -> None:
    import sentence_transformers as library

    embeddings = []
    for place in regrown(source, PIPELINES[name], out, tmp_path):
        model = library.SentenceTransformer(str(place), device="cpu", local_files_only=True)
        kinds = [type(module).__name__ for module in model]
        assert kinds == ["Transformer", *(kind for kind, _, _ in PIPELINES[name])]
        assert (model.prompts["query"], model.max_seq_length) == ("w1", 16)
        embeddings.append(model.encode(SENTENCES, convert_to_tensor=True, show_progress_bar=False))
    old, new = embeddings
    growing = not any(kind == "Dense" for kind, _, _ in PIPELINES[name])
    assert new.shape[1] == old.shape[1] * (2 if growing else 1)
    unit = [torch.nn.functional.normalize(found, dim=1) for found in embeddings]
    torch.testing.assert_close(unit[1] @ unit[1].T, unit[0] @ unit[0].T, atol=2e-5, rtol=0)
    if "Normalize" in kinds[-1:]:
        torch.testing.assert_close(new.norm(dim=1), torch.ones(len(SENTENCES)))
    if not growing:  # the same embedding, not only the same angles
        torch.testing.assert_close(new, old, atol=2e-5, rtol=0)


def decide(directory: Path, widths: Widths = TILES) -> CarriedFiles:
    with open_source(str(directory), base=directory) as reader:
        return carried_files(reader, widths)


REFUSED: dict[str, tuple[list[Spec], str]] = {
    "weights of its width": (
        [pooling(), ("LayerNorm", {"dimension": WIDTH}, {"norm.weight": torch.ones(WIDTH)})],
        "LayerNorm",
    ),
    "another class": ([pooling(), ("CNN", {"in_word_embedding_dimension": WIDTH}, {})], "does not know"),
    "foreign code": ([("custom_code.Pooling", {"word_embedding_dimension": WIDTH}, {})], "does not know"),
    "layers": (
        [("WeightedLayerPooling", {"word_embedding_dimension": WIDTH}, {"layer_weights": torch.ones(3)}), pooling()],
        "weighs each layer",
    ),
    "no config": ([("Pooling", {}, {})], "1_Pooling/config.json is missing"),
    "another width": ([pooling(width=24)], "is not the width of what it reads"),
    "no weights": ([pooling(), (*dense(WIDTH, 8)[:2], {})], "2_Dense/model.safetensors is missing"),
    "a norm before": ([pooling(), NORMALIZE, dense(WIDTH, 8)], "norm grows"),
    "a residual": ([pooling(), dense(WIDTH, WIDTH, use_residual=True)], "residual"),
    "other weights": ([pooling(), (*dense(WIDTH, 8)[:2], {"weight": torch.ones(8, WIDTH)})], "has no linear.weight"),
    "other shape": ([pooling(), (*dense(WIDTH, 8)[:2], {"linear.weight": torch.ones(8, 4)})], "linear.weight is F32"),
    "whole numbers": (
        [pooling(), (*dense(WIDTH, 8)[:2], {"linear.weight": torch.ones(8, WIDTH, dtype=torch.int64)})],
        "linear.weight is I64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_that_cannot_be_carried_is_left_behind_as_a_whole(name: str, source: Path, tmp_path: Path) -> None:
    modules, why = REFUSED[name]
    place = changed(source, modules, tmp_path / "source")
    found = decide(place)
    assert why in found.missing_modules
    assert found.warnings() == [found.missing_modules]
    there = {*found.copied, *found.changes}
    assert there == {"LICENSE", "tokenizer_config.json", "vocab.txt"}
    named = {left.path for left in found.left_behind}
    parts = {str(path.relative_to(place)) for path in place.glob("[0-9]_*/*")}
    assert named >= {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", *parts}


def test_labels_of_other_classes_are_left_behind(source: Path, tmp_path: Path) -> None:
    place = changed(source, [pooling()], tmp_path / "source")
    (place / "labels.txt").write_text("cat\ndog\n")
    assert "labels.txt" in decide(place).copied
    other = decide(place, Widths(old=WIDTH, new=WIDTH, deepens=True, readable=True, relabels=True))
    assert "labels.txt" not in other.copied
    assert ("labels.txt", "the target has other classes") in {(left.path, left.reason) for left in other.left_behind}


def test_a_second_term_cannot_be_read_back(source: Path, tmp_path: Path) -> None:
    place = changed(source, PIPELINES["dense"], tmp_path / "source")
    assert "no single map" in decide(place, Widths(old=WIDTH, new=24, deepens=False, readable=False)).missing_modules


def test_at_the_same_width_all_known_modules_are_carried_byte_for_byte(source: Path, tmp_path: Path) -> None:
    norm: Spec = ("LayerNorm", {"dimension": WIDTH}, {"norm.weight": torch.ones(WIDTH)})
    modules = [pooling(), norm, NORMALIZE, dense(WIDTH, WIDTH, use_residual=True, dtype=torch.bfloat16)]
    place = changed(source, modules, tmp_path / "source")
    found = decide(place, Widths(old=WIDTH, new=WIDTH, deepens=True, readable=False))
    assert not found.changes
    assert not found.missing_modules
    assert {"1_Pooling/config.json", "2_LayerNorm/model.safetensors", "4_Dense/model.safetensors"} <= set(found.copied)


def test_a_refused_pipeline_is_said_before_and_after_the_run(source: Path, tmp_path: Path) -> None:
    place = changed(source, REFUSED["weights of its width"][0], tmp_path / "source")
    said: list[str] = []

    class Said(Progress):
        def warn(self, text: str) -> None:
            said.append(text)

    found = grow(place, tmp_path / "out", Said())
    assert any("the output is no sentence-transformers pipeline" in text for text in said)
    assert not (tmp_path / "out" / "modules.json").exists()
    assert not (tmp_path / "out" / "1_Pooling").exists()
    assert "library_name: transformers\n" in (tmp_path / "out/README.md").read_text()
    assert "modules.json" in {item["path"] for item in found["files"]["left_behind"]}
    assert (
        "**The source is a sentence-transformers pipeline, and this model is not**"
        in (tmp_path / "out/README.md").read_text()
    )


def test_a_dense_reads_a_decoder_whose_tied_head_halves_the_last_gain(tmp_path: Path) -> None:
    import sentence_transformers as library

    place = write_checkpoint(tmp_path / "source", "llama", tied=True)
    write_modules(place, [pooling("lasttoken"), dense(16, 12)])
    target = {"hidden_size": 40, "num_attention_heads": 10, "num_key_value_heads": 5, "intermediate_size": 48}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(place, target, output={"dir": str(tmp_path / "out")}))
    convert(load_recipe(recipe))
    embeddings = []
    for found in (place, tmp_path / "out"):
        model = library.SentenceTransformer(str(found), device="cpu", local_files_only=True)
        model.tokenizer.pad_token = model.tokenizer.eos_token
        embeddings.append(model.encode("a small model", show_progress_bar=False))
    old, new = embeddings
    assert new == pytest.approx(old, abs=2e-5)


def test_a_file_with_a_path_of_this_machine_is_left_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    place = changed(source, [pooling()], tmp_path / "source")
    (place / "NOTICE").write_text("Built in /home/alice/models.")
    found = decide(place)
    assert "NOTICE" not in found.copied
    assert {left.reason for left in found.left_behind if left.path == "NOTICE"} == {
        "it holds a path or a secret of the machine on which it was grown"
    }
    out = tmp_path / "out"
    grow(place, out)
    assert "/home/alice" not in "".join(path.read_text() for path in out.rglob("*") if path.suffix in (".md", ".json"))
    monkeypatch.setenv("HOME", "/home/bob")  # who verifies elsewhere does not miss it
    verify(out, source=str(place))
    (place / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"a": "/home/bob/x"}}))
    assert "config_sentence_transformers.json: it holds a path" in decide(place).missing_modules


def test_the_room_for_carried_files_is_asked_for_before_any_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("ligo_convert.conversion.plan.check_room", lambda out, nbytes: asked.append(nbytes))
    place = changed(source, [pooling()], tmp_path / "source")
    text = recipe_text(place, TARGET, growth={"width": "lemon"}, output={"dir": str(tmp_path / "out")})
    (tmp_path / "recipe.yaml").write_text(text)
    plan_recipe(load_recipe(tmp_path / "recipe.yaml"))
    with (place / "LICENSE").open("ab") as file:
        file.truncate(3_000_000)
    plan_recipe(load_recipe(tmp_path / "recipe.yaml"))
    assert asked[1] - asked[0] == 3_000_000 - (source / "LICENSE").stat().st_size


def test_bfloat16_weights_keep_their_dtype(source: Path, out: Path, tmp_path: Path) -> None:
    old, new = regrown(source, [pooling(), dense(WIDTH, 8, dtype=torch.bfloat16)], out, tmp_path)
    before, after = (load_file(place / "2_Dense/model.safetensors") for place in (old, new))
    assert after["linear.weight"].dtype == torch.bfloat16
    assert after["linear.weight"].shape == (8, 2 * WIDTH)
    assert torch.equal(before["linear.bias"], after["linear.bias"])

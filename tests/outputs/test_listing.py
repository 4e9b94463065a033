"""`verify` lets nothing lie in an output that no run writes, listed or not, and names what is missing: exit 7 each time."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.pipelines import NORMALIZE, TARGET, dense, old_pooling, write_pipeline
from support.source_models import recipe_text

from ligo_convert.conversion.convert import convert
from ligo_convert.errors import VerificationError
from ligo_convert.outputs.checksums import read_sums, sums
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe

SUMS, PROVENANCE = "ligo/SHA256SUMS", "ligo/provenance.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    modules = [old_pooling("mean_tokens"), dense(16, 8), NORMALIZE]
    directory = write_pipeline(tmp_path_factory.mktemp("listing") / "source", modules)
    (directory / "LICENSE").write_text("Do as you like.\n")
    return directory


@pytest.fixture(scope="module")
def grown(source: Path) -> Path:
    recipe = source.parent / "recipe.yaml"
    recipe.write_text(recipe_text(source, TARGET, output={"dir": str(source.parent / "out")}))
    return convert(load_recipe(recipe)).out


@pytest.fixture
def out(grown: Path, tmp_path: Path) -> Path:
    """The output, to be spoiled."""
    return Path(shutil.copytree(grown, tmp_path / "out"))


def relist(out: Path, change: Callable[[dict[str, str]], None] = lambda digests: None) -> None:
    """Make SHA256SUMS and provenance agree with the files that are there, as a forger does."""
    names = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    digests = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names if name != SUMS}
    change(digests)
    if PROVENANCE in digests:
        statement = json.loads((out / PROVENANCE).read_text())
        listed = [(name, digest) for name, digest in sorted(digests.items()) if name != PROVENANCE]
        statement["subject"] = [{"name": name, "digest": {"sha256": digest}} for name, digest in listed]
        (out / PROVENANCE).write_text(json.dumps(statement))
        digests[PROVENANCE] = hashlib.sha256((out / PROVENANCE).read_bytes()).hexdigest()
    (out / SUMS).write_bytes(sums(digests))


def refused(out: Path, *words: str, source: Path | None = None) -> None:
    with pytest.raises(VerificationError) as caught:
        verify(out, source=None if source is None else str(source))
    assert caught.value.exit_code == 7
    for word in words:
        assert word in str(caught.value)


STRAYS = (
    "pytorch_model.bin",
    "modeling_x.py",
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "tokenizer.json",
    "LICENSE.txt",
    "README.txt",
    "readme.md",
    ".hidden",
    "1_Pooling/pytorch_model.bin",
    "2_Dense/modeling.py",
    "onnx/model.onnx",
    "ligo/run.py",
    ".cache/other",
)


@pytest.mark.parametrize("name", STRAYS)
def test_a_stray_file_is_refused_unlisted_and_listed(out: Path, name: str) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(b"{}")
    refused(out, name, "not listed")
    relist(out)
    refused(out, name)


def test_a_stray_link_is_refused(out: Path) -> None:
    (out / "pytorch_model.bin").symlink_to("model.safetensors")
    refused(out, "pytorch_model.bin", "a symbolic link")


NEEDED = (
    "config.json",
    "README.md",
    "model.safetensors",
    "ligo/operator.safetensors",
    "ligo/provenance.json",
    "ligo/recipe.yaml",
    "ligo/new_parameters.json",
)


@pytest.mark.parametrize("name", NEEDED)
def test_what_every_output_has_is_missed_though_the_sums_agree(out: Path, name: str) -> None:
    (out / name).unlink()
    relist(out)
    refused(out, name)


@pytest.mark.parametrize("strange", ["x", 1, [1], {"carried": 1, "rewritten": [[]], "left_behind": ["x", {"path": 1}]}])
def test_a_strange_record_is_no_bug_of_this_program(out: Path, source: Path, strange: object) -> None:
    whole = (out / PROVENANCE).read_text()
    for name in ("files", "verification", "familySource"):
        statement = json.loads(whole)
        figures = next(item for item in statement["predicate"]["runDetails"]["byproducts"] if item["name"] == "metrics")
        internal = statement["predicate"]["buildDefinition"]["internalParameters"]
        (internal if name == "familySource" else figures["annotations"])[name] = strange
        (out / PROVENANCE).write_text(json.dumps(statement))
        relist(out)
        if name == "verification":
            verify(out, source=str(source))  # it tells only how exactly to compare
        else:
            refused(out, source=source)


def test_an_empty_list_is_refused(out: Path) -> None:
    (out / SUMS).write_bytes(b"")
    refused(out, SUMS, "empty")
    (out / SUMS).unlink()
    refused(out, SUMS, "missing")


@pytest.mark.parametrize(
    "name", ["ligo/operator.safetensors", "ligo/provenance.json", "model.safetensors", "config.json"]
)
def test_a_file_that_is_not_what_its_name_says_is_refused(out: Path, name: str) -> None:
    (out / name).write_bytes(b"[]")
    digests = read_sums((out / SUMS).read_bytes())
    if name == PROVENANCE:
        (out / SUMS).write_bytes(sums({**digests, name: hashlib.sha256(b"[]").hexdigest()}))
    else:
        relist(out)
    refused(out, name)


def test_what_git_and_the_hub_leave_is_passed_over_by_its_type(out: Path) -> None:
    (out / ".git").mkdir()
    (out / ".git/config").write_text("x")
    (out / ".cache/huggingface").mkdir(parents=True)
    (out / ".cache/huggingface/x.metadata").write_text("x")
    (out / ".gitattributes").write_text("x")
    verify(out)
    (out / ".gitattributes").unlink()
    (out / ".gitattributes").mkdir()
    (out / ".gitattributes/model.bin").write_text("x")
    refused(out, ".gitattributes/model.bin")


def test_carried_files_are_derived_again(out: Path, source: Path) -> None:
    assert verify(out, source=str(source))["derived"]["files"] == 9
    for name in ("LICENSE", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "vocab.txt"):
        before = (out / name).read_bytes()
        middle = len(before) - 1
        (out / name).write_bytes(before[:middle] + bytes([before[middle] ^ 1]))
        relist(out)
        refused(out, name, "differs from the one that its source gives", source=source)
        (out / name).write_bytes(before)
    relist(out)
    verify(out, source=str(source))
    (out / "LICENSE").unlink()
    relist(out)
    refused(out, "LICENSE", "no such file", source=source)


def test_a_carried_file_that_the_source_has_not_is_refused(out: Path, source: Path) -> None:
    (out / "NOTICE").write_text("mine")
    statement = json.loads((out / PROVENANCE).read_text())
    figures = next(item for item in statement["predicate"]["runDetails"]["byproducts"] if item["name"] == "metrics")
    figures["annotations"]["files"]["carried"].append("NOTICE")
    (out / PROVENANCE).write_text(json.dumps(statement))
    relist(out)
    verify(out)  # without the source it is a file like any other that is carried
    refused(out, "NOTICE", "the source does not give this file", source=source)

"""The files beside the weights: each is carried, or named as left behind with a reason; none is dropped without a word."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.checkpoints import CONFIG, checkpoint, write

from ligo_convert.checkpoints import model_files
from ligo_convert.checkpoints.directory import local_directory
from ligo_convert.checkpoints.file_kinds import KINDS, FileKind, kind_of
from ligo_convert.checkpoints.files import SmallFiles
from ligo_convert.checkpoints.model_files import ModelFiles, sort_files
from ligo_convert.io import private_names

USED = {"config.json", "model.safetensors"}


def put(folder: Path, *names: str, data: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def sort(folder: Path) -> ModelFiles:
    place = local_directory(str(folder), folder)
    return sort_files(place, SmallFiles(place), used=USED)


def reasons(found: ModelFiles) -> dict[str, str]:
    return {left.path: left.reason for left in found.left}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", checkpoint())


CARRIED = (
    "LICENSE",
    "LICENSE.txt",
    "License.md",
    "NOTICE",
    "USE_POLICY.md",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "labels.txt",
    "tokenizer.json",
)
LEFT = (
    "2_Dense/model.safetensors",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "checkpoint-500/config.json",
    "image.png",
    "ligo/provenance.json",
    "model.fp16.safetensors",
    "model.gguf",
    "modeling_custom.py",
    "notes.odd",
    "onnx/model.onnx",
    "optimizer.pt",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "trainer_state.json",
    ".env",
    "Config.json",
    "TOKENIZER.JSON",
)


def test_every_file_is_carried_or_named(source: Path) -> None:
    put(source, *CARRIED, *LEFT)
    put(source, ".git/config", ".gitattributes", ".cache/huggingface/x")
    found = sort(source)
    assert found.carried == tuple(sorted(CARRIED))
    named = reasons(found)
    for name in LEFT:
        top = name.partition("/")[0] + "/"
        assert named.get(name) or named.get(top), f"{name} is dropped without a word"
    assert not [name for name in named if name.startswith((".git", ".cache"))]
    assert "code is never run" in named["modeling_custom.py"]
    # A folder that is left as a whole is one entry.
    assert {name for name in named if name.startswith("onnx")} == {"onnx/"}


def test_every_kind_of_the_table_has_a_reason_where_it_is_left() -> None:
    assert all(kind.why for kind in KINDS if kind.action == "leave")
    assert kind_of("\n\x00odd") is KINDS[-1]


def test_links_and_special_files_are_left_behind_and_never_opened(source: Path, tmp_path: Path) -> None:
    put(tmp_path, "outside/LICENSE")
    (source / "LICENSE").symlink_to(tmp_path / "outside" / "LICENSE")
    (source / "licenses").symlink_to(tmp_path / "outside")
    os.mkfifo(source / "NOTICE")
    (source / "COPYING").symlink_to("/dev/zero")
    (source / "AUTHORS").symlink_to("nowhere")
    named = reasons(sort(source))
    assert "leaves the directory" in named["LICENSE"]
    assert "leaves the directory" in named["COPYING"]
    assert named["licenses/"] == "a symbolic link to a folder"
    assert named["NOTICE"] == "not a regular file"
    assert named["AUTHORS"] == "No such file or directory"


def test_a_link_inside_the_source_is_a_file(source: Path) -> None:
    put(source, "licenses/mit.txt")
    (source / "LICENSE").symlink_to("licenses/mit.txt")
    assert {"LICENSE", "licenses/mit.txt"} <= set(sort(source).carried)


def test_a_large_file_is_left_behind(source: Path) -> None:
    with (source / "LICENSE").open("wb") as file:
        file.truncate(4 << 30)  # a hole: it takes no room here
    found = sort(source)
    assert "LICENSE" not in found.carried
    assert reasons(found)["LICENSE"].startswith(f"{4 << 30} bytes, and a file of its kind (licence or notice)")


def test_many_files_are_counted_and_do_not_hang(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "MAX_FOLDER", 50)
    monkeypatch.setattr(model_files, "MAX_NAMED", 10)
    monkeypatch.setattr(model_files, "MAX_CARRIED", 5)
    put(source, *(f"frames/{number}.foo" for number in range(60)))
    put(source, *(f"z{number:03}.foo" for number in range(40)))
    put(source, *(f"additional_chat_templates/{number}.jinja" for number in range(8)))
    put(source, "/".join("d" * 12) + "/deep.foo")
    found = sort(source)
    assert len(found.carried) <= 5 + 1  # the tokenizer is not counted
    named = reasons(found)
    assert len(named) == 11
    assert named["..."].endswith("more files")
    monkeypatch.setattr(model_files, "MAX_NAMED", 1000)
    named = reasons(sort(source))
    assert named["frames/"] == "more than 50 files: not looked at"
    assert [reason for name, reason in named.items() if name.startswith("d/")] == [
        "too many or too deep folders: not looked at"
    ]
    assert [name for name in named if name.endswith(".jinja")]


def test_of_very_many_files_most_are_only_counted(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(name: str) -> FileKind:
        asked.append(name)
        return kind_of(name)

    monkeypatch.setattr(model_files, "kind_of", counted)
    for number in range(3_000):
        (source / f"frame{number}.foo").touch()
    put(source, "zz_license.odd", "special_tokens_map.json")
    found = sort(source)
    assert "special_tokens_map.json" in found.carried
    assert found.left[-1].path == "..."
    assert found.left[-1].reason == f"{3_000 + 2 - 100} more files"
    assert len(asked) < 2_100


def test_the_size_of_what_is_carried_is_known(source: Path) -> None:
    put(source, "LICENSE", data=bytes(1000))
    found = sort(source)
    assert found.nbytes == sum((source / name).stat().st_size for name in found.carried) > 1000


def test_names_are_plain_or_left_behind(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_names, "private_names", lambda: iter([("the account's name", "zaphod")]))
    put(source, "LICENSE-\x1b[2J.txt", "LICENSE[a].txt", "LICENSE-zaphod.txt", "zaphod.foo", "LICENSE (MIT).txt")
    (source / os.fsdecode(b"LICENSE-\xff.txt")).write_bytes(b"x")
    found = sort(source)
    assert [name for name in found.carried if name.startswith("LICENSE")] == ["LICENSE (MIT).txt"]
    text = "".join(left.path for left in found.left)
    assert "\x1b" not in text
    assert "zaphod" not in text
    assert text.encode()  # holds no lone surrogate
    assert len(found.left) >= 5


POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}


def test_the_modules_of_modules_json_are_found(source: Path) -> None:
    body = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    put(source, "modules.json", data=json.dumps([body, POOLING]).encode())
    put(
        source,
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "9_Other/config.json",
        "1_Pooling/pytorch_model.bin",
    )
    found = sort(source)
    assert [(module.kind, module.folder, module.files) for module in found.modules] == [
        ("Transformer", "", ()),
        ("Pooling", "1_Pooling", ("1_Pooling/config.json",)),
    ]
    assert found.module_files == ("1_Pooling/config.json", "modules.json", "sentence_bert_config.json")
    assert set(reasons(found)) >= {"9_Other/", "1_Pooling/pytorch_model.bin"}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "malformed JSON"),
        ('{"a": 1}', "it is not a list of modules"),
        ("[]", "it is not a list of modules"),
        ("[1]", "it is not a list of modules"),
        ('[{"type": "a"}]', "a module has no type or no path"),
        (json.dumps([{**POOLING, "path": "../1_Pooling"}]), "the path of a module is not a plain folder"),
        (json.dumps([{**POOLING, "path": "/etc"}]), "the path of a module is not a plain folder"),
    ],
)
def test_a_modules_json_that_cannot_be_used_is_left_behind_with_its_modules(
    source: Path, content: str, what: str
) -> None:
    put(source, "modules.json", data=content.encode())
    put(source, "1_Pooling/config.json")
    found = sort(source)
    assert found.modules == ()
    assert found.module_files == ()
    named = reasons(found)
    assert named["modules.json"].startswith(what)
    assert "1_Pooling/" in named


def test_a_source_without_other_files_leaves_only_its_card(source: Path) -> None:
    assert CONFIG["model_type"] == "gpt2"
    found = sort(source)
    assert found.carried == ("generation_config.json", "tokenizer.json")
    assert set(reasons(found)) == {"README.md"}

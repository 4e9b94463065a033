"""Sources: what is there is checked, and what is read is what was digested."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save, save_file
from support.checkpoints import CONFIG, FIRST, HERE, SECOND, TENSORS, Array, Tree, checkpoint, sharded, write
from support.loopback import server as loopback

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import nonfinite_count
from ligo_convert.errors import LigoError, MachineError, RecipeError, SourceChanged, SourceError
from ligo_convert.hub.resolve import open_source


def opened(tmp_path: Path, tree: Tree) -> CheckpointReader:
    return open_source(str(write(tmp_path / "small", tree)), base=tmp_path)


def refused(tmp_path: Path, tree: Tree, *words: str, error: type[LigoError] = SourceError) -> None:
    folder = write(tmp_path / "small", tree)
    begin = time.perf_counter()
    with pytest.raises(error) as caught:
        open_source("./small", base=tmp_path).close()
    assert time.perf_counter() - begin < 1
    assert type(caught.value) is error
    text = str(caught.value)
    for word in words:
        assert word in text, text
    assert str(tmp_path) not in text  # a label, never where it lies
    shutil.rmtree(folder)


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


# ---- directories ----


@pytest.mark.parametrize("tree", [checkpoint(), sharded()], ids=["single", "sharded"])
def test_every_tensor_reads_back(tmp_path: Path, tree: Tree) -> None:
    with opened(tmp_path, tree) as source:
        assert set(source.tensors) == set(TENSORS)
        for name, array in TENSORS.items():
            assert bytes(source.read(name)) == array.tobytes()
            assert source.tensors[name].spec.shape == array.shape
        out = bytearray(TENSORS["wte.weight"].nbytes)
        assert source.read("wte.weight", out).obj is out
        assert bytes(out) == TENSORS["wte.weight"].tobytes()
        assert (source.label, source.revision, source.config, source.license) == ("small", None, CONFIG, "mit")
        assert source.tokenizer_files == ("tokenizer.json",)
        assert source.file_bytes("tokenizer.json") == b'{"version": "1.0"}'
        assert source.warnings == []
        with pytest.raises(ValueError, match="the buffer 3"):
            source.read("wte.weight", bytearray(3))


@pytest.mark.parametrize("tree", [checkpoint(), sharded()], ids=["single", "sharded"])
def test_the_digests_are_those_of_every_used_file(tmp_path: Path, tree: Tree) -> None:
    with opened(tmp_path, tree) as source:
        counts: list[int] = []
        digests = source.digest(counts.append)
        assert digests == {name: hashlib.sha256(tree[name]).hexdigest() for name in tree if name != "README.md"}
        assert sum(counts) == sum(len(data) for name, data in tree.items() if name.endswith(".safetensors"))
        assert source.digest() == digests
        for name in source.tensors:
            source.read(name)
        source.recheck()


def test_a_file_of_many_blocks_digests_like_any_other(tmp_path: Path) -> None:
    arrays: dict[str, Array] = {
        "a": np.arange(3 << 20, dtype=np.int16),
        "b": np.zeros((0, 2)),
        "c": np.arange(5 << 20, dtype=np.uint8),
    }
    with opened(tmp_path, checkpoint(model__safetensors=save(arrays))) as source:
        assert source.digest()["model.safetensors"] == hashlib.sha256(save(arrays)).hexdigest()
        for name, array in arrays.items():
            assert bytes(source.read(name)) == array.tobytes()


@pytest.mark.parametrize("given", ["./small", "small", "../here/small", "ABSOLUTE", "link", "."])
def test_where_a_directory_lies_is_relative_to_the_recipe(tmp_path: Path, given: str) -> None:
    here = tmp_path / "here"
    write(here / "small", checkpoint())
    (here / "link").symlink_to(here / "small")
    base = here / "small" if given == "." else here
    with open_source(given.replace("ABSOLUTE", str(here / "small")), base=base) as source:
        assert source.label == "small"


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "small", checkpoint())
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_source("~/small", base=Path("/")) as source:
        assert source.label == "small"
    with pytest.raises(SourceError, match="no such directory"):
        open_source("~nobody-of-this-name/small", base=Path("/"))


@pytest.mark.parametrize(
    "given", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "", "a\0b", "./a\0b", "x" * 5000]
)
def test_a_missing_directory_is_said_without_asking_the_hub(tmp_path: Path, given: str) -> None:
    with pytest.raises(SourceError, match="no such directory"):
        open_source(given, base=tmp_path)


@pytest.mark.parametrize("given", ["a--b", "a..b", "org/-x", "x.git", "bad name", "org/a:b", "a" * 200])
def test_an_id_the_hub_cannot_have_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(SourceError, match="not a Hub id"):
        open_source(given, base=tmp_path)


@pytest.mark.parametrize("revision", ["../../../etc", "a b", "-x", "", "a\0", "a/../b", "/main", "main/"])
def test_a_revision_that_is_none_is_refused(tmp_path: Path, revision: str) -> None:
    with pytest.raises(RecipeError, match="not a branch, tag or commit"):
        open_source("org/small", revision=revision, base=tmp_path)


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match="not a directory"):
        open_source("./model.safetensors", base=tmp_path)


def test_all_descriptors_are_closed(tmp_path: Path) -> None:
    before = open_descriptors()
    with opened(tmp_path, sharded()) as source:
        source.digest()
        assert open_descriptors() == before + 2
    assert open_descriptors() == before
    with pytest.raises(LigoError, match="the source is closed"):
        source.read("wte.weight")
    broken = sharded()
    broken[SECOND] = broken[SECOND][:-1]
    refused(tmp_path, broken, SECOND, "truncated")
    assert open_descriptors() == before


# ---- what a checkpoint must look like ----


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    refused(tmp_path, checkpoint(model__safetensors=b""), "small/model.safetensors", "empty")
    refused(
        tmp_path, checkpoint(model__safetensors=b"PK\x03\x04" + bytes(90)), "small/model.safetensors", "zip archive"
    )


def map_of(**changes: str | None) -> dict[str, str]:
    names = list(TENSORS)
    weight_map: dict[str, str] = dict.fromkeys(names[:2], FIRST) | dict.fromkeys(names[2:], SECOND)
    for name, shard in changes.items():
        weight_map.pop(name, None)
        if shard is not None:
            weight_map[name] = shard
    return weight_map


def test_an_index_and_its_shards_must_agree(tmp_path: Path) -> None:
    index = "small/model.safetensors.index.json"
    refused(tmp_path, sharded(map_of(empty="../x.safetensors")), f"{index}: empty", "../x.safetensors")
    refused(tmp_path, sharded(map_of(empty="/etc/x.safetensors")), f"{index}: empty", "/etc/x.safetensors")
    refused(tmp_path, sharded(map_of(empty="gone.safetensors")), index, "names gone.safetensors, which does not exist")
    refused(tmp_path, sharded(map_of(extra=FIRST)), f"small/{FIRST}: extra", "in no file")
    refused(tmp_path, sharded(map_of(empty=FIRST)), f"small/{FIRST}: empty", f"found:    in {SECOND}")
    refused(tmp_path, sharded(map_of(empty=None)), f"small/{SECOND}: empty", "the index does not name the tensor")
    twice = sharded()
    twice[SECOND] = save({name: TENSORS[name] for name in [*list(TENSORS)[2:], "wte.weight"]})
    refused(tmp_path, twice, f"small/{SECOND}: wte.weight", f"in two files, {FIRST} and {SECOND}")


def test_a_wrong_total_is_a_warning(tmp_path: Path) -> None:
    with opened(tmp_path, sharded(total=7)) as source:
        total = sum(array.nbytes for array in TENSORS.values())
        assert source.warnings == [
            f"small/model.safetensors.index.json: total_size is 7, the tensors take {total} bytes"
        ]


def test_one_kind_of_weights_must_be_there(tmp_path: Path) -> None:
    both = sharded() | {"model.safetensors": checkpoint()["model.safetensors"]}
    refused(tmp_path, both, "both model.safetensors and model.safetensors.index.json", "remove the one that is stale")
    refused(tmp_path, checkpoint(model__safetensors=None), "small: no weights", "expected: model.safetensors, or")
    refused(tmp_path, checkpoint(config__json=None), "small: no config.json")


def test_an_index_of_the_single_file_agrees_with_it(tmp_path: Path) -> None:
    """As mlx-lm and others write it: nothing disagrees, so nothing is refused, and the index is checked like any other."""
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(TENSORS, "model.safetensors")}).encode()
    with opened(tmp_path, checkpoint(model__safetensors__index__json=index)) as source:
        assert set(source.tensors) == set(TENSORS)
        assert [file.name for file in source.files] == ["model.safetensors"]
        assert "model.safetensors.index.json" in source.digest()
    lacking = json.dumps({"metadata": {}, "weight_map": {"wte.weight": "model.safetensors"}}).encode()
    refused(tmp_path, checkpoint(model__safetensors__index__json=lacking), "the index does not name the tensor")


PICKLE = "ligo-convert import {name} DIR"
# Files beside config.json instead of the weights -> what the refusal names, what it tells to do.
INSTEAD = [
    ((FIRST,), "shards without their index", "fetch model.safetensors.index.json and model-00002-of-00002.safetensors"),
    ((FIRST, SECOND), "shards without their index", "fetch model.safetensors.index.json again"),
    (("model.fp16.safetensors",), "a variant of the weights", "mv model.fp16.safetensors model.safetensors"),
    (("model.safetensors.index.bf16.json",), "a variant", "bf16.json model.safetensors.index.json"),
    (("adapter_model.safetensors", "adapter_config.json"), "an adapter, not a model", "merge_and_unload"),
    (("consolidated.00.pth", "params.json"), "the model's authors", "the layout of transformers"),
    (("pytorch_model.bin",), "pickled weights", PICKLE),
    (("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"), "pickled weights", "ligo-convert import"),
    (("model_best.pth.tar",), "a pickled checkpoint", PICKLE),
    (("model.pt",), "a pickled checkpoint", PICKLE),
    (("zero_to_fp32.py",), "DeepSpeed", "python zero_to_fp32.py"),
    (("__0_0.distcp", ".metadata"), "a distributed checkpoint of PyTorch", "ligo-convert import FOLDER DIR"),
    (("model-q4.gguf",), "the GGUF format", "gguf_file='model-q4.gguf'"),
    (("weights.00.safetensors",), "MLX", "convert it again"),
    (("ViT-B_16.npz",), "NumPy's format", "save_for_hf"),
    (("tf_model.h5",), "TensorFlow weights", "from_tf=True"),
    (("flax_model.msgpack",), "Flax weights", "from_flax=True"),
    (("model.onnx",), "an exported graph", "exported from"),
    (("whole.safetensors",), "safetensors under another name", "mv whole.safetensors model.safetensors"),
    # The nearest to safetensors is told of.
    (("tf_model.h5", "pytorch_model.bin", "model.fp16.safetensors"), "a variant", "mv model.fp16.safetensors"),
]


@pytest.mark.parametrize(("names", "what", "do"), INSTEAD, ids=lambda item: item[0] if isinstance(item, tuple) else "")
def test_what_is_there_instead_of_weights_is_named(tmp_path: Path, names: tuple[str, ...], what: str, do: str) -> None:
    tree = checkpoint(model__safetensors=None) | dict.fromkeys(names, b"\x80\x04.")
    do = do.format(name=names[0])
    refused(tmp_path, tree, "no safetensors weights that can be read, only", what, f"found:    {sorted(names)[0]}", do)
    if names != (FIRST, SECOND):  # whole but for its index: nothing else is to be fetched
        del tree["config.json"]
        refused(tmp_path, tree, "no config.json", do)


def test_a_lost_index_is_rebuilt_by_the_command_of_the_hint(tmp_path: Path) -> None:
    folder = write(tmp_path / "small", sharded())
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(SourceError) as caught:
        open_source(str(folder), base=tmp_path)
    command = caught.value.hint.splitlines()[-1].replace("python", f"'{sys.executable}'", 1)
    subprocess.run(command, shell=True, cwd=folder, check=True, timeout=60)
    with open_source(str(folder), base=tmp_path) as source:
        assert set(source.tensors) == set(TENSORS)


def test_weights_of_a_subfolder_are_named_with_it(tmp_path: Path) -> None:
    write(tmp_path / "small" / "checkpoint-500", checkpoint())
    refused(tmp_path, checkpoint(model__safetensors=None), "the weights are in a subfolder", "checkpoint-500")
    write(tmp_path / "small" / "checkpoint-500", checkpoint())
    refused(tmp_path, {}, "no config.json", "name the subfolder that holds the checkpoint: checkpoint-500")


def test_another_weight_file_that_the_config_names_is_refused(tmp_path: Path) -> None:
    """transformers loads what `transformers_weights` names, so reading another file would read another model."""
    config = json.dumps({**CONFIG, "transformers_weights": "other.safetensors"}).encode()
    refused(tmp_path, checkpoint(config__json=config), "transformers_weights", "other.safetensors", "remove the key")
    config = json.dumps({**CONFIG, "transformers_weights": "model.safetensors"}).encode()
    opened(tmp_path, checkpoint(config__json=config)).close()


@pytest.mark.parametrize("given", ["./sorce", "sorce/", "sorce", "sorce/inner"])
def test_a_mistyped_directory_is_told_the_one_that_is_there(
    tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "source", checkpoint())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LigoError, match="did you mean the directory source") as caught:
        open_source(given, base=tmp_path)
    assert caught.value.exit_code == (4 if given in ("sorce", "sorce/inner") else 3)


@pytest.mark.parametrize(("name", "hint"), [("model.safetensors", "name the directory"), ("a.pth", "import a.pth DIR")])
def test_a_file_named_as_a_source_is_told_what_to_name(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match="not a directory") as caught:
        open_source(name, base=tmp_path)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"", "malformed JSON"),
        (b"<html>not found</html>", "looks like an HTML page"),
        (b'{"n_embd":5,"n_embd":6}', "the key 'n_embd' appears twice"),
        (b'{"n_embd":NaN}', "NaN is not a JSON number"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":"' + b"x" * (5 << 20) + b'"}', "at most 4194304 bytes"),
        (b'{"trust_remote_code":true}', "'trust_remote_code'"),
        (b'{"_attn_implementation_internal":"org/kernel"}', "'_attn_implementation_internal'"),
        (b'{"_experts_implementation_internal":"x"}', "'_experts_implementation_internal'"),
        (b'{"text_config":{"sub":[{"trust_remote_code":0}]}}', "'text_config.sub[0].trust_remote_code'"),
    ],
)
def test_a_config_is_plain_data_without_code(tmp_path: Path, config: bytes, words: str) -> None:
    refused(tmp_path, checkpoint(config__json=config), "small/config.json", words)


@pytest.mark.parametrize(
    "key",
    [
        "auto_map",
        "custom_pipelines",
        "custom_code",
        "attn_implementation",
        "_attn_implementation",
        "experts_implementation",
    ],
)
@pytest.mark.parametrize("value", [{"AutoModel": "evil.Model"}, {"": "org/kernel"}, "org/kernel", "sdpa", None])
def test_a_key_that_names_code_is_dropped_with_a_warning(tmp_path: Path, key: str, value: object) -> None:
    config = {"n_embd": 5, key: value, "rope_scaling": {"type": "x", key: value}}
    with opened(tmp_path, checkpoint(config__json=json.dumps(config).encode())) as source:
        assert source.config == source.stored_config == {"n_embd": 5, "rope_scaling": {"type": "x"}}
        assert [warning.partition(" is ignored")[0] for warning in source.warnings] == [
            f"small/config.json: {key}",
            f"small/config.json: rope_scaling.{key}",
        ]


def test_a_hostile_template_is_flagged_and_copied(tmp_path: Path) -> None:
    template = b"{{ ''.__class__.__mro__ }}"
    tree = checkpoint() | {"chat_template.jinja": template, "tokenizer_config.json": b'{"auto_map": {}}'}
    with opened(tmp_path, tree) as source:
        assert source.file_bytes("chat_template.jinja") == template
        assert source.tokenizer_files == ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        assert [warning.split(":")[0] for warning in source.warnings] == [
            "small/tokenizer_config.json",
            "small/chat_template.jinja",
        ]


def test_only_files_that_were_there_are_given(tmp_path: Path) -> None:
    with opened(tmp_path, checkpoint()) as source:
        for name in ("vocab.json", "../small/config.json", "/etc/passwd"):
            with pytest.raises(SourceError, match="no such file"):
                source.file_bytes(name)


@pytest.mark.parametrize(
    ("card", "found"),
    [
        (b"---\nlicense: apache-2.0\ntags: [x]\n---\n", "apache-2.0"),
        (b"---\ntags:\n- x\nlicense: 'mit' # ours\n...\n", "mit"),
        (b'\xef\xbb\xbf---\r\nlicense: "cc-by-4.0"\r\n---\r\n', "cc-by-4.0"),
        (b"---\nlicense: [mit, gpl]\n---\n", None),
        (b"---\nlicense:\n- mit\n---\n", None),
        (b"---\nlicense: mit\nlicense: gpl\n---\n", None),
        (b"---\nlicense: !!python/object:x\n---\n", None),
        (b"---\nlicense: {{ 7*7 }}\n---\n", None),
        (b"---\nlicense: null\n---\n", None),
        (b"---\nlicense: mit\n", None),
        (b"---\nmodel:\n  license: mit\n---\n", None),
        (b"license: mit\n", None),
        (b"---\n---\nlicense: mit\n", None),
        (b"", None),
        (b"\xff\xfe", None),
    ],
)
def test_the_licence_is_one_plain_scalar(tmp_path: Path, card: bytes, found: str | None) -> None:
    with opened(tmp_path, checkpoint(README__md=card)) as source:
        assert source.license == found


def test_a_source_without_a_card_has_no_licence(tmp_path: Path) -> None:
    with opened(tmp_path, checkpoint(README__md=None)) as source:
        assert source.license is None


# ---- links and special files ----


def read_side_file(model: str, base: Path, name: str) -> bytes:
    with open_source(model, base=base) as source:
        return source.file_bytes(name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "README.md"])
def test_links_may_not_leave_the_directory(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "small", checkpoint())
    (tmp_path / "outside").write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to("../outside")
    with pytest.raises(SourceError, match="symbolic link that leaves the directory") as caught:
        read_side_file("./small", tmp_path, name)
    assert f"small/{name}" in str(caught.value)


def test_links_within_the_directory_are_fine(tmp_path: Path) -> None:
    folder = write(tmp_path / "small", checkpoint())
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights/v1")
    (folder / "model.safetensors").symlink_to("weights/v1")
    with open_source("./small", base=tmp_path) as source:
        source.read("wte.weight")


def test_a_link_that_leads_nowhere_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "small", checkpoint(model__safetensors=None))
    (folder / "model.safetensors").symlink_to(".git/annex/objects/x")
    with pytest.raises(SourceError, match="a broken symbolic link") as caught:
        open_source("./small", base=tmp_path)
    assert "git annex get" in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "device"])
def test_special_files_are_refused_without_waiting(tmp_path: Path, name: str, kind: str) -> None:
    folder = write(tmp_path / "small", checkpoint())
    path = folder / name
    path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        # The path of a socket must be short.
        here = os.open(folder, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/{name}" if Path("/proc/self/fd").exists() else str(path))
        os.close(here)
    else:
        path.symlink_to("/dev/zero")
    begin = time.perf_counter()
    with pytest.raises(SourceError) as caught:
        open_source("./small", base=tmp_path)
    listener.close()
    assert time.perf_counter() - begin < 1
    words = {
        "fifo": "not a regular file",
        "directory": "not a regular file",
        "socket": "cannot be opened",
        "device": "leaves",
    }
    assert f"small/{name}" in str(caught.value)
    assert words[kind] in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "."])
def test_what_may_not_be_read_is_the_machines_fault(name: str) -> None:
    # Not tmp_path: nobody but its owner may even look into that. Root may read everything, so root steps down.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        small = write(Path(folder) / "small", checkpoint())
        (small / name).chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(MachineError, match="no permission to read"):
                open_source("./small", base=Path(folder))
        finally:
            if root:
                os.seteuid(0)
            (small / name).chmod(0o755)


def cached(tmp_path: Path, tree: Tree, *, shared: bool = False) -> Path:
    """The same files in the layout of the Hub's cache, optionally with blobs shared between repositories."""
    repository = tmp_path / "hub/models--org--small"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name, data in tree.items():
        digest = hashlib.sha256(data).hexdigest() if loopback.is_large(name) else loopback.git_blob(data)
        blob = repository / "blobs" / digest
        if shared:
            store = tmp_path / "hub/blobs" / digest[:2] / digest
            store.parent.mkdir(parents=True, exist_ok=True)
            store.write_bytes(data)
            blob.symlink_to(os.path.relpath(store, blob.parent))
        else:
            blob.write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{digest}")
    return snapshot


@pytest.mark.parametrize("shared", [False, True])
def test_a_snapshot_of_the_hubs_cache_is_a_directory(tmp_path: Path, shared: bool) -> None:
    snapshot = cached(tmp_path, checkpoint(), shared=shared)
    with open_source(str(snapshot), base=tmp_path) as source:
        assert bytes(source.read("wte.weight")) == TENSORS["wte.weight"].tobytes()
        source.digest()
        source.recheck()


def test_a_damaged_blob_of_the_cache_is_found_by_its_name(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, checkpoint())
    data = bytearray((snapshot / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (snapshot / "model.safetensors").write_bytes(data)
    with open_source(str(snapshot), base=tmp_path) as source, pytest.raises(SourceChanged) as caught:
        source.digest()
    text = str(caught.value)
    assert "model.safetensors: the file is not the one on the Hub" in text
    assert hashlib.sha256(checkpoint()["model.safetensors"]).hexdigest() in text
    assert hashlib.sha256(data).hexdigest() in text


def test_a_folder_named_like_the_cache_gives_no_way_out(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, checkpoint())
    (tmp_path / "secret").write_text("{}")
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to("../../../../secret")
    with open_source(str(snapshot), base=tmp_path) as source, pytest.raises(SourceError, match="leaves the directory"):
        source.file_bytes("tokenizer.json")


# ---- changes while it is used ----


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_file_cut_meanwhile_is_an_error_not_a_crash(tmp_path: Path) -> None:
    with opened(tmp_path, checkpoint()) as source:
        source.digest()
        tensor = source.tensors["position_ids"]
        os.truncate(source.root / "model.safetensors", tensor.start + 3)
        with pytest.raises(SourceChanged, match="became shorter") as caught:
            source.read("position_ids")
        assert "small/model.safetensors: position_ids" in str(caught.value)
        with pytest.raises(SourceChanged, match="changed while it was converted"):
            source.recheck()


@pytest.mark.parametrize("size", [-1, 1])
def test_a_size_that_changed_before_the_digest(tmp_path: Path, size: int) -> None:
    tree = checkpoint()
    with opened(tmp_path, tree) as source:
        os.truncate(source.root / "model.safetensors", len(tree["model.safetensors"]) + size)
        with pytest.raises(SourceChanged, match=r"small/model.safetensors: the file's size changed"):
            source.digest()


@pytest.mark.parametrize("first", ["digest", "read"])
def test_a_tensor_overwritten_in_place_is_found(tmp_path: Path, first: str) -> None:
    with opened(tmp_path, checkpoint()) as source:
        look: dict[str, Callable[[], object]] = {"digest": source.digest, "read": lambda: source.read("wte.weight")}
        look.pop(first)()
        overwrite(source.root / "model.safetensors", source.tensors["wte.weight"].start + 5, b"\x99")
        with pytest.raises(SourceChanged, match="bytes changed since they were first read") as caught:
            next(iter(look.values()))()
        text = str(caught.value)
        assert "small/model.safetensors: wte.weight" in text
        assert "expected: CRC-32" in text
        assert "nothing may write to the source" in text
        if first == "digest":
            assert hashlib.sha256(checkpoint()["model.safetensors"]).hexdigest() in text


def test_a_header_overwritten_before_the_digest_is_found(tmp_path: Path) -> None:
    tree = checkpoint()
    with opened(tmp_path, tree) as source:
        overwrite(source.root / "model.safetensors", tree["model.safetensors"].index(b"wte"), b"wtf")
        with pytest.raises(SourceChanged, match="the header changed"):
            source.digest()


def test_an_overwrite_after_the_last_read_is_found_at_the_end(tmp_path: Path) -> None:
    with opened(tmp_path, sharded()) as source:
        source.digest()
        for name in source.tensors:
            source.read(name)
        overwrite(source.root / SECOND, source.tensors["position_ids"].start, b"\x99")
        with pytest.raises(SourceChanged, match=f"small/{SECOND}: the file changed while it was converted") as caught:
            source.recheck()
        assert "SHA-256" in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_replaced_file_is_found_at_the_end(tmp_path: Path, name: str) -> None:
    tree = checkpoint()
    with opened(tmp_path, tree) as source:
        source.digest()
        path = source.root / name
        status = path.stat()
        other = path.with_name("other")
        other.write_bytes(tree[name][:-2] + b" }")
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
        with pytest.raises(SourceChanged, match=f"small/{name}: the file changed"):
            source.recheck()
        path.unlink()
        with pytest.raises(SourceChanged, match=f"small/{name}: the file was removed"):
            source.recheck()


def test_new_dates_and_equal_copies_are_no_change(tmp_path: Path) -> None:
    tree = checkpoint()
    with opened(tmp_path, tree) as source:
        source.digest()
        for name in tree:
            os.utime(source.root / name, (1, 1))
        source.recheck()
        write(tmp_path / "copy", tree)
        for name in tree:
            (tmp_path / "copy" / name).replace(source.root / name)
        source.recheck()


def test_a_side_file_that_changes_is_found(tmp_path: Path) -> None:
    with opened(tmp_path, checkpoint()) as source:
        source.file_bytes("tokenizer.json")
        (source.root / "tokenizer.json").write_bytes(b"{}")
        with pytest.raises(SourceChanged, match=r"small/tokenizer.json: the file changed since it was first read"):
            source.digest()
        (source.root / "tokenizer.json").unlink()
        with pytest.raises(SourceChanged, match=r"small/tokenizer.json: the file was removed"):
            source.digest()


def test_recheck_needs_a_digest(tmp_path: Path) -> None:
    with opened(tmp_path, checkpoint()) as source, pytest.raises(LigoError, match="before digest"):
        source.recheck()


def test_reading_while_another_thread_digests(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"h.{layer}.w": rng.integers(0, 255, 300_000, np.uint8) for layer in range(40)}
    with opened(tmp_path, checkpoint(model__safetensors=save(arrays))) as source:
        digests: dict[str, str] = {}
        thread = threading.Thread(target=lambda: digests.update(source.digest()))
        thread.start()
        for name, array in arrays.items():
            assert bytes(source.read(name)) == array.tobytes()
        thread.join(timeout=60)
        assert not thread.is_alive()
        assert digests["model.safetensors"] == hashlib.sha256(save(arrays)).hexdigest()
        source.recheck()


# ---- values ----


def test_a_bool_holds_zeros_and_ones(tmp_path: Path) -> None:
    data = bytearray(checkpoint()["model.safetensors"])
    with opened(tmp_path, checkpoint()) as source:
        start = source.tensors["h.0.mask"].start
    data[start : start + 3] = b"\x02\xff\x01"
    with opened(tmp_path, checkpoint(model__safetensors=bytes(data))) as source:
        with pytest.raises(SourceError, match="2 bytes of a BOOL tensor are neither 0 nor 1") as caught:
            source.read("h.0.mask")
        assert "small/model.safetensors: h.0.mask" in str(caught.value)


def test_real_checkpoints_read_as_the_library_reads_them() -> None:
    root = os.environ.get("LIGO_TEST_MODELS")
    if not root:
        pytest.skip("LIGO_TEST_MODELS names no directory of pretrained checkpoints")
    folders = [path.parent for path in sorted(Path(root).glob("*/model.safetensors"))]
    assert folders
    for folder in folders:
        with open_source(folder.name, base=Path(root)) as source:
            source.digest()
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                for name, tensor in source.tensors.items():
                    expected = file.get_tensor(name)
                    assert tuple(expected.shape) == tensor.spec.shape
                    data = source.read(name)
                    assert bytes(data) == expected.contiguous().numpy().tobytes()
                    assert nonfinite_count(data, tensor.spec.dtype) == 0
            source.recheck()


def test_the_hub_client_is_imported_only_for_the_hub(tmp_path: Path) -> None:
    write(tmp_path / "small", checkpoint())
    code = (
        "import sys; from pathlib import Path; from ligo_convert.hub.resolve import open_source\n"
        f"open_source('./small', base=Path({str(tmp_path)!r})).close()\n"
        "print([name for name in ('huggingface_hub', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=HERE
    )
    assert done.stdout.strip() == "[]"

"""`ligo-convert import`: pickled checkpoints of every form become safetensors, and no pickle runs code here."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.torchrun import Torchrun
from torch.distributed import checkpoint

from ligo_convert.errors import LigoError, MachineError, OutputBusy, RecipeError, SourceChanged, SourceError
from ligo_convert.importing import import_checkpoint as module
from ligo_convert.importing import pickle_reader, sandbox
from ligo_convert.importing.import_checkpoint import ImportSettings, import_checkpoint
from ligo_convert.importing.pickle_reader import PickledFile

pytestmark = pytest.mark.skipif(sandbox.support() is not None, reason=str(sandbox.support()))

TIMM = ImportSettings(architecture="vit_tiny_patch16_224")


def weights() -> dict[str, torch.Tensor]:
    """Tensors of every storable dtype, one transposed, one empty, one a scalar, two that share their storage."""
    drawn = torch.Generator().manual_seed(0)
    made = {
        f"body.{dtype}": torch.randint(0, 100, (3, 4), generator=drawn).to(getattr(torch, dtype))
        for dtype in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    }
    made["body.transposed"] = torch.randn(5, 7, generator=drawn).T
    made["body.slice"] = torch.randn(10, 7, generator=drawn)[2:4]
    made["body.empty"] = torch.zeros(0, 4)
    made["body.scalar"] = torch.tensor(3.5)
    made["head.tied"] = made["body.float32"]
    return made


def assert_written(out: Path, expected: dict[str, torch.Tensor]) -> None:
    stored = load_file(out / "model.safetensors")
    assert set(stored) == set(expected)
    for name, tensor in expected.items():
        assert stored[name].dtype == tensor.dtype, name
        assert torch.equal(stored[name], tensor), name


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_training_loops_checkpoint(tmp_path: Path) -> None:
    """Weights under a key and behind a wrapper; arguments, a figure of numpy and the optimizer beside them are left out and named."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    state = {
        "state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in weights().items()} | {"_extra": None},
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, output=Path("runs")),
        "best": np.float64(0.5),
        "epoch": 3,
        "step": torch.tensor(7),
    }
    torch.save(state, tmp_path / "best.pth.tar")
    report = import_checkpoint(tmp_path / "best.pth.tar", tmp_path / "out", TIMM)
    assert_written(tmp_path / "out", weights())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"architecture": "vit_tiny_patch16_224"}
    record = json.loads((tmp_path / "out" / "ligo-import.json").read_text())
    source = record["sources"][0]
    assert source["key"] == ["state_dict"]
    assert source["left_out"] == ["_extra"]
    assert source["shared"] == [["module._orig_mod.body.float32", "module._orig_mod.head.tied"]]
    assert source["sha256"] == report["sources"][0]["sha256"]  # type: ignore[index]
    assert str(tmp_path) not in (tmp_path / "out" / "ligo-import.json").read_text()
    with pytest.raises(OutputBusy):
        import_checkpoint(tmp_path / "best.pth.tar", tmp_path / "out", TIMM)


def test_shards_with_an_index_and_small_files(tmp_path: Path) -> None:
    """Shards of both formats of torch.save, and an output in several files whose limits are other than the input's."""
    folder = tmp_path / "model"
    folder.mkdir()
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    parts = [{"a": torch.ones(100), "c": torch.zeros(100)}, {"b": torch.full((100,), 2.0)}]
    for name, part, zipped in zip(names, parts, (True, False), strict=True):
        torch.save(part, folder / name, _use_new_zipfile_serialization=zipped)
    index = {"metadata": {}, "weight_map": {"a": names[0], "c": names[0], "b": names[1]}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "vocab.json").write_text("{}")
    (folder / "run.py").write_text("raise SystemExit")
    import_checkpoint(folder, tmp_path / "out", ImportSettings(max_shard_size=500))
    assert names_in(tmp_path / "out") == [
        "config.json",
        "ligo-import.json",
        *(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
        "model.safetensors.index.json",
        "vocab.json",
    ]
    record = json.loads((tmp_path / "out" / "ligo-import.json").read_text())
    assert [entry["path"] for entry in record["left_behind"]] == ["run.py"]
    stored = {
        name: tensor for file in (tmp_path / "out").glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    assert set(stored) == {"a", "b", "c"}
    assert torch.equal(stored["b"], torch.full((100,), 2.0))
    index["weight_map"]["b"] = names[0]  # type: ignore[index]
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="does not hold it"):
        import_checkpoint(folder, tmp_path / "other", ImportSettings())
    assert not (tmp_path / "other").exists()


def write_shards(folder: Path, content: dict[str, Any]) -> Path:
    """As torch, and so accelerate, writes them."""
    checkpoint.save(content, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_shards_of_a_training_with_fsdp(tmp_path: Path) -> None:
    """Some seconds: the process that reads shards imports torch.distributed. The directory of accelerate's save_state."""
    folder = tmp_path / "checkpoint-3"
    shards = write_shards(folder / "pytorch_model_fsdp_0", {"model": weights()})
    write_shards(folder / "optimizer_0", {"optimizer": {"state": {}}})
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    import_checkpoint(folder, tmp_path / "out", ImportSettings())
    assert_written(tmp_path / "out", weights())
    assert names_in(tmp_path / "out") == ["config.json", "ligo-import.json", "model.safetensors"]
    record = json.loads((tmp_path / "out" / "ligo-import.json").read_text())
    source = record["sources"][0]
    assert (source["file"], source["key"], source["tensors"]) == ("pytorch_model_fsdp_0", ["model"], len(weights()))
    printed = subprocess.run(
        "sha256sum .metadata *.distcp", shell=True, cwd=shards, capture_output=True, check=True, timeout=30
    )
    assert source["sha256"] == hashlib.sha256(printed.stdout).hexdigest()
    assert {Path(entry["path"]).parts[0] for entry in record["left_behind"]} == {"optimizer_0"}


_TWO_PROCESSES = """
import os, sys, torch
from torch.distributed import checkpoint, destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
whole = torch.load(sys.argv[1], weights_only=True)
parts = [[Replicate()], [Shard(0)], [Shard(1)]]
model = {name: distribute_tensor(value, mesh, parts[value.ndim]) for name, value in whole.items()}
checkpoint.save({"model": model}, checkpoint_id=sys.argv[2])
destroy_process_group()
os._exit(0)  # the mesh still holds its group, and torch at times aborts where a group is left when Python ends
"""


@pytest.mark.slow
def test_the_shards_of_two_processes_are_joined(tmp_path: Path) -> None:
    """Slow: torchrun starts two processes. Sizes that the processes cannot share equally, along each dim."""
    whole = {"a": torch.arange(35.0).view(7, 5), "b": torch.arange(3.0), "c": torch.tensor(2.0)}
    torch.save(whole, tmp_path / "whole.pt")
    (tmp_path / "two.py").write_text(_TWO_PROCESSES)
    shards = tmp_path / "pytorch_model_fsdp_0"
    with Torchrun(str(tmp_path / "whole.pt"), str(shards), count=2, folder=tmp_path, program=["two.py"]) as running:
        code, _, err = running.wait(within=300)
    assert code == 0, err
    assert names_in(shards) == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    import_checkpoint(shards, tmp_path / "out", TIMM)
    assert_written(tmp_path / "out", whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_plain_shards_and_such_as_are_refused(tmp_path: Path) -> None:
    """Slow: five processes import torch.distributed."""
    plain = write_shards(tmp_path / "plain", dict(weights()))
    import_checkpoint(plain, tmp_path / "out", TIMM)
    assert_written(tmp_path / "out", weights())
    assert json.loads((tmp_path / "out" / "ligo-import.json").read_text())["left_behind"] == []

    def refused(name: str, match: str) -> None:
        with pytest.raises(SourceError, match=match):
            import_checkpoint(tmp_path / name, tmp_path / "new", TIMM)
        assert not (tmp_path / "new").exists()

    # A part of a tensor that no shard holds: torch would leave there what was in memory.
    hole = shutil.copytree(plain, tmp_path / "hole")
    table = pickle.loads((hole / ".metadata").read_bytes())
    chunk = table.state_dict_metadata["body.transposed"].chunks[0]
    chunk.sizes = torch.Size([4, *chunk.sizes[1:]])
    (hole / ".metadata").write_bytes(pickle.dumps(table))
    refused("hole", "do not hold every value of 'body.transposed' once")
    code = shutil.copytree(plain, tmp_path / "code")
    (code / ".metadata").write_bytes(pickle.dumps(_Canary(tmp_path / "ran"), protocol=2))
    refused("code", "posix.system")
    assert not (tmp_path / "ran").exists()
    outside = shutil.copytree(plain, tmp_path / "outside")
    shard = next(outside.glob("*.distcp"))
    shard.unlink()
    refused("outside", "shards cannot be read")
    shard.symlink_to(plain / shard.name)
    refused("outside", "cannot be opened")
    for number in range(2):
        shutil.copytree(plain, tmp_path / "two" / f"pytorch_model_fsdp_{number}")
    refused("two", "several sharded checkpoints")


class _Canary:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


# Each starts a process that imports torch, so the kinds that torch itself refuses are slow tests.
_SLOW = ("module", "torchscript", "garbage", "sparse", "empty")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch deprecates TorchScript; such files exist
@pytest.mark.parametrize(
    "kind", ["code", "compressed", "expanded", *(pytest.param(kind, marks=pytest.mark.slow) for kind in _SLOW)]
)
def test_a_file_that_is_not_plain_weights_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "model.pt"
    if kind == "code":
        torch.save({"a": torch.ones(2), "b": _Canary(tmp_path / "ran")}, file)
    elif kind == "module":
        torch.save(torch.nn.Linear(2, 2), file)
    elif kind == "torchscript":
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), file)  # type: ignore[no-untyped-call]
    elif kind == "garbage":
        file.write_bytes(b"\x80\x02" + bytes(range(256)) * 10)
    elif kind == "compressed":
        torch.save({"a": torch.ones(1000)}, tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for entry in plain.infolist():
                packed.writestr(entry.filename, plain.read(entry))
    elif kind == "sparse":
        torch.save({"a": torch.eye(4).to_sparse()}, file)
    elif kind == "expanded":
        torch.save({"a": torch.ones(1).expand(1 << 40)}, file)
    else:
        torch.save({"epoch": 3, "step": torch.tensor(4)}, file)
    with pytest.raises(SourceError) as refusal:
        import_checkpoint(file, tmp_path / "out", TIMM)
    telling = {"code": "posix.system", "module": "torch.nn.modules.linear.Linear", "torchscript": "TorchScript"}
    telling |= {"compressed": "compressed", "sparse": "sparse", "expanded": "repeats", "empty": "no weights"}
    assert telling.get(kind, "refuses it") in str(refusal.value)
    assert "set to `False`" not in str(refusal.value)
    assert names_in(tmp_path) == sorted({"model.pt", *(["plain.pt"] if kind == "compressed" else [])})


def test_the_process_has_no_secrets_and_no_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of the environment does not reach the process, and the process is confined when it loads the file."""
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    torch.save({"a": torch.ones(2)}, tmp_path / "model.pt")
    with PickledFile(tmp_path / "model.pt", label="model.pt") as file:
        process = Path(f"/proc/{file._process.pid}")
        assert b"hf_canary" not in (process / "environ").read_bytes()
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        assert (status["Seccomp"], status["NoNewPrivs"], status["Threads"]) == ("2", "1", "1")
        assert (process / "cwd").readlink() != Path.cwd()
        # A file that is exchanged while it is read is the old one still; one that is written into is noticed.
        files = module._Files(confine=True)
        files._open[tmp_path / "model.pt"], files.sha256[tmp_path / "model.pt"] = file, file.sha256()
        files.check()
        with (tmp_path / "model.pt").open("r+b") as handle:
            handle.seek(-1, os.SEEK_END)
            handle.write(b"\1")
        with pytest.raises(SourceChanged):
            files.check()
        os.kill(file._process.pid, 9)
        with pytest.raises(MachineError, match="ended"):
            file.read(file.groups[0].tensors[0])


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A legacy file that promises far more elements than it has is refused before they are there."""
    monkeypatch.setattr(pickle_reader, "_EXTRA_MEMORY", 1 << 27)
    torch.save({"a": torch.ones(70_000)}, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "model.pt").read_bytes()
    count = b"J" + (70_000).to_bytes(4, "little")  # BININT
    assert data.count(count)
    (tmp_path / "model.pt").write_bytes(data.replace(count, b"J" + (500_000_000).to_bytes(4, "little")))
    with pytest.raises(SourceError, match="bytes of memory"):
        import_checkpoint(tmp_path / "model.pt", tmp_path / "out", TIMM)


def test_without_a_sandbox_the_user_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": weights(), "model_ema": weights()}, tmp_path / "model.pt")
    monkeypatch.setattr(pickle_reader, "support", lambda: "this is another system")
    with pytest.raises(MachineError, match="this is another system") as refusal:
        import_checkpoint(tmp_path / "model.pt", tmp_path / "out", TIMM)
    assert "--no-sandbox" in str(refusal.value)
    # The same file read without it; the user also chooses among two sets of weights.
    trusting = ImportSettings(architecture="x", confine=False)
    with pytest.raises(RecipeError, match="several sets of weights") as choice:
        import_checkpoint(tmp_path / "model.pt", tmp_path / "out", trusting)
    assert "model (15 tensors), model_ema (15 tensors)" in str(choice.value)
    report = import_checkpoint(
        tmp_path / "model.pt",
        tmp_path / "out",
        ImportSettings(architecture="x", confine=False, key="model_ema"),
    )
    assert report["sandbox"] == "none: weights_only alone"
    assert_written(tmp_path / "out", weights())


def test_refusals_before_anything_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "model.pt")
    (tmp_path / "two").mkdir()
    for name in ("a.pt", "b.pth"):
        (tmp_path / "two" / name).write_bytes(b"")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "model.safetensors").write_bytes(b"")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    for path, settings, error, text in (
        (tmp_path / "model.pt", ImportSettings(), RecipeError, "--architecture"),
        (tmp_path / "model.pt", ImportSettings(architecture="x", config=Path("c")), RecipeError, "not both"),
        (tmp_path / "two", TIMM, SourceError, "several pickled files"),
        (tmp_path / "done", TIMM, SourceError, "nothing has to be imported"),
        (tmp_path / "none", TIMM, SourceError, "no such file"),
        (tmp_path / "model.pt", TIMM, OutputBusy, "is not empty"),
    ):
        with pytest.raises(error, match=text):
            import_checkpoint(path, tmp_path / ("out" if error is OutputBusy else "new"), settings)
    assert names_in(tmp_path / "out") == ["mine"]


def test_a_table_from_a_captured_process_is_checked() -> None:
    """The file may have taken over the process. Whatever it sends gives a table or a LigoError."""
    good = {"name": "a", "dtype": "F32", "shape": [2], "position": 0, "problem": None}
    wrong: list[Any] = [None, 1, "x", [], {}, True, -1, 1 << 70, 1.5, "\0", "n" * 600, [[]], [-1], [1 << 60], [1] * 9]
    reader = PickledFile.__new__(PickledFile)
    reader.label, reader.size = "model.pt", 100
    tables: list[Any] = [{}, *({"groups": value} for value in wrong)]
    whole = {"path": [], "tensors": [good], "others": [], "shared": []}
    tables += [{"groups": [{**whole, key: value}]} for key in whole for value in wrong]
    tables += [{"groups": [{**whole, "tensors": [{**good, key: value}]}]} for key in good for value in wrong]
    tables += [{"groups": [{**whole, "tensors": [{**good, "shape": [1 << 30]}]}]}]
    refused = 0
    for table in tables:
        try:
            reader._table(table)
        except LigoError as error:
            refused += error.exit_code == 3
    assert refused > len(tables) // 2

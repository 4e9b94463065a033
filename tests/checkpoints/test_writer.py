"""Laws of the writer: files that the format's own reader loads, the same bytes whatever stopped the run, flat memory."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import faults

from ligo_convert.checkpoints.tensors import DTYPE_BYTES, TensorSpec
from ligo_convert.checkpoints.writer import (
    INDEX,
    Writer,
    plan_shards,
    rehash,
    safetensors_bytes,
    safetensors_pieces,
)
from ligo_convert.errors import MachineError, OutputBusy, VerificationError
from ligo_convert.io import files as fs
from ligo_convert.io.files import write_file
from ligo_convert.io.staging import JOURNAL, Staging, clear_leftovers

KEY = "key"
SPECS = [
    TensorSpec(name="odd", dtype="U8", shape=(3,)),  # what follows is not aligned to its size
    TensorSpec(name="wte.weight", dtype="F32", shape=(7, 5)),
    TensorSpec(name="empty", dtype="F16", shape=(0, 4)),
    TensorSpec(name="scalar", dtype="I64", shape=()),
    TensorSpec(name="h.0.weight", dtype="BF16", shape=(3, 11)),
    TensorSpec(name="h.0.gr\u00f6\u00dfe", dtype="F64", shape=(2, 2, 2)),
    TensorSpec(name="mask", dtype="BOOL", shape=(5,)),
    TensorSpec(name="last.empty", dtype="F32", shape=(0,)),
]
SMALL = 100  # bytes a shard: several shards


def data_of(spec: TensorSpec) -> bytes:
    """Fixed bytes for a tensor, valid for its dtype."""
    stream = hashlib.shake_256(spec.name.encode()).digest(spec.nbytes)
    if spec.dtype == "BOOL":
        return bytes(byte & 1 for byte in stream)
    if spec.dtype in ("F32", "F64", "F16", "BF16"):
        # Clear the sign and some of the exponent of every element: finite values.
        width = DTYPE_BYTES[spec.dtype]
        return bytes(byte & 0x3B if at % width == width - 1 else byte for at, byte in enumerate(stream))
    return stream


def write(out: Path, specs: Sequence[TensorSpec] = SPECS, size: int = SMALL) -> tuple[dict[str, str], frozenset[str]]:
    """A whole run; returns the digests, and what an earlier run had finished."""
    with Staging.open(out, key=KEY) as staging:
        with Writer(staging, plan_shards(specs, size)) as writer:
            for spec in writer.pending():
                writer.put(spec.name, data_of(spec))
            digests = writer.close()
        staging.commit()
    return digests, writer.done


def content(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole") / "OUT"
    write(out)
    return content(out)


# --- the plan ---------------------------------------------------------------------------------------------------------

specs_strategy = st.lists(
    st.builds(
        lambda dtype, shape: (dtype, tuple(shape)),
        st.sampled_from(sorted(DTYPE_BYTES)),
        st.lists(st.integers(0, 6), max_size=3),
    ),
    min_size=1,
    max_size=12,
).map(lambda rows: [TensorSpec(name=f"t{i}", dtype=dtype, shape=shape) for i, (dtype, shape) in enumerate(rows)])


@given(specs_strategy, st.integers(1, 2000))
def test_a_plan_keeps_the_order_and_fills_every_shard(specs: list[TensorSpec], limit: int) -> None:
    plan = plan_shards(specs, limit)
    assert [spec for shard in plan.shards for spec in shard.tensors] == specs
    assert plan.total_size == sum(spec.nbytes for spec in specs)
    assert plan.nbytes == sum(shard.nbytes for shard in plan.shards)
    for shard, following in zip(plan.shards, [*plan.shards[1:], None], strict=True):
        size = sum(spec.nbytes for spec in shard.tensors)
        assert shard.tensors
        assert size <= limit or len([spec for spec in shard.tensors if spec.nbytes]) == 1
        if following is not None:
            assert size + following.tensors[0].nbytes > limit


@given(specs_strategy)
def test_a_header_is_compact_contiguous_and_padded(specs: list[TensorSpec]) -> None:
    (shard,) = plan_shards(specs, 10**9).shards
    (length,) = struct.unpack("<Q", shard.header[:8])
    text = shard.header[8:].decode()
    assert length == len(shard.header) - 8
    assert length % 8 == 0
    assert text.startswith('{"__metadata__":{"format":"pt"},"t0":{"dtype":')
    assert len(text) - len(text.rstrip(" ")) < 8
    assert text.rstrip(" ") == json.dumps(json.loads(text), separators=(",", ":"))
    ends = [entry["data_offsets"] for name, entry in json.loads(text).items() if name != "__metadata__"]
    assert [start for start, _ in ends] == [0] + [end for _, end in ends[:-1]]
    assert shard.nbytes == len(shard.header) + ends[-1][1]


def test_a_tensor_larger_than_the_limit_has_a_shard_for_itself() -> None:
    sizes = [40, 300, 40, 60, 1]
    plan = plan_shards([TensorSpec(name=f"t{i}", dtype="U8", shape=(size,)) for i, size in enumerate(sizes)], 100)
    assert [[spec.nbytes for spec in shard.tensors] for shard in plan.shards] == [[40], [300], [40, 60], [1]]
    assert plan.shards[0].filename == "model-00001-of-00004.safetensors"
    assert plan.shards[3].filename == "model-00004-of-00004.safetensors"


def test_the_index_is_the_one_loaders_know() -> None:
    plan = plan_shards(SPECS, SMALL)
    index = json.loads(plan.index() or b"")
    assert index["metadata"] == {
        "total_parameters": sum(spec.elements for spec in SPECS),
        "total_size": sum(spec.nbytes for spec in SPECS),
    }
    assert list(index) == ["metadata", "weight_map"]
    assert list(index["weight_map"]) == sorted(spec.name for spec in SPECS)
    assert set(index["weight_map"].values()) == {shard.filename for shard in plan.shards}


def test_one_file_has_the_plain_name_and_no_index() -> None:
    plan = plan_shards(SPECS, 10**9)
    assert [shard.filename for shard in plan.shards] == ["model.safetensors"]
    assert plan.index() is None


def test_plans_that_are_our_mistake_are_refused() -> None:
    with pytest.raises(AssertionError, match="1 tensors have the name of another one"):
        plan_shards([*SPECS, SPECS[0]], 10)
    with pytest.raises(AssertionError, match="without tensors"):
        plan_shards([], 10)
    with pytest.raises(AssertionError, match="two tensors named '__metadata__'"):
        plan_shards([TensorSpec(name="__metadata__", dtype="U8", shape=(1,))], 10)


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, SMALL, 10**9])
def test_the_formats_own_reader_finds_every_tensor(tmp_path: Path, size: int) -> None:
    import torch
    from safetensors import safe_open

    write(tmp_path / "OUT", size=size)
    found: dict[str, object] = {}
    files = sorted((tmp_path / "OUT").glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118 -- no mapping
                tensor = file.get_tensor(name)
                found[name] = (tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    assert found == {spec.name: (spec.shape, data_of(spec)) for spec in SPECS}
    if len(files) > 1:
        weight_map = json.loads((tmp_path / "OUT" / INDEX).read_bytes())["weight_map"]
        for name, filename in weight_map.items():
            with safe_open(tmp_path / "OUT" / filename, framework="pt") as file:
                assert name in file.keys()  # noqa: SIM118


def test_bytes_are_those_of_the_formats_own_writer(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    specs = [TensorSpec(name=name, dtype="F32", shape=(3, 5)) for name in ("a", "b", "c.d")]
    write(tmp_path / "OUT", specs, 10**9)
    tensors = {spec.name: torch.frombuffer(bytearray(data_of(spec)), dtype=torch.float32).view(3, 5) for spec in specs}
    assert content(tmp_path / "OUT") == {"model.safetensors": save(tensors, metadata={"format": "pt"})}


@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_transformers_loads_what_was_written(tmp_path: Path, size: str) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=64, n_positions=32)
    model = GPT2LMHeadModel(config)
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    specs = [TensorSpec(name=name, dtype="F32", shape=tuple(value.shape)) for name, value in state.items()]
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        config.save_pretrained(staging.path)
        with Writer(staging, plan_shards(specs, {"1GB": 10**9, "20KB": 20_000}[size])) as writer:
            for name, value in state.items():
                writer.put(name, value.numpy())
        staging.commit()
    loaded, report = GPT2LMHeadModel.from_pretrained(tmp_path / "OUT", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in state.items())


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    counted: list[int] = []
    plan = plan_shards(SPECS, SMALL)
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        with Writer(staging, plan, on_bytes=counted.append) as writer:
            for spec in writer.pending():
                writer.put(spec.name, data_of(spec))
        digests = writer.close()
        assert sum(counted) == plan.nbytes
        journal = [json.loads(line) for line in staging.read_lines(JOURNAL)]
        staging.commit()
    assert list(digests) == [shard.filename for shard in plan.shards]
    assert journal.pop()["file"] == INDEX
    for shard, entry in zip(plan.shards, journal, strict=True):
        data = (tmp_path / "OUT" / shard.filename).read_bytes()
        assert entry == {"file": shard.filename, "sha256": hashlib.sha256(data).hexdigest(), "nbytes": len(data)}
        assert digests[shard.filename] == entry["sha256"] == rehash(tmp_path / "OUT" / shard.filename)
        assert shard.nbytes == len(data)


@pytest.mark.parametrize(
    "array",
    [np.arange(12, dtype=np.float16).reshape(3, 4), np.ones((3, 2, 4), bool), np.arange(6, dtype="<i4").reshape(2, 3)],
    ids=str,
)
def test_any_contiguous_buffer_of_the_right_size_will_do(tmp_path: Path, array: np.ndarray) -> None:
    spec = TensorSpec(name="t", dtype="U8", shape=(array.nbytes,))
    with Staging.open(tmp_path / "OUT", key=KEY) as staging, Writer(staging, plan_shards([spec], 10**9)) as writer:
        writer.put("t", array)
        writer.close()
        assert (staging.path / "model.safetensors").read_bytes().endswith(array.tobytes())


# --- our own mistakes -------------------------------------------------------------------------------------------------


def test_a_wrong_put_is_refused(tmp_path: Path) -> None:
    specs = [TensorSpec(name=name, dtype="U8", shape=(4,)) for name in "ab"]
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        writer = Writer(staging, plan_shards(specs, 100))
        with pytest.raises(AssertionError, match="b was put where a is next"):
            writer.put("b", bytes(4))
        for size in (3, 5, 0):
            with pytest.raises(AssertionError, match=r"a: U8 \(4,\) is 4 bytes, not"):
                writer.put("a", bytes(size))
        writer.put("a", bytes(4))
        with pytest.raises(AssertionError, match="a was put where b is next"):
            writer.put("a", bytes(4))
        writer.put("b", bytes(4))
        with pytest.raises(AssertionError, match="every tensor has been written"):
            writer.put("c", bytes(4))
        assert writer.close() == writer.close()
        with pytest.raises(AssertionError, match="closed"):
            writer.put("a", bytes(4))


def test_a_writer_with_tensors_missing_does_not_close(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        writer = Writer(staging, plan_shards(SPECS, 10**9))
        writer.put("odd", bytes(3))
        with pytest.raises(AssertionError, match=r"7 tensors were never put: wte.weight, empty, scalar"):
            writer.close()
        assert staging.files() == []


def test_an_exception_between_two_tensors_leaves_no_file_that_looks_whole(tmp_path: Path) -> None:
    def fail(staging: Staging) -> None:
        with Writer(staging, plan_shards(SPECS, 10**9)) as writer:
            writer.put("odd", bytes(3))
            raise ZeroDivisionError

    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        with pytest.raises(ZeroDivisionError):
            fail(staging)
        assert staging.files() == []
        assert list((staging.work / "new").iterdir()) == []


def test_a_failed_writer_takes_no_more(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "OUT", key=KEY) as staging:
        writer = Writer(staging, plan_shards(SPECS, 10**9))
        with faults.inject(2, number=errno.EIO), pytest.raises(MachineError, match=r"model\.safetensors"):
            writer.put("odd", bytes(3))
        with pytest.raises(AssertionError, match="has failed"):
            writer.put("odd", bytes(3))
        with pytest.raises(AssertionError, match="has failed"):
            writer.close()
        assert staging.files() == []


# --- stops ------------------------------------------------------------------------------------------------------------


def absent_or(whole: dict[str, bytes], out: Path) -> bool:
    if not os.path.lexists(out):
        return False
    assert content(out) == whole
    return True


def finish(whole: dict[str, bytes], out: Path) -> None:
    if absent_or(whole, out):
        clear_leftovers(out)
    else:
        write(out)
    assert absent_or(whole, out)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.slow
def test_a_run_killed_at_any_effect_comes_to_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    kills = 0
    while True:
        out = tmp_path / str(kills) / "OUT"

        def killed(out: Path = out, at: int = kills) -> None:
            with faults.inject(at, number=None):
                write(out)

        status = faults.in_child(killed)
        finished = absent_or(whole, out)
        if status == 0:
            assert finished
            break
        assert status == -signal.SIGKILL
        finish(whole, out)
        kills += 1
    assert kills > 80


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "sticky"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_any_failing_effect_is_told_and_the_next_run_comes_to_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], number: int, sticky: bool
) -> None:
    for at in range(1000):
        out = tmp_path / str(at) / "OUT"
        with faults.inject(at, number=number, sticky=sticky) as count:
            told = None
            try:
                write(out)
            except MachineError as error:
                told = error
        if count[0] <= at:
            assert absent_or(whole, out)
            return
        assert told is not None
        absent_or(whole, out)
        finish(whole, out)
        shutil.rmtree(out.parent)
    pytest.fail("the run never came to its end")


def stop_after(out: Path, shards: int) -> list[str]:
    """A run that stops when `shards` files are whole; returns their names."""
    plan = plan_shards(SPECS, SMALL)
    with Staging.open(out, key=KEY) as staging:
        writer = Writer(staging, plan)
        for spec in (spec for shard in plan.shards[:shards] for spec in shard.tensors):
            writer.put(spec.name, data_of(spec))
        if shards < len(plan.shards):
            first = plan.shards[shards].tensors[0]
            writer.put(first.name, data_of(first))
    return [shard.filename for shard in plan.shards[:shards]]


def test_whole_shards_are_not_written_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "OUT"
    names = stop_after(out, 2)
    with Staging.open(out, key=KEY) as staging:
        writer = Writer(staging, plan_shards(SPECS, SMALL))
        assert writer.done == set(names)
        plan = plan_shards(SPECS, SMALL)
        assert list(writer.pending()) == [spec for shard in plan.shards[2:] for spec in shard.tensors]
    written: list[tuple[str, Path, tuple[object, ...]]] = []
    with faults.record(written):
        digests, done = write(out)
    assert done == set(names)
    assert not [path for effect, path, _ in written if effect == "write" and path.name in names]
    assert content(out) == whole
    assert digests == {name: hashlib.sha256(data).hexdigest() for name, data in whole.items() if name != INDEX}


def damage_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        damage_byte,
        lambda path: path.unlink(),
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
    ],
    ids=["flipped", "gone", "short", "empty", "long"],
)
def test_a_damaged_shard_is_written_again(
    tmp_path: Path, whole: dict[str, bytes], damage: Callable[[Path], object]
) -> None:
    out = tmp_path / "OUT"
    first, second = stop_after(out, 2)
    damage(tmp_path / ".OUT.ligo-partial" / first)
    _, done = write(out)
    assert done == {second}
    assert content(out) == whole


def test_a_file_that_agrees_with_the_journal_but_not_with_the_plan_is_written_again(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "OUT"
    (name,) = stop_after(out, 1)
    path = tmp_path / ".OUT.ligo-partial" / name
    damage_byte(path)
    data = path.read_bytes().replace(b'"odd"', b'"eve"')
    path.write_bytes(data)
    entry = {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "nbytes": len(data)}
    (tmp_path / ".OUT.ligo-partial" / JOURNAL).write_text(json.dumps(entry) + "\n")
    assert write(out)[1] == frozenset()
    assert content(out) == whole


@pytest.mark.parametrize(
    "lines",
    [
        b"{",
        b"\xff\xfe\n",
        b"[]\n3\nnull\n",
        b'{"file": "../x", "sha256": 1, "nbytes": 2}\n',
        b'{"file": []}\n',
        b"\0" * 99,
    ],
)
def test_a_damaged_journal_line_vouches_for_nothing_and_spoils_nothing(
    tmp_path: Path, whole: dict[str, bytes], lines: bytes
) -> None:
    out = tmp_path / "OUT"
    first, _ = stop_after(out, 2)
    journal = tmp_path / ".OUT.ligo-partial" / JOURNAL
    good = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(good[0] + lines)
    _, done = write(out)
    assert done == {first}
    assert content(out) == whole


def test_weight_files_of_another_plan_do_not_stay(tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    stop_after(out, 2)
    write(out, size=10**9)
    assert set(content(out)) == {"model.safetensors"}


# --- the machine ------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True, timeout=60).returncode
    ):
        pytest.skip("a full disk is made by a mount of one's own, which this system does not allow")
    script = """
import sys
from pathlib import Path
from ligo_convert.errors import MachineError
from ligo_convert.io.staging import Staging
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.checkpoints.writer import Writer, plan_shards
out = Path(sys.argv[1]) / "OUT"
specs = [TensorSpec(name=f"t{i}", dtype="U8", shape=(700_000,)) for i in range(6)]
def run():
    with Staging.open(out, key="k") as staging:
        with Writer(staging, plan_shards(specs, 10**6)) as writer:
            print(sorted(writer.done))
            for spec in writer.pending():
                writer.put(spec.name, spec.name.encode() * 350_000)
        staging.commit()
ballast = out.with_name("ballast")
ballast.write_bytes(bytes(2_000_000))
try:
    run()
except MachineError as error:
    print(error, error.exit_code, out.exists(), sep="|")
ballast.unlink()
run()
print(sorted(path.name for path in out.iterdir()), list(out.parent.iterdir()) == [out])
"""
    mount = 'mount -t tmpfs -o size=5m none "$1"; exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-euc", mount, "sh", str(tmp_path), sys.executable, script]
    environment = os.environ | {"PYTHONPATH": str(Path(fs.__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = [f"model-{number:05}-of-00006.safetensors" for number in range(1, 7)]
    assert lines[0] == "[]"
    assert f"{names[4]}: cannot write: the disk is full" in done.stdout or f"{names[3]}: cannot write" in done.stdout
    assert "|5|False" in done.stdout
    assert lines[-2] in (str(names[:3]), str(names[:4]))
    assert lines[-1] == f"{[*names, INDEX]} True"


def test_a_limit_on_file_sizes_ends_the_run(tmp_path: Path) -> None:
    specs = [TensorSpec(name=f"t{i}", dtype="U8", shape=(size,)) for i, size in enumerate((100, 100_000))]
    plan = plan_shards(specs, 1000)

    def attempt() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with Staging.open(tmp_path / "OUT", key=KEY) as staging:
            writer = Writer(staging, plan)
            writer.put("t0", bytes(100))
            with pytest.raises(MachineError, match="ulimit -f"):
                writer.put("t1", bytes(100_000))
            assert staging.files() == [plan.shards[0].filename]

    assert faults.in_child(attempt) == 0
    assert not (tmp_path / "OUT").exists()


def test_memory_stays_flat(tmp_path: Path) -> None:
    specs = [TensorSpec(name=f"t{i}", dtype="F32", shape=(4, 1024, 1024)) for i in range(4)]  # 64 MiB in all
    tensor = bytearray(specs[0].nbytes)
    with Staging.open(tmp_path / "OUT", key=KEY) as staging, Writer(staging, plan_shards(specs, 40 * 10**6)) as writer:
        tracemalloc.start()
        try:
            for spec in specs:
                writer.put(spec.name, tensor)
            digests = writer.close()
            assert tracemalloc.get_traced_memory()[1] < 2**20
            assert {name: rehash(staging.path / name) for name in digests} == digests
            assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
        finally:
            tracemalloc.stop()


# --- small whole files ------------------------------------------------------------------------------------------------


def test_small_files_hold_their_metadata_in_order_and_the_reader_agrees(tmp_path: Path) -> None:
    from safetensors import safe_open

    tensors = [(spec, data_of(spec)) for spec in SPECS]
    data = safetensors_bytes(tensors, {"zeta": "1", "alpha": "2 \u00e9", "keying": "source"})
    assert data == safetensors_bytes(tensors, {"keying": "source", "alpha": "2 \u00e9", "zeta": "1"})
    assert data[8:].startswith('{"__metadata__":{"alpha":"2 \u00e9","keying":"source","zeta":"1"},"odd"'.encode())
    assert safetensors_bytes([], {}).endswith(b'{"__metadata__":{}}     ')
    write_file(tmp_path / "operator.safetensors", safetensors_pieces(tensors, {"keying": "source"}))
    with safe_open(tmp_path / "operator.safetensors", framework="pt") as file:
        assert file.metadata() == {"keying": "source"}
        assert sorted(file.keys()) == sorted(spec.name for spec in SPECS)
        assert file.get_tensor("wte.weight").numpy().tobytes() == data_of(SPECS[1])


def test_small_files_check_sizes() -> None:
    with pytest.raises(AssertionError, match=r"odd: U8 \(3,\) is 3 bytes, not 2"):
        safetensors_pieces([(SPECS[0], b"12")], {})
    with pytest.raises(AssertionError, match="two tensors named 'odd'"):
        safetensors_bytes([(SPECS[0], b"123"), (SPECS[0], b"123")], {})


# --- digests ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=100))
def test_rehash_is_sha256(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "rehashed"
    path.write_bytes(data)
    assert rehash(path) == hashlib.sha256(data).hexdigest()


def test_rehash_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="missing"):
        rehash(tmp_path / "gone")
    with pytest.raises(VerificationError, match="not a regular file"):
        rehash(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(VerificationError, match="not a regular file"):
        rehash(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="Not a directory"):
        rehash(tmp_path / "file" / "below")


def test_a_run_over_a_finished_output_is_busy(tmp_path: Path) -> None:
    write(tmp_path / "OUT")
    before = content(tmp_path / "OUT")
    with pytest.raises(OutputBusy, match="is not empty"):
        write(tmp_path / "OUT")
    assert content(tmp_path / "OUT") == before

"""Thousands of files that are nearly right: every reader of our own files answers each with its own error, or reads it."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cached import restored
from support.mutations import mutated, mutated_bytes, strange_json
from support.recorded import RecordedProgress
from support.records import OUTPUTS, RECORD
from support.source_models import write_case
from support.staged import FILES, content
from support.tiny import TARGETS, config_of, start_of

from ligo_convert.checkpoints.writer import safetensors_bytes
from ligo_convert.cli.inspect import inspect_path
from ligo_convert.conversion.apply import apply_operator
from ligo_convert.conversion.step_results import keep_result, staged_results
from ligo_convert.errors import LigoError, OutputBusy, SourceError, VerificationError
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.operator_file import describe, read_operator, stored_arrays
from ligo_convert.io.cache import ENTRY, ResultCache
from ligo_convert.io.leases import Leases
from ligo_convert.io.sealed import seal, unseal
from ligo_convert.io.staging import JOURNAL, Staging
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.outputs.metrics import is_metrics
from ligo_convert.outputs.provenance import check_subjects, metrics_of, read_statement, statement, statement_bytes
from ligo_convert.training.state import FolderState

KEY = "a" * 64


def tried(
    count: int, make: Callable[[random.Random], bytes], read: Callable[[bytes], object], *expected: type[LigoError]
) -> int:
    """Read `count` files. Only the expected errors may come, each with a message; returns how many files were read."""
    draw, answers = random.Random(count), Counter[str]()
    for _ in range(count):
        data = make(draw)
        try:
            read(data)
        except expected as error:
            answers["silent" if not str(error) else "refused"] += 1
        else:
            answers["read"] += 1
    assert not answers["silent"]
    assert answers["read"] < count
    return answers["read"]


# --- operators --------------------------------------------------------------------------------------------------------

OPERATORS = (("gpt2", "both", "lemon", "identity", "shared"), ("bert", "even", "hyperclone", "stack", "source"))


def operator_maker(name: str, kind: str, width: str, depth: str, keying: str) -> Callable[[random.Random], bytes]:
    """Files near that of an operator: its JSON, its arrays or its bytes changed."""
    plan = start_of(name, config_of(name), TARGETS[name][kind], width=width, depth=depth, keying=keying)
    operator = initial_operator(plan)
    metadata, arrays = describe(operator), stored_arrays(operator)
    data, whole = json.loads(metadata["ligo"]), safetensors_bytes(arrays, metadata)

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.2:
            return mutated_bytes(whole, draw)
        changed: list[Any] = list(arrays)
        if draw.random() < 0.3:
            at = draw.randrange(len(changed))
            spec, buffer = changed[at]
            changed[at] = (spec, mutated_bytes(bytes(buffer), draw)[: spec.nbytes].ljust(spec.nbytes, b"\xff"))
        text = strange_json(data, draw).encode("utf-8", "backslashreplace").decode()
        return safetensors_bytes(changed, {"format": "pt", "ligo": text})

    return make


@pytest.mark.parametrize("case", OPERATORS, ids=lambda case: case[0])
@pytest.mark.parametrize("count", [250, pytest.param(1500, marks=pytest.mark.slow)])
def test_operators(case: tuple[str, ...], count: int, tmp_path: Path) -> None:
    file = tmp_path / "operator.safetensors"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        found = read_operator(file)
        json.dumps(inspect_path(file))
        assert describe(found)["format"] == "pt"

    assert tried(count, operator_maker(*case), read, SourceError) > count // 20


@pytest.mark.slow
def test_an_operator_that_is_read_can_be_applied_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading in the library, a large part of the time, is left out."""
    monkeypatch.setattr("ligo_convert.conversion.write.check_loads", lambda *_, **__: {})
    source, make = write_case(tmp_path / "source", "gpt2"), operator_maker(*OPERATORS[0])
    file = tmp_path / "operator.safetensors"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        read_operator(file)
        out = tmp_path / hashlib.sha256(data).hexdigest()
        apply_operator(file, str(source), out)

    tried(250, make, read, SourceError, VerificationError)


@pytest.mark.parametrize("config", ["source", "target"])
def test_an_operator_does_not_bring_code_into_a_config(config: str, tmp_path: Path) -> None:
    operator = initial_operator(start_of("gpt2", config_of("gpt2"), TARGETS["gpt2"]["even"], width="lemon"))
    data = json.loads(describe(operator)["ligo"])
    file = tmp_path / "operator.safetensors"

    def write(key: str, value: object) -> None:
        text = json.dumps({**data, config: {**data[config], key: value}})
        file.write_bytes(safetensors_bytes(stored_arrays(operator), {"format": "pt", "ligo": text}))

    write("auto_map", {"AutoModelForCausalLM": "evil--code.Model"})
    assert "auto_map" not in json.dumps([read_operator(file).source, read_operator(file).target])
    write("trust_remote_code", True)
    with pytest.raises(SourceError, match="run foreign code"):
        read_operator(file)


@pytest.mark.parametrize("epsilon", [0, -1e-5, 1e300, 1e-300, True, "1e-5", None])
def test_an_operator_whose_epsilon_is_none_is_refused(epsilon: object, tmp_path: Path) -> None:
    """`apply` multiplies the source's epsilon by the quotient of the operator's two."""
    operator = initial_operator(start_of("gpt2", config_of("gpt2"), TARGETS["gpt2"]["even"], width="lemon"))
    data = json.loads(describe(operator)["ligo"])
    data["source"]["layer_norm_epsilon"] = epsilon
    file = tmp_path / "operator.safetensors"
    file.write_bytes(safetensors_bytes(stored_arrays(operator), {"format": "pt", "ligo": json.dumps(data)}))
    with pytest.raises(SourceError, match="epsilon"):
        read_operator(file)


# --- provenance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1500, pytest.param(6000, marks=pytest.mark.slow)])
def test_provenance(count: int) -> None:
    whole, data = statement_bytes(RECORD, OUTPUTS), statement(RECORD, OUTPUTS)

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.2:
            return mutated_bytes(whole, draw)
        return strange_json(data, draw).encode("utf-8", "surrogatepass")

    def read(data: bytes) -> None:
        found = read_statement(data, label="provenance.json")
        is_metrics(metrics_of(found))
        check_subjects(found, OUTPUTS)

    assert tried(count, make, read, VerificationError) > count // 20


def test_only_the_figures_of_a_run_are_figures_of_a_run() -> None:
    done = {"files": {"carried": [], "rewritten": [], "left_behind": [{"path": "x", "reason": "y"}]}}
    metrics = {**RECORD.metrics, **done}
    assert is_metrics(metrics)
    refused = 0
    draw = random.Random(0)
    for _ in range(500):
        refused += not is_metrics(mutated(metrics, draw) or {}) if isinstance(metrics, dict) else 0
    assert refused > 250


# --- state and cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1000, pytest.param(6000, marks=pytest.mark.slow)])
def test_sealed_files(count: int) -> None:
    """One changed bit, or a digest that is not that of the content, is never read."""
    value = {"kind": "fit", "key": "k", "files": {"a/b": "0" * 64}, "figures": [1, 2.5, None, True]}
    whole = seal("test/1", value)

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.5:
            return mutated_bytes(whole, draw)
        return strange_json(json.loads(whole), draw).encode("utf-8", "surrogatepass")

    def read(data: bytes) -> None:
        assert unseal("test/1", data) == value

    tried(count, make, read, VerificationError)


def mutated_or_forged(whole: bytes, value: Any, kind: str, draw: random.Random) -> bytes:
    """A sealed file with damage; or with other content and the digest that goes with it."""
    if draw.random() < 0.3:
        return mutated_bytes(whole, draw)
    try:
        forged = mutated(value, draw)
        return json.dumps(
            {"kind": kind, "sha256": sha256_of({"kind": kind, "value": forged}), "value": forged}
        ).encode()
    except UnicodeEncodeError:
        return b""


def test_entries_of_the_cache(tmp_path: Path) -> None:
    """Whatever the file of an entry says, its files are taken as stored, or the entry is discarded and said."""
    progress = RecordedProgress()
    cache = ResultCache(tmp_path, progress)
    files = {"a/b": b"1", "c": b"2"}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    value = {"kind": "fit", "key": "key", "files": digests}
    draw, discarded = random.Random(0), 0
    for _ in range(400):
        with cache.lock_entry("fit", "key") as entry:
            if entry.digests() is None:
                entry.store({**files})
            path = entry.path / ENTRY
            path.write_bytes(mutated_or_forged(path.read_bytes(), value, "ligo-cache-entry/1", draw))
        with cache.lock_entry("fit", "key") as entry:
            taken = restored(entry)
        if taken is None:
            discarded += 1
        else:
            assert all(files[name] == data for name, data in taken.items())
    assert discarded > 200
    assert len(progress.warned) == discarded


def test_records_of_a_batch(tmp_path: Path) -> None:
    warned: list[str] = []
    record = {"state": "done", "key": KEY, "code": 0, "why": None, "report": {"out": "x"}, "seconds": 1.0, "sums": KEY}
    value = {"name": "entry", "record": record}
    draw = random.Random(0)
    with Leases(tmp_path, warn=lambda name, text: warned.append(text)) as leases:
        for _ in range(300):
            data = mutated_or_forged(seal("ligo-work-record/1", value), value, "ligo-work-record/1", draw)
            (tmp_path / "done" / "entry.json").write_bytes(data)
            found = leases.read_record("entry")
            assert found is None or isinstance(found, dict)
    assert len(warned) > 100


def test_training_states(tmp_path: Path) -> None:
    warned: list[str] = []
    state = FolderState(tmp_path / "state.safetensors", owner="me", warn=warned.append)
    arrays = {"parameter/a": np.arange(6, dtype=np.float32).reshape(2, 3), "parameter/b": np.zeros(4)}
    state.save(arrays, json.dumps({"step": 3}))
    whole = state.path.read_bytes()
    draw = random.Random(0)
    read = 0
    for _ in range(600):
        data = mutated_bytes(whole, draw)
        state.path.write_bytes(data)
        found = state.load()
        if found is not None:
            read += 1
            assert json.loads(found[1]) == {"step": 3}
            assert all(np.array_equal(found[0][name], arrays[name]) for name in arrays)
        else:
            assert not state.path.exists()
    assert read + len(warned) == 600
    assert read < 60
    FolderState(state.path, owner="other", warn=warned.append).save(arrays, "{}")
    assert state.load() is None
    assert "the state of another run" in warned[-1]


def test_staging_directories(tmp_path: Path) -> None:
    """The journal, the key and the results: what is taken over is what was staged; the rest is discarded."""
    draw, out = random.Random(0), tmp_path / "OUT"
    for number in range(250):
        with Staging.open(out, key=KEY) as staging:
            for name, data in FILES.items():
                staging.write_bytes(name, data)
            keep_result(staging, "one", {"a": 1}, files=["config.json"])
            keep_result(staging, "two", [2], files=["empty"])
        damaged = staging.path / draw.choice((JOURNAL, ".work/key", ".work/results.json", "config.json", ".work/run"))
        damaged.write_bytes(mutated_bytes(damaged.read_bytes(), draw))
        if number % 5 == 0:
            damaged.write_text(strange_json({"file": "config.json", "sha256": KEY, "nbytes": 1}, draw))
        with Staging.open(out, key=KEY) as staging:
            assert all(FILES[name] == data for name, data in content(staging.path).items() if not name.startswith("."))
            results = staged_results(staging)
            assert all(
                results[name] == value for name, value in {"one": {"a": 1}, "two": [2]}.items() if name in results
            )
            staging.discard()


def test_a_key_of_other_work_is_no_damage(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "OUT", key="b" * 64) as staging:
        staging.write_bytes("config.json", b"theirs")
    with pytest.raises(OutputBusy, match="unfinished work of another recipe"):
        Staging.open(tmp_path / "OUT", key=KEY)

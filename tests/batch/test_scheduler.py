"""Batches: every entry runs once on any engine, a failure stays alone, and a stopped batch continues."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.processes import finish
from support.source_models import write_checkpoint, write_text
from support.tiny import CASES, config_of
from support.zoos import CHAIN, POISON, Zoo, cli, source, until, weights, zoo

from ligo_convert.batch.engine import Event, ResourceRequest
from ligo_convert.batch.engines import ENGINES
from ligo_convert.batch.job import failure
from ligo_convert.batch.local import InProcessEngine
from ligo_convert.batch.manifest import load_manifest
from ligo_convert.batch.scheduler import Batch, Watcher, run_batch
from ligo_convert.conversion.plan import Plan, plan_after, plan_recipe
from ligo_convert.errors import MachineError
from ligo_convert.io.leases import Leases
from ligo_convert.recipes.recipe import Recipe, load_recipe

__all__ = ["source", "zoo"]


def do(manifest: Path, **options: Any) -> Batch:
    return run_batch(load_manifest(manifest), **options)


def states(batch: Batch) -> dict[str, str]:
    return {name: status.state for name, status in batch.statuses.items()}


# Save the fit after every step, not every ten seconds, so that a stopped run has something to continue.
SAVING_OFTEN = "import ligo_convert.training.loop\nligo_convert.training.loop.SAVE_EVERY_SECONDS = -1.0"


def left_of(session: int) -> list[int]:
    """Return the processes of a session that are alive."""
    alive = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = place.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended meanwhile
            continue
        if int(of) == session and state not in "ZX":
            alive.append(int(place.parent.name))
    return alive


# --- results of entries ------------------------------------------------------------------------------------------


def test_a_failed_entry_affects_only_its_dependents(zoo: Zoo, source: Path) -> None:
    manifest = zoo(
        *CHAIN,
        POISON,
        {"name": "after-poison", "recipe": "deeper.yaml", "source": {"from": "poisoned"}},
        {"name": "no-recipe", "recipe": "nowhere.yaml"},
        {"name": "sibling", "operator": {"from": "first"}, "source": str(source)},
    )
    batch = do(manifest)
    assert states(batch) == {
        "first": "done",
        "second": "done",
        "poisoned": "failed",
        "after-poison": "skipped",
        "no-recipe": "failed",
        "sibling": "done",
    }
    # The first failed entry in the manifest's order gives the exit code.
    assert batch.exit_code == 3
    report = batch.json()
    assert report["counts"] == {"done": 3, "failed": 2, "skipped": 1}
    assert "poisoned" in report["entries"]["after-poison"]["why"]
    assert report["entries"]["no-recipe"]["code"] == 2
    assert report["entries"]["second"]["parameters"]["source"] == report["entries"]["first"]["parameters"]["target"]
    assert weights(Path("zoo/sibling")) == weights(Path("zoo/first"))
    assert not Path("zoo/poisoned").exists()


def test_only_failed_entries_run_again(zoo: Zoo, source: Path) -> None:
    manifest = zoo(*CHAIN, {**POISON, "source": "./later"})
    assert do(manifest).exit_code == 3
    Path("later").symlink_to(source)
    changes: list[tuple[str, str]] = []
    watcher = Watcher(on_change=lambda name, status: changes.append((name, status.state)))
    batch = do(manifest, watcher=watcher)
    assert set(states(batch).values()) == {"done"}
    assert {name for name, state in changes if state == "running"} == {"poisoned"}
    assert batch.statuses["first"].reused
    # An entry whose output is missing or changed runs again.
    for path in sorted(Path("zoo/second").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Path("zoo/second").rmdir()
    changes.clear()
    assert do(manifest, watcher=watcher).exit_code == 0
    assert {name for name, state in changes if state == "running"} == {"second"}


def test_a_changed_recipe_never_replaces_an_output(zoo: Zoo) -> None:
    manifest = zoo(CHAIN[0])
    assert do(manifest).exit_code == 0
    before = weights(Path("zoo/first"))
    batch = do(zoo({**CHAIN[0], "target": {"n_layer": 6}}))
    assert batch.exit_code == 6
    assert weights(Path("zoo/first")) == before


def test_the_output_of_another_source_is_not_reused(zoo: Zoo) -> None:
    assert do(zoo(*CHAIN)).exit_code == 0
    before = weights(Path("zoo/second"))
    shutil.rmtree("zoo/first")
    batch = do(zoo({**CHAIN[0], "set": {"growth.depth": "interpolate"}}, CHAIN[1]))
    assert states(batch) == {"first": "done", "second": "failed"}
    assert batch.exit_code == 6
    assert "existing outputs are never overwritten" in str(batch.statuses["second"].why)
    assert weights(Path("zoo/second")) == before
    # After the old output is moved away, the entry runs again.
    Path("zoo/second").rename("before")
    batch = do(zoo({**CHAIN[0], "set": {"growth.depth": "interpolate"}}, CHAIN[1]))
    assert (states(batch), batch.statuses["first"].reused) == ({"first": "done", "second": "done"}, True)
    assert weights(Path("zoo/second")) != before


@pytest.mark.parametrize("written", ["source", "operator", "data"])
def test_an_entry_with_changed_input_files_is_not_reused(written: str, zoo: Zoo, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "runs/step-1")
    first = do(
        zoo(CHAIN[0], {"name": "other", "recipe": "deeper.yaml", "set": {"growth.depth": "interpolate"}}, out="o")
    )
    assert first.exit_code == 0
    operators = [(tmp_path / f"o/{name}/ligo/operator.safetensors").read_bytes() for name in ("first", "other")]
    (tmp_path / "stored.safetensors").write_bytes(operators[0])
    manifest = zoo(
        {"name": "step", "recipe": "deeper.yaml", "sources": ["runs/step-*"]},
        {"name": "sibling", "operator": "stored.safetensors", "source": "runs/step-1"},
        {"name": "fitted", "recipe": "fitted.yaml"},
    )
    names = ("step-step-1", "sibling", "fitted")
    assert do(manifest).exit_code == 0
    assert all(status.reused for status in do(manifest).statuses.values())
    if written == "source":
        write_checkpoint(tmp_path / "runs/step-1", seed=1)
    elif written == "operator":
        (tmp_path / "stored.safetensors").write_bytes(operators[1])
    else:
        write_text(tmp_path / "text.txt", seed=1)
    changed = {"source": names[:2], "operator": ("sibling",), "data": ("fitted",)}[written]
    batch = do(manifest)
    assert states(batch) == {name: "failed" if name in changed else "done" for name in names}
    assert {status.code for status in batch.statuses.values()} == {0, 6}


def test_the_first_failure_in_the_manifest_s_order_gives_the_exit_code(zoo: Zoo) -> None:
    batch = do(
        zoo(
            {"name": "late", "recipe": "deeper.yaml", "set": {"growth.width": "nothing"}, "after": ["ok"]},
            {"name": "bad", "recipe": "deeper.yaml", "source": "nowhere/at/all/x"},
            {"name": "ok", "recipe": "deeper.yaml"},
        )
    )
    assert batch.exit_code == 2
    assert list(batch.json()["entries"]) == ["late", "bad", "ok"]
    assert [status.code for status in batch.statuses.values()] == [2, 3, 0]


@pytest.mark.parametrize(
    ("second", "code"),
    [
        ({"recipe": "nope.yaml"}, 2),
        ({"recipe": "deeper.yaml", "set": {"growth.width": "nothing"}}, 2),
        # Three layers: the first entry makes four.
        ({"recipe": "deeper.yaml", "target": {"n_layer": 3}}, 2),
        ({"operator": "text.txt"}, 3),
    ],
)
def test_errors_of_a_waiting_entry_are_found_at_the_start(second: Mapping[str, object], code: int, zoo: Zoo) -> None:
    order: list[tuple[str, str]] = []
    manifest = zoo(
        CHAIN[0],
        {"name": "second", "source": {"from": "first"}, **second},
        {"name": "third", "recipe": "deeper.yaml", "source": {"from": "second"}, "target": {"n_layer": 8}},
    )
    batch = do(manifest, watcher=Watcher(on_change=lambda name, status: order.append((name, status.state))))
    assert order[0] == ("second", "failed")
    assert states(batch) == {"first": "done", "second": "failed", "third": "skipped"}
    assert batch.exit_code == code


def test_the_future_output_of_an_entry_may_be_missing_at_the_start(zoo: Zoo, tmp_path: Path) -> None:
    recipe = json.loads((tmp_path / "deeper.yaml").read_text())
    recipe |= {"source": {"model": "zoo/first/."}, "target": {"config": {"n_layer": 8}}}
    (tmp_path / "second.yaml").write_text(json.dumps(recipe))
    batch = do(zoo(CHAIN[0], {"name": "second", "recipe": "second.yaml", "after": ["first"]}))
    assert set(states(batch).values()) == {"done"}


@pytest.mark.parametrize("name", CASES)
def test_a_chain_is_planned_from_the_future_config_of_its_first_entry(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    recipe = {
        "version": 1,
        "source": {"config": config_of(name)},
        "target": {"config": case.both},
        "growth": {"width": "direct", "depth": "stack"},
        "output": {"dir": str(tmp_path / "out")},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    first = plan_recipe(load_recipe(tmp_path / "recipe.yaml"))
    # Grown to the same size again: the same model, tensor for tensor.
    second = plan_after(load_recipe(tmp_path / "recipe.yaml"), first)
    assert second.specs == first.specs
    assert second.family == first.family
    sizes = second.family.sizes(second.start.source)
    assert sizes == second.family.sizes(second.start.target) == first.family.sizes(first.start.target)


def test_a_bug_in_planning_or_starting_fails_one_entry(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    start = InProcessEngine.start

    def plan(recipe: Recipe, **options: Any) -> Plan:
        if recipe.output.dir.endswith("unplanned"):
            raise KeyError("a bug")
        return plan_recipe(recipe, **options)

    def refuse(self: InProcessEngine, request: ResourceRequest) -> None:
        if request.name == "unstarted":
            raise ValueError("as Ray does of 1.5 processors")
        start(self, request)

    monkeypatch.setattr("ligo_convert.batch.assignments.plan_recipe", plan)
    monkeypatch.setattr(InProcessEngine, "start", refuse)
    batch = do(zoo(*({"name": name, "recipe": "deeper.yaml"} for name in ("unplanned", "unstarted", "first"))))
    assert states(batch) == {"unplanned": "failed", "unstarted": "failed", "first": "done"}
    assert batch.exit_code == 70
    assert "KeyError" in str(batch.statuses["unplanned"].why)
    assert "as Ray does" in str(batch.statuses["unstarted"].why)
    assert not list(Path("zoo.ligo-batch/leases").iterdir())


def test_a_record_that_cannot_be_written_changes_no_result(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, take = Leases.complete, Leases.acquire

    def finish_unless_full(self: Leases, name: str, record: Mapping[str, Any]) -> object:
        if name in ("first", "poisoned"):
            raise MachineError("cannot write: no space left on device")
        return finish(self, name, record)  # type: ignore[func-returns-value]

    def take_unless_full(self: Leases, name: str) -> bool:
        if name == "unleased":
            raise MachineError("cannot write: no space left on device")
        return take(self, name)

    monkeypatch.setattr(Leases, "complete", finish_unless_full)
    monkeypatch.setattr(Leases, "acquire", take_unless_full)
    messages: list[tuple[str, str]] = []
    manifest = zoo(*CHAIN, POISON, {"name": "unleased", "recipe": "deeper.yaml"})
    batch = do(manifest, watcher=Watcher(on_message=lambda name, text: messages.append((name, text))))
    assert states(batch) == {"first": "done", "second": "done", "poisoned": "failed", "unleased": "failed"}
    assert [status.code for status in batch.statuses.values()] == [0, 0, 3, 5]
    assert {name for name, text in messages if "cannot record the result" in text} == {"first", "poisoned", "unleased"}
    assert not list(Path("zoo.ligo-batch/leases").iterdir())


def test_an_entry_whose_lease_was_lost_takes_the_other_process_s_result(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ligo_convert.batch.scheduler.WATCH_SECONDS", 0.0)
    finish, lost = Leases.complete, list[str]()

    def lose_once(self: Leases, name: str, record: Mapping[str, Any]) -> bool:
        finish(self, name, record)  # as the other process, with the same result
        lost.append(name)
        return False

    monkeypatch.setattr(Leases, "complete", lose_once)
    seen: list[str] = []
    batch = do(zoo(CHAIN[0]), watcher=Watcher(on_change=lambda name, status: seen.append(status.state)))
    assert lost == ["first"]
    assert [state for state in seen if state != "running"] == ["elsewhere", "done"]
    assert batch.statuses["first"].reused


def test_a_finished_entry_needs_no_disk_space(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = zoo(CHAIN[0], {"name": "other", "recipe": "deeper.yaml"})
    assert do(manifest).exit_code == 0
    shutil.rmtree("zoo.ligo-batch")
    shutil.rmtree("zoo/other")
    monkeypatch.setattr("ligo_convert.io.files._free", lambda path: 1000)
    batch = do(manifest)
    assert states(batch) == {"first": "done", "other": "failed"}
    assert batch.statuses["first"].report is not None
    assert batch.statuses["first"].report["changed"] is False
    assert "not enough room" in str(batch.statuses["other"].why)


def test_an_engine_elsewhere_is_not_limited_by_this_machine(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tmp_path / "fitted.yaml")
    memory = plan_recipe(recipe).memory
    monkeypatch.setattr("ligo_convert.conversion.plan.physical_memory", lambda: 1000)
    monkeypatch.setattr("ligo_convert.io.files._free", lambda path: 1000)
    with pytest.raises(MachineError, match="more memory than this machine has"):
        plan_recipe(recipe)
    started: list[ResourceRequest] = []

    class Far(InProcessEngine):
        is_local = False

        def start(self, request: ResourceRequest) -> None:
            started.append(request)
            self._ended.append(Event(name=request.name, kind="ended", value=failure(MachineError("no further"))))

    monkeypatch.setitem(ENGINES, "far", lambda options: Far(options.on_event))
    entry = {"name": "fitted", "recipe": "fitted.yaml", "resources": {"gpus": 0.5}}
    batch = do(zoo(entry), engine="far")
    assert batch.statuses["fitted"].why == "no further"
    assert [(load.memory, load.gpus) for load in started] == [(memory, 0.5)]
    assert "more memory than" in str(do(zoo(entry), engine="local").statuses["fitted"].why)


def test_an_entry_that_its_plan_refuses_fails_before_any_entry_starts(zoo: Zoo) -> None:
    order: list[tuple[str, str]] = []
    manifest = zoo(CHAIN[0], {"name": "wide", "recipe": "deeper.yaml", "set": {"growth.width": "nothing"}})
    do(manifest, watcher=Watcher(on_change=lambda name, status: order.append((name, status.state))))
    assert order[0] == ("wide", "failed")


def test_publishing_without_a_licence_fails_alone_and_at_the_start(
    zoo: Zoo, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The licence is checked after the account, even if the Hub cannot be reached.
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    to = {"publish": {"repo": "org/{name}"}}
    batch = do(
        zoo(
            CHAIN[0],
            {"name": "shared", "recipe": "deeper.yaml", **to},
            {"name": "sibling", "operator": {"from": "first"}, "source": str(source), **to},
        )
    )
    assert states(batch) == {"first": "done", "shared": "failed", "sibling": "failed"}
    assert batch.exit_code == 8
    for name in ("shared", "sibling"):
        assert "no licence is stated" in str(batch.statuses[name].why)
        assert not Path("zoo", name).exists()


# --- done once --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_equal_fits_are_computed_once_with_the_same_bytes(zoo: Zoo) -> None:
    batch = do(zoo({"name": "alone", "recipe": "fitted.yaml"}, state="alone-state"))
    assert batch.exit_code == 0
    manifest = zoo(
        {"name": "one", "recipe": "fitted.yaml"},
        {"name": "two", "recipe": "fitted.yaml", "set": {"output.max_shard_size": "20KB"}},
        {"name": "three", "recipe": "fitted.yaml", "set": {"output.dtype": "bfloat16"}},
        {"name": "other", "recipe": "fitted.yaml", "set": {"fit.seed": 1}},
    )
    assert do(manifest).exit_code == 0
    cache = Path("zoo.ligo-batch/cache")
    assert len([path for path in cache.glob("fit-*") if path.is_dir()]) == 2
    assert weights(Path("zoo/one")) == weights(Path("zoo/alone"))
    operators = {name: weights(Path(f"zoo/{name}/ligo")) for name in ("alone", "one", "two", "three", "other")}
    assert operators["alone"] == operators["one"] == operators["two"] == operators["three"] != operators["other"]
    assert len(weights(Path("zoo/two"))) > 1


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_worker_processes_write_the_same_bytes_and_a_killed_one_fails_alone(zoo: Zoo) -> None:
    manifest = zoo(*CHAIN, {"name": "long", "recipe": "fitted.yaml", "set": {"fit.steps": 100000}})
    killed: list[int] = []

    def kill(name: str, status: Any) -> None:
        if name == "long" and "fitting" in status.activity and not killed:
            children = subprocess.run(
                ["pgrep", "-f", "forkserver|spawn_main"], capture_output=True, text=True, check=False, timeout=60
            )
            for child in map(int, children.stdout.split()):
                environment = Path(f"/proc/{child}/fd/2")
                if environment.exists() and str(environment.readlink()).endswith("logs/long.log"):
                    killed.append(child)
                    os.kill(child, signal.SIGKILL)

    batch = do(manifest, jobs=2, watcher=Watcher(on_change=kill))
    assert killed, states(batch)
    assert states(batch) == {"first": "done", "second": "done", "long": "failed"}
    assert "SIGKILL" in (batch.statuses["long"].why or "")
    assert batch.exit_code == 5
    # In this process, into another folder: the same bytes.
    again = do(zoo(*CHAIN, out="here"), jobs=1)
    assert again.exit_code == 0
    for name in ("first", "second"):
        assert weights(Path(f"zoo/{name}")) == weights(Path(f"here/{name}"))


@pytest.mark.slow
def test_a_stopped_batch_continues(zoo: Zoo) -> None:
    long = {"name": "long", "recipe": "fitted.yaml", "set": {"fit.steps": 60}}
    manifest = zoo(CHAIN[0], long, {"name": "last", "recipe": "deeper.yaml", "after": ["long"]})
    process = cli(manifest, "--json", before=SAVING_OFTEN)
    until((manifest.parent / "zoo/.long.ligo-partial/.work/fit-state.safetensors").exists, process)
    process.send_signal(signal.SIGTERM)
    out, err = finish(process, seconds=60)
    assert process.returncode == 143, err
    assert out == ""
    assert not list((manifest.parent / "zoo.ligo-batch/leases").iterdir())
    again = cli(manifest, "--json", before=SAVING_OFTEN)
    out, err = finish(again, seconds=120)
    assert again.returncode == 0, err
    report = json.loads(out)["entries"]
    assert {name: (entry["state"], entry["again"]) for name, entry in report.items()} == {
        "first": ("done", True),
        "long": ("done", False),
        "last": ("done", False),
    }
    assert f"long: {GOING_ON}" in err
    same_as_whole(zoo, long)


@pytest.mark.slow
def test_another_process_finishes_the_entry_of_a_killed_one(zoo: Zoo) -> None:
    long = {"name": "long", "recipe": "fitted.yaml", "set": {"fit.steps": 60}}
    manifest = zoo(long, {"name": "other", "recipe": "deeper.yaml"}, {"name": "last", "recipe": "deeper.yaml"})
    shard = cli(manifest, "--json", "--shard", "0/2", before=SAVING_OFTEN)
    until((manifest.parent / "zoo/.long.ligo-partial/.work/fit-state.safetensors").exists, shard)
    shard.kill()
    assert finish(shard, seconds=60)[0] == ""
    assert shard.returncode == -signal.SIGKILL
    # A killed process releases nothing.
    assert [path.name for path in (manifest.parent / "zoo.ligo-batch/leases").glob("[!.]*")] == ["long"]
    whole = cli(manifest, "--json", before=SAVING_OFTEN)
    out, err = finish(whole, seconds=120)
    assert whole.returncode == 0, err
    report = json.loads(out)
    assert report["counts"]["done"] == 3
    assert not report["entries"]["long"]["again"]
    assert f"long: {GOING_ON}" in err
    assert not list((manifest.parent / "zoo.ligo-batch/leases").glob("[!.]*"))
    same_as_whole(zoo, long)


@pytest.mark.slow
def test_a_stopped_batch_of_several_jobs_leaves_no_process_and_continues(zoo: Zoo) -> None:
    long = [
        {"name": f"long-{number}", "recipe": "fitted.yaml", "set": {"fit.steps": 250, "fit.seed": number}}
        for number in range(2)
    ]
    manifest = zoo(*long)
    process = cli(manifest, "--json", "--jobs", "2")
    begun = [manifest.parent / f"zoo/.{entry['name']}.ligo-partial/.work/results.json" for entry in long]
    until(lambda: all(path.exists() for path in begun), process)
    assert len(left_of(process.pid)) > 2
    process.send_signal(signal.SIGTERM)
    out, err = finish(process, seconds=60)
    assert process.returncode == 143, err
    assert out == ""
    end = time.monotonic() + 10
    while left_of(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert left_of(process.pid) == []
    assert not list((manifest.parent / "zoo.ligo-batch/leases").iterdir())
    again = cli(manifest, "--json", "--jobs", "2")
    out, err = finish(again, seconds=120)
    assert again.returncode == 0, err
    assert json.loads(out)["counts"]["done"] == 2
    for entry in long:
        assert f"{entry['name']}: {GOING_ON}" in err


GOING_ON = "resuming from the staged files of an earlier run"


def same_as_whole(zoo: Zoo, entry: Mapping[str, object]) -> None:
    """Check that an output in `zoo` equals that of the same entry without interruption."""
    name = str(entry["name"])
    whole = cli(zoo(entry, out="whole"))
    _, err = finish(whole, seconds=120)
    assert whole.returncode == 0, err
    for folder in (name, f"{name}/ligo"):
        assert weights(Path("zoo", folder)) == weights(Path("whole", folder)) != {}


@pytest.mark.slow
def test_several_processes_run_each_entry_once(zoo: Zoo) -> None:
    entries = [{"name": f"n{number}", "recipe": "deeper.yaml"} for number in range(6)]
    manifest = zoo(*entries, POISON)
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "1"}
    # One shard by the option, one by Slurm's environment, and a third process with every entry, as after a requeue.
    processes = [cli(manifest, "--json", "--shard", "0/2"), cli(manifest, "--json", SLURM_ARRAY_TASK_ID="2", **array)]
    processes.append(cli(manifest, "--json"))
    reports, ran = [], []
    for process in processes:
        out, err = finish(process, seconds=120)
        assert out, err
        reports.append(json.loads(out))
        ran += [line.partition(":")[0] for line in err.splitlines() if line.endswith(": running")]
    names = [set(one["entries"]) for one in reports]
    assert names[0] | names[1] == names[2]
    assert not names[0] & names[1]
    done = [name for one in reports for name, entry in one["entries"].items() if not entry["again"]]
    for one in reports:
        assert {state["state"] for name, state in one["entries"].items() if name != "poisoned"} == {"done"}
    # One process ran each entry; the others reused its record.
    assert sorted(ran) == [f"n{number}" for number in range(6)]
    assert sorted(name for name in done if name != "poisoned") == sorted(ran)
    assert [process.returncode for process in processes].count(3) >= 2


@pytest.mark.parametrize(
    ("environment", "option", "code"),
    [
        ({"JOB_COMPLETION_INDEX": "1"}, [], 2),
        ({"JOB_COMPLETION_INDEX": "1", "JOB_COMPLETIONS": "2"}, [], 0),
        ({}, ["--shard", "2/2"], 2),
        ({}, ["--shard", "one"], 2),
    ],
)
def test_a_shard_needs_index_and_count(environment: dict[str, str], option: list[str], code: int, zoo: Zoo) -> None:
    process = cli(zoo(CHAIN[0], {"name": "x", "recipe": "deeper.yaml"}), "--json", *option, **environment)
    out, err = finish(process, seconds=60)
    assert process.returncode == code, err
    if code == 0:
        assert len(json.loads(out)["entries"]) == 1

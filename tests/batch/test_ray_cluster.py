"""The Ray engine, on a cluster of two nodes on this machine, each with its own processes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import HERE
from support.processes import finish, kill_session
from support.zoos import CHAIN, POISON, Zoo, cli, source, until, weights, zoo

__all__ = ["source", "zoo"]

START_SECONDS = 120.0

# Long enough to be interrupted; different seeds keep the fits apart.
LONG = [
    {"name": f"long-{number}", "recipe": "fitted.yaml", "set": {"fit.steps": 500, "fit.seed": number}}
    for number in range(2)
]


class Nodes:
    """Two nodes with a core each, started in another working directory than the command's."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "support" / "ray_nodes.py")],
            env={**os.environ, "PYTHONPATH": HERE, "OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        self.address = self.process.stdout.readline().strip() if ready else ""
        if not self.address:
            kill_session(self.process)
            raise AssertionError("the Ray cluster did not start")

    def kill_one(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(timeout=60)
        finally:
            kill_session(self.process)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    started = Nodes(tmp_path_factory.mktemp("elsewhere"))
    yield started
    started.end()


def until_begun(manifest: Path, process: subprocess.Popen[str], *names: str) -> None:
    """Wait until all these entries are running."""
    places = [manifest.parent / f"zoo/.{name}.ligo-partial/.work/results.json" for name in names]
    until(lambda: all(place.exists() for place in places), process)


@pytest.mark.slow
def test_workers_get_the_working_directory_and_the_hub_settings(zoo: Zoo, nodes: Nodes) -> None:
    # Without `out`, entries write where their recipes say, relative to the command's working directory.
    to = {"publish": {"repo": "me/grown", "license": "mit"}, "set": {"output.dir": "shared"}}
    manifest = zoo(CHAIN[0], {"name": "shared", "recipe": "deeper.yaml", **to})
    report = json.loads(manifest.read_text())
    del report["out"]
    manifest.write_text(json.dumps(report))
    hub = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_of_nobody"}
    process = cli(manifest, "--engine", "ray", "--address", nodes.address, "--json", **hub)
    out, err = finish(process, seconds=240)
    assert process.returncode == 4, err
    entries = json.loads(out)["entries"]
    assert entries["first"]["state"] == "done"
    assert (manifest.parent / "out/config.json").is_file()
    assert "HF_HUB_OFFLINE" in entries["shared"]["why"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_stops_a_batch_on_a_cluster(zoo: Zoo, nodes: Nodes, number: int, code: int) -> None:
    manifest = zoo(LONG[0])
    process = cli(manifest, "--engine", "ray", "--address", nodes.address)
    until_begun(manifest, process, "long-0")
    process.send_signal(number)
    out, err = finish(process, seconds=60)
    assert process.returncode == code, err
    assert "interrupted" in err.lower() or "stopped" in err.lower()
    for noise in ("Traceback", "bug", "PC: @", "SystemError"):
        assert noise not in err
    assert out == ""
    assert not (manifest.parent / "zoo/long-0").exists()


@pytest.mark.slow
def test_an_entry_too_large_for_every_machine_waits_and_then_fails_alone(zoo: Zoo, nodes: Nodes) -> None:
    manifest = zoo({**CHAIN[0], "resources": {"cpus": 2}}, {"name": "other", "recipe": "deeper.yaml"})
    before = "import ligo_convert.batch.ray_cluster as ray_cluster; ray_cluster.JOIN_SECONDS = 5.0"
    process = cli(manifest, "--engine", "ray", "--address", nodes.address, "--json", before=before)
    out, err = finish(process, seconds=240)
    assert process.returncode == 5, err
    report = json.loads(out)["entries"]
    assert report["other"]["state"] == "done"
    assert report["first"]["seconds"] > 5
    assert "no machine of the cluster is large enough" in report["first"]["why"]
    assert "CPU 2" in report["first"]["why"]


@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_entry(zoo: Zoo, tmp_path: Path) -> None:
    manifest = zoo(*LONG, POISON)
    nodes = Nodes(tmp_path)
    try:
        process = cli(manifest, "--engine", "ray", "--address", nodes.address, "--json")
        until_begun(manifest, process, "long-0", "long-1")
        nodes.kill_one()
        out, err = finish(process, seconds=240)
    finally:
        nodes.end()
    report = json.loads(out)
    assert {name: entry["state"] for name, entry in report["entries"].items()} == {
        "long-0": "done",
        "long-1": "done",
        "poisoned": "failed",
    }, err
    assert process.returncode == 3
    assert report["engine"] == "ray"
    # The entry that moved to the other node has the same bytes as one made by a single process with as many threads.
    out, err = finish(cli(zoo(*LONG, out="here")), seconds=240)
    assert "2 done" in out, err
    for name in ("long-0", "long-1"):
        assert weights(Path(f"zoo/{name}")) == weights(Path(f"here/{name}"))


def test_an_unreachable_cluster_is_reported(zoo: Zoo) -> None:
    process = cli(zoo(CHAIN[0]), "--engine", "ray", "--address", "127.0.0.1:1")
    _, err = finish(process, seconds=60)
    assert process.returncode == 5, err
    assert "cannot be reached" in err

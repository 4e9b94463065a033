"""The engine on a cluster, with a real one of two nodes on this machine, each with its own processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import HERE
from support.zoos import CHAIN, POISON, Zoo, cli, source, until, weights, zoo

pytest.importorskip("ray", reason="the extra `ray` is not installed")
__all__ = ["source", "zoo"]

# Long enough to be met in the middle; the seed divides the fits.
LONG = [
    {"name": f"long-{number}", "recipe": "fitted.yaml", "set": {"fit.steps": 1500, "fit.seed": number}}
    for number in range(2)
]


class Nodes:
    """Two nodes with a core each, whose working directory is not the command's."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "support" / "ray_nodes.py")],
            env={**os.environ, "PYTHONPATH": HERE, "OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "there is no cluster"

    def kill_one(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    found = Nodes(tmp_path_factory.mktemp("elsewhere"))
    yield found
    found.end()


def until_begun(manifest: Path, process: subprocess.Popen[str], *names: str) -> None:
    """Wait until all of these are in the middle of their work."""
    places = [manifest.parent / f"zoo/.{name}.ligo-partial/.work/results.json" for name in names]
    until(lambda: all(place.exists() for place in places), process)


def test_workers_are_where_the_command_is_and_know_what_it_knows_of_the_hub(zoo: Zoo, nodes: Nodes) -> None:
    # Without `out` entries go where their recipes say, which is relative to where the command runs.
    to = {"publish": {"repo": "me/grown", "license": "mit"}, "set": {"output.dir": "shared"}}
    manifest = zoo(CHAIN[0], {"name": "shared", "recipe": "deeper.yaml", **to})
    told = json.loads(manifest.read_text())
    del told["out"]
    manifest.write_text(json.dumps(told))
    hub = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_of_nobody"}
    process = cli(manifest, "--engine", "ray", "--address", nodes.address, "--json", **hub)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 4, err
    entries = json.loads(out)["entries"]
    assert entries["first"]["state"] == "done"
    assert (manifest.parent / "out/config.json").is_file()
    assert "HF_HUB_OFFLINE" in entries["shared"]["why"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_as_any_other_command(zoo: Zoo, nodes: Nodes, number: int, code: int) -> None:
    manifest = zoo(LONG[0])
    process = cli(manifest, "--engine", "ray", "--address", nodes.address)
    until_begun(manifest, process, "long-0")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "interrupted" in err.lower() or "stopped" in err.lower()
    for noise in ("Traceback", "bug", "PC: @", "SystemError"):
        assert noise not in err
    assert out == ""
    assert not (manifest.parent / "zoo/long-0").exists()


def test_what_no_machine_can_take_waits_for_one_and_then_fails_alone(zoo: Zoo, nodes: Nodes) -> None:
    manifest = zoo({**CHAIN[0], "resources": {"cpus": 2}}, {"name": "other", "recipe": "deeper.yaml"})
    before = "import ligo_convert.batch.ray_cluster as ray_cluster; ray_cluster.MACHINE_SECONDS = 5.0"
    process = cli(manifest, "--engine", "ray", "--address", nodes.address, "--json", before=before)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 5, err
    told = json.loads(out)["entries"]
    assert told["other"]["state"] == "done"
    assert told["first"]["seconds"] > 5
    assert "no machine of the cluster has what it takes" in told["first"]["why"]
    assert "CPU 2" in told["first"]["why"]


@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_entry(zoo: Zoo, tmp_path: Path) -> None:
    manifest = zoo(*LONG, POISON)
    nodes = Nodes(tmp_path)
    try:
        process = cli(manifest, "--engine", "ray", "--address", nodes.address, "--json")
        until_begun(manifest, process, "long-0", "long-1")
        nodes.kill_one()
        out, err = process.communicate(timeout=240)
    finally:
        nodes.end()
    told = json.loads(out)
    assert {name: entry["state"] for name, entry in told["entries"].items()} == {
        "long-0": "done",
        "long-1": "done",
        "poisoned": "failed",
    }, err
    assert process.returncode == 3
    assert told["engine"] == "ray"
    # What was begun on the lost node and ended on the other is what one process makes with as many threads.
    out, err = cli(zoo(*LONG, out="here")).communicate(timeout=240)
    assert "2 done" in out, err
    for name in ("long-0", "long-1"):
        assert weights(Path(f"zoo/{name}")) == weights(Path(f"here/{name}"))


def test_a_cluster_that_is_not_there_is_said_to_be_none(zoo: Zoo) -> None:
    process = cli(zoo(CHAIN[0]), "--engine", "ray", "--address", "127.0.0.1:1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert "cannot be reached" in err

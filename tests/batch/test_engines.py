"""Every engine of the table keeps the protocol: a chain is done, one failure stays alone, and the bytes are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.processes import finish
from support.slow import rest_slow
from support.zoos import CHAIN, POISON, Zoo, cli, source, weights, zoo

from ligo_convert.batch.engine import EngineOptions
from ligo_convert.batch.engines import ENGINES, engine_named
from ligo_convert.cli.main import batch
from ligo_convert.errors import LigoError

__all__ = ["source", "zoo"]


@pytest.fixture(scope="module", params=rest_slow([*ENGINES, "local-jobs"], lambda name: name != "ray"))
def options(request: pytest.FixtureRequest) -> list[str]:
    """Command-line options of an engine; `local` is two engines, by its number of jobs."""
    name, _, jobs = request.param.partition("-")
    return ["--engine", name, "--jobs", "2" if jobs else "1"]


def test_an_engine_runs_a_chain_and_isolates_a_failure(options: list[str], zoo: Zoo) -> None:
    manifest = zoo(*CHAIN, POISON)
    environment = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    process = cli(manifest, "--json", *options, **environment)
    out, err = finish(process, seconds=240)
    assert process.returncode == 3, err
    report = json.loads(out)
    assert report["engine"] == options[1]
    states = {name: entry["state"] for name, entry in report["entries"].items()}
    assert states == {"first": "done", "second": "done", "poisoned": "failed"}
    expected = cli(zoo(*CHAIN, out="expected"), "--json")
    _, err = finish(expected, seconds=240)
    assert expected.returncode == 0, err
    for name in ("first", "second"):
        assert weights(Path(f"zoo/{name}")) == weights(Path(f"expected/{name}")) != {}


def test_the_command_line_offers_every_engine() -> None:
    (option,) = [parameter for parameter in batch.params if parameter.name == "engine"]
    assert set(option.type.choices) == set(ENGINES)  # type: ignore[attr-defined]


def test_an_unknown_engine_names_the_known_ones(tmp_path: Path) -> None:
    options = EngineOptions(jobs=1, logs=tmp_path, address=None, on_event=lambda event: None)
    with pytest.raises(LigoError, match="local, ray"):
        engine_named("nothing", options)

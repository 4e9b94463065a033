"""A comparison whose source is a checkpoint: nobody knows what it cost, unless the recipe says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.source_models import DEEPER, fit_section, recipe_text, write_checkpoint, write_text
from support.warm_cli import Ended, WarmCli

# Two whole comparisons.
pytestmark = pytest.mark.slow

COST = 2e7  # about a sixth of scratch
COMPARE = {
    "steps": 16,
    "methods": ["lemon"],
    "learning_rates": [5e-3],
    "rate_factors": [1.0],
    "optimizers": ["adamw"],
    "decays": [0.4],
    "scratch_fractions": [0.5, 1.0],
    "budget_fractions": [0.5, 1.0],
    "controls": [],
    "eval_points": 2,
}
COMMAND = ("compare", "recipe.yaml", "--json", "--jobs", "1")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended, Ended]:
    """Two comparisons, without and with the source's cost: about forty short steps each."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "corpus").mkdir()
    write_text(folder / "corpus" / "a.txt")
    write_checkpoint(folder / "small")
    (folder / "recipe.yaml").write_text(
        recipe_text("./small", DEEPER["gpt2"], fit=fit_section(batch_size=4), compare=COMPARE)
    )
    warm = WarmCli(folder)
    try:
        unknown = warm.run(*COMMAND, "--out", "unknown", cwd=folder)
        charged = warm.run(*COMMAND, "--out", "charged", "--set", f"compare.source_flops={COST}", cwd=folder)
    finally:
        warm.close()
    assert (unknown.code, charged.code) == (0, 0), unknown.err + charged.err
    return folder, unknown, charged


def record_of(done: Ended) -> dict[str, Any]:
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def test_a_source_of_unknown_cost_is_left_out_of_net(compared: tuple[Path, Ended, Ended]) -> None:
    folder, done, _ = compared
    found = record_of(done)
    record = json.loads((folder / "unknown" / "compare.json").read_text())
    assert found == {"out": "unknown", "changed": True, **record}
    (source,) = found["sources"]
    assert (source["name"], source["steps"], source["flops"]) == ("1", None, None)
    lemon = found["methods"]["lemon"]
    assert lemon["source_flops"] is None
    assert lemon["savings"]["net"] is None
    assert all(end["net_flops"] is None for end in lemon["ends"])
    assert {end["saved"]["net"] for end in lemon["ends"]} == {None}
    assert lemon["curve"][0]["step"] == lemon["curve"][0]["flops"] == 0
    # An exact start.
    assert lemon["curve"][0]["loss"] == pytest.approx(source["loss"], abs=1e-4)
    rules = {warning["rule"] for warning in found["fairness_warnings"]}
    assert {"source-cost-unknown", "source-data-unknown"} <= rules
    text = " ".join(found["verdict"]["text"])
    assert "Source charged (net): no saving is known, because the cost of training the source is unknown." in text
    assert found["verdict"]["grows_pay"]["net"] is None
    assert "source cost unknown" in (folder / "unknown" / "report.html").read_text()
    # The checkpoint is the user's own, so none is written.
    assert not (folder / "unknown" / "ligo" / "source").exists()


def test_a_stated_cost_is_charged(compared: tuple[Path, Ended, Ended]) -> None:
    _, unknown, done = compared
    found, without = record_of(done), record_of(unknown)
    assert found["sources"][0]["flops"] == COST
    lemon, other = found["methods"]["lemon"], without["methods"]["lemon"]
    assert lemon["source_flops"] == COST
    assert [end["net_flops"] for end in lemon["ends"]] == [end["flops"] + COST for end in lemon["ends"]]
    # The cost decides nothing else.
    assert [(end["loss"], end["flops"]) for end in lemon["ends"]] == [
        (end["loss"], end["flops"]) for end in other["ends"]
    ]
    assert lemon["savings"]["paper"] == other["savings"]["paper"]
    rules = {warning["rule"] for warning in found["fairness_warnings"]}
    assert "source-cost-unknown" not in rules
    assert "source-data-unknown" in rules
    assert "is unknown" not in " ".join(sentence for sentence in found["verdict"]["text"] if "(net)" in sentence)

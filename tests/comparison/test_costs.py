"""What a comparison would cost: said in seconds, without a model, without data, and the same in the recipes of true sizes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.experiments import experiment_of

from ligo_convert.comparison.compare import plan_comparison
from ligo_convert.comparison.costs import comparison_costs
from ligo_convert.recipes.recipe import load_recipe

ROOT = Path(__file__).parents[2]
TRUE_SIZES = {
    "compare_gpt2_medium": (124e6, 355e6),
    "compare_bert_base": (35e6, 110e6),
    "compare_cait_s24": (26.6e6, 46.9e6),
}
SPEEDS = (5e13, 4e14)
SECONDS = 180.0
# Less than the weights of the smallest of these targets.
RESIDENT = 187_000_000


# Runs the command line, and says on stderr what the process held at most, in KiB.
MEASURED = """
import atexit, re, runpy, sys
held = lambda: print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
atexit.register(held)
runpy.run_module("ligo_convert", run_name="__main__")
"""


def test_the_costs_of_a_true_size_need_no_model_and_no_data() -> None:
    recipe = ROOT / "recipes" / "compare_cait_s24.yaml"
    command = [sys.executable, "-c", MEASURED, "compare", str(recipe), "--costs", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recipe"] == recipe.name
    assert 1024 * int(done.stderr.split()[-1]) < RESIDENT


@pytest.fixture(scope="module", params=TRUE_SIZES)
def true_size(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, plan_comparison(load_recipe(ROOT / "recipes" / f"{request.param}.yaml"))


def test_a_true_size_has_twenty_tokens_a_parameter(true_size: tuple[str, dict[str, Any]]) -> None:
    name, costs = true_size
    assert [costs["parameters"][side] for side in ("source", "target")] == pytest.approx(TRUE_SIZES[name], rel=5e-3)
    assert costs["budget"]["tokens_per_parameter"] == pytest.approx(20, abs=0.05)
    assert [source["name"] for source in costs["sources"]] == ["1", "4"]
    # The LiGO paper's sources cost about a fifth of scratch.
    assert costs["sources"][0]["flops"] == pytest.approx(0.2 * costs["budget"]["flops"], rel=0.03)
    assert costs["skipped"] == {}
    assert sum(entry["flops"] for entry in costs["entries"].values()) == pytest.approx(costs["total_flops"])
    assert costs["disk_bytes"] > 12 * costs["parameters"]["target"]


def test_what_is_tried_for_a_choice_is_a_cost_of_the_entry_that_chooses(tmp_path: Path) -> None:
    """The trials of its starts and its runs to every budget, so that the rows are all of the total."""
    experiment = experiment_of(tmp_path, methods=["chosen", "late"], budget_fractions=[0.5, 1.0], rate_factors=[1.0])
    costs = comparison_costs(experiment)
    rows = {name: entry["flops"] for name, entry in costs["entries"].items()}
    assert sum(rows.values()) == pytest.approx(costs["total_flops"])
    entry = experiment.entries["chosen"]
    # The start that is taken goes on from its trial; of two lengths, the shorter one leaves where its rate begins to fall.
    trials = sum(experiment.run_flops(one, experiment.trial_steps(one)) for one in entry.starts[1:])
    assert trials > 0
    assert rows["chosen"] > trials + experiment.run_flops(entry, experiment.ends(entry)[-1])


def test_a_true_size_says_what_it_costs(true_size: tuple[str, dict[str, Any]]) -> None:
    """The figures in the recipe's comment and in the guide are those that `--costs` prints."""
    name, costs = true_size
    scratch, total = costs["budget"]["flops"], costs["total_flops"]
    hours = [f"{total / speed / 3600:,.1f} h at" for speed in SPEEDS]
    comment = (ROOT / "recipes" / f"{name}.yaml").read_text().partition("\nversion:")[0]
    said = re.sub(r"\s*\n#\s*", " ", comment)
    for figure in (f"{scratch:.2e} FLOPs", f"{total / scratch:.1f} times", f"{total:.2e} FLOPs", *hours):
        assert figure in said, figure
    guide = (ROOT / "docs" / "guide" / "comparing.md").read_text()
    row = next(line for line in guide.splitlines() if line.startswith(f"| `recipes/{name}.yaml`"))
    disk = f"{costs['disk_bytes'] / 1e9:.2f} GB"
    for figure in (f"{scratch:.2e}", f"{total / scratch:.1f}", f"{total:.2e}", disk, *(hour[:-5] for hour in hours)):
        assert figure in row, figure

"""What is advised for training on: every figure is measured or published, and its scale stands beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.comparisons import measured
from support.measured_comparisons import MEASURED
from support.scripts import ROOT, load_script

from ligo_convert.comparison.verdict import conclusions
from ligo_convert.families.registry import FAMILIES
from ligo_convert.outputs import advice
from ligo_convert.outputs.measured import FILE, measured_by_task, read_measured


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> dict[str, advice.Advice]:
    monkeypatch.setattr(advice, "measured_by_task", lambda: {"causal-lm": MEASURED})
    return {
        one.what: one
        for one in advice.advise(
            FAMILIES["gpt2"], 355_000_000, **getattr(request, "param", {"source_trained_here": False})
        )
    }


def test_every_value_has_its_scale(rows: dict[str, advice.Advice]) -> None:
    assert list(rows) == [
        *("peak learning rate", "for comparison", "schedule", "optimizer", "optimizer's state", "batch"),
        *("ahead of scratch", "break-even", "a smaller model"),
    ]
    others = {"for comparison": "published for 350M parameters", "optimizer's state": "a GPT-2 of 2 layers"}
    for name, one in rows.items():
        assert one.origin.startswith(others.get(name, "measured")), name
    assert MEASURED.scale in advice.scale_of(FAMILIES["gpt2"])
    assert MEASURED.scale == "a gpt2 of 770k parameters, 20 tokens per parameter, 3 seeds"
    assert advice.scale_of(FAMILIES["bert"]) == ""


def test_values_are_those_of_the_comparison(rows: dict[str, advice.Advice]) -> None:
    """A source at hand counts as the strongest one."""
    assert rows["peak learning rate"].value == (
        "0.4 times the best rate from scratch, for a training that costs as much as scratch; 0.15 times for 35% of that cost"
    )
    assert "cost 75% of training from scratch" in rows["peak learning rate"].origin
    assert rows["schedule"].value == "2% of the steps of warmup, then linear decay to zero in the last 60%"
    assert rows["optimizer"].value.startswith("Muon for the matrices inside the layers")
    assert rows["ahead of scratch"].value == (
        "source left out: at budgets of 1.42B to 7.1B tokens from scratch;"
        " source charged: at budgets of 2.13B and 3.55B to 4.26B tokens from scratch"
    )
    assert rows["break-even"].value == "2 targets grown from the source pay its training back"
    assert "62 % of scratch's cost with the source left out and -13 % with it charged" in rows["break-even"].origin
    assert rows["a smaller model"].value == "never grown, it was at least as good as every grown one at 6 of 7 budgets"


@pytest.mark.parametrize("rows", [{"source_trained_here": True, "carries_state": True}], indirect=True)
def test_a_source_that_the_recipe_trained_is_the_weakest(rows: dict[str, advice.Advice]) -> None:
    assert rows["peak learning rate"].value == "the best rate from scratch"
    assert rows["break-even"].value == "1 target grown from the source pays its training back"
    assert rows["optimizer's state"].value == "the grown one, which is in this directory"


def test_a_bound_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tuple(replace(source, at_least=True) for source in MEASURED.sources)
    monkeypatch.setattr(advice, "measured_by_task", lambda: {"causal-lm": replace(MEASURED, sources=sources)})
    found = {one.what: one for one in advice.advise(FAMILIES["gpt2"], 355_000_000, source_trained_here=False)}
    assert found["break-even"].value == "at most 2 targets grown from the source pay its training back"
    assert "saves at least 62 %" in found["break-even"].origin
    assert "at least -13 % with it charged" in found["break-even"].origin


def test_images_are_counted_in_patches() -> None:
    found = measured_by_task()
    assert {task: one.passing for task, one in found.items() if task == "image-classification"} == {
        "image-classification": "patches"
    }
    assert "patches per parameter" in found["image-classification"].scale
    assert found["causal-lm"].passing == "tokens"


def test_a_paper_about_models_of_another_size_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "measured_by_task", dict)
    found = advice.advise(FAMILIES["gpt2"], 355_000_000, source_trained_here=False)
    assert [(one.what, one.value) for one in found] == [("peak learning rate", "at most 0.0003")]
    assert advice.advise(FAMILIES["gpt2"], 300_000, source_trained_here=False) == []


def test_the_file_is_what_the_recorded_comparisons_give() -> None:
    """`scripts/make_results.py` writes both."""
    script = load_script("make_results")
    results = json.loads((ROOT / "docs" / "results" / "results.json").read_bytes())
    assert json.loads(FILE.read_bytes()) == script.advice(results)
    assert set(measured_by_task()) == {figures["task"] for figures in results["kinds"].values()}
    # A comparison of several sources says more than one of several seeds.
    kinds = {key: dict(value) for key, value in results["kinds"].items()}
    widest = {
        value["task"]: max(len(one["sources"]) for one in kinds.values() if one["task"] == value["task"])
        for value in kinds.values()
    }
    assert {task: len(found.sources) for task, found in measured_by_task().items()} == widest
    # And a comparison is condensed to what is read.
    record = measured()
    figures = script.figures_of(record, "gpt2")
    one = read_measured(script.measured_of({**figures, **conclusions(figures)}))
    assert (one.parameters, one.optimizer, one.decay, one.warmup) == (770_000, "muon", 0.4, 60 / 4000)
    (source,) = one.sources
    assert (source.method, source.paper, source.net, source.targets) == ("ligo", 40.0, 25.0, 1)

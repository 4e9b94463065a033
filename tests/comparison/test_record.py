"""Laws of the record: figures known in closed form come out as they are, bounds stay bounds, and every seed counts."""

from __future__ import annotations

import json
import math

import pytest
from support.comparisons import BUDGET, FINAL, GROWN, SHARES, SLOPE, TARGET_STEPS, Grown, measured, scratch_law

from ligo_convert.comparison.frontier import End
from ligo_convert.comparison.record import FORMAT, SeedRuns

FEW = {"ligo": GROWN["ligo"]}


def runs(*ends: tuple[float, float | None]) -> dict[int, SeedRuns]:
    """Runs of seed 0: share of scratch's budget, loss."""
    return {
        0: SeedRuns(
            ends=[End(steps=round(share * TARGET_STEPS), flops=share * BUDGET, loss=loss) for share, loss in ends]
        )
    }


def test_savings_and_gaps_are_those_of_the_law() -> None:
    record = measured(seeds=(0, 1, 2))
    assert record["format"] == FORMAT
    assert [end["flops"] for end in record["curve"]] == [share * BUDGET for share in SHARES]
    for name, method in GROWN.items():
        found = record["methods"][name]
        charged = 0.0 if method.source is None else 15.0
        assert found["savings"]["paper"] == pytest.approx(method.paper, abs=0.1)
        assert found["savings"]["net"] == pytest.approx(method.paper - charged, abs=0.1)
        assert found["savings_bound"] == {"paper": None, "net": None}
        assert found["std"]["paper"] == pytest.approx(method.spread, abs=0.01)
        for end in found["ends"]:
            share = end["flops"] / BUDGET
            equal = share / (1 - method.paper / 100)
            if equal > 1:
                assert (end["bound"], end["scratch_flops"]) == ("at least", BUDGET)
                assert end["saved"]["paper"] == pytest.approx(100 * (1 - share))
                continue
            assert end["bound"] is None
            assert end["scratch_flops"] == pytest.approx(equal * BUDGET, rel=1e-3)
            assert end["saved"]["paper"] == pytest.approx(method.paper, abs=0.1)
            assert end["saved"]["net"] == pytest.approx(100 * (1 - (share + charged / 100) / equal), abs=0.1)
            assert end["gap"]["paper"] == pytest.approx(SLOPE * math.log2(1 - method.paper / 100), abs=1e-3)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_scratch_saves_nothing_and_is_in_the_record_as_its_own_curve() -> None:
    record = measured(seeds=(0, 1))
    scratch = record["methods"]["scratch"]
    assert scratch["savings"] == {"paper": 0.0, "net": 0.0}
    assert [end["gap"]["net"] for end in scratch["ends"]] == [0.0] * len(SHARES)
    assert [end["loss"] for end in record["curve"]] == pytest.approx(
        [scratch_law(share * BUDGET) + 0.003 for share in SHARES]
    )
    assert [end["std"] for end in record["curve"]] == pytest.approx([0.006 / math.sqrt(2)] * len(SHARES), abs=1e-5)


def test_a_control_is_read_like_a_method_and_stands_apart() -> None:
    record = measured()
    control = record["controls"]["4 layers"]
    assert "4 layers" not in record["methods"]
    assert control["config"] == {"n_layer": 4}
    assert control["savings"] == {"paper": None, "net": None}
    # Its lowest loss is 3.5, which scratch has at half of its budget.
    assert control["headline"]["net"]["saved"] == pytest.approx(-100.0)
    assert control["headline"]["net"]["share"] == pytest.approx(0.5)
    assert control["headline"]["net"]["at"] == "its own end"


def test_all_ends_below_scratch_save_at_least_as_much_as_the_cheapest() -> None:
    found = measured(FEW, replaced={"ligo": runs((0.3, FINAL - 0.1), (0.5, FINAL - 0.2))})["methods"]["ligo"]
    assert found["savings"] == {"paper": 70.0, "net": 55.0}
    assert found["savings_bound"] == {"paper": "at least", "net": "at least"}
    assert [end["bound"] for end in found["ends"]] == ["at least", "at least"]
    assert [end["gap_bound"]["net"] for end in found["ends"]] == [None, None]
    assert found["headline"]["net"]["bound"] == "at least"
    assert found["std"]["paper"] is None


def test_an_end_above_all_of_scratch_is_marked_and_leads_nothing() -> None:
    record = measured(FEW, replaced={"ligo": runs((0.1, 5.0), (0.2, 4.5))})
    found = record["methods"]["ligo"]
    assert found["savings"] == {"paper": None, "net": None}
    assert [end["bound"] for end in found["ends"]] == ["at most", "at most"]
    assert found["ends"][1]["saved"]["paper"] == pytest.approx(20.0)
    # At an equal cost, scratch is known only to be at its first end or above.
    assert found["ends"][1]["gap_bound"]["paper"] == "at most"
    assert record["verdict"]["best"] == {"net": None, "paper": None}
    assert record["verdict"]["grows_pay"] == {"net": None, "paper": None}
    assert record["break_even"][0]["targets"] is None


def test_one_end_gives_one_reading() -> None:
    found = measured(FEW, replaced={"ligo": runs((0.5, scratch_law(0.8 * BUDGET)))})["methods"]["ligo"]
    assert found["savings"] == {"paper": None, "net": None}
    assert found["headline"]["paper"]["saved"] == pytest.approx(37.5, abs=0.01)
    assert found["headline"]["net"]["saved"] == pytest.approx(100 * (1 - 0.65 / 0.8), abs=0.01)
    assert found["headline"]["paper"]["share"] == pytest.approx(0.8)
    assert found["headline"]["paper"]["step"] == TARGET_STEPS / 2


def test_runs_that_are_not_finite_are_kept_and_read_as_nothing() -> None:
    found = measured(FEW, replaced={"ligo": runs((0.25, math.nan), (0.5, None))})["methods"]["ligo"]
    assert [end["loss"] for end in found["ends"]] == [None, None]
    assert [end["saved"] for end in found["ends"]] == [{"paper": None, "net": None}] * 2
    assert found["headline"] == {"paper": None, "net": None}
    some = measured(FEW, replaced={"ligo": runs((0.25, math.nan), (0.5, scratch_law(BUDGET)), (1.0, math.inf))})
    assert some["methods"]["ligo"]["savings"]["paper"] == pytest.approx(50.0)


def test_scratch_without_a_loss_after_the_whole_budget_has_no_final_loss() -> None:
    record = measured(FEW, replaced={"scratch": runs((0.25, 3.7), (0.63, 3.44), (1.0, None))})
    found = record["methods"]["ligo"]
    assert found["savings"] == {"paper": None, "net": None}
    assert found["ends"][0]["saved"]["paper"] is not None
    assert found["headline"]["paper"]["at"] == "its own end"
    assert found["headline"]["paper"]["share"] is None
    json.dumps(record, allow_nan=False)
    nothing = measured(FEW, replaced={"scratch": runs((0.25, None), (1.0, None))})
    assert nothing["methods"]["ligo"]["headline"] == {"paper": None, "net": None}
    assert nothing["verdict"]["grows_pay"] == {"net": None, "paper": None}


def test_scratch_may_be_measured_beyond_the_budget() -> None:
    more = runs(*((share, scratch_law(share * BUDGET)) for share in (*SHARES, 2.0)))
    found = measured(FEW, replaced={"scratch": more})["methods"]["ligo"]
    assert found["savings"]["paper"] == pytest.approx(40.0, abs=0.1)
    assert [end["bound"] for end in found["ends"]] == [None] * 4
    assert found["ends"][-1]["saved"]["paper"] == pytest.approx(40.0, abs=0.1)


def test_a_longer_run_of_scratch_that_ends_higher_does_not_make_growing_look_better() -> None:
    uneven = runs((0.25, 3.7), (0.5, 3.3), (1.0, 3.35))
    found = measured(FEW, replaced={"scratch": uneven, "ligo": runs((0.3, 3.35), (0.6, 3.2))})["methods"]["ligo"]
    # Scratch had 3.35 well before half of its budget.
    there = 0.25 * 2 ** ((3.7 - 3.35) / 0.4)
    assert found["savings"]["paper"] == pytest.approx(100 * (1 - 0.3 / there), abs=0.01)


def test_a_seed_that_is_missing_leaves_no_mean() -> None:
    whole = measured(FEW, seeds=(0, 1))
    ligo = {seed: SeedRuns(ends=[End(steps=end["step"], flops=end["flops"], loss=end["loss"]) for end in run["ends"]])
            for seed, run in ((seed, whole["methods"]["ligo"]["seeds"][str(seed)]) for seed in (0, 1))}  # fmt: skip
    short = {0: ligo[0], 1: SeedRuns(ends=ligo[1].ends[:2])}
    found = measured(FEW, seeds=(0, 1), replaced={"ligo": short})["methods"]["ligo"]
    assert [end["seeds"] for end in found["ends"]] == [2, 2, 1, 1]
    assert [end["loss"] is None for end in found["ends"]] == [False, False, True, True]
    assert found["savings"] == {"paper": None, "net": None}, "one of two seeds does not reach scratch's loss"
    assert found["seeds"]["0"]["savings"]["paper"] is not None
    scratch = {0: SeedRuns(ends=ligo[0].ends)}
    alone = measured(FEW, seeds=(0, 1), replaced={"scratch": scratch})["methods"]["ligo"]
    assert alone["seeds"]["1"]["savings"] == {"paper": None, "net": None}
    assert alone["seeds"]["1"]["ends"][0]["saved"] == {"paper": None, "net": None}


def test_of_seeds_with_and_without_a_bound_the_mean_is_a_bound() -> None:
    ends = {seed: runs((0.5, loss))[0] for seed, loss in ((0, FINAL), (1, FINAL - 1.0))}
    found = measured(FEW, seeds=(0, 1), replaced={"ligo": ends})["methods"]["ligo"]
    assert found["ends"][0]["bound"] == "at least"
    assert found["ends"][0]["saved"]["paper"] == pytest.approx(50.0)
    assert found["ends"][0]["saved_std"]["paper"] is None
    both = {seed: runs((0.5, loss))[0] for seed, loss in ((0, 9.0), (1, 1.0))}
    mixed = measured(FEW, seeds=(0, 1), replaced={"ligo": both})["methods"]["ligo"]["ends"][0]
    assert (mixed["bound"], mixed["saved"]["paper"]) == ("mixed", None)


def test_without_the_cost_of_the_source_there_is_no_net() -> None:
    record = measured(sources={"small": (None, 3.9)})
    found = record["methods"]["ligo"]
    assert found["savings"]["net"] is None
    assert found["savings"]["paper"] == pytest.approx(40.0, abs=0.1)
    assert found["headline"]["net"] is None
    assert {end["net_flops"] for end in found["ends"]} == {None}
    assert record["methods"]["stackbert"]["savings"]["net"] == pytest.approx(10.0, abs=0.1)


def test_two_runs_of_one_length_are_refused() -> None:
    with pytest.raises(ValueError, match="ligo: two runs of one seed have the same number of steps"):
        measured(FEW, replaced={"ligo": runs((0.5, 3.4), (0.5, 3.5))})


def test_a_seed_changes_nothing_that_is_common_to_all() -> None:
    one = measured({"ligo": Grown(paper=40.0)})
    three = measured({"ligo": Grown(paper=40.0)}, seeds=(0, 1, 2))
    for way in ("paper", "net"):
        assert one["methods"]["ligo"]["savings"][way] == pytest.approx(
            three["methods"]["ligo"]["savings"][way], abs=0.01
        )

"""Laws of the verdict: it says plainly what pays, what does not, and what is not known, and claims nothing beyond the runs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from support.comparisons import BUDGET, GROWN, TARGET_STEPS, Control, Grown, measured, scratch_law

from ligo_convert.comparison.frontier import End
from ligo_convert.comparison.record import SeedRuns
from ligo_convert.comparison.tables import targets_text
from ligo_convert.comparison.verdict import amount_saved, optimizer_gain, scratch_is_lower

STRONG = {"never": Control(quarter=3.3, whole=3.0)}
WEAK = {"never": Control(quarter=5.0, whole=4.5)}


def text_of(record: dict[str, Any]) -> str:
    return " ".join(record["verdict"]["text"])


def test_the_best_is_named_for_both_ways_with_its_spread() -> None:
    record = measured(seeds=(0, 1, 2))
    verdict = record["verdict"]
    assert {way: found["method"] for way, found in verdict["best"].items()} == {"net": "ligo", "paper": "ligo"}
    assert verdict["best"]["net"]["saved"] == pytest.approx(25.0, abs=0.1)
    assert verdict["best"]["net"]["end"] is None
    assert verdict["grows_pay"] == {"net": True, "paper": True}
    assert verdict["ahead"]["net"]["next"] == "lemon"
    assert verdict["ahead"]["net"]["beyond_spread"] is True
    assert (
        "Source charged (net): `ligo` saves most, 25.0 % +- 1.0 of scratch's FLOPs at scratch's final loss of 3.306."
        in text_of(record)
    )
    assert (
        "at a loss of 3.306, `ligo` is 10.0 points ahead of the next method, `lemon`: more than the deviations of both"
        in text_of(record)
    )
    assert "One seed" not in text_of(record)


def test_a_source_is_paid_back_by_the_method_that_saves_most() -> None:
    """Of two methods that need as many targets, whatever their order."""
    grown = {"aki": Grown(paper=20.0), "net2net": Grown(paper=40.0), "zero": Grown(paper=30.0)}
    for names in (list(grown), list(reversed(grown))):
        record = measured({name: grown[name] for name in names}, sources={"small": (0.15, 3.9)})
        assert "pays for itself with one target, by `net2net`" in text_of(record)


def test_a_lead_within_the_spread_is_said_to_be_one() -> None:
    close = {"ligo": Grown(paper=40.0, spread=1.0), "lemon": Grown(paper=39.0, spread=1.0)}
    record = measured(close, seeds=(0, 1, 2))
    assert record["verdict"]["ahead"]["net"]["beyond_spread"] is False
    assert "no more than the deviations of both" in text_of(record)


def test_the_best_and_the_next_are_read_at_one_loss() -> None:
    record = measured({"short": Grown(paper=50.0, shares=(0.2, 0.3)), "long": Grown(paper=45.0)}, seeds=(0, 1))
    # `short` ends above scratch's final loss, where `long` is read at 3.3.
    ahead = record["verdict"]["ahead"]["paper"]
    assert record["verdict"]["best"]["paper"]["method"] == "short"
    assert ahead["loss"] == pytest.approx(scratch_law(0.6 * BUDGET) + 0.003, abs=1e-3)
    assert ahead["difference"] == pytest.approx(5.0, abs=0.3)
    assert ahead["bounds"] == [None, None]


def test_one_seed_decides_nothing_about_spreads() -> None:
    record = measured()
    assert record["verdict"]["ahead"]["net"]["beyond_spread"] is None
    assert "points ahead" not in text_of(record)
    assert "One seed: the spread over seeds is unknown" in text_of(record)


def test_where_net_does_not_pay_it_says_so() -> None:
    record = measured({"ligo": Grown(paper=10.0)})
    assert record["verdict"]["grows_pay"] == {"net": False, "paper": True}
    assert (
        "Source charged (net): growing does not pay. The best method, `ligo`, takes 5.0 % more FLOPs than scratch at scratch's final loss"
        in text_of(record)
    )
    assert "Source left out (paper): `ligo` saves most, 10.0 %" in text_of(record)


def test_a_method_that_never_has_scratchs_loss_is_read_at_its_own() -> None:
    record = measured({"ligo": Grown(paper=40.0, shares=(0.25, 0.48))})
    best = record["verdict"]["best"]["net"]
    assert best["at"] == "its own end"
    assert best["end"] == round(0.48 * TARGET_STEPS)
    assert best["share"] == pytest.approx(0.8, abs=0.001)
    text = text_of(record)
    assert "at its own lowest loss of 3.364, which scratch has at 80 % of its FLOPs" in text
    assert "no method reaches scratch's final loss" in text
    both = text_of(measured({"ligo": Grown(paper=40.0, shares=(0.25, 0.48)), "lemon": Grown(paper=17.0)}))
    assert "of the methods that reach scratch's final loss of 3.300, `lemon` saves most, 2.0 %." in both


def test_a_bound_is_told_as_one() -> None:
    record = measured({"ligo": Grown(paper=80.0)})
    assert record["methods"]["ligo"]["savings_bound"]["net"] == "at least"
    assert "`ligo` saves most, at least 60.0 % of scratch's FLOPs" in text_of(record)
    assert amount_saved(42.04, "at least", None) == "at least 42.0 %"
    assert amount_saved(None) == "none"


def test_a_method_with_a_bound_below_the_best_may_be_better() -> None:
    grown = {"ligo": Grown(paper=60.0), "dear": Grown(paper=90.0, shares=(0.5, 1.0))}
    record = measured(grown)
    assert record["verdict"]["best"]["paper"]["method"] == "ligo"
    assert (
        "Source left out (paper): these methods may save more than the best, because only a bound is known: `dear` (at least 50.0 %)."
        in record["verdict"]["text"]
    )
    assert "may save more" not in text_of(measured())
    # A source that costs more than scratch is spent in any case: the bound leaves no room.
    dear = grown | {"dear": Grown(paper=90.0, source="zoo")}
    text = text_of(measured(dear, sources={"small": (0.15, 3.9), "zoo": (2.9, 3.2)}))
    assert "Source left out (paper): `dear` saves most" in text
    assert "Source charged (net): these methods may save more" not in text


def test_a_smaller_model_that_wins_is_named_with_both_losses() -> None:
    record = measured(controls=STRONG)
    wins = record["verdict"]["never_grown_wins"]
    known = [row for row in record["equal_budget"] if row["never_grown"] is not None]
    assert len(wins) == len(known) >= 4
    for win in wins:
        assert win["control"] == "never"
        assert win["control_loss"] <= win["best_loss"]
    assert f"A smaller model wins at {len(wins)} of {len(known)} costs (25 to " in text_of(record)
    assert "`never` has 3." in text_of(record)


def test_a_smaller_model_that_wins_at_small_costs_only() -> None:
    record = measured({"stackbert": GROWN["stackbert"]})
    assert [win["share"] for win in record["verdict"]["never_grown_wins"]] == [0.25]
    assert "A smaller model wins at 1 of 4 costs (25 % of scratch's FLOPs)" in text_of(record)
    assert "At 25 %, `4 layers` has 3.620 and `stackbert` 3.670." in text_of(record)
    assert "Scratch never wins" in text_of(record)


def test_a_method_that_was_not_run_at_a_cost_may_be_the_best_there() -> None:
    """`ligo` with its source's 15 % costs 40 % at least: at 25 % it may have any loss down to that of its first end."""
    rows = {
        row["share"]: row for row in measured({"stackbert": GROWN["stackbert"], "ligo": GROWN["ligo"]})["equal_budget"]
    }
    assert rows[0.25]["net"]["name"] == "stackbert"
    assert rows[0.25]["control"]["loss"] < rows[0.25]["net"]["loss"]
    assert rows[0.25]["net_at_least"] == pytest.approx(scratch_law(0.25 * BUDGET / 0.6), abs=1e-5)
    assert rows[0.25]["control"]["loss"] > rows[0.25]["net_at_least"]
    assert rows[0.25]["never_grown"] is None
    # A source that costs more than that leaves nothing to run.
    dear = measured(
        {"stackbert": GROWN["stackbert"], "ligo": Grown(paper=80.0, source="zoo")}, sources={"zoo": (2.9, 3.9)}
    )
    assert {row["share"]: row["never_grown"] for row in dear["equal_budget"]}[0.25] is True
    # Beyond its last end a method may have any loss at all.
    short = {"stackbert": Grown(paper=10.0, source=None), "late": Grown(paper=5.0, source=None, shares=(0.25, 0.4))}
    decided = {row["share"]: row["never_grown"] for row in measured(short, STRONG)["equal_budget"]}
    assert (decided[0.4], decided[1.0]) == (True, None)


def test_scratch_wins_only_where_no_method_may_be_lower() -> None:
    slow = {"stackbert": Grown(paper=-20.0, source=None), "ligo": GROWN["ligo"]}
    for row in measured(slow)["equal_budget"]:
        if row["share"] == 0.25:
            assert row["scratch"]["loss"] < row["net"]["loss"]
            assert scratch_is_lower(row) is None
    assert {scratch_is_lower(row) for row in measured({"stackbert": slow["stackbert"]})["equal_budget"]} == {True}


def test_a_bound_on_the_control_is_told_as_one() -> None:
    # The source, at 15 % of scratch's FLOPs, is only known not to be above 3.0 at more.
    record = measured(controls={}, sources={"small": (0.15, 3.0)})
    last = record["verdict"]["never_grown_wins"][-1]
    assert last["control_bound"] == "at most"
    assert "`source small` has at most 3.000" in text_of(record)


def test_growing_does_not_pay_only_where_that_is_certain() -> None:
    # Its first run has less than scratch's final loss already: at least -5 % with a source of 80 %, at most 20 %.
    bounded = measured({"ligo": Grown(paper=90.0)}, sources={"small": (0.8, 3.9)})
    found = bounded["methods"]["ligo"]["headline"]["net"]
    assert (found["bound"], round(found["saved"])) == ("at least", -5)
    assert bounded["verdict"]["grows_pay"]["net"] is None
    assert "Source charged (net): whether growing pays is not decided, because only bounds are known." in text_of(
        bounded
    )
    # A source that costs more than scratch leaves no room.
    dear = measured({"ligo": Grown(paper=90.0)}, sources={"small": (1.2, 3.9)})
    assert dear["verdict"]["grows_pay"]["net"] is False
    assert "Source charged (net): growing does not pay." in text_of(dear)


def test_a_method_that_trains_the_target_in_another_way_is_no_growth() -> None:
    cosine = {"scratch+cosine": Grown(paper=50.0, source=None)}
    late = {"late": Grown(paper=10.0, source=None)}
    record = measured(cosine | late, grows={"scratch+cosine": False})
    assert record["methods"]["scratch+cosine"]["grows"] is False
    assert record["verdict"]["best"]["net"]["method"] == "late"
    assert {row["net"]["name"] for row in record["equal_budget"]} == {"late"}
    alone = measured(cosine, grows={"scratch+cosine": False})
    assert alone["verdict"]["grows_pay"] == {"net": None, "paper": None}
    assert "scratch+cosine" not in text_of(alone)


def test_no_smaller_model_wins() -> None:
    record = measured(controls=WEAK)
    assert record["verdict"]["never_grown_wins"] == []
    assert "No smaller model wins" in text_of(record)


def test_a_win_within_the_spread_is_said_to_be_one() -> None:
    def control(step: int, *losses: float) -> dict[int, SeedRuns]:
        return {
            seed: SeedRuns(ends=[End(steps=step, flops=0.25 * BUDGET, loss=loss)]) for seed, loss in enumerate(losses)
        }

    grown = {"stackbert": Grown(paper=10.0, source=None)}
    loss = scratch_law(0.25 * BUDGET / 0.9)
    for losses, beyond in (((loss - 0.02, loss + 0.006 - 0.02), 1), ((loss - 0.3, loss + 0.006 + 0.29), 0)):
        record = measured(
            grown, seeds=(0, 1), replaced={"4 layers": control(2000, *losses)}, sources={"small": (0.15, 9.0)}
        )
        assert [win["share"] for win in record["verdict"]["never_grown_wins"]] == [0.25]
        assert f"At {beyond} of them, by more than the deviation over the seeds." in text_of(record)


def test_runs_of_one_budget_are_compared_although_they_do_not_cost_exactly_the_same() -> None:
    # Whole steps: a little less than scratch's.
    grown = {"stackbert": Grown(paper=10.0, source=None, shares=(0.2495, 0.4, 0.63, 0.998))}
    never = {"never": Control(quarter=3.6, whole=3.5, shares=(0.2485, 0.4, 0.63, 0.996))}
    record = measured(grown, never)
    assert [round(row["share"], 2) for row in record["equal_budget"]] == [0.25, 0.4, 0.63, 1.0]
    for row in record["equal_budget"]:
        assert row["never_grown"] is not None
        assert {row[key]["bound"] for key in ("scratch", "control", "net", "paper")} == {None}


def test_without_a_control_nothing_is_said_about_smaller_models() -> None:
    record = measured(controls={}, sources={"small": (None, 3.9)})
    assert "No control was trained" in text_of(record)
    assert "smaller model wins" not in text_of(record)


def test_the_source_is_a_control_of_its_own() -> None:
    # The source has 3.0 at 15 % of scratch's FLOPs: no method is as good at any cost.
    record = measured(controls={}, sources={"small": (0.15, 3.0)})
    assert {row["control"]["name"] for row in record["equal_budget"]} == {"source small"}
    assert record["verdict"]["never_grown_wins"]
    # At 3.9 it says nothing about a source that is trained longer.
    assert measured(controls={})["verdict"]["never_grown_wins"] == []
    assert "whether it does as well is not known" in text_of(measured(controls={}))


def test_a_control_is_beaten_or_wins_only_where_that_is_certain() -> None:
    # It ends at a quarter of the budget, above the methods there: what it would have at more is not known.
    short = {"never": Control(quarter=3.8, whole=3.7, shares=(0.2, 0.25))}
    record = measured(controls=short, sources={"small": (0.15, 9.0)})
    decided = {row["share"]: row["never_grown"] for row in record["equal_budget"]}
    assert decided[0.25] is False
    assert decided[1.0] is None
    assert {row["margin"] for row in record["equal_budget"] if row["never_grown"] is None} == {None}
    # No method costs as little as a fifth of the budget, but the control has less there than every method at its first end.
    early = {"never": Control(quarter=3.0, whole=2.9, shares=(0.2, 1.0))}
    first = measured(controls=early)["equal_budget"][0]
    assert (first["share"], first["net"]["bound"], first["never_grown"]) == (0.2, "at least", True)


def test_at_equal_budget_the_source_is_charged_and_not_charged() -> None:
    record = measured({"ligo": GROWN["ligo"]})
    row = next(row for row in record["equal_budget"] if row["share"] == 1.0)
    assert row["scratch"]["loss"] == pytest.approx(3.3)
    assert row["paper"]["loss"] == pytest.approx(scratch_law(BUDGET / 0.6), abs=1e-3)
    assert row["net"]["loss"] == pytest.approx(scratch_law(0.85 * BUDGET / 0.6), abs=1e-3)
    shares = [row["share"] for row in record["equal_budget"]]
    assert shares == sorted(shares)
    assert all(after > before * 1.009 for before, after in pairwise(shares))


def test_scratch_that_wins_is_named() -> None:
    record = measured({"ligo": Grown(paper=-20.0)})
    assert record["verdict"]["grows_pay"] == {"net": False, "paper": False}
    assert (
        "Scratch itself has a loss at or below that of every method with its source charged at 7 of 7 costs"
        in text_of(record)
    )
    assert "The source `small` never pays for itself" in text_of(record)


@pytest.mark.parametrize(
    ("paper", "share", "targets"), [(40.0, 0.15, 1), (40.0, 0.4, 1), (40.0, 0.45, 2), (25.0, 0.75, 3), (10.0, 0.95, 10)]
)
def test_break_even_counts_targets(paper: float, share: float, targets: int) -> None:
    ends = {0: SeedRuns(ends=[End(steps=2000, flops=(1 - paper / 100) * BUDGET, loss=scratch_law(BUDGET))])}
    (row,) = measured({"ligo": GROWN["ligo"]}, sources={"small": (share, 3.9)}, replaced={"ligo": ends})["break_even"]
    assert row["saved_paper"] == pytest.approx(paper)
    assert row["saved_net"] == pytest.approx(paper - 100 * share)
    assert row["targets"] == targets
    assert row["source_limit"] == pytest.approx(paper / 100)
    # One target fewer does not pay the source back.
    assert targets * paper / 100 >= share - 1e-9
    assert (targets - 1) * paper / 100 < share


def test_break_even_says_why_there_is_none() -> None:
    never = measured({"ligo": Grown(paper=-20.0)})["break_even"][0]
    assert (never["targets"], never["reason"]) == (None, "it saves nothing even with the source left out")
    unknown = measured({"ligo": Grown(paper=20.0)}, sources={"small": (None, 3.9)})["break_even"][0]
    assert (unknown["targets"], unknown["reason"]) == (None, "the source's cost is unknown")
    bound = measured({"ligo": Grown(paper=90.0)}, sources={"small": (2.0, 3.9)})["break_even"][0]
    assert (bound["targets"], bound["targets_bound"]) == (3, "at most")
    assert (never["never"], unknown["never"], bound["never"]) == (True, False, False)
    # One run alone, cheaper than all of scratch's and above them: what it saves is only bounded from above.
    above = {0: SeedRuns(ends=[End(steps=800, flops=0.2 * BUDGET, loss=scratch_law(0.2 * BUDGET))])}
    open_record = measured({"ligo": GROWN["ligo"]}, replaced={"ligo": above})
    (row,) = open_record["break_even"]
    assert (row["targets"], row["never"], row["bound"]) == (None, False, "at most")
    assert targets_text(row) == "not known"
    assert "never pays for itself" not in text_of(open_record)
    assert "once at most 3 targets grow from it" in text_of(
        measured({"ligo": Grown(paper=90.0)}, sources={"small": (2.0, 3.9)})
    )


def test_sources_of_several_strengths_show_where_net_turns() -> None:
    grown = {
        "ligo@paper": Grown(paper=40.0, source="paper", base="ligo"),
        "ligo@zoo": Grown(paper=60.0, source="zoo", base="ligo"),
    }
    record = measured(grown, sources={"paper": (0.2, 3.9), "zoo": (0.7, 3.6)})
    (found,) = record["sources_tried"]
    assert found["base"] == "ligo"
    assert [point["fraction"] for point in found["points"]] == [0.2, 0.7]
    assert [point["net"]["saved"] for point in found["points"]] == pytest.approx([20.0, -10.0], abs=0.1)
    assert found["crossings"] == pytest.approx([0.2 + 0.5 * 2 / 3], abs=0.01)
    # Between a figure and a bound it is not known where the sign changes.
    grown["ligo@zoo"] = Grown(paper=90.0, source="zoo", base="ligo")
    (bounded,) = measured(grown, sources={"paper": (0.2, 3.9), "zoo": (2.9, 3.6)})["sources_tried"]
    assert [point["net"]["bound"] for point in bounded["points"]] == [None, "at least"]
    assert bounded["crossings"] == []


def test_the_optimizers_gain_is_told_as_the_optimizers() -> None:
    record = measured()
    assert record["optimizer"]["gain"] == {"adamw": {"loss": 4.669, "against": 4.056, "steps": 1000}}
    assert (
        "The optimizer's own gain: scratch has 4.056 with `muon` and 4.669 with `adamw` after 1,000 steps, 0.613 nats lower."
        in text_of(record)
    )
    run = {"learning_rate": 1.0, "decay": 0.2, "schedule": "stable"}
    tried = [
        {"optimizer": "muon", "steps": 10, "validation_loss": 3.0, **run},
        {"optimizer": "muon", "steps": 20, "validation_loss": 2.0, **run},
        {"optimizer": "adamw", "steps": 10, "validation_loss": 3.5, **run},
        {"optimizer": "adamw", "steps": 30, "validation_loss": 1.0, **run},
        {"optimizer": "sgd", "steps": 10, "validation_loss": math.nan, **run},
        {"optimizer": "lion", "steps": 7, "validation_loss": 3.0, **run},
    ]
    # Only at a number of steps that both were tried for.
    assert optimizer_gain("muon", tried) == {"adamw": {"loss": 3.5, "against": 3.0, "steps": 10}}
    assert optimizer_gain("muon", []) == {}


def test_a_comparison_without_methods_has_a_verdict_too() -> None:
    record = measured({})
    assert record["verdict"]["best"] == {"net": None, "paper": None}
    assert record["break_even"] == []
    assert all("None" not in sentence for sentence in record["verdict"]["text"])


@pytest.mark.parametrize("losses", [(None, None), (9.0, 8.0), (1.0, 0.5)])
def test_no_sentence_shows_a_figure_that_is_not_there(losses: tuple[float | None, float | None]) -> None:
    ends = {
        0: SeedRuns(
            ends=[End(steps=at, flops=at * 1e10, loss=loss) for at, loss in zip((1000, 2000), losses, strict=True)]
        )
    }
    for name in ("ligo", "scratch", "4 layers"):
        for sources in ({"small": (0.15, 3.9)}, {"small": (None, 3.9)}):
            record = measured(replaced={name: ends}, sources=sources)
            text = text_of(record)
            assert "None" not in text
            assert "nan" not in text.split()
            assert all(sentence.endswith(".") for sentence in record["verdict"]["text"])

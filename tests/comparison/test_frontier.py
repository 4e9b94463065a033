"""Laws of reading finished runs: exact between two ends, a bound outside them, nothing extrapolated."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from ligo_convert.comparison.frontier import (
    NOTHING,
    End,
    Frontier,
    Reading,
    gap,
    mean,
    saved,
    saved_by,
    spread,
)

# loss = 5 - log2(FLOPs / 100): a line in (log FLOPs, loss), so that every reading between ends is known in closed form.
COSTS = (100.0, 200.0, 400.0, 1600.0)


def law(flops: float) -> float:
    return 5 - math.log2(flops / 100)


def ends(*pairs: tuple[float, float | None]) -> list[End]:
    return [End(steps=number + 1, flops=flops, loss=loss) for number, (flops, loss) in enumerate(pairs)]


LINE = Frontier(ends(*((flops, law(flops)) for flops in COSTS)))


@pytest.mark.parametrize("flops", [100.0, 150.0, 200.0, 399.0, 800.0, 1600.0])
def test_between_two_ends_a_reading_is_the_line_through_them(flops: float) -> None:
    assert LINE.loss_at(flops).value == pytest.approx(law(flops))
    assert LINE.loss_at(flops).bound is None
    assert LINE.flops_at(law(flops)).value == pytest.approx(flops)
    assert LINE.flops_at(law(flops)).bound is None


def test_at_an_end_a_reading_is_that_end_exactly() -> None:
    for flops, loss in LINE.points:
        assert LINE.loss_at(flops) == Reading(loss)
        assert LINE.flops_at(loss) == Reading(flops)


def test_outside_the_ends_a_reading_is_a_bound_by_the_nearest_end() -> None:
    assert LINE.loss_at(50.0) == Reading(5.0, "at least")
    assert LINE.loss_at(9999.0) == Reading(1.0, "at most")
    assert LINE.flops_at(6.0) == Reading(100.0, "at most")
    assert LINE.flops_at(0.5) == Reading(1600.0, "at least")


def test_a_cost_that_is_nearly_that_of_an_end_may_count_as_its() -> None:
    assert LINE.loss_at(99.1, tolerance=0.01) == Reading(5.0)
    assert LINE.loss_at(98.9, tolerance=0.01) == Reading(5.0, "at least")
    assert LINE.loss_at(1615.0, tolerance=0.01) == Reading(1.0)
    assert LINE.loss_at(1617.0, tolerance=0.01) == Reading(1.0, "at most")


def test_one_end_is_exact_at_itself_and_a_bound_elsewhere() -> None:
    one = Frontier(ends((100.0, 3.0)))
    assert one.loss_at(100.0) == Reading(3.0)
    assert one.loss_at(99.0) == Reading(3.0, "at least")
    assert one.loss_at(-1.0) == Reading(3.0, "at least")  # what is left of a budget that the source has used up
    assert one.loss_at(101.0) == Reading(3.0, "at most")
    assert one.flops_at(3.0) == Reading(100.0)
    assert one.flops_at(3.1) == Reading(100.0, "at most")
    assert one.flops_at(2.9) == Reading(100.0, "at least")


def test_without_a_finite_end_nothing_is_read() -> None:
    for none in (Frontier([]), Frontier(ends((100.0, None), (200.0, math.nan), (300.0, math.inf)))):
        assert none.loss_at(100.0) == NOTHING
        assert none.flops_at(3.0) == NOTHING


def test_a_longer_run_that_ends_higher_does_not_raise_the_frontier() -> None:
    uneven = Frontier(ends((400.0, 3.0), (100.0, 4.0), (200.0, 2.0), (800.0, None), (1600.0, 1.0)))
    assert uneven.points == ((100.0, 4.0), (200.0, 2.0), (400.0, 2.0), (1600.0, 1.0))
    assert uneven.flops_at(2.0) == Reading(200.0)  # the cheapest
    assert uneven.loss_at(300.0) == Reading(2.0)
    assert uneven.flops_at(1.5).value == pytest.approx(800.0)
    losses = [uneven.loss_at(flops).value for flops in range(50, 2000, 25)]
    assert all(after <= before for before, after in pairwise(losses) if before is not None and after is not None)


def test_of_runs_with_the_same_cost_the_better_one_counts() -> None:
    same = Frontier(ends((100.0, 4.0), (100.0, 3.0), (200.0, 2.0)))
    assert same.points == ((100.0, 3.0), (200.0, 2.0))
    assert Frontier(ends((100.0, 3.0), (100.0, 4.0))).loss_at(100.0) == Reading(3.0)


@pytest.mark.parametrize("flops", [0.0, -1.0, math.nan, math.inf])
def test_a_run_costs_something(flops: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        End(steps=1, flops=flops, loss=3.0)


def test_savings_and_gaps_keep_their_bounds() -> None:
    # A run of 300 FLOPs that ends where scratch ends with 800: 62.5 % saved.
    assert saved(300.0, LINE.flops_at(law(800.0))).value == pytest.approx(62.5)
    assert saved(300.0, LINE.flops_at(0.0)) == Reading(100 * (1 - 300 / 1600), "at least")
    assert saved(300.0, LINE.flops_at(9.0)) == Reading(-200.0, "at most")
    assert saved(300.0, NOTHING) == NOTHING
    # At a known loss of scratch, a cost of at most 200 saves at least 75 %.
    assert saved_by(Reading(200.0, "at most"), 800.0) == Reading(75.0, "at least")
    assert saved_by(NOTHING, 800.0) == NOTHING
    assert gap(2.0, LINE.loss_at(400.0)) == Reading(-1.0)
    assert gap(0.5, LINE.loss_at(9999.0)) == Reading(-0.5, "at least")  # scratch may be lower, so the gap may be larger
    assert gap(4.5, LINE.loss_at(50.0)) == Reading(-0.5, "at most")
    assert gap(None, LINE.loss_at(50.0)) == gap(2.0, NOTHING) == NOTHING


def test_a_bound_says_only_what_is_certain() -> None:
    assert (Reading(3.0).at_least, Reading(3.0).at_most) == (3.0, 3.0)
    assert (Reading(3.0, "at least").at_least, Reading(3.0, "at least").at_most) == (3.0, None)
    assert (Reading(3.0, "at most").at_least, Reading(3.0, "at most").at_most) == (None, 3.0)
    assert (NOTHING.at_least, NOTHING.at_most) == (None, None)


def test_a_mean_needs_every_seed_and_is_a_bound_where_one_of_them_is() -> None:
    assert mean([Reading(1.0), Reading(2.0)]) == Reading(1.5)
    assert mean([Reading(1.0, "at most"), Reading(2.0)]) == Reading(1.5, "at most")
    assert mean([Reading(1.0, "at most"), Reading(2.0, "at least")]) == Reading(None, "mixed")
    assert mean([Reading(None, "mixed"), Reading(2.0)]) == Reading(None, "mixed")
    assert mean([Reading(1.0), NOTHING]) == mean([]) == NOTHING


def test_a_spread_needs_two_seeds_and_all_of_them_measured() -> None:
    assert spread([Reading(1.0), Reading(3.0)]) == pytest.approx(math.sqrt(2))
    for readings in ([Reading(1.0)], [Reading(1.0), NOTHING], [Reading(1.0), Reading(3.0, "at least")], []):
        assert spread(readings) is None

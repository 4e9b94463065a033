"""Projections from short trials of candidates whose law is known: who leads at the budget although behind early, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ligo_convert.comparison.projection import (
    BEST_RATIO,
    FLOPS_A_PARAMETER,
    PLATEAU,
    SIZE_POWER,
    Candidate,
    Leg,
    TrialEnd,
    falls_faster,
    on_plateau,
    project,
)

SHARES = (0.01, 0.02, 0.04)  # of the budget
BUDGET = 12.0  # tokens of the target
LEAST, SLOPE, POWER = 2.0, 0.5, 0.3  # a power that is none of those that are tried

# Size -> loss that no training goes below. At BEST_RATIO tokens a parameter, size and tokens are worth the same.
FLOORS = {
    size: LEAST + SLOPE * POWER / SIZE_POWER * (BEST_RATIO / FLOPS_A_PARAMETER) ** -POWER * size**-SIZE_POWER
    for size in (1.0, 0.5, 0.25)
}


def law(size: float, tokens: float) -> float:
    return float(FLOORS[size] + SLOPE * tokens**-POWER)


def reached(size: float, loss: float) -> float:
    """The tokens after which a model of a size has a loss."""
    return float((SLOPE / (loss - FLOORS[size])) ** (1 / POWER))


def drawn(size: float, *, off: float = 0.0, shares: Sequence[float] = SHARES) -> Candidate:
    """A model from drawn weights; its tokens at a cost are the fewer, the larger it is. `off` moves its trials up and down."""
    tokens = BUDGET / size
    ends = tuple(
        TrialEnd(tokens=share * tokens, loss=law(size, share * tokens) + (-1) ** number * off)
        for number, share in enumerate(shares)
    )
    return Candidate(legs=(Leg(size=size, share=1.0),), start=None, ends=ends, tokens=tokens)


def grown(start: float, *, handed: float = 1.0, shares: Sequence[float] = SHARES) -> Candidate:
    """A quarter-sized source of a loss, grown at once; it hands over a part of what its loss is worth."""
    before = handed * reached(1.0, start)
    ends = tuple(TrialEnd(tokens=share * BUDGET, loss=law(1.0, before + share * BUDGET)) for share in shares)
    return Candidate(legs=(Leg(size=0.25, share=0.0), Leg(size=1.0, share=1.0)), start=start, ends=ends, tokens=BUDGET)


def on_the_way(at: float, *, handed: float = 1.0) -> Candidate:
    """A drawn quarter-sized model that grows after a share of its tokens."""
    size = (at * 0.25 + 1 - at) / BUDGET

    def end(tokens: float) -> float:
        return law(1.0, handed * reached(1.0, law(0.25, at * tokens)) + (1 - at) * tokens)

    ends = tuple(TrialEnd(tokens=share / size, loss=end(share / size)) for share in SHARES)
    legs = (Leg(size=0.25, share=at), Leg(size=1.0, share=1 - at))
    return Candidate(legs=legs, start=None, ends=ends, tokens=1 / size)


SIZES = {"scratch": drawn(1.0), "half": drawn(0.5), "quarter": drawn(0.25)}


def test_the_target_wins_although_a_smaller_model_is_ahead_in_every_trial() -> None:
    last = {name: candidate.ends[-1].loss for name, candidate in SIZES.items()}
    assert last["half"] < last["scratch"], "the trials mislead"
    found = project(SIZES, noise=0.003)
    assert min(found, key=lambda name: found[name].loss) == "scratch"
    assert found["scratch"].leads > 0.7
    for name, candidate in SIZES.items():
        # 25 times the longest trial lies between.
        true = law(candidate.legs[0].size, candidate.tokens)
        assert found[name].loss == pytest.approx(true, abs=0.05)
        assert found[name].low - 0.03 <= true <= found[name].high + 0.03


def test_where_capacity_does_not_bind_the_smaller_model_stays_ahead() -> None:
    """The answer depends on the budget."""
    for budget, best in ((0.06, "half"), (1.0, "scratch")):
        cut = {name: replace(candidate, tokens=candidate.tokens * budget) for name, candidate in SIZES.items()}
        found = project(cut, noise=0.003)
        true = {name: law(candidate.legs[0].size, candidate.tokens) for name, candidate in cut.items()}
        assert min(true, key=lambda name: true[name]) == min(found, key=lambda name: found[name].loss) == best


def test_a_head_start_lasts_as_long_as_it_is_worth_tokens() -> None:
    """A source that is worth a tenth of the budget leads at the budget; one that is worth a hundredth does not lead by more than noise."""
    strong, weak = (law(1.0, share * BUDGET) for share in (0.3, 0.01))
    found = project({**SIZES, "strong": grown(strong), "weak": grown(weak)}, noise=0.003)
    assert found["strong"].loss < found["scratch"].loss - 0.01
    assert found["strong"].loss == pytest.approx(law(1.0, 1.3 * BUDGET), abs=0.05)
    assert found["scratch"].loss - found["weak"].loss < 0.01
    assert found["strong"].leads > max(one.leads for name, one in found.items() if name != "strong")
    worth_all = project({**SIZES, "strong": grown(law(1.0, BUDGET))}, noise=0.003)
    assert worth_all["strong"].leads > 0.9


def test_of_two_starts_the_one_that_hands_over_more_is_ahead() -> None:
    start = law(1.0, 0.3 * BUDGET)
    found = project({**SIZES, "whole": grown(start), "half of it": grown(start, handed=0.5)}, noise=0.003)
    assert found["whole"].loss < found["half of it"].loss < found["scratch"].loss


def test_a_start_that_is_worse_than_beginning_anew_stays_behind() -> None:
    lost = grown(law(1.0, 0.001 * BUDGET))
    lost = replace(lost, ends=tuple(replace(end, loss=end.loss + 0.2) for end in lost.ends))
    found = project({**SIZES, "lost": lost}, noise=0.003)
    assert found["lost"].loss > found["scratch"].loss + 0.1


def test_a_small_model_hands_over_no_more_than_it_can_learn() -> None:
    """Growing on the way pays in the trials, and less at a budget at which the small model has long stopped learning."""
    late, early = on_the_way(0.8), on_the_way(0.2)
    found = project({**SIZES, "late": late, "early": early}, noise=0.003)
    true = {
        name: law(1.0, reached(1.0, law(0.25, at * one.tokens)) + (1 - at) * one.tokens)
        for name, one, at in (("late", late, 0.8), ("early", early, 0.2))
    }
    for name, loss in true.items():
        assert found[name].loss == pytest.approx(loss, abs=0.05)
    assert (found["early"].loss < found["late"].loss) == (true["early"] < true["late"])


def test_noise_makes_a_choice_open() -> None:
    equal = {**SIZES, "twin": grown(law(1.0, 0.3 * BUDGET)), "other": grown(law(1.0, 0.29 * BUDGET))}
    sure, unsure = project(equal, noise=0.0005), project(equal, noise=0.02)
    assert unsure["twin"].high - unsure["twin"].low > sure["twin"].high - sure["twin"].low
    assert 0.2 < unsure["twin"].leads < 0.9
    several = {name: replace(one, ends=tuple(replace(end, seeds=9) for end in one.ends)) for name, one in equal.items()}
    assert project(several, noise=0.02)["twin"].leads >= unsure["twin"].leads - 0.05


def test_trials_that_are_not_clean_are_read_as_well() -> None:
    found = project({"scratch": drawn(1.0, off=0.004), "half": drawn(0.5, off=-0.004)}, noise=0.005)
    assert found["scratch"].loss < found["half"].loss


def test_projections_repeat_and_need_two_trials() -> None:
    assert project(SIZES) == project(SIZES)
    assert project({"scratch": drawn(1.0, shares=[0.01])}) == {}
    assert project({"start": grown(3.3)}) == {}
    assert project({**SIZES, "untried": replace(grown(3.3), ends=())}).keys() == SIZES.keys()
    shares = sum(one.leads for one in project(SIZES).values())
    assert shares == pytest.approx(1.0)


def otherwise(gain: float) -> Candidate:
    """The target, trained in another way than scratch from drawn weights: its trials are below those of scratch."""
    candidate = drawn(1.0)
    ends = tuple(replace(end, loss=end.loss - gain) for end in candidate.ends)
    return replace(candidate, ends=ends, plain=False)


def test_another_way_of_training_does_not_say_how_the_loss_of_scratch_falls() -> None:
    """Its trials change no other projection. What it gains in them counts for as many tokens, and what it loses stays lost."""
    alone = project(SIZES, noise=0.003)
    for gain in (0.3, 0.05, -0.2):
        found = project({**SIZES, "other": otherwise(gain)}, noise=0.003)
        assert {name: found[name].loss for name in SIZES} == pytest.approx(
            {name: one.loss for name, one in alone.items()}, abs=0.01
        )
        ahead = found["scratch"].loss - found["other"].loss
        assert (0 < ahead < gain / 2) if gain > 0 else ahead == pytest.approx(gain, abs=0.03)


# --- trials that end too early ----------------------------------------------------------------------------------------


def late(size: float, *, begins: float = 0.03) -> Candidate:
    """A drawn model that stays on a plateau at first: the loss falls slowly until a share of the budget, and then by its law."""

    def end(share: float) -> float:
        return min(4.4 - 0.03 * (share / 0.01), law(size, max(share / size - begins, 1e-3)))

    ends = tuple(TrialEnd(tokens=share / size, loss=end(share)) for share in SHARES)
    return Candidate(legs=(Leg(size=size, share=1.0),), start=None, ends=ends, tokens=1 / size)


def test_more_doubt_on_a_plateau_covers_where_training_ends() -> None:
    sizes = {"scratch": late(1.0, begins=0.06), "half": late(0.5, begins=0.06)}
    sure, doubtful = (project(sizes, noise=0.003, plateau=plateau) for plateau in (False, True))
    for name, size in (("scratch", 1.0), ("half", 0.5)):
        true = law(size, 1 / size)
        assert sure[name].loss > true + 0.3, "the law of the plateau is not that of what comes after"
        assert sure[name].low > true
        assert doubtful[name].low < true < doubtful[name].high


def test_doubt_about_the_law_does_not_change_who_leads() -> None:
    """What is wrong about the law is wrong for all: the range is wide, and a candidate that is far ahead stays so."""
    found = project({**SIZES, "strong": grown(law(1.0, 2.0 * BUDGET))}, noise=0.003)
    assert found["scratch"].high - found["scratch"].low > 0.2
    assert found["strong"].leads > 0.9


def test_a_plateau_is_told_from_frequencies_and_from_a_loss_that_falls_faster() -> None:
    assert on_plateau(4.9, 5.0)
    assert on_plateau(PLATEAU * 5.0 + 0.01, 5.0)
    assert not on_plateau(PLATEAU * 5.0 - 0.01, 5.0)
    assert not on_plateau(4.9, None)
    assert not any(falls_faster(candidate, noise=0.003) for candidate in SIZES.values())
    assert not falls_faster(grown(3.3), noise=0.003)
    leaves = drawn(1.0)
    leaves = replace(leaves, ends=(*leaves.ends[:2], replace(leaves.ends[2], loss=leaves.ends[1].loss - 0.5)))
    assert falls_faster(leaves, noise=0.003)
    assert not falls_faster(leaves, noise=0.5), "noise may do so"
    assert not falls_faster(replace(leaves, ends=leaves.ends[:2]), noise=0.003)

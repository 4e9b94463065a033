"""Project short trials to the whole budget: which candidate is expected to lead there.

Input: candidates as plain data: the models that each trains and in which shares of its tokens, where it starts, and the decayed ends of its
trials.
Output: the projected loss of every candidate at the budget with a range, and how often it leads.

The loss of a model that is trained from drawn weights follows the law of Hoffmann et al. (arXiv:2203.15556, equation 2) in its tokens D
and its parameters N: L = e + A N^-s + b D^-p. Trials are too short to show what a size cannot learn, so they determine e and b alone. A
follows from the tokens a parameter that this paper finds best for a given cost: there, a larger model gains by its size what it loses by
having fewer tokens. Several powers p vote.

Growth hands tokens over: a model that is grown at a loss goes on as one of its own size that has reached this loss, after a factor on the
tokens that this takes. So does a source that is trained on. The factor is the candidate's own, and its trials determine it. So a start that
is ahead early has a head start in tokens, which matters less the longer training lasts, and a small model can hand over no more than it can
learn. A model that is trained from drawn weights in another way than scratch has such a head start, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

NOISE: Final = (
    0.01  # nats between seeds where nothing was measured: the spread of small models (docs/development/log.md)
)

DRAWS: Final = 200  # votes

# Powers of the tokens: around that of Hoffmann et al., 0.28.
TOKEN_POWERS: Final = (0.2, 0.28, 0.35)

# Power of the parameters, of the same law.
SIZE_POWER: Final = 0.34

# Tokens a parameter at which neither a larger nor a smaller model of the same cost is better (Hoffmann et al., table 3).
BEST_RATIO: Final = 20.0

# FLOPs of training a model on one token, for each of its parameters.
FLOPS_A_PARAMETER: Final = 6.0

# How wrong a projection may be about how much further the loss falls, as standard deviations of the logarithm of that drop, where the
# budget is `FAR` times the trial: for all candidates together, and for one against the others. Trials on a plateau were wrong by factors of
# 3.1 to 6.5, all to the same side (docs/development/log.md, one check of `choose`).
DOUBT: Final = (0.3, 0.05)
DOUBT_ON_PLATEAU: Final = (1.3, 0.3)

FAR: Final = 25.0

PLATEAU: Final = (
    0.8  # a loss above this share of what knowing mere frequencies costs lies on the plateau that training begins with
)

MOST: Final = 1e3  # tokens that count as unlimited, in budgets of the target

# Factors on the tokens that growth hands over: from nothing to more than there was.
FACTORS: Final = np.concatenate([[0.0], np.geomspace(1e-3, 8.0, 160)])


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One model of a candidate.

    Attributes:
        size: FLOPs of training on one token.
        share: share of the candidate's tokens.
    """

    size: float
    share: float


@dataclass(frozen=True, kw_only=True)
class TrialEnd:
    """A trial that was trained to its end, with its learning rate decayed.

    Attributes:
        tokens: tokens of the trial.
        loss: its loss in nats, the mean over seeds.
        seeds: number of seeds.
    """

    tokens: float
    loss: float
    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to spend the budget.

    Attributes:
        legs: the models in order; growth lies between them. A candidate that starts from a source begins with the source's size and a share
            of zero.
        start: loss of the source that it starts from; None for drawn weights.
        ends: its trials, ascending.
        tokens: its tokens for the whole budget.
        plain: False for a drawn model that never grows and is trained in another way than scratch, such as by a teacher: it follows another
            law.
    """

    legs: tuple[Leg, ...]
    start: float | None
    ends: tuple[TrialEnd, ...]
    tokens: float
    plain: bool = True

    @property
    def is_drawn(self) -> bool:
        """Return whether it trains one model from drawn weights as scratch does, so that it determines the law."""
        return self.start is None and len(self.legs) == 1 and self.plain


@dataclass(frozen=True, kw_only=True)
class Projection:
    """The expected end of a candidate.

    Attributes:
        loss: projected loss at the whole budget, the median of the votes.
        low: lower end of the range that nine of ten votes lie in.
        high: upper end of that range.
        leads: share of the votes in which the candidate has the lowest loss of all.
    """

    loss: float
    low: float
    high: float
    leads: float


@dataclass(frozen=True, kw_only=True)
class _Law:
    """L = e + b (c(N) + D^-p). `c` is given, `e` and `b` are fitted. Tokens are in units of `unit`.

    Attributes:
        target: the largest size that was trained from drawn weights, in FLOPs a token.
    """

    p: float
    e: float
    b: float
    unit: float
    target: float

    def floor(self, size: float) -> float:
        """Return the loss of a size after unlimited tokens."""
        return self.e + self.b * _lack(size, self.target, self.p, self.unit)

    def loss(self, floor: float, tokens: Values) -> Values:
        """Return the loss after a number of tokens."""
        return np.asarray(floor + self.b * np.maximum(tokens / self.unit, 1e-9) ** -self.p, dtype=np.float64)

    def tokens(self, floor: float, loss: Values) -> Values:
        """Return the tokens after which a model has this loss, at most `MOST` budgets."""
        logs = (math.log(self.b) - np.log(np.maximum(loss - floor, 1e-300))) / self.p
        return np.asarray(self.unit * np.exp(np.minimum(logs, math.log(MOST))), dtype=np.float64)

    def end(self, candidate: Candidate, tokens: float, factor: Values) -> Values:
        """Return the loss of a candidate after `tokens`, for factors on what is handed over."""
        loss: Values | None = None
        if candidate.start is not None:
            loss = np.full_like(factor, candidate.start)
        for number, leg in enumerate(candidate.legs):
            if loss is not None and leg.share == 0:
                continue
            own = self.floor(leg.size)
            before = np.zeros_like(factor)
            if loss is not None:
                # A source that is trained on before it grows keeps what it has; one that never grows may lose some as the rate rises.
                kept = 1.0 if number == 0 and len(candidate.legs) > 1 else factor
                before = self.tokens(own, loss) * kept
            elif not candidate.plain:
                # Nothing says that another way of training gains more the longer it lasts.
                before = candidate.ends[-1].tokens * factor
            loss = self.loss(own, before + leg.share * tokens)
        assert loss is not None, "a candidate has a model"
        return loss


def on_plateau(loss: float, frequencies: float | None) -> bool:
    """Return whether a trial ended before its model has learned much more than frequencies.

    Args:
        loss: loss of the trial.
        frequencies: loss of knowing no more than how frequent each token or class is; None if unknown.
    """
    return frequencies is not None and loss > PLATEAU * frequencies


def falls_faster(candidate: Candidate, *, noise: float = NOISE) -> bool:
    """Return whether the loss falls faster from trial to trial, as it does when a plateau ends. No law that is fitted here does so.

    Rates are per factor on the tokens. A difference within two standard deviations of the noise does not count.
    """
    if len(candidate.ends) < 3:
        return False
    first, middle, last = candidate.ends[-3:]
    before, after = math.log(middle.tokens / first.tokens), math.log(last.tokens / middle.tokens)
    more = (middle.loss - last.loss) / after - (first.loss - middle.loss) / before
    spread = math.hypot(1 / before / math.sqrt(first.seeds), (1 / before + 1 / after) / math.sqrt(middle.seeds))
    return more > 2 * noise * math.hypot(spread, 1 / after / math.sqrt(last.seeds))


def project(
    candidates: Mapping[str, Candidate], *, noise: float = NOISE, draws: int = DRAWS, plateau: bool = False
) -> dict[str, Projection]:
    """Return the projections to the budget, as `project_at` makes them."""
    return project_at(candidates, (1.0,), noise=noise, draws=draws, plateau=plateau).get(1.0, {})


def project_at(
    candidates: Mapping[str, Candidate],
    times: Sequence[float],
    *,
    noise: float = NOISE,
    draws: int = DRAWS,
    plateau: bool = False,
) -> dict[float, dict[str, Projection]]:
    """Return the projections of all candidates that have trials to multiples of the budget; empty where no drawn model has two trials.

    Every vote adds noise to the trials, draws one of the powers by how well it fits, projects all candidates under its law, and doubts the
    result.

    Args:
        candidates: name -> candidate.
        times: multiples of the budget.
        noise: standard deviation of one trial's loss over seeds, in nats.
        draws: number of votes.
        plateau: whether trials ended on the plateau that training begins with, so that projections deserve more doubt.
    """
    tried = {name: candidate for name, candidate in candidates.items() if candidate.ends}
    anchors = [candidate for candidate in tried.values() if candidate.is_drawn]
    if not any(len(candidate.ends) > 1 for candidate in anchors):
        return {}
    errors = np.array([_fit(anchors, p)[1] for p in TOKEN_POWERS])
    weights = np.exp(-(errors - errors.min()) / (2 * noise**2))
    random = np.random.default_rng(0)
    votes, doubted = list[list[list[float]]](), list[Values]()
    for _ in range(draws):
        shaken = [_shaken(candidate, noise, random) for candidate in tried.values()]
        p = TOKEN_POWERS[random.choice(len(TOKEN_POWERS), p=weights / weights.sum())]
        law, _ = _fit([candidate for candidate in shaken if candidate.is_drawn], p)
        projected = [_projected(law, candidate, times) for candidate in shaken]
        votes.append(projected)
        doubted.append(_doubted(projected, list(tried.values()), times, DOUBT_ON_PLATEAU if plateau else DOUBT, random))
    losses, ranges = np.array(votes), np.array(doubted)  # [votes, candidates, times]
    return {
        factor: _counted(losses[:, :, place], ranges[:, :, place], list(tried)) for place, factor in enumerate(times)
    }


def _doubted(
    projected: Sequence[Sequence[float]],
    candidates: Sequence[Candidate],
    times: Sequence[float],
    doubt: tuple[float, float],
    random: np.random.Generator,
) -> Values:
    """Return projected losses [candidates, times], with the drops since the last trials made larger or smaller by chance."""
    losses, last = np.array(projected), np.array([[candidate.ends[-1].loss] for candidate in candidates])
    tokens = np.array([[candidate.tokens / candidate.ends[-1].tokens] for candidate in candidates]) * np.array(times)
    common, own = doubt
    far = np.clip(np.log(np.maximum(tokens, 1.0)) / math.log(FAR), 0.0, 1.5)  # [candidates, times]
    drops = np.maximum(last - losses, 0.0)
    # What is wrong about the law moves all ends alike, and what is wrong about a candidate its own.
    together = np.median(drops, axis=0) * (np.exp(common * random.standard_normal() * np.median(far, axis=0)) - 1)
    alone = drops * (np.exp(own * random.standard_normal((len(candidates), 1)) * far) - 1)
    return np.asarray(losses - together - alone, dtype=np.float64)


def _counted(losses: Values, doubted: Values, names: Sequence[str]) -> dict[str, Projection]:
    """Return the projections at one budget from the votes: losses [votes, candidates], and the same with doubt."""
    best = doubted.argmin(axis=1)
    return {
        name: Projection(
            loss=float(np.median(losses[:, number])),
            low=float(np.quantile(doubted[:, number], 0.05)),
            high=float(np.quantile(doubted[:, number], 0.95)),
            leads=float((best == number).mean()),
        )
        for number, name in enumerate(names)
    }


def _shaken(candidate: Candidate, noise: float, random: np.random.Generator) -> Candidate:
    ends = tuple(
        replace(end, loss=end.loss + noise / math.sqrt(end.seeds) * random.standard_normal()) for end in candidate.ends
    )
    return replace(candidate, ends=ends)


def _lack(size: float, target: float, p: float, unit: float) -> float:
    """Return what a size cannot learn, A N^-s in units of b.

    At the best ratio of tokens to parameters, s A N^-s = p b D^-p: at equal cost, size and tokens are worth the same. This holds for the
    size `target`; other sizes follow by the power of the parameters.
    """
    best = BEST_RATIO * target / FLOPS_A_PARAMETER
    return float(p / SIZE_POWER * (best / unit) ** -p * (size / target) ** -SIZE_POWER)


def _fit(anchors: Sequence[Candidate], p: float) -> tuple[_Law, float]:
    """Return the law with this power that fits models trained from drawn weights best, and the sum of its squared errors."""
    unit = max(candidate.tokens for candidate in anchors)
    target = max(candidate.legs[0].size for candidate in anchors)
    points = [(candidate.legs[0].size, end) for candidate in anchors for end in candidate.ends]
    terms = np.array([_lack(size, target, p, unit) + (end.tokens / unit) ** -p for size, end in points])
    losses, seeds = np.array([end.loss for _, end in points]), np.array([end.seeds for _, end in points], dtype=float)
    # Least squares with e >= 0 and b > 0.
    mean, middle = np.average(terms, weights=seeds), np.average(losses, weights=seeds)
    spread = float((seeds * (terms - mean) ** 2).sum())
    b = float((seeds * (terms - mean) * (losses - middle)).sum()) / spread if spread > 0 else 0.0
    e = float(middle - b * mean)
    if e < 0:
        e, b = 0.0, float((seeds * terms * losses).sum() / (seeds * terms**2).sum())
    law = _Law(p=p, e=e, b=max(b, 1e-9), unit=unit, target=target)
    return law, float((seeds * (law.e + law.b * terms - losses) ** 2).sum())


def _projected(law: _Law, candidate: Candidate, times: Sequence[float]) -> list[float]:
    """Return the projected losses of a candidate; its trials determine what growth hands over."""
    factor, behind = np.ones(1), 0.0
    if not candidate.is_drawn:
        errors = np.zeros_like(FACTORS)
        for end in candidate.ends:
            # Late trials say more about the end than early ones.
            errors += end.tokens * (law.end(candidate, end.tokens, FACTORS) - end.loss) ** 2
        factor = FACTORS[[int(errors.argmin())]]
        if factor[0] == 0:
            # Where a candidate is behind a model that begins anew, nothing says that it comes up.
            last = candidate.ends[-1]
            behind = max(0.0, last.loss - float(law.end(candidate, last.tokens, factor)[0]))
    return [float(law.end(candidate, candidate.tokens * one, factor)[0]) + behind for one in times]

"""Advise how to train a grown model: learning rate, decay, optimizer, state, batch, and how long growing keeps its lead.

Input: the family, the size of the target, and whether the source was trained by the recipe.
Output: rows of plain text, each with its origin, for the card and the plan. The figures are those of `outputs.measured`, and those of
published training runs of the family (`Family.trained`); nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ligo_convert.families.schema import Family, Training
from ligo_convert.outputs.measured import RESULTS, Measured, MeasuredSource, measured_by_task
from ligo_convert.units import amount

# Papers are compared with models of at most this ratio in size: good rates fall roughly with the logarithm of the size.
MOST_RATIO = 10.0

OPTIMIZERS = {
    "adamw": "AdamW",
    "muon": "Muon for the matrices inside the layers, AdamW for all other tensors",
}


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One value to start from.

    Attributes:
        what: what it is, such as `peak learning rate`.
        value: the value, in words.
        origin: where it comes from; `measured` means the comparison whose scale `scale_of` returns.
        paper: name and address of a paper that the origin ends with; empty for none.
    """

    what: str
    value: str
    origin: str
    paper: str = ""


def advise(family: Family, size: int, *, source_trained_here: bool, carries_state: bool = False) -> list[Advice]:
    """Return the values to start from.

    Args:
        family: family of the target.
        size: parameters of the target.
        source_trained_here: True if the recipe trained the source. Other sources are assumed to be trained as long as the strongest one
            that was measured.
        carries_state: True if the output has the optimizer's state.
    """
    measured = measured_by_task().get(family.task)
    if measured is None:
        return list(_published(family, size, factor=None, why="for this kind of model no comparison was made"))
    source = _source(measured, source_trained_here)
    return [
        *_rate(family, size, measured, source),
        _schedule(measured),
        _optimizer(measured),
        _state(carries_state),
        Advice(
            what="batch",
            value=measured.batch,
            origin="measured with this batch only",
        ),
        *_payoff(size, measured, source),
    ]


def scale_of(family: Family) -> str:
    """Return a sentence on the comparison that advice for a family comes from; empty if there is none."""
    measured = measured_by_task().get(family.task)
    return "" if measured is None else f"Measured means a comparison with {measured.scale} ({RESULTS})."


def _source(measured: Measured, trained_here: bool) -> MeasuredSource | None:
    if not measured.sources:
        return None
    return measured.sources[0 if trained_here else -1]


def _rate(family: Family, size: int, measured: Measured, source: MeasuredSource | None) -> Iterator[Advice]:
    if source is None or not source.rate_factors:
        yield from _published(family, size, factor=None, why="no grown model was measured")
        return
    factors = ", ".join(f"{factor:g}" for factor in measured.tried["rate_factors"])
    why = f"measured: best of {factors} for a source that cost {source.share:.0%} of training from scratch"
    yield Advice(
        what="peak learning rate",
        value=_rate_in_words(source),
        origin=why,
    )
    yield from _published(family, size, factor=source.rate_factors[-1][1], why="")


def _rate_in_words(source: MeasuredSource) -> str:
    """Return the rate by that from scratch, that of the longest run first; shorter runs with its factor are not named."""
    longest = source.rate_factors[-1][1]
    others = [(share, factor) for share, factor in source.rate_factors if factor != longest]
    whole = "the best rate from scratch" if longest == 1 else f"{longest:g} times the best rate from scratch"
    shorter = ", ".join(f"{factor:g} times for {share:.0%} of that cost" for share, factor in others)
    return f"{whole}, for a training that costs as much as scratch; {shorter}" if others else whole


def _published(family: Family, size: int, *, factor: float | None, why: str) -> Iterator[Advice]:
    """Yield the rate of a published training from scratch of a model of about this size; nothing if there is none."""
    nearest = min(family.trained, key=lambda training: abs(math.log(training.parameters / size)), default=None)
    if nearest is None or abs(math.log(nearest.parameters / size)) > math.log(MOST_RATIO):
        return
    value = (
        f"{nearest.rate:g}"
        if factor is None
        else f"{nearest.rate:g} from scratch, so about {nearest.rate * factor:.2g}"
    )
    yield Advice(
        what="for comparison" if factor is not None else "peak learning rate",
        value=value if factor is not None else f"at most {value}",
        origin=_training(nearest) + (f"; {why}" if why else ""),
        paper=nearest.paper,
    )


def _training(nearest: Training) -> str:
    how = f"batches of {nearest.batch}, {nearest.warmup} of warmup"
    return f"published for {amount(nearest.parameters)} parameters from scratch with {how}"


def _schedule(measured: Measured) -> Advice:
    decays = ", ".join(f"{decay:.0%}" for decay in measured.tried["decays"])
    return Advice(
        what="schedule",
        value=f"{measured.warmup:.0%} of the steps of warmup, then linear decay to zero"
        + ("" if measured.decay == 1 else f" in the last {measured.decay:.0%}"),
        origin=f"measured: best decay of {decays} from scratch; the warmup was not varied",
    )


def _optimizer(measured: Measured) -> Advice:
    tried = " and ".join(measured.tried["optimizers"])
    return Advice(
        what="optimizer",
        value=f"{OPTIMIZERS[measured.optimizer]}; weight decay {measured.weight_decay:g}",
        origin=f"measured: best of {tried} from scratch"
        if len(measured.tried["optimizers"]) > 1
        else "measured with this optimizer only",
    )


def _state(carried: bool) -> Advice:
    # docs/development/log.md, "optimizer state through growth": GPT-2, 2 layers, 48 wide, grown to 64 wide and 4 layers.
    return Advice(
        what="optimizer's state",
        value="the grown one, which is in this directory"
        if carried
        else "new; `run --with-optimizer` takes the source's along",
        origin="a GPT-2 of 2 layers, 48 wide, one seed: after growth the loss rises above that of the training without growth by at most"
        " 0.015 nats with the state carried and by 0.065 with a new one; 200 steps later neither is behind (ligo-convert's"
        " docs/development/log.md)",
    )


def _payoff(size: int, measured: Measured, source: MeasuredSource | None) -> Iterator[Advice]:
    """Yield how long growing was ahead of scratch, and what pays the source back."""
    tokens = size * measured.tokens_per_parameter
    parts = []
    for way, name in (("paper", "source left out"), ("net", "source charged")):
        ranges = [
            amount(first * tokens) if first == last else f"{amount(first * tokens)} to {amount(last * tokens)}"
            for first, last in measured.ahead[way]
        ]
        budgets = (
            f"at budgets of {' and '.join(ranges)} {measured.passing} from scratch"
            if ranges
            else "at no measured budget"
        )
        parts.append(f"{name}: {budgets}")
    yield Advice(
        what="ahead of scratch",
        value="; ".join(parts),
        origin=f"measured up to {measured.tokens_per_parameter:.3g} {measured.passing} per parameter and scaled by the parameters;"
        " longer training was not measured, and the lead shrinks with it",
    )
    if source is not None:
        targets, bound = "not known", "at least " if source.at_least else ""
        if source.never:
            targets = "no number of targets pays the source back"
        if source.targets is not None:
            most = "at most " if source.at_least else ""
            plural, pays = ("", "pays") if source.targets == 1 else ("s", "pay")
            targets = f"{most}{source.targets} target{plural} grown from the source {pays} its training back"
        net = "not known" if source.net is None else f"{bound}{source.net:.0f} %"
        yield Advice(
            what="break-even",
            value=targets,
            origin=f"measured: `{source.method}` saves {bound}{source.paper:.0f} % of scratch's cost with the source left out and {net}"
            f" with it charged, for a source of {source.share:.0%} of that cost",
        )
    wins, decided = measured.smaller_wins
    if decided:
        yield Advice(
            what="a smaller model",
            value=f"never grown, it was at least as good as every grown one at {wins} of {decided} budgets",
            origin="measured: models of the source's size and between, never grown, against methods with the source charged",
        )

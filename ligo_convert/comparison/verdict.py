"""Say what a comparison found: what growing saves, when it pays, and where a smaller model that never grows does as well.

Input: the record of a comparison with its entries, as `record.py` assembles it.
Output: the keys `equal_budget`, `break_even`, `sources_tried` and `verdict` of compare.json: plain values and plain sentences.

Every statement is made from measured runs. A statement that follows only from a bound is worded as a bound, and one that does not follow
is not made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ligo_convert.comparison.break_even import break_even, by_source
from ligo_convert.comparison.equal_budget import equal_budget, source_controls
from ligo_convert.comparison.frontier import OPPOSITE, finite
from ligo_convert.comparison.headline import best_method, growing, lead, ranked
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.naming import entry_text, source_subject

Data = Mapping[str, Any]

WAYS = ("net", "paper")

WAY_TEXT = {"net": "Source charged (net)", "paper": "Source left out (paper)"}


def conclusions(record: Data) -> dict[str, Any]:
    """Return the keys of the record that follow from its entries: tables at equal budget and of break-even, and the verdict."""
    rows = equal_budget(record)
    even = break_even(record)
    return {
        "equal_budget": rows,
        "break_even": even,
        "sources_tried": by_source(record),
        "verdict": _verdict(record, rows, even),
    }


# The optimizer.


def optimizer_gain(chosen: str, tried: Sequence[Data]) -> dict[str, dict[str, Any]]:
    """Return what scratch has with every other optimizer, beside the chosen one, after the same number of steps.

    Returns:
        optimizer -> `loss`, its lowest validation loss; `against`, the chosen one's; `steps`, the largest number of steps for which both
        were tried.
    """
    best: dict[str, dict[int, float]] = {}
    for run in tried:
        loss = finite(run.get("validation_loss"))
        if loss is not None:
            at = best.setdefault(str(run["optimizer"]), {})
            at[run["steps"]] = min(loss, at.get(run["steps"], math.inf))
    found = {}
    for name, losses in best.items():
        common = losses.keys() & best.get(chosen, {}).keys()
        if name != chosen and common:
            steps = max(common)
            found[name] = {"loss": losses[steps], "against": best[chosen][steps], "steps": steps}
    return found


# The verdict.


def _verdict(record: Data, rows: Sequence[Data], even: Sequence[Data]) -> dict[str, Any]:
    methods = record["methods"]
    best = {way: best_method(methods, way) for way in WAYS}
    ahead = {way: lead(record, way) for way in WAYS}
    wins = [
        {
            "flops": row["flops"],
            "share": row["share"],
            "control": row["control"]["name"],
            "control_loss": row["control"]["loss"],
            "control_bound": row["control"]["bound"],
            "best_method": row["net"]["name"],
            "best_loss": row["net"]["loss"],
            "bound": row["net"]["bound"],
            "margin": row["margin"],
        }
        for row in rows
        if row["never_grown"]
    ]
    return {
        "text": [
            *(sentence for way in WAYS for sentence in _saving_sentences(record, way, best[way], ahead[way])),
            *_smaller_sentences(rows, wins, bool(record["controls"]) or bool(source_controls(record))),
            *_scratch_sentences(rows),
            *_break_even_sentences(record, even),
            *_optimizer_sentences(record),
            *_seed_sentences(record),
        ],
        "grows_pay": {way: _pays(methods, way) for way in WAYS},
        "best": best,
        "ahead": ahead,
        "never_grown_wins": wins,
    }


def _pays(methods: Mapping[str, Data], way: str) -> bool | None:
    """Return True if some method certainly saves FLOPs, False if certainly none does, and None if that is not known."""
    order = ranked(methods, way)
    if not order:
        return None
    if methods[order[0]]["headline"][way]["saved"] > 0:
        return True
    return None if _may_save(methods, way) else False


def _may_save(methods: Mapping[str, Data], way: str) -> bool:
    """Return whether a method of which only a bound is known may save FLOPs."""
    found = [(method, method["headline"][way]) for method in growing(methods).values()]
    return any(
        (figure["bound"] == "at least" and _most(method, figure, way) > 0)
        or (figure["bound"] in ("at most", "mixed") and (figure["saved"] is None or figure["saved"] > 0))
        for method, figure in found
        if figure is not None
    )


def _saving_sentences(record: Data, way: str, best: Data | None, ahead: Data | None) -> Iterator[str]:
    name, methods = WAY_TEXT[way], record["methods"]
    others = growing(methods).values()
    if not others:
        return
    if best is None:
        unknown = way == "net" and all(entry["source_flops"] is None for entry in others)
        cause = (
            "the cost of training the source is unknown"
            if unknown
            else "no method has a loss that scratch was measured at"
        )
        yield f"{name}: no saving is known, because {cause}."
        return
    winner, figure = entry_text(best["method"]), amount_saved(best["saved"], best["bound"], best["std"])
    if best["saved"] > 0:
        yield f"{name}: `{winner}` saves most, {figure} of scratch's FLOPs {_where(best)}."
    else:
        more = amount_saved(-best["saved"], OPPOSITE[best["bound"]], best["std"])
        takes = f"`{winner}`, takes {more} more FLOPs than scratch {_where(best)}"
        if _may_save(methods, way):
            yield f"{name}: whether growing pays is not decided, because only bounds are known. The best method, {takes}."
        else:
            yield f"{name}: growing does not pay. The best method, {takes}."
    if best["at"] != "scratch's final loss":
        same = [key for key in ranked(methods, way) if methods[key]["headline"][way]["at"] == "scratch's final loss"]
        if same:
            there = methods[same[0]]["headline"][way]
            yield (
                f"{name}: of the methods that reach scratch's final loss of {there['loss']:.3f}, `{entry_text(same[0])}` saves most,"
                f" {amount_saved(there['saved'], there['bound'], there['std'])}."
            )
        else:
            yield f"{name}: no method reaches scratch's final loss, so savings are read at each method's own lowest loss."
    bounded = [
        f"`{entry_text(key)}` ({amount_saved(found['saved'], found['bound'])})"
        for key in ranked(methods, way)[1:]
        if (found := methods[key]["headline"][way])["bound"] == "at least"
        and _most(methods[key], found, way) > best["saved"]
    ]
    if bounded:
        yield f"{name}: these methods may save more than the best, because only a bound is known: {', '.join(bounded)}."
    if ahead is not None and ahead["beyond_spread"] is not None:
        order = "ahead of" if ahead["difference"] >= 0 else "behind"
        word = "more" if ahead["beyond_spread"] else "no more"
        yield (
            f"{name}: at a loss of {ahead['loss']:.3f}, `{winner}` is {abs(ahead['difference']):.1f} points {order} the next"
            f" method, `{entry_text(ahead['next'])}`: {word} than the deviations of both over the seeds."
        )


def _most(entry: Data, found: Data, way: str) -> float:
    """Return the largest saving, in per cent, that an entry with a bound may have: the source's training is spent in any case."""
    if way == "paper" or found["at"] != "scratch's final loss":
        return math.inf
    return float(100 * (1 - entry["source_flops"] / found["scratch_flops"]))


def _where(found: Data) -> str:
    if found["at"] == "scratch's final loss":
        return f"at scratch's final loss of {found['loss']:.3f}"
    share = "" if found["share"] is None else f", which scratch has at {100 * found['share']:.0f} % of its FLOPs"
    return f"at its own lowest loss of {found['loss']:.3f}{share}"


def _smaller_sentences(rows: Sequence[Data], wins: Sequence[Data], controls: bool) -> Iterator[str]:
    compared = [row for row in rows if row["net"] is not None]
    if not compared:
        return
    if not controls:
        yield "No control was trained: whether a smaller model that never grows does as well is not known."
        return
    known = [row for row in compared if row["never_grown"] is not None]
    if not known:
        yield "No smaller model was measured at the cost of a grown one: whether it does as well is not known."
        return
    open_costs = len(compared) - len(known)
    rest = (
        f" At {_costs_counted(open_costs)} more it is not decided, because a run of that cost is missing."
        if open_costs
        else ""
    )
    if not wins:
        yield (
            f"No smaller model wins: at {_costs_counted(len(known))}, the best method with its source charged has a lower loss than"
            f" every model that never grows and was measured there.{rest}"
        )
        return
    last = wins[-1]
    control_bound, bound = ("" if last[key] is None else f"{last[key]} " for key in ("control_bound", "bound"))
    margins = [win["margin"] for win in wins if win["margin"] is not None and win["margin"]["std"] is not None]
    beyond = sum(margin["mean"] > margin["std"] for margin in margins)
    sure = f" At {beyond} of them, by more than the deviation over the seeds." if margins else ""
    lower_still = sum(best_at(row) == SCRATCH for row in rows if row["never_grown"])
    if lower_still:
        sure += f" At {lower_still} of them, scratch has a lower loss still."
    yield (
        f"A smaller model wins at {len(wins)} of {_costs_counted(len(known))}"
        f" ({_shares([win['share'] for win in wins])} of scratch's FLOPs): a model that never grows has a loss at or below that of"
        f" every method with its source charged. At {100 * last['share']:.0f} %,"
        f" `{entry_text(last['control'])}` has {control_bound}{last['control_loss']:.3f}"
        f" and `{entry_text(last['best_method'])}` {bound}{last['best_loss']:.3f}.{sure}{rest}"
    )


def _costs_counted(number: int) -> str:
    return f"{number} cost{'' if number == 1 else 's'}"


def _shares(shares: Sequence[float]) -> str:
    """
    >>> _shares([0.25]), _shares([0.25, 0.4, 1.0])
    ('25 %', '25 to 100 %')
    """
    low, high = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def scratch_is_lower(row: Data) -> bool | None:
    """Return whether scratch has a loss at or below that of every method with its source charged, at the cost of a row of `equal_budget`.

    None if that is not known.
    """
    scratch, method, floor = row["scratch"], row["net"], row["net_at_least"]
    if method is None or scratch["loss"] is None or method["loss"] is None:
        return None
    if scratch["bound"] in (None, "at most") and floor is not None and scratch["loss"] <= floor:
        return True
    if (
        scratch["bound"] in (None, "at least")
        and method["bound"] in (None, "at most")
        and scratch["loss"] > method["loss"]
    ):
        return False
    return None


def best_at(row: Data) -> str:
    """Return who is best at the cost of a row of `equal_budget`, with the source charged.

    Returns:
        the name of scratch or of a control that is at or below every method; `growing` where a method is below both; else `not decided`.
    """
    scratch, control, lower = row["scratch"], row["control"], scratch_is_lower(row)
    if row["never_grown"]:
        beaten = lower and scratch["bound"] is None and control["bound"] is None and scratch["loss"] < control["loss"]
        return SCRATCH if beaten else str(control["name"])
    if lower:
        return SCRATCH
    return "growing" if lower is False and row["never_grown"] is False else "not decided"


def _scratch_sentences(rows: Sequence[Data]) -> Iterator[str]:
    """Say where scratch has a loss at or below that of every method with its source charged."""
    known = [(row["share"], lower) for row in rows if (lower := scratch_is_lower(row)) is not None]
    if not known:
        return
    wins = [share for share, lower in known if lower]
    if wins:
        yield (
            f"Scratch itself has a loss at or below that of every method with its source charged at {len(wins)} of"
            f" {_costs_counted(len(known))} ({_shares(wins)} of its FLOPs)."
        )
    else:
        yield f"Scratch never wins: at {_costs_counted(len(known))}, the best method with its source charged has a lower loss."


def _break_even_sentences(record: Data, even: Sequence[Data]) -> Iterator[str]:
    """Say from how many targets on the source pays for itself, for the best method of every source: of equal ones that which saves more."""
    best: dict[str, Data] = {}
    for row in sorted(even, key=lambda row: (row["targets"] or math.inf, -row["saved_paper"])):
        if row["targets"] is not None:
            best.setdefault(row["source"], row)
    order = list(dict.fromkeys(row["source"] for row in even))
    best = {source: best[source] for source in order if source in best}
    for source, row in best.items():
        cost = "" if row["source_fraction"] is None else f" ({100 * row['source_fraction']:.0f} % of scratch's FLOPs)"
        bound = f"{row['targets_bound']} " if row["targets_bound"] else ""
        subject, method = source_subject(record, source), entry_text(row["method"])
        if row["targets"] == 1:
            yield f"{subject}{cost} pays for itself with one target, by `{method}`."
        else:
            yield f"{subject}{cost} pays for itself once {bound}{row['targets']} targets grow from it, by `{method}`."
    for source in record["sources"]:
        rows = [row for row in even if row["source"] == source["name"]]
        if rows and all(row["never"] for row in rows):
            subject = source_subject(record, source["name"])
            yield f"{subject} never pays for itself: no method that uses it saves FLOPs even with the source left out."


def _optimizer_sentences(record: Data) -> Iterator[str]:
    optimizer = record["optimizer"]
    # An option such as `+adamw` gives an entry an optimizer of its own.
    used = {entry.get("optimizer") for entry in record["methods"].values()} - {None}
    entry = "Every entry" if used <= {optimizer["chosen"]["name"]} else "Every entry without an optimizer of its own"
    for name, found in optimizer["gain"].items():
        difference = found["loss"] - found["against"]
        yield (
            f"The optimizer's own gain: scratch has {found['against']:.3f} with `{optimizer['chosen']['name']}` and {found['loss']:.3f}"
            f" with `{name}` after {found['steps']:,} steps, {abs(difference):.3f} nats {'lower' if difference >= 0 else 'higher'}."
            f" {entry} has that gain, so it is no saving of growth."
        )


def _seed_sentences(record: Data) -> Iterator[str]:
    if len(record["seeds"]) == 1:
        yield "One seed: the spread over seeds is unknown, so small differences between methods decide nothing."


# Text of figures, shared by the table, the page and the plot.


def amount_saved(value: float | None, bound: str | None = None, std: float | None = None) -> str:
    """Return a saving in words, with its bound and its deviation over seeds.

    >>> amount_saved(42.04, "at least"), amount_saved(-3.0, None, 1.25), amount_saved(-0.04), amount_saved(None)
    ('at least 42.0 %', '-3.0 % +- 1.2', '0.0 %', 'none')
    """
    if value is None:
        return "none"
    plain = round(value, 1) + 0.0  # no minus sign before zero
    return f"{bound + ' ' if bound else ''}{plain:.1f} %{'' if std is None else f' +- {std:.1f}'}"

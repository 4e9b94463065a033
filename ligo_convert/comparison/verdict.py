"""Say what a comparison found: what growing saves, when it pays, and where a smaller model that never grows does as well.

Input: the record of a comparison with its entries, as `record.py` assembles it.
Output: the keys `equal_budget`, `break_even`, `sources_tried` and `verdict` of compare.json: plain values and plain sentences.

Every statement is made from measured runs. A statement that follows only from a bound is worded as a bound, and one that does not follow
is not made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ligo_convert.comparison.frontier import NOTHING, OPPOSITE, End, Frontier, Reading, mean, saved, saved_by, spread
from ligo_convert.comparison.methods import SCRATCH

Data = Mapping[str, Any]

WAYS = ("net", "paper")

WAY_TEXT = {"net": "Source charged (net)", "paper": "Source left out (paper)"}

SAME_COST = 0.01  # budgets that differ by less than this fraction are one budget


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


# One figure for an entry.


def headline(entry: Data, way: str, *, loss: float | None, flops: float | None) -> dict[str, Any] | None:
    """Return the one saving that stands for an entry; None if there is none.

    It is the saving at scratch's final loss. If the entry's ends do not reach that loss, it is the saving at the lowest loss that they
    reach, beside that loss and the share of scratch's FLOPs at which scratch has it.

    Args:
        entry: record of the entry.
        way: `paper` or `net`.
        loss: scratch's loss after the whole budget.
        flops: FLOPs of scratch to that loss.
    """
    value = entry["savings"][way]
    if value is not None and loss is not None and flops is not None:
        return {
            "saved": value,
            "bound": entry["savings_bound"][way],
            "std": entry["std"][way],
            "at": "scratch's final loss",
            "step": None,
            "loss": round(loss, 6),
            "scratch_flops": flops,
            "share": 1.0,
        }
    ends = [end for end in entry["ends"] if end["loss"] is not None and end["saved"][way] is not None]
    if not ends:
        return None
    end = min(ends, key=lambda found: (found["loss"], found["flops"]))
    return {
        "saved": end["saved"][way],
        "bound": end["bound"],
        "std": end["saved_std"][way],
        "at": "its own end",
        "step": end["step"],
        "loss": end["loss"],
        "scratch_flops": end["scratch_flops"],
        "share": None if flops is None else round(end["scratch_flops"] / flops, 4),
    }


def certain(found: Data | None) -> bool:
    """Return whether a saving is certainly at least its value: measured, or a bound from below."""
    return found is not None and found["bound"] in (None, "at least")


def ranked(methods: Mapping[str, Data], way: str) -> list[str]:
    """Return the methods other than scratch that have a certain saving, the largest first."""
    found = {name: method["headline"][way] for name, method in methods.items() if name != SCRATCH}
    return sorted((name for name in found if certain(found[name])), key=lambda name: (-found[name]["saved"], name))


# At equal budget.


def equal_budget(record: Data) -> list[dict[str, Any]]:
    """Return what scratch, the best model that never grows and the best method have at the same cost.

    The budgets are those at which something was measured: the ends of scratch and of the controls, and the ends of methods, with the source
    charged, that no other method beats at that cost.

    Returns:
        rows by cost: `flops`, `share` of scratch's budget, `scratch`, `control`, `net` and `paper` with `name`, `loss`, `bound` and `std`,
        and `never_grown`: True if the control certainly has a loss at or below the best method's with the source charged, False if it
        certainly has not, None if that is not known. `margin` is the method's loss minus the control's.
    """
    scratch = _seed_frontiers(record["methods"][SCRATCH])
    controls = {name: _seed_frontiers(entry) for name, entry in record["controls"].items()} | _source_controls(record)
    methods = {name: entry for name, entry in record["methods"].items() if name != SCRATCH}
    frontiers = {name: _seed_frontiers(entry) for name, entry in methods.items()}
    charged = {name: entry["source_flops"] for name, entry in methods.items()}
    seeds = list(scratch)
    total = finite(record["budget"]["flops"]) or max((end["flops"] for end in record["curve"]), default=1.0)
    rows = []
    for flops in _budgets(record, methods):
        net = {
            name: _at(found, flops - cost, seeds)
            for name, found in frontiers.items()
            if (cost := charged[name]) is not None
        }
        paper = {name: _at(found, flops, seeds) for name, found in frontiers.items()}
        best_net = _lowest(net)
        best_control = _control({name: _at(found, flops, seeds) for name, found in controls.items()}, best_net)
        rows.append(
            {
                "flops": flops,
                "share": round(flops / total, 4),
                "scratch": _plain(SCRATCH, _at(scratch, flops, seeds)),
                "control": best_control and _plain(*best_control),
                "net": best_net and _plain(*best_net),
                "paper": (best_paper := _lowest(paper)) and _plain(*best_paper),
                "never_grown": _never_grown(best_control, best_net),
                "margin": _margin(best_control, best_net),
            }
        )
    return rows


def _budgets(record: Data, methods: Mapping[str, Data]) -> list[float]:
    """Return the costs at which entries are compared, ascending and at least a hundredth apart."""
    found = [end["flops"] for end in record["curve"] if end["loss"] is not None]
    found += [end["flops"] for entry in record["controls"].values() for end in entry["ends"] if end["loss"] is not None]
    ends = [
        (end["net_flops"], end["loss"])
        for entry in methods.values()
        for end in entry["ends"]
        if end["net_flops"] is not None and end["loss"] is not None
    ]
    lowest = math.inf
    for flops, loss in sorted(ends):
        if loss < lowest:
            lowest = loss
            found.append(flops)
    kept: list[float] = []
    for flops in sorted(found):
        if not kept or flops > kept[-1] * (1 + SAME_COST):
            kept.append(flops)
    return kept


def _seed_frontiers(entry: Data) -> dict[str, Frontier]:
    return {seed: _frontier(run["ends"]) for seed, run in entry["seeds"].items()}


def _frontier(ends: Sequence[Data]) -> Frontier:
    return Frontier(End(steps=end["step"], flops=end["flops"], loss=end["loss"]) for end in ends)


def _source_controls(record: Data) -> dict[str, dict[str, Frontier]]:
    """Return the sources as models that never grow: each has one end, the same for every seed."""
    seeds = list(record["methods"][SCRATCH]["seeds"])
    found = {}
    for source in record["sources"]:
        flops, loss = finite(source.get("flops")), finite(source.get("loss"))
        if flops and loss is not None:
            one = Frontier([End(steps=source.get("steps") or 0, flops=flops, loss=loss)])
            found[f"source {source['name']}"] = dict.fromkeys(seeds, one)
    return found


def _at(frontiers: Mapping[str, Frontier], flops: float, seeds: Sequence[str]) -> list[Reading]:
    """Return the loss at a cost for every seed of scratch; nothing for a seed that the entry lacks."""
    return [frontiers[seed].loss_at(flops) if seed in frontiers else NOTHING for seed in seeds]


def _lowest(found: Mapping[str, Sequence[Reading]]) -> tuple[str, Sequence[Reading]] | None:
    """Return the entry with the lowest loss among those that have one at this cost or below.

    If every entry costs more than this, the lowest bound from below stands for all of them.
    """
    means = {name: mean(readings) for name, readings in found.items()}
    reached = {name: at_most for name, reading in means.items() if (at_most := reading.at_most) is not None}
    if not reached:
        reached = {name: at_least for name, reading in means.items() if (at_least := reading.at_least) is not None}
    name = min(reached, key=lambda candidate: (reached[candidate], candidate), default=None)
    return None if name is None else (name, found[name])


def _control(
    found: Mapping[str, Sequence[Reading]], method: tuple[str, Sequence[Reading]] | None
) -> tuple[str, Sequence[Reading]] | None:
    """Return the control to compare with: the lowest, but one that is only known not to be higher than its last end must win by it.

    Otherwise a control that was trained for less would hide those that were measured at this cost.
    """
    lowest = _lowest(found)
    if _never_grown(lowest, method):
        return lowest
    return _lowest({name: readings for name, readings in found.items() if mean(readings).bound is None}) or lowest


def _plain(name: str, readings: Sequence[Reading]) -> dict[str, Any]:
    found, std = mean(readings), spread(readings)
    return {
        "name": name,
        "loss": None if found.value is None else round(found.value, 6),
        "bound": found.bound,
        "std": None if std is None else round(std, 6),
    }


def _never_grown(
    control: tuple[str, Sequence[Reading]] | None, method: tuple[str, Sequence[Reading]] | None
) -> bool | None:
    if control is None or method is None:
        return None
    smaller, grown = mean(control[1]), mean(method[1])
    if smaller.at_most is not None and grown.at_least is not None and smaller.at_most <= grown.at_least:
        return True
    if smaller.at_least is not None and grown.at_most is not None and smaller.at_least > grown.at_most:
        return False
    return None


def _margin(
    control: tuple[str, Sequence[Reading]] | None, method: tuple[str, Sequence[Reading]] | None
) -> dict[str, float | None] | None:
    """Return the mean and the deviation over seeds of the method's loss minus the control's, where both were measured."""
    if control is None or method is None:
        return None
    pairs = list(zip(control[1], method[1], strict=True))
    if any(one.bound or other.bound or one.value is None or other.value is None for one, other in pairs):
        return None
    differences = [other.value - one.value for one, other in pairs if one.value is not None and other.value is not None]
    std = spread([Reading(difference) for difference in differences])
    return {
        "mean": round(sum(differences) / len(differences), 6),
        "std": None if std is None else round(std, 6),
    }


# Break-even.


def break_even(record: Data) -> list[dict[str, Any]]:
    """Return, for every method with a source, from how many targets grown from one source on growing pays.

    `targets` is the source's FLOPs divided by the FLOPs that one target saves with the source left out, rounded up. It is None where
    growing saves nothing even then, and where the source's cost is unknown; `reason` says which. `source_limit` is the largest cost of a
    source, as a share of scratch's FLOPs, that one target pays back.
    """
    fractions = {source["name"]: finite(source.get("fraction_of_scratch")) for source in record["sources"]}
    rows = []
    for name, method in record["methods"].items():
        paper, net = (method["headline"][way] for way in ("paper", "net"))
        if not method["needs_source"] or paper is None:
            continue
        cost, saving = method["source_flops"], paper["scratch_flops"] * paper["saved"] / 100
        targets = reason = None
        if paper["bound"] == "at most" or paper["bound"] == "mixed":
            reason = "its loss is above all that was measured for scratch"
        elif saving <= 0:
            reason = "it saves nothing even with the source left out"
        elif cost is None:
            reason = "the source's cost is unknown"
        else:
            targets = max(1, math.ceil(cost / saving - 1e-9))
        rows.append(
            {
                "method": name,
                "base": method["base"],
                "source": method["source"],
                "source_flops": cost,
                "source_fraction": fractions.get(method["source"]),
                "at": paper["at"],
                "loss": paper["loss"],
                "saved_paper": paper["saved"],
                "saved_net": None if net is None else net["saved"],
                "bound": paper["bound"],
                "targets": targets,
                "targets_bound": "at most" if targets is not None and paper["bound"] == "at least" else None,
                "reason": reason,
                "source_limit": round(saving / record["budget"]["flops"], 4) if saving > 0 and certain(paper) else None,
            }
        )
    return rows


def by_source(record: Data) -> list[dict[str, Any]]:
    """Return the savings of every method as a function of its source's cost, with the costs at which `net` changes its sign.

    `crossings` are interpolated linearly between neighbouring sources. A method with one source has one point and no crossing.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in break_even(record):
        if row["source_fraction"] is not None:
            found.setdefault(row["base"], []).append(
                {
                    "method": row["method"],
                    "source": row["source"],
                    "fraction": row["source_fraction"],
                    **{way: record["methods"][row["method"]]["headline"][way] for way in ("paper", "net")},
                }
            )
    return [
        {
            "base": base,
            "points": (points := sorted(rows, key=lambda row: row["fraction"])),
            "crossings": _crossings(points),
        }
        for base, rows in found.items()
    ]


def _crossings(points: Sequence[Data]) -> list[float]:
    measured = [(row["fraction"], row["net"]["saved"]) for row in points if certain(row["net"])]
    found = []
    for (low, before), (high, after) in pairwise(measured):
        if (before > 0) != (after > 0):
            found.append(round(low + (high - low) * before / (before - after), 4))
    return found


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
    best = {way: _best(methods, way) for way in WAYS}
    ahead = {way: _ahead(record, way) for way in WAYS}
    wins = [
        {
            "flops": row["flops"],
            "share": row["share"],
            "control": row["control"]["name"],
            "control_loss": row["control"]["loss"],
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
            *_smaller_sentences(rows, wins, bool(record["controls"]) or bool(_source_controls(record))),
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


def _best(methods: Mapping[str, Data], way: str) -> dict[str, Any] | None:
    order = ranked(methods, way)
    if not order:
        return None
    found = methods[order[0]]["headline"][way]
    return {"method": order[0], "end": found["step"], **{key: found[key] for key in found if key != "step"}}


def _ahead(record: Data, way: str) -> dict[str, Any] | None:
    """Return how far the best method is ahead of the next, and whether that is more than the two deviations together.

    Both are read at one loss for every seed: the higher one of the two at which their savings are given.
    """
    methods, scratch = record["methods"], record["methods"][SCRATCH]
    order = ranked(methods, way)[:2]
    if len(order) < 2:
        return None
    loss = max(methods[name]["headline"][way]["loss"] for name in order)
    found = [_losses(methods[name], scratch, way, record["budget"]["steps"]) for name in order]
    losses = {
        seed: None if one is None or other is None else max(one, other)
        for seed, one, other in zip(scratch["seeds"], *found, strict=True)
    }
    first, second = (_saved_at(methods[name], scratch, losses, way) for name in order)
    one, other = mean(first), mean(second)
    if one.value is None or other.value is None:
        return None
    difference, spreads = one.value - other.value, [spread(first), spread(second)]
    known = [std for std in spreads if std is not None]
    return {
        "next": order[1],
        "loss": loss,
        "saved": round(one.value, 2),
        "next_saved": round(other.value, 2),
        "difference": round(difference, 2),
        "bounds": [one.bound, other.bound],
        "beyond_spread": abs(difference) > sum(known) if len(known) == 2 else None,
    }


def _losses(entry: Data, scratch: Data, way: str, budget: int) -> list[float | None]:
    """Return the loss at which an entry's headline is read, for every seed of scratch."""
    step = entry["headline"][way]["step"]
    found: list[float | None] = []
    for seed, run in scratch["seeds"].items():
        ends = run["ends"] if step is None else entry["seeds"].get(seed, {"ends": []})["ends"]
        whole = step or (budget if any(end["step"] == budget for end in ends) else ends[-1]["step"])
        found.append(next((end["loss"] for end in ends if end["step"] == whole), None))
    return found


def _saved_at(entry: Data, scratch: Data, losses: Mapping[str, float | None], way: str) -> list[Reading]:
    """Return the FLOPs that an entry saves at the loss of each seed, in per cent of scratch's at that loss."""
    found, charged = [], 0.0 if way == "paper" else entry["source_flops"]
    for seed, loss in losses.items():
        reading = NOTHING
        if loss is not None and charged is not None and seed in entry["seeds"]:
            there = _frontier(scratch["seeds"][seed]["ends"]).flops_at(loss)
            own = _frontier(entry["seeds"][seed]["ends"]).flops_at(loss)
            if own.value is not None and own.bound is None:
                reading = saved(own.value + charged, there)
            elif own.value is not None and own.bound == "at most" and there.value is not None and there.bound is None:
                reading = saved_by(Reading(own.value + charged, own.bound), there.value)
        found.append(reading)
    return found


def _pays(methods: Mapping[str, Data], way: str) -> bool | None:
    """Return whether some method certainly saves FLOPs; None if no method has a figure."""
    order = ranked(methods, way)
    return methods[order[0]]["headline"][way]["saved"] > 0 if order else None


def _saving_sentences(record: Data, way: str, best: Data | None, ahead: Data | None) -> Iterator[str]:
    name, methods = WAY_TEXT[way], record["methods"]
    others = [entry for key, entry in methods.items() if key != SCRATCH]
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
    figure = amount_saved(best["saved"], best["bound"], best["std"])
    if best["saved"] > 0:
        yield f"{name}: `{best['method']}` saves most, {figure} of scratch's FLOPs {_where(best)}."
    else:
        more = amount_saved(-best["saved"], OPPOSITE[best["bound"]], best["std"])
        yield f"{name}: growing does not pay. The best method, `{best['method']}`, takes {more} more FLOPs than scratch {_where(best)}."
    if best["at"] != "scratch's final loss":
        same = [key for key in ranked(methods, way) if methods[key]["headline"][way]["at"] == "scratch's final loss"]
        if same:
            there = methods[same[0]]["headline"][way]
            yield (
                f"{name}: of the methods that reach scratch's final loss of {there['loss']:.3f}, `{same[0]}` saves most,"
                f" {amount_saved(there['saved'], there['bound'], there['std'])}."
            )
        else:
            yield f"{name}: no method reaches scratch's final loss, so savings are read at each method's own lowest loss."
    if ahead is not None and ahead["beyond_spread"] is not None:
        order = "ahead of" if ahead["difference"] >= 0 else "behind"
        word = "more" if ahead["beyond_spread"] else "no more"
        yield (
            f"{name}: at a loss of {ahead['loss']:.3f}, `{best['method']}` is {abs(ahead['difference']):.1f} points {order} the next"
            f" method, `{ahead['next']}`: {word} than the deviations of both over the seeds."
        )


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
    bound = "" if last["bound"] is None else f"{last['bound']} "
    yield (
        f"A smaller model wins at {len(wins)} of {_costs_counted(len(known))}"
        f" ({_shares([win['share'] for win in wins])} of scratch's FLOPs): a model that never grows has a loss at or below that of"
        f" every method with its source charged. At {100 * last['share']:.0f} %, `{last['control']}` has {last['control_loss']:.3f}"
        f" and `{last['best_method']}` {bound}{last['best_loss']:.3f}.{rest}"
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


def _scratch_sentences(rows: Sequence[Data]) -> Iterator[str]:
    """Say where scratch has a loss at or below that of every method with its source charged."""
    wins = []
    compared = 0
    for row in rows:
        scratch, method = row["scratch"], row["net"]
        if method is None or scratch["loss"] is None or method["loss"] is None:
            continue
        lower = scratch["bound"] != "at least" and method["bound"] != "at most" and scratch["loss"] <= method["loss"]
        higher = scratch["bound"] != "at most" and method["bound"] != "at least" and scratch["loss"] > method["loss"]
        if lower or higher:
            compared += 1
            wins += [row["share"]] if lower else []
    if not compared:
        return
    if wins:
        yield (
            f"Scratch itself has a loss at or below that of every method with its source charged at {len(wins)} of"
            f" {_costs_counted(compared)} ({_shares(wins)} of its FLOPs)."
        )
    else:
        yield f"Scratch never wins: at {_costs_counted(compared)}, the best method with its source charged has a lower loss."


def _break_even_sentences(record: Data, even: Sequence[Data]) -> Iterator[str]:
    """Say from how many targets on the source pays for itself, for the best method of every source."""
    best: dict[str, Data] = {}
    for row in even:
        if row["targets"] is not None and row["targets"] < best.get(row["source"], {"targets": math.inf})["targets"]:
            best[row["source"]] = row
    for source, row in best.items():
        cost = "" if row["source_fraction"] is None else f" ({100 * row['source_fraction']:.0f} % of scratch's FLOPs)"
        bound = f"{row['targets_bound']} " if row["targets_bound"] else ""
        if row["targets"] == 1:
            yield f"The source `{source}`{cost} pays for itself with one target, by `{row['method']}`."
        else:
            yield f"The source `{source}`{cost} pays for itself once {bound}{row['targets']} targets grow from it, by `{row['method']}`."
    for source in record["sources"]:
        rows = [row for row in even if row["source"] == source["name"]]
        if rows and source["name"] not in best and any(row["source_flops"] is not None for row in rows):
            yield f"The source `{source['name']}` never pays for itself: no method that uses it saves FLOPs even with the source left out."


def _optimizer_sentences(record: Data) -> Iterator[str]:
    optimizer = record["optimizer"]
    for name, found in optimizer["gain"].items():
        difference = found["loss"] - found["against"]
        yield (
            f"The optimizer's own gain: scratch has {found['against']:.3f} with `{optimizer['chosen']['name']}` and {found['loss']:.3f}"
            f" with `{name}` after {found['steps']:,} steps, {abs(difference):.3f} nats {'lower' if difference >= 0 else 'higher'}."
            " Every entry has that gain, so it is no saving of growth."
        )


def _seed_sentences(record: Data) -> Iterator[str]:
    if len(record["seeds"]) == 1:
        yield "One seed: the spread over seeds is unknown, so small differences between methods decide nothing."


# Text of figures, shared by the table, the page and the plot.


def amount_saved(value: float | None, bound: str | None = None, std: float | None = None) -> str:
    """Return a saving in words, with its bound and its deviation over seeds.

    >>> amount_saved(42.04, "at least"), amount_saved(-3.0, None, 1.25), amount_saved(None)
    ('at least 42.0 %', '-3.0 % +- 1.2', 'none')
    """
    if value is None:
        return "none"
    return f"{bound + ' ' if bound else ''}{value:.1f} %{'' if std is None else f' +- {std:.1f}'}"


def finite(value: object) -> float | None:
    """Return `value` as a float; None for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)

"""Read the entries of a comparison at equal budget: scratch, models that never grow, methods.

Input: the record of a comparison with its entries, as `record.py` assembles it.
Output: the key `equal_budget` of compare.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ligo_convert.comparison.frontier import NOTHING, End, Frontier, Reading, finite, mean, spread
from ligo_convert.comparison.headline import growing
from ligo_convert.comparison.methods import SCRATCH

Data = Mapping[str, Any]

# Budgets that differ by less than this fraction are one budget: a run has whole steps, so runs of one budget do not cost exactly the same.
SAME_COST = 0.01

APART = 0.05  # smallest difference of two rows, as a fraction of their cost

At = tuple[str, Sequence[Reading]]  # an entry, and its loss at a cost for every seed


def equal_budget(record: Data) -> list[dict[str, Any]]:
    """Return what scratch, the best model that never grows and the best method have at the same cost.

    The budgets are those at which something was measured: the ends of scratch and of the controls, and the ends of methods, with the source
    charged, that no other method beats at that cost.

    Returns:
        rows by cost: `flops`, `share` of scratch's budget, `scratch`, `control`, `net` and `paper` with `name`, `loss`, `bound` and `std`.
        `net_at_least`: no method has a lower loss than this at that cost, with the source charged; None if that is not known.
        `never_grown`: True if the control certainly has a loss at or below that of every method with the source charged, False if some
        method certainly has a lower one, None if that is not known. `margin` is the best method's loss minus the control's.
    """
    scratch = _seed_frontiers(record["methods"][SCRATCH])
    controls = {name: _seed_frontiers(entry) for name, entry in record["controls"].items()} | source_controls(record)
    methods = growing(record["methods"])
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
        floor = _floor({name: readings for name, readings in net.items() if charged[name] < flops} or net)
        best_control = _control({name: _at(found, flops, seeds) for name, found in controls.items()}, best_net, floor)
        rows.append(
            {
                "flops": flops,
                "share": round(flops / total, 4),
                "scratch": _plain(SCRATCH, _at(scratch, flops, seeds)),
                "control": best_control and _plain(*best_control),
                "net": best_net and _plain(*best_net),
                "paper": (best_paper := _lowest(paper)) and _plain(*best_paper),
                "net_at_least": None if floor is None else round(floor, 6),
                "never_grown": _never_grown(best_control, best_net, floor),
                "margin": _margin(best_control, best_net),
            }
        )
    return rows


def _budgets(record: Data, methods: Mapping[str, Data]) -> list[float]:
    """Return the costs at which entries are compared, ascending: all ends of scratch, and others that are far enough from them."""
    found = [end["flops"] for end in record["curve"] if end["loss"] is not None]
    others = [end["flops"] for entry in record["controls"].values() for end in entry["ends"] if end["loss"] is not None]
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
            others.append(flops)
    for flops in sorted(others):
        if all(abs(flops - other) > APART * max(flops, other) for other in found):
            found.append(flops)
    return sorted(found)


def _seed_frontiers(entry: Data) -> dict[str, Frontier]:
    return {seed: Frontier.of_record(run["ends"]) for seed, run in entry["seeds"].items()}


def source_controls(record: Data) -> dict[str, dict[str, Frontier]]:
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
    return [frontiers[seed].loss_at(flops, tolerance=SAME_COST) if seed in frontiers else NOTHING for seed in seeds]


def _lowest(found: Mapping[str, Sequence[Reading]]) -> At | None:
    """Return the entry with the lowest loss among those that have one at this cost or below.

    If every entry costs more than this, the lowest bound from below stands for all of them.
    """
    means = {name: mean(readings) for name, readings in found.items()}
    reached = {name: at_most for name, reading in means.items() if (at_most := reading.at_most) is not None}
    if not reached:
        reached = {name: at_least for name, reading in means.items() if (at_least := reading.at_least) is not None}
    name = min(reached, key=lambda candidate: (reached[candidate], candidate), default=None)
    return None if name is None else (name, found[name])


def _floor(found: Mapping[str, Sequence[Reading]]) -> float | None:
    """Return the loss that certainly none of the entries is below; None if one of them may have any loss."""
    floors = [reading.at_least for reading in map(mean, found.values()) if reading != NOTHING]
    known = [floor for floor in floors if floor is not None]
    return min(known) if known and len(known) == len(floors) else None


def _control(found: Mapping[str, Sequence[Reading]], method: At | None, floor: float | None) -> At | None:
    """Return the control to compare with: the lowest, but one that is only known not to be higher than its last end must win by it.

    Otherwise a control that was trained for less would hide those that were measured at this cost.
    """
    lowest = _lowest(found)
    if _never_grown(lowest, method, floor):
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


def _never_grown(control: At | None, method: At | None, floor: float | None) -> bool | None:
    if control is None or method is None:
        return None
    smaller, grown = mean(control[1]), mean(method[1])
    if smaller.at_most is not None and floor is not None and smaller.at_most <= floor:
        return True
    if smaller.at_least is not None and grown.at_most is not None and smaller.at_least > grown.at_most:
        return False
    return None


def _margin(control: At | None, method: At | None) -> dict[str, float | None] | None:
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

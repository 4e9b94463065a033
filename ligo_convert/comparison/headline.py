"""Give every entry of a comparison one saving, and rank the methods by it.

Input: records of entries, as `record.py` assembles them.
Output: plain values of compare.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ligo_convert.comparison.frontier import NOTHING, Frontier, Reading, mean, saved, saved_by, spread
from ligo_convert.comparison.methods import SCRATCH

Data = Mapping[str, Any]


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


def growing(methods: Mapping[str, Data]) -> dict[str, Data]:
    """Return the methods whose model grows: without scratch, and without those that train the target in another way."""
    # Records of before had methods that grow only.
    return {name: method for name, method in methods.items() if name != SCRATCH and method.get("grows", True)}


def ranked(methods: Mapping[str, Data], way: str) -> list[str]:
    """Return the methods that grow and have a certain saving, the largest first."""
    found = {name: method["headline"][way] for name, method in growing(methods).items()}
    return sorted((name for name in found if certain(found[name])), key=lambda name: (-found[name]["saved"], name))


def best_method(methods: Mapping[str, Data], way: str) -> dict[str, Any] | None:
    """Return the method with the largest certain saving, with its headline; None if there is none."""
    order = ranked(methods, way)
    if not order:
        return None
    found = methods[order[0]]["headline"][way]
    return {"method": order[0], "end": found["step"], **{key: found[key] for key in found if key != "step"}}


def lead(record: Data, way: str) -> dict[str, Any] | None:
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
            there = Frontier.of_record(scratch["seeds"][seed]["ends"]).flops_at(loss)
            own = Frontier.of_record(entry["seeds"][seed]["ends"]).flops_at(loss)
            if own.value is not None and own.bound is None:
                reading = saved(own.value + charged, there)
            elif own.value is not None and own.bound == "at most" and there.value is not None and there.bound is None:
                reading = saved_by(Reading(own.value + charged, own.bound), there.value)
        found.append(reading)
    return found

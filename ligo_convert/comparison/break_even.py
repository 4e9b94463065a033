"""Say from how many targets on a source pays for itself, and how savings depend on its cost.

Input: the record of a comparison with its entries, as `record.py` assembles it.
Output: the keys `break_even` and `sources_tried` of compare.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ligo_convert.comparison.frontier import finite
from ligo_convert.comparison.headline import certain

Data = Mapping[str, Any]


def break_even(record: Data) -> list[dict[str, Any]]:
    """Return, for every method with a source, from how many targets grown from one source on growing pays.

    `targets` is the source's FLOPs divided by the FLOPs that one target saves with the source left out, rounded up. It is None where
    growing certainly saves nothing even then (`never`), and where it is not known; `reason` says why. `source_limit` is the largest cost
    of a source, as a share of scratch's FLOPs, that one target pays back.
    """
    fractions = {source["name"]: finite(source.get("fraction_of_scratch")) for source in record["sources"]}
    rows = []
    for name, method in record["methods"].items():
        paper, net = (method["headline"][way] for way in ("paper", "net"))
        if not method["needs_source"] or paper is None:
            continue
        cost, saving = method["source_flops"], paper["scratch_flops"] * paper["saved"] / 100
        targets = reason = None
        never = saving <= 0 and paper["bound"] in (None, "at most")
        if never:
            reason = "it saves nothing even with the source left out"
        elif paper["bound"] in ("at most", "mixed"):
            reason = "its loss is above all that was measured for scratch"
        elif saving <= 0:
            reason = "its shortest run has less than scratch's loss already, and costs more than scratch"
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
                "targets_bound": "at most" if (targets or 0) > 1 and paper["bound"] == "at least" else None,
                "reason": reason,
                "never": never,
                "source_limit": round(saving / record["budget"]["flops"], 4) if saving > 0 and certain(paper) else None,
            }
        )
    return rows


def by_source(record: Data) -> list[dict[str, Any]]:
    """Return the savings of every method as a function of its source's cost, with the costs at which `net` changes its sign.

    `crossings` are interpolated linearly between neighbouring sources for which the saving was measured; a bound gives none. A method
    with one source has one point and no crossing.
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
    found = []
    for one, other in pairwise(points):
        if any(row["net"] is None or row["net"]["bound"] is not None for row in (one, other)):
            continue
        (low, before), (high, after) = ((row["fraction"], row["net"]["saved"]) for row in (one, other))
        if (before > 0) != (after > 0):
            found.append(round(low + (high - low) * before / (before - after), 4))
    return found

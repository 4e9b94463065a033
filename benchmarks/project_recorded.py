"""Project recorded trials to the whole budget, and compare the picks with full training. Nothing is trained; it takes seconds.

    python benchmarks/project_recorded.py

Input: `choices.json` beside this file: for each triple of `choose_triples.py` the trials of `choose`, with the default lengths and
rates, and the loss of every candidate that was trained in full, at the best of two or three learning rates; the best four with three seeds.
Output: one line for each triple: the pick, how far it is from the best, and how far projected losses are from the true ones.

A change of `ligo_convert/comparison/projection.py` is judged here before any trial is repeated. Triples that are held apart count; the
projection was improved on the others.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from choose_triples import WITHIN, points_between

from ligo_convert.comparison.projection import Candidate, Leg, Projection, TrialEnd, project

RECORDED: Final = Path(__file__).with_name("choices.json")


def candidates_of(triple: Mapping[str, Any]) -> dict[str, Candidate]:
    return {
        row["name"]: Candidate(
            legs=tuple(Leg(size=size, share=share) for size, share in row["legs"]),
            start=row["source_loss"],
            ends=tuple(TrialEnd(tokens=tokens, loss=loss) for tokens, loss in row["trials"]),
            tokens=row["tokens"],
        )
        for row in triple["candidates"]
    }


def picked(triple: Mapping[str, Any], projections: Mapping[str, Projection]) -> str:
    """Return the candidate of the longest trials with the lowest projected loss."""
    longest = max(len(row["trials"]) for row in triple["candidates"])
    finalists = [row["name"] for row in triple["candidates"] if len(row["trials"]) == longest]
    return min(finalists, key=lambda name: projections[name].loss)


def reading(triple: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pick of a triple, and how far it and the projected losses are from full training."""
    found = project(candidates_of(triple), plateau=triple["too_early"])
    true = {row["name"]: row["loss"] for row in triple["candidates"]}
    best, pick = min(true, key=lambda name: true[name]), picked(triple, found)
    off = [found[name].loss - loss for name, loss in true.items()]
    return {
        "picked": pick,
        "best": best,
        "nats": true[pick] - true[best],
        "points": points_between([tuple(point) for point in triple["scratch"]], true[pick], true[best]),
        "off": statistics.fmean(off),
        "spread": statistics.stdev(off),
        "leads": found[pick].leads,
    }


def main() -> None:
    held = []
    for triple in json.loads(RECORDED.read_text()):
        found = reading(triple)
        held += [found["points"]] if triple["held"] else []
        print(
            f"{triple['name']:13} {'held apart ' if triple['held'] else 'development'} {found['picked']} ({found['leads']:.0%}), best"
            f" {found['best']}: {found['points']:.1f} points ({found['nats']:+.3f} nats) behind; projections"
            f" {found['off']:+.3f} +- {found['spread']:.3f} nats off"
        )
    right = sum(points <= WITHIN for points in held)
    print(f"{right} of {len(held)} picks on triples held apart are within {WITHIN:g} points of the best")


if __name__ == "__main__":
    main()

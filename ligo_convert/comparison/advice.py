"""Say how to grow, from trials: the ranking, the projection to the budget, what would change the answer, and what the trials cost.

Input: a `TrialScheduler` with every trial done.
Output: the contents of choose.json: plain values and plain sentences.

The trials measure; the projection is a calculation. The sentences keep the two apart.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from ligo_convert.comparison.chosen_recipe import DROPPING, PLAIN, why_not_written
from ligo_convert.comparison.experiment import ExperimentEntry
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.projection import (
    NOISE,
    PLATEAU,
    Candidate,
    Projection,
    falls_faster,
    on_plateau,
    project_at,
)
from ligo_convert.comparison.trials import Kind, Trials, TrialScheduler, noise_of
from ligo_convert.families.flops import CONVENTION

FORMAT: Final = "ligo-choice/2"

CLEAR: Final = 0.9  # share of the votes from which a choice is called clear

LONGER_TIMES: Final = 2  # how much longer the trials are that may decide an open choice

EARLY_TIMES: Final = 4  # the same where the trials ended too early to be projected

BUDGETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # budgets at which the leader is read, in budgets

GROWS: Final[Mapping[Kind, bool]] = {
    "scratch": False,
    "smaller": False,
    "trained otherwise": False,
    "trained on": False,
    "part way": True,
    "grown at once": True,
    "grown later": True,
    "grown on the way": True,
}

# Keys of a row that say how a candidate is trained, besides its start, its time and its rate.
WAY: Final = ("options", "strategy", "fit", "state", "warmup_steps", "shape", "follows_schedule")


def advice(
    scheduler: TrialScheduler, *, key: str, label: str, data: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """Return the record of finished trials.

    Args:
        key: digest of everything that determines the result.
        label: where the source comes from.
        data: digest and sizes of the data.
        versions: versions of the libraries.
    """
    trials = scheduler.experiment
    ends = {name: scheduler.ends_of(name) for name in trials.entries}
    measured = noise_of(end for found in ends.values() for end in found)
    candidates, noise = scheduler.candidates(), measured or NOISE
    early = _early(candidates, scheduler.frequency_loss(), noise=noise)
    at_budgets = project_at(candidates, BUDGETS, noise=noise, plateau=early["too_early"])
    projections = at_budgets.get(1.0, {})
    spent, budget = scheduler.spent(), trials.scratch_flops
    rows = [_row(scheduler, name, ends[name], projections.get(name)) for name in trials.entries]
    choice = scheduler.advised(trials.baseline)
    record: dict[str, Any] = {
        "format": FORMAT,
        "key": key,
        "recipe": trials.plan.recipe.path.name,
        "family": trials.plan.family.name,
        "source": label,
        "parameters": trials.plan.parameters,
        "budget": {
            "steps": trials.steps,
            "flops": budget,
            "batch_size": trials.batch_size,
            "tokens_per_parameter": round(trials.tokens_per_parameter, 2),
        },
        "rounds": list(trials.rounds),
        "seeds": list(trials.seeds),
        "optimizer": asdict(choice),
        "cost": {
            "flops": spent["trials"],
            "share": round(spent["trials"] / budget, 4),
            "source_flops": spent["source"],
            "source_share": round(spent["source"] / budget, 4),
        },
        "noise": {"nats": round(noise, 6), "measured": measured is not None},
        "early": early,
        "candidates": _ranked(rows),
        "by_budget": _leaders(candidates, at_budgets),
        "skipped": dict(trials.skipped),
        "data": dict(data),
        "flops_convention": CONVENTION,
        "versions": dict(versions),
    }
    record["choice"] = _choice(trials, record)
    record["longer"] = _longer(trials, record)
    record["text"] = sentences(record)
    return record


def _early(candidates: Mapping[str, Candidate], frequencies: float | None, *, noise: float) -> dict[str, Any]:
    """Return whether models from drawn weights, on which the projection rests, ended too early to be projected, and which ones."""
    drawn = {name: one for name, one in candidates.items() if one.is_drawn and one.ends}
    plateau = [name for name, one in drawn.items() if on_plateau(one.ends[-1].loss, frequencies)]
    faster = [name for name, one in drawn.items() if falls_faster(one, noise=noise)]
    return {
        "too_early": bool(plateau or faster),
        "frequency_loss": frequencies,
        "on_plateau": plateau,
        "falls_faster": faster,
    }


def _longer(trials: Trials, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the longer trials that may decide between the choice and the next candidate, as a command.

    None for a clear choice, and where the longest trials have the whole budget. Scratch and the models that never grow take part in any
    case.
    """
    choice = record["choice"]
    if choice["confidence"] == "clear" or choice["next"] is None or trials.rounds[-1] >= 1:
        return None
    pair = [choice["name"], choice["next"]]
    named = [name for name in pair if trials.entries[name].kind == "method"] or [SCRATCH]
    last = trials.rounds[-1] * (EARLY_TIMES if record["early"]["too_early"] else LONGER_TIMES)
    shares = [min(last, 1.0) / 2, min(last, 1.0)]
    words = ["ligo-convert", "choose", record["recipe"], "--candidates", ",".join(named), "--steps", str(trials.steps)]
    words += ["--seeds", ",".join(map(str, trials.seeds))] if len(trials.seeds) > 1 else []
    words += ["--set", f"choose.shares=[{shares[0]:.4g},{shares[1]:.4g}]"]
    words += ["--out", f"{trials.plan.recipe.output.dir}-choose-longer"]
    return {"candidates": pair, "shares": shares, "command": shlex.join(words)}


def _row(
    scheduler: TrialScheduler, name: str, ends: Sequence[Mapping[str, Any]], projection: Projection | None
) -> dict[str, Any]:
    trials = scheduler.experiment
    entry = trials.entries[name]
    choice, method = scheduler.advised(entry), entry.method
    # A strategy that draws its first model grows several times, and is known by its name alone.
    growth = entry.planned[0].stage.growth if method is None else (None if method.random_init else method)
    return {
        "name": name,
        "kind": trials.kinds[name],
        "grows": GROWS[trials.kinds[name]],
        "width": None if growth is None else growth.width,
        "depth": None if growth is None else growth.depth,
        **_way(entry),
        "at": method.grows_at if method is not None else None,
        "steps": round(trials.budget_tokens(entry) / trials.tokens),
        "asked": dict(first.asked) if (first := entry.planned[0].stage).asked is not None else None,
        "config": dict(entry.asked) if entry.kind == "control" else None,
        "source_flops": trials.source_flops(entry),
        "source_loss": scheduler.source_loss(entry),
        "fit_flops": trials.fit_flops(entry),
        "learning_rate": choice.learning_rate,
        "decay": choice.decay,
        "trials": [dict(end) for end in ends],
        "projection": None
        if projection is None
        else {part: round(value, 6) for part, value in asdict(projection).items()},
    }


def _way(entry: ExperimentEntry) -> dict[str, Any]:
    """Return how an entry is trained, with the keys `WAY`."""
    method = entry.method
    grown = next((part.stage for part in entry.planned if part.stage.growth is not None), None)
    fit = None
    if method is not None and method.learns_operator:
        fit = "tensor ring" if method.ring else ("tied operator" if method.tie else "operator")
    return {
        "options": list(method.options) if method is not None else [],
        "strategy": method.strategy if method is not None else None,
        "fit": fit,
        "state": grown.growth.state if grown is not None and grown.growth is not None else None,
        "warmup_steps": grown.warmup if grown is not None else 0,
        "shape": method.shape if method is not None else "stable",
        "follows_schedule": method is not None and method.follows_schedule,
    }


def _ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the candidates in the order of the advice: who was tried longest first, then by projected loss, then by the last trial's.

    Of those that were tried equally long, a candidate whose source the budget does not pay for is the last.
    """

    def key(row: Mapping[str, Any]) -> tuple[float, ...]:
        projected = row["projection"]
        loss = _last(row) if projected is None else projected["loss"]
        return (-len(row["trials"]), not row["steps"], projected is None, loss)

    return sorted(rows, key=key)


def _leaders(
    candidates: Mapping[str, Candidate], projections: Mapping[float, Mapping[str, Projection]]
) -> list[dict[str, Any]]:
    """Return who is projected to lead at fractions and multiples of the budget, among those that were tried longest."""
    most = max((len(candidate.ends) for candidate in candidates.values()), default=0)
    longest = [name for name, candidate in candidates.items() if len(candidate.ends) == most]
    found = []
    for times, projected in projections.items():
        name = min(longest, key=lambda one: projected[one].loss)
        one = projected[name]
        found.append({"times": times, "name": name, "loss": round(one.loss, 6), "leads": one.leads})
    return found


def _choice(trials: Trials, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the choice: the candidate with the lowest projected loss among those that took part in every round."""
    finalists = [row for row in record["candidates"] if len(row["trials"]) == len(trials.rounds)]
    chosen = finalists[0]
    first = min(finalists, key=lambda row: _last(row))
    scratch = next(row for row in record["candidates"] if row["name"] == SCRATCH)
    others = [row for row in finalists if row is not chosen]
    projected = chosen["projection"]
    leads = None if projected is None else projected["leads"]
    choice = {
        "name": chosen["name"],
        "kind": chosen["kind"],
        "grows": chosen["grows"],
        "width": chosen["width"],
        "depth": chosen["depth"],
        **{key: chosen[key] for key in WAY},
        "asked": chosen["asked"],
        "steps": chosen["steps"],
        "at": chosen["at"],
        "config": chosen["config"],
        "learning_rate": chosen["learning_rate"],
        "optimizer": record["optimizer"]["optimizer"],
        "decay": chosen["decay"],
        "confidence": "unknown"
        if leads is None
        else ("clear" if leads >= CLEAR and not record["early"]["too_early"] else "open"),
        "leads": leads,
        "ahead_now": first["name"],
        "next": others[0]["name"] if others else None,
        "gain_over_scratch": _difference(scratch, chosen),
        "gain_over_next": _difference(others[0], chosen) if others else None,
    }
    choice["not_written"] = why_not_written(choice, pretrains=trials.plan.recipe.source.pretrain is not None)
    return choice


def _last(row: Mapping[str, Any]) -> float:
    loss: float | None = row["trials"][-1]["loss"]
    return math.inf if loss is None else loss


def _difference(other: Mapping[str, Any], chosen: Mapping[str, Any]) -> float | None:
    """Return by how many nats the projected loss of the chosen candidate lies below another's."""
    if other["projection"] is None or chosen["projection"] is None:
        return None
    return round(float(other["projection"]["loss"] - chosen["projection"]["loss"]), 6)


# Sentences.


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Return the advice in plain sentences."""
    choice, rows = record["choice"], {row["name"]: row for row in record["candidates"]}
    chosen, last = rows[choice["name"]], record["rounds"][-1]
    found = [_headline(record, chosen)]
    if choice["grows"] and choice["not_written"] is not None:
        found.append(f"`--write` writes no recipe: {choice['not_written']}.")
    if choice["ahead_now"] == choice["name"]:
        found.append(f"It is ahead in the longest trials, at {last:.1%} of the budget: loss {_last(chosen):.4f}.")
    else:
        ahead = rows[choice["ahead_now"]]
        why = " The projection to the whole budget reverses this, because short trials favour small models and trained starts."
        if not ahead["steps"]:
            cost = f"{ahead['source_flops'] / record['budget']['flops']:.1f} times the budget"
            why = f" But the budget does not pay for its source, whose training costs {cost}."
        found.append(
            f"At {last:.1%} of the budget {ahead['name']} is ahead: loss {_last(ahead):.4f} against {_last(chosen):.4f}.{why}"
        )
    if chosen["source_loss"] is not None and _last(chosen) > chosen["source_loss"]:
        found.append(
            f"Its trials end above the source's own loss of {chosen['source_loss']:.4f}, because the rising rate costs at first. "
            + ("Longer trials (choose.shares) or lower" if last < 1 else "Lower")
            + " rates (choose.source_rate_factors) say more."
        )
    found += _early_sentences(record)
    found += _projected_sentences(record, chosen)
    found += _change_sentences(record)
    noise = record["noise"]
    if noise["measured"]:
        found.append(f"Seeds differ by {noise['nats']:.4f} nats, measured over {len(record['seeds'])} seeds.")
    else:
        found.append(
            f"The spread over seeds is unknown: one seed was run, and {noise['nats']:g} nats are assumed. Pass --seeds 0,1,2 to measure it."
        )
    cost = record["cost"]
    found.append(
        f"The trials cost {cost['flops']:.3g} FLOPs, {cost['share']:.1%} of the budget"
        + (f"; training the source for them cost another {cost['source_share']:.1%}." if cost["source_flops"] else ".")
    )
    return found + _longer_sentences(record)


def _headline(record: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    kind, how = chosen["kind"], _how(chosen)
    falling = f"falling to zero over the last {chosen['decay']:.0%} of the steps"
    if chosen["shape"] == "cosine":
        falling = "falling to zero as a cosine from the warmup on"
    rate = f"peak learning rate {chosen['learning_rate']:g} with {record['optimizer']['optimizer']}, {falling}"
    by = " as growth.schedule says" if chosen["follows_schedule"] else f", {how}"
    during = by if chosen["follows_schedule"] else f": {how or chosen['name']}"
    share = f"{chosen['at']:.0%} of the steps" if chosen["at"] else ""
    text = {
        "scratch": "Do not grow: train the target from random weights",
        "smaller": f"Do not grow: train the smaller model ({_keys(chosen)}) from random weights",
        "trained otherwise": f"Do not grow: train the target from random weights by the method {chosen['name']}",
        "trained on": "Do not grow: train the source on",
        "part way": f"Grow part of the way ({_keys(chosen)}) at once",
        "grown at once": f"Grow the source at once{by}",
        "grown later": "Train the source on" + (f" for {share}" if share else "") + f", then grow it{by}",
        "grown on the way": f"Train from random weights and grow during training{during}"
        + (f", after {share}" if share else ""),
    }[kind]
    # Who reads one sentence must learn from it how much the advice is worth.
    guess = "" if record["choice"]["confidence"] == "clear" else "Not decided by these trials. Best guess: "
    return f"{guess}{text}; {rate}."


def _how(row: Mapping[str, Any]) -> str:
    """Return how a candidate grows, with all that its training needs beside; empty where only its name says it."""
    if row["width"] is None:
        return ""
    more = [f"a learned {row['fit']}"] if row["fit"] is not None else []
    more += [f"the strategy {row['strategy']}"] if row["strategy"] not in (None, PLAIN) else []
    more += [name for name in row["options"] if name in DROPPING]
    more += ["a new warmup after the growth"] if row["warmup_steps"] else []
    if row["state"] not in (None, "carry" if row["at"] is not None else "reset"):
        more.append(f"the optimizer's state by {row['state']}")
    return f"width by {row['width']}, depth by {row['depth']}" + (f", with {' and '.join(more)}" if more else "")


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in (row["config"] or {}).items())


def _projected_sentences(record: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    choice, projected = record["choice"], chosen["projection"]
    if projected is None:
        return [
            "No projection is made: too few trials from random weights have a finite loss. The choice is who is ahead now, which favours"
            " small models and trained starts."
        ]
    found = [
        f"Projected to the whole budget its loss is {projected['loss']:.3f} (between {projected['low']:.3f} and {projected['high']:.3f})"
        + (f", {choice['gain_over_scratch']:.3f} below scratch's." if chosen["name"] != SCRATCH else ".")
    ]
    if choice["next"] is not None and choice["gain_over_next"] is not None:
        share = f"It has the lowest loss in {projected['leads']:.0%} of the projections"
        end = f"the next is {choice['next']}, {choice['gain_over_next']:.3f} nats behind"
        if choice["confidence"] == "clear":
            found.append(f"{share}; {end}.")
        else:
            why = "ended too early to decide" if record["early"]["too_early"] else "do not decide"
            found.append(f"{share}; {end}: the trials {why} between them.")
    return found


def _early_sentences(record: Mapping[str, Any]) -> list[str]:
    """Say that trials ended too early to be projected, and why."""
    early, last, found = record["early"], record["rounds"][-1], []
    hint = "Read the projection as a rough ranking"
    hint += f", and give longer trials (choose.shares above {last:g})." if last < 1 else "."
    rows = {row["name"]: row for row in record["candidates"]}
    if early["on_plateau"]:
        ends = ", ".join(f"{name} at {_last(rows[name]):.3f}" for name in early["on_plateau"])
        found.append(
            f"Trials from random weights ended on the plateau that training begins with ({ends}; above {PLATEAU:.0%} of the"
            f" {early['frequency_loss']:.3f} nats that a model has which knows only how frequent each answer is). {hint}"
        )
    elif early["falls_faster"]:
        names = ", ".join(early["falls_faster"])
        found.append(f"From trial to trial the loss falls faster ({names}), which does not last. {hint}")
    return found


def _longer_sentences(record: Mapping[str, Any]) -> list[str]:
    longer, choice = record["longer"], record["choice"]
    if longer is None and (choice["confidence"] == "clear" or choice["next"] is None):
        return []
    if longer is None:
        return [
            "No trials are longer than these, which have the whole budget. To decide, give more seeds (--seeds 0,1,2), or measure with"
            " `ligo-convert compare`."
        ]
    first, second = longer["shares"]
    return [
        f"To decide, try {' and '.join(longer['candidates'])} for longer, at {first:.3g} and {second:.3g} of the budget, with the options"
        f" of this command: {longer['command']}"
    ]


def _change_sentences(record: Mapping[str, Any]) -> list[str]:
    """Return at which budgets the answer would be another."""
    chosen, leaders, found = record["choice"]["name"], record["by_budget"], []
    smaller = [row for row in leaders if row["times"] < 1]
    larger = [row for row in leaders if row["times"] > 1]
    for rows in (smaller, larger):
        for name in dict.fromkeys(row["name"] for row in rows if row["name"] != chosen):
            times = [row["times"] for row in rows if row["name"] == name]
            downwards = rows is smaller and times == [row["times"] for row in rows[: len(times)]]
            budgets = f"{times[-1]:g} times the budget or less" if downwards else f"{_listed(times)} times the budget"
            found.append(f"With {budgets}, {name} is projected to lead.")
    if leaders and not found:
        found.append(
            f"The answer is the same from {leaders[0]['times']:g} to {leaders[-1]['times']:g} times the budget."
        )
    return found


def _listed(numbers: Sequence[float]) -> str:
    *first, last = (f"{number:g}" for number in numbers)
    return f"{', '.join(first)} and {last}" if first else last

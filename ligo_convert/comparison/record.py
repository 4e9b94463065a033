"""Assemble compare.json from finished runs: every end read at equal loss and at equal budget, over seeds, with bounds kept as bounds.

Input: what each entry is (`Entry`), its finished runs by seed (`SeedRuns`), and what was compared (`Setup`).
Output: plain values in the format `FORMAT`, for JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ligo_convert.comparison.frontier import (
    NOTHING,
    End,
    Frontier,
    Reading,
    gap,
    mean,
    saved,
    saved_by,
    spread,
)
from ligo_convert.comparison.headline import headline
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.verdict import conclusions, optimizer_gain

FORMAT = "ligo-comparison/3"

WAYS = ("paper", "net")

Kind = Literal["scratch", "control", "method"]


@dataclass(frozen=True, kw_only=True)
class SeedRuns:
    """The finished runs of one entry with one seed.

    Attributes:
        ends: finished runs of different lengths.
        curve: evaluations along the longest run: `step`, `flops`, `loss`.
    """

    ends: Sequence[End]
    curve: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one entry of a comparison is.

    Attributes:
        kind: `scratch`; `control`, a smaller model that never grows; or `method`.
        base: name of the method without its source, the same for all strengths of the source; None for the entry's own name.
        source: name of the source that the entry starts from or is taught by; None if it uses none.
        source_flops: FLOPs of training that source; None if unknown, 0 if the entry uses no source.
        summary: description.
        paper: source in the literature.
        preserving: whether the start keeps the source's function, in words.
        verdict: verdict of the growth plan; None for random weights.
        start: width and depth method; None for random weights.
        strategy: name of the training strategy.
        options: names of the options.
        learning_rate: peak learning rate of the longest run.
        optimizer: name of the optimizer.
        decay: fraction of the steps in which the learning rate decays.
        fit_flops: FLOPs of learning the operator, and of trials of starts that the run does not continue; included in every end.
        step_flops: FLOPs of one training step, as the mean over the longest run.
        config: keys of a control's config that differ from the target's.
        stages: stages of the run as plain data.
        tried: the entry's own tuning runs, like `Setup.tried`.
        grows: whether the model grows, at once or during training. A method may train the target in another way without growth.
        chose: seed -> name of a start -> loss of its trial, for an entry that chooses the lowest; empty without a choice.
    """

    kind: Kind
    base: str | None = None
    source: str | None = None
    source_flops: float | None = 0.0
    summary: str = ""
    paper: str = "-"
    preserving: str | None = None
    verdict: str | None = None
    start: Mapping[str, Any] | None = None
    strategy: str = "plain"
    options: Sequence[str] = ()
    learning_rate: float | None = None
    optimizer: str | None = None
    decay: float | None = None
    fit_flops: float = 0.0
    step_flops: float | None = None
    config: Mapping[str, Any] | None = None
    stages: Sequence[Mapping[str, Any]] = ()
    tried: Sequence[Mapping[str, Any]] = ()
    grows: bool = True
    chose: Mapping[str, Mapping[str, float | None] | None] = field(default_factory=dict)

    @property
    def charged(self) -> float | None:
        """Return the FLOPs that `net` adds to every end; None if they are unknown."""
        return 0.0 if self.source is None else self.source_flops


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What was compared, and how scratch was tuned.

    Attributes:
        recipe: file name of the recipe.
        key: digest of everything that determines the result.
        family: name of the family.
        architecture: class of the model.
        task: what the model is trained for.
        parameters: number of parameters of `source` and `target`.
        budget: `steps`, `batch_size`, `sequence_length`, `examples`, `unit`, `tokens_per_parameter`, `flops` of scratch.
        chosen: the optimizer of every entry as data: `name`, `learning_rate`, `decay`, `schedule`.
        tried: scratch's tuning runs: `optimizer`, `learning_rate`, `decay`, `schedule`, `steps`, `validation_loss`.
        sources: `name`, `steps`, `flops`, `fraction_of_scratch`, `tokens_per_parameter`, `loss`, `accuracy` of every source.
        seeds: seeds with which every entry is trained.
        data: digest and sizes of the splits.
        warmup_steps: warm-up steps of every run.
        skipped: entry -> reason why it does not apply.
        fairness_warnings: `rule`, `text`, `methods`.
        flops_convention: how FLOPs are counted.
        versions: library -> version.
        settings: the recipe's `compare` section with every default filled in.
        more: further keys of the record.
    """

    recipe: str
    key: str
    family: str
    architecture: str
    task: str
    parameters: Mapping[str, int]
    budget: Mapping[str, Any]
    chosen: Mapping[str, Any]
    tried: Sequence[Mapping[str, Any]]
    sources: Sequence[Mapping[str, Any]]
    seeds: Sequence[int]
    data: Mapping[str, Any]
    warmup_steps: int
    skipped: Mapping[str, str]
    fairness_warnings: Sequence[Mapping[str, Any]]
    flops_convention: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Baseline:
    """Scratch with one seed: its frontier, its loss after the whole budget, and the FLOPs to that loss."""

    frontier: Frontier
    loss: float | None
    flops: float | None


def comparison_record(
    setup: Setup, entries: Mapping[str, Entry], runs: Mapping[str, Mapping[int, SeedRuns]]
) -> dict[str, Any]:
    """Return the contents of compare.json.

    Args:
        setup: what was compared.
        entries: name -> entry. One entry of kind `scratch`, named `scratch`, is required.
        runs: name -> seed -> finished runs, for every entry.

    Raises:
        ValueError: two runs of one entry and one seed have the same number of steps.
    """
    budget = int(setup.budget["steps"])
    baselines = {seed: _baseline(found, budget) for seed, found in runs[SCRATCH].items()}
    made = {name: _entry_record(name, entry, runs[name], baselines) for name, entry in entries.items()}
    scratch = made[SCRATCH]
    record = {
        "format": FORMAT,
        "recipe": setup.recipe,
        "key": setup.key,
        "family": setup.family,
        "architecture": setup.architecture,
        "task": setup.task,
        "parameters": dict(setup.parameters),
        "budget": dict(setup.budget),
        "optimizer": {
            "chosen": dict(setup.chosen),
            "tried": [dict(run) for run in setup.tried],
            "gain": optimizer_gain(str(setup.chosen["name"]), setup.tried),
        },
        "sources": [dict(source) for source in setup.sources],
        "curve": [{key: end[key] for key in ("step", "flops", "loss", "std")} for end in scratch["ends"]],
        "methods": {name: made[name] for name, entry in entries.items() if entry.kind != "control"},
        "controls": {name: made[name] for name, entry in entries.items() if entry.kind == "control"},
        "skipped": dict(setup.skipped),
        "fairness_warnings": list(setup.fairness_warnings),
        "settings": dict(setup.settings),
        "warmup_steps": setup.warmup_steps,
        "seeds": list(setup.seeds),
        "data": dict(setup.data),
        "flops_convention": setup.flops_convention,
        "versions": dict(setup.versions),
        **setup.more,
    }
    return record | conclusions(record)


def _baseline(runs: SeedRuns, budget: int) -> _Baseline:
    frontier = Frontier(runs.ends)
    ends = sorted(runs.ends, key=lambda end: end.steps)
    whole = next((end for end in ends if end.steps == budget), ends[-1] if ends else None)
    if whole is None or whole.loss is None:
        return _Baseline(frontier=frontier, loss=None, flops=None)
    return _Baseline(frontier=frontier, loss=whole.loss, flops=frontier.flops_at(whole.loss).value)


def _entry_record(
    name: str, entry: Entry, runs: Mapping[int, SeedRuns], baselines: Mapping[int, _Baseline]
) -> dict[str, Any]:
    by_seed = {seed: _seed_record(name, entry, found, baselines.get(seed)) for seed, found in runs.items()}
    seeds = list(by_seed.values())
    steps = sorted({step for found in seeds for step in found["ends"]})
    ends = [_mean_end([found["ends"].get(step) for found in seeds]) for step in steps]
    savings = {way: [found["savings"][way] for found in seeds] for way in WAYS}
    means = {way: mean(readings) for way, readings in savings.items()}
    std = {way: _rounded(spread(readings), 2) for way, readings in savings.items()}
    record: dict[str, Any] = {
        "kind": entry.kind,
        "base": entry.base or name,
        "source": entry.source,
        "source_flops": entry.charged,
        "needs_source": entry.source is not None,
        "grows": entry.kind == "method" and entry.grows,
        "summary": entry.summary,
        "paper": entry.paper,
        "preserving": entry.preserving,
        "verdict": entry.verdict,
        "start": None if entry.start is None else dict(entry.start),
        "strategy": entry.strategy,
        "options": list(entry.options),
        "learning_rate": entry.learning_rate,
        "optimizer": entry.optimizer,
        "decay": entry.decay,
        "flops": {"fit": entry.fit_flops, "step": entry.step_flops, "source": entry.charged},
        "config": None if entry.config is None else dict(entry.config),
        "stages": [dict(stage) for stage in entry.stages],
        "tried": [dict(run) for run in entry.tried],
        **({"chose": dict(entry.chose)} if entry.chose else {}),
        "curve": list(next(iter(runs.values())).curve) if runs else [],
        "ends": ends,
        "savings": {way: _rounded(means[way].value, 2) for way in WAYS},
        "savings_bound": {way: means[way].bound for way in WAYS},
        "std": {"loss": ends[-1]["std"] if ends else None, **std},
        "seeds": {
            str(seed): {
                "curve": list(runs[seed].curve),
                "ends": [_plain_end(end) for _, end in sorted(found["ends"].items())],
                "savings": {way: _rounded(found["savings"][way].value, 2) for way in WAYS},
                "savings_bound": {way: found["savings"][way].bound for way in WAYS},
            }
            for seed, found in by_seed.items()
        },
    }
    losses = [baseline.loss for baseline in baselines.values()]
    flops = [baseline.flops for baseline in baselines.values()]
    record["headline"] = {
        way: headline(record, way, loss=_known_mean(losses), flops=_known_mean(flops)) for way in WAYS
    }
    return record


def _seed_record(name: str, entry: Entry, runs: SeedRuns, scratch: _Baseline | None) -> dict[str, Any]:
    """Return the ends by steps and the savings of one seed, as readings. Without scratch's run of the seed, nothing is read."""
    ends = {end.steps: _read_end(end, entry, scratch) for end in runs.ends}
    if len(ends) < len(runs.ends):
        raise ValueError(f"{name}: two runs of one seed have the same number of steps")
    savings = dict.fromkeys(WAYS, NOTHING)
    if entry.kind == "scratch":
        savings = dict.fromkeys(WAYS, Reading(0.0))
    elif scratch is not None and scratch.loss is not None and scratch.flops is not None:
        there = Frontier(runs.ends).flops_at(scratch.loss)
        # `at least` means that no end has scratch's loss: then there is no saving at that loss.
        if there.value is not None and there.bound != "at least":
            for way, extra in (("paper", 0.0), ("net", entry.charged)):
                if extra is not None:
                    savings[way] = saved_by(Reading(there.value + extra, there.bound), scratch.flops)
    return {"ends": ends, "savings": savings}


def _read_end(end: End, entry: Entry, scratch: _Baseline | None) -> dict[str, Any]:
    net = None if entry.charged is None else end.flops + entry.charged
    frontier = Frontier(()) if scratch is None else scratch.frontier
    there = NOTHING if end.loss is None else frontier.flops_at(end.loss)
    if entry.kind == "scratch" and there.value is not None:
        there = Reading(end.flops)
    costs = {"paper": end.flops, "net": net}
    return {
        "end": end,
        "net_flops": net,
        "scratch_flops": there,
        "saved": {way: NOTHING if cost is None else saved(cost, there) for way, cost in costs.items()},
        "gap": {way: NOTHING if cost is None else gap(end.loss, frontier.loss_at(cost)) for way, cost in costs.items()},
    }


def _plain_end(read: Mapping[str, Any]) -> dict[str, Any]:
    return _mean_end([read])


def _mean_end(reads: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return the end of one length over seeds; None for a seed without a run of that length."""
    there = [read for read in reads if read is not None]
    ends: list[End] = [read["end"] for read in there]
    losses = [Reading(None if read is None else read["end"].loss) for read in reads]
    means = {
        (key, way): mean([NOTHING if read is None else read[key][way] for read in reads])
        for key in ("saved", "gap")
        for way in WAYS
    }
    scratch = mean([NOTHING if read is None else read["scratch_flops"] for read in reads])
    spreads = {way: spread([NOTHING if read is None else read["saved"][way] for read in reads]) for way in WAYS}
    return {
        "step": ends[0].steps,
        "learning_rate": ends[0].learning_rate,
        "flops": _known_mean([end.flops for end in ends]),
        "net_flops": _mean([read["net_flops"] for read in there]),
        "loss": _rounded(mean(losses).value, 6),
        "std": _rounded(spread(losses), 6),
        "accuracy": _rounded(_mean([end.accuracy for end in ends]), 6),
        "seeds": sum(loss.value is not None for loss in losses),
        "scratch_flops": scratch.value,
        "bound": scratch.bound,
        "saved": {way: _rounded(means["saved", way].value, 2) for way in WAYS},
        "saved_std": {way: _rounded(spreads[way], 2) for way in WAYS},
        "gap": {way: _rounded(means["gap", way].value, 6) for way in WAYS},
        "gap_bound": {way: means["gap", way].bound for way in WAYS},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _known_mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are there."""
    return _mean([value for value in values if value is not None])


def _rounded(value: float | None, places: int) -> float | None:
    return None if value is None else round(value, places)

"""Say what a comparison would cost, before anything is trained.

Input: an `Experiment`.
Output: steps, tokens and FLOPs of every entry, and the total, in which what runs share counts once.
"""

from __future__ import annotations

from typing import Any

from ligo_convert.comparison.experiment import Experiment
from ligo_convert.comparison.scheduler import Scheduler


def comparison_costs(experiment: Experiment) -> dict[str, Any]:
    """Return the cost of a comparison: `budget` (scratch), `entries` (runs to every budget with every seed), `total_flops`.

    `disk_bytes` is the disk space that training states and tokens may take.
    """
    expected = Scheduler.expected_by_entry(experiment)
    unit = "images" if experiment.family.reads == "images" else "tokens"
    per_step = experiment.batch_size if unit == "images" else experiment.tokens
    entries = {}
    for name, entry in experiment.entries.items():
        ends = experiment.ends(entry)
        entries[name] = {
            "kind": entry.kind,
            "steps": list(ends),
            unit: ends[-1] * per_step,
            "parameters": experiment.parameters(entry),
            "flops": expected.get(name, 0.0),
        }
    return {
        "recipe": experiment.plan.recipe.path.name,
        "parameters": experiment.plan.parameters,
        "budget": {
            "steps": experiment.steps,
            "batch_size": experiment.batch_size,
            "sequence_length": experiment.length,
            unit: experiment.steps * per_step,
            "tokens_per_parameter": round(experiment.tokens_per_parameter, 2),
            "flops": experiment.scratch_flops,
        },
        "seeds": list(experiment.seeds),
        "sources": [
            {"name": source.name, "steps": source.steps, "flops": source.flops} for source in experiment.sources
        ],
        "entries": entries,
        "skipped": dict(experiment.skipped),
        f"most_{unit}": experiment.most_examples * (1 if unit == "images" else experiment.length),
        "total_flops": sum(expected.values()),
        "disk_bytes": experiment.disk_bytes,
    }

"""Report a comparison as one HTML file that needs no other file.

Input: the contents of compare.json.
Output: a page without scripts or external resources, readable on narrow and wide screens, in dark mode and on paper.
This module turns the record into facts; the template `page.html.j2` lays them out. The template engine escapes every value, and foreign
text (names, reasons, labels) also passes through `printable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ligo_convert.comparison.frontier import finite
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.naming import entry_text, source_text
from ligo_convert.comparison.picture import LOSS_UNITS, comparison_svg, passing, sources_svg
from ligo_convert.comparison.tables import comparison_tables, names_of
from ligo_convert.errors import printable

# The browser loads nothing and runs nothing, whatever the record contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

TEMPLATE = "page.html.j2"

_TASKS = {
    "causal-lm": "predicting the next token",
    "masked-lm": "predicting masked tokens",
    "image-classification": "classifying images",
}


def comparison_html(data: Mapping[str, Any]) -> str:
    """Return the page as text, to be written as UTF-8."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def make_printable(value: object) -> object:
        return value if isinstance(value, Markup) else printable(value)

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=make_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    second = sources_svg(data)
    return environment.get_template(TEMPLATE).render(
        policy=POLICY,
        title=f"{data['architecture']}: what growing saves",
        setup=_setup(data),
        # Names stand between backticks.
        verdict=[sentence.split("`") for sentence in data["verdict"]["text"]],
        names=list(names_of(data).items()),
        # Made by matplotlib; foreign text in them is drawn as outlines or escaped.
        picture=Markup(comparison_svg(data)),
        sources_picture=None if second is None else Markup(second),
        tables=comparison_tables(data),
        skipped=list(data["skipped"].items()),
        warnings=[_warning(warning) for warning in data["fairness_warnings"]],
        entries=[_entry(name, entry) for name, entry in (*data["methods"].items(), *data["controls"].items())],
        convention=data["flops_convention"],
        settings=_settings(data),
        versions=list(data["versions"].items()),
    )


def _warning(warning: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rule": warning["rule"],
        "text": warning["text"].removesuffix("."),
        "methods": _names([entry_text(name) for name in warning.get("methods") or ()]),
    }


def _setup(data: Mapping[str, Any]) -> str:
    """Describe what was compared, at which scale."""
    budget, parameters = data["budget"], data["parameters"]
    controls, seeds = len(data["controls"]), len(data["seeds"])
    others = len({entry["base"] for name, entry in data["methods"].items() if name != SCRATCH})
    per = finite(budget.get("tokens_per_parameter"))
    scale = [f"{budget['steps']:,} steps on {_count(budget['examples'])} {budget['unit']}"]
    scale += [f"{per:.3g} {passing(budget)} per parameter"] if per is not None else []
    scale += [f"{seeds} seeds"] if seeds > 1 else []
    task = _TASKS.get(str(data["task"]))
    never = (
        f" and {controls} smaller {_plural('model', controls)} that never {'grows' if controls == 1 else 'grow'}"
        if controls
        else ""
    )
    return (
        f"{others} {_plural('method', others)}{never} are compared with training a {data['architecture']} of"
        f" {_count(parameters['target'])} parameters from scratch{f' at {task}' if task else ''}: {', '.join(scale)}. The source has"
        f" {_count(parameters['source'])} parameters."
    )


def _entry(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts about one entry that the page shows: summary, paper, cost, stages, tuning runs."""
    facts = [str(entry["paper"])] if entry.get("paper") not in (None, "", "-") else []
    facts += [f"source: {source_text(entry['source'])}"] if entry["needs_source"] else []
    facts += (
        [f"keeps the source's function: {entry['preserving']}"] if entry["needs_source"] and entry["preserving"] else []
    )
    facts += [f"optimizer {entry['optimizer']}"] if entry["optimizer"] else []
    facts += [f"decay over {100 * entry['decay']:g} % of the steps"] if entry["decay"] is not None else []
    facts += [f"fit {entry['flops']['fit']:.3g} FLOPs"] if entry["flops"]["fit"] else []
    runs = []
    for run in entry["tried"]:
        loss = finite(run.get("validation_loss"))
        runs.append(
            {
                "learning_rate": f"{run['learning_rate']:g}",
                "steps": f"{run['steps']:,}",
                "loss": "not finite" if loss is None else f"{loss:.4f}",
                "kept": run["learning_rate"] == _kept_rate(entry, run["steps"]),
            }
        )
    stages = [", ".join(f"{key} {value}" for key, value in stage.items()) for stage in entry["stages"]]
    return {
        "name": entry_text(name),
        "summary": entry["summary"],
        "facts": "; ".join(facts),
        "tried": runs,
        "stages": stages,
    }


def _kept_rate(entry: Mapping[str, Any], steps: int) -> float | None:
    """Return the learning rate that tuning runs of a length have chosen.

    Runs over the whole budget choose that of the longest end. Short ones choose that of the other ends, which is the lowest rate that is
    tried over the whole budget.
    """
    ends = entry["ends"]
    rate: float | None = entry["learning_rate"]
    if not ends or steps >= ends[-1]["step"]:
        return rate
    whole = [run["learning_rate"] for run in entry["tried"] if run["steps"] >= ends[-1]["step"]]
    shorter = next((end["learning_rate"] for end in ends[:-1]), None)
    return shorter if shorter is not None else min(whole, default=rate)


def _settings(data: Mapping[str, Any]) -> list[tuple[str, object]]:
    budget, chosen = data["budget"], data["optimizer"]["chosen"]
    length = budget.get("sequence_length")
    return [
        ("Recipe", data["recipe"]),
        ("Family", data["family"]),
        ("Architecture", data["architecture"]),
        ("Task", data["task"]),
        ("Parameters", f"{data['parameters']['source']:,} in the source, {data['parameters']['target']:,} in the target"),
        ("Steps", f"{budget['steps']:,}"),
        ("Batch", f"{budget['batch_size']:,}{f' sequences of {length:,} tokens' if length else ''}"),
        ("FLOPs of scratch", f"{budget['flops']:.3g}"),
        ("Losses", LOSS_UNITS.get(str(data["task"]), "nats")),
        ("Optimizer of scratch", ", ".join(f"{key} {value}" for key, value in chosen.items())),
        ("Warm-up steps", f"{data['warmup_steps']:,}"),
        ("Seeds", _names(data["seeds"])),
    ]  # fmt: skip


def _names(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"


def _count(number: float) -> str:
    """
    >>> _count(770000), _count(7700000), _count(354823168)
    ('770,000', '7.7 million', '354.8 million')
    """
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:,.1f}".removesuffix(".0") + f" {word}"
    return f"{number:,}"

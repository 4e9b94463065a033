"""Report a comparison as one HTML file that needs no other file.

Input: the contents of compare.json.
Output: a page without scripts or external resources, readable on narrow and wide screens, in dark mode and on paper.
This module turns the record into facts; the template `report.html.j2` lays them out. The template engine escapes every value, and foreign
text (names, reasons, labels) also passes through `printable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ligo_convert.comparison.plot import LOSS_UNITS, SCRATCH, comparison_svg, finite, passing, scratch_loss
from ligo_convert.errors import printable

# The browser loads nothing and runs nothing, whatever the record contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

TEMPLATE = "report.html.j2"

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
    accuracy = any(finite(method["final"].get("accuracy")) is not None for method in data["methods"].values())
    return environment.get_template(TEMPLATE).render(
        policy=POLICY,
        title=f"{data['architecture']}: starts compared with training from scratch",
        warnings=[_warning(warning) for warning in data["fairness_warnings"]],
        setup=_setup(data),
        finding=_finding(data),
        picture=Markup(comparison_svg(data)),  # made by matplotlib; foreign text in it is drawn as outlines or escaped
        charged=source_cost_known(data),
        seeds=len(data["seeds"]),
        result_columns=_result_columns(data, accuracy),
        results=_results(data, accuracy),
        skipped=list(data["skipped"].items()),
        methods=[_method(name, method) for name, method in data["methods"].items()],
        convention=data["flops_convention"],
        settings=_settings(data),
        versions=list(data["versions"].items()),
    )


def source_cost_known(data: Mapping[str, Any]) -> bool:
    """Return whether the FLOPs of training the source are known, so that `net` savings can be given."""
    return finite(data["source"].get("flops")) is not None


def best_method(methods: Mapping[str, Any], names: Iterable[str], way: str) -> str | None:
    """Return the method with the largest saving; None if none of `names` reached scratch's loss.

    Args:
        methods: name -> record, with `savings`.
        names: the methods to choose from.
        way: `paper` or `net`.
    """
    savings = {name: saved for name in names if (saved := finite(methods[name]["savings"].get(way))) is not None}
    return max(savings, key=lambda name: savings[name]) if savings else None


def _warning(warning: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rule": warning["rule"],
        "text": warning["text"].removesuffix("."),
        "methods": _names(warning.get("methods") or ()),
    }


def _setup(data: Mapping[str, Any]) -> str:
    """Describe what was compared, at which scale."""
    budget, parameters = data["budget"], data["parameters"]
    others = len(data["methods"]) - 1
    seeds = len(data["seeds"])
    per = finite(budget.get("tokens_per_parameter"))
    scale = [f"{budget['steps']:,} steps on {_count(budget['examples'])} {budget['unit']}"]
    scale += [f"{per:.3g} {passing(budget)} a parameter"] if per is not None else []
    task = _TASKS.get(str(data["task"]))
    return (
        f"{others} {'way' if others == 1 else 'ways'} of training a {data['architecture']} of "
        f"{_count(parameters['target'])} parameters {'was' if others == 1 else 'were'} compared with training it from scratch"
        f"{f' at {task}' if task else ''}: {', '.join(scale)}{f', {seeds} seeds each' if seeds > 1 else ''}. "
        f"The source, {data['source']['label']}, has {_count(parameters['source'])} parameters."
    )


def _finding(data: Mapping[str, Any]) -> str:
    """Return the main result in one or two sentences, derived only from the figures."""
    level = scratch_loss(data)
    if level is None:
        return "Scratch ended without a loss, so there is nothing to compare with."
    end = f"scratch's final loss of {level:.3f} {_unit(data)}"
    paper, net = _best(data, "paper"), _best(data, "net")
    if paper is None and net is None:
        return f"Nothing beat scratch: no other method reached {end}."
    parts = []
    if paper is not None:
        parts.append(f"{paper[0]} reached {end} with {_fewer(paper[1])} than scratch, the source left out.")
    if net is not None:
        same = paper is not None and net[0] == paper[0]
        subject = f"It took {_fewer(net[1])}" if same else f"{net[0]} took {_fewer(net[1])} to it"
        if paper is None:
            subject = f"{net[0]} reached {end} with {_fewer(net[1])}"
        rest = "" if same or net[1] <= 0 else ", the most saved by any"
        parts.append(f"{subject} with the source's own training charged{rest}.")
    elif not source_cost_known(data):
        parts.append("What the source's own training cost is not known, so savings with it charged cannot be given.")
    if (net or paper or ("", 0.0))[1] <= 0:
        parts.insert(
            0, "Nothing saved FLOPs over scratch." if net is None else "Nothing saved FLOPs once the source is charged."
        )
    return " ".join(parts)


def _best(data: Mapping[str, Any], way: str) -> tuple[str, float] | None:
    """Return the method other than scratch that saved most, with the percentage."""
    name = best_method(data["methods"], [name for name in data["methods"] if name != SCRATCH], way)
    return None if name is None else (name, data["methods"][name]["savings"][way])


def _fewer(percent: float) -> str:
    return f"{abs(percent):.1f} % {'fewer' if percent >= 0 else 'more'} FLOPs"


def _result_columns(data: Mapping[str, Any], accuracy: bool) -> list[tuple[str, bool]]:
    """Return heading and whether the column holds numbers, for each column of the results."""
    return [
        ("Method", False),
        ("Saved, source charged", True),
        ("Saved, source left out", True),
        (f"Final loss, {_unit(data)}", True),
        *([("Accuracy", True)] if accuracy else []),
        ("FLOPs to its end", True),
        ("Learning rate", True),
        ("Start", False),
        ("Strategy", False),
    ]


def _results(data: Mapping[str, Any], accuracy: bool) -> list[dict[str, Any]]:
    """Return the rows of the results, the largest saving first."""
    way = "net" if source_cost_known(data) else "paper"
    best = _best(data, way)
    rows = []
    for name, method in sorted(data["methods"].items(), key=lambda item: _rank(item[0], item[1], way)):
        highlight = SCRATCH if name == SCRATCH else "best" if best and name == best[0] and best[1] > 0 else ""
        rows.append({"name": name, "highlight": highlight, **_result(data, name, method, accuracy)})
    return rows


def _result(data: Mapping[str, Any], name: str, method: Mapping[str, Any], accuracy: bool) -> dict[str, Any]:
    from markupsafe import Markup

    final, flops, std = method["final"], method["flops"], method.get("std") or {}
    loss, fraction, share = (finite(final.get(key)) for key in ("loss", "budget_fraction", "accuracy"))
    costs = [Markup("fit ") + _power(fit) for fit in [finite(flops.get("fit"))] if fit]
    if method["needs_source"]:
        source = finite(flops.get("source"))
        costs.append("source not known" if source is None else Markup("source ") + _power(source) + " more")
    return {
        "net": _saving(name, method, "net", data),
        "paper": _saving(name, method, "paper", data),
        "loss": "diverged" if loss is None else f"{loss:.3f}{_deviation(std.get('loss'), '.3f')}",
        "steps": f"after {fraction:.0%} of the steps" if fraction is not None and fraction < 1 else "",
        "accuracy": ("" if share is None else f"{100 * share:.1f} %") if accuracy else None,
        "flops": _power(finite(final.get("flops"))),
        "costs": costs,
        "learning_rate": _rate(method["learning_rate"]),
        "schedule": method["schedule"],
        "start": _start(method["start"]),
        "strategy": method["strategy"],
        "options": _names(method["options"]),
    }


def _saving(name: str, method: Mapping[str, Any], kind: str, data: Mapping[str, Any]) -> str:
    saved = finite(method["savings"].get(kind))
    if name == SCRATCH:
        return "\u2013"
    if saved is not None:
        return f"{_signed(saved)} %{_deviation((method.get('std') or {}).get(kind), '.1f')}"
    known = not method["needs_source"] or source_cost_known(data)
    return "never" if known or finite(method["savings"].get("paper")) is None else "not known"


def _rank(name: str, method: Mapping[str, Any], kind: str) -> tuple[bool, float, bool, float, str]:
    """Return a sort key: the largest saving first, then the lowest loss. Scratch counts as a saving of zero."""
    saved = 0.0 if name == SCRATCH else finite(method["savings"].get(kind))
    loss = finite(method["final"].get("loss"))
    return saved is None, -(saved or 0.0), loss is None, loss or 0.0, name


def _method(name: str, method: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts about one method that the page shows: summary, paper, tuning runs."""
    facts = [str(method["paper"])] if method.get("paper") not in (None, "", "-") else []
    facts += [f"keeps the source's function: {method['preserving']}"] if method["needs_source"] else []
    runs = []
    for run in method["tuning_runs"]:
        loss = finite(run.get("validation_loss"))
        runs.append(
            {
                "learning_rate": _rate(run["learning_rate"]),
                "schedule": run["schedule"],
                "loss": "diverged" if loss is None else f"{loss:.3f}",
                "kept": (run["learning_rate"], run["schedule"]) == (method["learning_rate"], method["schedule"]),
            }
        )
    return {
        "name": name,
        "summary": method["summary"],
        "facts": "; ".join(facts),
        "tuning_runs": runs,
        "learning_rate": _rate(method["learning_rate"]),
    }


def _settings(data: Mapping[str, Any]) -> list[tuple[str, object]]:
    budget, source, grid = data["budget"], data["source"], data["grid"]
    fraction, loss = finite(source.get("fraction_of_scratch")), finite(source.get("loss"))
    return [
        ("Recipe", data["recipe"]),
        ("Family", data["family"]),
        ("Architecture", data["architecture"]),
        ("Task", data["task"]),
        ("Parameters", f"{data['parameters']['source']:,} in the source, {data['parameters']['target']:,} in the target"),
        ("Steps", f"{budget['steps']:,}"),
        ("Batch", _batch(budget)),
        ("Seen in training", f"{budget['examples']:,} {budget['unit']}"),
        ("FLOPs of scratch", _power(finite(budget.get("flops")))),
        ("Source", source["label"]),
        ("FLOPs of the source", _power(finite(source.get("flops")), "not known")),
        ("The same, beside scratch's", "not known" if fraction is None else f"{100 * fraction:.1f} %"),
        ("Loss of the source", "not known" if loss is None else f"{loss:.3f} {_unit(data)}"),
        ("Schedule", data["schedule"]),
        ("Seeds", _names(data["seeds"])),
        ("Learning rates tried", ", ".join(_rate(rate) for rate in grid["learning_rates"])),
        ("Schedules tried", _names(grid["schedules"])),
        ("Length of a tuning run", _share(grid["tuning_fraction"])),
        ("Ends measured at", ", ".join(_share(part) for part in grid["budget_fractions"])),
    ]  # fmt: skip


def _batch(budget: Mapping[str, Any]) -> str:
    length = budget.get("sequence_length")
    return f"{budget['batch_size']:,}" if not length else f"{budget['batch_size']:,} sequences of {length:,} tokens"


def _share(part: object) -> str:
    found = finite(part)
    return "not known" if found is None else f"{100 * found:.3g} % of the steps"


def _start(start: Mapping[str, Any] | None) -> str:
    """Return the width and depth method in the form that the command line takes."""
    parts = [str(start[axis]) for axis in ("width", "depth") if start.get(axis)] if start else []
    return "drawn at random" if set(parts) <= {"random"} else "/".join(parts)


def _names(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _unit(data: Mapping[str, Any]) -> str:
    return LOSS_UNITS.get(str(data["task"]), "nats")


def _count(number: float) -> str:
    """
    >>> _count(770000), _count(7700000), _count(354823168)
    ('770,000', '7.7 million', '354.8 million')
    """
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:,.1f}".removesuffix(".0") + f" {word}"
    return f"{number:,}"


def _power(number: float | None, missing: str = "") -> Any:
    """Return a number as HTML in the form 2.04 x 10^13."""
    from markupsafe import Markup

    if number is None:
        return Markup.escape(missing)
    if number == 0:
        return Markup("0")
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    return Markup("{} \u00d7 10<sup>{}</sup>").format(mantissa, int(exponent))


def _rate(rate: object) -> str:
    found = finite(rate)
    return str(rate) if found is None else f"{found:.3g}"


def _deviation(value: object, form: str) -> str:
    found = finite(value)
    return "" if found is None else f" \u00b1 {found:{form}}"


def _signed(percent: float) -> str:
    return f"{percent:.1f}".replace("-", "\u2212")

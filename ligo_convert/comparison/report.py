"""The page of a comparison: compare.json in, one HTML file out that needs nothing beside it.

What comes in: the contents of compare.json. What goes out: a page that reads without scripts and loads nothing, on a narrow screen, a
wide one, a dark one and on paper: what was compared, what was found, the picture, every figure, and what the figures rest on. What
others wrote (names, reasons, labels) is shown as text and does nothing.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ligo_convert.comparison.plot import LOSS_UNITS, SCRATCH, comparison_svg, finite, passing, scratch_loss
from ligo_convert.errors import printable

# Nothing is loaded and nothing runs, whatever the page is made of.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_TASKS = {
    "causal-lm": "predicting the next token",
    "masked-lm": "predicting masked tokens",
    "image-classification": "classifying images",
}

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c1c1e; --soft: #55555c; --line: #d5d5db; --band: #f3f4f7;
  --link: #005a8f; --warn-page: #fff1e5; --warn-line: #b34700; --best: #e3f1fa; }
@media (prefers-color-scheme: dark) { :root { --page: #16171a; --ink: #e8e8ea; --soft: #a9abb3; --line: #3a3c43; --band: #212329;
  --link: #7cc4f2; --warn-page: #3a2413; --warn-line: #ff9d4d; --best: #17364a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial,
  sans-serif; overflow-wrap: anywhere; }
main { max-width: 78rem; margin: 0 auto; padding: 1.25rem clamp(0.9rem, 3vw, 2.5rem) 3rem; }
h1 { font-size: clamp(1.4rem, 1.1rem + 1.5vw, 2rem); line-height: 1.2; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 0.6rem; }
h3 { font-size: 1rem; margin: 0; }
p, ul, dl { max-width: 50rem; }
p { margin: 0.5rem 0; }
.lead { font-size: 1.08rem; }
.soft, small, figcaption, caption { color: var(--soft); }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.fairness_warnings { border: 2px solid var(--warn-line); border-left-width: 0.6rem; border-radius: 4px; background: var(--warn-page);
  padding: 0.6rem 1rem 0.8rem; margin: 0 0 1.25rem; }
.fairness_warnings h2 { margin: 0.1rem 0 0.4rem; color: var(--warn-line); }
.fairness_warnings ul { margin: 0; padding-left: 1.2rem; max-width: none; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; }
figure { margin: 1.25rem 0; }
figure .scroll { background: #ffffff; padding: 0.5rem; }
figure svg { display: block; width: 100%; min-width: 52rem; height: auto; }
figcaption { margin-top: 0.5rem; max-width: 50rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.scroll > table { width: 100%; }
caption { text-align: left; padding: 0.5rem 0.7rem; }
th, td { padding: 0.4rem 0.7rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { background: var(--band); vertical-align: bottom; }
th[scope="row"] { background: var(--page); }
th[scope="row"] span { display: block; width: max-content; max-width: 14rem; overflow-wrap: anywhere; }
.figure { text-align: right; }
td.figure { white-space: nowrap; }
td small { display: block; }
tr.scratch > * { background: var(--band); }
tr.best > * { background: var(--best); }
dl.plain { display: grid; grid-template-columns: fit-content(16rem) minmax(0, 1fr); gap: 0.25rem 1.25rem; margin: 0; }
dl.plain dt { color: var(--soft); }
dl.plain dd { margin: 0; }
article { border-top: 1px solid var(--line); padding: 0.7rem 0; }
article p { margin: 0.2rem 0; }
summary { cursor: pointer; color: var(--link); }
details table { margin: 0.4rem 0 0.2rem; }
@media (max-width: 40rem) { dl.plain { grid-template-columns: minmax(0, 1fr); gap: 0; } dl.plain dd { margin-bottom: 0.45rem; }
  th, td { padding: 0.35rem 0.5rem; } th[scope="row"] span { max-width: 9rem; } }
@media (min-width: 60rem) { .scroll th[scope="row"] { position: sticky; left: 0; } }
@media print { @page { size: landscape; margin: 12mm; } :root { color-scheme: light; --page: #ffffff; --ink: #000000; --soft: #444444;
  --line: #bbbbbb; --band: #f0f0f0; --link: #000000; --warn-page: #ffffff; --warn-line: #8f3900; --best: #e8f2f8; }
  body { font-size: 9.5pt; } main { max-width: none; padding: 0; } .scroll { overflow: visible; border: 0; } figure svg { min-width: 0; }
  table { font-size: 8pt; } th, td { padding: 0.2rem 0.4rem; } tr, article, figure, .fairness_warnings { break-inside: avoid; }
  .scroll th[scope="row"] { position: static; } details::details-content { content-visibility: visible; block-size: auto; } }
"""


def comparison_html(data: Mapping[str, Any]) -> str:
    """The page as text, to be written as UTF-8."""
    title = f"{data['architecture']}: starts compared with training from scratch"
    sections = (_fairness_warnings, _lead, _picture, _results, _skipped, _methods, _counting, _settings, _versions)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{_text(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<h1>{_text(title)}</h1>",
            *(line for section in sections for line in section(data)),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _fairness_warnings(data: Mapping[str, Any]) -> Iterator[str]:
    if not data["fairness_warnings"]:
        return
    yield '<section class="fairness_warnings" role="note" aria-labelledby="fairness_warnings">'
    yield '<h2 id="fairness_warnings">Not a fair comparison in every respect</h2>'
    yield "<ul>"
    for warning in data["fairness_warnings"]:
        methods = warning.get("methods")
        concerned = f" Concerns {_names(methods)}." if methods else ""
        yield f"<li><strong>{_text(warning['rule'])}</strong>: {_text(warning['text'].removesuffix('.'))}.{concerned}</li>"
    yield "</ul>"
    yield "</section>"


def _lead(data: Mapping[str, Any]) -> Iterator[str]:
    budget, parameters = data["budget"], data["parameters"]
    others = len(data["methods"]) - 1
    seeds = len(data["seeds"])
    per = finite(budget.get("tokens_per_parameter"))
    scale = [f"{budget['steps']:,} steps on {_count(budget['examples'])} {_text(budget['unit'])}"]
    scale += [f"{per:.3g} {_text(passing(budget))} a parameter"] if per is not None else []
    what = _TASKS.get(str(data["task"]))
    yield (
        f'<p class="lead">{others} {"way" if others == 1 else "ways"} of training a {_text(data["architecture"])} of '
        f"{_count(parameters['target'])} parameters {'was' if others == 1 else 'were'} compared with training it from scratch"
        f"{f' at {what}' if what else ''}: {', '.join(scale)}{f', {seeds} seeds each' if seeds > 1 else ''}. "
        f"The source, {_text(data['source']['label'])}, has {_count(parameters['source'])} parameters.</p>"
    )
    yield f'<p class="lead"><strong>{_finding(data)}</strong></p>'


def _finding(data: Mapping[str, Any]) -> str:
    """The main result in a sentence or two, by the figures alone."""
    level = scratch_loss(data)
    if level is None:
        return "Scratch ended without a loss, so there is nothing to compare with."
    end = f"scratch's final loss of {level:.3f} {_unit(data)}"
    paper, net = _best(data, "paper"), _best(data, "net")
    if paper is None and net is None:
        return f"Nothing beat scratch: no other method reached {end}."
    parts = []
    if paper is not None:
        parts.append(f"{_text(paper[0])} reached {end} with {_fewer(paper[1])} than scratch, the source left out.")
    if net is not None:
        same = paper is not None and net[0] == paper[0]
        subject = f"It took {_fewer(net[1])}" if same else f"{_text(net[0])} took {_fewer(net[1])} to it"
        if paper is None:
            subject = f"{_text(net[0])} reached {end} with {_fewer(net[1])}"
        rest = "" if same or net[1] <= 0 else ", the most saved by any"
        parts.append(f"{subject} with the source's own training charged{rest}.")
    elif not _charged(data):
        parts.append("What the source's own training cost is not known, so savings with it charged cannot be given.")
    if (net or paper or ("", 0.0))[1] <= 0:
        parts.insert(
            0, "Nothing saved FLOPs over scratch." if net is None else "Nothing saved FLOPs once the source is charged."
        )
    return " ".join(parts)


def _best(data: Mapping[str, Any], kind: str) -> tuple[str, float] | None:
    """The method other than scratch that saved most, with the percentage; None where none reached scratch's loss."""
    found = [
        (saved, name)
        for name, method in data["methods"].items()
        if name != SCRATCH and (saved := finite(method["savings"].get(kind))) is not None
    ]
    if not found:
        return None
    saved, name = max(found, key=lambda pair: pair[0])
    return name, saved


def _charged(data: Mapping[str, Any]) -> bool:
    """Whether what the source's training cost is known."""
    return finite(data["source"].get("flops")) is not None


def _fewer(percent: float) -> str:
    return f"{abs(percent):.1f} % {'fewer' if percent >= 0 else 'more'} FLOPs"


def _picture(data: Mapping[str, Any]) -> Iterator[str]:
    yield '<figure><div class="scroll" tabindex="0" role="group" aria-label="Picture, scrolls sideways">'
    yield comparison_svg(data)
    yield "</div>"
    right = (
        " Left, what the source's own training cost is left out, as papers do; right, every method that begins from the source, or is "
        "taught by it, begins where the source ended."
    )
    yield (
        f"<figcaption>Held-out loss against FLOPs.{right if _charged(data) else ''} The first part of training lies above the "
        "picture.</figcaption></figure>"
    )


def _results(data: Mapping[str, Any]) -> Iterator[str]:
    kind = "net" if _charged(data) else "paper"
    methods = sorted(data["methods"].items(), key=lambda item: _rank(item[0], item[1], kind))
    accuracy = any(finite(method["final"].get("accuracy")) is not None for _, method in methods)
    best = _best(data, kind)
    spread = " After \u00b1: the spread over the seeds." if len(data["seeds"]) > 1 else ""
    yield '<h2 id="results">Results</h2>'
    yield '<div class="scroll" tabindex="0" role="group" aria-labelledby="results">'
    yield "<table>"
    yield (
        f"<caption>Most saved first, then lowest loss. Saved: FLOPs fewer than scratch took to its final loss.{spread}</caption>"
    )
    heads = [("Method", False), ("Saved, source charged", True), ("Saved, source left out", True)]
    heads += [(f"Final loss, {_unit(data)}", True)]
    heads += [("Accuracy", True)] if accuracy else []
    heads += [("FLOPs to its end", True), ("Learning rate", True), ("Start", False), ("Strategy", False)]
    yield _head(heads)
    yield "<tbody>"
    for name, method in methods:
        shade = SCRATCH if name == SCRATCH else "best" if best and name == best[0] and best[1] > 0 else ""
        yield f'<tr class="{shade}">' if shade else "<tr>"
        yield f'<th scope="row"><span>{_text(name)}</span></th>'
        yield from _cells(data, name, method, accuracy)
        yield "</tr>"
    yield "</tbody></table></div>"


def _cells(data: Mapping[str, Any], name: str, method: Mapping[str, Any], accuracy: bool) -> Iterator[str]:
    final, flops, spread = method["final"], method["flops"], method.get("std") or {}
    options = method["options"]
    for kind in ("net", "paper"):
        yield _figure(_saving(name, method, kind, data))
    loss, budget_fraction = finite(final.get("loss")), finite(final.get("budget_fraction"))
    yield _figure(
        "diverged" if loss is None else f"{loss:.3f}{_deviation(spread.get('loss'), '.3f')}",
        f"after {budget_fraction:.0%} of the steps" if budget_fraction is not None and budget_fraction < 1 else "",
    )
    if accuracy:
        found = finite(final.get("accuracy"))
        yield _figure("" if found is None else f"{100 * found:.1f} %")
    costs = [f"fit {_power(fit)}" for fit in [finite(flops.get("fit"))] if fit]
    if method["needs_source"]:
        source = finite(flops.get("source"))
        costs.append("source not known" if source is None else f"source {_power(source)} more")
    yield _figure(_power(finite(final.get("flops"))), "<br>".join(costs))
    yield _figure(_rate(method["learning_rate"]), _text(method["schedule"]))
    yield f"<td>{_start(method['start'])}</td>"
    yield f"<td>{_text(method['strategy'])}{_small(f'with {_names(options)}' if options else '')}</td>"


def _saving(name: str, method: Mapping[str, Any], kind: str, data: Mapping[str, Any]) -> str:
    saved = finite(method["savings"].get(kind))
    if name == SCRATCH:
        return "\u2013"
    if saved is not None:
        return f"{_signed(saved)} %{_deviation((method.get('std') or {}).get(kind), '.1f')}"
    known = not method["needs_source"] or _charged(data)
    return "never" if known or finite(method["savings"].get("paper")) is None else "not known"


def _rank(name: str, method: Mapping[str, Any], kind: str) -> tuple[bool, float, bool, float, str]:
    """Most saved first, then the lowest loss; scratch saves nothing."""
    saved = 0.0 if name == SCRATCH else finite(method["savings"].get(kind))
    loss = finite(method["final"].get("loss"))
    return saved is None, -(saved or 0.0), loss is None, loss or 0.0, name


def _skipped(data: Mapping[str, Any]) -> Iterator[str]:
    if not data["skipped"]:
        return
    yield "<h2>Left out</h2>"
    yield from _list((_text(name), _text(reason)) for name, reason in data["skipped"].items())


def _methods(data: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Methods</h2>"
    for name, method in data["methods"].items():
        yield "<article>"
        yield f"<h3>{_text(name)}</h3>"
        yield f"<p>{_text(method['summary'])}</p>"
        facts = [_text(method["paper"])] if method.get("paper") not in (None, "", "-") else []
        facts += [f"keeps the source's function: {_text(method['preserving'])}"] if method["needs_source"] else []
        if facts:
            yield f'<p class="soft">{"; ".join(facts)}</p>'
        yield from _tuning(method)
        yield "</article>"


def _tuning(method: Mapping[str, Any]) -> Iterator[str]:
    runs = method["tuning_runs"]
    if not runs:
        yield f'<p class="soft">Not tuned: learning rate {_rate(method["learning_rate"])}.</p>'
        return
    chosen = (method["learning_rate"], method["schedule"])
    yield f"<details><summary>Tuning: {len(runs)} runs, learning rate {_rate(chosen[0])} was kept</summary>"
    yield "<table>"
    yield _head([("Learning rate", True), ("Schedule", False), ("Validation loss", True), ("", False)])
    yield "<tbody>"
    for run in runs:
        loss = finite(run.get("validation_loss"))
        kept = "kept" if (run["learning_rate"], run["schedule"]) == chosen else ""
        yield f"<tr>{_figure(_rate(run['learning_rate']))}<td>{_text(run['schedule'])}</td>"
        yield f"{_figure('diverged' if loss is None else f'{loss:.3f}')}<td>{kept}</td></tr>"
    yield "</tbody></table></details>"


def _counting(data: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>How FLOPs are counted</h2>"
    yield f"<p>{_text(data['flops_convention'])}</p>"


def _settings(data: Mapping[str, Any]) -> Iterator[str]:
    budget, source, grid = data["budget"], data["source"], data["grid"]
    share, loss = finite(source.get("fraction_of_scratch")), finite(source.get("loss"))
    yield "<h2>Settings</h2>"
    yield from _list(
        [
            ("Recipe", _text(data["recipe"])),
            ("Family", _text(data["family"])),
            ("Architecture", _text(data["architecture"])),
            ("Task", _text(data["task"])),
            ("Parameters", f"{data['parameters']['source']:,} in the source, {data['parameters']['target']:,} in the target"),
            ("Steps", f"{budget['steps']:,}"),
            ("Batch", _batch(budget)),
            ("Seen in training", f"{budget['examples']:,} {_text(budget['unit'])}"),
            ("FLOPs of scratch", _power(finite(budget.get("flops")))),
            ("Source", _text(source["label"])),
            ("FLOPs of the source", _power(finite(source.get("flops")), "not known")),
            ("The same, beside scratch's", "not known" if share is None else f"{100 * share:.1f} %"),
            ("Loss of the source", "not known" if loss is None else f"{loss:.3f} {_unit(data)}"),
            ("Schedule", _text(data["schedule"])),
            ("Seeds", _names(data["seeds"])),
            ("Learning rates tried", ", ".join(_rate(rate) for rate in grid["learning_rates"])),
            ("Schedules tried", _names(grid["schedules"])),
            ("Length of a tuning run", _share(grid["tuning_fraction"])),
            ("Ends measured at", ", ".join(_share(part) for part in grid["budget_fractions"])),
        ]
    )  # fmt: skip


def _versions(data: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Versions</h2>"
    yield from _list((_text(name), _text(version)) for name, version in data["versions"].items())


def _batch(budget: Mapping[str, Any]) -> str:
    length = budget.get("sequence_length")
    return f"{budget['batch_size']:,}" if not length else f"{budget['batch_size']:,} sequences of {length:,} tokens"


def _share(part: object) -> str:
    found = finite(part)
    return "not known" if found is None else f"{100 * found:.3g} % of the steps"


def _head(columns: Iterable[tuple[str, bool]]) -> str:
    cells = (
        (f'<th scope="col" class="figure">{text}</th>' if figure else f'<th scope="col">{text}</th>')
        if text
        else "<td></td>"
        for text, figure in columns
    )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _figure(text: str, below: str = "") -> str:
    return f'<td class="figure">{text}{_small(below)}</td>'


def _small(text: str) -> str:
    return f"<small>{text}</small>" if text else ""


def _list(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Terms and what they stand for, both HTML already."""
    yield '<dl class="plain">'
    yield from (f"<dt>{term}</dt><dd>{value}</dd>" for term, value in pairs)
    yield "</dl>"


def _start(start: Mapping[str, Any] | None) -> str:
    """Width and depth, as the command line takes them."""
    parts = [str(start[axis]) for axis in ("width", "depth") if start.get(axis)] if start else []
    return "drawn at random" if set(parts) <= {"random"} else _text("/".join(parts))


def _names(values: Sequence[object]) -> str:
    return ", ".join(_text(value) for value in values)


def _text(value: object) -> str:
    """Foreign text as HTML that shows it and does nothing else."""
    return html.escape(printable(value))


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


def _power(number: float | None, missing: str = "") -> str:
    if number is None:
        return missing
    if number == 0:
        return "0"
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    return f"{mantissa} \u00d7 10<sup>{int(exponent)}</sup>"


def _rate(rate: object) -> str:
    found = finite(rate)
    return _text(rate) if found is None else f"{found:.3g}"


def _deviation(value: object, form: str) -> str:
    found = finite(value)
    return "" if found is None else f" \u00b1 {found:{form}}"


def _signed(percent: float) -> str:
    return f"{percent:.1f}".replace("-", "\u2212")

"""Make docs/results/results.md, its pictures and docs/results/results.json from finished comparisons.

    python scripts/make_results.py --into docs/results gpt2=out/compare-gpt2 bert=out/compare-bert cait=out/compare-cait
    python scripts/make_results.py --into docs/results gpt2-seeds=out/compare-gpt2-seeds
    python scripts/make_results.py --into docs/results
    python scripts/make_results.py --into docs/results --check

Input: output directories of `ligo-convert compare` as KIND=DIR. A kind is `gpt2`, `bert` or `cait`, with a suffix for a further run.
Output: results.json with the figures of every kind, and the page and the pictures, which are made from results.json alone. With
`--advice ligo_convert/outputs/measured.json` also what model cards and plans advise.

A given kind replaces the recorded one. Without arguments, the page and the pictures are written again. `--check` writes nothing and
exits with 1 if the page is out of date. A results.json of an older format is replaced, not extended.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ligo_convert.comparison.headline import ranked
from ligo_convert.comparison.measured import FORMAT as ADVICE_FORMAT
from ligo_convert.comparison.measured import measured_of
from ligo_convert.comparison.methods import METHODS, SCRATCH, method_named
from ligo_convert.comparison.naming import entry_text, source_text
from ligo_convert.comparison.picture import LOSS_UNITS, comparison_png, scratch_loss, sources_png
from ligo_convert.comparison.record import FORMAT as READS
from ligo_convert.comparison.tables import NO_FIGURE, Table, comparison_tables, names_of, savings, targets_text
from ligo_convert.comparison.verdict import best_at, conclusions
from ligo_convert.conversion.run_record import finite as without_nan
from ligo_convert.errors import printable
from ligo_convert.outputs.markdown import code, linked, prose, table
from ligo_convert.recipes.recipe import Recipe, load_recipe
from ligo_convert.recipes.schema import CompareConfig

RECORD, FIGURES, PAGE, PICTURES = "compare.json", "results.json", "results.md", "pictures"
FORMAT = "ligo-results/3"
OLDER = ("ligo-results/2",)  # savings of another definition: they are not mixed with these
RECIPES = Path(__file__).parent.parent / "recipes"
VERSIONS = ("torch", "transformers", "timm")
WIDTH = 120  # line length of commands and text blocks

Data = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of comparison.

    Attributes:
        title: heading of its section.
        data: description of the training data.
        given: arguments that the recipe requires on the command line.
    """

    title: str
    data: str
    given: tuple[str, ...] = ()


KINDS = {
    "gpt2": Kind(title="Text decoder: GPT-2", data="the source of Python's standard library"),
    "bert": Kind(title="Text encoder: BERT", data="the source of Python's standard library"),
    "cait": Kind(
        title="Vision: CaiT", data="CIFAR-10's training images", given=("--set", "fit.data.images=DIR")
    ),
}  # fmt: skip
SUFFIXES = {"seeds": "several seeds"}
_NAME = re.compile(rf"({'|'.join(KINDS)})(-[a-z0-9]+)*")

INTRODUCTION = """\
This page shows what growing a small model into a larger one saves, from which source, and when it does not pay. All figures come from
`ligo-convert compare`. The command stands above each section's figures.
"""

TERMS = """\
## Terms

- *Scratch* is the baseline: the target trained from random weights. Its optimizer, learning rate and decay are tuned. It is trained to
  several budgets, each with its own learning rate decay.
- *Saved* is how many FLOPs fewer than scratch a method needs for the same loss, in per cent of scratch's FLOPs. A negative figure means
  more FLOPs. A method is read at scratch's final loss. With a star, the method does not reach that loss, and is read at its own lowest one.
- *Paper* leaves the source's training out, as [arXiv:2303.00980](https://arxiv.org/abs/2303.00980) does. It is the figure for those who
  have a trained source. *Net* charges the source's training to the method. It is the figure for those who train the source for one target.
  Both charge the fit of an operator and every stage before growth.
- *Source* `4x` was trained four times as long as the recipe says.
- *Pays from* is the number of targets that must be grown from one source until the source's training is paid back.
- *Never grown* are the controls: smaller models, trained alone from random weights, without growth.
- *At least* and *at most* are bounds. Nothing is extrapolated.
- *+-* is the standard deviation over the seeds.

[comparing.md](../guide/comparing.md) explains how a comparison is run and read, how FLOPs are counted, and how each method is defined.
"""

NEXT = """\
## What to type next

- **First:** `ligo-convert choose recipe.yaml` trains short trials with your own models and data, and says whether to grow, how, and when
  ([choosing.md](../guide/choosing.md)). With a trained source, it also tries to train the source on without growth.
- **You have a trained source:** set `growth.width` and `growth.depth` in the recipe. `ligo-convert run recipe.yaml` grows the model;
  `ligo-convert train recipe.yaml` grows and trains it.
- **You have no source:** `ligo-convert train recipe.yaml` with `growth.schedule` grows the model during training
  ([training.md](../guide/training.md)).
- **Before you spend a large budget:** `ligo-convert compare recipe.yaml --costs` says what a comparison like these costs.
"""


def main_record(path: Path) -> dict[str, Any]:
    """Read compare.json of a directory. Raises click.ClickException."""
    try:
        found = json.loads((path / RECORD).read_bytes())
    except OSError as error:
        raise click.ClickException(f"{path}: no finished comparison: {error.strerror}") from None
    except ValueError:
        raise click.ClickException(f"{path / RECORD} is no JSON") from None
    if not isinstance(found, dict) or found.get("format") != READS:
        raise click.ClickException(f"{path / RECORD} is not of format {READS}")
    plain: dict[str, Any] = without_nan(found)
    return plain


# --- the figures ------------------------------------------------------------------------------------------------------

_KEPT = (
    *("recipe", "family", "architecture", "task", "parameters", "budget", "optimizer", "curve", "skipped"),
    *("fairness_warnings", "warmup_steps", "seeds", "flops_convention"),
)
_SOURCE = ("name", "steps", "flops", "fraction_of_scratch", "tokens_per_parameter", "loss", "accuracy")


def figures_of(record: Data, kind: str, *, command: str | None = None) -> dict[str, Any]:
    """Return the entry of a comparison in results.json: everything that the page and the pictures need.

    The evaluations along each run are left out: every figure of the page is read from the ends of runs.
    """
    data = record.get("data") or {}
    settings = record.get("settings") or CompareConfig().model_dump(mode="json")
    return {
        "command": command or command_of(record, kind),
        "trained_on": _kind(kind).data if _recipe(record["recipe"]) is not None else None,
        **{key: record[key] for key in _KEPT},
        **{key: settings[key] for key in ("rate_factors", "weight_decay")},
        # Other keys are left out, because they may hold local paths.
        "sources": [{key: source.get(key) for key in _SOURCE} for source in record["sources"]],
        "data": {unit: data[unit] for unit in ("tokens", "images") if unit in data},
        "methods": {name: _entry(entry) for name, entry in record["methods"].items()},
        "controls": {name: _entry(entry) for name, entry in record["controls"].items()},
        "versions": {name: record["versions"][name] for name in VERSIONS if name in record["versions"]},
    }


def _entry(entry: Data) -> dict[str, Any]:
    seeds = {seed: {key: run[key] for key in run if key != "curve"} for seed, run in entry["seeds"].items()}
    return {**{key: entry[key] for key in entry if key not in ("curve", "tried")}, "seeds": seeds}


def command_of(record: Data, kind: str) -> str:
    """Return the command that reproduces a comparison: its recipe and the settings that differ from it."""
    name = printable(record["recipe"])
    recipe = _recipe(name)
    words = ["ligo-convert", "compare", f"recipes/{name}" if recipe is not None else name]
    if recipe is not None:
        words += [*_replaced(record, recipe), *_kind(kind).given]
    return shlex.join([*words, "--out", f"out/compare-{kind}"])


def _recipe(name: str) -> Recipe | None:
    path = RECIPES / name
    return load_recipe(path) if Path(name).name == name and path.is_file() else None


def _replaced(record: Data, recipe: Recipe) -> Iterator[str]:
    """Yield the command line arguments that override the recipe's `compare` section."""
    planned = (recipe.compare or CompareConfig()).model_dump(mode="json")
    used = record.get("settings") or {}
    names = list(dict.fromkeys(str(entry["base"]) for entry in record["methods"].values()))
    if used.get("methods") is None:
        usual = {*names, *record["skipped"]} == METHODS.keys()
    else:
        usual = names == list(dict.fromkeys((SCRATCH, *used["methods"])))
    if not usual or used.get("methods") != planned["methods"]:
        yield from ("--methods", ",".join(name for name in names if name != SCRATCH))
    if record["budget"]["steps"] != planned["steps"]:
        yield from ("--steps", str(record["budget"]["steps"]))
    if record["seeds"] != planned["seeds"]:
        yield from ("--seeds", ",".join(map(str, record["seeds"])))
    for key, value in used.items():
        if key not in ("methods", "steps", "seeds") and value != planned.get(key):
            yield from ("--set", f"compare.{key}={json.dumps(value)}")


# --- the page ---------------------------------------------------------------------------------------------------------


def page(results: Data) -> str:
    """Return the text of docs/results/results.md."""
    # The sentences and tables follow the code that is here, not the code that ran the comparison.
    kinds = {kind: {**figures, **conclusions(figures)} for kind, figures in results["kinds"].items()}
    lines = [
        "# Results",
        "",
        "<!-- Written by scripts/make_results.py from results.json: edits made here are overwritten. -->",
        "",
        INTRODUCTION,
    ]
    if not kinds:
        lines += ["No comparison is recorded here yet.", ""]
    else:
        lines += [*_scale_of_all(kinds), "", *_summary(kinds), "", NEXT, *_limitations(kinds), "", TERMS]
    for kind, figures in kinds.items():
        lines += [*_section(kind, figures), ""]
    conventions = dict.fromkeys(figures["flops_convention"] for figures in kinds.values())
    if conventions:
        lines += [
            "## How FLOPs are counted",
            "",
            "[comparing.md](../guide/comparing.md#flops) has the formulas.",
            "",
        ]
    for convention in conventions:
        lines += [*_block(printable(convention).replace("`", "")), ""]
    return "\n".join(lines).rstrip() + "\n"


def _kind(name: str) -> Kind:
    return KINDS[name.partition("-")[0]]


def title_of(kind: str) -> str:
    suffix = kind.partition("-")[2]
    return _kind(kind).title + (f", {SUFFIXES.get(suffix, suffix.replace('-', ' '))}" if suffix else "")


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def _scale_of_all(kinds: Data) -> Iterator[str]:
    """Yield the scale of the comparisons."""
    sizes = [figures["parameters"]["target"] for figures in kinds.values()]
    per = [figures["budget"]["tokens_per_parameter"] for figures in kinds.values()]
    scale = (
        f"**All models here are small:** {_span([_amount(size) for size in (min(sizes), max(sizes))])} parameters, trained on"
        f" {_span([f'{number:.3g}' for number in (min(per), max(per))])} tokens (or image patches) per parameter. No larger model was"
        " measured. The order of the methods may differ at another scale."
    )
    yield from textwrap.wrap(scale, WIDTH)


def _limitations(kinds: Data) -> Iterator[str]:
    """Yield what the figures do not show."""
    yield "## Limitations"
    yield ""
    one = [title_of(kind) for kind, figures in kinds.items() if len(figures["seeds"]) == 1]
    if one:
        text = f"- One seed: {'; '.join(one)}. The spread over seeds is unknown there, so small differences decide nothing."
        yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ")
    if any(len(figures["seeds"]) > 1 for figures in kinds.values()):
        text = "- Several seeds: these comparisons have fewer runs between the smallest and the whole budget. Losses between two runs are"
        text += " interpolated, so the savings at equal loss are coarser there than with one seed; the losses at equal budget are not."
        yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ")
    yield "- The best of many methods is partly the luckiest."
    yield "- *Saved* compares losses. It measures neither time nor memory, and no other task."
    yield "- The search for learning rates is not counted, for scratch as for methods."


def _span(values: Sequence[str]) -> str:
    low, high = values
    return low if low == high else f"{low} to {high}"


def _amount(number: int) -> str:
    return f"{number / 1e6:.3g} million"


_SAVED_NOTE = """\
Each row shows the method that saves most, and its FLOPs fewer than training from scratch for the same loss, in per cent. *Source*:
the small model; `none` means that the model starts from random weights and grows during training. *Its cost*: the FLOPs of training
the source, in per cent of scratch's. *Source left out (paper)*: the figure if you have the source already. *Source charged (net)*: the
figure if you train the source for one target; a negative figure means that growing costs more than it saves. *Pays from*: the number
of targets grown from one source that pay its training back. *`ligo`*: the figure of a learned operator. The section of each
comparison explains the names."""

_BUDGET_NOTE = """\
Budgets are in per cent of scratch's FLOPs, with the source charged. *Do not grow*: the model in brackets never grows, and has a loss at or
below that of every method of the same cost. *Not decided*: a run of that cost is missing."""


def _summary(kinds: Data) -> Iterator[str]:
    yield "## What growing saves"
    yield ""
    head = (
        "comparison",
        "source",
        "its cost",
        "saved, source left out (paper)",
        "method",
        "saved, source charged (net)",
        "pays from",
        "`ligo` (paper)",
    )
    rows = [row for kind, figures in kinds.items() for row in _source_rows(kind, figures)]
    yield from table(head, rows, text=(0, 1, 4)) if rows else ["No method was compared."]
    yield ""
    yield from textwrap.wrap(_SAVED_NOTE, WIDTH)
    yield ""
    yield "## When not to grow"
    yield ""
    head = ("comparison", "do not grow at", "growing is ahead at", "not decided at")
    yield from table(head, [_budget_row(kind, figures) for kind, figures in kinds.items()], text=range(4))
    yield ""
    yield from textwrap.wrap(_BUDGET_NOTE, WIDTH)


def _link(kind: str) -> str:
    return f"[{title_of(kind)}](#{_anchor(title_of(kind))})"


def _cells(figures: Data) -> dict[str, dict[str, str]]:
    """Return the savings table as name -> heading -> text. Names are those that readers see."""
    found = savings(figures)
    headings = [heading for heading, _ in found.columns]
    return {row.cells[0]: dict(zip(headings, row.cells, strict=True)) for row in found.rows}


def _source_rows(kind: str, figures: Data) -> Iterator[tuple[str, ...]]:
    """Yield what growing saves without a source, then with each source. The comparison is named in the first row."""
    cells, methods, total = _cells(figures), figures["methods"], figures["budget"]["flops"]
    costs = {source["name"]: source["flops"] for source in figures["sources"]}
    even = {row["method"]: targets_text(row) for row in figures["break_even"]}
    title = _link(kind)
    for source in (None, *costs):
        using = {name: entry for name, entry in methods.items() if entry["source"] == source and name != SCRATCH}
        if not using:
            continue
        best = next(iter(ranked(using, "paper")), None)
        learned = [cells[entry_text(name)] for name, entry in using.items() if entry["base"] == "ligo"]
        cost = (
            "not known" if source is not None and costs[source] is None else _per_cent((costs.get(source) or 0) / total)
        )
        yield (
            title,
            "none" if source is None else code(source_text(source)),
            "-" if source is None else cost,
            *(
                ("not known", NO_FIGURE, "not known", NO_FIGURE)
                if best is None
                else (
                    _saved(cells[entry_text(best)], "paper"),
                    ", ".join(code(base) for base in _level(using, best)),
                    _saved(cells[entry_text(best)], "net"),
                    even.get(best, NO_FIGURE),
                )
            ),
            _saved(learned[0], "paper") if learned else NO_FIGURE,
        )
        title = ""


def _level(using: Mapping[str, Data], best: str) -> list[str]:
    """Return the best method of a source, and those with the same bound, of which none is known to be better."""
    found = using[best]["headline"]["paper"]
    same = [name for name in ranked(using, "paper") if using[name]["headline"]["paper"]["saved"] == found["saved"]]
    return list(dict.fromkeys(using[name]["base"] for name in (same if found["bound"] else [best])))


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _saved(cells: Mapping[str, str], way: str) -> str:
    """Return a saving, with a star where it is not read at scratch's final loss."""
    return cells[f"Saved, {way}"] + (r" \*" if cells["Read at loss"].endswith("*") else "")


def _budget_row(kind: str, figures: Data) -> tuple[str, ...]:
    """Return at which budgets a model that never grows is best, and at which growing is, with the source charged."""
    without: dict[str, list[float]] = {}
    places: dict[str, list[float]] = {"growing": [], "not decided": []}
    for row in figures["equal_budget"]:
        if row["net"] is None:
            continue
        ahead = best_at(row)
        if ahead in places:
            places[ahead].append(row["share"])
        else:
            without.setdefault(entry_text(ahead), []).append(row["share"])
    instead = "; ".join(f"{_shares(shares)} ({code(name)})" for name, shares in without.items())
    return (
        _link(kind),
        instead or NO_FIGURE,
        *(_shares(shares) if shares else NO_FIGURE for shares in places.values()),
    )


def _shares(shares: Sequence[float]) -> str:
    return f"{', '.join(f'{100 * share:.0f}' for share in shares)} %"


def _section(kind: str, figures: Data) -> Iterator[str]:
    yield f"## {title_of(kind)}"
    yield ""
    yield from _scale(figures)
    yield ""
    fence = _fence(figures["command"])
    yield fence
    yield from _folded(figures["command"])
    yield fence
    yield ""
    yield from (f"- {_sentence(sentence, figures)}" for sentence in figures["verdict"]["text"])
    yield ""
    yield "### Methods"
    yield ""
    yield from table(("name", "what it is", "paper"), _named_methods(figures), text=(0, 1, 2))
    yield ""
    yield f"![{_alternative(figures)}]({PICTURES}/{kind}.png)"
    yield ""
    if any(len(found["points"]) > 1 for found in figures["sources_tried"]):
        yield (
            "![FLOPs saved against the cost of training the source; the table of break-even below has the figures.]"
            + (f"({PICTURES}/{kind}-sources.png)")
        )
        yield ""
    for found in comparison_tables(figures):
        yield from _table(found)
    if figures["skipped"]:
        yield "Methods that do not apply here:"
        yield ""
        yield from (f"- {code(name)}: {prose(reason)}" for name, reason in figures["skipped"].items())
        yield ""
    if not figures["fairness_warnings"]:
        yield "No fairness warnings."
        return
    yield "Fairness warnings:"
    yield ""
    for warning in figures["fairness_warnings"]:
        about = f" ({', '.join(map(code, warning['methods']))})" if warning["methods"] else ""
        yield f"- {code(warning['rule'])}: {prose(warning['text'])}{about}"


def _named_methods(figures: Data) -> Iterator[tuple[str, str, str]]:
    """Yield what the names of methods and controls mean, each without its source."""
    papers = {entry["base"]: entry["paper"] for entry in figures["methods"].values()}
    for name, text in names_of(figures).items():
        # The sentences follow the code that is here.
        try:
            summary = method_named(name).summary
        except ValueError:
            summary = text
        paper = papers.get(name) or NO_FIGURE
        yield code(name), prose(summary), paper if paper == NO_FIGURE else linked(prose(paper))


def _sentence(sentence: str, figures: Data) -> str:
    """Return a sentence of the verdict as Markdown. Its names stand in code spans, which only a backtick ends."""
    names = [*figures["methods"], *figures["controls"], *(source["name"] for source in figures["sources"])]
    names += [text for name in names if (text := entry_text(name)) != name]
    names += [run["optimizer"] for run in figures["optimizer"]["tried"]] + [figures["optimizer"]["chosen"]["name"]]
    text = printable(sentence)
    return code(text) if any("`" in str(name) or not str(name).strip() for name in names) else text


def _table(found: Table) -> Iterator[str]:
    """Yield a table under its heading, with its note below; long tables are folded."""
    rows = [
        tuple(
            code(cell) if kind == "name" and cell not in ("", NO_FIGURE) else _plain(cell)
            for cell, (_, kind) in zip(row.cells, found.columns, strict=True)
        )
        for row in found.rows
    ]
    folded = found.name in ("ends", "optimizers")
    yield f"<details><summary>{found.title}</summary>" if folded else f"### {found.title}"
    yield ""
    text = [number for number, (_, kind) in enumerate(found.columns) if kind != "figure"]
    yield from table(tuple(heading for heading, _ in found.columns), rows, text=text)
    yield ""
    yield from textwrap.wrap(found.note.replace("*", "\\*"), WIDTH)
    yield ""
    if folded:
        yield "</details>"
        yield ""


def _plain(cell: str) -> str:
    """Return a cell as Markdown. Figures keep their signs and stars; anything else that could act is quoted."""
    if re.fullmatch(r"[A-Za-z0-9 .,:()%+/*-]*", cell):
        return cell.replace("*", "\\*")
    return prose(cell)


_SETTINGS = {
    "name": "optimizer",
    "learning_rate": "peak learning rate",
    "decay": "share of the steps with decay",
    "weight_decay": "weight decay",
}


def _scale(figures: Data) -> Iterator[str]:
    """Yield the setup, one sentence per line: models, budget, losses, optimizer, versions."""
    budget, sizes, chosen = figures["budget"], figures["parameters"], figures["optimizer"]["chosen"]
    images = budget["unit"] == "images"
    where = f", on {figures['trained_on']}" if figures["trained_on"] else ""
    methods = sorted({entry["base"] for name, entry in figures["methods"].items() if name != SCRATCH})
    controls = len(figures["controls"])
    yield (
        f"A {prose(figures['architecture'])} of {sizes['source']:,} parameters grown to {sizes['target']:,}{where};"
        f" {_count(methods, 'method')}, {_count(figures['sources'], 'source')},"
        f" {controls} smaller {'model that never grows' if controls == 1 else 'models that never grow'},"
        f" {_count(figures['seeds'], 'seed')}."
    )
    batch = "images" if images else f"x {budget['sequence_length']:,} tokens"
    yield (
        f"Training from scratch takes {budget['steps']:,} steps of {budget['batch_size']:,} {batch}:"
        f" {budget['examples']:,} {prose(budget['unit'])}, {budget['tokens_per_parameter']:.3g} {'patches' if images else 'tokens'}"
        f" per parameter, {budget['flops']:.3g} FLOPs."
    )
    held = [f", on {slices['test']:,} held-out {unit}" for unit, slices in figures["data"].items()]
    yield f"Losses are {LOSS_UNITS.get(figures['task'], 'nats')}{''.join(held)}."
    settings = (f"{prose(_SETTINGS.get(key, key))} {code(value)}" for key, value in chosen.items())
    yield f"Settings of scratch: {', '.join(settings)}."
    yield f"Versions: {', '.join(f'{name} {prose(version)}' for name, version in figures['versions'].items())}."


def _count(things: Sequence[object], word: str) -> str:
    return f"{len(things)} {word}{'s' if len(things) != 1 else ''}"


def _alternative(figures: Data) -> str:
    """Return the alternative text of the picture. It contains no foreign text, because nothing is escaped here."""
    loss = scratch_loss(figures)
    end = "" if loss is None else f"; scratch ends at {loss:.3f}"
    return (
        f"Loss against FLOPs of {_count(list(figures['methods']), 'method')} and {_count(list(figures['controls']), 'control')}: on the"
        f" left without the cost of the source, on the right with it{end}. The tables below have the figures."
    )


def _fence(text: str) -> str:
    """Return a code fence longer than any run of backticks in the text."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def _folded(command: str) -> Iterator[str]:
    """Yield a shell command in lines with continuation marks, broken before its options."""
    line = ""
    for part in re.split(r" (?=--)", printable(command)):
        if line and len(line) + len(part) > WIDTH:
            yield f"{line} \\"
            line = f"  {part}"
        else:
            line = f"{line} {part}" if line else part
    yield line


def _block(text: str) -> Iterator[str]:
    yield "```text"
    yield from textwrap.wrap(text, WIDTH, break_on_hyphens=False)
    yield "```"


def advice(results: Data) -> dict[str, Any]:
    """Return the content of `ligo_convert/outputs/measured.json`: of every task the comparison with the most sources, then seeds."""

    def breadth(figures: Data) -> tuple[int, int]:
        # Advice follows the strength of the source. Seeds are repeated at one strength only.
        return len(figures["sources"]), len(figures["seeds"])

    best: dict[str, Data] = {}
    for figures in results["kinds"].values():
        known = best.get(figures["task"])
        if known is None or breadth(figures) > breadth(known):
            best[figures["task"]] = figures
    return {"format": ADVICE_FORMAT, "tasks": {task: measured_of(figures) for task, figures in best.items()}}


# --- files ------------------------------------------------------------------------------------------------------------


def _nested(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def stored(value: object, level: int = 0) -> str:
    """Return JSON that gives readable diffs: flat mappings stand on one line, alone or as items of a list."""
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        indent = "\n" + " " * (level + 1)
        return (
            "["
            + indent
            + f",{indent}".join(json.dumps(item, allow_nan=False) for item in value)
            + "\n"
            + " " * level
            + "]"
        )
    if isinstance(value, Mapping) and any(map(_nested, value.values())):
        items = [f"{json.dumps(str(key))}: {stored(item, level + 1)}" for key, item in value.items()]
        indent = "\n" + " " * (level + 1)
        return "{" + indent + f",{indent}".join(items) + "\n" + " " * level + "}"
    return json.dumps(value, allow_nan=False)


def read_results(path: Path, *, replace: bool) -> dict[str, Any]:
    """Read results.json; return an empty one if the file does not exist, or if it is of an older format and may be replaced.

    Raises:
        click.ClickException: the file is of another format.
    """
    if not path.exists():
        return {"format": FORMAT, "kinds": {}}
    found: dict[str, Any] = json.loads(path.read_bytes())
    if replace and found.get("format") in OLDER:
        return {"format": FORMAT, "kinds": {}}
    if found.get("format") != FORMAT:
        raise click.ClickException(f"{path} is not of format {FORMAT}")
    return found


def _named(pairs: Sequence[str], what: str) -> dict[str, str]:
    found = {}
    for pair in pairs:
        kind, equals, value = pair.partition("=")
        if not equals or not value or not _NAME.fullmatch(kind):
            raise click.BadParameter(f"{pair!r} is not KIND={what}; a KIND is {', '.join(KINDS)}, or one with a suffix")
        found[kind] = value
    return found


def _order(kind: str) -> tuple[int, str]:
    return list(KINDS).index(kind.partition("-")[0]), kind


@click.command()
@click.argument("directories", nargs=-1, metavar="[KIND=DIR]...")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default="docs/results", show_default=True)
@click.option(
    "--command", "commands", multiple=True, metavar="KIND=TEXT", help="What made it, where that is not plain."
)
@click.option(
    "--advice", "advised", type=click.Path(path_type=Path, dir_okay=False), help="File for what cards and plans advise."
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where the page is not what the figures give.")
def main(
    directories: tuple[str, ...], into: Path, commands: tuple[str, ...], advised: Path | None, check: bool
) -> None:
    """Write results.json, results.md and the pictures into a folder."""
    given, told = _named(directories, "DIR"), _named(commands, "TEXT")
    if check and (given or told):
        raise click.UsageError("--check looks at what is there, and takes no directories")
    if told.keys() - given.keys():
        raise click.UsageError("--command is for a KIND whose directory is given")
    results = read_results(into / FIGURES, replace=bool(given))
    if check:
        there = (into / PAGE).read_text(encoding="utf-8") if (into / PAGE).exists() else ""
        if there != page(results):
            raise click.ClickException(f"{into / PAGE} is not what {into / FIGURES} gives: run scripts/make_results.py")
        return
    kinds = results["kinds"]
    for kind, directory in given.items():
        kinds[kind] = figures_of(main_record(Path(directory)), kind, command=told.get(kind))
    # What follows from the figures is written with them, as the page has it.
    kinds = {kind: {**figures, **conclusions(figures)} for kind, figures in kinds.items()}
    results["kinds"] = {kind: kinds[kind] for kind in sorted(kinds, key=_order)}
    (into / PICTURES).mkdir(parents=True, exist_ok=True)
    (into / FIGURES).write_text(stored(results) + "\n", encoding="utf-8")
    (into / PAGE).write_text(page(results), encoding="utf-8")
    if advised is not None:
        advised.write_text(stored(advice(results)) + "\n", encoding="utf-8")
    for kind, figures in results["kinds"].items():
        picture = into / PICTURES / f"{kind}.png"
        # Another matplotlib version writes other bytes, so a kind that is not given keeps its picture.
        if kind in given or not given or not picture.exists():
            picture.write_bytes(comparison_png(figures))
            second, other = sources_png(figures), into / PICTURES / f"{kind}-sources.png"
            if second is not None:
                other.write_bytes(second)
            else:
                other.unlink(missing_ok=True)
    click.echo(f"{into / PAGE}: {', '.join(results['kinds']) or 'no comparison yet'}")


if __name__ == "__main__":
    main()

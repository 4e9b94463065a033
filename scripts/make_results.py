"""Make docs/results/results.md, its pictures and docs/results/results.json from finished comparisons.

    python scripts/make_results.py --into docs/results gpt2=out/compare-gpt2 bert=out/compare-bert cait=out/compare-cait
    python scripts/make_results.py --into docs/results gpt2-seeds=out/compare-gpt2-seeds
    python scripts/make_results.py --into docs/results
    python scripts/make_results.py --into docs/results --check

Input: output directories of `ligo-convert compare` as KIND=DIR. A kind is `gpt2`, `bert` or `cait`, with a suffix for a further run.
Output: results.json with the figures of every kind, and the page and the pictures, which are made from results.json alone.

A given kind replaces the recorded one. Without arguments, the page and the pictures are written again. `--check` writes nothing and
exits with 1 if the page is out of date.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from ligo_convert.comparison.methods import METHODS
from ligo_convert.comparison.plot import LOSS_UNITS, SCRATCH, comparison_png, scratch_loss
from ligo_convert.comparison.report import best_method, source_cost_known
from ligo_convert.comparison.results import first_point_at
from ligo_convert.conversion.run_record import finite as without_nan
from ligo_convert.errors import printable
from ligo_convert.outputs.markdown import code, prose, table
from ligo_convert.recipes.recipe import Recipe, load_recipe
from ligo_convert.recipes.schema import CompareConfig

RECORD, FIGURES, PAGE, PICTURES = "compare.json", "results.json", "results.md", "pictures"
READS, FORMAT = "ligo-comparison/2", "ligo-results/2"
RECIPES = Path(__file__).parent.parent / "recipes"
VERSIONS = ("torch", "transformers", "timm")
POINTS = 45  # approximate number of points kept per curve
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

# Methods that LiGO is compared with: those of other papers, without the exact starts, because `ligo` itself starts from one.
BASELINES = (
    "stackbert",
    "mslt",
    "ki",
    "bert2bert",
    "bert2bert-aki",
    "bert2bert-fpi",
    "freeze",
    "direct",
    "interpolate",
    "net2net",
)

INTRODUCTION = """\
This page shows how much training compute is saved by growing a small model into a larger one. All figures come from
`ligo-convert compare`; the command for each table is printed with it. [comparing.md](../guide/comparing.md) explains how a comparison is
run, how FLOPs are counted, and how each method is defined.

**How to read the figures**

- *Scratch* is the baseline: the target trained from random weights for the whole budget.
- *Saved* is measured at scratch's final loss: how many fewer FLOPs a method needs to reach that loss, in per cent of scratch's FLOPs.
- `paper` counts training and the fit of the operator, but not the training of the source, as
  [arXiv:2303.00980](https://arxiv.org/abs/2303.00980) does. `net` also charges the source's training to every method that uses the source.
- The learning rate search is not counted. Every method tries the same learning rates in short tuning runs and uses the one with the
  lowest validation loss. The schedule is chosen the same way for scratch, and all methods use it.
- Each method is trained for increasing fractions of the budget and stops at the first run that reaches scratch's final loss. Its saving
  is read from that run, on a test split that was not used to choose a learning rate, schedule or operator.

**Limitations**

- Scale: one machine, models of 0.2 to 0.6 million parameters, 1,000 to 3,000 training steps. The order of the methods may differ at real
  size. The LiGO paper reports savings of 44.7 % (BERT-Small to Base), 22.5 % (GPT2-Base to Medium) and 52.6 % (CaiT-XS to S), without the
  source, for models 100 to 1,000 times larger, compared with scratch under a single schedule.
- One seed, unless stated otherwise. Differences of one or two per cent of FLOPs, or of a few thousandths of loss, are not significant.
  The best of many methods is partly the luckiest.
- Scratch tries two learning rates over the whole budget; the other methods try theirs in tuning runs only. One method was also trained to
  the end at a learning rate that had lost in tuning: its final loss was 0.01 nats lower, and its saving was the same
  ([log.md](../development/log.md)).
- For BERT and CaiT, scratch's best learning rate is the lowest one of the grid. A lower one was tried separately and is worse. For GPT-2
  it is the highest one, and no higher one was tried ([log.md](../development/log.md)).
- Savings are coarse. A loss curve has about 40 points over the whole budget. The `stable` schedule lowers the learning rate in the last
  fifth of a run, and the loss drops there. A run for a fraction f of the budget therefore mostly yields a saving between 1 - f and
  1 - 0.8 f. A method that just misses a budget fraction looks much worse than one that just reaches it.
- Final losses belong to runs of different length, because a method stops once it reaches scratch's loss. Column *FLOPs* shows the length.
- *Saved* refers to one loss value. It does not measure time, memory, or the loss after the whole budget.
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


def figures_of(record: Data, kind: str, *, command: str | None = None) -> dict[str, Any]:
    """Return the entry of a comparison in results.json: everything that the page and the picture need, with thinned curves."""
    source, data = record["source"], record.get("data") or {}
    budget = record["budget"]
    return {
        "command": command or command_of(record, kind),
        "trained_on": _kind(kind).data if _recipe(record["recipe"]) is not None else None,
        **{key: record[key] for key in ("recipe", "family", "architecture", "task", "parameters")},
        "budget": {**budget, "flops": _whole(budget["flops"])},
        # The label is left out, because it may be a local path.
        "source": {key: source.get(key) for key in ("flops", "fraction_of_scratch", "loss", "accuracy")},
        **{key: record[key] for key in ("schedule", "grid", "seeds")},
        "data": {unit: data[unit] for unit in ("tokens", "images") if unit in data},
        "methods": {name: _method(record, method) for name, method in record["methods"].items()},
        **{key: record[key] for key in ("skipped", "fairness_warnings", "flops_convention")},
        "versions": {name: record["versions"][name] for name in VERSIONS if name in record["versions"]},
    }


def _method(record: Data, method: Data) -> dict[str, Any]:
    runs = method["seeds"]
    goals = [run["final"]["loss"] for run in record["methods"][SCRATCH]["seeds"].values()]
    kept = _kept([run["curve"] for run in runs.values()], [*goals, scratch_loss(record)])
    return {
        **{key: method[key] for key in ("start", "strategy", "options", "needs_source", "learning_rate", "flops")},
        "savings": method["savings"],
        "std": method["std"],
        "seeds": {
            seed: {
                "final": {
                    "flops": _whole(run["final"]["flops"]),
                    **{key: run["final"].get(key) for key in ("loss", "accuracy", "budget_fraction")},
                },
                "savings": run["savings"],
                "curve": [
                    [_whole(point["flops"]), point["loss"]] for at, point in enumerate(run["curve"]) if at in kept
                ],
            }
            for seed, run in runs.items()
        },
    }


def _kept(curves: Sequence[Sequence[Data]], goals: Sequence[float | None]) -> set[int]:
    """Return the indices of the curve points to keep, the same for every seed.

    These are both ends, the point where scratch's loss is reached and the one before it, and evenly spaced points between.
    """
    longest = max(map(len, curves))
    if longest <= POINTS:
        return set(range(longest))
    kept = {0, *(len(curve) - 1 for curve in curves)}
    for curve in curves:
        for goal in goals:
            there = None if goal is None else first_point_at(curve, goal)
            if there is not None:
                at = curve.index(there)
                kept |= {at, max(0, at - 1)}
    between = max(2, POINTS - len(kept))
    return kept | {round(part * (longest - 1) / (between - 1)) for part in range(between)}


def _whole(value: float) -> float:
    """Return a whole number as an int, so that JSON shows it without a decimal point."""
    return int(value) if float(value).is_integer() else value


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
    """Yield the command line arguments that override the recipe's `compare` section, as far as the record shows them."""
    settings = recipe.compare or CompareConfig()
    budget, grid = record["budget"], record["grid"]
    if settings.methods is None:
        usual = record["methods"].keys() | record["skipped"].keys() == METHODS.keys()
    else:
        usual = list(record["methods"]) == list(dict.fromkeys((SCRATCH, *settings.methods)))
    if not usual:
        yield from ("--methods", ",".join(record["methods"]))
    if budget["steps"] != settings.steps:
        yield from ("--steps", str(budget["steps"]))
    if record["seeds"] != settings.seeds:
        yield from ("--seeds", ",".join(map(str, record["seeds"])))
    assert recipe.fit is not None
    pairs = (
        ("batch_size", budget["batch_size"], settings.batch_size or recipe.fit.batch_size),
        ("learning_rates", grid["learning_rates"], settings.learning_rates),
        ("schedules", grid["schedules"], settings.schedules),
        ("tuning_fraction", grid["tuning_fraction"], settings.tuning_fraction),
        ("budget_fractions", grid["budget_fractions"], sorted({*settings.budget_fractions, 1.0})),
    )
    for key, value, planned in pairs:
        if value != planned:
            yield from ("--set", f"compare.{key}={json.dumps(value)}")


def full(figures: Data) -> dict[str, Any]:
    """Return an entry of results.json in the form of compare.json that the plot requires."""
    methods = {}
    for name, method in figures["methods"].items():
        runs = {
            seed: {**run, "curve": [{"flops": flops, "loss": loss} for flops, loss in run["curve"]]}
            for seed, run in method["seeds"].items()
        }
        first = next(iter(runs.values()))
        methods[name] = {**method, "seeds": runs, "curve": first["curve"], "final": first["final"]}
    return {**figures, "methods": methods}


# --- the page ---------------------------------------------------------------------------------------------------------


def page(results: Data) -> str:
    """Return the text of docs/results/results.md."""
    kinds: Data = results["kinds"]
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
        lines += [*_summary(kinds), ""]
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


def _summary(kinds: Data) -> Iterator[str]:
    yield "## In short"
    yield ""
    yield "Savings are `net`, with `paper` in brackets. *Most without learning*: methods that use the source and learn no operator."
    yield f"*Baselines*: {', '.join(map(code, BASELINES))}."
    yield ""
    head = ("what", "scratch's loss", "most saved", "most without learning", "`ligo`", "`ligo-paper`", "best baseline")
    rows = []
    for kind, figures in kinds.items():
        methods, charged = figures["methods"], source_cost_known(figures)
        unlearned = [name for name, method in methods.items() if method["start"] and not method["flops"]["fit"]]
        loss = scratch_loss(full(figures))
        rows.append(
            (
                f"[{title_of(kind)}](#{_anchor(title_of(kind))})",
                "-" if loss is None else f"{loss:.3f}",
                _best(methods, [name for name in methods if name != SCRATCH], charged),
                _best(methods, unlearned, charged),
                *(_saved_in_short(methods[name]) if name in methods else "" for name in ("ligo", "ligo-paper")),
                _best(methods, [name for name in BASELINES if name in methods], charged),
            )
        )
    yield from table(head, rows)


def _best(methods: Data, names: Sequence[str], charged: bool) -> str:
    best = best_method(methods, names, "net" if charged else "paper")
    if best is None:
        return "none reached it" if names else ""
    return f"{code(best)} {_saved_in_short(methods[best])}"


def _saved_in_short(method: Data) -> str:
    paper, net = (method["savings"][way] for way in ("paper", "net"))
    if paper is None:
        return "not reached"
    after = f"{_percent(paper)}{_deviation(method, 'paper')}"
    return f"{'not known' if net is None else _percent(net) + _deviation(method, 'net')} ({after})"


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
    yield f"![{_alternative(figures)}]({PICTURES}/{kind}.png)"
    yield ""
    yield from _table(figures)
    if figures["skipped"]:
        yield ""
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


def _scale(figures: Data) -> Iterator[str]:
    """Yield the setup, one sentence per line: models, budget, source, loss, schedule, learning rates, versions."""
    budget, source, grid, sizes = figures["budget"], figures["source"], figures["grid"], figures["parameters"]
    images = budget["unit"] == "images"
    where = f", on {figures['trained_on']}" if figures["trained_on"] else ""
    yield (
        f"A {prose(figures['architecture'])} of {sizes['source']:,} parameters grown to {sizes['target']:,}{where};"
        f" {_count(figures['methods'], 'method')}, {_count(figures['seeds'], 'seed')}."
    )
    batch = "images" if images else f"x {budget['sequence_length']:,} tokens"
    yield (
        f"Training from scratch takes {budget['steps']:,} steps of {budget['batch_size']:,} {batch}:"
        f" {budget['examples']:,} {prose(budget['unit'])}, {budget['tokens_per_parameter']:.3g} {'patches' if images else 'tokens'}"
        f" per parameter, {budget['flops']:.3g} FLOPs."
    )
    if source["fraction_of_scratch"] is None:
        cost = "The cost of training the source is not known"
    else:
        cost = f"Training the source took {100 * source['fraction_of_scratch']:.1f} % of these FLOPs"
    yield f"{cost}." if source["loss"] is None else f"{cost}; its loss is {source['loss']:.4f}."
    held = [f", on {slices['test']:,} held-out {unit}" for unit, slices in figures["data"].items()]
    yield f"Losses are {LOSS_UNITS.get(figures['task'], 'nats')}{''.join(held)}."
    shapes = [code(shape) for shape in grid["schedules"] if shape != figures["schedule"]]
    yield f"Scratch's schedule is {code(figures['schedule'])}{', chosen over ' + ', '.join(shapes) if shapes else ''}."
    rates, fractions = (
        ", ".join(f"{value:g}" for value in grid[key]) for key in ("learning_rates", "budget_fractions")
    )
    yield f"Learning rates tried: {rates}, each for {grid['tuning_fraction']:g} of the budget. Budget fractions: {fractions}."
    yield f"Versions: {', '.join(f'{name} {prose(version)}' for name, version in figures['versions'].items())}."


def _table(figures: Data) -> Iterator[str]:
    methods, budget, charged = figures["methods"], figures["budget"]["flops"], source_cost_known(figures)
    accuracy = any(run["final"]["accuracy"] is not None for method in methods.values() for run in _runs(method))
    head = ["method", "start", "strategy", "rate", "final loss", *(["accuracy"] if accuracy else [])]
    head += ["FLOPs, % of scratch's", "saved, paper", "saved, net"]
    rows = []
    for name, method in sorted(methods.items(), key=lambda item: _rank(item[0], item[1], charged)):
        finals = [run["final"] for run in _runs(method)]
        loss, share = _mean([final["loss"] for final in finals]), fmean(final["flops"] for final in finals) / budget
        right = _mean([final["accuracy"] for final in finals])
        rows.append(
            (
                code(name),
                code("/".join(map(str, method["start"].values()))) if method["start"] else "drawn",
                " ".join([code(method["strategy"]), *(code(f"+{option}") for option in method["options"])]),
                f"{method['learning_rate']:g}",
                "diverged" if loss is None else f"{loss:.4f}{_deviation(method, 'loss')}",
                *(["" if right is None else f"{100 * right:.1f} %"] if accuracy else []),
                f"{100 * share:.1f} %",
                *(_saved(name, method, way, charged) for way in ("paper", "net")),
            )
        )
    yield from table(head, rows)
    yield ""
    note = "*FLOPs*: cost of the run shown, with the fit, without the source."
    if len(figures["seeds"]) > 1:
        note += " Values are means over the seeds, +- the standard deviation."
    yield note


def _saved(name: str, method: Data, way: str, charged: bool) -> str:
    if name == SCRATCH:
        return "-"
    saved = method["savings"][way]
    if saved is not None:
        return f"{_percent(saved)}{_deviation(method, way)}"
    runs = _runs(method)
    there = sum(run["savings"]["paper"] is not None for run in runs)
    if there == len(runs) and method["needs_source"] and not charged:
        return "not known"
    return f"{there} of {len(runs)} seeds" if there else "not reached"


def _rank(name: str, method: Data, charged: bool) -> tuple[bool, float, float, str]:
    """Return a sort key: the largest saving first, then the lowest loss. Scratch counts as a saving of zero."""
    saved = 0.0 if name == SCRATCH else method["savings"]["net" if charged else "paper"]
    loss = _mean([run["final"]["loss"] for run in _runs(method)])
    return saved is None, -(saved or 0.0), float("inf") if loss is None else loss, name


def _runs(method: Data) -> list[Data]:
    return list(method["seeds"].values())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _percent(value: float) -> str:
    return f"{value:.1f} %"


def _deviation(method: Data, key: str) -> str:
    found = method["std"][key]
    return "" if found is None else f" +- {found:.{4 if key == 'loss' else 1}f}"


def _count(things: Sequence[object], word: str) -> str:
    return f"{len(things)} {word}{'s' if len(things) != 1 else ''}"


def _alternative(figures: Data) -> str:
    """Return the alternative text of the picture. It contains no foreign text, because nothing is escaped here."""
    loss = scratch_loss(full(figures))
    end = "" if loss is None else f"; scratch ends at {loss:.3f}"
    right = "with it" if source_cost_known(figures) else "nothing, because that cost is not known"
    return (
        f"Loss against FLOPs of {len(figures['methods'])} methods: on the left without the cost of the source, on the right {right}{end}."
        " The table below has the figures."
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


# --- files ------------------------------------------------------------------------------------------------------------


def stored(value: object, level: int = 0) -> str:
    """Return JSON that gives readable diffs: a value that contains no mapping stands on one line."""
    if isinstance(value, Mapping) and any(isinstance(item, Mapping) for item in value.values()):
        items = [f"{json.dumps(str(key))}: {stored(item, level + 1)}" for key, item in value.items()]
        indent = "\n" + " " * (level + 1)
        return "{" + indent + f",{indent}".join(items) + "\n" + " " * level + "}"
    return json.dumps(value, allow_nan=False)


def read_results(path: Path) -> dict[str, Any]:
    """Read results.json; return an empty one if the file does not exist. Raises click.ClickException."""
    if not path.exists():
        return {"format": FORMAT, "kinds": {}}
    found: dict[str, Any] = json.loads(path.read_bytes())
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
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where the page is not what the figures give.")
def main(directories: tuple[str, ...], into: Path, commands: tuple[str, ...], check: bool) -> None:
    """Write results.json, results.md and the pictures into a folder."""
    given, told = _named(directories, "DIR"), _named(commands, "TEXT")
    if check and (given or told):
        raise click.UsageError("--check looks at what is there, and takes no directories")
    if told.keys() - given.keys():
        raise click.UsageError("--command is for a KIND whose directory is given")
    results = read_results(into / FIGURES)
    if check:
        there = (into / PAGE).read_text(encoding="utf-8") if (into / PAGE).exists() else ""
        if there != page(results):
            raise click.ClickException(f"{into / PAGE} is not what {into / FIGURES} gives: run scripts/make_results.py")
        return
    kinds = results["kinds"]
    for kind, directory in given.items():
        kinds[kind] = figures_of(main_record(Path(directory)), kind, command=told.get(kind))
    results["kinds"] = {kind: kinds[kind] for kind in sorted(kinds, key=_order)}
    (into / PICTURES).mkdir(parents=True, exist_ok=True)
    (into / FIGURES).write_text(stored(results) + "\n", encoding="utf-8")
    (into / PAGE).write_text(page(results), encoding="utf-8")
    for kind, figures in results["kinds"].items():
        picture = into / PICTURES / f"{kind}.png"
        # Another matplotlib version writes other bytes, so a kind that is not given keeps its picture.
        if kind in given or not given or not picture.exists():
            picture.write_bytes(comparison_png(full(figures)))
    click.echo(f"{into / PAGE}: {', '.join(results['kinds']) or 'no comparison yet'}")


if __name__ == "__main__":
    main()

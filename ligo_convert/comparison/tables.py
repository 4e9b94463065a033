"""Lay out a comparison as tables of plain text, the same for the terminal, the HTML page and the page of results.

Input: the contents of compare.json.
Output: `Table`s. Cells are plain text with foreign names in it: whoever shows them escapes them for its medium.

Models that never grow stand in every table of losses and savings, beside the methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ligo_convert.comparison.frontier import finite
from ligo_convert.comparison.headline import certain
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.naming import entry_text, source_text
from ligo_convert.comparison.verdict import amount_saved, best_at

Data = Mapping[str, Any]

ColumnKind = Literal["name", "text", "figure"]

NO_FIGURE = "-"

# Who is best at a cost (`verdict.best_at`), in words; any other name is that of a model that never grows.
_LOWEST = {SCRATCH: SCRATCH, "growing": "method", "not decided": "not decided"}

_STRENGTHS = " 4x: trained four times as long as the recipe says."

_ACCURACY: tuple[tuple[str, ColumnKind], ...] = (("Accuracy", "figure"),)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        cells: one text per column.
        kind: `scratch`, `control`, `best` or empty, for those who highlight it.
    """

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of plain text.

    Attributes:
        name: short name of the table.
        title: heading.
        note: how to read it.
        columns: heading and kind of every column.
        rows: the rows.
    """

    name: str
    title: str
    note: str
    columns: tuple[tuple[str, ColumnKind], ...]
    rows: tuple[Row, ...]


def comparison_tables(data: Data) -> list[Table]:
    """Return the tables that have rows, in the order in which they are read."""
    tables = [savings(data), equal_budget(data), break_even(data), sources(data), optimizers(data), ends(data)]
    return [table for table in tables if table.rows]


def savings(data: Data) -> Table:
    """Return what every method saves, the largest net saving first, with scratch and the models that never grow."""
    accuracy = _has_accuracy(data)
    best = data["verdict"]["best"]["net"] or data["verdict"]["best"]["paper"]
    rows = []
    for name in _ordered(data):
        entry = data["methods"][name]
        kind = SCRATCH if name == SCRATCH else "best" if best and best["method"] == name and best["saved"] > 0 else ""
        rows.append(Row(cells=_savings_cells(data, name, entry, entry["headline"], accuracy), kind=kind))
    for name, entry in data["controls"].items():
        rows.append(Row(cells=_savings_cells(data, name, entry, _best_of_control(entry), accuracy), kind="control"))
    seeds = " After +-: the deviation over the seeds." if len(data["seeds"]) > 1 else ""
    return Table(
        name="savings",
        title="Savings at equal loss",
        note=(
            "Saved: FLOPs fewer than scratch needs for the same loss, in per cent; net with the source charged, paper with the source"
            " left out. FLOPs: those of the run with the lowest loss, in per cent of scratch's whole budget. A method is read at"
            " scratch's final loss; with *, at its own lowest loss, because it does not reach that one. A model that never grows is"
            f" read where it saves most. 'At least' and 'at most' are bounds: scratch was not measured at that loss.{seeds}"
        ),
        columns=(
            ("Method", "name"),
            ("Source", "name"),
            ("Start", "text"),
            ("Learning rate", "figure"),
            ("Lowest loss", "figure"),
            *(_ACCURACY if accuracy else ()),
            ("FLOPs", "figure"),
            ("Saved, net", "figure"),
            ("Saved, paper", "figure"),
            ("Read at loss", "figure"),
        ),
        rows=tuple(rows),
    )


def _ordered(data: Data) -> list[str]:
    """Return the methods by certain net saving, or paper saving if no net one is known; scratch counts as zero."""
    methods = data["methods"]
    way = "net" if any(entry["headline"]["net"] for name, entry in methods.items() if name != SCRATCH) else "paper"

    def rank(name: str) -> tuple[bool, float, float, str]:
        found, losses = methods[name]["headline"][way], [end["loss"] for end in methods[name]["ends"] if end["loss"]]
        saved = 0.0 if name == SCRATCH else found["saved"] if certain(found) else None
        return saved is None, -(saved or 0.0), min(losses, default=float("inf")), name

    return sorted(methods, key=rank)


def _best_of_control(entry: Data) -> dict[str, Any]:
    """Return the end at which a model that never grows saves most, in the form of a headline."""
    found = [
        end for end in entry["ends"] if end["saved"]["net"] is not None and end["bound"] in (None, "at least")
    ] or [end for end in entry["ends"] if end["saved"]["net"] is not None]
    if not found:
        return {"net": None, "paper": None}
    end = max(found, key=lambda one: one["saved"]["net"])
    return {
        way: {
            "saved": end["saved"][way],
            "bound": end["bound"],
            "std": end["saved_std"][way],
            "step": end["step"],
            "loss": end["loss"],
        }
        for way in ("net", "paper")
    }


def _savings_cells(data: Data, name: str, entry: Data, headline: Data, accuracy: bool) -> tuple[str, ...]:
    finished = [end for end in entry["ends"] if end["loss"] is not None]
    end = min(finished, key=lambda one: (one["loss"], one["flops"]), default=None)
    at = headline["paper"] or headline["net"]
    return (
        entry_text(name),
        NO_FIGURE if entry["source"] is None else source_text(entry["source"]),
        start_text(entry),
        NO_FIGURE if entry["learning_rate"] is None else f"{entry['learning_rate']:g}",
        "not finite" if end is None else loss_text(end["loss"], end["std"]),
        *(
            [NO_FIGURE if end is None or end["accuracy"] is None else f"{100 * end['accuracy']:.1f} %"]
            if accuracy
            else []
        ),
        NO_FIGURE if end is None else _share(data, end["flops"]),
        *(_saved_cell(name, entry, headline[way], way) for way in ("net", "paper")),
        NO_FIGURE if name == SCRATCH or at is None else f"{at['loss']:.3f}{_star(entry, at)}",
    )


def _star(entry: Data, found: Data) -> str:
    """Return the mark of a method that is read at its own end."""
    return " *" if entry["kind"] == "method" and found["step"] is not None else ""


def _saved_cell(name: str, entry: Data, found: Data | None, way: str) -> str:
    if name == SCRATCH:
        return NO_FIGURE
    if found is not None:
        return amount_saved(found["saved"], found["bound"], found["std"])
    if way == "net" and entry["source_flops"] is None:
        return "source cost unknown"
    return "not known"


def start_text(entry: Data) -> str:
    """Return how an entry starts and trains, in the form that the command line takes."""
    if entry["kind"] == "control":
        config = ", ".join(f"{key} {value}" for key, value in (entry["config"] or {}).items())
        return f"never grown{': ' + config if config else ''}"
    start = entry["start"]
    parts = [str(start[axis]) for axis in ("width", "depth") if start.get(axis)] if start else []
    text = "random weights" if not parts or set(parts) <= {"random"} else "/".join(parts)
    grows_at = finite(start.get("grows_at")) if start else None
    extra = [] if grows_at is None else [f"grown at {100 * grows_at:g} %"]
    extra += [] if entry["strategy"] == "plain" else [entry["strategy"]]
    return ", ".join([text, *extra, *(f"+{option}" for option in entry["options"])])


def names_of(data: Data) -> dict[str, str]:
    """Return what the names of methods and controls mean, each without its source."""
    found: dict[str, str] = {}
    for entry in data["methods"].values():
        found.setdefault(str(entry["base"]), str(entry["summary"]))
    return found | {name: start_text(entry) for name, entry in data["controls"].items()}


def equal_budget(data: Data) -> Table:
    """Return what scratch, the best model that never grows and the best method have at the same cost."""
    rows = [
        Row(
            cells=(
                f"{100 * row['share']:.0f} %",
                _reading(row["scratch"]),
                *(cell for key in ("control", "net", "paper") for cell in (_reading(row[key]), _reading_of(row[key]))),
                NO_FIGURE if row["net"] is None else lowest,
            ),
            kind={"never grown": "control", SCRATCH: SCRATCH}.get(lowest, ""),
        )
        for row in data["equal_budget"]
        for lowest in [_LOWEST.get(best_at(row), "never grown")]
    ]
    return Table(
        name="budget",
        title="Losses at equal budget",
        note=(
            "Between two finished runs, losses are interpolated in the logarithm of the FLOPs; outside them they are bounds. Which:"
            " the best model that never grows, and the best method with its source charged (net) or left out (paper). Lowest: which of"
            " scratch, that model and the best method with its source charged has the lowest loss. Not decided: a run of that cost is"
            " missing."
        ),
        columns=(
            ("FLOPs", "figure"),
            ("Scratch", "figure"),
            ("Never grown", "figure"),
            ("Which", "name"),
            ("Method, net", "figure"),
            ("Which", "name"),
            ("Method, paper", "figure"),
            ("Which", "name"),
            ("Lowest", "text"),
        ),
        rows=tuple(rows),
    )


def _reading(found: Data | None) -> str:
    if found is None or found["loss"] is None:
        return NO_FIGURE
    bound = f"{found['bound']} " if found["bound"] else ""
    return f"{bound}{loss_text(found['loss'], found['std'])}"


def _reading_of(found: Data | None) -> str:
    return NO_FIGURE if found is None or found["loss"] is None else entry_text(found["name"])


def break_even(data: Data) -> Table:
    """Return from how many targets on a source pays for itself."""
    rows = []
    for row in sorted(
        data["break_even"], key=lambda found: (str(found["source"]), -found["saved_paper"], found["method"])
    ):
        rows.append(
            Row(
                cells=(
                    entry_text(row["method"]),
                    source_text(row["source"]),
                    "not known" if row["source_flops"] is None else _share(data, row["source_flops"]),
                    amount_saved(row["saved_paper"], row["bound"]),
                    "not known" if row["saved_net"] is None else amount_saved(row["saved_net"], row["bound"]),
                    targets_text(row),
                    NO_FIGURE
                    if row["source_limit"] is None
                    else f"{'at least ' if row['bound'] == 'at least' else ''}{100 * row['source_limit']:.1f} %",
                )
            )
        )
    return Table(
        name="break-even",
        title="Break-even",
        note=(
            "Pays from: number of targets grown from one source from which the source's training is paid back. A source may cost:"
            " the share of scratch's FLOPs that one target pays back."
        ),
        columns=(
            ("Method", "name"),
            ("Source", "name"),
            ("Source's FLOPs", "figure"),
            ("Saved, paper", "figure"),
            ("Saved, net", "figure"),
            ("Pays from", "figure"),
            ("A source may cost", "figure"),
        ),
        rows=tuple(rows),
    )


def targets_text(row: Data) -> str:
    """Return from how many targets on a source pays for itself, in words."""
    if row["targets"] is None:
        return "never" if row["never"] else "not known"
    bound = f"{row['targets_bound']} " if row["targets_bound"] else ""
    return f"{bound}{row['targets']} target{'' if row['targets'] == 1 else 's'}"


def sources(data: Data) -> Table:
    """Return the sources, and what the best method saves with each."""
    rows = []
    for source in data["sources"]:
        using = [entry for entry in data["methods"].values() if entry["source"] == source["name"]]
        flops, loss, per = (finite(source.get(key)) for key in ("flops", "loss", "tokens_per_parameter"))
        rows.append(
            Row(
                cells=(
                    source_text(source["name"]),
                    NO_FIGURE if source.get("steps") is None else f"{source['steps']:,}",
                    "not known" if flops is None else _share(data, flops),
                    NO_FIGURE if per is None else f"{per:.3g}",
                    "not known" if loss is None else f"{loss:.3f}",
                    *(_most_saved(using, way) for way in ("net", "paper")),
                ),
                kind="control",
            )
        )
    return Table(
        name="sources",
        title="Sources",
        note="A source is also a model that never grows: its loss at its own cost. Saved: by the best method that uses it."
        f"{_STRENGTHS if any(source_text(source['name']) != source['name'] for source in data['sources']) else ''}",
        columns=(
            ("Source", "name"),
            ("Steps", "figure"),
            ("FLOPs", "figure"),
            (f"{_passing(data).capitalize()} per parameter", "figure"),
            ("Loss", "figure"),
            ("Most saved, net", "figure"),
            ("Most saved, paper", "figure"),
        ),
        rows=tuple(rows),
    )


def _most_saved(entries: Sequence[Data], way: str) -> str:
    found = [entry["headline"][way] for entry in entries if certain(entry["headline"][way])]
    best = max(found, key=lambda one: float(one["saved"]), default=None)
    return NO_FIGURE if best is None else amount_saved(best["saved"], best["bound"], best["std"])


def optimizers(data: Data) -> Table:
    """Return scratch's tuning runs: the optimizer's own gain is a gain of every entry."""
    chosen = data["optimizer"]["chosen"]
    rows = []
    for run in data["optimizer"]["tried"]:
        loss = finite(run.get("validation_loss"))
        kept = all(run.get(key) == chosen.get(key) for key in ("learning_rate", "decay", "schedule") if key in chosen)
        kept = kept and run["optimizer"] == chosen["name"]
        rows.append(
            Row(
                cells=(
                    str(run["optimizer"]),
                    f"{run['learning_rate']:g}",
                    NO_FIGURE if run.get("decay") is None else f"{100 * run['decay']:g} %",
                    str(run.get("schedule") or NO_FIGURE),
                    f"{run['steps']:,}",
                    "not finite" if loss is None else f"{loss:.4f}",
                    "chosen" if kept else "",
                ),
                kind="best" if kept else "",
            )
        )
    return Table(
        name="optimizers",
        title="How scratch was tuned",
        note=(
            "Tuning runs of scratch, on the validation split. What one optimizer gains over another is a gain of every entry,"
            " not of growth."
        ),
        columns=(
            ("Optimizer", "name"),
            ("Learning rate", "figure"),
            ("Decay", "figure"),
            ("Schedule", "text"),
            ("Steps", "figure"),
            ("Validation loss", "figure"),
            ("", "text"),
        ),
        rows=tuple(rows),
    )


def ends(data: Data) -> Table:
    """Return every finished run of every entry: the curves."""
    accuracy = _has_accuracy(data)
    rows = []
    for name, entry in (*data["methods"].items(), *data["controls"].items()):
        kind = {"scratch": SCRATCH, "control": "control"}.get(entry["kind"], "")
        for end in entry["ends"]:
            there = end["scratch_flops"]
            rows.append(
                Row(
                    cells=(
                        entry_text(name),
                        f"{end['step']:,}",
                        _share(data, end["flops"]),
                        "not known" if end["net_flops"] is None else _share(data, end["net_flops"]),
                        "not finite" if end["loss"] is None else loss_text(end["loss"], end["std"]),
                        *(
                            [NO_FIGURE if end["accuracy"] is None else f"{100 * end['accuracy']:.1f} %"]
                            if accuracy
                            else []
                        ),
                        NO_FIGURE
                        if there is None
                        else f"{end['bound'] + ' ' if end['bound'] else ''}{_share(data, there)}",
                        *(_end_saved(name, end, way) for way in ("net", "paper")),
                        *(_gap(name, end, way) for way in ("net", "paper")),
                    ),
                    kind=kind,
                )
            )
    return Table(
        name="ends",
        title="Every finished run",
        note=(
            "FLOPs are per cent of scratch's whole budget. Same loss: the FLOPs at which scratch has the loss of the run. Gap: the loss"
            " of the run minus scratch's at the same cost; negative where scratch is worse."
        ),
        columns=(
            ("Entry", "name"),
            ("Steps", "figure"),
            ("FLOPs", "figure"),
            ("With the source", "figure"),
            ("Loss", "figure"),
            *(_ACCURACY if accuracy else ()),
            ("Same loss, scratch", "figure"),
            ("Saved, net", "figure"),
            ("Saved, paper", "figure"),
            ("Gap, net", "figure"),
            ("Gap, paper", "figure"),
        ),
        rows=tuple(rows),
    )


def _end_saved(name: str, end: Data, way: str) -> str:
    if name == SCRATCH or end["saved"][way] is None:
        return NO_FIGURE
    return amount_saved(end["saved"][way], end["bound"], end["saved_std"][way])


def _gap(name: str, end: Data, way: str) -> str:
    if name == SCRATCH or end["gap"][way] is None:
        return NO_FIGURE
    bound = f"{end['gap_bound'][way]} " if end["gap_bound"][way] else ""
    return f"{bound}{end['gap'][way]:+.3f}"


def loss_text(loss: float, std: float | None) -> str:
    """Return a loss with its deviation over seeds.

    >>> loss_text(3.30612, None), loss_text(3.30612, 0.0042)
    ('3.306', '3.306 +- 0.004')
    """
    return f"{loss:.3f}{'' if std is None else f' +- {std:.3f}'}"


def _share(data: Data, flops: float) -> str:
    budget = finite(data["budget"]["flops"])
    return f"{flops:.3g}" if not budget else f"{100 * flops / budget:.1f} %"


def _has_accuracy(data: Data) -> bool:
    entries: Sequence[Data] = [*data["methods"].values(), *data["controls"].values()]
    return any(end["accuracy"] is not None for entry in entries for end in entry["ends"])


def _passing(data: Data) -> str:
    return "patches" if data["budget"]["unit"] == "images" else "tokens"

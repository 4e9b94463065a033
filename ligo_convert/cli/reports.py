"""Print the results of the commands as tables on stdout, with rich."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ligo_convert.cli.format import (
    STATE_STYLES,
    config_edits,
    make_pairs,
    make_table,
    print_lines,
    print_records,
    print_table,
    print_wrapped,
    text_of,
)
from ligo_convert.errors import printable, some
from ligo_convert.units import amount, duration, flops, percent, size

if TYPE_CHECKING:
    from ligo_convert.batch.scheduler import Batch
    from ligo_convert.conversion.new_recipe import Suggestion
    from ligo_convert.conversion.plan import Plan
    from ligo_convert.conversion.run_record import ConversionResult
    from ligo_convert.conversion.train_plan import TrainPlan
    from ligo_convert.outputs.bundle import Bundle
    from ligo_convert.outputs.hub_destination import PublishResult

_FILES = 8  # file names in a line


def batch_report(done: Batch) -> None:
    """Print the state of every entry, and the error of each that failed."""
    record = done.json()
    columns = ["entry", "state", "parameters", "loss", "preservation", "seconds", "published"]
    if not any(entry.get("published") for entry in record["entries"].values()):
        columns.remove("published")
    table = make_table("", *columns, right=(2, 3, 5))
    for name, entry in record["entries"].items():
        sizes, losses, kept = entry.get("parameters"), entry.get("loss") or {}, entry.get("preservation") or {}
        loss = next((losses[key] for key in ("fitted", "initial") if losses.get(key) is not None), None)
        published = entry.get("published")
        cells = (
            text_of(name),
            Text(entry["state"], style=STATE_STYLES[entry["state"]]),
            f"{amount(sizes['source'])} -> {amount(sizes['target'])}" if sizes else "",
            f"{loss:.4f}" if loss is not None else "",
            text_of(kept.get("verdict") or (f"{kept['planned']}, not measured" if kept.get("planned") else "")),
            f"{entry['seconds']:.1f}",
            text_of(f"{published['repo']} at {published['commit'][:12]}" if published else ""),
        )
        table.add_row(*cells[: len(columns)])
    console = out_console()
    console.print(table)
    counts = ", ".join(f"{count} {state}" for state, count in record["counts"].items() if count)
    console.print(Text(f"\n{counts}, in {duration(record['seconds'])}, by the {record['engine']} engine"))
    for name, entry in record["entries"].items():
        if entry["why"]:
            console.print(Text(f"\n{printable(name)}: exit code {entry['code']}", style="bold"))
            for line in entry["why"].splitlines():
                print_wrapped(console, f"  {line}")


def pairs_report(pairs: Mapping[str, str]) -> None:
    """Print names with a line about each."""
    rows = [(name, text) for name, text in pairs.items()]
    print_table(out_console(), "", ("name", "what it is"), rows)


def suggestion_report(suggestion: Suggestion, file: Path) -> None:
    """Print what a new recipe grows, by which methods, the other sizes, and the next commands."""
    chosen, console = suggestion.chosen, out_console()
    growth = chosen.growth.growth
    make_pairs(
        console,
        f"Wrote {printable(file)}",
        {
            "family": suggestion.family,
            "source": f"{printable(suggestion.label)}, {amount(suggestion.parameters)} parameters",
            "target": f"{chosen.name or 'own sizes'}, {amount(chosen.parameters)} parameters",
            "config": ", ".join(f"{key}={value}" for key, value in chosen.changes.items()),
            "growth": f"width {growth.width}, depth {growth.depth}",
            "preservation": chosen.growth.verdict,
        },
    )
    for reason in chosen.growth.reasons:
        console.print(text_of(f"  {reason}"))
    if suggestion.others:
        console.print()
        rows = [
            (other.name, amount(other.parameters), other.growth.verdict, f"--size {other.name}")
            for other in suggestion.others
        ]
        print_table(
            console, "Other sizes", ("size", "parameters", "preservation", "option"), rows, right=(1,), spare=(3,)
        )
    console.print(
        "\nNext:\n"
        f"  ligo-convert plan {shlex.quote(printable(file))}    # sizes, memory, disk\n"
        f"  ligo-convert run {shlex.quote(printable(file))}     # carries it out",
        markup=False,
    )


# Files left behind that a report shows.
_LEFT_SHOWN = 12


def out_console() -> Console:
    """Return a console on stdout. In a file or a pipe it does not wrap."""
    console = Console(highlight=False)
    # In a file or a pipe, a table must not be wrapped at 80 columns.
    return console if console.is_terminal else Console(highlight=False, width=500)


# Style of a verdict on preservation.
VERDICT_STYLES = {"exact": "bold green", "near": "bold yellow", "lossy": "bold red"}


def plan_report(plan: Plan, training: TrainPlan | None = None, *, rows: bool = False) -> None:
    """Print a plan: how the sizes change, details, advice on training, and at the end what decides whether to run it.

    Args:
        rows: whether to print the source and target shape of every row of the family's table.
    """
    from ligo_convert.conversion.plan import plan_json
    from ligo_convert.outputs.advice import scale_of

    console, data = out_console(), plan_json(plan)
    if rows:
        _print_rows(console, plan)
        console.print()
    make_pairs(console, "", _plan_details(plan, data, training))
    if data["advice"] and training is None:
        console.print()
        make_pairs(console, "Training the output", {one["what"]: one["value"] for one in data["advice"]})
        console.print(f"{scale_of(plan.family)} The model card has the origin of every value.".strip(), style="dim")
    for warning in plan.warnings:
        Console(stderr=True).print(Text("warning: " + printable(warning), style="yellow"))
    console.print()
    verdict = data["preservation"]["verdict"]
    make_pairs(
        console,
        "Summary",
        {
            "preservation": Text(verdict, style=VERDICT_STYLES[verdict]),
            "parameters": f"{amount(data['parameters']['source'])} -> {amount(data['parameters']['target'])}",
            **_needs(plan, data, training),
            "next": _next_command(plan, training),
        },
    )


def _print_rows(console: Console, plan: Plan) -> None:
    """Print the row table of a plan: every row with its layout and its shapes."""
    from ligo_convert.cli.inspect import family_layout

    family = plan.family
    old, new = family.sizes(plan.start.source), family.sizes(plan.start.target)
    rows = []
    for row in family.rows_for(plan.start.target):
        layers = f"{old[row.depth]} -> {new[row.depth]}" if row.depth else ""
        shapes = ["x".join(map(str, family.shape(row, sizes))) for sizes in (old, new)]
        rows.append([row.pattern, family_layout(family, row.pattern), *shapes, layers])
    # `describe` prints the layouts, too.
    print_table(console, "", ("row", "layout", "source", "target", "layers"), rows, spare=(1,))


def _plan_details(plan: Plan, data: Mapping[str, Any], training: TrainPlan | None) -> dict[str, object]:
    """Return the lines of a plan about source, sizes, methods, fit and files."""
    growth, preservation = data["growth"], data["preservation"]
    grown = {axis: found for axis, found in data["axes"].items() if found["source"] != found["target"]}
    pairs: dict[str, object] = {
        "source": plan.label
        + (f" @ {plan.revision}" if plan.revision else "")
        + ("" if plan.at_hand else " (not at hand)"),
        "sizes": ", ".join(f"{axis} {found['source']} -> {found['target']}" for axis, found in grown.items())
        or "as the source's",
        "method": f"width {growth['width']}, depth {growth['depth']}",
    }
    for number, reason in enumerate(preservation["reasons"]):
        pairs["" if not number else " " * number] = reason
    if preservation["method"] is not None:
        pairs["measured"] = f"{_MEASURED[preservation['method']]}; reads {size(preservation['read_bytes'])}"
    pairs |= _symmetry_pairs(data["symmetry"])
    if data["config_edits"]:
        pairs["config"] = config_edits(data["config_edits"])
    if plan.fits:
        pairs["operator"] = f"{amount(growth['learned_parameters'])} coefficients, keying {growth['keying']}" + (
            ", tied as in the paper" if growth["tie"] else ""
        )
        fit = plan.required_fit.settings
        examples = "images" if plan.family.reads == "images" else f"x {fit.sequence_length} tokens"
        threads = f"{data['threads']} thread{'' if data['threads'] == 1 else 's'}"
        pairs["fit"] = f"{fit.steps} steps of {fit.batch_size} {examples}, {flops(data['flops']['fit'])}, {threads}"
    if data["drawn_rows"]:
        pairs["new head"] = f"randomly initialised: {', '.join(data['drawn_rows'])}"
    if data["side_files"]:
        _add_side_files(pairs, data["side_files"])
    if training is not None:
        pairs |= _training_pairs(training)
    if data["ignored"]:
        pairs["ignored"] = f"{len(data['ignored'])} unused buffers, such as {data['ignored'][0]}"
    return pairs


def _needs(plan: Plan, data: Mapping[str, Any], training: TrainPlan | None) -> dict[str, object]:
    """Return what a plan needs of the machine."""
    count = len(data["files"])
    pairs: dict[str, object] = {"disk": f"{size(data['nbytes'])} in {count} weight file{'' if count == 1 else 's'}"}
    if plan.fits or not plan.recipe.trains:
        pairs["memory"] = f"about {size(data['memory_bytes'])}"
    if training is not None:
        pairs["training memory"] = f"about {size(training.json()['memory_bytes'])}"
    pairs |= _expected_time(plan, data, training)
    return pairs


def _expected_time(plan: Plan, data: Mapping[str, Any], training: TrainPlan | None) -> dict[str, object]:
    """Return how long the trainings of a plan may take here; nothing where there is none, or where a GPU may run them."""
    trained = (data["flops"]["fit"] or 0) if plan.fits else 0
    flops = trained + (data["flops"].get("pretrain") or 0) + (0 if training is None else training.flops)
    if not flops:
        return {}
    from ligo_convert.cli.expected_time import expected_seconds

    found = expected_seconds(flops, threads=plan.threads)
    return {} if found is None else {"time": f"about {duration(found[0])} to {duration(found[1])} on this processor"}


def _next_command(plan: Plan, training: TrainPlan | None) -> str:
    """Return the command that carries out a plan."""
    # A recipe with both sections may mean either: its fit belongs to `run`.
    trains = training is not None and (plan.recipe.trains or plan.recipe.fit is None or not plan.asked)
    recipe = os.path.relpath(plan.recipe.path)
    if recipe.startswith(".."):
        # That of an example, or a path that is clearer from the root.
        recipe = str(plan.recipe.path)
    return f"ligo-convert {'train' if trains else 'run'} {shlex.quote(recipe)}"


def _training_pairs(training: TrainPlan) -> dict[str, object]:
    """Return the lines of a plan about its training."""
    found = training.json()
    rate = f"{found['optimizer']}, peak rate {found['learning_rate']:g}, {found['warmup_steps']} steps of warmup"
    shape = "cosine" if found["decay_steps"] is None else f"decay in the last {found['decay_steps']} steps"
    pairs: dict[str, object] = {
        "train": f"from {'random weights' if training.draws else 'the source'}: {found['steps']:,} steps, "
        f"{amount(found['tokens'])} tokens, {flops(found['flops'])}",
        "optimizer": f"{rate}, {shape}",
    }
    for number, growth in enumerate(found["growths"], start=1):
        sizes = ", ".join(f"{axis} {growth['from'][axis]} -> {size}" for axis, size in growth["to"].items())
        pairs[f"growth {number}"] = (
            f"after {growth['step']:,} steps: {sizes}; {growth['width']}, {growth['depth']}, {growth['state']}"
        )
    return pairs


def _add_side_files(pairs: dict[str, object], found: Mapping[str, Any]) -> None:
    """Add what becomes of the files beside the weights to the lines of a report."""
    if found["carried"]:
        pairs["carried"] = some(found["carried"], 12)
    pairs["rewritten"] = some(found["rewritten"], 12)
    lines = [f"{item['path']}: {item['reason']}" for item in found["left_behind"]]
    if len(lines) > _LEFT_SHOWN:
        lines[_LEFT_SHOWN:] = [f"{len(lines) - _LEFT_SHOWN} more: --json and the model card name them"]
    for number, line in enumerate(lines):
        pairs["left behind" if not number else " " * len(pairs)] = line


# How models are run to measure preservation.
_MEASURED = {
    "in memory": "with source and target in memory",
    "streamed": "one weight at a time, because source and target do not fit in memory",
}

# What each kind of entry means for training, in the order of the screen.
_SYMMETRY = {
    "twins": "equal entries get equal gradients and stay equal",
    "dead": "entries of zeros get no gradient",
    "steep": "queries of zeros in front of a norm get gradients of 1/sqrt(epsilon)",
    "parted": "signs drawn in silent layers, so that copies differ",
}


def _symmetry_pairs(symmetry: Mapping[str, Any]) -> dict[str, object]:
    """Return one line for every kind of entry that a plan has."""
    pairs: dict[str, object] = {}
    for kind, meaning in _SYMMETRY.items():
        axes = ", ".join(f"{axis} {found['entries']} of {found['of']}" for axis, found in symmetry[kind].items())
        if axes:
            pairs[kind] = f"{axes}: {meaning}"
    return pairs


def run_report(outcome: ConversionResult) -> None:
    """Print the losses of a run, its preservation and the place of its output."""
    console, metrics = out_console(), outcome.metrics
    losses = metrics["loss"]
    if losses["initial"] is not None:
        from ligo_convert.outputs.card import LOSSES

        what, unit = LOSSES[metrics["task"]]
        right = metrics["accuracy"]
        judged = ("accuracy",) if right["initial"] is not None else ()
        table = make_table(
            f"{what}, {unit}, held out", "model", "loss", "difference to source", *judged, right=(1, 2, 3)
        )
        names = {
            "source": "source",
            "random_target": "random target",
            "initial": "initial operator",
            "fitted": "fitted operator",
        }
        for key, name in names.items():
            if losses.get(key) is not None:
                known = key != "source" and losses["source"] is not None
                apart = f"{losses[key] - losses['source']:+.4f}" if known else ""
                style = "bold" if key == "fitted" else ""
                share = right.get(key)
                accuracy = (("" if share is None else percent(share)),) if judged else ()
                table.add_row(Text(name, style=style), Text(f"{losses[key]:.4f}", style=style), apart, *accuracy)
        console.print(table)
        console.print()
    kept = metrics["preservation"]
    pairs: dict[str, object] = {
        "output": outcome.out,
        "parameters": f"{amount(metrics['parameters']['source'])} -> {amount(metrics['parameters']['target'])}",
    }
    pairs |= preservation_lines(kept, fitted=bool((metrics.get("fit") or {}).get("best_step")))
    if metrics.get("fit"):
        fit = metrics["fit"]
        best = (
            f"best at step {fit['best_step']}"
            if fit["best_step"]
            else "no step beat the initial operator, which is kept"
        )
        pairs["fit"] = f"{fit['steps']} steps, {best}, {flops(metrics['flops']['fit'])}"
        pairs["plot"] = f"{outcome.out}/ligo/fit.png"
    if metrics.get("files"):
        _add_side_files(pairs, metrics["files"])
    checks = metrics.get("verification")
    if checks:
        loaded = f", loads {_as_class(checks['loaded'])}" if checks.get("loaded") else ""
        pairs["verified"] = f"{checks['tensors']} tensors, {_finite(checks)}{loaded}"
    seconds = metrics.get("seconds")
    if seconds:
        pairs["seconds"] = ", ".join(f"{key} {value:.1f}" for key, value in seconds.items())
        pairs["peak memory"] = size(metrics["peak_rss_bytes"])
    make_pairs(console, "", pairs)
    print_loading(console, outcome.out)


def print_loading(console: Console, out: Path) -> None:
    """Print how to load an output, and what to do with it next."""
    from ligo_convert.checkpoints.files import PROCESSOR
    from ligo_convert.outputs.card_training import has_tokenizer
    from ligo_convert.outputs.usage import family_of_output, loading_lines

    names = [path.name for path in out.iterdir()]
    place = str(out) if out.is_absolute() else f"./{out}"
    console.print("\nLoad it in Python:", style="bold")
    for line in loading_lines(
        family_of_output(out), place, tokenizer=has_tokenizer(names), processor=PROCESSOR in names
    ):
        console.print(Text(f"  {line}" if line else ""))
    console.print("\nNext:", style="bold")
    console.print(Text(f"  train it: {printable(out)}/README.md has settings to start from"))
    console.print(Text(f"  ligo-convert verify {shlex.quote(printable(out))} --load"))


def _as_class(loaded: Mapping[str, Any]) -> str:
    streamed = "; one weight at a time, because it does not fit in memory" if loaded.get("method") == "streamed" else ""
    return f"as {loaded['class']} without missing, unexpected or mismatched keys{streamed}"


def preservation_lines(kept: Mapping[str, Any], *, fitted: bool) -> dict[str, object]:
    """Return the lines on preservation: the verdict, how it was measured, and what the stored dtype costs.

    Args:
        kept: `preservation` of the metrics.
        fitted: whether the output comes from a fitted operator, which the verdict is not about.
    """
    if kept["verdict"] is None:
        planned = f"{kept['planned']} by construction; " if kept.get("planned") else ""
        return {"preservation": f"{planned}not measured: {kept.get('unmeasured') or 'no model was run'}"}
    name = "preservation, initial operator" if fitted else "preservation"
    by_measure = " (measured; not exact by construction)" if kept["verdict"] == "near" else ""
    unit = "images" if kept.get("images") else "tokens"
    how = f"{kept[unit]:,} {'random ' if kept.get('inputs') == 'random' else 'held-out '}{unit}, {kept.get('dtype')}"
    how += ", one weight at a time" if kept.get("method") == "streamed" else ""
    lines: dict[str, object] = {
        name: f"{kept['verdict']}{by_measure}: {_differences(kept, kept['compared'])} ({how})",
    }
    cost = kept.get("rounding")
    if cost:
        lines[f"stored as {cost['dtype']}"] = f"a further difference: {_differences(cost, kept['compared'])}"
    return lines


def _differences(figures: Mapping[str, Any], compared: str) -> str:
    loss = figures["loss_difference"]
    return f"{compared} differ by at most {figures['max_logit_difference']:.2e}" + (
        "" if loss is None else f", the loss by {loss:+.2e}"
    )


def fit_report(figures: Mapping[str, Any]) -> None:
    """Print the figures of `ligo-convert fit`."""
    losses = figures["loss"]
    make_pairs(
        out_console(),
        "",
        {
            "operator": figures["operator"],
            "family": figures["family"],
            "held-out loss": ", ".join(f"{key} {value:.4f}" for key, value in losses.items() if value is not None),
            "best step": figures["fit"]["best_step"],
        },
    )


def _finite(checks: Mapping[str, Any]) -> str:
    return "all finite" if checks["finite"] else "some values NaN or infinite, as the recipe allows"


def train_report(outcome: ConversionResult) -> None:
    """Print the losses of a training, where the model grew, and the place of its output."""
    from ligo_convert.outputs.card import LOSSES

    console, metrics = out_console(), outcome.metrics
    what, unit = LOSSES[metrics["task"]]
    if metrics["growths"]:
        rows = [
            [
                f"{growth['step']:,}",
                ", ".join(f"{axis} {growth['from'][axis]} -> {size}" for axis, size in growth["to"].items()),
                *(f"{growth[key]:.4f}" for key in ("loss_before", "loss_after")),
            ]
            for growth in metrics["growths"]
        ]
        print_table(console, "growth", ("step", "sizes", "loss before", "loss after"), rows, right=(0, 2, 3))
        console.print()
    loss, parameters = metrics["loss"], metrics["parameters"]
    pairs: dict[str, object] = {
        "parameters": f"{amount(parameters['source'])} -> {amount(parameters['target'])}",
        "trained": f"{metrics['steps']:,} steps, {amount(metrics['tokens'])} tokens, {flops(metrics['flops'])}",
        "loss": f"{what.lower()}, {unit}",
        "  training": f"{loss['first']:.4f} -> {loss['last']:.4f}",
        "  validation": f"{loss['validation']:.4f}",
        "  test": f"{loss['test']:.4f}",
        "seconds": ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in metrics["seconds"].items()),
        "output": str(outcome.out) if outcome.changed else f"{outcome.out} (complete before)",
        "next": f"ligo-convert verify {outcome.out} --load",
    }
    make_pairs(console, "", pairs)


def verify_report(report: Mapping[str, Any]) -> None:
    """Print what `verify` checked."""
    pairs: dict[str, object] = {
        "output": report["out"],
        "digests": f"{report['files']} files match",
        "weights": f"{report['weights']['tensors']} tensors match the {report['family']} table, {_finite(report['weights'])}",
    }
    if "derived" in report:
        derived = report["derived"]
        pairs["derived"] = (
            f"{derived['tensors']} tensors grown again from {derived['source']}, {derived['identical']} of them identical bit for bit;"
            f" {derived['files']} carried files as their source gives them"
            + (f", and {derived['training']} files of its training's state" if "training" in derived else "")
        )
    if "loaded" in report:
        pairs["loaded"] = _as_class(report["loaded"])
    make_pairs(out_console(), "", pairs)


def contents_report(bundle: Bundle, *, console: Console | None = None) -> None:
    """Print the files to publish, with their sizes."""
    console = console or out_console()
    table = make_table(f"{printable(bundle.directory)}, under {bundle.license}", "file", "size", right=(1,))
    for item in bundle.files.values():
        table.add_row(text_of(item.name), size(item.nbytes))
    table.add_row(Text("total", style="dim"), size(bundle.nbytes))
    console.print(table)


def foreseen_report(bundle: Bundle, foreseen: Mapping[str, Any]) -> None:
    """Print what publishing would upload and change."""
    contents_report(bundle)
    if foreseen["changed"] is None:
        state = "unknown: the Hub was not contacted"
    elif not foreseen["exists"]:
        state = "a repository would be created"
    elif not foreseen["changed"]:
        state = "up to date; nothing would be uploaded"
    else:
        state = "it would be updated" if foreseen["revision"] else "a pull request would be opened"
    pairs: dict[str, object] = {
        "repository": foreseen["repo"],
        "pull request": foreseen["pull_request"],
        "revision": foreseen["revision"],
        "tag": foreseen["tag"],
        "readable by": "its members" if foreseen["private"] else "everyone",
        "change": state,
        "deleted": some(foreseen["removed"] or (), _FILES) or None,
    }
    make_pairs(out_console(), "", {key: value for key, value in pairs.items() if value is not None})


def publish_report(published: PublishResult) -> None:
    """Print where an output was published, and who can read it."""
    bundle = published.bundle
    pairs: dict[str, object] = {
        "repository": published.url,
        "pull request": published.pull_request,
        "revision": f"{published.revision} at {published.commit}",
        "tag": published.tag,
        "readable by": "its members" if published.private else "everyone",
        "licence": bundle.license,
        "files": f"{len(bundle.files)}, {size(bundle.nbytes)}, every digest verified",
        "deleted": some(published.removed, _FILES) or None,
        "": None if published.changed else "already up to date; nothing was uploaded",
    }
    make_pairs(out_console(), "", {key: value for key, value in pairs.items() if value is not None})


def import_report(report: Mapping[str, Any]) -> None:
    """Print what was imported, what was left out, and what to do next."""
    sources = report["sources"]
    left_out = [name for source in sources for name in source["left_out"]]
    chosen = sorted({".".join(source["key"]) for source in sources} - {""})
    pairs: dict[str, object] = {
        "directory": report["out"],
        "read from": some([source["file"] for source in sources], _FILES),
        "weights under": some(chosen) or None,
        "tensors": f"{report['tensors']}, {size(report['bytes'])}",
        "renamed": f"{report['renamed']} (wrappers taken off)" if report["renamed"] else None,
        "left out": some(left_out, _FILES) or None,
        "left behind": some([entry["path"] for entry in report["left_behind"]], _FILES) or None,
        "sandbox": report["sandbox"],
        "next": f"ligo-convert inspect {report['out']}",
    }
    make_pairs(out_console(), "", {key: value for key, value in pairs.items() if value is not None})


def families_report(found: Sequence[Mapping[str, str]]) -> None:
    """Print one line for each family; in a narrow terminal without the norms."""
    columns = ("name", "architecture", "task", "norms")
    rows = [[one[column] for column in columns] for one in found]
    console = out_console()
    print_lines(console, columns, rows, spare="norms")
    console.print()
    console.print("`ligo-convert describe NAME` shows the tensors and what grows.", soft_wrap=True)


# What to try first -> why.
_CHOICES = {
    "lemon + identity": "they keep the function at any ratio (BERT, RoBERTa: whole multiples): start here",
    "mean-preserving + identity": "the nearest for other ratios of BERT and RoBERTa",
    "lemon + interpolate": "worth a trial if the source was trained briefly",
    "copy": "as width if only the depth grows, as depth if only the width grows",
}
# Axis of a method -> title of its section.
_METHOD_SECTIONS = {
    "width": "Width methods: growth.width",
    "depth": "Depth methods: growth.depth",
    "compare": "Methods of `compare` and `choose`",
    "option": "Options of these methods, as in lemon+fit",
    "strategy": "Training strategies that these methods use",
}

_KINDS = {
    "width": "a width method",
    "depth": "a depth method",
    "compare": "a method of `compare`",
    "option": "an option of methods",
    "strategy": "a training strategy",
}


def methods_report(found: Sequence[Mapping[str, str]]) -> None:
    """Print the methods in sections, with a line about each, and which to choose."""
    console = out_console()
    print_table(console, "Which to choose (width + depth)", ("", ""), list(_CHOICES.items()), heading=False)
    for axis, title in _METHOD_SECTIONS.items():
        own = [entry for entry in found if entry["axis"] == axis]
        keeps = axis in ("width", "depth")
        rows = [(entry["name"], *([entry["keeps the function"]] if keeps else []), entry["summary"]) for entry in own]
        console.print()
        columns = ("name", *(["exact"] if keeps else []), "what it does")
        print_table(console, title, columns, rows)
    console.print("\n`ligo-convert methods NAME` prints cost and paper.", markup=False)


def method_report(found: Sequence[Mapping[str, str]]) -> None:
    """Print everything about the methods of one name."""
    console = out_console()
    for number, entry in enumerate(found):
        if number:
            console.print()
        make_pairs(
            console,
            f"{entry['name']}, {_KINDS[entry['axis']]}",
            {
                "what it does": entry["summary"],
                "keeps the function": entry["keeps the function"],
                "cost": entry["cost"],
                "paper": entry["paper"],
            },
        )


def describe_report(found: Mapping[str, Any]) -> None:
    """Print the axes, streams and rows of a family."""
    console = out_console()
    console.print(
        Text(
            f"{found['family']}: {found['architecture']}, {found['parameters']:,} parameters at these sizes",
            style="bold",
        )
    )
    make_pairs(console, "", {"norms": found["norms"], "grows": ", ".join(found["grows"])})
    console.print()
    for title, columns in (("axes", ("axis", "size", "config", "note")), ("streams", ("stream", "size", "product"))):
        table = make_table(title, *columns)
        for row in found[title]:
            table.add_row(*(text_of(row[column]) for column in columns))
        console.print(table)
        console.print()
    rows = [(row["pattern"], row["layout"], "x".join(map(str, row["shape"])), row["note"]) for row in found["rows"]]
    print_records(console, "rows", ("pattern", "layout", "shape", "note"), rows)

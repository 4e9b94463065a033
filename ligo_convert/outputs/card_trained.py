"""Write the model card of a trained output: how the model was trained, where it grew, what it cost.

Input: the `Record` of a training and the sizes of the other files. Output: Markdown, as `outputs.card` writes it for a growth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ligo_convert.families.registry import FAMILIES
from ligo_convert.outputs.card import (
    FIGURE,
    LOSSES,
    assembled,
    citations,
    described_source,
    files_of_source,
    licence,
    loading,
    number,
    size_table,
)
from ligo_convert.outputs.card_training import family_of_record
from ligo_convert.outputs.markdown import code, prose, table
from ligo_convert.outputs.provenance import Record


def trained_card(record: Record, *, files: Mapping[str, int], figure: bool) -> str:
    """Return the text of README.md for the output of a training. Raises LigoError if it would contain something private.

    Args:
        record: the record of the training.
        files: the other files in the directory, name -> size in bytes.
        figure: whether the plot of the training is among them.
    """
    sections = (
        _opening(record),
        size_table(record),
        _training(record),
        _growths(record),
        _losses(record, figure=figure),
        loading(record, files),
        files_of_source(record),
        _limits(),
        _provenance(record, files),
        licence(record),
        citations(record),
    )
    return assembled(record, sections)


def _opening(record: Record) -> Iterator[str]:
    metrics, name = record.metrics, record.source_name.rpartition("/")[2]
    drawn = metrics["start"] == "drawn weights"
    yield "# A model grown in training" if record.source["pretrained_here"] else f"# {prose(name)}, trained further"
    yield ""
    start = "random weights" if drawn else described_source(record)
    parameters = metrics["parameters"]
    yield (
        f"A {FAMILIES[record.family].model_type} model with {parameters['target']:,} parameters, trained for {metrics['steps']:,} steps "
        f"on {metrics['tokens']:,} tokens. The training started from {start}, with {parameters['source']:,} parameters."
    )


def _training(record: Record) -> Iterator[str]:
    settings, metrics = record.recipe["train"], record.metrics
    yield "## Training"
    yield ""
    shape = (
        "cosine" if settings["schedule"] == "cosine" else f"constant, linear decay in the last {settings['decay']:.0%}"
    )
    warmup = settings["warmup_steps"]
    examples = (
        "images"
        if family_of_record(record).reads == "images"
        else f"sequences of {settings['sequence_length']:,} tokens"
    )
    rows = [
        ("optimizer", code(settings["optimizer"])),
        ("peak learning rate", number(settings["learning_rate"])),
        ("schedule", f"{shape}; {warmup:,} step{'' if warmup == 1 else 's'} of warmup"),
        ("weight decay of matrices", number(settings["weight_decay"])),
        ("steps", f"{metrics['steps']:,}"),
        ("batch", f"{settings['batch_size']:,} {examples}"),
        ("seed", f"{settings['seed']}"),
        ("precision", code(metrics["precision"])),
        ("processes", f"{metrics['processes']}"),
        ("FLOPs", number(float(metrics["flops"]))),
    ]
    yield from table(("", "value"), rows)


def _growths(record: Record) -> Iterator[str]:
    growths: list[Mapping[str, Any]] = record.metrics["growths"]
    if not growths:
        return
    yield "## Growth"
    yield ""
    rows = [
        (
            f"{growth['step']:,}",
            ", ".join(f"{code(axis)} {growth['from'][axis]} to {growth['to'][axis]}" for axis in growth["to"]),
            f"{code(growth['width'])}, {code(growth['depth'])}, {code(growth['state'])}",
            number(growth["loss_before"]),
            number(growth["loss_after"]),
        )
        for growth in growths
    ]
    head = ("step", "sizes", "width, depth, optimizer's state", "loss before", "loss after")
    yield from table(head, rows, text=(1, 2))
    yield ""
    yield "Losses are those of the validation split, in the step before and after the growth."


def _losses(record: Record, *, figure: bool) -> Iterator[str]:
    loss = record.metrics["loss"]
    what, per = LOSSES[family_of_record(record).task]
    yield "## Loss"
    yield ""
    rows = [
        ("first training batch", number(loss["first"])),
        ("last training batch", number(loss["last"])),
        ("validation split", number(loss["validation"])),
        ("test split", number(loss["test"])),
    ]
    yield from table((what, per), rows)
    if figure:
        yield ""
        yield f"![Loss by step]({FIGURE})"


def _limits() -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield "- The model was not evaluated on any benchmark."
    yield "- Figures hold for the data they were measured on. Their last digits depend on the processor."


def _provenance(record: Record, files: Mapping[str, int]) -> Iterator[str]:
    took = ", ".join(f"{stage} {number(float(value))} s" for stage, value in record.metrics["seconds"].items())
    yield "## Provenance"
    yield ""
    yield "`ligo/SHA256SUMS` lists the SHA-256 of every file. `ligo/provenance.json` records the inputs, the recipe and the software."
    yield "Neither file is signed."
    yield "`ligo/training_state.safetensors` holds the optimizer's state, with which another training goes on."
    yield ""
    yield "```sh"
    yield "# check that no file changed, and load the model"
    yield "ligo-convert verify . --load"
    yield "```"
    yield ""
    rows = [("recipe", code(record.recipe_digest))]
    if record.data is not None:
        rows.append(("data", code(record.data["digest"])))
    rows += [(f"source, {code(name)}", code(digest)) for name, digest in sorted(record.source["files"].items())]
    yield from table(("", "SHA-256"), rows)
    yield ""
    yield from table(("file", "bytes"), [(code(name), f"{size:,}") for name, size in sorted(files.items())])
    yield ""
    versions = ", ".join(f"{prose(name)} {prose(version)}" for name, version in sorted(record.versions.items()))
    yield f"Versions: {versions}."
    yield f"Made {record.finished} ({took}; peak memory {record.metrics['peak_rss_bytes'] / 1e9:.2f} GB)."

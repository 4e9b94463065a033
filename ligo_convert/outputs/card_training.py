"""Write the section of the model card on further training: starting hyperparameters, each with its origin."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ligo_convert.checkpoints.files import SENTENCEPIECE_FILES, TOKENIZER_FILES, VOCABULARY_FILES
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import Family, Training
from ligo_convert.outputs.layout import NEW_PARAMETERS
from ligo_convert.outputs.markdown import code, linked, plain_table
from ligo_convert.outputs.provenance import Record


def family_of_record(record: Record) -> Family:
    """Return the family for the model class that the output directory contains."""
    return FAMILIES[record.family].for_architecture(record.operator["head"])


def has_tokenizer(files: Collection[str]) -> bool:
    """Return True if the file names include a complete tokenizer."""
    complete_sets = (*VOCABULARY_FILES, *((name,) for name in SENTENCEPIECE_FILES))
    return any(set(names) <= set(files) for names in complete_sets)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The best peak learning rates in one comparison of docs/results/results.md.

    Attributes:
        model: the architecture compared.
        parameters: size of the target.
        tried: all peak learning rates tried.
        scratch: the best rate for training from scratch.
        grown: the best rate for grown models.
        note: a limitation of these figures, for the reader of a card.
        batch: the batch of the comparison's recipe.
    """

    model: str
    parameters: int
    tried: tuple[float, ...]
    scratch: float
    grown: float
    note: str
    batch: str = "32 sequences of 64 tokens"

    @property
    def training(self) -> Training:
        """Return the run from scratch in the form in which families list the runs of papers."""
        return Training(
            parameters=self.parameters,
            rate=self.scratch,
            batch=self.batch,
            warmup="a fiftieth of the steps",
            decay=0.1,
            paper=f"the comparison with {self.model} in ligo-convert's docs/results/results.md",
        )


MEASURED = {
    "causal-lm": Measured(
        model="GPT-2",
        parameters=554_240,
        tried=(0.001, 0.003, 0.009),
        scratch=0.009,
        grown=0.003,
        note="0.009 was the highest rate tried; over the whole budget it was also better for a grown model, by 0.01 nats",
    ),
    "masked-lm": Measured(
        model="BERT",
        parameters=396_430,
        tried=(0.001, 0.003, 0.009),
        scratch=0.001,
        grown=0.001,
        note="0.001 was the lowest rate tried; from scratch, 0.0003 was tried separately and was worse",
    ),
    "image-classification": Measured(
        model="CaiT",
        parameters=204_874,
        tried=(0.001, 0.003, 0.009),
        scratch=0.001,
        grown=0.001,
        note="0.001 was the lowest rate tried; from scratch, 0.0003 was tried separately and was worse",
        batch="32 images",
    ),
}

# How the LiGO paper trains its grown models (arXiv:2303.00980): peak rate, batch, warmup.
_LIGO_PAPER = {
    "bert": "2e-04, 256 sequences of 128 tokens, 10,000 of 400,000 steps of warmup",
    "roberta": "8e-04, 1,024 sequences of 128 tokens, 10,000 of 400,000 steps of warmup",
}


def training_advice(record: Record, files: Collection[str]) -> Iterator[str]:
    """Yield the lines of the section: hyperparameters to start a search from, with the origin of each figure."""
    family, measured = family_of_record(record), MEASURED.get(family_of_record(record).task)
    size = record.metrics["parameters"]["target"]
    known = (*family.trained, *((measured.training,) if measured is not None else ()))
    # Good learning rates fall roughly with the logarithm of the size, so sizes are compared by their ratio.
    nearest = min(known, key=lambda training: abs(math.log(training.parameters / size)), default=None)
    yield "## Further training"
    yield ""
    yield "These values were not tried on this model. Use them as the centre of your own search, a factor of three up and down."
    yield ""
    along = "`run --with-optimizer` takes the moments along, where the source is a checkpoint of a training"
    rows = [("optimizer", _optimizer(nearest), along)]
    if nearest is not None:
        rows.append(("peak learning rate", *_rate(nearest, measured)))
        rows.append(
            (
                "warmup",
                nearest.warmup,
                f"as in training from scratch: {linked(nearest.paper)}; the optimizer's moments start at zero",
            )
        )
    rows.append(
        ("schedule", "constant at the peak, then linear to 0 in the last fifth of the steps", _schedule(measured))
    )
    if family.name in _LIGO_PAPER:
        rows.append(("for comparison", _LIGO_PAPER[family.name], "the LiGO paper's training of grown models"))
    yield from plain_table(("", "start with", "origin"), rows)
    yield ""
    yield "- If you know the last learning rate of the source's training, do not start above it: a larger rate destroys preserved function."
    if NEW_PARAMETERS in files:
        yield f"- {code(NEW_PARAMETERS)} lists new and old parameters, for different learning rates or to freeze the old ones."
    yield f"- {vocabulary_advice(record, files)}"
    yield "- To judge the result, compare its final loss with that of a model trained from scratch with the same budget."


def _optimizer(nearest: Training | None) -> str:
    return "AdamW with a new state" + (f", weight decay {nearest.decay:g}" if nearest is not None else "")


def _rate(nearest: Training, measured: Measured | None) -> tuple[str, str]:
    scratch = f"{code(f'{nearest.rate:.0e}')} from scratch with {_rounded(nearest.parameters)} parameters and batches of {nearest.batch}"
    why = f"{scratch} ({linked(nearest.paper)})"
    if measured is None:
        return (
            f"at most {code(f'{nearest.rate:.0e}')}",
            f"{why}; the best rate for grown models of this kind was not measured",
        )
    ratio = measured.grown / measured.scratch
    tried = ", ".join(f"{rate:g}" for rate in measured.tried)
    best = (
        f"in short runs with the rates {tried} the best was {measured.grown:g} for grown models and {measured.scratch:g} from scratch "
        f"({measured.model}, {_rounded(measured.parameters)} parameters, ligo-convert's docs/results/results.md; {measured.note})"
    )
    return code(f"{nearest.rate * ratio:.0e}"), f"{why}, times {ratio:.2g}: {best}"


def _rounded(count: float) -> str:
    """Format a number of parameters with three significant digits.

    >>> _rounded(554_240), _rounded(125e6), _rounded(1.3e9)
    ('554K', '125M', '1.3B')
    """
    unit, suffix = next(
        (unit, suffix) for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, "")) if count >= unit
    )
    return f"{count / unit:.3g}{suffix}"


def _schedule(measured: Measured | None) -> str:
    name = "warmup-stable-decay ([arXiv:2404.06395](https://arxiv.org/abs/2404.06395))"
    if measured is None:
        return f"{name}; for this kind of model it was not compared with other schedules"
    return f"{name} was better than cosine for {measured.model} trained from scratch (ligo-convert's docs/results/results.md)"


def vocabulary_advice(record: Record, files: Collection[str]) -> str:
    """Return a sentence on how inputs must be prepared for the model."""
    if family_of_record(record).library == "timm":
        if set(files) & set(TOKENIZER_FILES):
            return "Prepare images as for the source, according to the preprocessor files in this directory."
        return "Prepare images as for the source: the same size, mean and standard deviation."
    if has_tokenizer(files):
        return "Use the tokenizer in this directory, which is the source's, and data similar to the source's."
    return "This directory has no tokenizer, because the source has none. Token ids have the same meaning as in the source."

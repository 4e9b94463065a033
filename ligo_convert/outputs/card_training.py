"""TODO: one sentence."""

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
    """The family, narrowed to the class that was written."""
    return FAMILIES[record.family].for_architecture(record.operator["head"])


def has_tokenizer(files: Collection[str]) -> bool:
    wanted = (*VOCABULARY_FILES, *((name,) for name in SENTENCEPIECE_FILES))
    return any(set(names) <= set(files) for names in wanted)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Which peak rates did best in a comparison (docs/results/results.md), of those tried: from scratch, and for what began from the source.

    `beside`: what has to be known of them. Batch, warmup and decay are those of the comparison's recipe.
    """

    model: str
    parameters: int
    tried: tuple[float, ...]
    scratch: float
    grown: float
    beside: str
    batch: str = "32 sequences of 64 tokens"

    @property
    def training(self) -> Training:
        """Its run from scratch, as a paper's."""
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
        beside="0.009 was the highest tried; over the whole budget it ended a hundredth of a nat lower for a grown one, too",
    ),
    "masked-lm": Measured(
        model="BERT",
        parameters=396_430,
        tried=(0.001, 0.003, 0.009),
        scratch=0.001,
        grown=0.001,
        beside="0.001 was the lowest tried; from scratch, 0.0003 was tried apart and ended higher",
    ),
    "image-classification": Measured(
        model="CaiT",
        parameters=204_874,
        tried=(0.001, 0.003, 0.009),
        scratch=0.001,
        grown=0.001,
        beside="0.001 was the lowest tried; from scratch, 0.0003 was tried apart and ended higher",
        batch="32 images",
    ),
}

# At what the LiGO paper trains what it has grown (arXiv:2303.00980).
_OF_LIGO = {
    "bert": "2e-04, 256 sequences of 128 tokens, 10,000 of 400,000 steps of warmup",
    "roberta": "8e-04, 1,024 sequences of 128 tokens, 10,000 of 400,000 steps of warmup",
}


def training_advice(record: Record, files: Collection[str]) -> Iterator[str]:
    """A place to begin from: every figure with what it is from."""
    family, measured = family_of_record(record), MEASURED.get(family_of_record(record).task)
    size = record.metrics["parameters"]["target"]
    known = (*family.trained, *((measured.training,) if measured is not None else ()))
    # Rates fall by the logarithm of the size, about.
    nearest = min(known, key=lambda training: abs(math.log(training.parameters / size)), default=None)
    yield "## How to go on training"
    yield ""
    yield "Nothing of this was tried on this model: it is where to begin a search of your own, a factor of three up and down."
    yield ""
    rows = [("optimizer", _optimizer(nearest), "the source's moments do not grow with its weights")]
    if nearest is not None:
        rows.append(("peak learning rate", *_rate(nearest, measured)))
        rows.append(("warmup", nearest.warmup, f"as from scratch: {linked(nearest.paper)}; the moments begin empty"))
    rows.append(("schedule", "hold the peak, then linearly to 0 in the last fifth", _schedule(measured)))
    if family.name in _OF_LIGO:
        rows.append(("beside it", _OF_LIGO[family.name], "at what the LiGO paper trains what it has grown"))
    yield from plain_table(("", "begin with", "why"), rows)
    yield ""
    yield "- If you know at what rate the source was trained last, do not begin above it: a larger one undoes what growth kept."
    if NEW_PARAMETERS in files:
        yield f"- {code(NEW_PARAMETERS)} tells new parameters from old ones: optimizer groups for a rate of their own, or to hold the old."
    yield f"- {vocabulary_advice(record, files)}"
    yield "- Judge it by the loss a budget ends at, beside a model trained from scratch for as much."


def _optimizer(nearest: Training | None) -> str:
    return "AdamW, begun anew" + (f", weight decay {nearest.decay:g}" if nearest is not None else "")


def _rate(nearest: Training, measured: Measured | None) -> tuple[str, str]:
    scratch = f"{code(f'{nearest.rate:.0e}')} from scratch at {_rounded(nearest.parameters)} parameters, in batches of {nearest.batch}"
    why = f"{scratch} ({linked(nearest.paper)})"
    if measured is None:
        return f"at most {code(f'{nearest.rate:.0e}')}", f"{why}; what grown models of this kind want was not measured"
    ratio = measured.grown / measured.scratch
    tried = ", ".join(f"{rate:g}" for rate in measured.tried)
    best = (
        f"of {tried} the best in short runs from grown starts was {measured.grown:g}, and from scratch {measured.scratch:g} "
        f"({measured.model}, {_rounded(measured.parameters)} parameters, ligo-convert's docs/results/results.md; {measured.beside})"
    )
    return code(f"{nearest.rate * ratio:.0e}"), f"{why}, times {ratio:.2g}: {best}"


def _rounded(count: float) -> str:
    """
    >>> _rounded(554_240), _rounded(125e6), _rounded(1.3e9)
    ('554K', '125M', '1.3B')
    """
    unit, suffix = next(
        (unit, suffix) for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, "")) if count >= unit
    )
    return f"{count / unit:.3g}{suffix}"


def _schedule(measured: Measured | None) -> str:
    shape = "warmup-stable-decay ([arXiv:2404.06395](https://arxiv.org/abs/2404.06395))"
    if measured is None:
        return f"{shape}; for this kind of model it was not compared with others"
    return f"{shape} did better than cosine from scratch, in {measured.model} (ligo-convert's docs/results/results.md)"


def vocabulary_advice(record: Record, files: Collection[str]) -> str:
    if family_of_record(record).library == "timm":
        if set(files) & set(TOKENIZER_FILES):
            return "Images are prepared as for the source: the files that say how lie here."
        return "Images are prepared as for the source: size, mean and deviation are its own."
    if has_tokenizer(files):
        return "The vocabulary is the source's, and so is the tokenizer that lies here: take them, and data like the source's."
    return (
        "No tokenizer lies here: its source has none beside its weights. Token ids mean what they mean in the source."
    )

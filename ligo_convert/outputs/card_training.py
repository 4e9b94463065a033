"""Write the section of the model card on further training: starting hyperparameters, each with its origin."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ligo_convert.checkpoints.files import SENTENCEPIECE_FILES, TOKENIZER_FILES, VOCABULARY_FILES
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import Family
from ligo_convert.outputs.advice import advise, scale_of
from ligo_convert.outputs.layout import NEW_PARAMETERS, training_state_name
from ligo_convert.outputs.markdown import code, linked, plain_table
from ligo_convert.outputs.provenance import Record


def family_of_record(record: Record) -> Family:
    """Return the family for the model class that the output directory contains."""
    return FAMILIES[record.family].for_architecture(record.operator["head"])


def has_tokenizer(files: Collection[str]) -> bool:
    """Return True if the file names include a complete tokenizer."""
    complete_sets = (*VOCABULARY_FILES, *((name,) for name in SENTENCEPIECE_FILES))
    return any(set(names) <= set(files) for names in complete_sets)


# The LiGO paper's settings (arXiv:2303.00980): peak rate, batch, warmup. Its code has 2e-4 for RoBERTa, and no warmup for the grown BERT.
_LIGO_PAPER = {
    "bert": "2e-04, 256 sequences of 128 tokens, 10,000 of 400,000 steps of warmup",
    "roberta": "8e-04, 1,024 sequences of 128 tokens, 10,000 of 400,000 steps of warmup",
}


def training_advice(record: Record, files: Collection[str]) -> Iterator[str]:
    """Yield the lines of the section: values to start a search from, with the origin of each figure."""
    family = family_of_record(record)
    rows = advise(
        family,
        record.metrics["parameters"]["target"],
        source_trained_here=record.source["pretrained_here"],
        carries_state=any(training_state_name(name) for name in files),
    )
    yield "## Further training"
    yield ""
    yield (
        "These values were not tried on this model. Use them as the centre of your own search, a factor of three up and down. "
        + scale_of(family)
    )
    yield ""
    lines = [(one.what, one.value, one.origin + (f" ({linked(one.paper)})" if one.paper else "")) for one in rows]
    if family.name in _LIGO_PAPER:
        lines.append(
            ("for comparison", _LIGO_PAPER[family.name], "the LiGO paper's training settings; its code differs in part")
        )
    if lines:
        yield from plain_table(("", "value", "origin"), lines)
        yield ""
    if NEW_PARAMETERS in files:
        yield f"- {code(NEW_PARAMETERS)} lists new and old parameters, for different learning rates or to freeze the old ones."
    yield f"- {vocabulary_advice(record, files)}"
    yield "- To judge the result, compare its final loss with that of a model trained from scratch with the same budget."


def vocabulary_advice(record: Record, files: Collection[str]) -> str:
    """Return a sentence on how inputs must be prepared for the model."""
    if family_of_record(record).reads == "images":
        if set(files) & set(TOKENIZER_FILES):
            return "Prepare images as for the source, according to the preprocessor files in this directory."
        return "Prepare images as for the source: the same size, mean and standard deviation."
    if has_tokenizer(files):
        return "Use the tokenizer in this directory, which is the source's, and data similar to the source's."
    return "This directory has no tokenizer, because the source has none. Token ids have the same meaning as in the source."

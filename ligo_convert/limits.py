"""The largest sizes that this package takes from a config, a recipe or a data file, each with its reason.

A number of a few digits in an untrusted file must not cost minutes or gigabytes. Every such number is compared with this table before
anything is listed, allocated or decoded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One limit.

    Attributes:
        most: the largest value that is accepted.
        what: what is counted, in the plural.
        reason: why real inputs stay below.
    """

    most: int
    what: str
    reason: str

    def __str__(self) -> str:
        return f"at most {self.most:,} {self.what} ({self.reason})"


LAYERS = Limit(most=10_000, what="layers", reason="the deepest published transformers have about 1,000")

AXIS = Limit(most=2**31 - 1, what="entries along an axis", reason="libraries index a dimension with 32 bits")

LABELS = Limit(
    most=100_000, what="classes", reason="config.json names every class, and the largest public label sets have 22,000"
)

TENSORS = Limit(most=200_000, what="tensors", reason="the largest public checkpoints have about 100,000")

PIXELS = Limit(most=89_478_485, what="pixels", reason="the limit from which Pillow warns of a decompression bomb")

VISITS = Limit(
    most=1_000_000, what="entries of folders", reason="a text corpus of more files is stored in fewer, larger ones"
)

TOKENIZER_BYTES = Limit(
    most=128 << 20, what="bytes of a tokenizer file", reason="the largest public ones have 35 million"
)

TOKENIZER_CONFIG_BYTES = Limit(
    most=16 << 20, what="bytes of a tokenizer's settings", reason="the largest public ones have 8 million"
)

TEMPLATE_CHARACTERS = Limit(
    most=256 << 10, what="characters of a chat template", reason="a template is a few pages of text"
)

ADDED_TOKENS = Limit(most=100_000, what="added tokens", reason="the largest public speech vocabularies add 65,000")

SPECIAL_TOKENS = Limit(most=10_000, what="special tokens", reason="transformers compares each with every other one")

TOKENIZER_STEPS = Limit(most=256, what="steps of a tokenizer", reason="public tokenizers have about ten")

TEXT_GROWTH = Limit(
    most=64, what="bytes for one byte of text", reason="a mark for a space, the longest common replacement, has 3"
)

ENTRIES = Limit(most=10_000, what="entries of a manifest", reason="each is planned before the first one runs")

JSON_BRACKETS = Limit(
    most=1_000_000, what="lists and objects in a JSON file", reason="a header of the most tensors has 600,000"
)

RECORD_BYTES = Limit(most=16 << 20, what="bytes of one text of a dataset", reason="a long book has 5 million")

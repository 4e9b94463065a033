"""Refuse tokenizer files that turn a short text into gigabytes, or a short file into minutes.

Input: the JSON files of a tokenizer, as plain data. Output: nothing, or a SourceError.

A tokenizer.json is a small program: its normalisers replace text by text, one after the other, and its post-processor repeats a whole
sequence as often as a template says. The library carries all of it out without a limit, and without a way to interrupt it.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ligo_convert.errors import SourceError
from ligo_convert.limits import ADDED_TOKENS, SPECIAL_TOKENS, TEXT_GROWTH, TOKENIZER_STEPS, Limit

# The parts of a tokenizer.json that every text passes through.
_PIPELINE = ("normalizer", "pre_tokenizer", "post_processor")

# Pieces of one template; public ones have at most five.
_TEMPLATE_PIECES = 32

# Bytes of the longest replacement in the table of a `Precompiled` normaliser. Unicode's own longest has 33.
_PRECOMPILED_BYTES = 256

# Keys of a tokenizer's settings that list tokens.
_TOKEN_LISTS = {
    "added_tokens": ADDED_TOKENS,
    "added_tokens_decoder": ADDED_TOKENS,
    "additional_special_tokens": SPECIAL_TOKENS,
    "extra_special_tokens": SPECIAL_TOKENS,
}


def check_settings(content: Mapping[str, Any], *, where: Path) -> None:
    """Check how many tokens a settings file adds. Raises SourceError."""
    for key, limit in _TOKEN_LISTS.items():
        tokens = content.get(key)
        _hold(len(tokens) if isinstance(tokens, list | dict) else 0, limit, what=key, where=where)


def check_added(content: Mapping[str, Any], *, where: Path) -> None:
    """Check how many tokens an added_tokens.json adds. Raises SourceError."""
    _hold(len(content), ADDED_TOKENS, what="the file", where=where)


def check_pipeline(content: Mapping[str, Any], *, where: Path) -> None:
    """Check a tokenizer.json: the number of its steps, and how much longer they make a text. Raises SourceError."""
    check_settings(content, where=where)
    steps = [step for part in _PIPELINE for step in _steps(content.get(part), where)]
    growth = math.prod(_growth(step) for step in steps)
    _hold(math.ceil(growth), TEXT_GROWTH, what="its replacements make", where=where)
    for step in steps:
        added = step.get("prepend")
        _hold(_bytes(added) if isinstance(added, str) else 0, TEXT_GROWTH, what="prepend adds", where=where)
        for key in ("single", "pair"):
            pieces = step.get(key)
            if isinstance(pieces, list) and len(pieces) > _TEMPLATE_PIECES:
                raise SourceError(
                    f"a template of the post-processor has {len(pieces):,} pieces",
                    where=where,
                    expected=f"at most {_TEMPLATE_PIECES}",
                    hint="name another tokenizer in fit.data.tokenizer",
                )


def _hold(found: int, limit: Limit, *, what: str, where: Path) -> None:
    if found > limit.most:
        raise SourceError(
            f"{what}: too many {limit.what}",
            where=where,
            expected=str(limit),
            found=f"{found:,}",
            hint="name another tokenizer in fit.data.tokenizer",
        )


def _steps(part: object, where: Path) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part of the pipeline, those of sequences within sequences too. Raises SourceError for too many."""
    waiting, count = [part], 0
    while waiting:
        step = waiting.pop()
        count += 1
        if isinstance(step, list):
            _hold(count + len(step), TOKENIZER_STEPS, what="a sequence", where=where)
            waiting += step
        elif isinstance(step, dict):
            yield step
            waiting += [value for key, value in step.items() if key in ("normalizers", "pretokenizers", "processors")]


def _growth(step: Mapping[str, Any]) -> float:
    """Return how many times longer, in bytes, a step can make a text; 1 for steps that add only a bounded factor."""
    content, pattern = step.get("content"), step.get("pattern")
    if isinstance(content, str) and isinstance(pattern, dict):
        text = pattern.get("String")
        # A regular expression may match the empty text, between any two bytes.
        return max(1.0, _bytes(content) / _bytes(text)) if isinstance(text, str) and text else 1.0 + _bytes(content)
    table = step.get("precompiled_charsmap")
    if isinstance(table, str):
        longest = _longest_replacement(table)
        return 1.0 if longest <= _PRECOMPILED_BYTES else float(longest)
    return 1.0


def _longest_replacement(table: str) -> int:
    """Return the bytes of the longest replacement of a SentencePiece table: a length, a trie of that length, texts that end with NUL."""
    try:
        data = base64.b64decode(table)
    except (ValueError, binascii.Error):
        return 0  # the library refuses it
    trie = int.from_bytes(data[:4], "little")
    return max(map(len, data[4 + trie :].split(b"\0")), default=0)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))

"""Python lines that load an output.

Input: an output directory, or the family and class of its model. Output: lines for a model card or the screen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ligo_convert.families.registry import find_family
from ligo_convert.families.schema import Family
from ligo_convert.hub.resolve import read_config


def family_of_output(out: Path) -> Family:
    """Return the family of an output, narrowed to the class of its model, from its config.json."""
    config = read_config(str(out.absolute()), base=out)
    named = config.get("architectures")
    family = find_family(config, where=f"{out}/config.json")
    return family.for_architecture(named[0] if isinstance(named, list) and named else None).for_config(config)


def loading_lines(
    family: Family, place: str, *, tokenizer: bool, processor: bool = False, note: str = ""
) -> Iterator[str]:
    """Yield the Python lines that load a model.

    Args:
        place: the directory.
        tokenizer: whether the directory has one.
        processor: whether the directory has the file of an image processor.
        note: comment on the line that loads the model.
    """
    lines = _LOADING[family.library]
    yield from lines(family, place, tokenizer=tokenizer, processor=processor and family.reads == "images", note=note)


def _load_transformers(family: Family, place: str, *, tokenizer: bool, processor: bool, note: str) -> Iterator[str]:
    options = "".join(f", {name}={value!r}" for name, value in family.chosen.options.items())
    beside = {"tokenizer": "AutoTokenizer"} if tokenizer else {}
    beside |= {"processor": "AutoImageProcessor"} if processor else {}
    yield f"from transformers import {', '.join((*beside.values(), family.auto_class))}"
    yield ""
    note = f"  # {note}" if note else ""
    yield f"model = {family.auto_class}.from_pretrained({json.dumps(place)}{options}){note}"
    for name, loader in beside.items():
        yield f"{name} = {loader}.from_pretrained({json.dumps(place)})"


def _load_timm(family: Family, place: str, *, tokenizer: bool, processor: bool, note: str) -> Iterator[str]:
    yield "import timm"
    yield ""
    options = "".join(f", {name}={value!r}" for name, value in family.chosen.options.items())
    note = f"  # {note}" if note else ""
    yield f"model = timm.create_model({json.dumps(f'local-dir:{place}')}, pretrained=True{options}){note}"


_LOADING = {"transformers": _load_transformers, "timm": _load_timm}

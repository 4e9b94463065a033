"""TODO: one sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, TypeAdapter
from pydantic_core import PydanticCustomError

from ligo_convert.recipes.errors import shown
from ligo_convert.recipes.schema import Config, PublishConfig, Section, Size, Text, whole

ENTRY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """`{from: NAME}`: what another entry of the manifest makes."""

    name: str


def _name(text: str) -> str:
    if not ENTRY_NAME.fullmatch(text) or ".." in text:
        raise PydanticCustomError("recipe", "{text}", {"text": "is no name: give letters, digits, `.`, `_`, `-`"})
    return text


def _place_or_entry(value: object) -> str | Reference:
    if isinstance(value, dict) and set(value) == {"from"} and isinstance(value["from"], str):
        return Reference(name=_name(value["from"]))
    if isinstance(value, str) and value.strip():
        return _PLACE.validate_python(value)
    text = f"should be a place, or {{from: NAME}} of another entry, not {shown(value)}"
    raise PydanticCustomError("recipe", "{text}", {"text": text})


_PLACE: TypeAdapter[str] = TypeAdapter(Text)

Name = Annotated[Text, AfterValidator(_name)]

PlaceOrEntry = Annotated[str | Reference, PlainValidator(_place_or_entry, json_schema_input_type=str)]


def _whole_above_one(value: float) -> float:
    if value > 1 and not value.is_integer():
        # Ray gives a part of one, or several that are whole.
        text = "should be a whole number, or a part of one: 0.5, 1, 2"
        raise PydanticCustomError("recipe", "{text}", {"text": text})
    return value


Amount = Annotated[
    float,
    BeforeValidator(lambda value: float(value) if type(value) is int else value),
    Field(ge=0),
    AfterValidator(_whole_above_one),
]


class Resources(Section):
    """What an entry takes of a machine."""

    cpus: Amount | None = Field(default=None, description="processor cores; default: an even share of them")
    gpus: Amount | None = Field(
        default=None, description="graphics processors, or a part of one, which only Ray gives; default: none"
    )
    memory: Size | None = Field(default=None, description="memory; default: what the entry's plan says")


class EntrySection(Section):
    """A conversion, or several alike."""

    alternatives = ("recipe", "recipes", "operator")
    only_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "set": ("recipe", "recipes"),
        "target": ("recipe", "recipes"),
    }

    name: Name | None = Field(default=None, description="default: the recipe's file name")
    recipe: Text | None = Field(default=None, description="a recipe's file")
    recipes: list[Text] | None = Field(default=None, min_length=1, description="globs of recipes: an entry each")
    operator: PlaceOrEntry | None = Field(
        default=None, description="instead of a recipe: a learned operator's file, or {from: NAME}, applied to `source`"
    )
    source: PlaceOrEntry | None = Field(
        default=None, description="in place of the recipe's: a directory, a Hub id, or {from: NAME}"
    )
    sources: list[Text] | None = Field(default=None, min_length=1, description="globs of directories: an entry each")
    target: Config | None = Field(default=None, description="in place of the recipe's target.config")
    set: dict[str, Any] = Field(default={}, description="recipe keys, dotted, with what replaces them")
    out: Text | None = Field(default=None, description="the output directory; default: named by the entry, in `out`")
    publish: PublishConfig | None = Field(
        default=None, description="where it is published; {name} stands for the entry's name"
    )
    after: list[Name] = Field(default=[], description="entries that come first")
    resources: Resources = Field(default=Resources(), description="what it takes of a machine")


class ManifestSection(Section):
    """Many conversions."""

    version: Annotated[Literal[1], BeforeValidator(whole)] = Field(description="version of the manifest format")
    out: Text | None = Field(default=None, description="a folder for the outputs; default: where each recipe says")
    state: Text | None = Field(
        default=None,
        description="a folder for what is known of the work, shared by all who do it; default: beside `out`",
    )
    set: dict[str, Any] = Field(default={}, description="laid over every recipe; an entry's own `set` goes before it")
    publish: dict[str, Any] | None = Field(default=None, description="of every entry that has none of its own")
    resources: Resources = Field(default=Resources(), description="of every entry, where it says nothing else")
    entries: list[dict[str, Any]] = Field(min_length=1, description="the conversions")

"""Define the sections of a manifest as pydantic models; their descriptions become the tables of docs/guide/batch.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, TypeAdapter
from pydantic_core import PydanticCustomError

from ligo_convert.recipes.errors import shown
from ligo_convert.recipes.schema import MAX_LIST, Config, PublishConfig, Section, Size, Text, whole

ENTRY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """`{from: NAME}`: the output of another entry of the manifest."""

    name: str


def _name(text: str) -> str:
    if not ENTRY_NAME.fullmatch(text) or ".." in text:
        raise PydanticCustomError(
            "recipe", "{text}", {"text": "is not a valid name: use letters, digits, `.`, `_`, `-`"}
        )
    return text


def _path_or_entry(value: object) -> str | Reference:
    if isinstance(value, dict) and set(value) == {"from"} and isinstance(value["from"], str):
        return Reference(name=_name(value["from"]))
    if isinstance(value, str) and value.strip():
        return _PATH.validate_python(value)
    text = f"should be a path, or {{from: NAME}} of another entry, not {shown(value)}"
    raise PydanticCustomError("recipe", "{text}", {"text": text})


_PATH: TypeAdapter[str] = TypeAdapter(Text)

Name = Annotated[Text, AfterValidator(_name)]

PathOrEntry = Annotated[str | Reference, PlainValidator(_path_or_entry, json_schema_input_type=str)]


def _whole_above_one(value: float) -> float:
    if value > 1 and not value.is_integer():
        # Ray shares one GPU among tasks; several GPUs must be whole.
        text = "should be a whole number, or a fraction below 1: 0.5, 1, 2"
        raise PydanticCustomError("recipe", "{text}", {"text": text})
    return value


Amount = Annotated[
    float,
    Field(ge=0),
    BeforeValidator(lambda value: float(value) if type(value) is int else value),
    AfterValidator(_whole_above_one),
]


class Resources(Section):
    """The resources that an entry needs."""

    cpus: Amount | None = Field(default=None, description="processor cores; default: an equal share")
    gpus: Amount | None = Field(default=None, description="GPUs, or a fraction of one with Ray; default: none")
    memory: Size | None = Field(default=None, description="memory; default: as planned")


class EntrySection(Section):
    """A conversion, or several that differ in one thing."""

    alternatives = ("recipe", "recipes", "operator")
    only_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "set": ("recipe", "recipes"),
        "target": ("recipe", "recipes"),
    }

    name: Name | None = Field(default=None, description="default: the recipe's file name")
    recipe: Text | None = Field(default=None, description="recipe file")
    recipes: list[Text] | None = Field(
        default=None, min_length=1, max_length=MAX_LIST, description="globs of recipe files: one entry per file"
    )
    operator: PathOrEntry | None = Field(
        default=None,
        description="instead of a recipe: a learned operator's file, or {from: NAME}, to apply to `source`",
    )
    source: PathOrEntry | None = Field(
        default=None, description="replaces the recipe's source: a directory, a Hub id, or {from: NAME}"
    )
    sources: list[Text] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_LIST,
        description="globs of source directories: one entry per directory",
    )
    target: Config | None = Field(default=None, description="replaces the recipe's target.config")
    set: dict[str, Any] = Field(default={}, description="dotted recipe keys and their values")
    out: Text | None = Field(
        default=None, description="output directory; default: the entry's name, in the manifest's `out`"
    )
    publish: PublishConfig | None = Field(
        default=None, description="where to publish; {name} is replaced with the entry's name"
    )
    after: list[Name] = Field(default=[], description="names of entries to run before this one")
    resources: Resources = Field(default=Resources(), description="resources it needs")


class ManifestSection(Section):
    """A manifest: many conversions."""

    version: Annotated[Literal[1], BeforeValidator(whole)] = Field(description="version of the manifest format")
    out: Text | None = Field(default=None, description="folder of the outputs; default: each recipe's output.dir")
    state: Text | None = Field(
        default=None,
        description="state folder, shared by all processes of the batch; default: beside `out`",
    )
    set: dict[str, Any] = Field(default={}, description="for every recipe; an entry's own `set` takes precedence")
    publish: dict[str, Any] | None = Field(default=None, description="default for every entry")
    resources: Resources = Field(default=Resources(), description="defaults for every entry")
    entries: list[dict[str, Any]] = Field(min_length=1, description="the conversions")

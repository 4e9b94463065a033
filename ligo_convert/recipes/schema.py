"""The sections of a recipe: every key, its type, its bounds, its default and one line saying what it is for.

Plain data in, frozen models out. Nothing here looks at a file: `recipe.py` reads the text, resolves places and turns
what pydantic finds wrong into lines and columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.hub.names import is_hub_id, is_reference, is_repository, is_revision

SCHEDULES = ("stable", "cosine")

SEQUENCE_LENGTH = 128

MAX_COUNT = 2**31 - 1

MAX_SEED = 2**63 - 1

MIN_SHARD_BYTES = 1000

MAX_SHARD_BYTES = 10**15

_UNITS = {
    **{"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
}

_SIZE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?\s*([A-Za-z]+)")


def _fault(text: str) -> PydanticCustomError:
    # Braces are pydantic's placeholders; the text here is final.
    return PydanticCustomError("recipe", "{text}", {"text": text})


def whole(value: object) -> object:
    """`1e2` and `100.0` are whole numbers however they are written; true is none."""
    if isinstance(value, bool):
        raise _fault(f"should be a whole number, not {str(value).lower()}")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _clean(text: str) -> str:
    if not text.strip():
        raise _fault("is empty")
    if any(character < " " or "\x7f" <= character < "\xa0" for character in text):
        raise _fault("holds a control character")
    return text


def _one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in names:
            raise PydanticCustomError("choice", "", {"choices": names})
        return name

    return check


def _hub_id(name: str) -> str:
    if not is_hub_id(name):
        raise _fault("is no Hub id: give `name` or `org/name`")
    return name


def _repo_id(name: str) -> str:
    if not is_repository(name):
        raise _fault("is no repository of the Hub: give `org/name`")
    return name


def _reference(name: str) -> str:
    if not is_reference(name):
        raise _fault("is not a name that the Hub takes for a branch or a tag")
    return name


def _revision(name: str) -> str:
    if not is_revision(name):
        raise _fault("is no branch, tag or commit")
    return name


def _model_type(config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config.get("model_type"), str):
        raise _fault("needs a model_type, such as `model_type: gpt2`")
    return config


def _bytes(value: object) -> object:
    """A size such as `2GB`, `1.5GiB` or a count of bytes, in bytes."""
    number = value
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        unit = {name.lower(): size for name, size in _UNITS.items()}.get(match[3].lower()) if match else None
        if match is None or unit is None:
            raise _fault("is no size: give bytes, or a number with one of " + ", ".join(_UNITS))
        fraction = match[2] or ""
        number = int(match[1] + fraction) * unit // 10 ** len(fraction)
    number = whole(number)
    if isinstance(number, int) and not MIN_SHARD_BYTES <= number <= MAX_SHARD_BYTES:
        raise _fault(f"should be from {MIN_SHARD_BYTES:,} bytes (1KB) to {MAX_SHARD_BYTES:,} bytes")
    return number


def _size_text(number: int) -> int | str:
    """The shortest way to write a size: in the largest decimal unit that divides it."""
    for name in ("TB", "GB", "MB", "KB"):
        if number % _UNITS[name] == 0:
            return f"{number // _UNITS[name]}{name}"
    return number


Text: TypeAlias = Annotated[str, AfterValidator(_clean)]

HubId: TypeAlias = Annotated[str, AfterValidator(_clean), AfterValidator(_hub_id)]

Revision: TypeAlias = Annotated[str, AfterValidator(_clean), AfterValidator(_revision)]

Count: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=1, le=MAX_COUNT)]

# A sequence of one token predicts nothing.
Length: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=2, le=MAX_COUNT)]

CountOrZero: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=0, le=MAX_COUNT)]

Seed: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=0, le=MAX_SEED)]

Rate: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Config: TypeAlias = dict[str, Any]

Size: TypeAlias = Annotated[
    int,
    BeforeValidator(_bytes),
    PlainSerializer(_size_text, return_type=int | str),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["2GB", "500MB", "1GiB"]}),
]


class Section(BaseModel):
    """A mapping of a recipe: unknown keys are errors, nothing is coerced, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # Keys of which exactly one is given. `false` and null are the same as leaving a key out.
    alternatives: ClassVar[tuple[str, ...]] = ()
    # Keys that only go with some of them.
    only_with: ClassVar[dict[str, tuple[str, ...]]] = {}

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        if not self.alternatives:
            return self
        given = self.given
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise _fault(f"give exactly one of {', '.join(self.alternatives)} (found: {found})")
        for key, allowed in self.only_with.items():
            if key in self.model_fields_set and getattr(self, key) is not None and given[0] not in allowed:
                names = " or ".join(name for name in allowed if name in self.alternatives)
                raise _fault(f"{key} goes with {names}, not with {given[0]}")
        return self

    @property
    def given(self) -> tuple[str, ...]:
        """Which of the alternatives are given."""
        return tuple(name for name in self.alternatives if getattr(self, name) not in (None, False))


class PretrainConfig(Section):
    """Train a small source first, where none is at hand."""

    config: Annotated[Config, AfterValidator(_model_type)] = Field(description="the source's config, with model_type")
    steps: Count = Field(description="optimiser steps")
    batch_size: Count = Field(default=16, description="sequences or images a step")
    sequence_length: Length = Field(default=SEQUENCE_LENGTH, description="tokens a sequence; default: the fit's")
    learning_rate: Rate = Field(default=1e-3, description="peak learning rate")
    seed: Seed = Field(default=0, description="seed of the initial weights and of the order of the data")


class SourceConfig(Section):
    """The model to grow."""

    alternatives = ("model", "pretrain")
    only_with: ClassVar[dict[str, tuple[str, ...]]] = {"revision": ("model",), "config": ("model", "config")}

    model: Text | None = Field(default=None, description="a Hub id or a local directory")
    revision: Revision = Field(default="main", description="branch, tag or commit of the Hub; its commit is recorded")
    config: Config | None = Field(
        default=None,
        description="the source's config, to plan where the source is not at hand; checked against the real one",
    )
    pretrain: PretrainConfig | None = Field(default=None, description="instead of model: train a small source first")
    allow_nonfinite: bool = Field(default=False, description="convert weights with NaN or infinity, and record it")

    @property
    def given(self) -> tuple[str, ...]:
        """`model`, `pretrain`, or `config` alone: enough to plan, and to run with a source from the command line."""
        return super().given or (("config",) if self.config is not None else ())


class TargetConfig(Section):
    """The model to grow it into."""

    alternatives = ("config", "model")
    only_with: ClassVar[dict[str, tuple[str, ...]]] = {"revision": ("model",)}

    config: Config | None = Field(default=None, description="keys of the library's own config, over the source's")
    model: Text | None = Field(
        default=None, description="take the config, never the weights, of this model: Hub id, directory or timm name"
    )
    revision: Revision = Field(default="main", description="branch, tag or commit of target.model")
    architecture: Text | None = Field(
        default=None,
        description="the library's class, such as BertForMaskedLM, where it is to have another head than the source; a new head is drawn",
    )


class OperatorConfig(Section):
    """What the learned operator looks like."""

    keying: Literal["source", "target", "shared"] | None = Field(
        default=None,
        description="width maps by source layer (the paper), by target layer (the official code) or one for all; "
        "default: shared",
    )
    tie: Literal["paper"] | None = Field(
        default=None, description="paper: read maps tied to write maps as the paper prints them; implies keying source"
    )

    @model_validator(mode="before")
    @classmethod
    def _tie_implies_source(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("tie") == "paper" and data.get("keying") is None:
            return {**data, "keying": "source"}
        return data

    @model_validator(mode="after")
    def _check_tie(self) -> Self:
        if self.tie == "paper" and self.keying != "source":
            raise _fault(f"tie: paper is keyed by source, not by {self.keying}: leave keying out")
        return self


class GrowthConfig(Section):
    """The start: the operator before any learning."""

    width: Annotated[Text, AfterValidator(_one_of(tuple(WIDTHS)))] = Field(
        description="how widths grow", json_schema_extra={"enum": list(WIDTHS)}
    )
    depth: Annotated[Text, AfterValidator(_one_of(tuple(DEPTHS)))] = Field(
        description="how layers are added", json_schema_extra={"enum": list(DEPTHS)}
    )
    seed: Seed = Field(default=0, description="seed of what is drawn")
    operator: OperatorConfig = Field(default=OperatorConfig(), description="what the learned operator looks like")


class HubDataConfig(Section):
    """A dataset of the Hub."""

    id: HubId = Field(description="the dataset's Hub id")
    name: Text | None = Field(default=None, description="its configuration, where it has several")
    split: Text = Field(default="train", description="its split")
    column: Text = Field(default="text", description="the column that holds the text")
    revision: Revision = Field(default="main", description="branch, tag or commit")


class DataConfig(Section):
    """What the operator learns on."""

    alternatives = ("text", "hub", "images", "stdlib")
    only_with: ClassVar[dict[str, tuple[str, ...]]] = {"tokenizer": ("text", "hub", "stdlib")}

    text: list[Text] | None = Field(
        default=None, min_length=1, description="globs of .txt, .jsonl (`text` field) or .parquet files"
    )
    hub: HubDataConfig | None = Field(default=None, description="a dataset of the Hub")
    images: Text | None = Field(default=None, description="a folder of images, one folder a class")
    stdlib: bool = Field(default=False, description="the source texts of Python's own standard library")
    tokenizer: Text | None = Field(default=None, description="a directory or a Hub id; default: the source's own")


class LearningRateConfig(Section):
    """Peak learning rates."""

    width: Rate = Field(default=3e-5, description="of the width maps")
    depth: Rate = Field(default=1e-2, description="of the depth maps")


class FitConfig(Section):
    """Learning the operator."""

    steps: Count = Field(description="optimiser steps")
    batch_size: Count = Field(default=16, description="sequences or images a step")
    sequence_length: Length = Field(default=SEQUENCE_LENGTH, description="tokens a sequence")
    learning_rate: LearningRateConfig = Field(default=LearningRateConfig(), description="peak learning rates")
    seed: Seed = Field(default=0, description="seed of the order of the data")
    warmup_steps: CountOrZero | None = Field(default=None, description="steps to the peak; default: chosen by the fit")
    weight_decay: Rate = Field(default=0.0, description="decay of the width maps towards the start")
    evaluate_every: Count = Field(default=10, description="steps between losses on the held-out slice")
    heldout_tokens: Count = Field(default=16384, description="tokens of each held-out slice")
    heldout_images: Count = Field(default=512, description="images of each held-out slice")
    micro_batch_size: Count | None = Field(
        default=None, description="sequences at a time, gradients summed; default: what fits"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="precision of the arithmetic; auto: bfloat16 where it is faster"
    )
    data: DataConfig = Field(description="what to learn on")


class CompareConfig(Section):
    """Settings of `ligo-convert compare`. A conversion does not use them."""

    methods: list[Text] | None = Field(
        default=None,
        min_length=1,
        description="names from `ligo-convert methods`; default: all that apply to this source and target",
    )
    steps: Count | None = Field(default=None, description="the budget: steps of training from scratch")
    batch_size: Count | None = Field(
        default=None, description="sequences or images per step; default: `fit.batch_size`"
    )
    learning_rates: list[Rate] = Field(
        default=[1e-3, 2e-3, 4e-3], min_length=1, description="peak learning rates; each method uses its best one"
    )
    schedules: list[Annotated[Text, AfterValidator(_one_of(SCHEDULES))]] = Field(
        default=list(SCHEDULES),
        min_length=1,
        description="learning rate schedules; the best one for scratch is used by all methods",
    )
    tuning_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2,
        description="fraction of the budget for a tuning run; a value from `budget_fractions` lets later runs reuse it",
    )
    budget_fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.2, 0.4, 0.6, 0.8, 1.0],
        min_length=1,
        description="fractions of the budget, ascending, to train a method for until it reaches scratch's final loss",
    )
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.02, description="fraction of the budget in which the learning rate rises to its peak"
    )
    eval_points: Count = Field(default=40, description="number of evaluations in a run of the whole budget")
    seeds: list[Seed] = Field(default=[0], min_length=1, description="each method is trained once per seed")
    layer_drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="+layer-drop: the largest probability of skipping a layer in a step"
    )
    token_drop: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.15, description="+token-drop: fraction of the tokens that skip the middle layers"
    )
    source_flops: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="FLOPs spent on training the source, where `compare` does not train it"
    )


class OutputConfig(Section):
    """What is written, and where."""

    dir: Text = Field(description="the output directory, relative to the working directory")
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = Field(
        default=None, description="of every weight; default: each tensor as the source stores it"
    )
    max_shard_size: Size = Field(default=5 * 10**9, description="the most bytes a file of weights holds; 5GB")


class PublishConfig(Section):
    """Where the result is published."""

    repo: Annotated[str, AfterValidator(_clean), AfterValidator(_repo_id)] = Field(description="org/name on the Hub")
    license: Text | None = Field(default=None, description="licence identifier; default: the source card's")
    public: bool = Field(default=False, description="readable by everyone; private otherwise")
    branch: Annotated[Text, AfterValidator(_reference)] = Field(default="main", description="what people load it from")
    tag: Annotated[Text, AfterValidator(_reference)] | None = Field(default=None, description="put on the commit")
    replace: bool = Field(default=False, description="take away files there that no earlier publication left")

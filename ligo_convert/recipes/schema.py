"""The schema of a recipe: every key with its type, bounds, default and description.

Input: plain data.
Output: frozen models. This module reads no files: `recipe.py` reads the text and resolves paths, `errors.py` locates errors.
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

from ligo_convert.data.augment import AUGMENTATIONS
from ligo_convert.data.masking import PROBABILITY
from ligo_convert.data.records import FORMATS, FormatName
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.state_maps import POLICIES
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.hub.names import is_hub_id, is_reference, is_repository, is_revision

OPTIMIZERS = ("adamw", "muon")

SEQUENCE_LENGTH = 128

MAX_COUNT = 2**31 - 1

MAX_LIST = 1000  # entries of a list of patterns, methods, seeds or rates

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
    """Accept whole numbers in any spelling, such as `1e2` and `100.0`; refuse booleans."""
    if isinstance(value, bool):
        raise _fault(f"should be a whole number, not {str(value).lower()}")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _clean(text: str) -> str:
    if not text.strip():
        raise _fault("is empty")
    if any(character < " " or "\x7f" <= character < "\xa0" for character in text):
        raise _fault("contains a control character")
    return text


def _one_of(names: tuple[str, ...]) -> Callable[[object], object]:
    """Return a check that runs before that for text, so that a list, too, is told the names."""

    def check(name: object) -> object:
        if not isinstance(name, str) or name not in names:
            raise PydanticCustomError("choice", "", {"choices": names})
        return name

    return check


def _hub_id(name: str) -> str:
    if not is_hub_id(name):
        raise _fault("is not a Hub id: give `name` or `org/name`")
    return name


def _repo_id(name: str) -> str:
    if not is_repository(name):
        raise _fault("is not a Hub repository: give `org/name`")
    return name


def _reference(name: str) -> str:
    if not is_reference(name):
        raise _fault("is not a valid branch or tag name on the Hub")
    return name


def _revision(name: str) -> str:
    if not is_revision(name):
        raise _fault("is not a branch, tag or commit")
    return name


def _model_type(config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config.get("model_type"), str):
        raise _fault("needs a model_type, such as `model_type: gpt2`")
    return config


def _bytes(value: object) -> object:
    """Return a size such as `2GB`, `1.5GiB` or a plain number, in bytes."""
    number = value
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        unit = {name.lower(): size for name, size in _UNITS.items()}.get(match[3].lower()) if match else None
        if match is None or unit is None:
            raise _fault("is not a size: give bytes, or a number with one of " + ", ".join(_UNITS))
        fraction = match[2] or ""
        number = int(match[1] + fraction) * unit // 10 ** len(fraction)
    number = whole(number)
    if isinstance(number, int) and not MIN_SHARD_BYTES <= number <= MAX_SHARD_BYTES:
        raise _fault(f"should be from {MIN_SHARD_BYTES:,} bytes (1KB) to {MAX_SHARD_BYTES:,} bytes")
    return number


def _size_text(number: int) -> int | str:
    """Return a size in the largest decimal unit that divides it."""
    for name in ("TB", "GB", "MB", "KB"):
        if number % _UNITS[name] == 0:
            return f"{number // _UNITS[name]}{name}"
    return number


Text: TypeAlias = Annotated[str, AfterValidator(_clean)]

HubId: TypeAlias = Annotated[str, AfterValidator(_clean), AfterValidator(_hub_id)]

Revision: TypeAlias = Annotated[str, AfterValidator(_clean), AfterValidator(_revision)]

Count: TypeAlias = Annotated[int, Field(ge=1, le=MAX_COUNT), BeforeValidator(whole)]

# A sequence of one token predicts nothing.
Length: TypeAlias = Annotated[int, Field(ge=2, le=MAX_COUNT), BeforeValidator(whole)]

CountOrZero: TypeAlias = Annotated[int, Field(ge=0, le=MAX_COUNT), BeforeValidator(whole)]

Seed: TypeAlias = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(whole)]

Rate: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Config: TypeAlias = dict[str, Any]

Size: TypeAlias = Annotated[
    int,
    BeforeValidator(_bytes),
    PlainSerializer(_size_text, return_type=int | str),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["2GB", "500MB", "1GiB"]}),
]


class Section(BaseModel):
    """A section of a recipe: unknown keys are errors, types are strict, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # Exactly one of these keys must be given. `false` and null count as not given.
    alternatives: ClassVar[tuple[str, ...]] = ()
    # Key -> alternatives that it is allowed with.
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
                raise _fault(f"{key} is allowed only with {names}, not with {given[0]}")
        return self

    @property
    def given(self) -> tuple[str, ...]:
        """The alternatives that are given."""
        return tuple(name for name in self.alternatives if getattr(self, name) not in (None, False))


class PretrainConfig(Section):
    """A small source model to train first, instead of `source.model`."""

    config: Annotated[Config, AfterValidator(_model_type)] = Field(description="config of the source, with model_type")
    steps: CountOrZero = Field(
        default=0,
        description="optimiser steps; needed, except by a `train` with growth.schedule, which begins with drawn weights",
    )
    batch_size: Count = Field(default=16, description="sequences or images per step")
    sequence_length: Length = Field(
        default=SEQUENCE_LENGTH, description="tokens per sequence; default: fit.sequence_length"
    )
    learning_rate: Rate = Field(default=1e-3, description="peak learning rate")
    seed: Seed = Field(default=0, description="seed of the initial weights and of the data order")


class SourceConfig(Section):
    """The model to grow."""

    alternatives = ("model", "pretrain")
    only_with: ClassVar[dict[str, tuple[str, ...]]] = {"revision": ("model",), "config": ("model", "config")}

    model: Text | None = Field(default=None, description="Hub id or local directory")
    revision: Revision = Field(
        default="main", description="branch, tag or commit on the Hub; the record states the commit"
    )
    config: Config | None = Field(
        default=None,
        description="config of the source, for planning without it; checked against the real config when the source is available",
    )
    pretrain: PretrainConfig | None = Field(
        default=None, description="train a small source first; instead of source.model"
    )
    allow_nonfinite: bool = Field(
        default=False, description="convert weights that contain NaN or infinity; the record states it"
    )

    @property
    def given(self) -> tuple[str, ...]:
        """The alternatives that are given. `config` alone suffices to plan, and to run with --source."""
        return super().given or (("config",) if self.config is not None else ())


class TargetConfig(Section):
    """The target model."""

    alternatives = ("config", "model")
    only_with: ClassVar[dict[str, tuple[str, ...]]] = {"revision": ("model",)}

    @property
    def given(self) -> tuple[str, ...]:
        """The alternative that is given. Beside `model`, `config` replaces keys of that model's config."""
        given = super().given
        return ("model",) if "model" in given else given

    config: Config | None = Field(
        default=None,
        description="keys of the library's config that replace those of the source; beside target.model, those of that model",
    )
    model: Text | None = Field(
        default=None,
        description="model whose config (never its weights) is the target's: Hub id, directory or timm name",
    )
    revision: Revision = Field(default="main", description="branch, tag or commit of target.model")
    architecture: Text | None = Field(
        default=None,
        description="library class of the target, such as BertForMaskedLM; a head that the source lacks is initialised randomly",
    )


class OperatorConfig(Section):
    """The form of the growth operator."""

    keying: Literal["source", "target", "shared"] | None = Field(
        default=None,
        description="width maps per source layer (LiGO paper), per target layer (official code), or one shared by all layers; "
        "default: shared",
    )
    tie: Literal["paper"] | None = Field(
        default=None, description="paper: tie read maps to write maps as in the LiGO paper; implies keying: source"
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
            raise _fault(f"tie: paper needs keying: source, not {self.keying}; remove keying")
        return self


class GrowthStageConfig(Section):
    """One growth in the course of a training."""

    at: Annotated[float, Field(ge=0, le=MAX_COUNT, allow_inf_nan=False)] = Field(
        description="when the model grows: a share of the steps if below 1, else a number of steps"
    )
    target: Config | None = Field(
        default=None,
        description="keys of the library's config that replace those of the model before; default: the recipe's target",
    )
    width: Annotated[Text, BeforeValidator(_one_of(tuple(WIDTHS)))] | None = Field(
        default=None,
        description="method that grows widths; default: growth.width",
        json_schema_extra={"enum": [*WIDTHS, None]},
    )
    depth: Annotated[Text, BeforeValidator(_one_of(tuple(DEPTHS)))] | None = Field(
        default=None,
        description="method that adds layers; default: growth.depth",
        json_schema_extra={"enum": [*DEPTHS, None]},
    )
    state: Annotated[Text, BeforeValidator(_one_of(tuple(POLICIES)))] = Field(
        default="carry",
        description="what becomes of the optimizer's state: "
        + "; ".join(f"{name}: {policy.summary}" for name, policy in POLICIES.items()),
        json_schema_extra={"enum": list(POLICIES)},
    )
    warmup_steps: CountOrZero = Field(
        default=0, description="steps in which the learning rate rises again from zero; at most a fifth of the stage"
    )


class GrowthConfig(Section):
    """The initial growth operator, before any fit."""

    width: Annotated[Text, BeforeValidator(_one_of(tuple(WIDTHS)))] = Field(
        description="method that grows widths", json_schema_extra={"enum": list(WIDTHS)}
    )
    depth: Annotated[Text, BeforeValidator(_one_of(tuple(DEPTHS)))] = Field(
        description="method that adds layers", json_schema_extra={"enum": list(DEPTHS)}
    )
    seed: Seed = Field(default=0, description="seed of random initial values")
    state: Annotated[Text, BeforeValidator(_one_of(tuple(POLICIES)))] | None = Field(
        default=None,
        description="what becomes of the state of the optimizer beside the source (a checkpoint of a training); default: not taken",
        json_schema_extra={"enum": [*POLICIES, None]},
    )
    schedule: list[GrowthStageConfig] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_LIST,
        description="growth in stages in the course of a training, for `train` and the method `schedule` of `compare`; a conversion does"
        " not use it",
    )
    operator: OperatorConfig = Field(default=OperatorConfig(), description="form of the growth operator")


class HubDataConfig(Section):
    """A dataset on the Hub."""

    id: HubId = Field(description="Hub id of the dataset")
    name: Text | None = Field(default=None, description="configuration of the dataset, if it has several")
    split: Text = Field(default="train", description="split of the dataset")
    column: Text = Field(default="text", description="column with the text")
    revision: Revision = Field(default="main", description="branch, tag or commit")


class LocalDatasetConfig(Section):
    """A folder that the package `datasets` reads."""

    path: Text = Field(
        description="folder: data files of any format of `datasets` (csv, arrow, compressed JSON, ...), or what `save_to_disk` wrote"
    )
    name: Text | None = Field(default=None, description="configuration of the dataset, if it has several")
    split: Text = Field(default="train", description="split of the dataset")


class DataConfig(Section):
    """Training data of the fit."""

    alternatives = ("text", "hub", "dataset", "images", "stdlib")
    only_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "column": ("text", "hub", "dataset"),
        "format": ("text", "hub", "dataset"),
        "packing": ("text", "hub", "dataset", "stdlib"),
        "tokenizer": ("text", "hub", "dataset", "stdlib"),
        "augment": ("images",),
    }

    text: list[Text] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_LIST,
        description="glob patterns of .txt, .jsonl or .parquet files",
    )
    hub: HubDataConfig | None = Field(default=None, description="dataset on the Hub")
    dataset: LocalDatasetConfig | None = Field(default=None, description="folder that the package `datasets` reads")
    column: Text | None = Field(
        default=None,
        description="column of the records (lines of JSON, rows of tables) that is read; default: `text`; for `format: chat`, `messages`",
    )
    format: Annotated[FormatName, BeforeValidator(_one_of(tuple(FORMATS)))] | None = Field(
        default=None,
        description="form of the records: text; chat (lists of messages, through the tokenizer's chat template); completion"
        " (columns `prompt` and `completion`, texts or messages); default: text",
    )
    images: Text | None = Field(default=None, description="folder of images, with one subfolder per class")
    augment: (
        list[
            Annotated[
                Text, BeforeValidator(_one_of(tuple(AUGMENTATIONS))), WithJsonSchema({"enum": list(AUGMENTATIONS)})
            ]
        ]
        | None
    ) = Field(
        default=None,
        min_length=1,
        max_length=MAX_LIST,
        description="random changes of training images, anew in every epoch, in this order: flip (left and right, half of the images),"
        " crop (after padding by an eighth of each side), trivial-augment (one of 13 changes of colour or shape, or none); default: none",
    )
    stdlib: bool = Field(default=False, description="use the source code of Python's standard library")
    packing: bool | None = Field(
        default=None,
        description="true: texts are joined, and sequences are full; false: every text begins a sequence of its own, which is padded;"
        " default: true",
    )
    tokenizer: Text | None = Field(
        default=None, description="tokenizer: directory or Hub id; default: the source's tokenizer"
    )

    @model_validator(mode="after")
    def _check_column(self) -> Self:
        if self.column is not None and self.format == "completion":
            raise _fault("column is not allowed with format: completion, which reads the columns prompt and completion")
        if self.column is not None and self.hub is not None and "column" in self.hub.model_fields_set:
            raise _fault("give the column once: as column, or as hub.column")
        return self


class LearningRateConfig(Section):
    """Peak learning rates."""

    width: Rate = Field(default=3e-5, description="peak learning rate of the width maps")
    depth: Rate = Field(default=1e-2, description="peak learning rate of the depth maps")


class FitConfig(Section):
    """The fit of the growth operator."""

    steps: Count = Field(description="optimiser steps")
    batch_size: Count = Field(default=16, description="sequences or images per step")
    sequence_length: Length = Field(default=SEQUENCE_LENGTH, description="tokens per sequence")
    learning_rate: LearningRateConfig = Field(default=LearningRateConfig(), description="peak learning rates")
    seed: Seed = Field(default=0, description="seed of the data order")
    warmup_steps: CountOrZero | None = Field(
        default=None,
        description="steps of linear warmup to the peak learning rate; default: a tenth of the steps, at most 10",
    )
    weight_decay: Rate = Field(default=0.0, description="weight decay of the width maps towards the initial operator")
    evaluate_every: Count = Field(default=10, description="steps between validation losses")
    heldout_tokens: Count = Field(default=16384, description="tokens in each held-out split (validation and test)")
    heldout_images: Count = Field(default=512, description="images in each held-out split (validation and test)")
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=PROBABILITY,
        description="masked language models: probability that a token is to be predicted, held-out splits included",
    )
    micro_batch_size: Count | None = Field(
        default=None,
        description="sequences or images per forward pass, gradients summed; default: chosen from the memory of one sequence",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="precision of the computation; auto: bfloat16 where it is faster"
    )
    threads: Count | None = Field(
        default=None,
        description="CPU threads for training and measuring, on any number of cores; they decide the last bits; default: 1, 4 or 8, by"
        " the work of one step",
    )
    data: DataConfig = Field(description="training data")


class TrainConfig(Section):
    """Settings of `ligo-convert train`. A conversion does not use them."""

    steps: Count = Field(description="optimiser steps")
    batch_size: Count = Field(default=16, description="sequences or images per step, of all processes together")
    micro_batch_size: Count | None = Field(
        default=None,
        description="sequences or images per forward pass, gradients summed; default: chosen from the memory of one sequence",
    )
    sequence_length: Length = Field(default=SEQUENCE_LENGTH, description="tokens per sequence")
    optimizer: Annotated[Text, BeforeValidator(_one_of(OPTIMIZERS))] = Field(
        default="adamw",
        description="adamw: AdamW for every tensor; muon: Muon for the matrices inside the layers, AdamW for all others",
        json_schema_extra={"enum": list(OPTIMIZERS)},
    )
    learning_rate: Rate = Field(default=1e-3, description="peak learning rate")
    weight_decay: Rate = Field(default=0.1, description="weight decay of matrices")
    warmup_steps: CountOrZero | None = Field(
        default=None, description="steps in which the learning rate rises from zero; default: a fiftieth of the steps"
    )
    decay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.6,
        description="share of the steps, at the end, in which the learning rate falls to zero; not with cosine",
    )
    schedule: Literal["stable", "cosine"] = Field(
        default="stable",
        description="stable: constant between warmup and decay; cosine: falls from the end of the warmup on",
    )
    seed: Seed = Field(default=0, description="seed of drawn weights and of the data order")
    evaluate_every: Count = Field(default=100, description="steps between two validation losses, and lines of the log")
    save_every: Count | None = Field(
        default=None,
        description="steps between two saved states, from which a stopped training goes on; default: by the time that saving takes",
    )
    heldout_tokens: Count = Field(default=16384, description="tokens in each held-out split (validation and test)")
    heldout_images: Count = Field(default=512, description="images in each held-out split (validation and test)")
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=PROBABILITY,
        description="masked language models: probability that a token is to be predicted, held-out splits included",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="precision of the computation; auto: bfloat16 where it is faster"
    )
    threads: Count | None = Field(
        default=None,
        description="CPU threads of one process; they decide the last bits; default: 1, 4 or 8, by the work of one step",
    )
    compile: bool = Field(
        default=False, description="compile the model with torch.compile: faster on a GPU, other last bits"
    )
    data: DataConfig | None = Field(default=None, description="training data; default: fit.data")


class CompareConfig(Section):
    """Settings of `ligo-convert compare`. A conversion does not use them."""

    methods: list[Text] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_LIST,
        description="names from `ligo-convert methods`; default: all that apply to this source and target",
    )
    steps: Count | None = Field(default=None, description="the budget: steps of training from scratch")
    batch_size: Count | None = Field(
        default=None, description="sequences or images per step; default: `fit.batch_size`"
    )
    micro_batch_size: Count | None = Field(
        default=None,
        description="sequences or images per forward pass, gradients summed, in training and in the fit of an operator; default:"
        " `fit.micro_batch_size`, or chosen from the memory of one sequence",
    )
    compile: bool = Field(
        default=False,
        description="compile the models with torch.compile, except where layers or tokens are dropped: faster on a GPU, other last bits",
    )
    learning_rates: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=[5e-3, 1e-2, 2e-2],
        min_length=1,
        max_length=MAX_LIST,
        description="peak learning rates that scratch tries with each optimizer; where the best one is at an end of the list, rates beyond"
        " it are tried, too",
    )
    rate_factors: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=[0.5, 1.0],
        min_length=1,
        max_length=MAX_LIST,
        description="factors on scratch's best learning rate that every other entry tries",
    )
    optimizers: list[
        Annotated[Text, BeforeValidator(_one_of(OPTIMIZERS)), WithJsonSchema({"enum": list(OPTIMIZERS)})]
    ] = Field(
        default=list(OPTIMIZERS),
        min_length=1,
        max_length=MAX_LIST,
        description="optimizers that scratch tries; the best one is used by all entries",
    )
    decays: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.4, 0.7, 1.0],
        min_length=1,
        max_length=MAX_LIST,
        description="shares of a run in which the learning rate falls to zero; the best one for scratch is used by all entries",
    )
    weight_decay: Rate = Field(default=0.1, description="weight decay of matrices")
    tuning_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="fraction of the budget for a tuning run"
    )
    scratch_fractions: list[Annotated[float, Field(gt=0, le=2)]] = Field(
        default=[0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        min_length=1,
        max_length=MAX_LIST,
        description="budgets of scratch, as fractions of `steps`: the points of its curve",
    )
    budget_fractions: list[Annotated[float, Field(gt=0, le=2)]] = Field(
        default=[0.25, 0.5, 0.75, 1.0],
        min_length=1,
        max_length=MAX_LIST,
        description="budgets of every other entry, as fractions of scratch's FLOPs",
    )
    controls: list[Config] | None = Field(
        default=None,
        max_length=MAX_LIST,
        description="smaller models that never grow, as keys over the target's config; the source's size is always one; default: also the"
        " target with half of its layers",
    )
    source_strengths: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=[1.0],
        min_length=1,
        max_length=MAX_LIST,
        description="trainings of the source, as multiples of `source.pretrain.steps`; every method that uses it is run with each",
    )
    fit_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.01,
        description="largest fraction of the budget that the fit of an operator may cost; it limits `fit.steps`",
    )
    choose_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.03, description="method chosen: cost of the trial of one start, as a fraction of the budget"
    )
    fit_examples: Count = Field(
        default=64, description="held-out sequences or images that decide whether a learned operator is kept"
    )
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.02, description="fraction of the budget in which the learning rate rises to its peak"
    )
    eval_points: Count = Field(default=20, description="number of evaluations in a run of the whole budget")
    seeds: list[Seed] = Field(
        default=[0], min_length=1, max_length=MAX_LIST, description="each entry is trained once per seed"
    )
    threads: Count = Field(
        default=1, description="CPU threads of one training run, whatever `--jobs` is; they decide the last bits"
    )
    layer_drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="+layer-drop: the largest probability of skipping a layer in a step"
    )
    token_drop: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.15, description="+token-drop: fraction of the tokens that skip the middle layers"
    )
    source_flops: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="FLOPs spent on training the source, where `compare` does not train it"
    )


class ChooseConfig(Section):
    """Settings of `ligo-convert choose`. What it leaves open stands in `compare`. A conversion does not use them."""

    candidates: list[Text] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_LIST,
        description="methods to try, named as for `compare`; default: several starts from the source at hand, at once and later, or growth"
        " on the way where there is no source. Scratch and smaller models are always tried",
    )
    steps: Count | None = Field(
        default=None,
        description="the budget that the choice is for: steps of training from scratch; default: `compare.steps`",
    )
    shares: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(
        default=None,
        min_length=2,
        max_length=MAX_LIST,
        description="costs of the trials, as fractions of the budget: after each, the better half of the starts goes on to the next;"
        " default: 0.02, 0.04, and as much more as gives the longest trial 300 steps, at most 0.16, 0.32",
    )
    source_rate_factors: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=[0.4],
        min_length=1,
        max_length=MAX_LIST,
        description="factors on scratch's best learning rate that candidates from a source try. All others try `compare.rate_factors`,"
        " if the recipe names them, and else scratch's rate",
    )
    seeds: list[Seed] = Field(
        default=[0],
        min_length=1,
        max_length=MAX_LIST,
        description="the longest trials are run once per seed, the shorter ones with the first",
    )


class OutputConfig(Section):
    """The output directory and the form of its weights."""

    dir: Text = Field(description="output directory, relative to the working directory")
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = Field(
        default=None, description="dtype of all weights; default: the dtype of each source tensor"
    )
    max_shard_size: Size = Field(default=5 * 10**9, description="largest size of a weight file; default: 5GB")


class PublishConfig(Section):
    """Where to publish the output."""

    repo: Annotated[str, AfterValidator(_clean), AfterValidator(_repo_id)] = Field(
        description="Hub repository, as org/name"
    )
    license: Text | None = Field(default=None, description="licence identifier; default: from the source's model card")
    public: bool = Field(default=False, description="make the repository public; default: private")
    branch: Annotated[Text, AfterValidator(_reference)] = Field(default="main", description="branch that is updated")
    tag: Annotated[Text, AfterValidator(_reference)] | None = Field(default=None, description="tag for the commit")
    replace: bool = Field(
        default=False, description="delete files in the repository that were not uploaded by ligo-convert"
    )

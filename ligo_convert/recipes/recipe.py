"""Load a recipe: a YAML file with overrides from the command line.

Input: a YAML file, `--set`, `--source` and `--out`.
Output: one frozen `Recipe`, or one error that lists every fault at its location. A recipe has a digest and a public form that do
not depend on local paths: recipes with the same digest have the same public form on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from ligo_convert.checkpoints.directory import near_directories
from ligo_convert.errors import RecipeError
from ligo_convert.hub.names import is_hub_id
from ligo_convert.io.source_text import redacted
from ligo_convert.io.strict_yaml import MAX_BYTES, Document, KeyPath, load_bytes, load_file, parse_value
from ligo_convert.recipes.errors import SECRET_KEYS, Fault, Layer, Layered, findings, screen, short, shown
from ligo_convert.recipes.schema import (
    ChooseConfig,
    CompareConfig,
    DataConfig,
    FitConfig,
    GrowthConfig,
    OutputConfig,
    PublishConfig,
    Section,
    SourceConfig,
    TargetConfig,
    TrainConfig,
    whole,
)

# The name of a recipe on standard input.
STDIN = "-"
_STDIN_LABEL = "standard input"

# Placeholders for local paths in a public recipe. Folder names are removed too: they may be private, and the same conversion
# in two directories must give the same file.
_SOURCE, _TARGET, _TEXT, _IMAGES, _DATASET, _TOKENIZER, _OUT = (
    "./source",
    "./target",
    "./text/*",
    "./images",
    "./dataset",
    "./tokenizer",
    "out",
)

_LABELS = ("id2label", "label2id")

_NAMES = ("_name_or_path", "name_or_path")


class Recipe(Section):
    """A recipe: which model to grow into which target, how, and where to write it."""

    version: Annotated[Literal[1], BeforeValidator(whole)] = Field(description="version of the recipe format")
    source: SourceConfig = Field(description="the source model")
    target: TargetConfig = Field(description="the target model")
    growth: GrowthConfig = Field(description="the initial growth operator")
    fit: FitConfig | None = Field(
        default=None, description="fit of the growth operator; if omitted, the initial operator is used"
    )
    output: OutputConfig = Field(description="the output directory")
    publish: PublishConfig | None = Field(default=None, description="where to publish the output")
    compare: CompareConfig | None = Field(
        default=None, description="training from several starting points, for `compare`"
    )
    train: TrainConfig | None = Field(default=None, description="training of the target, for `train`")
    choose: ChooseConfig | None = Field(default=None, description="short trials that decide how to grow, for `choose`")

    _path: Path = PrivateAttr(default=Path("recipe.yaml"))
    _source_base: Path | None = PrivateAttr(default=None)
    _layered: Layered | None = PrivateAttr(default=None)
    # Whether this is the recipe of a training, see `for_training`.
    _trains: bool = PrivateAttr(default=False)

    @property
    def path(self) -> Path:
        """The absolute path of the recipe's file."""
        return self._path.absolute()

    def where(self, *path: str | int) -> str:
        """Return the location of the key at `path`, for messages: `file:line:column`, or the command-line option."""
        if self._trains and path[:1] == ("fit",) and not self._inherits(path):
            path = ("train", *path[1:])
        return self.path.name if self._layered is None else self._layered.where(path)

    def _inherits(self, path: KeyPath) -> bool:
        """Return whether a training takes the key at `path` from the recipe's `fit` section."""
        return path[1:2] == ("data",) and self.train is not None and self.train.data is None

    @property
    def trains(self) -> bool:
        """Return whether this is the recipe of a training, see `for_training`."""
        return self._trains

    def for_training(self) -> Recipe:
        """Return the recipe of a training: its `fit` section holds data, sizes and machine of the `train` section, and nothing is fitted.

        What a fit and a training need alike is then planned, loaded and found in the same way.

        Raises:
            RecipeError: the recipe has no `train` section, or no data to train on.
        """
        train = self.train
        if train is None:
            raise RecipeError(
                "this recipe has no `train` section", where=self.path.name, hint="give train.steps and train.data"
            )
        data = train.data or (self.fit.data if self.fit is not None else None)
        if data is None:
            raise RecipeError("train: there is no data to train on", where=self.where("train"), hint="give train.data")
        shared = set(TrainConfig.model_fields) & set(FitConfig.model_fields) - {"data", "learning_rate", "weight_decay"}
        settings = {name: getattr(train, name) for name in shared}
        fit = FitConfig(**{**settings, "warmup_steps": None, "data": data})
        made = self.model_copy(update={"fit": fit, "train": train.model_copy(update={"data": data})})
        made._trains = True
        return _share_sequence_length(made)

    @property
    def base(self) -> Path:
        """The folder that relative input paths refer to."""
        return self.path.parent

    @property
    def source_base(self) -> Path:
        """The folder that `source.model` refers to: the working directory if --source was given, else `base`."""
        return self.base if self._source_base is None else self._source_base

    @property
    def source_is_local(self) -> bool:
        """True if `source.model` is a local directory, not a Hub id."""
        return self.source.model is not None and is_local(self.source.model, self.source_base)

    @property
    def target_is_local(self) -> bool:
        """True if `target.model` is a local directory, not a Hub id."""
        return self.target.model is not None and is_local(self.target.model, self.base)

    def public(self) -> dict[str, Any]:
        """Return the recipe with every default filled in and nothing private; `load_recipe` can read it again.

        Local paths are replaced by placeholders, `publish`, `compare` and `choose` are removed, and paths are removed from configs. Of
        `train` and `growth.schedule` on the one hand, and `fit` on the other, the recipe keeps what a training or a conversion depends on.
        """
        data = _filled(self)
        del data["publish"], data["compare"], data["choose"]
        data["output"]["dir"] = _OUT
        if self._trains:
            _hide_places(data["train"]["data"], self.base)
            for stage in data["growth"]["schedule"] or ():
                stage["target"] = None if stage["target"] is None else _scrubbed(stage["target"])
        else:
            del data["train"], data["growth"]["schedule"]
        if self.fit is None or self._trains:
            del data["fit"]
        else:
            _hide_places(data["fit"]["data"], self.base)
        if self.source_is_local:
            data["source"]["model"] = _SOURCE
            del data["source"]["revision"]  # a directory has no revision
        if self.target_is_local:
            data["target"]["model"] = _TARGET
            del data["target"]["revision"]
        for section in (data["source"], data["source"].get("pretrain", {}), data["target"]):
            if "config" in section:
                section["config"] = _scrubbed(section["config"])
        return data

    def digest(
        self, *, source: Mapping[str, object], data: str | None, target: Mapping[str, object] | None = None
    ) -> str:
        """Return SHA-256, in hex, of the recipe and of the contents it names, independent of their paths.

        Args:
            source: digests of the source's files, or other plain data that identifies its contents.
            data: digest of the data and of a local tokenizer; None without data.
            target: config that `target.model` resolved to. If missing, a local target counts by its path, so that two
                targets never have the same digest.
        """
        recipe = self.public()
        del recipe["output"]["dir"]
        for section, key, default in _LATER:
            # A recipe from before this key existed keeps its digest.
            if (recipe.get(section) or {}).get(key) == default:
                (recipe.get(section) or {}).pop(key, None)
        if target is None and self.target_is_local:
            assert self.target.model is not None
            target = {"path": str((self.base / Path(self.target.model).expanduser()).absolute())}
        content = {"recipe": recipe, "source": source, "data": data, "target": target}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, default=dict)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


# Keys added after the first digests, with the value that earlier recipes had implicitly.
_LATER = (
    ("target", "architecture", None),
    ("fit", "heldout_images", 512),
    ("fit", "threads", None),
    ("fit", "mask_probability", 0.15),
    ("growth", "state", None),
)


def is_local(place: str, base: Path) -> bool:
    """Return whether `place` is a local path: it starts with `.`, `/` or `~`, or exists relative to `base`."""
    return place.startswith((".", "/", "~")) or os.path.lexists(base / place)


def is_homeless(place: str) -> bool:
    """Return whether `place` starts with the home of an unknown user, such as `~nobody/models`."""
    try:
        Path(place).expanduser()
    except RuntimeError:
        return True
    return False


# The JSON schema of a recipe as a file, for editors. It is generated from the models.
SCHEMA_FILE = Path(__file__).with_name("recipe.schema.json")

# The comment by which editors with the YAML language server find the schema of a file.
SCHEMA_COMMENT = "# yaml-language-server: $schema="


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors. Every key has a description."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


_NO_RECIPE = "`ligo-convert init SOURCE` writes a recipe; `ligo-convert examples` lists those that come along"


def load_recipe(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    source: str | None = None,
    out: str | None = None,
    placed: bool = True,
) -> Recipe:
    """Read a recipe and apply overrides from the command line.

    Args:
        path: the recipe's file; `-` for standard input, where relative paths refer to the working directory.
        overrides: `KEY=VALUE` with a dotted key and a value in YAML; each replaces the value of its key.
        source: `--source`: replaces `model`, `revision`, `config` and `pretrain` of the source. A local path if it exists
            relative to the working directory or starts with `.`, `/` or `~`, and then made absolute; else a Hub id.
        out: `--out`: replaces `output.dir`.
        placed: whether names must be local paths or Hub ids now; False if another run will create them.

    Raises:
        RecipeError: the file or the command line has faults; one error lists all of them.
        MachineError: the file cannot be read.
    """
    document = _from_stdin() if str(path) == STDIN else load_file(path, absent=_NO_RECIPE)
    if not isinstance(document.data, dict):
        content = "the file is empty" if document.data is None else f"found {shown(document.data)}"
        raise RecipeError(
            f"a recipe is a mapping with version, source, target, growth and output; {content}",
            where=_STDIN_LABEL if str(path) == STDIN else path,
        )
    data = document.data
    layers = [_lay_over(data, override) for override in overrides]
    here = None
    if source is not None:
        here = Path.cwd()
        if is_homeless(source):
            raise RecipeError(
                "no such user: the home directory is unknown", where=f"--source {short(redacted(source))}"
            )
        model = str(Path(source).expanduser().absolute()) if source and is_local(source, here) else source
        layers.append(_replace_source(data, model, label=f"--source {short(redacted(source))}"))
    if out is not None:
        layers.append(_put(data, ("output", "dir"), out, label=f"--out {short(redacted(out))}"))
    recipe = _validate(data, Layered(document=document, layers=layers), path=path, source_base=here, placed=placed)
    return _share_sequence_length(recipe)


def _from_stdin() -> Document:
    """Read the recipe on standard input."""
    return load_bytes(sys.stdin.buffer.read(MAX_BYTES + 1), label=_STDIN_LABEL)


def _validate(data: dict[str, Any], layered: Layered, *, path: Path, source_base: Path | None, placed: bool) -> Recipe:
    faults = screen(data)
    screened = {fault.path for fault in faults}
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        faults += [fault for fault in findings(error, Recipe) if fault.path not in screened]
    else:
        recipe._path = path.absolute()
        recipe._source_base = source_base
        recipe._layered = layered
        unplaced = _unplaced(recipe) if placed else []
        faults += [fault for fault in unplaced if fault.path not in screened]
    if faults:
        layered.report(faults)
    return recipe


def _unplaced(recipe: Recipe) -> list[Fault]:
    """Return a fault for every name that is neither a local path nor a Hub id."""
    names: list[tuple[KeyPath, str | None, Path]] = [
        (("source", "model"), recipe.source.model, recipe.source_base),
        (("target", "model"), recipe.target.model, recipe.base),
        *(
            ((section, "data", "tokenizer"), data.tokenizer, recipe.base)
            for section, data in _data_sections(recipe).items()
        ),
    ]
    faults = [
        Fault(
            path=path,
            what=f"{shown(name)} is neither a local directory nor a Hub id (`name` or `org/name`)"
            + (f"; {near}" if (near := near_directories(base / name)) else ""),
        )
        for path, name, base in names
        if name is not None and not is_local(name, base) and not is_hub_id(name)
    ]
    folders: list[tuple[KeyPath, str | None, Path]] = []
    for section, data in _data_sections(recipe).items():
        folders.append(((section, "data", "images"), data.images, recipe.base))
        if data.dataset is not None:
            folders.append(((section, "data", "dataset", "path"), data.dataset.path, recipe.base))
    return faults + [
        Fault(path=path, what=f"no such user: the home directory of {shown(name)} is unknown")
        for path, name, _ in [*names, *folders]
        if name is not None and is_homeless(name)
    ]


def _data_sections(recipe: Recipe) -> dict[str, DataConfig]:
    """Return the sections of the recipe that name data, with it."""
    sections = {"fit": recipe.fit, "train": recipe.train}
    return {name: found.data for name, found in sections.items() if found is not None and found.data is not None}


def _share_sequence_length(recipe: Recipe) -> Recipe:
    """Fill in `source.pretrain.sequence_length` from the fit where the recipe omits it."""
    pretrain = recipe.source.pretrain
    if pretrain is None or recipe.fit is None or "sequence_length" in pretrain.model_fields_set:
        return recipe
    pretrain = pretrain.model_copy(update={"sequence_length": recipe.fit.sequence_length})
    return recipe.model_copy(update={"source": recipe.source.model_copy(update={"pretrain": pretrain})})


# --- the command line -------------------------------------------------------------------------------------------------


def _lay_over(data: dict[str, Any], override: str) -> Layer:
    """Apply one `KEY=VALUE` to `data`."""
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    secret = any(part.lower() in SECRET_KEYS for part in path)
    shown_key = short(redacted(key))
    label = f"--set {shown_key}={'...' if secret else short(redacted(text))}"
    if not equals or not all(path):
        where = f"--set {short(redacted(override))}"
        raise RecipeError("expected KEY=VALUE", where=where, hint="for example --set fit.steps=20")
    document: Document = parse_value(text, label=f"--set {shown_key}", depth=len(path))
    return _put(data, path, document.data, label=label)


def _put(data: dict[str, Any], path: tuple[str, ...], value: object, *, label: str) -> Layer:
    """Set the value at `path`, and create missing mappings on the way."""
    owner = data
    for depth, part in enumerate(path[:-1], start=1):
        if owner.get(part) is None:
            owner[part] = {}
        owner = owner[part]
        if not isinstance(owner, dict):
            name = short(redacted(".".join(path[:depth])))
            raise RecipeError(
                f"{name} is {shown(owner)}, not a mapping", where=label, hint=f"replace the whole value of {name}"
            )
    owner[path[-1]] = value
    return Layer(path=path, label=label)


def _replace_source(data: dict[str, Any], model: str, *, label: str) -> Layer:
    section = data.get("source")
    keys = section if isinstance(section, dict) else {}
    replaced = ("model", "revision", "config", "pretrain")
    data["source"] = {**{key: value for key, value in keys.items() if key not in replaced}, "model": model}
    return Layer(path=("source", "model"), label=label)


# --- the public form --------------------------------------------------------------------------------------------------


def _filled(section: Section) -> dict[str, Any]:
    """Return a section with its defaults, without alternatives that are not given and the keys that need them."""
    data = section.model_dump(mode="json")
    for name in type(section).model_fields:
        value = getattr(section, name)
        needs = section.only_with.get(name)
        unchosen = name in section.alternatives and value in (None, False)
        idle = needs is not None and (value is None or section.given[0] not in needs)
        if unchosen or idle:
            del data[name]
        elif isinstance(value, Section):
            data[name] = _filled(value)
    return data


def _hide_places(data: dict[str, Any], base: Path) -> None:
    if "text" in data:
        data["text"] = [_TEXT]
    if "images" in data:
        data["images"] = _IMAGES
    if "dataset" in data:
        data["dataset"]["path"] = _DATASET
    if "tokenizer" in data and is_local(data["tokenizer"], base):
        data["tokenizer"] = _TOKENIZER


def _scrubbed(value: Any) -> Any:
    """Return a config with sorted keys and absolute paths cut to their last name. Class labels may look like paths and stay."""
    if isinstance(value, dict):
        return {
            key: value[key] if key in _LABELS else _scrubbed(value[key]) for key in sorted(value) if key not in _NAMES
        }
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return value.rstrip("/").rpartition("/")[2]
    return value

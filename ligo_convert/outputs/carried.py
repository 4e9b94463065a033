"""Carry the files beside the weights into an output: byte for byte, or with their sizes rewritten.

Input: an open source, and the widths of the residual streams. Output: `CarriedFiles`, and the bytes of every file in it.

The modules of a sentence-transformers pipeline are carried together or not at all: a modules.json that names what is not there cannot be
loaded, and a part of the pipeline would compute another embedding. `MODULES` is the table of the modules that can be carried.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ligo_convert.checkpoints.file_kinds import kind_of
from ligo_convert.checkpoints.files import TOKENIZER_FILES
from ligo_convert.checkpoints.headers import Header, parse_header
from ligo_convert.checkpoints.model_files import MODULES as MODULES_FILE
from ligo_convert.checkpoints.model_files import LeftBehind, Module
from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import FLOAT_DTYPES, TensorSpec
from ligo_convert.checkpoints.writer import safetensors_bytes
from ligo_convert.errors import LigoError, SourceError
from ligo_convert.families.schema import Family
from ligo_convert.growth.maps import kronecker
from ligo_convert.growth.operator import Operator
from ligo_convert.io.strict_json import strict_json
from ligo_convert.outputs.privacy import check_nothing_private


@dataclass(frozen=True, kw_only=True)
class ModuleKind:
    """A class of sentence-transformers whose files can be carried.

    Attributes:
        grows: what the module does with a wider embedding. `free`: no size of it changes. `size`: a number in its config is the width.
            `input`: its weights read the embedding. `never`: its weights have the width and cannot grow.
        sizes: keys of its config that hold the width; the first one that is there counts.
        weights: whether it has weights.
        per_layer: whether it reads the layers one by one, so that it fits no other depth.
    """

    grows: Literal["free", "size", "input", "never"]
    sizes: tuple[str, ...] = ()
    weights: bool = False
    per_layer: bool = False


_POOLED = ("embedding_dimension", "word_embedding_dimension")

MODULES: Mapping[str, ModuleKind] = {
    "Transformer": ModuleKind(grows="free"),
    "MLMTransformer": ModuleKind(grows="free"),
    "Pooling": ModuleKind(grows="size", sizes=_POOLED),
    "Normalize": ModuleKind(grows="free"),
    "Dropout": ModuleKind(grows="free"),
    "SpladePooling": ModuleKind(grows="free"),
    "Dense": ModuleKind(grows="input", sizes=("in_features",), weights=True),
    "LayerNorm": ModuleKind(grows="never", sizes=("dimension",), weights=True),
    "WeightedLayerPooling": ModuleKind(grows="never", sizes=_POOLED, weights=True, per_layer=True),
}

# Keys of a Pooling config: each that is true adds one copy of the width to the embedding.
_POOLING_FLAGS = "pooling_mode_"

# Why a file of a local source is left behind whose text is not for others.
PRIVATE_TEXT = "it holds a path or a secret of the machine on which it was grown"

_INPUT_WEIGHTS = ("linear.weight", "residual.weight")


@dataclass(frozen=True, kw_only=True)
class Resized:
    """A JSON file in which one number changes."""

    key: str
    value: int


@dataclass(frozen=True, kw_only=True)
class WidenedInput:
    """Weights that read the embedding: so many copies of the residual stream, one after the other."""

    copies: int


Change = Resized | WidenedInput


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What the modules need to know of a growth.

    Attributes:
        old: width of the source's residual stream.
        new: width of the target's.
        deepens: whether the number of layers changes.
        readable: whether one read map takes the new stream back to the old one, as the head does.
        relabels: whether the head gets another number of classes.
    """

    old: int
    new: int
    deepens: bool
    readable: bool
    relabels: bool = False


@dataclass(frozen=True, kw_only=True)
class CarriedFiles:
    """What becomes of the files beside the weights.

    Attributes:
        copied: names of the files that are carried byte for byte.
        changes: name -> change of the files whose sizes are rewritten, without config.json.
        left_behind: what the output lacks.
        missing_modules: why the output lacks the sentence-transformers pipeline of its source; empty where it does not.
    """

    copied: tuple[str, ...] = ()
    changes: Mapping[str, Change] = field(default_factory=dict)
    left_behind: tuple[LeftBehind, ...] = ()
    missing_modules: str = ""

    def json(self, *, training: Collection[str] = ()) -> dict[str, Any]:
        """Return the lists as `run --json` prints them.

        Args:
            training: names of the files of a training's state that the run has taken along.
        """
        return {
            "carried": list(self.copied),
            "rewritten": sorted(("config.json", *self.changes)),
            "left_behind": [
                {"path": left.path, "reason": left.reason} for left in self.left_behind if left.path not in training
            ],
            **({"training": sorted(training)} if training else {}),
        }

    def warnings(self) -> list[str]:
        """Return what the user must know before the run."""
        return [self.missing_modules] if self.missing_modules else []


def widths_of(
    family: Family, source: Mapping[str, object], target: Mapping[str, object], rewrites: Any, terms: int
) -> Widths:
    """Return the widths of a growth. `rewrites` and `terms` (their number) are those of the operator."""
    old, new, stream = family.sizes(source), family.sizes(target), family.norm.stream
    return Widths(
        old=old[stream],
        new=new[stream],
        deepens=any(old[axis] != new[axis] for axis in family.depth_axes),
        readable=terms == 1 and "mean-preserving" not in rewrites,
        relabels=family.labels in family.class_axes and old[family.labels] != new[family.labels],
    )


def carried_files(source: CheckpointReader, widths: Widths) -> CarriedFiles:
    """Decide what becomes of every file beside the weights. Reads the configs of modules and the headers of their weights."""
    found = source.model_files
    changes: dict[str, Change] = {}
    copied: tuple[str, ...] = ()
    missing, left = "", list(found.left)
    unfit = {name: why for name in found.carried if (why := _unfit(source, name, widths))}
    left += [LeftBehind(path=name, reason=why) for name, why in unfit.items()]
    if found.modules:
        pipeline = _Pipeline(source, widths)
        try:
            for name in found.module_files:
                if why := _private(source, name):
                    raise _CannotCarry(f"{name}: {why}")
            for module in found.modules:
                pipeline.add(module)
        except _CannotCarry as reason:
            missing = (
                f"the output is no sentence-transformers pipeline: {reason}. {MODULES_FILE} and its modules are left behind, and"
                " SentenceTransformer would pool by mean without them"
            )
            left += [LeftBehind(path=name, reason=str(reason)) for name in found.module_files]
        else:
            changes = pipeline.changes
            shared = [name for name in found.module_files if "/" not in name]
            copied = tuple(name for name in (*shared, *pipeline.files) if name not in changes)
            unused = set(found.module_files) - {*copied, *changes}
            left += [LeftBehind(path=name, reason="its module does not read it") for name in sorted(unused)]
    elif any(item.path == MODULES_FILE for item in found.left):
        missing = f"the output is no sentence-transformers pipeline: {MODULES_FILE} is left behind"
    return CarriedFiles(
        copied=tuple(sorted((*(name for name in found.carried if name not in unfit), *copied))),
        changes=dict(sorted(changes.items())),
        left_behind=tuple(sorted(left, key=lambda item: item.path)),
        missing_modules=missing,
    )


def _unfit(source: CheckpointReader, name: str, widths: Widths) -> str:
    """Return why a file that could be carried is left behind; empty where it is not."""
    if widths.relabels and kind_of(name).of_labels:
        return "the target has other classes"
    return _private(source, name)


def _private(source: CheckpointReader, name: str) -> str:
    """Return why a file of a local source is not for others: it holds a path or a secret of this machine. Empty where it does not.

    The files of a repository on the Hub are public. Tokenizer files are carried as they are.
    """
    if source.revision is not None or name in TOKENIZER_FILES or name.endswith(".safetensors"):
        return ""
    text = source.file_bytes(name).decode("utf-8", "replace")
    try:
        check_nothing_private(text, where=name, names_in=())
    except LigoError:
        return PRIVATE_TEXT
    return ""


class _CannotCarry(Exception):
    """A module cannot be carried; the message says why."""


class _Pipeline:
    """Follow the embedding through the modules, and note how their files change."""

    def __init__(self, source: CheckpointReader, widths: Widths) -> None:
        self.source, self.widths = source, widths
        self.files: list[str] = []
        self.changes: dict[str, Change] = {}
        # The embedding is `copies` times the stream; None once a module has given it a size of its own.
        self.copies: int | None = 1 if widths.old != widths.new else None
        self.normalised = False

    def add(self, module: Module) -> None:
        """Add the next module. Raises _CannotCarry."""
        name = module.folder or module.kind or MODULES_FILE
        kind = MODULES.get(module.kind)
        if kind is None:
            raise _CannotCarry(f"the module {name} is of a class that this program does not know")
        if kind.per_layer and self.widths.deepens:
            raise _CannotCarry(f"the module {name} ({module.kind}) weighs each layer of the source")
        if not module.folder:
            if module.kind not in ("Transformer", "MLMTransformer"):
                raise _CannotCarry(f"the module {module.kind} has no folder of its own")
            return
        config, weights = f"{module.folder}/config.json", f"{module.folder}/model.safetensors"
        if kind.sizes and config not in module.files:
            raise _CannotCarry(f"{config} is missing")
        if kind.weights and weights not in module.files:
            raise _CannotCarry(f"{weights} is missing, and no other format of weights is read")
        if module.kind in ("Transformer", "MLMTransformer"):
            raise _CannotCarry(f"the module {name} is a model in a folder of its own")
        self.files += [file for file in (config, *((weights,) if kind.weights else ())) if file in module.files]
        if kind.sizes and self.copies is not None:
            self._grow(module, kind, config, weights)
        self.normalised = self.normalised or module.kind == "Normalize"

    def _grow(self, module: Module, kind: ModuleKind, config: str, weights: str) -> None:
        """Note the changes of a module that knows the width. Raises _CannotCarry."""
        assert self.copies is not None
        if kind.grows == "never":
            raise _CannotCarry(f"the module {module.folder} ({module.kind}) has weights of the source's width")
        try:
            content = strict_json(self.source.file_bytes(config), label=config)
        except SourceError as error:
            raise _CannotCarry(f"{config}: {error.what}") from None
        key = next((key for key in kind.sizes if key in content), "")
        if content.get(key) != self.copies * self.widths.old:
            raise _CannotCarry(
                f"{config}: {key or kind.sizes[0]} is not the width of what it reads, {self.copies * self.widths.old}"
            )
        self.changes[config] = Resized(key=key, value=self.copies * self.widths.new)
        if kind.grows == "size":
            self.copies = _pooling_modes(content)
            return
        self._check_input(content, weights)
        self.changes[weights] = WidenedInput(copies=self.copies)
        self.copies = None

    def _check_input(self, content: Mapping[str, object], weights: str) -> None:
        """Require that weights can read the grown embedding as the head does. Raises _CannotCarry."""
        if self.normalised:
            raise _CannotCarry(f"{weights} reads an embedding whose norm grows with the width")
        if not self.widths.readable:
            raise _CannotCarry(f"{weights}: no single map takes the grown stream back to the source's")
        if content.get("use_residual") and content.get("out_features") == content.get("in_features"):
            raise _CannotCarry(f"{weights}: a residual connection around it keeps the source's width")
        try:
            header = parse_weights(self.source.file_bytes(weights), weights)
        except SourceError as error:
            raise _CannotCarry(f"{weights}: {error.what}") from None
        assert self.copies is not None
        for name in _INPUT_WEIGHTS:
            spec = header.tensors[name].spec if name in header.tensors else None
            if spec is None and name == _INPUT_WEIGHTS[0]:
                raise _CannotCarry(f"{weights} has no {name}")
            if spec and (spec.dtype not in FLOAT_DTYPES or spec.shape[1:] != (self.copies * self.widths.old,)):
                raise _CannotCarry(f"{weights}: {name} is {spec.dtype} {list(spec.shape)}")


def _pooling_modes(content: Mapping[str, object]) -> int:
    """Return how many poolings of a Pooling config are joined to one embedding."""
    mode = content.get("pooling_mode")
    if isinstance(mode, list):
        return len(mode)
    flags = [value for key, value in content.items() if key.startswith(_POOLING_FLAGS)]
    return max(1, sum(value is True for value in flags)) if mode is None else 1


def parse_weights(data: bytes, label: str) -> Header:
    """Parse the header of a safetensors file in memory."""
    return parse_header(data, file_size=len(data), label=label)


def contents(
    carried: CarriedFiles, source: CheckpointReader, family: Family, operator: Operator
) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every carried file, config.json excepted."""
    for name in carried.copied:
        yield name, source.file_bytes(name)
    for name, change in carried.changes.items():
        data = source.file_bytes(name)
        if isinstance(change, Resized):
            content = {**strict_json(data, label=name), change.key: change.value}
            yield name, (json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode()
        else:
            yield name, _widened(data, name, family, operator, change.copies)


def _widened(data: bytes, label: str, family: Family, operator: Operator, copies: int) -> bytes:
    """Grow the inputs of a linear layer that reads the last hidden states: W' = W R^T for each copy of the stream.

    R is the read map of the residual stream. A tied head reads the stream through a smaller gain of the last norm, which is undone here.
    """
    from ligo_convert.checkpoints.torch_io import tensor_from_bytes, tensor_to_bytes

    (term,) = operator.terms
    factors = operator.stream(term, family.norm.stream, None, None, None)
    read = kronecker([axis.read for axis in factors]) / _gain_of_head(family, operator)
    header = parse_weights(data, label)
    tensors = []
    for name, stored in header.tensors.items():
        raw: Any = data[stored.start : stored.end]
        spec = stored.spec
        if name in _INPUT_WEIGHTS:
            import torch

            weight = tensor_from_bytes(raw, spec).double().numpy()
            grown = np.concatenate([part @ read.T for part in np.split(weight, copies, axis=1)], axis=1)
            spec = TensorSpec(name=name, dtype=spec.dtype, shape=grown.shape)
            raw = tensor_to_bytes(torch.from_numpy(grown), spec)
        tensors.append((spec, raw))
    return safetensors_bytes(tensors, {"format": "pt"})


def _gain_of_head(family: Family, operator: Operator) -> float:
    """Return the factor on the last norm's gain that a tied head needs; 1 where the head is read through a norm of its own."""
    (term,) = operator.terms
    for row in family.rows:
        fed = family.feeds_head(row) and row.depth is None and row.layout.streams == (family.norm.stream,)
        if fed and row.layout.dims[0].role == "gain" and row.pattern in term.depths:
            return float(np.asarray(term.depths[row.pattern])[0, 0]) or 1.0
    return 1.0

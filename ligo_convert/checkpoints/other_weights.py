"""Recognise weights in other formats and under other names, and say how to get safetensors that can be read.

Input: the file names of a checkpoint without `model.safetensors` and without its index. Output: the SourceError to raise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ligo_convert.checkpoints.files import INDEX, WEIGHTS
from ligo_convert.errors import SourceError, some
from ligo_convert.io.strict_json import short

# Writes the index of the shards in the working directory.
REBUILD_INDEX = (
    'python -c "import glob, json, safetensors as s;'
    " m = {k: f for f in sorted(glob.glob('model-*.safetensors')) for k in s.safe_open(f, 'np').keys()};"
    " json.dump({'metadata': {}, 'weight_map': m}, open('model.safetensors.index.json', 'w'))\""
)

_SHARD = re.compile(r"model-([0-9]{5})-of-([0-9]{5})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class OtherWeights:
    """One kind of files that hold weights which are not read here.

    Attributes:
        names: matches the whole name of such a file.
        what: what the files are.
        hint: what to do; `{name}` is the first such file.
    """

    names: re.Pattern[str]
    what: str
    hint: str


def _kind(names: str, what: str, hint: str) -> OtherWeights:
    return OtherWeights(names=re.compile(names), what=what, hint=hint)


_IMPORT = "convert it in isolation: ligo-convert import {name} DIR; then name DIR as the source"

# The first kind that has a file is reported: what is nearest to safetensors that can be read stands first.
KINDS = (
    _kind(_SHARD.pattern, "shards without their index", ""),
    _kind(
        r"model\.[A-Za-z0-9_]+\.safetensors",
        "a variant of the weights",
        f"to use this variant, name it as the library expects it: mv {{name}} {WEIGHTS}",
    ),
    _kind(
        r"model\.safetensors\.index\.[A-Za-z0-9_]+\.json",
        "a variant of the weights in shards",
        f"to use this variant, name its index as the library expects it: mv {{name}} {INDEX}",
    ),
    _kind(
        r"adapter_(model|config)\.(safetensors|bin|json)",
        "an adapter, not a model",
        "merge the adapter into its base model, and name the result as the source:\n"
        "peft.AutoPeftModelForCausalLM.from_pretrained(ADAPTER).merge_and_unload().save_pretrained(DIR)",
    ),
    _kind(
        r"consolidated.*\.(safetensors|pth)|params\.json",
        "weights in the layout of the model's authors",
        "use the checkpoint in the layout of transformers, or convert it with the convert_*_weights_to_hf script of transformers",
    ),
    _kind(r"pytorch_model.*\.bin(\.index\.json)?|.*\.bin", "pickled weights", _IMPORT),
    _kind(r".*\.(pt|pth|ckpt|pkl)(\.tar|\.gz)?(\.index\.json)?|.*\.tar", "a pickled checkpoint", _IMPORT),
    _kind(
        r"zero_to_fp32\.py|global_step[0-9]+",
        "a checkpoint of DeepSpeed ZeRO",
        "join its parts with DeepSpeed's own script, with --safe_serialization: python zero_to_fp32.py . DIR",
    ),
    _kind(
        r".*\.distcp|\.metadata|pytorch_model_fsdp_[0-9]+",
        "a distributed checkpoint of PyTorch",
        "import it: ligo-convert import FOLDER DIR; then name DIR as the source",
    ),
    _kind(
        r".*\.gguf",
        "weights in the GGUF format",
        "use the checkpoint that it was made from; GGUF files are mostly quantised. If it is lost:\n"
        "AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file='{name}').save_pretrained(DIR)",
    ),
    _kind(
        r"weights(\.[0-9]+)?\.(npz|safetensors)",
        "weights in MLX's older layout",
        "use the checkpoint that it was converted from, or convert it again with a newer mlx-lm",
    ),
    _kind(
        r".*\.(npz|npy)",
        "weights in NumPy's format",
        "load them with the library that reads them and save as safetensors; in timm:"
        " model.load_pretrained('{name}'), then timm.models.save_for_hf(model, DIR)",
    ),
    _kind(
        r"tf_model.*\.h5|.*\.(h5|keras)|saved_model\.pb",
        "TensorFlow weights",
        "convert them with transformers 4 and TensorFlow: AutoModel.from_pretrained(FOLDER, from_tf=True).save_pretrained(DIR)",
    ),
    _kind(
        r"flax_model.*\.msgpack(\.index\.json)?|.*\.msgpack",
        "Flax weights",
        "convert them with transformers 4 and Flax: AutoModel.from_pretrained(FOLDER, from_flax=True).save_pretrained(DIR)",
    ),
    _kind(
        r".*\.(onnx|onnx_data|tflite|mlmodel|mlpackage|engine|ot|pte|xml)",
        "an exported graph",
        "use the checkpoint that it was exported from",
    ),
    _kind(
        r".*\.safetensors",
        "safetensors under another name",
        f"if it holds the whole model, name it as the library expects it: mv {{name}} {WEIGHTS}",
    ),
)


def kind_of(names: Iterable[str]) -> tuple[OtherWeights, list[str]] | None:
    """Return the first kind that any of the files is of, and the names of its files; None if there is none."""
    ordered = sorted(names)
    for kind in KINDS:
        found = [name for name in ordered if kind.names.fullmatch(name)]
        if found:
            return kind, found
    return None


def hint_for(names: Iterable[str]) -> str:
    """Return what to do with the weights among these files; "" if there are none."""
    kind = kind_of(names)
    return "" if kind is None else _hint(*kind)


def no_weights(names: Iterable[str], *, where: str, inner: Iterable[str] = ()) -> SourceError:
    """Return the error for a checkpoint without safetensors weights that can be read.

    Args:
        names: the files of the checkpoint.
        where: how errors name the checkpoint.
        inner: names of its subfolders that hold weights.
    """
    expected = f"{WEIGHTS}, or {INDEX} and its shards"
    kind, folders = kind_of(names), sorted(inner)
    if folders:
        hint = f"the weights are in a subfolder: name {some(folders)} as the source"
        return SourceError("no weights in this folder", where=where, expected=expected, found=some(folders), hint=hint)
    if kind is None:
        return SourceError("no weights", where=where, expected=expected)
    return SourceError(
        f"no safetensors weights that can be read, only {kind[0].what}",
        where=where,
        expected=expected,
        found=some([short(name) for name in kind[1]]),
        hint=_hint(*kind),
    )


def _hint(kind: OtherWeights, names: list[str]) -> str:
    return _shards_hint(names) if kind is KINDS[0] else kind.hint.format(name=short(names[0]))


def _shards_hint(names: list[str]) -> str:
    """Return how to get the index of shards, or which shards are missing."""
    numbers = {(int(match[1]), int(match[2])) for name in names if (match := _SHARD.fullmatch(name))}
    total = max(count for _, count in numbers)
    missing = [number for number in range(1, total + 1) if number not in {first for first, _ in numbers}]
    if missing:
        lost = some([f"model-{number:05d}-of-{total:05d}.safetensors" for number in missing])
        return f"the download is not complete; fetch {INDEX} and {lost}"
    return f"fetch {INDEX} again; if it is lost, build it in that folder:\n{REBUILD_INDEX}"

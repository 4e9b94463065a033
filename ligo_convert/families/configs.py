"""What lies in config.json, and the flat config that families read.

What comes in: config.json as plain data. What goes out: keys and values at one level, with a `model_type` that names the family; and back
again, for the target. transformers' configs are flat as they are. timm's name an architecture that stands for most sizes, set arguments
over it (`model_args`), and say in `pretrained_cfg` how images are prepared.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ligo_convert.errors import SourceError
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import Config, Family

# What an image is normalised with where config.json does not say (the mean and deviation of ImageNet).
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Arguments that timm's configs keep beside the others; transformers passes them a second time if they stand among them.
_BESIDE = ("num_classes", "in_chans", "global_pool")

_PREPARED = (
    "input_size",
    "mean",
    "std",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "first_conv",
    "classifier",
    "license",
)

# Sizes are always written out: a target is then what it says, whatever its architecture's name stands for.
_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "depth_token_only")

# Follows from the architecture's name, and is no argument.
_IMPLIED = ("prefix_tokens", "distilled")

# Where a source's weights were fetched from: the target's are not there.
_ORIGINS = (
    "url",
    "file",
    "hf_hub_id",
    "hf_hub_filename",
    "source",
    "state_dict",
    "tag",
    "custom_load",
    "origin_url",
    "paper_ids",
)


def flat_config(config: Config, *, where: str = "config.json") -> dict[str, object]:
    """config.json as families read it.

    Raises:
        SourceError: an architecture of timm's that no family lists.
    """
    named = config.get("architecture")
    if "model_type" in config or not isinstance(named, str):
        family = next((family for family in FAMILIES.values() if family.model_type == config.get("model_type")), None)
        if family is not None and family.library == "timm":
            _check_known(family, config, where=where)
        return dict(config)
    architecture = named.partition(".")[0]
    family = next((family for family in FAMILIES.values() if architecture in family.architectures), None)
    if family is None:
        known = [name for found in FAMILIES.values() for name in found.architectures]
        near = difflib.get_close_matches(architecture, known, n=3)
        raise SourceError(
            f"architecture {named!r} is not supported",
            where=where,
            expected="one that a family lists" + (f", such as {', '.join(near)}" if near else ""),
            hint="`ligo-convert families` lists the families; docs/extending/adding-a-family.md says how one is added",
        )
    given = config.get("pretrained_cfg")
    # timm's older layout has at the top what says how images are prepared.
    top = {key: config[key] for key in _PREPARED if key in config}
    prepared: dict[str, object] = dict(given) if isinstance(given, dict) else top
    arguments = config.get("model_args")
    _check_known(family, arguments if isinstance(arguments, dict) else {}, where=where)
    flat: dict[str, object] = {"model_type": family.model_type, "architecture": architecture, **family.defaults}
    flat.update(family.architectures[architecture])
    shape = prepared.get("input_size")
    if isinstance(shape, list | tuple) and len(shape) == 3:
        flat.update({"in_chans": shape[0], "img_size": shape[-1]})
    flat.update({key: prepared[key] for key in ("num_classes",) if key in prepared})
    flat.update(arguments if isinstance(arguments, dict) else {})
    # What stands at the top is what was trained.
    flat.update(
        {
            key: value
            for key, value in config.items()
            if key not in ("architecture", "model_args", "num_features", *_PREPARED)
        }
    )
    flat.update({"model_type": family.model_type, "architecture": architecture})
    flat["pretrained_cfg"] = prepared
    if flat["num_classes"] == 0:
        raise SourceError(
            "an image model without a head (num_classes: 0) is not supported",
            where=where,
            expected="a classifier",
            hint="take the checkpoint that has one, such as the fine-tuned one",
        )
    # timm writes sides as pairs.
    for key in ("img_size", "patch_size"):
        pair = flat[key]
        if isinstance(pair, list | tuple) and len(set(pair)) == 1:
            flat[key] = pair[0]
    return flat


def _check_known(family: Family, arguments: Config, *, where: str) -> None:
    """Refuse arguments that no row of the family depends on: a model that is built otherwise is not the one it describes."""
    known = {
        *family.defaults,
        *family.required_values,
        *family.function_irrelevant_keys,
        *family.size_keys,
        "model_type",
        "architectures",
    }
    unknown = [str(key) for key in arguments if key not in known]
    if {"hidden_size", "num_hidden_layers", "num_attention_heads"} & set(unknown):
        raise SourceError(
            f"this config is of transformers' own {family.name}, which is not supported",
            where=where,
            expected=f"timm's: {', '.join(family.defaults)}",
            hint="take the checkpoint that timm has of it",
        )
    if unknown:
        near = difflib.get_close_matches(unknown[0], sorted(map(str, known)), n=1)
        raise SourceError(
            f"{unknown[0]}: no argument of a {family.name} that is supported here",
            where=where,
            expected=f"did you mean {near[0]!r}?" if near else f"timm's own: {', '.join(family.defaults)}",
        )


def written_config(family: Family, target: Config, stored: Config) -> dict[str, Any]:
    """config.json of a timm target.

    Args:
        target: as families read it. stored: the source's config.json, for what is passed on.
    """
    complete = family.complete(target)
    architecture = _architecture_of(family, complete)
    implied = {**family.defaults, **family.architectures[architecture]}
    arguments = {
        key: complete[key]
        for key in family.defaults
        if key not in (*_BESIDE, *_IMPLIED) and (key in _SIZES or complete[key] != implied[key])
    }
    prepared = complete.get("pretrained_cfg")
    kept = {
        key: value for key, value in (prepared.items() if isinstance(prepared, dict) else ()) if key not in _ORIGINS
    }
    side = complete["img_size"]
    shape = {"input_size": [complete["in_chans"], side, side], "fixed_input_size": True}
    defaults = {"interpolation": "bicubic", "crop_pct": 1.0, "mean": list(_MEAN), "std": list(_DEVIATION)}
    # Names of classes go with the classes.
    same = complete["num_classes"] == stored.get("num_classes", complete["num_classes"])
    named = {key: stored[key] for key in ("label_names", "label_descriptions") if same and key in stored}
    return {
        **named,
        "architecture": architecture,
        "num_classes": complete["num_classes"],
        "num_features": complete["embed_dim"],
        "global_pool": complete["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {**defaults, **kept, **shape, "num_classes": complete["num_classes"]},
    }


def _architecture_of(family: Family, complete: Mapping[str, object]) -> str:
    """The architecture whose sizes these are, else the source's: its arguments are written out."""
    keys = [key for key in family.defaults if key not in _BESIDE]
    for name, entry in family.architectures.items():
        implied = {**family.defaults, **entry}
        if all(implied[key] == complete[key] for key in keys):
            return name
    named = complete.get("architecture")
    if isinstance(named, str) and named in family.architectures:
        return named
    # A source that was trained here names none: any that implies the same will do, as every argument is written.
    same = [
        name
        for name, entry in family.architectures.items()
        if all({**family.defaults, **entry}[key] == complete[key] for key in _IMPLIED if key in family.defaults)
    ]
    return same[0]


def image_preprocessing(config: Config) -> dict[str, Any]:
    """How a model wants its images: side, mean, deviation, interpolation and the share that is cropped from the middle."""
    prepared = config.get("pretrained_cfg")
    found: dict[str, Any] = dict(prepared) if isinstance(prepared, dict) else {}
    return {
        "size": config["img_size"],
        "mean": tuple(found.get("mean") or _MEAN),
        "std": tuple(found.get("std") or _DEVIATION),
        "interpolation": found.get("interpolation") or "bicubic",
        "crop_pct": found.get("crop_pct") or 1.0,
    }

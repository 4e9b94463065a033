"""Convert config.json to the flat config that families read, and back.

Input: config.json as plain data. Output: keys and values at one level, with the family's `model_type`.
Configs of transformers are already flat. A config of timm names an architecture, which determines most sizes; `model_args`
overrides them, and `pretrained_cfg` describes how images are prepared.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ligo_convert.errors import SourceError, brief, close_matches
from ligo_convert.families.registry import FAMILIES, family_of_type
from ligo_convert.families.schema import Config, Family

# Mean and standard deviation of ImageNet, for a config.json without its own.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# PIL's resize filters in the order of their numbers.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

# Arguments that timm's configs hold outside `model_args`; inside it, transformers would pass them twice.
_BESIDE = ("num_classes", "in_chans")

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

# Sizes are always written, so that a target does not depend on the meaning of its architecture's name.
_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "depth_token_only")

# Determined by the architecture's name or by other arguments; not arguments.
_IMPLIED = ("prefix_tokens", "distilled", "activation", "norm_epsilon")

# timm's names of one argument: whether the norm follows the pooling, and the number of registers.
_POOLED_NORM = ("fc_norm", "use_fc_norm")
_REGISTERS = ("reg_tokens", "num_reg_tokens")

# Worked out from other arguments where a family has them.
_DERIVED = (*_POOLED_NORM, "prefix_tokens")

# Poolings after which timm normalises, not before, where no argument says.
_NORMED_POOLINGS = ("avg", "avgmax", "max")

# What timm reads about images and classes. Its other keys say where the source's weights lie: no key that is not listed is handed on.
_DESCRIBED = (
    *_PREPARED,
    "fixed_input_size",
    "min_input_size",
    "test_input_size",
    "test_crop_pct",
    "pool_size",
    "test_pool_size",
    "label_offset",
    "label_names",
    "label_descriptions",
    "description",
    "paper_name",
    "notes",
)

# Keys that change the form of a call's result, or how it is computed, and not what is computed.
RESULT_KEYS = frozenset(
    (
        "return_dict",
        "use_return_dict",
        "output_hidden_states",
        "output_attentions",
        "output_scores",
        "use_cache",
        "torchscript",
        "chunk_size_feed_forward",
    )
)


def flat_config(config: Config, *, where: str = "config.json") -> dict[str, object]:
    """Flatten config.json.

    Raises:
        SourceError: a timm architecture that no family lists, or an argument that is not supported.
    """
    named = config.get("architecture")
    if "model_type" in config or not isinstance(named, str):
        family = family_of_type(config)
        if family is not None and family.library == "timm":
            _check_known(family, config, where=where)
            derived = _derived({**family.defaults, **_unset(family), **config})
            return {**config, **{key: derived[key] for key in _DERIVED if key in family.defaults}}
        return dict(config)
    architecture = named.partition(".")[0]
    family = next((family for family in FAMILIES.values() if architecture in family.architectures), None)
    if family is None:
        known = [name for other in FAMILIES.values() for name in other.architectures]
        near = close_matches(architecture, known, n=3)
        raise SourceError(
            f"architecture {brief(named)} is not supported",
            where=where,
            expected="an architecture that a family lists" + (f", such as {', '.join(near)}" if near else ""),
            hint="`ligo-convert families` lists the families; docs/extending/adding-a-family.md describes how to add one",
        )
    given = config.get("pretrained_cfg")
    # timm's older layout holds the keys of `pretrained_cfg` at the top level.
    top = {key: config[key] for key in _PREPARED if key in config}
    prepared: dict[str, object] = dict(given) if isinstance(given, dict) else top
    arguments = config.get("model_args")
    _check_known(family, arguments if isinstance(arguments, dict) else {}, where=where)
    flat: dict[str, object] = {"model_type": family.model_type, "architecture": architecture, **family.defaults}
    flat.update({**_unset(family), **family.architectures[architecture]})
    shape = prepared.get("input_size")
    if isinstance(shape, list | tuple) and len(shape) == 3:
        flat.update({"in_chans": shape[0], "img_size": list(shape[1:])})
    flat.update({key: prepared[key] for key in ("num_classes",) if key in prepared})
    # timm leaves out arguments that are None.
    stated = arguments.items() if isinstance(arguments, dict) else ()
    flat.update({key: value for key, value in stated if value is not None})
    # Top-level keys describe the trained model and take precedence. timm does not read the pooling there.
    flat.update(
        {
            key: value
            for key, value in config.items()
            if key not in ("architecture", "model_args", "num_features", "global_pool", *_PREPARED)
        }
    )
    if config.get("global_pool", flat["global_pool"]) != flat["global_pool"]:
        raise SourceError(
            f"global_pool: {brief(config['global_pool'])} is not what timm builds for this config.json",
            where=where,
            expected=flat["global_pool"],
            hint="timm reads the pooling from the architecture and from model_args: state it there",
        )
    flat.update({"model_type": family.model_type, "architecture": architecture})
    flat = _derived(flat)
    flat["pretrained_cfg"] = prepared
    # timm writes side lengths as pairs: height and width.
    for key in ("img_size", "patch_size"):
        pair = flat[key]
        if isinstance(pair, list | tuple) and len(pair) == 2:
            flat[key] = pair[0] if pair[0] == pair[1] else list(pair)
    return flat


def _derived(flat: Config) -> dict[str, object]:
    """A flat config with the keys that timm works out from others."""
    found = dict(flat)
    for key in _POOLED_NORM:
        if key in found and found[key] is None:
            found[key] = found["global_pool"] in _NORMED_POOLINGS
    for key in _REGISTERS:
        registers = found.get(key)
        if isinstance(registers, int):
            tokens = bool(found["class_token"]) + bool(found.get("distilled")) + registers
            found["prefix_tokens"] = 0 if found["no_embed_class"] else tokens
    return found


def with_tokens(family: Family, config: Config, changes: Mapping[str, object]) -> dict[str, object]:
    """Changes of a timm config, with the number of tokens beside the patches where it follows from them; other changes as they are."""
    old = family.complete(config)
    tokens = _derived({**old, **changes}).get("prefix_tokens") if family.library == "timm" else None
    return {**changes} if tokens == old.get("prefix_tokens") else {**changes, "prefix_tokens": tokens}


def _implied(family: Family, architecture: str) -> dict[str, object]:
    """The flat config that an architecture's name stands for."""
    return _derived({**family.defaults, **_unset(family), **family.architectures[architecture]})


def _unset(family: Family) -> dict[str, object]:
    """The arguments whose default depends on others, as timm's constructor finds them."""
    return {key: None for key in _POOLED_NORM if key in family.defaults}


def _check_known(family: Family, arguments: Config, *, where: str) -> None:
    """Refuse arguments that the family does not know: they may build a model that its table does not describe. Raises SourceError."""
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
            f"this config is for the {family.name} of transformers, which is not supported",
            where=where,
            expected=f"timm's: {', '.join(family.defaults)}",
            hint="use timm's checkpoint of the model",
        )
    if unknown:
        near = close_matches(unknown[0], sorted(map(str, known)), n=1)
        raise SourceError(
            f"{unknown[0]}: not a supported argument of a {family.name}",
            where=where,
            expected=f"did you mean {near[0]!r}?" if near else f"timm's own: {', '.join(family.defaults)}",
        )


def written_config(family: Family, target: Config, stored: Config) -> dict[str, Any]:
    """Build config.json of a timm target.

    Args:
        family: the family of the target.
        target: the flat config.
        stored: the source's config.json, whose class names are copied if the number of classes is the same.
    """
    complete = family.complete(target)
    architecture = _architecture_of(family, complete)
    implied = _implied(family, architecture)
    # A pooling that the architecture does not have brings another default of the norm with it.
    stated = (*_SIZES, *_POOLED_NORM) if complete["global_pool"] != implied["global_pool"] else _SIZES
    # No LayerScale is a zero where the architecture has one: timm leaves out arguments that are None.
    arguments = {
        key: 0.0 if complete[key] is None and key == family.scale_init else complete[key]
        for key in family.defaults
        if key not in (*_BESIDE, *_IMPLIED) and (key in stated or complete[key] != implied[key])
    }
    prepared = complete.get("pretrained_cfg")
    kept = {key: value for key, value in (prepared.items() if isinstance(prepared, dict) else ()) if key in _DESCRIBED}
    shape = {"input_size": [complete["in_chans"], *image_sides(complete)], "fixed_input_size": True}
    defaults = {"interpolation": "bicubic", "crop_pct": 1.0, "mean": list(_MEAN), "std": list(_DEVIATION)}
    # Class names are valid only for the same classes.
    same = complete["num_classes"] == stored.get("num_classes", complete["num_classes"])
    named = {key: stored[key] for key in ("label_names", "label_descriptions") if same and key in stored}
    # A copy: the library may write into what it is given.
    return copy.deepcopy(
        {
            **named,
            "architecture": architecture,
            "num_classes": complete["num_classes"],
            "num_features": complete["embed_dim"],
            "global_pool": complete["global_pool"],
            "model_args": arguments,
            "pretrained_cfg": {**defaults, **kept, **shape, "num_classes": complete["num_classes"]},
        }
    )


def _architecture_of(family: Family, complete: Mapping[str, object]) -> str:
    """The architecture with exactly these sizes, else the source's architecture, whose arguments are then written out.

    Raises:
        SourceError: no architecture has the values of the keys that are no arguments.
    """
    keys = [key for key in family.defaults if key not in _BESIDE]
    # A count of tokens follows from arguments.
    derived = {"prefix_tokens"} if set(_REGISTERS) & set(keys) else set()
    named = [key for key in _IMPLIED if key in family.defaults and key not in derived]
    known = {name: _implied(family, name) for name in family.architectures}
    fitting = {name: implied for name, implied in known.items() if all(implied[key] == complete[key] for key in named)}
    for name, implied in fitting.items():
        if all(implied[key] == complete[key] for key in keys):
            return name
    if not fitting:
        values = ", ".join(f"{key} = {brief(complete[key])}" for key in named)
        raise SourceError(f"timm has no {family.name} with {values}", where="config.json")
    architecture = complete.get("architecture")
    # A source trained by the recipe names no architecture. Any that fits will do, since all arguments are written.
    return architecture if isinstance(architecture, str) and architecture in fitting else next(iter(fitting))


def image_sides(config: Config) -> tuple[int, int]:
    """The height and width of a model's images: one side of a square, or a pair."""
    # timm's key, or that of transformers.
    size: Any = config["img_size"] if "img_size" in config else config["image_size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width


def image_preprocessing(config: Config, processor: Config | None = None) -> dict[str, Any]:
    """The preprocessing of images, as keyword arguments of `data.images.Preparation`.

    Args:
        config: the complete flat config. timm's configs describe the preprocessing, too.
        processor: preprocessor_config.json of transformers; None where there is none.
    """
    if processor is not None:
        return {"size": image_sides(config), **_processed(processor), "described": "preprocessor_config.json"}
    prepared = config.get("pretrained_cfg")
    found: dict[str, Any] = dict(prepared) if isinstance(prepared, dict) else {}
    return {
        "size": image_sides(config),
        "mean": tuple(found.get("mean") or _MEAN),
        "std": tuple(found.get("std") or _DEVIATION),
        "interpolation": found.get("interpolation") or "bicubic",
        "crop_pct": found.get("crop_pct") or 1.0,
    }


def _processed(processor: Config) -> dict[str, Any]:
    """What an image processor of transformers does. Its images have the size in the model's config.

    Raises:
        SourceError: the processor does not scale pixels to the range from 0 to 1.
    """
    factor = processor.get("rescale_factor", 1 / 255)
    if processor.get("do_rescale", True) is not True or factor is None or factor != 1 / 255:
        raise SourceError(
            "the images cannot be prepared as this preprocessor_config.json says",
            where="preprocessor_config.json",
            expected="do_rescale = true and rescale_factor = 1/255",
            found=f"do_rescale = {brief(processor.get('do_rescale'))}, rescale_factor = {brief(factor)}",
        )
    plain = processor.get("do_normalize", True) is False
    mean, deviation = (
        tuple(value) if isinstance(value := processor.get(key), list | tuple) else default
        for key, default in (("image_mean", _MEAN), ("image_std", _DEVIATION))
    )
    filter_ = processor.get("resample")
    size, crop = (_sides(processor.get(key)) for key in ("size", "crop_size"))
    cropped = processor.get("do_center_crop") is True
    return {
        "mean": (0.0,) * len(mean) if plain else mean,
        "std": (1.0,) * len(deviation) if plain else deviation,
        "interpolation": _FILTERS[filter_] if isinstance(filter_, int) and 0 <= filter_ < len(_FILTERS) else "bicubic",
        "crop_pct": min(1.0, min(crop) / min(size)) if cropped and crop and size else 1.0,
        # Both sides are resized, whatever the shape of the image, unless the shorter side alone is stated.
        "squash": not cropped and len(size) == 2,
    }


def _sides(size: object) -> tuple[int, ...]:
    """The sides in a size of an image processor: height and width, or the shorter side alone; empty if there are none."""
    if isinstance(size, int) and size > 0:
        return size, size
    stated = size if isinstance(size, Mapping) else {}
    sides = [stated[key] for key in ("height", "width", "shortest_edge") if isinstance(stated.get(key), int)]
    return tuple(side for side in sides if side > 0)

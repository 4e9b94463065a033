"""The one door through which a config enters transformers.

Input: a config as plain data. Output: the library's config object.
Only keys of an allow-list pass, as a copy: those that the family's config class declares, and those that the family's definition names. A
key that chooses an implementation, names code, or changes the form of a call's result never passes.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ligo_convert.checkpoints.config_keys import chooses_code
from ligo_convert.errors import LigoError, SourceError
from ligo_convert.families.configs import RESULT_KEYS
from ligo_convert.families.schema import Family

# Keys of older configs that the config classes of rotary models still read, though they no longer declare them.
_OLD_ROTARY_KEYS = ("rope_scaling", "rope_theta", "partial_rotary_factor")

_NAMED_FIELD = re.compile(r"Validation error for field '(\w+)': (?:\w+: )?(.*)")

_CONFIG = "config.json"


class RefusedConfig(SourceError):
    """The library refuses a config.

    Attributes:
        key: the config key at fault; empty if the library names none.
    """

    def __init__(self, what: str, *, key: str = "", **details: Any) -> None:
        super().__init__(what, **details)
        self.key = key


def library_config(family: Family, config: Mapping[str, object]) -> Any:
    """Return the library's config object for the keys that decide what a model computes.

    Raises:
        RefusedConfig: the library refuses the config.
        LigoError: the library derives other sizes from it than the family does.
    """
    made = _made(family, handed_on(family, config))
    seen, meant = family.sizes(made.to_dict()), family.sizes(config)
    if seen != meant:
        different = {axis: (meant[axis], seen[axis]) for axis in meant if meant[axis] != seen[axis]}
        raise LigoError(f"{family.name}: transformers derives other sizes from this config: {different}")
    return made


def handed_on(family: Family, config: Mapping[str, object]) -> dict[str, object]:
    """Return the part of a config that the library may see: what decides what a model computes."""
    allowed = _allowed_keys(family)
    return {key: value for key, value in config.items() if key in allowed}


def check_written_config(family: Family, config: Mapping[str, object]) -> None:
    """Require that the library reads a config.json with all its keys, the unknown ones too. Raises RefusedConfig."""
    _made(family, {key: value for key, value in config.items() if key not in ("model_type", "architectures")})


def refused(error: Exception, family: Family, config: Mapping[str, object]) -> RefusedConfig:
    """Return an exception of the library as one that names the key at fault, where it can be told."""
    text = " ".join(str(error).split())
    named = _NAMED_FIELD.match(text)
    if named:
        key, why = named[1], named[2]
    else:
        # A table of the library without this name, such as an activation's, raises KeyError(name).
        wanted = error.args[0] if isinstance(error, KeyError) and error.args else None
        key = next((key for key, value in config.items() if wanted is not None and _holds(value, wanted)), "")
        why = f"unknown name {wanted!r}" if key else f"{type(error).__name__}: {text}"
    about = f"{key} of this {family.name}" if key else f"the config of this {family.name}"
    return RefusedConfig(f"{family.library} refuses {about}: {why}", key=key, where=_CONFIG)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the library's own warnings and progress bars."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _made(family: Family, data: Mapping[str, object]) -> Any:
    import transformers

    with quiet():
        try:
            # The config classes write into the nested values that they are given.
            return transformers.AutoConfig.for_model(family.model_type, **copy.deepcopy(dict(data)))
        except Exception as error:  # noqa: BLE001  the library raises many classes of errors; the user needs its message
            raise refused(error, family, data) from None


def _allowed_keys(family: Family) -> frozenset[str]:
    import transformers

    base = _parameters(transformers.PreTrainedConfig)
    declared = _parameters(transformers.CONFIG_MAPPING[family.model_type]) - base
    rotary = _OLD_ROTARY_KEYS if "rope_parameters" in declared else ()
    named = {*declared, *rotary, *family.config_keys}
    return frozenset(key for key in named if key not in RESULT_KEYS and not chooses_code(key))


def _parameters(kind: type) -> set[str]:
    return set(inspect.signature(kind).parameters)


def _holds(value: object, wanted: object) -> bool:
    """Return True if `wanted` is the value or lies inside it."""
    inner: Iterable[object] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    return value == wanted or any(_holds(item, wanted) for item in inner)

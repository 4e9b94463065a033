"""Which keys of a config.json name code instead of describing a model.

Input: config.json as plain data. Output: the same without these keys, and a warning for each; or a SourceError.
"""

from __future__ import annotations

from collections.abc import Mapping

from ligo_convert.errors import SourceError
from ligo_convert.io.strict_json import short

# Keys with which a library finds Python code beside the weights or on the Hub.
CODE_KEYS = frozenset(("auto_map", "trust_remote_code", "custom_pipelines", "custom_code"))


def chooses_code(key: str) -> bool:
    """Return True for a config key that names code to load, or chooses among implementations of the same model.

    For an implementation such as `org/kernel`, transformers fetches code from the Hub and runs it.

    >>> chooses_code("auto_map"), chooses_code("attn_implementation"), chooses_code("hidden_act")
    (True, True, False)
    """
    return key in CODE_KEYS or "_implementation" in key


def without_code(config: Mapping[str, object], *, label: str) -> tuple[dict[str, object], list[str]]:
    """Return a copy of `config` without the keys that choose code, at any depth, and a warning for each such key.

    No library needs them: a model is converted only if the library itself implements its class.

    Raises:
        SourceError: a key that no library writes into a config.json, and that only serves to run foreign code.
    """
    warnings: list[str] = []

    def kept(value: object, path: str) -> object:
        if isinstance(value, list):
            return [kept(item, f"{path}[{number}]") for number, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        plain: dict[str, object] = {}
        for key, item in value.items():
            key_path = f"{path}.{key}" if path else key
            if key == "trust_remote_code" or "_implementation_internal" in key:
                raise SourceError(
                    f"the config has {short(key_path)!r}, which only serves to run foreign code",
                    where=label,
                    hint="remove the key; only architectures that the library itself implements can be converted",
                )
            if chooses_code(key):
                why = "it names code" if key in CODE_KEYS else "it chooses an implementation, not a model"
                warnings.append(f"{label}: {short(key_path)} is ignored and not written: {why}")
            else:
                plain[key] = kept(item, key_path)
        return plain

    data = kept(config, "")
    assert isinstance(data, dict)
    return data, warnings

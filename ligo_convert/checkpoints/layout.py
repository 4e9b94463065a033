"""What a checkpoint must look like: names, headers, an index and a config in, one table of tensors or a refusal out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ligo_convert.checkpoints.files import INDEX, WEIGHTS, Place
from ligo_convert.checkpoints.headers import Header, Index, StoredTensor
from ligo_convert.errors import SourceError
from ligo_convert.io.strict_json import short

_OTHER_WEIGHTS = re.compile(r".*\.(bin|pt|pth|ckpt|h5|msgpack|gguf|onnx)(\.index\.json)?")

TEMPLATED = ("tokenizer_config.json", "chat_template.jinja", "chat_template.json")

_INTERNALS = re.compile(rb"__(class|base|bases|mro|subclasses|globals|builtins|import|init|getattribute|dict|code)__")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A weight file. `path` is None where it was opened for planning and lies on the Hub only."""

    name: str
    path: Path | None
    size: int
    expected: str | None  # the SHA-256 or git blob id its origin gives, None for a plain directory


@dataclass(frozen=True, kw_only=True)
class SourceTensor(StoredTensor):
    """A tensor, where its bytes lie, and the weight file they lie in."""

    file: SourceFile


def is_sharded(place: Place) -> bool:
    """Whether the weights are shards with an index or a single file. Anything else that is there is refused."""
    single, sharded = WEIGHTS in place.names, INDEX in place.names
    if single and sharded:
        raise SourceError(
            f"both {WEIGHTS} and {INDEX} are there, and tools disagree on which one counts",
            where=place.label,
            hint="remove the one that is stale (of a repository: download it, remove one, and name the directory)",
        )
    if single or sharded:
        return sharded
    other = sorted(name for name in place.names if _OTHER_WEIGHTS.fullmatch(name))
    raise SourceError(
        "no safetensors weights, only " + short(", ".join(other)) if other else "no weights",
        where=place.label,
        expected=f"{WEIGHTS}, or {INDEX} and its shards",
        hint="convert first: load it where untrusted pickles can do no harm, and save it as safetensors"
        if other
        else "",
    )


def check_shards(place: Place, index: Index | None, shards: list[str]) -> None:
    missing = [name for name in shards if name not in place.names]
    if index is not None and missing and place.complete:
        raise SourceError(
            f"the index names {missing[0]}, which is not there"
            + (f" (+{len(missing) - 1} more)" if missing[1:] else ""),
            where=f"{place.label}/{INDEX}",
            hint="fetch the missing files",
        )


def join_tables(
    headers: Mapping[str, tuple[SourceFile, Header]], index: Index | None, *, label: str
) -> dict[str, SourceTensor]:
    """One table of all files' tensors, which must be exactly what the index says."""
    tensors: dict[str, SourceTensor] = {}
    for file, header in headers.values():
        for name, stored in header.tensors.items():
            if name in tensors:
                raise SourceError(
                    f"the tensor is in two files, {tensors[name].file.name} and {file.name}",
                    where=f"{label}/{file.name}: {short(name)}",
                )
            tensors[name] = SourceTensor(spec=stored.spec, start=stored.start, end=stored.end, file=file)
    if index is None:
        return tensors
    for name, shard in index.weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            found = f"in {tensors[name].file.name}" if name in tensors else "in no file"
            raise SourceError(
                f"the index has the tensor in {shard}",
                where=f"{label}/{shard}: {short(name)}",
                expected=shard,
                found=found,
            )
    for name, tensor in tensors.items():
        if name not in index.weight_map:
            raise SourceError("the index does not name the tensor", where=f"{label}/{tensor.file.name}: {short(name)}")
    return tensors


def check_config(config: dict[str, object], *, label: str) -> dict[str, object]:
    """The config, after refusing every key, at any depth, that makes a library run code from elsewhere."""
    waiting: list[tuple[str, object]] = [("", config)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(f"{path}[{number}]", item) for number, item in enumerate(value)]
        if not isinstance(value, dict):
            continue
        for key, item in value.items():
            # A slash in the name of an attention implementation makes transformers fetch and run a kernel of the Hub.
            kernel = key.endswith("_implementation") and isinstance(item, str) and ("/" in item or "|" in item)
            place = f"{path}.{key}" if path else key
            runs_code = key in ("auto_map", "trust_remote_code", "custom_pipelines", "custom_code")
            if kernel or runs_code or "_implementation_internal" in key:
                raise SourceError(
                    f"the config has {short(place)!r}, which makes libraries run code that is not theirs",
                    where=label,
                    hint="only architectures that the library implements itself are converted",
                )
            waiting.append((place, item))
    return config


def stated_license(card: bytes) -> str | None:
    """`license` of a card's YAML front matter, if that is one plain scalar. The card is never rendered."""
    lines = card[: 64 << 10].decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return None
    stated: list[str | None] = []
    for line in lines[1:]:
        if line.rstrip() in ("---", "..."):
            # Two statements contradict or repeat each other: neither is trusted.
            return stated[0] if len(stated) == 1 else None
        if line.startswith("license:"):
            match = re.fullmatch(r"""license:\s+(["']?)([A-Za-z0-9][A-Za-z0-9.+-]{0,63})\1\s*(#.*)?""", line)
            stated.append(match[2] if match and match[2].lower() not in ("null", "true", "false") else None)
    return None


def template_warnings(data: bytes, *, where: str) -> list[str]:
    """What a file of `TEMPLATED` may do to those who load it; here its bytes are only copied."""
    warnings = []
    if b'"auto_map"' in data:
        warnings.append(f"{where}: names code of its own (auto_map), which is never run here")
    if _INTERNALS.search(data):
        warnings.append(f"{where}: a chat template reaches for Python's internals; it is copied only")
    return warnings

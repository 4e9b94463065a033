"""Rules for the layout of a checkpoint.

Input: file names, headers, an index, a config. Output: one checked table of tensors, or a SourceError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ligo_convert.checkpoints.files import CONFIG, INDEX, WEIGHTS, Place
from ligo_convert.checkpoints.headers import Header, Index, StoredTensor
from ligo_convert.checkpoints.other_weights import no_weights
from ligo_convert.errors import SourceError, some
from ligo_convert.io.strict_json import short

_INTERNALS = re.compile(rb"__(class|base|bases|mro|subclasses|globals|builtins|import|init|getattribute|dict|code)__")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A weight file with its header.

    Attributes:
        name: the file name.
        path: None if the file was opened for planning and exists only on the Hub.
        size: size in bytes.
        expected: SHA-256 or git blob id that the origin lists; None for a plain directory.
        header: the checked safetensors header.
    """

    name: str
    path: Path | None
    size: int
    expected: str | None
    header: Header = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class SourceTensor(StoredTensor):
    """A tensor, its byte range, and the weight file that holds it."""

    file: SourceFile


def check_weights(place: Place, index: Index | None) -> None:
    """Raise SourceError unless the checkpoint has one weight file, or an index, or both in agreement.

    Args:
        index: the index; None if the checkpoint has none.
    """
    single = WEIGHTS in place.names
    if index is None and not single:
        raise no_weights(place.names, where=place.label, inner=place.inner())
    shards = sorted(set(index.weight_map.values())) if index is not None else []
    if single and index is not None and shards != [WEIGHTS]:
        raise SourceError(
            f"both {WEIGHTS} and {INDEX} exist, and tools disagree on which one to load",
            where=place.label,
            expected=f"an index whose entries all name {WEIGHTS}, or one of the two files",
            found=f"an index that names {some(shards)}",
            hint="remove the one that is stale (of a repository: download it, remove one, and name the directory)",
        )


def check_named_weights(config: Mapping[str, object], index: Index | None, *, where: str) -> None:
    """Raise SourceError if config.json names another weight file than the one that is read: transformers loads the named one."""
    named, read = config.get("transformers_weights"), INDEX if index is not None else WEIGHTS
    if named is not None and named != read:
        raise SourceError(
            "transformers_weights names another weight file",
            where=where,
            expected=read,
            found=named,
            hint="keep the weights that are meant under that name, and remove the key from config.json",
        )


def check_shards(place: Place, index: Index | None, shards: list[str]) -> None:
    """Raise SourceError if the index names a file that does not exist."""
    missing = [name for name in shards if name not in place.names]
    if index is not None and missing and place.complete:
        raise SourceError(
            f"the index names {missing[0]}, which does not exist"
            + (f" (+{len(missing) - 1} more)" if missing[1:] else ""),
            where=f"{place.label}/{INDEX}",
            hint="fetch the missing files",
        )


def join_tables(files: Sequence[SourceFile], index: Index | None, *, label: str) -> dict[str, SourceTensor]:
    """Join the tensors of all files into one table. Raises SourceError unless it agrees with the index."""
    tensors: dict[str, SourceTensor] = {}
    for file in files:
        for name, stored in file.header.tensors.items():
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
            actual = f"in {tensors[name].file.name}" if name in tensors else "in no file"
            raise SourceError(
                f"the index has the tensor in {shard}",
                where=f"{label}/{shard}: {short(name)}",
                expected=shard,
                found=actual,
            )
    for name, tensor in tensors.items():
        if name not in index.weight_map:
            raise SourceError("the index does not name the tensor", where=f"{label}/{tensor.file.name}: {short(name)}")
    return tensors


def stated_license(card: bytes) -> str | None:
    """Return `license` of a model card's YAML front matter if it is one plain scalar, else None."""
    lines = card[: 64 << 10].decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return None
    stated: list[str | None] = []
    for line in lines[1:]:
        if line.rstrip() in ("---", "..."):
            # Two licence lines contradict or repeat each other: trust neither.
            return stated[0] if len(stated) == 1 else None
        if line.startswith("license:"):
            match = re.fullmatch(r"""license:\s+(["']?)([A-Za-z0-9][A-Za-z0-9.+-]{0,63})\1\s*(#.*)?""", line)
            stated.append(match[2] if match and match[2].lower() not in ("null", "true", "false") else None)
    return None


def is_templated(name: str) -> bool:
    """Return True for a carried file that can name code or hold a template. Vocabularies are not among them."""
    return name != CONFIG and name.endswith(("_config.json", "/config.json", "chat_template.json", ".jinja"))


def template_warnings(data: bytes, *, where: str) -> list[str]:
    """Return warnings about code in a file for which `is_templated` is True. This package copies the file and never runs it."""
    warnings = []
    if b'"auto_map"' in data:
        warnings.append(f"{where}: names custom code (auto_map); it is never run here")
    if _INTERNALS.search(data):
        warnings.append(f"{where}: a chat template accesses Python internals; it is copied and never run here")
    return warnings

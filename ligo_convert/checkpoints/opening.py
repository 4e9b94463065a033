"""Open a checkpoint in one pass, from file names to a checked table of tensors.

Input: a `Place`, which lists the files of a checkpoint and brings them to this machine.
Output: an `OpenedCheckpoint` with the config, the small files' names, one table of all tensors and an open descriptor per weight file.

Each step only uses what the steps before it have checked: names, small files, layout, headers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ligo_convert.checkpoints.config_keys import without_code
from ligo_convert.checkpoints.files import (
    CARD,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    TOKENIZER_FILES,
    WEIGHTS,
    Place,
    SmallFiles,
    blob_digest,
    open_inside,
)
from ligo_convert.checkpoints.headers import Index, parse_index, read_header
from ligo_convert.checkpoints.layout import (
    SourceFile,
    SourceTensor,
    check_named_weights,
    check_shards,
    check_weights,
    is_templated,
    join_tables,
    stated_license,
    template_warnings,
)
from ligo_convert.checkpoints.model_files import ModelFiles, sort_files
from ligo_convert.io.strict_json import strict_json


class Flatten(Protocol):
    """Convert the config.json of any supported library to one flat form. Raises SourceError for an unknown architecture."""

    def __call__(self, config: Mapping[str, object], *, where: str) -> dict[str, object]: ...


@dataclass(frozen=True, kw_only=True)
class OpenedCheckpoint:
    """A checkpoint with all names, headers and small files checked and all local weight files open.

    Attributes:
        label: the Hub id, or the name of the local directory without its parents.
        revision: the commit on the Hub; None for a directory.
        root: the directory that the files are read from.
        small_files: reader of the small files; remembers the bytes of the first read.
        side_files: names of the small files that belong to the model, tokenizer files included.
        tokenizer_files: names of the tokenizer and image processor files.
        model_files: the files beside the weights, sorted into those that are carried and those that are left behind.
        stored_config: config.json as plain data, without the keys that name code.
        config: the same config in the flat form that families read.
        license: licence in the front matter of the model card; None if it states none.
        files: weight files by name.
        tensors: all tensors of all weight files by name.
        descriptors: open file descriptors of the local weight files by name.
        resources: closes the descriptors.
        warnings: oddities that do not prevent the use of the checkpoint.
    """

    label: str
    revision: str | None
    root: Path
    small_files: SmallFiles
    side_files: tuple[str, ...]
    tokenizer_files: tuple[str, ...]
    model_files: ModelFiles
    stored_config: dict[str, object]
    config: dict[str, object]
    license: str | None
    files: dict[str, SourceFile]
    tensors: dict[str, SourceTensor]
    descriptors: dict[str, int]
    resources: ExitStack
    warnings: list[str]


def open_checkpoint(place: Place, *, flatten: Flatten, weights: bool) -> OpenedCheckpoint:
    """Open the checkpoint at `place`.

    Args:
        place: lists and fetches the files.
        flatten: converts config.json to the flat form.
        weights: False fetches no weight file: headers of files that are not local are read from the Hub.

    Raises:
        SourceError: the checkpoint is broken, incomplete, unsupported or unsafe.
        SourceChanged: a file cannot be fetched, or its bytes are not those that its origin lists.
        MachineError: no permission to read a file.
    """
    small_files = SmallFiles(place)
    # Names: one weight file, or shards with an index?
    index = _read_index(place, small_files) if INDEX in place.names else None
    check_weights(place, index)

    weight_names = sorted(set(index.weight_map.values())) if index is not None else [WEIGHTS]

    # Small files.
    tokenizer_files = tuple(name for name in TOKENIZER_FILES if name in place.names)
    configs = tuple(name for name in (CONFIG, GENERATION_CONFIG) if name in place.names)
    indexes = (INDEX,) if index is not None else ()
    model_files = sort_files(place, small_files, used={CONFIG, *indexes, *weight_names})
    side_files = tuple(
        dict.fromkeys((*configs, *indexes, *tokenizer_files, *model_files.carried, *model_files.module_files))
    )
    place.fetch([*side_files, *({CARD} & place.names)])
    where = f"{place.label}/{CONFIG}"
    stored_config, ignored_keys = without_code(strict_json(small_files.read(CONFIG), label=where), label=where)
    place.warnings += ignored_keys
    check_named_weights(stored_config, index, where=where)
    config = flatten(stored_config, where=where)
    for name in side_files:
        if is_templated(name):
            place.warnings += template_warnings(small_files.read(name), where=f"{place.label}/{name}")
    stated = stated_license(small_files.read(CARD)) if CARD in place.names else None

    # Layout: every file that the index names exists.
    check_shards(place, index, weight_names)
    if weights:
        place.fetch(weight_names)

    # Headers: one table of tensors, in agreement with the index.
    with ExitStack() as stack:
        descriptors: dict[str, int] = {}
        files = {name: _open_weights(place, name, descriptors, stack) for name in weight_names}
        tensors = join_tables(list(files.values()), index, label=place.label)
        place.warnings += _total_size_warnings(tensors, index, label=place.label)
        return OpenedCheckpoint(
            label=place.label,
            revision=place.revision,
            root=place.root,
            small_files=small_files,
            side_files=side_files,
            tokenizer_files=tokenizer_files,
            model_files=model_files,
            stored_config=stored_config,
            config=config,
            license=stated,
            files=files,
            tensors=tensors,
            descriptors=descriptors,
            resources=stack.pop_all(),
            warnings=place.warnings,
        )


def _read_index(place: Place, small_files: SmallFiles) -> Index:
    place.fetch([INDEX])
    return parse_index(small_files.read(INDEX), label=f"{place.label}/{INDEX}")


def _open_weights(place: Place, name: str, descriptors: dict[str, int], stack: ExitStack) -> SourceFile:
    """Read the header of one weight file. A local file stays open: its descriptor is added to `descriptors`, `stack` closes it."""
    label = f"{place.label}/{name}"
    path = place.root / name
    if not os.path.lexists(path):
        header, size = place.header(name)
        return SourceFile(name=name, path=None, size=size, expected=place.expected.get(name), header=header)
    fd = open_inside(place.root, name, label=label)
    stack.callback(os.close, fd)
    descriptors[name] = fd
    expected = place.expected.get(name) or blob_digest(place.root, name)
    header = read_header(fd, label=label)
    return SourceFile(name=name, path=path, size=os.fstat(fd).st_size, expected=expected, header=header)


def _total_size_warnings(tensors: Mapping[str, SourceTensor], index: Index | None, *, label: str) -> list[str]:
    total = sum(tensor.spec.nbytes for tensor in tensors.values())
    if index is None or index.total_size is None or index.total_size == total:
        return []
    return [f"{label}/{INDEX}: total_size is {index.total_size}, the tensors take {total} bytes"]

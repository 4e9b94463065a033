"""Write the weights of a pickled checkpoint as safetensors, with its config and a record of its origin.

Input: a pickled file, a directory with `pytorch_model.bin` or its shards, or one of torch.distributed.checkpoint.
Output: a directory that a recipe can name as its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ligo_convert.checkpoints.files import (
    CARD,
    CONFIG,
    INDEX,
    WEIGHTS,
    Place,
    SmallFiles,
)
from ligo_convert.checkpoints.model_files import LeftBehind, sort_files
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.checkpoints.writer import Writer, plan_shards
from ligo_convert.environment import versions
from ligo_convert.errors import RecipeError, SourceChanged, SourceError, some
from ligo_convert.importing.pickle_reader import SHARD, TABLE, Group, PickledFile, PickledTensor
from ligo_convert.importing.state_dict import choose_group, plain_names
from ligo_convert.io.files import check_room, output_path, refuse_taken
from ligo_convert.io.staging import Staging
from ligo_convert.io.strict_json import sha256_of, short, strict_json
from ligo_convert.progress import Progress

RECORD = "ligo-import.json"
_PICKLED_INDEX = "pytorch_model.bin.index.json"
# accelerate and transformers' Trainer store a model so under FSDP.
_SHARDED = re.compile(r"pytorch_model_fsdp_[0-9]+")
_PICKLED = re.compile(r".+\.(bin|pt|pth|ckpt)(\.tar)?")
_FORMAT = "ligo-import/1"
# Open processes at a time. A shard of the output can hold tensors of two files.
_MOST_OPEN = 2


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What the user says about a pickled checkpoint.

    Attributes:
        key: keys that lead to the weights inside the file, separated by dots; None if there is only one choice.
        strip: a prefix to take off every name, such as `model.`.
        config: a config.json to use in place of the directory's.
        architecture: a timm architecture; config.json is then written with it.
        max_shard_size: bytes of tensors per output file at most.
        confine: False reads the pickle without the sandbox of the kernel.
    """

    key: str | None = None
    strip: str = ""
    config: Path | None = None
    architecture: str | None = None
    max_shard_size: int = 5_000_000_000
    confine: bool = True


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One tensor of the output: its plain name and spec, and the file and tensor it comes from."""

    spec: TensorSpec
    file: Path
    tensor: PickledTensor


class _Files:
    """Opens pickled files when they are needed, few at a time, and checks that each stays the same."""

    def __init__(self, *, confine: bool) -> None:
        self._confine = confine
        self._open: dict[Path, PickledFile] = {}
        self.sha256: dict[Path, str] = {}

    def open(self, path: Path) -> PickledFile:
        if path not in self._open:
            while len(self._open) >= _MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            file = PickledFile(path, label=path.name, confine=self._confine)
            self._open[path] = file
            self.sha256.setdefault(path, file.sha256())
        return self._open[path]

    def check(self) -> None:
        """Read every file again. Raises SourceChanged if one has other bytes than at its first use."""
        for path, before in self.sha256.items():
            after = self.open(path).sha256()
            if after != before:
                raise SourceChanged(
                    "the file changed while it was imported", where=path.name, expected=before, found=after
                )

    def close(self) -> None:
        for file in self._open.values():
            file.close()


def import_checkpoint(
    path: Path, out: Path, settings: ImportSettings, *, progress: Progress | None = None
) -> dict[str, object]:
    """Import a pickled checkpoint into the new directory `out` and return a report.

    Args:
        path: a pickled file, a directory that holds one, or a sharded checkpoint of torch.distributed.checkpoint.
        out: the directory to write; it must not exist, or be empty.
        settings: what the user says about the checkpoint.
        progress: shows the progress.

    Raises:
        RecipeError: an option does not fit the checkpoint.
        SourceError: there is no pickled file, torch refuses it, or a tensor cannot be stored.
        SourceChanged: a file changed during the import.
        MachineError: no room, no sandbox, or the reading process ended.
        OutputBusy: `out` is not empty, or another import writes it.
    """
    progress = progress or Progress()
    refuse_taken(output_path(out))
    files, index = _pickled_files(path)
    config = _config(path, settings)
    with ExitStack() as stack:
        opened = _Files(confine=settings.confine)
        stack.callback(opened.close)
        progress.say(f"{len(files)} pickled file(s): reading the table of tensors in a process without rights")
        groups = {file: choose_group(opened.open(file).groups, key=settings.key, label=file.name) for file in files}
        entries = _entries(groups, index, strip=settings.strip, label=path.name)
        plan = plan_shards([entry.spec for entry in entries], settings.max_shard_size)
        check_room(out.parent, plan.nbytes)
        key = sha256_of(
            {"sha256": [opened.sha256[file] for file in files], "key": settings.key, "strip": settings.strip}
        )
        staging = stack.enter_context(Staging.open(out, key=f"import {key}"))
        sources = {entry.spec.name: entry for entry in entries}
        with (
            progress.task("import", plan.nbytes, unit="B") as task,
            Writer(staging, plan, on_bytes=lambda count: task.advance(count)) as writer,
        ):
            for spec in writer.pending():
                entry = sources[spec.name]
                writer.put(spec.name, opened.open(entry.file).read(entry.tensor))
        written = writer.close()
        carried, left = _carry(path, staging, config, {file.name for file in files})
        opened.check()
        record = _record(groups, entries, opened, settings) | {
            "files": written,
            "carried": carried,
            "left_behind": [{"path": entry.path, "reason": entry.reason} for entry in left],
        }
        staging.write_bytes(RECORD, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
        staging.commit()
    return {"out": str(out), "tensors": len(entries), "bytes": plan.total_size, **record}


# --- the input ----------------------------------------------------------------------------------------------------------


def _pickled_files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the pickled files of `path`, and tensor name -> file name if an index lists them."""
    if path.is_file():
        return [path], {}
    if not path.is_dir():
        raise SourceError("no such file or directory", where=path.name)
    names = {entry.name for entry in path.iterdir()}
    if WEIGHTS in names or INDEX in names:
        raise SourceError(
            f"the directory has {WEIGHTS if WEIGHTS in names else INDEX}, so nothing has to be imported",
            where=path.name,
            hint="name the directory as the source, or name the pickled file itself",
        )
    if TABLE in names:
        return [path], {}
    sharded = sorted(name for name in names if _SHARDED.fullmatch(name) and (path / name / TABLE).is_file())
    if len(sharded) > 1:
        raise SourceError(
            "several sharded checkpoints",
            where=path.name,
            found=some(sharded),
            hint="name the directory of one, with --config or --architecture",
        )
    if sharded:
        return [path / sharded[0]], {}
    if _PICKLED_INDEX in names:
        index = _index(path)
        files = sorted(set(index.values()))
        missing = [name for name in files if name not in names]
        if missing:
            raise SourceError(
                f"the index names {some(missing)}, which does not exist", where=f"{path.name}/{_PICKLED_INDEX}"
            )
        return [path / name for name in files], index
    found = sorted(name for name in names if _PICKLED.fullmatch(name) and (path / name).is_file())
    if len(found) != 1:
        raise SourceError(
            "several pickled files" if found else "no pickled file",
            where=path.name,
            expected="pytorch_model.bin, its shards with their index, one .pt, .pth, .ckpt or .bin file, or .metadata and .distcp files",
            found=some(found) if found else None,
            hint="name the file itself, with --config or --architecture" if found else "",
        )
    return [path / found[0]], {}


def _index(path: Path) -> dict[str, str]:
    label = f"{path.name}/{_PICKLED_INDEX}"
    weight_map = strict_json(_small_files(path).read(_PICKLED_INDEX), label=label).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError("the index has no weight_map", where=label)
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _PICKLED.fullmatch(file) or "/" in file or "\\" in file:
            raise SourceError(
                "weight_map names something other than a pickled file beside the index",
                where=f"{label}: {short(name)}",
                expected="a plain file name such as pytorch_model-00001-of-00002.bin",
                found=short(file),
            )
    return weight_map


def _place(path: Path) -> Place:
    place = Place()
    place.label, place.root, place.warnings = path.name, path, []
    place.names = frozenset(entry.name for entry in path.iterdir())
    return place


def _small_files(path: Path) -> SmallFiles:
    return SmallFiles(_place(path))


def _config(path: Path, settings: ImportSettings) -> bytes | None:
    """Return the bytes of the config.json to write; None to take the directory's."""
    if settings.config is not None and settings.architecture is not None:
        raise RecipeError("give --config or --architecture, not both")
    if settings.config is not None:
        data = _small_files(settings.config.parent).read(settings.config.name)
        strict_json(data, label=settings.config.name)
        return data
    if settings.architecture is not None:
        return (json.dumps({"architecture": settings.architecture}, indent=2) + "\n").encode()
    if path.is_dir() and (path / CONFIG).is_file():
        strict_json(_small_files(path).read(CONFIG), label=f"{path.name}/{CONFIG}")
        return None
    raise RecipeError(
        "the architecture is unknown: a pickled file does not name it",
        where=path.name,
        hint="give --config FILE, the model's config.json, or --architecture NAME, such as --architecture deit_small_patch16_224",
    )


# --- the output ---------------------------------------------------------------------------------------------------------


def _entries(groups: Mapping[Path, Group], index: Mapping[str, str], *, strip: str, label: str) -> list[_Entry]:
    """Return the tensors of all files, in the order of the files."""
    holders: dict[str, tuple[Path, PickledTensor]] = {}
    for file, group in groups.items():
        for name, problem in group.refused.items():
            raise SourceError(
                f"the tensor {problem}", where=f"{file.name}: {short(name)}", expected="a dense tensor with its data"
            )
        for tensor in group.tensors:
            name = tensor.spec.name
            if name in holders:
                raise SourceError("the tensor is in two files", where=f"{label}: {short(name)}")
            holders[name] = (file, tensor)
    for name, file_name in index.items():
        if name not in holders or holders[name][0].name != file_name:
            raise SourceError(
                f"the index has the tensor in {file_name}, which does not hold it", where=f"{label}: {short(name)}"
            )
    plain = plain_names(list(holders), strip=strip, label=label)
    return [
        _Entry(
            spec=TensorSpec(name=plain[name], dtype=tensor.spec.dtype, shape=tensor.spec.shape),
            file=file,
            tensor=tensor,
        )
        for name, (file, tensor) in holders.items()
    ]


def _carry(
    path: Path, staging: Staging, config: bytes | None, pickled: Collection[str]
) -> tuple[list[str], list[LeftBehind]]:
    """Write config.json and copy the files of a directory that belong to the model. Return their names, and what is left behind."""
    carried: list[str] = []
    left: list[LeftBehind] = []
    if config is not None:
        staging.write_bytes(CONFIG, config)
        carried.append(CONFIG)
    if path.is_dir():
        place = _place(path)
        small = SmallFiles(place)
        shards = {name for name in place.names if name == TABLE or SHARD.fullmatch(name)}
        files = sort_files(place, small, used={CONFIG, CARD, _PICKLED_INDEX, *pickled, *shards})
        left = list(files.left)
        for name in (CONFIG, CARD, *files.carried, *files.module_files):
            if name not in carried and ("/" in name or name in place.names):
                staging.write_bytes(name, small.read(name))
                carried.append(name)
    return sorted(carried), left


def _record(
    groups: Mapping[Path, Group], entries: Sequence[_Entry], opened: _Files, settings: ImportSettings
) -> dict[str, object]:
    """Return the record of the import: what was read, how, and what was left out."""
    renamed = sum(entry.spec.name != entry.tensor.spec.name for entry in entries)
    return {
        "format": _FORMAT,
        "sources": [
            {
                "file": file.name,
                "sha256": opened.sha256[file],
                "key": list(group.path),
                "tensors": len(group.tensors),
                "left_out": sorted(group.others),
                "shared": [sorted(names) for names in group.shared],
            }
            for file, group in groups.items()
        ],
        "renamed": renamed,
        "stripped": settings.strip,
        "architecture": settings.architecture,
        "sandbox": "landlock, seccomp and resource limits" if settings.confine else "none: weights_only alone",
        "versions": versions(),
    }

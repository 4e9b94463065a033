"""Grow the state of a training beside a source, so that the training goes on from the output.

Input: a source directory that `train`, transformers' Trainer or accelerate wrote (an output, `checkpoint-N`, `save_state`), the optimizer's
state as one file or in the shards of torch.distributed.checkpoint; the operator of a run.
Output: the same files of the target: the optimizer's state grown (`growth.moments`), the state of the learning rate's schedule, of the
random generators and of the Trainer as they were. A run stages them; `outputs.derived_state` compares them.

Pickled files are read by the confined process of `importing`. Nothing of them is unpickled here.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ligo_convert.checkpoints.digests import sha256_of
from ligo_convert.errors import SourceChanged, SourceError
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.parameters import model_names, model_parameters
from ligo_convert.families.schema import Family
from ligo_convert.growth.operator import Operator
from ligo_convert.importing.pickle_reader import PickledFile, PickledTensor, Unread
from ligo_convert.importing.state_dict import plain_names
from ligo_convert.io.files import reporting
from ligo_convert.io.staging import Staging
from ligo_convert.io.strict_json import json_bytes, short, strict_json
from ligo_convert.outputs.layout import OPTIMIZERS, TRAINER_STATE, TRAINING_STATE, training_state_name
from ligo_convert.outputs.privacy import check_nothing_private
from ligo_convert.progress import Progress

if TYPE_CHECKING:
    import torch

# Keys of trainer_state.json that name a checkpoint of the source's size, which the target cannot load.
_BEST = ("best_metric", "best_model_checkpoint", "best_global_step")

_MOST_TRAINER_STATE = 64 << 20


@dataclass(frozen=True, kw_only=True)
class TrainingFiles:
    """The state of a training beside the weights of a source.

    Attributes:
        root: the source's directory.
        label: its name in messages.
        optimizer: name of the file, or of the directory of shards, with the optimizer's state.
        others: names of the other files, in order.
        sha256: name -> SHA-256 of every file.
    """

    root: Path
    label: str
    optimizer: str
    others: tuple[str, ...]
    sha256: Mapping[str, str]

    def recheck(self) -> None:
        """Read every file again. Raises SourceChanged if one has other bytes than before."""
        for name, before in self.sha256.items():
            _same(before, _digest(self.root / name, self.label), f"{self.label}/{name}")

    def bytes_of(self, name: str) -> bytes:
        """Return the bytes of a small file."""
        with reporting(self.root / name, "read"):
            return (self.root / name).read_bytes()


def find_training_files(root: Path, label: str) -> TrainingFiles:
    """Find the state of a training in a directory, and hash it.

    Raises:
        SourceError: there is no optimizer's state that can be read.
    """
    found = find_optimizer(root, label)
    if found is None:
        raise SourceError(
            "there is no state of an optimizer beside the weights",
            where=label,
            expected=" or ".join(OPTIMIZERS[:-1]),
            hint="name an output of `train`, a checkpoint-N of transformers' Trainer or a directory of accelerate's save_state;"
            " or grow the weights alone, without growth.state and --with-optimizer",
        )
    others = tuple(name for name in _files_in(root) if training_state_name(name) and name not in OPTIMIZERS)
    return replace(
        found, others=others, sha256={**found.sha256, **{name: _digest(root / name, label) for name in others}}
    )


def find_optimizer(root: Path, label: str) -> TrainingFiles | None:
    """Find the state of an optimizer in a directory, and hash its files; the others are left out. None if there is none."""
    optimizer = next(
        (name for name in OPTIMIZERS if _is_file(root / name) or _is_file(root / name / ".metadata")), None
    )
    if optimizer is None:
        return None
    sharded = (root / optimizer).is_dir()
    names = [f"{optimizer}/{name}" for name in _files_in(root / optimizer)] if sharded else [optimizer]
    strange = next((name for name in names if not training_state_name(name)), None)
    if strange is not None:
        raise SourceError("not a file of a sharded checkpoint", where=f"{label}/{strange}")
    sha256 = {name: _digest(root / name, label) for name in names}
    return TrainingFiles(root=root, label=label, optimizer=optimizer, others=(), sha256=sha256)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _files_in(folder: Path) -> list[str]:
    """Return the names of the files in a directory, symbolic links left out, in order."""
    with reporting(folder, "list"), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))


def _digest(path: Path, label: str) -> str:
    with reporting(path, "read"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return sha256_of(descriptor, label=f"{label}/{path.name}")
    finally:
        os.close(descriptor)


def _same(expected: str, found: str, where: str) -> None:
    if expected != found:
        raise SourceChanged("the file changed during the run", where=where, expected=expected, found=found)


def write_training_files(
    files: TrainingFiles,
    family: Family,
    inventory: Inventory,
    operator: Operator,
    staging: Staging,
    progress: Progress,
    *,
    policy: str,
) -> tuple[str, ...]:
    """Write the state of the training for the target into the staging directory. Return the names of the files.

    Raises as `grown_files` does.
    """
    written = []
    with progress.task("growing the optimizer's state"):
        for name, data in grown_files(files, family, inventory, operator, policy=policy, left=progress.warn):
            staging.write_bytes(name, data)
            written.append(name)
    files.recheck()
    return tuple(written)


def grown_files(
    files: TrainingFiles,
    family: Family,
    inventory: Inventory,
    operator: Operator,
    *,
    policy: str,
    left: Callable[[str], None],
) -> Iterator[tuple[str, bytes | memoryview]]:
    """Yield name and bytes of every file of the training's state for the target. The same input gives the same bytes.

    Args:
        family: narrowed to the target's class.
        inventory: of the source.
        policy: what becomes of the optimizer's state, a name of `growth.state_maps.POLICIES`.
        left: receives one line for a file that is left behind.

    Raises:
        SourceError: a state that is not understood.
        SourceChanged: a file changed during the run.
        MachineError: there is no sandbox to read pickled files in.
    """
    yield from _grown_optimizer_files(files, family, inventory, operator, policy)
    for name in files.others:
        label = f"{files.label}/{name}"
        if name == TRAINER_STATE:
            yield name, _trainer_state(files.bytes_of(name), label)
            continue
        try:
            # Read once, so that no file is handed on that is more than data.
            with PickledFile(files.root / name, label=label, tree=True) as opened:
                _same(files.sha256[name], opened.sha256(), label)
        except SourceError as error:
            left(f"{name} is left behind: {error.what}")
            continue
        data = files.bytes_of(name)
        _same(files.sha256[name], hashlib.sha256(data).hexdigest(), label)
        yield name, data


def _trainer_state(data: bytes, label: str) -> bytes:
    """Return trainer_state.json without the best checkpoint so far: it has the size of the source."""
    if len(data) > _MOST_TRAINER_STATE:
        raise SourceError("the file is too large", where=label, found=f"{len(data)} bytes")
    content = strict_json(data, label=label)
    made = json_bytes({**content, **{key: None for key in _BEST if key in content}})
    try:
        check_nothing_private(made.decode("ascii"), where=label, names_in=(), refusing=SourceError)
    except SourceError as error:
        raise SourceError(
            error.what, where=label, hint="remove the path or secret from the file, or grow the weights alone"
        ) from None
    return made


# --- the optimizer's state --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Read:
    """The state of an optimizer, as it is stored.

    Attributes:
        groups: the settings of every group, without its parameters.
        names: canonical names of the parameters of every group.
        states: canonical name -> kind -> tensor; `step` may be a number.
        dtypes: kind -> dtype of its tensors.
        keyed: what stands for a parameter in the file: its number, or its name.
        others: what the file holds besides `state` and `param_groups`.
        inside: keys that lead to the state.
    """

    groups: list[dict[str, Any]]
    names: list[list[str]]
    states: dict[str, dict[str, torch.Tensor]]
    dtypes: dict[str, torch.dtype]
    keyed: str
    others: dict[str, Any]
    inside: tuple[str, ...]


def _grown_optimizer_files(
    files: TrainingFiles, family: Family, inventory: Inventory, operator: Operator, policy: str
) -> Iterator[tuple[str, bytes | memoryview]]:
    """Yield name and bytes of the files of the target's optimizer state."""
    if files.optimizer != TRAINING_STATE:
        yield from _stored(_grown_optimizer(files, family, inventory, operator, policy), files)
        return
    from ligo_convert.growth.moments import grown_moments
    from ligo_convert.training.state import optimizer_state

    grown = grown_moments(operator, family, source_moments(files, inventory), policy=policy)
    yield TRAINING_STATE, b"".join(optimizer_state(grown))


def source_moments(files: TrainingFiles, inventory: Inventory) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state of the source's optimizer in float32, by canonical tensor name.

    Raises:
        SourceError: a state that is not understood.
        SourceChanged: a file changed since it was found.
        MachineError: there is no sandbox to read pickled files in.
    """
    from ligo_convert.training.state import read_optimizer_state

    if files.optimizer == TRAINING_STATE:
        found = read_optimizer_state(files.root / TRAINING_STATE)
    else:
        states = _read_optimizer(files, inventory).states
        found = {name: {kind: value.float() for kind, value in state.items()} for name, state in states.items()}
    files.recheck()
    return found


def _stored(content: dict[str, Any], files: TrainingFiles) -> Iterator[tuple[str, bytes | memoryview]]:
    """Yield name and bytes of the files that hold an optimizer's state."""
    import torch

    if files.optimizer in files.sha256:
        out = io.BytesIO()
        torch.save(content, out)
        yield files.optimizer, out.getbuffer()
        return
    from ligo_convert.importing.sharded import write_sharded

    with tempfile.TemporaryDirectory(prefix="ligo-optimizer-") as folder:
        write_sharded(content, Path(folder))
        for name in _files_in(Path(folder)):
            yield f"{files.optimizer}/{name}", (Path(folder) / name).read_bytes()


def _grown_optimizer(
    files: TrainingFiles, family: Family, inventory: Inventory, operator: Operator, policy: str
) -> dict[str, Any]:
    """Return the content of the target's optimizer state."""
    import torch

    from ligo_convert.growth.moments import grow_moments

    read = _read_optimizer(files, inventory)
    wide = any(dtype == torch.float64 for dtype in read.dtypes.values())
    names = _target_names(read, family, operator)
    keys = {name: number for number, name in enumerate(name for group in names for name in group)}
    called = model_names(family, operator.target)
    state: dict[Any, dict[str, torch.Tensor]] = {}
    grown = grow_moments(operator, family, read.states, policy=policy, dtype=torch.float64 if wide else torch.float32)
    for name, found in grown:
        key = keys[name] if read.keyed == "number" else called[name]
        state[key] = {kind: value.to(read.dtypes[kind]).contiguous() for kind, value in found.items()}
    if read.keyed == "name":
        _complete(state, [called[name] for group in names for name in group], read, family, operator)
    groups = []
    for settings, group in zip(read.groups, names, strict=True):
        written = [called[name] for name in group]
        own = {"param_names": written} if "param_names" in settings else {}
        groups.append(
            {**settings, **own, "params": [keys[name] for name in group] if read.keyed == "number" else written}
        )
    content: dict[str, Any] = {**read.others, "state": dict(sorted(state.items())), "param_groups": groups}
    for key in reversed(read.inside):
        content = {key: content}
    return content


def _complete(
    state: dict[Any, dict[str, torch.Tensor]], names: list[str], read: _Read, family: Family, operator: Operator
) -> None:
    """Give the parameters without a state a fresh one: loaders of sharded states require every parameter's."""
    import torch

    kinds = {kind for found in read.states.values() for kind in found}
    called = model_names(family, operator.target)
    tensors = family.tensors_of(family.rows_for(operator.target), operator.target, dtype="F32")
    specs = {called[spec.name]: spec for _, _, spec in tensors}
    for name in names:
        if name not in state and kinds:
            state[name] = {
                kind: torch.zeros(() if kind == "step" else specs[name].shape, dtype=read.dtypes[kind])
                for kind in sorted(kinds)
            }


def _target_names(read: _Read, family: Family, operator: Operator) -> list[list[str]]:
    """Return the canonical names of the target's parameters, group by group, in the order of the library's model.

    A parameter belongs to the group of its row of the family's table. A row that the source lacks joins the parameters of as many dims.
    """
    from ligo_convert.training.functional_model import LibraryModel, table_parameters

    # Where parts share a name, the row of the chosen class.
    table = (*family.table, *family.rows)
    rows = {row.name(layer): row for row in table for layer in family.layers(row, operator.target)}
    old = {row.name(layer): row for row in table for layer in family.layers(row, operator.source)}
    group_of: dict[str, set[int]] = {}
    by_dims: dict[int, int] = {}
    for number, group in enumerate(read.names):
        for name in group:
            group_of.setdefault(old[name].pattern, set()).add(number)
            by_dims.setdefault(len(old[name].layout.dims), number)
    split = next((pattern for pattern, found in group_of.items() if len(found) > 1), None)
    if split is not None:
        raise SourceError(
            "the layers of one parameter are in several groups of the optimizer, and new layers would have none",
            where=split,
            hint="grow the weights alone, and make the optimizer anew",
        )
    library = LibraryModel(family, operator.target)
    result: list[list[str]] = [[] for _ in read.names]
    by_stored = {called: name for name, called in model_names(family, operator.target).items()}
    for stored in table_parameters(family, library.module):
        name = by_stored[stored]
        row = rows[name]
        known = group_of.get(row.pattern)
        result[next(iter(known)) if known else by_dims.get(len(row.layout.dims), 0)].append(name)
    return result


def _read_optimizer(files: TrainingFiles, inventory: Inventory) -> _Read:
    """Read the optimizer's state of the source, by canonical names."""
    from ligo_convert.growth.moments import require_rule

    label = f"{files.label}/{files.optimizer}"
    with PickledFile(files.root / files.optimizer, label=label, tree=True) as opened:
        tree = opened.tree
        inside: tuple[str, ...] = ()
        # accelerate puts the state below a key of its own where it shards it.
        if isinstance(tree, dict) and set(tree) == {"optimizer"}:
            tree, inside = tree["optimizer"], ("optimizer",)
        if not isinstance(tree, dict) or not {"state", "param_groups"} <= set(tree):
            raise SourceError("not the state of an optimizer of torch", where=label, expected="state and param_groups")
        states, groups = tree.pop("state"), tree.pop("param_groups")
        _check_plain({"param_groups": groups, **tree}, label)
        keys = _keys(states, groups, label)
        # Before the names: parts of another shape than their parameter would not show which parameter is whose.
        for kind in dict.fromkeys(
            kind for state in states.values() for kind, value in state.items() if value is not None
        ):
            require_rule(kind, where=label)
        names = _names(keys, states, groups, inventory, label)
        flat = {
            key: name for found, named in zip(keys, names, strict=True) for key, name in zip(found, named, strict=True)
        }
        loaded = {
            flat[key]: {
                kind: _loaded(opened, value, f"{label}: {short(str(key))}")
                for kind, value in state.items()
                if value is not None
            }
            for key, state in states.items()
        }
    dtypes = {kind: value.dtype for state in reversed(list(loaded.values())) for kind, value in state.items()}
    return _Read(
        groups=[{key: value for key, value in group.items() if key != "params"} for group in groups],
        names=names,
        states=loaded,
        dtypes=dtypes,
        keyed="name" if any(isinstance(key, str) for found in keys for key in found) else "number",
        others=tree,
        inside=inside,
    )


def _check_plain(value: Any, label: str) -> None:
    """Raise SourceError if a value holds more than plain data."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, Unread | PickledTensor):
            found = item.kind if isinstance(item, Unread) else "a tensor"
            raise SourceError(
                "the settings of the optimizer hold more than numbers and texts", where=label, found=found
            )


def _keys(states: Any, groups: Any, label: str) -> list[list[Any]]:
    """Return what stands for the parameters of every group: numbers or names."""
    try:
        keys = [list(group["params"]) for group in groups]
        flat = [key for group in keys for key in group]
        right = (
            all(type(key) in (int, str) for key in flat) and len(set(flat)) == len(flat) and set(states) <= set(flat)
        )
        right = right and all(isinstance(state, dict) for state in states.values())
    except (TypeError, KeyError):
        right = False
    if not right or not flat:
        raise SourceError("malformed: groups and states do not fit each other", where=label)
    return keys


def _names(
    keys: list[list[Any]], states: Mapping[Any, Mapping[str, Any]], groups: Any, inventory: Inventory, label: str
) -> list[list[str]]:
    """Return the canonical names of the parameters of every group."""
    family, config = inventory.family, inventory.config
    own = model_parameters(family, config) if family.in_model else ()
    mixed = next((found for found in own if found.stacked or len(found.shares) > 1), None)
    if mixed is not None:
        raise SourceError(
            f"the optimizer's state cannot grow: {family.library} keeps several tensors of this {family.name} in one parameter",
            where=label,
            found=f"{mixed.name} ({len(mixed.tensors)} tensors)",
            hint="grow the weights alone, and make the optimizer anew",
        )
    if all(isinstance(key, str) for group in keys for key in group):
        stored = keys
    elif all(isinstance(group.get("param_names"), list) for group in groups):
        stored = [group["param_names"] for group in groups]
    else:
        from ligo_convert.training.functional_model import LibraryModel
        from ligo_convert.training.parameter_order import named_groups

        shapes = {
            key: value.spec.shape
            for key, state in states.items()
            for value in state.values()
            if isinstance(value, PickledTensor) and value.spec.shape
        }
        stored = named_groups(LibraryModel(family, config).module, keys, shapes, label=label)
    wanted = {row.name(layer) for row in family.rows_for(config) for layer in family.layers(row, config)}
    plain = plain_names([str(name) for group in stored for name in group], label=label)
    in_model = {called: name for name, called in model_names(family, config).items() if name in wanted}
    # A tied parameter has either of its two names.
    tied = {alias: name for alias, name in family.tied.items() if family.is_tied(config)}
    known = [
        [in_model.get(plain[str(name)]) or family.canonical(plain[str(name)], {*wanted, *tied}) for name in group]
        for group in stored
    ]
    named = [[name if name is None else tied.get(name, name) for name in group] for group in known]
    unknown = [
        name
        for group, found in zip(stored, named, strict=True)
        for name, known in zip(group, found, strict=True)
        if known is None
    ]
    if unknown:
        raise SourceError(
            f"the optimizer's state has a parameter that a {family.architecture} has not",
            where=f"{label}: {short(str(unknown[0]))}",
        )
    if [len(group) for group in named] != [len(group) for group in keys]:
        raise SourceError("malformed: the names of a group are not as many as its parameters", where=label)
    return [[name for name in group if name is not None] for group in named]


def _loaded(opened: PickledFile, value: Any, where: str) -> torch.Tensor:
    """Return a tensor or a number of the state as a tensor."""
    import torch

    from ligo_convert.checkpoints.tensors import FLOAT_DTYPES, nonfinite_count
    from ligo_convert.checkpoints.torch_io import tensor_from_bytes

    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float32)
    if not isinstance(value, PickledTensor) or value.spec.dtype not in (*FLOAT_DTYPES, "I64", "I32"):
        raise SourceError("the optimizer keeps something other than numbers", where=where)
    data = opened.read(value)
    if value.spec.dtype not in FLOAT_DTYPES:
        width = {"I64": torch.int64, "I32": torch.int32}[value.spec.dtype]
        return torch.frombuffer(bytearray(data), dtype=width).view(value.spec.shape).to(torch.float32)
    bad = nonfinite_count(data, value.spec.dtype)
    if bad:
        raise SourceError(
            f"{bad} values of the optimizer's state are NaN or infinite", where=where, hint="take an earlier checkpoint"
        )
    return tensor_from_bytes(data, value.spec)

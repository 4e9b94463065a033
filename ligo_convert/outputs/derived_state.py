"""Grow the state of a training again, and compare it with that of an output.

Input: an output, its provenance, its open source. Output: the number of files, or a VerificationError that names the first difference.

The files are compared byte for byte. Another version of torch may pickle the same state to other bytes, and another kind of processor
rounds otherwise: where the bytes differ, the content is compared. The output may come from anybody, so its pickled files are read as the
source's are.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import FLOAT_DTYPES, TensorSpec
from ligo_convert.errors import LigoError, SourceError, VerificationError
from ligo_convert.families.inventory import Inventory
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import family_of
from ligo_convert.growth.state_maps import POLICIES
from ligo_convert.importing.pickle_reader import PickledFile, PickledTensor
from ligo_convert.io.strict_json import short
from ligo_convert.outputs.layout import OPTIMIZERS, PROVENANCE, TRAINING_STATE
from ligo_convert.outputs.listing import recorded_files
from ligo_convert.outputs.optimizer_state import TrainingFiles, find_training_files, grown_files
from ligo_convert.progress import Progress

# Compares the bytes of two tensors of one spec: whether they are equal up to what another order of summation explains.
Close = Callable[[Any, Any, TensorSpec], bool]


def check_training_files(
    root: Path,
    digests: Mapping[str, str],
    statement: Mapping[str, Any],
    source: CheckpointReader,
    inventory: Inventory,
    operator: Operator,
    *,
    exact: Callable[[], bool],
    close: Close,
    progress: Progress,
) -> int:
    """Derive every file of the training's state again and compare it. Return the number of files; 0 for an output without such a state.

    Args:
        digests: name -> SHA-256 of the files of the output.
        inventory: of the source.
        exact: returns whether tensors must be equal bit for bit. It is called where a file differs, because it imports torch.
        close: compares tensors of an output of another kind of processor.

    Raises:
        VerificationError: the source's state is not the recorded one, or a file differs or is missing, or the output has one more.
    """
    names = recorded_files(statement, "training")
    recorded = statement["predicate"]["buildDefinition"]["internalParameters"].get("trainingState")
    if recorded is None:
        if names:
            raise VerificationError(
                "the output has the state of a training, and trainingState does not say from which files it was grown",
                where=PROVENANCE,
                found=", ".join(sorted(names)),
            )
        return 0
    policy, expected = _parsed(recorded)
    files = _source_files(source, expected)
    with progress.task("growing the optimizer's state again"):
        grown = grown_files(files, family_of(operator), inventory, operator, policy=policy, left=progress.say)
        derived = dict(grown)
    other = sorted(names ^ set(derived))
    if other:
        raise VerificationError(
            "the source gives this file, and the output lacks it"
            if other[0] in derived
            else "the source does not give this file",
            where=root / other[0],
        )
    different = [name for name, data in derived.items() if digests.get(name) != hashlib.sha256(data).hexdigest()]
    if different:
        with tempfile.TemporaryDirectory(prefix="ligo-optimizer-") as folder:
            for name, data in derived.items():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(data)
            _check_content(root, Path(folder), different, exact=exact, close=close)
    files.recheck()
    return len(derived)


def _parsed(recorded: Any) -> tuple[str, Mapping[str, str]]:
    """Return the policy, and SHA-256 of the source's files by name."""
    match recorded:
        case {"policy": str(policy), "files": dict(files)} if policy in POLICIES:
            return policy, {str(name): str(digest) for name, digest in files.items()}
    raise VerificationError(
        "malformed: no policy and no files of the source", where=f"{PROVENANCE}: internalParameters.trainingState"
    )


def _source_files(source: CheckpointReader, expected: Mapping[str, str]) -> TrainingFiles:
    """Return the state of the training beside the source. Raises VerificationError if it is not the recorded one."""
    try:
        files = find_training_files(source.root, source.label)
    except SourceError as error:
        raise VerificationError(f"this is not the source of the model: {error.what}", where=error.where) from None
    for name in sorted({*expected, *files.sha256}):
        if expected.get(name) != files.sha256.get(name):
            raise VerificationError(
                "this is not the state of the training that the output was grown from",
                where=f"{source.label}/{name}",
                expected=expected.get(name, "no such file"),
                found=files.sha256.get(name, "no such file"),
            )
    return files


def _check_content(root: Path, again: Path, different: list[str], *, exact: Callable[[], bool], close: Close) -> None:
    """Compare the optimizer's state of two directories whose bytes differ. Raises VerificationError."""
    optimizer = next((name for name in OPTIMIZERS if (again / name).exists()), "")
    other = next((name for name in different if name != optimizer and not name.startswith(f"{optimizer}/")), None)
    if other is not None:
        raise VerificationError("the file differs from the one that its source gives", where=root / other)
    where = f"{root.name}/{optimizer}"
    try:
        pairs = _state_tensors if optimizer == TRAINING_STATE else _tree_tensors
        for name, one, two, spec in pairs(root / optimizer, again / optimizer, where):
            if one != two and (exact() or not close(one, two, spec)):
                raise _differs(f"{where}: {name}")
    except VerificationError:
        raise
    except LigoError as error:
        raise VerificationError(f"the optimizer's state cannot be read: {error.what}", where=where) from None


def _differs(where: str) -> VerificationError:
    return VerificationError("the optimizer's state differs from the result of source and operator", where=where)


Pairs = Iterator[tuple[str, bytes, bytes, TensorSpec]]


def _state_tensors(stored: Path, again: Path, where: str) -> Pairs:
    """Yield the tensors of two states of `train`: name, both bytes, spec. The step counts of Adam are among them."""
    from ligo_convert.training.state import read_optimizer_state

    one, two = (
        {
            (name, kind): value.detach().float().numpy()
            for name, kinds in read_optimizer_state(path).items()
            for kind, value in kinds.items()
        }
        for path in (stored, again)
    )
    if one.keys() != two.keys() or any(one[key].shape != two[key].shape for key in one):
        raise _differs(where)
    for key, value in one.items():
        name = "/".join(key)
        yield name, value.tobytes(), two[key].tobytes(), TensorSpec(name=name, dtype="F32", shape=value.shape)


def _tree_tensors(stored: Path, again: Path, where: str) -> Pairs:
    """Yield the tensors of two pickled states, and compare all else that they hold."""
    with PickledFile(stored, label=where, tree=True) as first, PickledFile(again, label=where, tree=True) as second:
        one, two = (dict(_leaves(file.tree)) for file in (first, second))
        if one.keys() != two.keys():
            raise _differs(where)
        for path, value in one.items():
            name, twin = ".".join(map(short, path)), two[path]
            if not isinstance(value, PickledTensor) or not isinstance(twin, PickledTensor):
                if value != twin or type(value) is not type(twin):
                    raise _differs(f"{where}: {name}")
                continue
            if value.spec != twin.spec:
                raise _differs(f"{where}: {name}")
            data = bytes(first.read(value)), bytes(second.read(twin))
            if value.spec.dtype not in FLOAT_DTYPES and data[0] != data[1]:
                raise _differs(f"{where}: {name}")
            yield name, *data, value.spec


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the place and value of everything in a tree that is no dict, list or tuple; an empty one is a leaf."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*path, repr(key)))
    elif isinstance(tree, list | tuple) and tree:
        for number, value in enumerate(tree):
            yield from _leaves(value, (*path, str(number)))
    else:
        yield path, tree

"""The process that reads one pickled file. It confines itself first and then does what its parent asks.

Input: one JSON request on stdin, then the position of one tensor a line. Output on stdout: messages, each an 8-byte length and
JSON; the bytes of a tensor follow its message. `pickle_reader` is the parent. Run as `python -m ligo_convert.importing.pickle_child`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pathlib
import re
import sys
import sysconfig
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from ligo_convert.importing.sandbox import Unsupported, address_space, confine, limit

# torch dtype -> safetensors dtype.
_DTYPES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8"},
    **{"uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8"},
}

# Nested dictionaries are searched to this depth. Checkpoints of training loops hold weights one or two levels down.
_DEPTH = 4
_MOST_ENTRIES = 200_000
# A tree is sent to this depth, with at most `_MOST_ENTRIES` nodes, and texts of at most so many characters.
_TREE_DEPTH = 12
_MOST_TEXT = 10_000
_CHUNK = 1 << 22


class Refused(Exception):
    """The file cannot be imported; the message says why."""


def main() -> None:
    """Serve one parent. Exit code 0 also after a refusal, which is a message."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a library that prints must not write into the messages
    request = json.loads(sys.stdin.buffer.readline())
    torch = _torch()
    if request.get("sharded"):
        # What it imports cannot be imported afterwards.
        importlib.import_module("ligo_convert.importing.sharded")
    try:
        _close_the_door(request)
        tensors = _serve_table(torch, request, out)
        for line in sys.stdin.buffer:
            _send_tensor(torch, tensors[int(line)], out)
    except Refused as refusal:
        _send(out, {"refused": str(refusal)})
    except MemoryError:
        _send(out, {"refused": f"reading it takes more than {request['memory']:,} bytes of memory"})


def _torch() -> Any:
    """Import torch and everything that `torch.load` imports later, since nothing can be imported afterwards."""
    warnings.simplefilter("ignore")
    import numpy
    import torch

    torch.set_num_threads(1)
    allowed: list[Any] = [argparse.Namespace, pathlib.PosixPath, numpy.ndarray, numpy.dtype]
    # Training loops keep their arguments and their best figure, a numpy scalar, beside the weights. numpy 2 moved the functions.
    multiarray = importlib.import_module("numpy._core.multiarray")
    for name in ("scalar", "_reconstruct"):
        allowed += [(getattr(multiarray, name), f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    # u4: the state of numpy's generator, beside a training's checkpoint.
    allowed += [type(numpy.dtype(name)) for name in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u4", "u1", "?")]
    torch.serialization.add_safe_globals(allowed)
    with tempfile.TemporaryDirectory() as folder:
        for zipped in (True, False):
            file = f"{folder}/warm.pt"
            made = {"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.nn.Parameter(torch.ones(2, 3).T)}
            torch.save(made, file, _use_new_zipfile_serialization=zipped)
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
            _bytes_of(torch, loaded["b"].detach())
    return torch


def _close_the_door(request: Mapping[str, Any]) -> None:
    limit(memory=address_space() + int(request["memory"]), cpu_seconds=int(request["cpu_seconds"]))
    if not request["confine"]:
        return
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders = [pathlib.Path(path) for path in libraries]
    descriptors = [int(request["descriptor"])]
    if request.get("sharded"):
        folders.append(pathlib.Path(f"/proc/self/fd/{descriptors.pop()}"))
    try:
        confine(descriptors=descriptors, directories=folders)
    except Unsupported as error:
        raise Refused(f"no sandbox: {error}") from None


def _serve_table(torch: Any, request: Mapping[str, Any], out: BinaryIO) -> list[Any]:
    """Load the file, send the table of its tensors, and return the tensors in the order of the table."""
    place = f"/proc/self/fd/{request['descriptor']}" if request["confine"] else str(request["path"])
    loaded = _load_sharded(place) if request.get("sharded") else _load(torch, place)
    tensors: list[Any] = []
    if request.get("tree"):
        nodes: list[Any] = []
        _add_node(torch, loaded, nodes, tensors, depth=0)
        table = [_entry(torch, "tensor", tensor, position) for position, tensor in enumerate(tensors)]
        _send(out, {"nodes": nodes, "tensors": table})
        return tensors
    groups = [_group(torch, path, group, tensors) for path, group in _dictionaries(torch, loaded)]
    if isinstance(loaded, torch.nn.Module):
        raise Refused("it holds a whole module, not its weights")
    _send(out, {"groups": groups})
    return tensors


def _add_node(torch: Any, value: Any, nodes: list[Any], tensors: list[Any], *, depth: int) -> int:
    """Append a value to `nodes`, after its parts, and return its number. A node is [kind, content]; parts are named by number."""
    if depth > _TREE_DEPTH:
        raise Refused(f"it is nested deeper than {_TREE_DEPTH} levels")

    def add(part: Any) -> int:
        return _add_node(torch, part, nodes, tensors, depth=depth + 1)

    if isinstance(value, torch.Tensor):
        node: list[Any] = ["tensor", len(tensors)]
        tensors.append(value.detach())
    elif isinstance(value, Mapping) and all(type(key) in (str, int) for key in value):
        node = ["dict", [[key, add(item)] for key, item in value.items()]]
    elif type(value) in (list, tuple):
        node = [type(value).__name__, [add(item) for item in value]]
    elif type(value) is float:
        node = ["float", value.hex()]
    elif value is None or type(value) in (bool, int) or (type(value) is str and len(value) <= _MOST_TEXT):
        node = ["value", value]
    else:
        node = ["other", type(value).__name__]
    nodes.append(node)
    if len(nodes) > _MOST_ENTRIES:
        raise Refused(f"it has more than {_MOST_ENTRIES} entries")
    return len(nodes) - 1


def _load(torch: Any, path: str) -> Any:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise Refused("it is a TorchScript archive, which holds a program")
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise Refused(f"an entry of its archive is compressed: {packed[0][:200]!r}")
        if len(entries) > _MOST_ENTRIES:
            raise Refused(f"its archive has {len(entries)} entries")
    try:
        # A mapped file takes no memory for the tensors that are not in use.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  the unpickler meets arbitrary bytes, and raises whatever they lead to
        if "memory" in str(error).lower() and "alloc" in str(error).lower():
            raise MemoryError from None
        raise Refused(f"torch.load(weights_only=True) refuses it: {_reason(error)}") from None


def _load_sharded(path: str) -> Any:
    from ligo_convert.importing.sharded import read_sharded

    try:
        return read_sharded(pathlib.Path(path))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  as in `_load`
        raise Refused(f"its shards cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return what torch found, without its advice to load the file unsafely."""
    text = str(error)
    found = re.search(r"GLOBAL ([\w.]+)|Trying to (?:load|call)[^.]*?([\w.]+\.[\w.]+)", text)
    if found is not None:
        return f"the file needs the Python object {(found[1] or found[2])[:100]}, which is not plain data"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("WeightsUnpickler error", "Unsupported", "Cannot use"))]
    return f"{type(error).__name__}: {(telling or lines or ['no reason given'])[0][:200]}"


def _dictionaries(torch: Any, loaded: Any) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield every dictionary with tensors in it, with the keys that lead to it."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), loaded)]
    visited = 0
    while pending:
        path, value = pending.pop(0)
        if not isinstance(value, Mapping):
            continue
        entries = {key: item for key, item in value.items() if isinstance(key, str)}
        visited += len(value)
        if visited > _MOST_ENTRIES:
            raise Refused(f"it has more than {_MOST_ENTRIES} entries")
        if any(isinstance(item, torch.Tensor) for item in entries.values()):
            yield path, entries
        if len(path) < _DEPTH:
            pending += [((*path, key), item) for key, item in entries.items() if isinstance(item, Mapping)]


def _group(torch: Any, path: tuple[str, ...], entries: Mapping[str, Any], tensors: list[Any]) -> dict[str, Any]:
    """Return the table of one dictionary, and append its tensors to `tensors`."""
    listed, others = [], []
    shared: dict[tuple[object, ...], list[str]] = {}
    for name, item in entries.items():
        if not isinstance(item, torch.Tensor):
            others.append(name)
            continue
        tensor = item.detach()
        listed.append(_entry(torch, name, tensor, len(tensors)))
        if listed[-1]["problem"] is None and tensor.numel():
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), str(tensor.dtype))
            shared.setdefault(place, []).append(name)
        tensors.append(tensor)
    return {
        "path": list(path),
        "tensors": listed,
        "others": others,
        "shared": [names for names in shared.values() if len(names) > 1],
    }


def _entry(torch: Any, name: str, tensor: Any, position: int) -> dict[str, Any]:
    """Return the line of one tensor in the table."""
    return {
        "name": name,
        "dtype": _DTYPES.get(str(tensor.dtype).removeprefix("torch.")),
        "shape": list(tensor.shape),
        "position": position,
        "problem": _problem(torch, tensor),
    }


def _problem(torch: Any, tensor: Any) -> str | None:
    """Return why a tensor cannot be stored, or None."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return "is sparse or quantized"
    if tensor.device.type != "cpu":
        return f"has no data (device {tensor.device.type})"
    if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
        return f"has dtype {tensor.dtype}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "repeats its stored elements"
    return None


def _send_tensor(torch: Any, tensor: Any, out: BinaryIO) -> None:
    data = _bytes_of(torch, tensor)
    _send(out, {"nbytes": len(data)})
    for start in range(0, len(data), _CHUNK):
        _write(out, data[start : start + _CHUNK])


def _bytes_of(torch: Any, tensor: Any) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()).cast("B")


def _send(out: BinaryIO, message: Mapping[str, Any]) -> None:
    data = json.dumps(message).encode()
    _write(out, memoryview(len(data).to_bytes(8, "little") + data))


def _write(out: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[out.write(data) :]


if __name__ == "__main__":
    main()

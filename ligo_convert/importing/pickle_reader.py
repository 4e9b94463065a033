"""Read the tensors of a pickled file, or of a sharded checkpoint, through a confined process.

Input: the path of one file, or of a directory of torch.distributed.checkpoint. Output: the table of its tensors, and the bytes of one
tensor at a time. Nothing of the file is interpreted in this process: it receives JSON and raw bytes, and checks both.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ligo_convert.checkpoints.digests import sha256_of
from ligo_convert.checkpoints.headers import MAX_NAME
from ligo_convert.checkpoints.tensors import DTYPE_BYTES, TensorSpec
from ligo_convert.errors import MachineError, SourceChanged, SourceError, printable
from ligo_convert.importing.sandbox import support
from ligo_convert.io.strict_json import short, strict_json

# The process sends nothing while it loads a file. After this time without a byte it is killed.
SILENCE_SECONDS = 900.0

# Besides the file itself: what loading takes before the first tensor.
_EXTRA_MEMORY = 1 << 30
_MOST_MESSAGE = 256 << 20

# The table of a sharded checkpoint, and its shards.
TABLE = ".metadata"
SHARD = re.compile(r".+\.distcp")

# Only these variables reach the process: tokens and other secrets do not.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT", "TMPDIR")


@dataclass(frozen=True, kw_only=True)
class PickledTensor:
    """One tensor of a pickled file.

    Attributes:
        spec: name, dtype and shape.
        position: its number among all tensors of the file.
    """

    spec: TensorSpec
    position: int


@dataclass(frozen=True, kw_only=True)
class Unread:
    """An object of a pickled file that is no plain value.

    Attributes:
        kind: name of its class.
    """

    kind: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """One dictionary with tensors inside a pickled file.

    Attributes:
        path: the keys that lead to it; empty for the outermost dictionary.
        tensors: its tensors, in their order.
        others: keys of the values that are not tensors.
        shared: groups of names that share one tensor.
        refused: name of a tensor -> why it cannot be stored.
    """

    path: tuple[str, ...]
    tensors: tuple[PickledTensor, ...]
    others: tuple[str, ...]
    shared: tuple[tuple[str, ...], ...]
    refused: dict[str, str]

    @property
    def label(self) -> str:
        return ".".join(self.path) or "(outermost)"


class PickledFile:
    """An open pickled file and the process that reads it. A context manager; the process ends with it.

    Args:
        path: the file, or the directory of a sharded checkpoint (torch.distributed.checkpoint), which is read into memory as a whole.
        label: its name in messages.
        confine: False reads it without the sandbox of the kernel.
        tree: True reads the whole content as `tree`, where the place of every tensor is kept; `groups` is empty then.

    Attributes:
        groups: the dictionaries with tensors.
        tree: dicts, lists, tuples, numbers, texts, None; tensors as `PickledTensor`, and `Unread` for other objects.

    Raises:
        SourceError: the file is missing, or torch refuses it with `weights_only=True`.
        MachineError: this system has no sandbox, or the process ended.
    """

    def __init__(self, path: Path, *, label: str, confine: bool = True, tree: bool = False) -> None:
        self.label = label
        reason = support()
        if confine and reason is not None:
            raise MachineError(
                f"pickled files are read in a sandbox, and {reason}",
                where=label,
                hint="import the file on Linux, or trust it: --no-sandbox still loads it with weights_only=True in a process of its own",
            )
        self._sharded = path.is_dir()
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECTORY if self._sharded else 0))
            parts = list(path.iterdir()) if self._sharded else [path]
            self.size = sum(part.stat().st_size for part in parts)
        except OSError as error:
            raise SourceError(f"cannot be opened: {os.strerror(error.errno or 0)}", where=label) from None
        # The process reads shards as soon as it starts.
        self._opened_with = self._digest_of_shards() if self._sharded else ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`
        self._folder = tempfile.TemporaryDirectory(prefix="ligo-import-")
        request = {
            "descriptor": self._descriptor,
            "path": os.path.realpath(path),
            "confine": confine,
            "tree": tree,
            "sharded": self._sharded,
            "memory": 2 * self.size + _EXTRA_MEMORY,
            "cpu_seconds": 300 + self.size // 10_000_000,
        }
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {"HOME": self._folder.name, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ligo_convert.importing.pickle_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=[self._descriptor],
            cwd=self._folder.name,
            env=environment,
            start_new_session=True,
            bufsize=0,
        )
        try:
            self._ask(json.dumps(request))
            message = self._message()
            self.groups = [] if tree else self._table(message)
            self.tree = self._tree(message) if tree else None
        except BaseException:
            self.close()
            raise

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file, in hex. It is read again by each call.

        That of a sharded checkpoint is the SHA-256 of what `sha256sum .metadata *.distcp` prints in its directory.

        Raises:
            SourceChanged: a shard has other bytes than when it was opened.
        """
        if not self._sharded:
            return sha256_of(self._descriptor, label=self.label)
        found = self._digest_of_shards()
        if found != self._opened_with:
            raise SourceChanged(
                "the shards changed while they were read", where=self.label, expected=self._opened_with, found=found
            )
        return found

    def _digest_of_shards(self) -> str:
        with os.scandir(self._descriptor) as entries:
            names = sorted(entry.name for entry in entries if entry.name == TABLE or SHARD.fullmatch(entry.name))
        lines = []
        for name in names:
            label = f"{self.label}/{short(name)}"
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(name, flags, dir_fd=self._descriptor)
            except OSError as error:
                raise SourceError(f"cannot be opened: {os.strerror(error.errno or 0)}", where=label) from None
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise SourceError("not a regular file", where=label)
                lines.append(f"{sha256_of(descriptor, label=label)}  {name}\n")
            finally:
                os.close(descriptor)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def read(self, tensor: PickledTensor) -> memoryview:
        """Return the bytes of a tensor in C order.

        Raises:
            SourceError: the process refuses, or sends something else.
            MachineError: the process ended.
        """
        self._ask(str(tensor.position))
        message = self._message()
        if message.get("nbytes") != tensor.spec.nbytes:
            raise SourceError(
                "the tensor's size is not that of the table",
                where=f"{self.label}: {short(tensor.spec.name)}",
                expected=f"{tensor.spec.nbytes} bytes",
                found=short(str(message.get("nbytes"))),
            )
        return self._receive(tensor.spec.nbytes)

    def close(self) -> None:
        """End the process and close the file."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._folder.cleanup()

    def __enter__(self) -> PickledFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
        except BrokenPipeError:
            raise self._ended() from None

    def _message(self) -> dict[str, object]:
        size = int.from_bytes(self._receive(8), "little")
        if size > _MOST_MESSAGE:
            raise SourceError("its table of tensors is too long", where=self.label, found=f"{size} bytes")
        message = strict_json(bytes(self._receive(size)), label=self.label)
        if "refused" in message:
            raise SourceError(
                short(str(message["refused"])) if len(str(message["refused"])) < 60 else str(message["refused"])[:400],
                where=self.label,
                hint="where the file was made, save the weights alone: torch.save(model.state_dict(), FILE)",
            )
        return message

    def _receive(self, count: int) -> memoryview:
        """Return exactly `count` bytes from the process."""
        assert self._process.stdout is not None
        data = memoryview(bytearray(count))
        done = 0
        while done < count:
            if not select.select([self._process.stdout], [], [], SILENCE_SECONDS)[0]:
                raise MachineError(
                    f"the process that reads the file sent nothing for {SILENCE_SECONDS:.0f} seconds", where=self.label
                )
            read = self._process.stdout.readinto(data[done:])  # type: ignore[attr-defined]  # a raw stream: bufsize is 0
            if not read:
                raise self._ended()
            done += read
        return data

    def _ended(self) -> MachineError:
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return MachineError(
            "the process that reads the file ended",
            where=self.label,
            found=f"exit status {code}" + (f": {printable(last[-1])[:300]}" if last else ""),
            hint="if memory was short, import on a machine with more; else the file is damaged or hostile",
        )

    def _table(self, message: dict[str, object]) -> list[Group]:
        """Check the table that the process sent. It may have been taken over by the file."""
        where = f"{self.label}: the table of tensors"
        try:
            groups = [_group(entry, label=self.label) for entry in message["groups"]]  # type: ignore[attr-defined]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceError(f"malformed: {type(error).__name__}", where=where) from None
        self._check_total([tensor for group in groups for tensor in group.tensors], where)
        return groups

    def _check_total(self, tensors: list[PickledTensor], where: str) -> None:
        """Raise SourceError for tensors that are far more than the file."""
        total = sum(tensor.spec.nbytes for tensor in tensors)
        # Tied tensors are listed once a name, and a loop keeps an average beside the weights: both are stored or shared few times.
        if total > 16 * self.size + (1 << 20):
            raise SourceError("its tensors repeat stored elements", where=where, found=f"{total:,} bytes")

    def _tree(self, message: dict[str, object]) -> Any:
        """Check the tree that the process sent, and build it from plain values."""
        where = f"{self.label}: the tree of its content"
        try:
            table: list[Any] = message["tensors"]  # type: ignore[assignment]
            bad = next(
                (item for item in table if item["problem"] is not None or item["dtype"] not in DTYPE_BYTES), None
            )
            if bad is not None:
                raise SourceError(f"a tensor {str(bad['problem'])[:100]}", where=where, expected="dense tensors")
            tensors = [_tensor(item) for item in table]
            built = _built(message["nodes"], tensors)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise SourceError(f"malformed: {type(error).__name__}", where=where) from None
        self._check_total(tensors, where)
        return built


def _built(nodes: list[Any], tensors: list[PickledTensor]) -> Any:
    """Return the value of the last node. A node may only name nodes before it, so that the walk ends."""
    built: list[Any] = []
    for kind, content in nodes:
        if kind == "dict":
            value: Any = {key: built[_before(part, built)] for key, part in content if isinstance(key, str | int)}
        elif kind in ("list", "tuple"):
            value = [built[_before(part, built)] for part in content]
            value = value if kind == "list" else tuple(value)
        elif kind == "tensor":
            value = tensors[_before(content, tensors)]
        elif kind == "float":
            value = float.fromhex(content)
        elif kind == "value" and (content is None or isinstance(content, bool | int | str)):
            value = content
        else:
            value = Unread(kind=str(content)[:100])
        built.append(value)
    return built[-1]


def _before(number: Any, items: list[Any]) -> int:
    if type(number) is not int or not 0 <= number < len(items):
        raise ValueError("number")
    return number


def _tensor(item: dict[str, Any]) -> PickledTensor:
    shape = tuple(int(size) for size in item["shape"])
    if len(shape) > 8 or any(size < 0 or size > 1 << 48 for size in shape):
        raise ValueError("shape")
    spec = TensorSpec(name=str(item["name"]), dtype=item["dtype"], shape=shape)
    return PickledTensor(spec=spec, position=int(item["position"]))


def _group(entry: dict[str, Any], *, label: str) -> Group:
    tensors, refused = [], {}
    for item in entry["tensors"]:
        name = str(item["name"])
        if not name or "\0" in name or len(name.encode()) > MAX_NAME:
            raise SourceError("the name of a tensor is empty or too long", where=label, found=short(name))
        if item["problem"] is not None or item["dtype"] not in DTYPE_BYTES:
            refused[name] = str(item["problem"])[:100]
            continue
        tensors.append(_tensor(item))
    return Group(
        path=tuple(str(key) for key in entry["path"]),
        tensors=tuple(tensors),
        others=tuple(str(key) for key in entry["others"]),
        shared=tuple(tuple(str(name) for name in names) for names in entry["shared"]),
        refused=refused,
    )

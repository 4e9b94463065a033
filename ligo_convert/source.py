"""A source checkpoint, from a directory or the Hub: headers when it is opened, one tensor at a time later.

`open_source` takes what a recipe names and returns a `Source`: config, tensor table and side files, all checked, on a
pinned revision. `Source.read` gives one tensor's bytes by `pread` on descriptors that were opened once (a file that is
cut meanwhile is an error, never a SIGBUS). `Source.digest` hashes every file that is used; all bytes handed out before
or after that pass are compared with it by CRC-32, and `Source.recheck` ends a conversion by asking whether anything
changed. No code, pickle or template of a checkpoint is ever run.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self
from urllib.parse import urlsplit

import numpy as np

from ligo_convert.errors import LigoError, MachineError, RecipeError, SourceChanged, SourceError
from ligo_convert.headers import (
    Header,
    Index,
    StoredTensor,
    header_end,
    parse_header,
    parse_index,
    read_at,
    read_header,
    short,
    strict_json,
)

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
CARD = "README.md"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "bpe.codes",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_MIB = 1 << 20
_LIMITS = {CONFIG: 4 * _MIB, GENERATION_CONFIG: 4 * _MIB, CARD: 16 * _MIB, INDEX: 64 * _MIB}
_LIMIT = 128 * _MIB  # bytes of any other side file
_BLOCK = 4 * _MIB  # bytes read at a time by the digest pass

_OTHER_WEIGHTS = re.compile(r".*\.(bin|pt|pth|ckpt|h5|msgpack|gguf|onnx)(\.index\.json)?")
_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,249}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEMPLATED = ("tokenizer_config.json", "chat_template.jinja", "chat_template.json")
_INTERNALS = re.compile(rb"__(class|base|bases|mro|subclasses|globals|builtins|import|init|getattribute|dict|code)__")
_UNREACHED = "go online, or fetch it first on a machine that is: hf download"
_KEEP_STILL = "nothing may write to the source while it is converted; restore it and run again"


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


@dataclass(kw_only=True)
class _Digested:
    """What the digest pass saw of a file."""

    sha256: str
    fingerprint: tuple[int, ...]


class Source:
    """A checkpoint: config, tensors, side files. Opened by `open_source`, closed as a context manager.

    Attributes:
        label: the Hub id, or the name of the local directory alone.
        revision: the Hub's commit; None for a directory.
        root: the directory the files are read from.
        config: config.json as plain data, without anything that would run code.
        tensors: every tensor of every weight file, by name.
        files: the weight files.
        tokenizer_files: the names of the tokenizer's (and image processor's) files that are there.
        license: the licence that the card's front matter states; None where it states none.
        warnings: what is odd but no reason to stop.
    """

    def __init__(self, place: _Place, *, weights: bool) -> None:
        self.label, self.revision, self.root, self.warnings = place.label, place.revision, place.root, place.warnings
        self._place = place
        self._lock = threading.Lock()
        self._crc32: dict[str, int] = {}
        self._served: dict[str, str] = {}
        self._digested: dict[str, _Digested] = {}
        self._descriptors: dict[str, int] = {}
        index = self._index() if _is_sharded(place) else None
        side = (CONFIG, GENERATION_CONFIG, INDEX, *TOKENIZER_FILES)
        self._side_files = tuple(name for name in side if name in place.names and (name != INDEX or index is not None))
        place.fetch([*self._side_files, *({CARD} & place.names)])
        self.config = _check_config(
            strict_json(self.file_bytes(CONFIG), label=f"{self.label}/{CONFIG}"), label=f"{self.label}/{CONFIG}"
        )
        self.tokenizer_files = tuple(name for name in TOKENIZER_FILES if name in place.names)
        for name in self.tokenizer_files:
            if name in _TEMPLATED:
                self._flag(name)
        self.license = _license(self.file_bytes(CARD)) if CARD in place.names else None
        shards = sorted(set(index.weight_map.values())) if index else [WEIGHTS]
        _check_shards(place, index, shards)
        if weights:
            place.fetch(shards)
        with ExitStack() as stack:
            self._headers = {name: self._open(name, stack) for name in shards}
            self.files = tuple(file for file, _ in self._headers.values())
            self.tensors = _join(self._headers, index, label=self.label)
            self._check_total(index)
            self._stack = stack.pop_all()

    def _index(self) -> Index:
        self._place.fetch([INDEX])
        return parse_index(self.file_bytes(INDEX), label=self._where(INDEX))

    def _open(self, name: str, stack: ExitStack) -> tuple[SourceFile, Header]:
        label = f"{self.label}/{name}"
        path = self.root / name
        if not os.path.lexists(path):
            header, size = self._place.header(name)
            return SourceFile(name=name, path=None, size=size, expected=self._place.expected.get(name)), header
        fd = _open_inside(self.root, name, label=label)
        stack.callback(os.close, fd)
        self._descriptors[name] = fd
        expected = self._place.expected.get(name) or _blob_digest(path)
        header = read_header(fd, label=label)
        return SourceFile(name=name, path=path, size=os.fstat(fd).st_size, expected=expected), header

    def _flag(self, name: str) -> None:
        """Warn of what a tokenizer file may do to those who load it; here its bytes are only copied."""
        data = self.file_bytes(name)
        if b'"auto_map"' in data:
            self.warnings.append(f"{self._where(name)}: names code of its own (auto_map), which is never run here")
        if _INTERNALS.search(data):
            self.warnings.append(
                f"{self._where(name)}: a chat template reaches for Python's internals; it is copied only"
            )

    def _check_total(self, index: Index | None) -> None:
        total = sum(tensor.spec.nbytes for tensor in self.tensors.values())
        if index is not None and index.total_size is not None and index.total_size != total:
            self.warnings.append(
                f"{self.label}/{INDEX}: total_size is {index.total_size}, the tensors take {total} bytes"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def side_files(self) -> tuple[str, ...]:
        """The names of the small files beside the weights that belong to the model, those of the tokenizer included."""
        return self._side_files

    def close(self) -> None:
        """Close the weight files."""
        self._stack.close()
        self._descriptors.clear()

    def read(self, name: str, out: bytearray | memoryview | None = None) -> memoryview:
        """The bytes of one tensor, little-endian, row by row.

        Args:
            name: a key of `tensors`.
            out: a writable buffer of exactly the tensor's bytes to fill; None takes a new one.

        Raises:
            SourceChanged: the file is shorter, or the bytes differ from those of the digest pass or of an earlier read.
            SourceError: a BOOL holds something other than 0 and 1.
        """
        tensor = self.tensors[name]
        view = memoryview(bytearray(tensor.spec.nbytes) if out is None else out).cast("B")
        if len(view) != tensor.spec.nbytes:
            raise ValueError(f"{name} has {tensor.spec.nbytes} bytes, the buffer {len(view)}")
        read_at(
            self._descriptor(tensor.file.name), view, tensor.start, label=f"{self._where(tensor.file.name)}: {name}"
        )
        self._compare(tensor, zlib.crc32(view))
        if tensor.spec.dtype == "BOOL":
            wrong = _count(view, "u1", lambda block: block > 1)
            if wrong:
                raise SourceError(
                    f"{wrong} bytes of a BOOL tensor are neither 0 nor 1",
                    where=f"{self._where(tensor.file.name)}: {short(name)}",
                )
        return view

    def digest(self, on_bytes: Callable[[int], None] | None = None) -> dict[str, str]:
        """SHA-256 of every file that is used, by name: weight files, index, configs, tokenizer files.

        One sequential pass; it may run in a thread while others `read`. A second call returns what the first found.

        Args:
            on_bytes: called with the number of bytes after each block of a weight file.

        Raises:
            SourceChanged: a file is not the one its origin names, or not the one that was read before.
        """
        if not self._digested:
            digested = {file.name: self._digest_weights(file, on_bytes) for file in self.files}
            for name in self._side_files:
                fingerprint = self._current(name)
                self.file_bytes(name)
                digested[name] = _Digested(sha256=self._served[name], fingerprint=fingerprint)
            self._digested = digested
        return {name: digested.sha256 for name, digested in self._digested.items()}

    def recheck(self) -> None:
        """Ask, after `digest`, whether every file still is what was digested.

        Raises:
            SourceChanged: a file is gone, was replaced, or holds other bytes. A new date alone is no change.
        """
        if not self._digested:
            raise LigoError("recheck() was called before digest()", where=self.label)
        for name, digested in self._digested.items():
            self._recheck(name, digested)

    def file_bytes(self, name: str) -> bytes:
        """A side file: one of `tokenizer_files`, config, generation config, index or card.

        Raises:
            SourceError: too large, not a regular file, or a link that leaves the directory.
            SourceChanged: not the bytes its origin names, or not those of an earlier call.
        """
        where = self._where(name)
        if name not in self._place.names:
            raise SourceError("no such file", where=where)
        data = _small_file(self._place, name)
        sha256 = hashlib.sha256(data).hexdigest()
        with self._lock:
            before = self._served.setdefault(name, sha256)
        if before != sha256:
            raise SourceChanged(
                "the file changed since it was first read",
                where=where,
                expected=before,
                found=sha256,
                hint=_KEEP_STILL,
            )
        return data

    def _where(self, file: str) -> str:
        return f"{self.label}/{file}"

    def _descriptor(self, file: str) -> int:
        if file not in self._descriptors:
            raise LigoError("the source is closed, or was opened for planning without weights", where=self._where(file))
        return self._descriptors[file]

    def _compare(self, tensor: SourceTensor, crc32: int) -> None:
        """Whoever sees a tensor first, `read` or `digest`, says what it holds; everyone later must see the same."""
        with self._lock:
            before = self._crc32.setdefault(tensor.spec.name, crc32)
            digested = self._digested.get(tensor.file.name)
        if before != crc32:
            raise SourceChanged(
                "the tensor's bytes changed since they were first read",
                where=f"{self._where(tensor.file.name)}: {short(tensor.spec.name)}",
                expected=f"CRC-32 {before:08x}" + (f", in a file of SHA-256 {digested.sha256}" if digested else ""),
                found=f"CRC-32 {crc32:08x}",
                hint=_KEEP_STILL,
            )

    def _digest_weights(self, file: SourceFile, on_bytes: Callable[[int], None] | None) -> _Digested:
        fd, (_, header) = self._descriptor(file.name), self._headers[file.name]
        # Taken before the pass, so that a change during it is seen by `recheck`.
        fingerprint = _fingerprint(os.fstat(fd))
        if fingerprint[0] != file.size:
            raise SourceChanged(
                "the file's size changed since it was opened",
                where=self._where(file.name),
                expected=f"{file.size} bytes",
                found=f"{fingerprint[0]} bytes",
                hint=_KEEP_STILL,
            )
        sha256, blob = hashlib.sha256(), _git_blob(file.size)
        ends = [(None, header.nbytes), *((name, tensor.end) for name, tensor in header.tensors.items())]
        crc32, position, at = 0, 0, 0  # of the part that ends[at] describes, and how far the pass has come
        for block in _blocks(fd, file.size, label=self._where(file.name)):
            sha256.update(block)
            if file.expected is not None and len(file.expected) != 64:
                blob.update(block)
            begin = position
            # Tensors of no bytes end where the one before them does.
            while at < len(ends) and (position < begin + len(block) or ends[at][1] == position):
                name, end = ends[at]
                part = block[position - begin : end - begin]
                crc32, position = zlib.crc32(part, crc32), position + len(part)
                if position == end:
                    self._passed(file, header, name, crc32)
                    crc32, at = 0, at + 1
            if on_bytes is not None:
                on_bytes(len(block))
        digested = _Digested(sha256=sha256.hexdigest(), fingerprint=fingerprint)
        _check_expected(
            file.expected, digested.sha256, blob.hexdigest(), where=self._where(file.name), again=self._again(file.name)
        )
        return digested

    def _passed(self, file: SourceFile, header: Header, name: str | None, crc32: int) -> None:
        if name is not None:
            self._compare(self.tensors[name], crc32)
        elif crc32 != header.crc32:
            raise SourceChanged(
                "the header changed since the file was opened", where=self._where(file.name), hint=_KEEP_STILL
            )

    def _again(self, name: str) -> str:
        if self.revision is None:
            return "restore the file and run again"
        return f"fetch it again: hf download {self.label} {name} --revision {self.revision} --force-download"

    def _current(self, name: str) -> tuple[int, ...]:
        try:
            return _fingerprint((self.root / name).stat())
        except OSError:
            raise SourceChanged("the file is gone", where=self._where(name), hint=_KEEP_STILL) from None

    def _recheck(self, name: str, digested: _Digested) -> None:
        where, current = self._where(name), self._current(name)
        fd = self._descriptors.get(name)
        same = current == digested.fingerprint and (fd is None or _fingerprint(os.fstat(fd)) == current)
        if same:
            return
        again = _open_inside(self.root, name, label=where)
        try:
            found = [_sha256(one, label=where) for one in (again, fd) if one is not None]
        finally:
            os.close(again)
        for sha256 in found:
            if sha256 != digested.sha256:
                raise SourceChanged(
                    "the file changed while it was converted",
                    where=where,
                    expected=f"SHA-256 {digested.sha256}",
                    found=f"SHA-256 {sha256}",
                    hint=_KEEP_STILL,
                )


def open_source(model: str, *, revision: str = "main", base: Path, weights: bool = True) -> Source:
    """Open a checkpoint.

    Args:
        model: a directory, where it begins with `.`, `/` or `~` or exists relative to `base`; else a Hub id.
        revision: branch, tag or commit of the Hub; a directory has none.
        base: the folder that relative directories are relative to.
        weights: False fetches configs and headers only, for planning; `read` and `digest` then need local files.

    Raises:
        SourceError: no such directory, or a checkpoint that is broken, incomplete, unsupported or unsafe.
        SourceChanged: the Hub, the repository or the revision is out of reach, or its bytes are not what it says.
        MachineError: no permission, no space, or an endpoint that is not https.
    """
    return Source(_place(model, revision=revision, base=base), weights=weights)


def _place(model: str, *, revision: str, base: Path) -> _Place:
    """Where the files of `model` come from: a directory here, or a repository of the Hub."""
    try:
        local = base / Path(model).expanduser()
    except RuntimeError:
        raise SourceError("no such directory: the home folder is not known", where=short(model)) from None
    # lexists() is false, and not an error, for names that no file system takes.
    if "\0" not in model and (model.startswith((".", "/", "~")) or (model and os.path.lexists(local))):
        return _directory(model, local)
    if not _HUB_ID.fullmatch(model) or ".." in model or "--" in model or model.endswith(".git"):
        raise SourceError(
            "no such directory, and no id of the Hub either",
            where=short(model),
            expected="a directory, `name` or `org/name`",
        )
    if not _REVISION.fullmatch(revision) or ".." in revision or revision.endswith("/"):
        raise RecipeError("not a branch, tag or commit", where=model, found=short(revision))
    return _Repository(model, revision)


def read_config(model: str, *, revision: str = "main", base: Path) -> dict[str, object]:
    """The config of a model alone, as `open_source` would read it: no weights, no headers. Raises as `open_source` does."""
    place = _place(model, revision=revision, base=base)
    place.fetch([CONFIG])
    label = f"{place.label}/{CONFIG}"
    return _check_config(strict_json(_small_file(place, CONFIG), label=label), label=label)


def nonfinite_count(buffer: bytes | bytearray | memoryview, dtype: str) -> int:
    """How many numbers of a tensor's bytes are NaN or infinite; 0 for the dtypes that have neither."""
    exponents = {
        "F64": ("<u8", 0x7FF << 52),
        "F32": ("<u4", 0xFF << 23),
        "F16": ("<u2", 0x1F << 10),
        "BF16": ("<u2", 0xFF << 7),
    }
    if dtype not in exponents:
        return 0
    unsigned, bits = exponents[dtype]
    mask = np.array(bits, dtype=unsigned)
    return _count(memoryview(buffer), unsigned, lambda block: (block & mask) == mask)


def _count(view: memoryview, dtype: str, wrong: Callable[[np.ndarray], np.ndarray]) -> int:
    """Elements for which `wrong` is true, in blocks that keep the temporaries small."""
    values = np.frombuffer(view, dtype=dtype)
    return sum(int(np.count_nonzero(wrong(values[at : at + _MIB]))) for at in range(0, len(values), _MIB))


# ---- what a checkpoint must look like ----


def _is_sharded(place: _Place) -> bool:
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


def _check_shards(place: _Place, index: Index | None, shards: list[str]) -> None:
    missing = [name for name in shards if name not in place.names]
    if index is not None and missing and place.complete:
        raise SourceError(
            f"the index names {missing[0]}, which is not there"
            + (f" (+{len(missing) - 1} more)" if missing[1:] else ""),
            where=f"{place.label}/{INDEX}",
            hint="fetch the missing files",
        )


def _join(
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


def _check_config(config: dict[str, object], *, label: str) -> dict[str, object]:
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


def _license(card: bytes) -> str | None:
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


# ---- files ----


def _open_inside(root: Path, name: str, *, label: str) -> int:
    """A descriptor of a regular file under `root`. Links may not leave it, but for those of the Hub's cache."""
    path = root / name
    real = Path(os.path.realpath(path))
    inside = [Path(os.path.realpath(root)), *_blob_folders(root)]
    if not any(real.is_relative_to(folder) for folder in inside):
        raise SourceError("a symbolic link that leaves the directory", where=label, hint="put the file itself there")
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes would wait for ever. O_NOFOLLOW: `real` is no link any more.
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        broken = path.is_symlink()
        raise SourceError(
            "a symbolic link that leads nowhere" if broken else "no such file",
            where=label,
            hint="run `git annex get`, or fetch the file" if broken else "",
        ) from None
    except PermissionError:
        raise MachineError("no permission to read the file", where=label) from None
    except OSError as error:
        raise SourceError(f"cannot be opened: {os.strerror(error.errno or 0)}", where=label) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SourceError("not a regular file", where=label)
    return fd


def _blob_folders(root: Path) -> list[Path]:
    """Where links of a snapshot in the Hub's cache lead: its repository's blobs, and those repositories share."""
    real = Path(os.path.realpath(root))
    repository = real.parent.parent
    if real.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return []
    return [repository / "blobs", repository.parent / "blobs"]


def _blob_digest(path: Path) -> str | None:
    """The SHA-256 that the Hub's cache names a large file's blob by; None outside such a cache."""
    if not path.is_symlink():
        return None
    target = path.parent / path.readlink()
    in_cache = Path(os.path.realpath(target.parent)) in _blob_folders(path.parent)
    return target.name if in_cache and _SHA256.fullmatch(target.name) else None


def _small_file(place: _Place, name: str) -> bytes:
    """All bytes of a side file, checked against its origin's digest."""
    label = f"{place.label}/{name}"
    fd = _open_inside(place.root, name, label=label)
    try:
        size = os.fstat(fd).st_size
        _check_size(size, name, label=label)
        data = bytearray(size)
        read_at(fd, memoryview(data), 0, label=label)
    finally:
        os.close(fd)
    blob = _git_blob(size)
    blob.update(data)
    expected = place.expected.get(name) or _blob_digest(place.root / name)
    again = "delete the file from the cache of the Hub, and run again"
    _check_expected(expected, hashlib.sha256(data).hexdigest(), blob.hexdigest(), where=label, again=again)
    return bytes(data)


def _check_size(size: int, name: str, *, label: str) -> None:
    limit = _LIMITS.get(name, _LIMIT)
    if size > limit:
        raise SourceError(
            "the file is too large", where=label, expected=f"at most {limit} bytes", found=f"{size} bytes"
        )


def _git_blob(size: int) -> hashlib._Hash:
    """The hash that names a file of so many bytes in git, before the bytes. The Hub gives it for files outside LFS."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _check_expected(expected: str | None, sha256: str, blob: str, *, where: str, again: str) -> None:
    """Compare a file with the SHA-256 or the git blob id that its origin gives."""
    if expected is not None and expected not in (sha256, blob):
        raise SourceChanged(
            "the file is not the one on the Hub: damaged on the way, or on disk",
            where=where,
            expected=expected,
            found=sha256 if len(expected) == 64 else blob,
            hint=again,
        )


def _blocks(fd: int, size: int, *, label: str) -> Iterator[memoryview]:
    """A file's bytes from start to end, in a buffer that is used again for each block."""
    buffer = memoryview(bytearray(min(_BLOCK, size)))
    for start in range(0, size, _BLOCK):
        block = buffer[: min(_BLOCK, size - start)]
        read_at(fd, block, start, label=label)
        yield block


def _sha256(fd: int, *, label: str) -> str:
    sha256 = hashlib.sha256()
    for block in _blocks(fd, os.fstat(fd).st_size, label=label):
        sha256.update(block)
    return sha256.hexdigest()


def _fingerprint(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


class _Place:
    """Where a source's files come from. As it stands: a local directory, in which everything lies already."""

    label: str
    revision: str | None = None
    root: Path
    names: frozenset[str]
    complete: bool = True  # whether `names` is all there is, or only what a cache happens to hold
    expected: Mapping[str, str] = MappingProxyType({})
    warnings: list[str]

    def fetch(self, names: Iterable[str]) -> None:
        """Make these files lie under `root`, or raise."""

    def header(self, name: str) -> tuple[Header, int]:
        """The header and the size of a weight file that does not lie under `root`."""
        raise SourceError("the file vanished", where=f"{self.label}/{name}")


def _directory(given: str, root: Path) -> _Place:
    try:
        names = frozenset(entry.name for entry in root.iterdir())
    except PermissionError:
        raise MachineError("no permission to read the directory", where=given) from None
    except NotADirectoryError:
        raise SourceError("not a directory", where=given, hint="name the directory that holds the files") from None
    except OSError:
        raise SourceError("no such directory", where=given) from None
    place = _Place()
    place.label, place.root, place.names, place.warnings = Path(os.path.realpath(root)).name or "local", root, names, []
    if CONFIG not in names:
        raise SourceError(f"no {CONFIG}", where=place.label)
    return place


# ---- the Hub ----


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """What the Hub, or its cache, says of a repository at one commit."""

    commit: str
    names: frozenset[str]
    sizes: dict[str, int] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)


class _Repository(_Place):
    """A model repository of the Hub at one commit as a `_Place`, read through the Hub's own client and cache."""

    def __init__(self, model: str, revision: str) -> None:
        self.label = model
        self.warnings = []
        self._sizes: dict[str, int] = {}
        self._check_endpoint()
        listing = self._online(revision)
        self.complete = listing is not None
        if listing is None:
            listing = self._cached(revision)
        self.revision = listing.commit
        self.names, self.expected, self._sizes = listing.names, listing.expected, listing.sizes
        if CONFIG not in self.names:
            raise (SourceError if self.complete else SourceChanged)(
                f"no {CONFIG}", where=self._at(), hint=self._offline()
            )
        if not self.complete and not {WEIGHTS, INDEX} & self.names:
            raise SourceChanged("the weights are not in the cache", where=self._at(), hint=self._offline())
        self.root = self._snapshot([CONFIG])

    def fetch(self, names: Iterable[str]) -> None:
        wanted = [name for name in names if not (self.root / name).exists()]
        if wanted:
            self._snapshot(wanted)
        for name in wanted:
            if not os.path.lexists(self.root / name):
                raise SourceChanged("the file is not in the cache", where=f"{self.label}/{name}", hint=self._offline())

    def header(self, name: str) -> tuple[Header, int]:
        """Of a file that is on the Hub only, by two ranged requests at most."""
        label = f"{self.label}/{name}"
        if not self.complete:
            raise SourceChanged("the file is not in the cache", where=label, hint=self._offline())
        data, size = self._prefix(name, 64 << 10)
        end = header_end(data[:256], file_size=size, label=label)
        if end > len(data):
            data, size = self._prefix(name, end)
        return parse_header(data, file_size=size, label=label), size

    def _at(self) -> str:
        return f"{self.label} at {self.revision}"

    def _offline(self) -> str:
        return "" if self.complete else f"{_UNREACHED} {self.label} --revision {self.revision}"

    def _check_endpoint(self) -> None:
        from huggingface_hub import constants

        parts = urlsplit(constants.ENDPOINT)
        if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            # The client sends the token to whatever this names.
            raise MachineError("the endpoint of the Hub is not https", where="HF_ENDPOINT", hint="use an https address")

    def _online(self, revision: str) -> _Listing | None:
        """The repository as the Hub has it now; None where the Hub cannot be reached at all."""
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

        api = HfApi()
        with _hub_errors(self.label, revision):
            try:
                info = api.model_info(
                    self.label, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
                )
            except (httpx.TransportError, OfflineModeIsEnabled):
                return None
            except HfHubHTTPError as error:
                if error.response.status_code < 500:
                    raise
                return None
            if not _COMMIT.fullmatch(revision):
                # For its note in the cache of what the revision means, so that it can be found without the Hub later.
                api.resolve_revision(self.label, revision=revision)
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise SourceChanged("the Hub did not say which commit this is", where=self.label, found=short(info.sha))
        files = {file.rfilename: file for file in info.siblings or ()}
        expected = {name: file.lfs.sha256 if file.lfs else file.blob_id for name, file in files.items()}
        return _Listing(
            commit=info.sha,
            names=frozenset(files),
            sizes={name: file.size for name, file in files.items() if file.size is not None},
            expected={name: digest for name, digest in expected.items() if digest is not None},
        )

    def _cached(self, revision: str) -> _Listing:
        """The repository as the cache has it."""
        from huggingface_hub import HfApi, constants

        with _hub_errors(self.label, revision):
            commit = HfApi().resolve_revision(self.label, revision=revision, local_files_only=True).resolved
        if not _COMMIT.fullmatch(commit):
            raise SourceChanged("the cache's note of the revision is damaged", where=self.label, found=short(commit))
        self.revision, self.complete = commit, False
        root = self._snapshot([CONFIG])
        if not constants.is_offline_mode():
            self.warnings.append(f"{self.label}: the Hub could not be reached; commit {commit} is read from the cache")
        return _Listing(commit=commit, names=frozenset(entry.name for entry in root.iterdir()))

    def _snapshot(self, names: Iterable[str]) -> Path:
        """Bring these files into the cache and return the directory of the commit."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        class Quiet(tqdm):
            def __init__(self, *args: object, **kwargs: object) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        names = list(names)
        side_files = [name for name in names if not name.endswith(".safetensors")]
        for name in side_files:
            _check_size(self._sizes.get(name, 0), name, label=f"{self.label}/{name}")
        with _hub_errors(self.label, self.revision or ""):
            folder = snapshot_download(
                self.label,
                revision=self.revision,
                allow_patterns=names,
                local_files_only=not self.complete,
                tqdm_class=Quiet if side_files else None,
            )
        return Path(folder)

    def _prefix(self, name: str, count: int) -> tuple[bytes, int]:
        """The first `count` bytes of a file on the Hub (fewer where it is shorter), and its size."""
        from huggingface_hub import constants, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers, http_stream_backoff  # type: ignore[attr-defined]

        url = hf_hub_url(self.label, name, revision=self.revision)
        headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
        data = bytearray()
        with (
            _hub_errors(self.label, self.revision or ""),
            http_stream_backoff(
                "GET", url, headers=headers, max_retries=2, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response,
        ):
            hf_raise_for_status(response)
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if response.status_code != 206:
                total = response.headers.get("Content-Length", "")
            for chunk in response.iter_bytes():
                data += chunk
                # A server that ignores the range would send the whole file.
                if len(data) >= count:
                    break
        size = self._sizes.get(name, int(total) if total.isascii() and total.isdigit() else -1)
        if len(data) < min(count, size) or size < 0:
            raise SourceChanged(
                "the Hub sent less than the header of the file",
                where=f"{self.label}/{name}",
                expected=f"{min(count, size)} bytes" if size >= 0 else "a size",
                found=f"{len(data)} bytes",
                hint="run again",
            )
        return bytes(data[:count]), size


@contextmanager
def _hub_errors(label: str, revision: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one clear line. Its own texts are left out: they hold addresses."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        yield
    except errors.GatedRepoError:
        hint = "accept its conditions on the Hub, log in with `hf auth login`, and run again"
        raise SourceChanged("the repository is gated", where=label, hint=hint) from None
    except errors.RepositoryNotFoundError:
        hint = "check the id; for a private repository log in with `hf auth login`; a directory begins with ./"
        raise SourceChanged("no such repository on the Hub, or it is private", where=label, hint=hint) from None
    except errors.RevisionNotFoundError:
        raise SourceChanged(
            "no such revision", where=label, found=revision, hint="name a branch, tag or commit"
        ) from None
    except errors.DisabledRepoError:
        raise SourceChanged("the Hub disabled the repository", where=label) from None
    except (errors.LocalEntryNotFoundError, errors.RevisionResolutionError, errors.OfflineModeIsEnabled):
        what = (
            "the Hub cannot be reached, or is switched off by HF_HUB_OFFLINE, and the cache does not hold the revision"
        )
        raise SourceChanged(what, where=label, found=revision, hint=f"{_UNREACHED} {label}") from None
    except errors.EntryNotFoundError:
        raise SourceChanged("the Hub lists a file that it does not have", where=label, found=revision) from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        what = "the Hub refuses access" if code in (401, 403) else "the Hub answered with an error"
        raise SourceChanged(what, where=label, found=f"HTTP status {code}", hint="log in, or try again later") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        hint = "check the network, HF_ENDPOINT and the proxy settings, and run again"
        raise SourceChanged("the Hub cannot be reached", where=label, found=type(error).__name__, hint=hint) from None
    except OSError as error:
        machine = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE)
        if error.errno in machine:
            raise MachineError(f"the cache of the Hub: {os.strerror(error.errno)}", where=label) from None
        raise SourceChanged("the download failed", where=label, found=type(error).__name__, hint="run again") from None
    except (ValueError, KeyError, TypeError) as error:
        what = "the answer is not one of the Hub"
        raise SourceChanged(what, where=label, found=type(error).__name__, hint="check HF_ENDPOINT") from None

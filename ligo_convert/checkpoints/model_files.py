"""Sort the files beside a checkpoint's weights: those that are carried into an output, and those that are left behind.

Input: a `Place` and the names of the files that the conversion itself reads. Output: `ModelFiles`. Nothing is opened but modules.json.
Names are not trusted: only plain names inside the checkpoint are carried, and the number and size of what is carried have limits.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ligo_convert.checkpoints.file_kinds import FileKind, kind_of, may_be_carried
from ligo_convert.checkpoints.files import TOKENIZER_FILES, Place, SmallFiles, blob_folders
from ligo_convert.errors import SourceError, printable
from ligo_convert.io.files import reporting
from ligo_convert.io.private_names import holds_private_name
from ligo_convert.io.strict_json import Pairs, decode, distinct

MODULES = "modules.json"

MAX_CARRIED = 256  # files

MAX_CARRIED_BYTES = 512 << 20

MAX_FOLDER = 5_000  # entries of one folder below the root

MAX_NESTED = 20_000  # entries of all folders below the root

MAX_DEPTH = 6  # folders inside each other

MAX_NAMED = 100  # files left behind that are named one by one

# Stands for the path of a file whose name is not for others.
PRIVATE_NAME = "a file with a private name"

_MAX_SORTED = 2_000  # files left behind that get a reason; the others are only counted

# Characters that mean the same to every file system, to SHA256SUMS, and to the patterns of the Hub's client.
_PLAIN = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._+() -]*[A-Za-z0-9._+()-])?/)*[A-Za-z0-9_](?:[A-Za-z0-9._+() -]*[A-Za-z0-9._+()-])?"
)


@dataclass(frozen=True, kw_only=True)
class LeftBehind:
    """A file, or a folder whose name ends with a slash, that an output lacks, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module of a sentence-transformers pipeline.

    Attributes:
        kind: the last part of its class's name, such as `Pooling`; empty for a class outside the library.
        folder: its folder; empty for the root.
        files: names of the files in its folder that can be read.
    """

    kind: str
    folder: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files beside the weights.

    Attributes:
        carried: names of the files that are carried byte for byte, sorted.
        nbytes: size of all files that are carried.
        modules: the modules of modules.json in order; empty where there is none.
        module_files: names of the files of that pipeline, modules.json included, sorted.
        left: what is left behind, sorted by path.
    """

    carried: tuple[str, ...] = ()
    nbytes: int = 0
    modules: tuple[Module, ...] = ()
    module_files: tuple[str, ...] = ()
    left: tuple[LeftBehind, ...] = ()


def sort_files(place: Place, small_files: SmallFiles, *, used: Collection[str]) -> ModelFiles:
    """Sort every file of a checkpoint by `file_kinds.KINDS`.

    Args:
        used: names of the files that the conversion reads itself: config.json, the weights and their index.

    Raises:
        SourceError, SourceChanged, MachineError: modules.json cannot be fetched or read.
    """
    sorter = _Sorter(place, used)
    for name in sorter.names():
        sorter.add(name)
    modules: tuple[Module, ...] = ()
    if MODULES in sorter.pipeline:
        place.fetch([MODULES])
        try:
            modules = read_modules(small_files.read(MODULES), sorter.pipeline, label=f"{place.label}/{MODULES}")
        except SourceError as error:
            sorter.leave(MODULES, error.what)
    found = sorter.result(modules)
    small_files.add_names((*found.carried, *found.module_files))
    return found


class _Sorter:
    """Collect what is carried and what is left behind, within the limits."""

    def __init__(self, place: Place, used: Collection[str]) -> None:
        self.place, self.used = place, frozenset(used)
        self.carried: list[str] = []
        self.pipeline: dict[str, FileKind] = {}
        self.left: dict[str, str] = {}
        self.bytes, self.tokenizer_bytes, self.unnamed = 0, 0, 0

    def names(self) -> Iterator[str]:
        """Yield every file: of the root all, of folders as many as the limits allow."""
        if self.place.lists_folders:
            yield from sorted(self.place.names)
            return
        with reporting(self.place.root, "list"), os.scandir(self.place.root) as entries:
            folders = {entry.name for entry in entries if entry.is_dir()} - self.used
        yield from sorted(self.place.names - folders)
        budget = [MAX_NESTED]
        for name in sorted(folders & self.place.names):
            yield from self._folder(name, budget, depth=1)
        if not self.place.complete:
            self.leave("...", "files that the cache does not hold are not known: run once with the Hub at hand")

    def _folder(self, folder: str, budget: list[int], *, depth: int) -> Iterator[str]:
        path = self.place.root / folder
        if kind_of(folder).action == "ignore" or kind_of(f"{folder}/_").action == "ignore":
            return
        if path.is_symlink():
            self.leave(f"{folder}/", "a symbolic link to a folder")
            return
        if depth > MAX_DEPTH or budget[0] <= 0:
            self.leave(f"{folder}/", "too many or too deep folders: not looked at")
            return
        try:
            with os.scandir(path) as entries:
                found = sorted((entry.name, entry.is_dir()) for entry in islice(entries, MAX_FOLDER + 1))
        except OSError as error:
            self.leave(f"{folder}/", f"it cannot be listed: {os.strerror(error.errno or 0)}")
            return
        budget[0] -= len(found)
        if len(found) > MAX_FOLDER:
            self.leave(f"{folder}/", f"more than {MAX_FOLDER} files: not looked at")
            return
        for name, _ in (entry for entry in found if not entry[1]):
            yield f"{folder}/{name}"
        for name, _ in (entry for entry in found if entry[1]):
            yield from self._folder(f"{folder}/{name}", budget, depth=depth + 1)

    def add(self, name: str) -> None:
        """Put one file where its kind says."""
        if name in self.used:
            return
        if len(self.left) >= _MAX_SORTED and not may_be_carried(name):
            self.unnamed += 1
            return
        kind = kind_of(name)
        if kind.action == "ignore":
            return
        if kind.action == "leave":
            self.leave(name, kind.why)
            return
        if name in TOKENIZER_FILES:
            # The tokenizer is needed: a broken file of it is an error when it is read.
            size = look_at(self.place, name)
            self.tokenizer_bytes += size if isinstance(size, int) else 0
            self.carried.append(name)
            return
        found = self._refusal(name, kind)
        if found is not None:
            self.leave(name, found)
        elif kind.action == "module":
            self.pipeline[name] = kind
        else:
            self.carried.append(name)

    def _refusal(self, name: str, kind: FileKind) -> str | None:
        """Return why a file of a kind that is carried cannot be; None where it can. Counts it against the limits."""
        if not _PLAIN.fullmatch(name) or len(name) > 200:
            return "its name has characters that not every system takes"
        if holds_private_name(name):
            return "its name holds that of the account or of the machine"
        size = look_at(self.place, name)
        if isinstance(size, str):
            return size
        if size > kind.limit:
            return f"{size} bytes, and a file of its kind ({kind.what}) is carried up to {kind.limit} bytes"
        if len(self.carried) + len(self.pipeline) >= MAX_CARRIED or self.bytes + size > MAX_CARRIED_BYTES:
            return f"at most {MAX_CARRIED} files and {MAX_CARRIED_BYTES} bytes are carried"
        self.bytes += size
        return None

    def leave(self, path: str, reason: str) -> None:
        """Note what is left behind. A folder that is left as a whole for one reason is one entry, see `result`."""
        self.left[path] = reason

    def result(self, modules: tuple[Module, ...]) -> ModelFiles:
        own = {name for module in modules for name in module.files}
        kept = {name for name in self.pipeline if "/" not in name or name in own} if modules else set()
        for name, kind in self.pipeline.items():
            if name not in kept and name not in self.left:
                self.leave(name, kind.why if modules else _unused_reason(name))
        return ModelFiles(
            carried=tuple(sorted(self.carried)),
            nbytes=self.bytes + self.tokenizer_bytes,
            modules=modules,
            module_files=tuple(sorted(kept)),
            left=tuple(self._left_behind(kept)),
        )

    def _left_behind(self, kept: Collection[str]) -> Iterator[LeftBehind]:
        """Yield what is left behind, sorted; a folder that is left for one reason as one entry; the rest beyond a limit as one."""
        whole: dict[str, set[str]] = {}
        for path, reason in self.left.items():
            top, nested, _ = path.partition("/")
            if nested:
                whole.setdefault(top, set()).add(reason)
        occupied = {name.partition("/")[0] for name in (*self.carried, *kept) if "/" in name}
        entries: dict[str, str] = {}
        for path, reason in sorted(self.left.items()):
            top, nested, _ = path.partition("/")
            joined = nested and len(whole[top]) == 1 and top not in occupied
            entries[f"{top}/" if joined else path] = reason
        for path, reason in islice(entries.items(), MAX_NAMED):
            shown = PRIVATE_NAME if holds_private_name(path) else printable(path)
            yield LeftBehind(path=shown, reason=reason)
        more = len(entries) - MAX_NAMED + self.unnamed
        if more > 0:
            yield LeftBehind(path="...", reason=f"{more} more files")


def _unused_reason(name: str) -> str:
    return (
        f"no usable {MODULES} names it" if "/" in name else "a part of a sentence-transformers pipeline without modules"
    )


def look_at(place: Place, name: str) -> int | str:
    """Return the size of a file in bytes, or why it cannot be read. Opens nothing."""
    listed = place.listed_size(name)
    if listed is not None:
        return listed
    real = Path(os.path.realpath(place.root / name))
    inside = [Path(os.path.realpath(place.root)), *blob_folders(place.root)]
    if not any(real.is_relative_to(folder) for folder in inside):
        return "a symbolic link that leaves the directory"
    try:
        found = real.lstat()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return found.st_size if stat.S_ISREG(found.st_mode) else "not a regular file"


def read_modules(data: bytes, there: Mapping[str, object], *, label: str) -> tuple[Module, ...]:
    """Parse modules.json of sentence-transformers.

    Args:
        there: names of the files that modules can have.

    Raises:
        SourceError: it is not a list of modules with plain folders.
    """
    content = decode(data, label=label)
    if not isinstance(content, list) or isinstance(content, Pairs) or not content:
        raise SourceError("it is not a list of modules", where=label)
    modules = []
    for item in content:
        if not isinstance(item, Pairs):
            raise SourceError("it is not a list of modules", where=label)
        entry = dict(distinct(item, label=label, kind="key"))
        kind, folder = entry.get("type"), entry.get("path")
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise SourceError("a module has no type or no path", where=label)
        folder = folder.rstrip("/")
        if folder and not _PLAIN.fullmatch(folder):
            raise SourceError("the path of a module is not a plain folder", where=label)
        files = tuple(name for name in sorted(there) if folder and name.rpartition("/")[0] == folder)
        ours = kind.startswith("sentence_transformers.")
        modules.append(Module(kind=kind.rpartition(".")[2] if ours else "", folder=folder, files=files))
    return tuple(modules)

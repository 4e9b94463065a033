"""The table of known families: the built-in definitions, those that installed packages register, and those of a user's own files.

A built-in family is a file in `families/definitions/`. An installed package registers one with the entry-point group
`ligo_convert.families`. `load_family_file` adds the families of a file that the user names with `--family`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import itertools
import json
import pkgutil
import sys
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from ligo_convert.errors import MachineError, RecipeError, SourceError, brief, close_matches
from ligo_convert.families import definitions
from ligo_convert.families.notation import NotationError, SizeError
from ligo_convert.families.schema import Family

ENTRY_POINT_GROUP = "ligo_convert.families"

# Least likeness at which a hint names a family (see `Family.likeness`).
LIKE = 0.8

# Tensor names that are compared with the families at most.
COMPARED = 10_000


@dataclass(frozen=True, kw_only=True)
class FamilySource:
    """The Python file that defines a family which is not built in.

    Attributes:
        kind: `file` for a file named with `--family`, `plugin` for a module of an installed package.
        sha256: SHA-256 of that file, hex.
    """

    kind: Literal["file", "plugin"]
    sha256: str

    def json(self) -> dict[str, str]:
        return {"kind": self.kind, "sha256": self.sha256}


def _built_in() -> dict[str, Family]:
    """Name -> family, for every module of `definitions` in the order of their names."""
    families: dict[str, Family] = {}
    for module in sorted(found.name for found in pkgutil.iter_modules(definitions.__path__)):
        for value in vars(importlib.import_module(f"{definitions.__name__}.{module}")).values():
            # A module may import another family's table to build on it; only the family with the module's name is its own.
            if isinstance(value, Family) and value.name == module:
                families[module] = value
    return families


def _register_plugins() -> None:
    """Add the families of installed packages. Raises MachineError for an entry point that does not give a usable family."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        where = f"entry point {entry.name} = {entry.value}"
        try:
            family = entry.load()
            if not isinstance(family, Family):
                raise NotationError(f"it is a {type(family).__name__}, not a Family")
            _check_family(family)
            digest = hashlib.sha256(Path(str(sys.modules[entry.module].__file__)).read_bytes()).hexdigest()
        except Exception as error:
            raise MachineError(
                f"an installed package registers a family that cannot be used: {error}",
                where=where,
                hint="update or remove that package",
            ) from error
        for known in FAMILIES.values():
            if family.name == known.name or family.model_type == known.model_type:
                raise MachineError(
                    f"an installed package registers the family {family.name} (model_type {family.model_type}), which clashes with"
                    f" {known.name}",
                    where=where,
                    hint="remove that package, or rename its family",
                )
        FAMILIES[family.name] = family
        _SOURCES[family.name] = FamilySource(kind="plugin", sha256=digest)


def load_family_file(path: Path) -> tuple[Family, ...]:
    """Execute a user's Python file and add the families it defines to `FAMILIES`, before the others.

    A family of the file takes precedence over one with the same `model_type`. Families that the file merely imports are left alone.
    The file is executed as it is: load only files that you trust.

    Raises:
        RecipeError: the file cannot be read or executed, defines no family or an invalid one, or a name is already in use.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read the family file: {error.strerror}", where=path) from None
    source = FamilySource(kind="file", sha256=hashlib.sha256(data).hexdigest())
    place = path.absolute()
    # A file that was edited since it was loaded replaces what it defined then.
    before, sources = dict(FAMILIES), dict(_SOURCES)
    for name in _FILES.get(place, ()):
        if _SOURCES.get(name) != source:
            FAMILIES.pop(name, None)
            _SOURCES.pop(name, None)
    try:
        loaded = _families_of_file(data, path, source)
    except RecipeError:
        FAMILIES.clear()
        FAMILIES.update(before)
        _SOURCES.update(sources)
        raise
    # In place, since other modules hold this dictionary; first, since look-ups by model_type take the first match.
    others = {name: family for name, family in FAMILIES.items() if name not in loaded}
    FAMILIES.clear()
    FAMILIES.update({**loaded, **others})
    _SOURCES.update(dict.fromkeys(loaded, source))
    _FILES[place] = tuple(loaded)
    return tuple(loaded.values())


def _families_of_file(data: bytes, path: Path, source: FamilySource) -> dict[str, Family]:
    """Execute the bytes of a family file and check the families that it defines. Raises RecipeError."""
    module = _execute(data, path, f"_ligo_convert_family_{source.sha256[:16]}")
    known = {id(family) for family in FAMILIES.values()}
    defined = {
        id(value): value for value in vars(module).values() if isinstance(value, Family) and id(value) not in known
    }
    loaded: dict[str, Family] = {}
    for family in defined.values():
        try:
            _check_family(family)
        except (NotationError, SizeError, TypeError, AttributeError, ValueError) as error:
            raise RecipeError(f"the family {family.name!r} is not valid: {error}", where=path) from None
        _refuse_clash(family, loaded, source, path)
        loaded[family.name] = family
    if not loaded:
        raise RecipeError(
            "the file defines no family",
            where=path,
            hint="assign a `ligo_convert.families.schema.Family` to a module variable",
        )
    return loaded


def _execute(data: bytes, path: Path, name: str) -> ModuleType:
    """Run the bytes of a Python file as a module. Raises RecipeError with the line that failed."""
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(data, str(path), "exec", dont_inherit=True), vars(module))
    except SyntaxError as error:
        raise RecipeError(
            f"the family file is not valid Python: {error.msg}", where=f"{path}:{error.lineno or 1}"
        ) from None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else path
        raise RecipeError(f"the family file failed with {type(error).__name__}: {error}", where=where) from error
    return module


def _check_family(family: Family) -> None:
    """Expand the table and compute the sizes of the default config. Raises NotationError or SizeError."""
    if not family.heads:
        raise NotationError("`heads` is empty")
    family.roles_for({})
    family.sizes({})


def _refuse_clash(family: Family, loaded: Mapping[str, Family], source: FamilySource, path: Path) -> None:
    """Refuse a family of a file that shares its name or model_type with one it must not replace. Raises RecipeError."""
    if family.name in loaded or (family.name in FAMILIES and _SOURCES.get(family.name) != source):
        kind = "defined twice" if family.name in loaded else "already in use"
        raise RecipeError(
            f"the family name {family.name!r} is {kind}", where=path, hint="give the family another `name`"
        )
    files = [known for name, known in FAMILIES.items() if name in files_loaded() and _SOURCES[name] != source]
    for known in (*loaded.values(), *files):
        if known.model_type == family.model_type:
            raise RecipeError(
                f"the families {known.name!r} and {family.name!r} have the same model_type {family.model_type!r}",
                where=path,
                hint="load one of them",
            )


def family_source(name: str) -> FamilySource | None:
    """The file that defines a family; None for a built-in one."""
    return _SOURCES.get(name)


def files_loaded() -> tuple[str, ...]:
    """The names of the families that come from files named with `--family`."""
    return tuple(name for name, source in _SOURCES.items() if source.kind == "file")


def family_files() -> tuple[Path, ...]:
    """The absolute paths of the files named with `--family`, in the order in which they were loaded; a worker process loads them again."""
    return tuple(_FILES)


def family_digests() -> dict[str, str]:
    """Name -> SHA-256 of the file, for the families of files named with `--family`."""
    return {name: _SOURCES[name].sha256 for name in files_loaded()}


FAMILIES: dict[str, Family] = _built_in()

# Path of a file named with `--family` -> the names of its families.
_FILES: dict[Path, tuple[str, ...]] = {}

_SOURCES: dict[str, FamilySource] = {}

_register_plugins()


def family_of_type(config: Mapping[str, object]) -> Family | None:
    """The family with the `model_type` of a config; None if there is none.

    Both libraries have a model of some types. Such a config is of transformers if it names a class of transformers, or has more of the size
    keys of transformers than of timm.
    """
    found: dict[str, Family] = {}
    for family in FAMILIES.values():
        if family.model_type == config.get("model_type"):
            # A family of the user's comes before a built-in one.
            found.setdefault(family.library, family)
    if len(found) < 2:
        return next(iter(found.values()), None)
    other, named = found["transformers"], config.get("architectures")
    if isinstance(named, list) and any(head.architecture in named for head in other.heads):
        return other
    return max(found["timm"], other, key=lambda family: sum(key in config for key in family.size_keys))


def find_family(config: Mapping[str, object], *, where: str, names: Collection[str] = ()) -> Family:
    """The family with the `model_type` of a config.

    Args:
        config: the flat config.
        where: how errors name the config.
        names: the checkpoint's tensors, where they are known; an error tells which family they look like.

    Raises:
        SourceError: no family has the `model_type`, or the config has none.
    """
    model_type = config.get("model_type")
    if (family := family_of_type(config)) is not None:
        # A wrong number of experts is an error of its own, in `Family.check_config`.
        with contextlib.suppress(SizeError):
            family = family.with_experts(config)
        return family
    known = sorted({family.model_type for family in FAMILIES.values()})
    raise SourceError(
        f"model_type {brief(model_type)} is not supported" if model_type else "config.json names no model_type",
        where=where,
        expected=f"one of {len(known)} types, which `ligo-convert families` lists",
        hint=_other_name(str(model_type)) or _look_alike(names, model_type) or _near(str(model_type), known),
    )


def _other_name(model_type: str) -> str:
    """Return what to write instead of a `model_type` that is a family under another name; "" for any other."""
    for family in FAMILIES.values():
        if model_type in family.other_names:
            return (
                f"{model_type} is {family.name} under another name: set model_type to {json.dumps(family.model_type)} and"
                f" architectures to {json.dumps([family.architecture])} (or its class without a head) in its config.json"
            )
    return ""


def _look_alike(names: Collection[str], model_type: object) -> str:
    """Return which families the tensor names fit best, and what to write into config.json; "" where none fits."""
    some = list(itertools.islice(names, COMPARED))
    scores = {name: family.likeness(some) for name, family in FAMILIES.items()} if some else {}
    best = max(scores.values(), default=0.0)
    if best < LIKE:
        return ""
    alike = [FAMILIES[name] for name, score in scores.items() if score == best]
    title = " or ".join(family.name for family in alike)
    if model_type:
        return f"the tensor names are those of {title}; another model_type may compute another function, so it is not assumed"
    keys = [
        '"architecture": "NAME", where NAME is timm\'s name of the model'
        if family.library == "timm"
        else f'"model_type": {json.dumps(family.model_type)}'
        for family in alike
    ]
    return f"the tensor names are those of {title}: put {' or '.join(dict.fromkeys(keys))} into config.json"


def _near(model_type: str, known: list[str]) -> str:
    near = close_matches(model_type, known, n=1, cutoff=0.75)
    if near:
        return f"did you mean {near[0]}?"
    return "load your own table with --family FILE: docs/extending/adding-a-family.md"

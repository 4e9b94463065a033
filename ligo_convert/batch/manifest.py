"""Read a manifest, which lists many conversions.

Input: a YAML file. Output: a `BatchEntry` for each conversion, and an order to run them in. An entry names a recipe, or a learned operator
to apply; a table or globs expand one entry to several. All errors of the manifest are reported together with their positions before any
work. An error in a recipe fails only the entries that use it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ligo_convert.batch.manifest_schema import ENTRY_NAME, EntrySection, ManifestSection, Reference, Resources
from ligo_convert.errors import LigoError, RecipeError, some
from ligo_convert.hub.names import is_hub_id
from ligo_convert.io.globs import Visits, expand
from ligo_convert.io.strict_yaml import KeyPath, load_file
from ligo_convert.limits import ENTRIES
from ligo_convert.recipes.errors import Fault, Layered, findings, screen, shown
from ligo_convert.recipes.recipe import is_homeless, is_local, load_recipe
from ligo_convert.recipes.schema import PublishConfig

_REPO_NAME = "{name}"

# The longest file name and path on Linux and macOS, in bytes.
_NAME_BYTES, _PATH_BYTES = 255, 4095


@dataclass(frozen=True, kw_only=True)
class BatchEntry:
    """One conversion.

    Attributes:
        name: unique; also the default name of its output directory.
        where: `file:line:column` in the manifest.
        recipe: the recipe's file; None if an operator is applied.
        overrides: `KEY=VALUE` settings, as `load_recipe` takes them.
        source: an absolute directory or a Hub id that replaces the recipe's source.
        operator: a learned operator's file.
        out: the absolute output directory; None uses the recipe's.
        publish: a `publish` section as plain data.
        after: names of the entries to run before this one.
        resources: what the entry needs.
    """

    name: str
    where: str
    recipe: Path | None
    overrides: tuple[str, ...]
    source: str | None
    operator: Path | None
    out: Path | None
    publish: Mapping[str, Any] | None
    after: tuple[str, ...]
    resources: Resources


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked manifest.

    Attributes:
        path: its file.
        state: the state folder.
        entries: by name, in the order of the file.
    """

    path: Path
    state: Path
    entries: Mapping[str, BatchEntry]

    @property
    def order(self) -> tuple[str, ...]:
        """All names in the order of the file, but each after its dependencies."""
        place = {name: number for number, name in enumerate(self.entries)}
        sorter = TopologicalSorter({name: entry.after for name, entry in self.entries.items()})
        sorter.prepare()
        ordered: list[str] = []
        while sorter.is_active():
            ready = sorted(sorter.get_ready(), key=place.__getitem__)
            ordered += ready
            sorter.done(*ready)
        return tuple(ordered)


OPERATOR_OF_OUTPUT = Path("ligo/operator.safetensors")


def load_manifest(path: Path) -> Manifest:
    """Read a manifest. Paths in it are relative to its folder; `out` and `state` are relative to the working directory.

    Raises:
        RecipeError: the manifest has errors; one exception lists all of them.
    """
    document = load_file(path)
    if not isinstance(document.data, dict):
        raise RecipeError(
            "a manifest is a mapping with the keys version and entries", where=path, found=shown(document.data)
        )
    data, layered = document.data, Layered(document=document)
    faults = screen(data)
    screened = {fault.path for fault in faults}
    try:
        top = ManifestSection.model_validate(data)
    except ValidationError as error:
        layered.report(faults + [fault for fault in findings(error, ManifestSection) if fault.path not in screened])
    drafts, more = _drafts(top, path.absolute().parent)
    faults += [fault for fault in more if fault.path not in screened]
    faults += _names_and_places(drafts, top) if not faults else []
    if faults:
        layered.report(faults)
    base = path.absolute().parent
    outs = {draft.name: draft.out for draft in drafts.values()}
    entries = {draft.name: _entry(draft, outs, top, base, layered.where(draft.path)) for draft in drafts.values()}
    folder = Path(top.out).absolute() if top.out is not None else Path.cwd() / path.stem
    state = Path(top.state).absolute() if top.state is not None else folder.with_name(f"{folder.name}.ligo-batch")
    return Manifest(path=path.absolute(), state=state, entries=entries)


# --- expanding entries ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """An entry whose references to other entries are not resolved yet."""

    name: str
    path: KeyPath
    section: EntrySection
    recipe: Path | None
    source: str | Reference | None
    out: Path | None = field(default=None)


def _drafts(top: ManifestSection, base: Path) -> tuple[dict[KeyPath, _Draft], list[Fault]]:
    drafts: dict[KeyPath, _Draft] = {}
    faults: list[Fault] = []
    for path, merged in _rows(top.entries, faults):
        publish = merged.get("publish", top.publish)
        plain = {key: value for key, value in merged.items() if key != "publish"}
        try:
            section = EntrySection.model_validate(plain)
        except ValidationError as error:
            faults += [_moved(fault, path, top.entries) for fault in findings(error, EntrySection)]
            continue
        made = list(itertools.islice(_spread(section, path, base, faults), ENTRIES.most + 1 - len(drafts)))
        if len(made) + len(drafts) > ENTRIES.most:
            faults.append(Fault(path=path, what=f"the manifest has too many entries: {ENTRIES}"))
            break
        for number, (name, recipe, source) in enumerate(made):
            at = (*path, number) if len(made) > 1 else path
            at_publish = _place_of_publish(path, top.entries)
            draft = _published(section, publish, name, at_publish, faults)
            out = _out(draft, top, name)
            drafts[at] = _Draft(name=name, path=path, section=draft, recipe=recipe, source=source, out=out)
    return drafts, faults


def _rows(entries: Sequence[dict[str, Any]], faults: list[Fault]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield every entry with its position, and for a table every row merged with its entry."""
    for number, entry in enumerate(entries):
        path: KeyPath = ("entries", number)
        if "table" not in entry:
            yield path, entry
            continue
        rows = entry["table"]
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            faults.append(Fault(path=(*path, "table"), what="should be a list of mappings"))
            continue
        shared = {key: value for key, value in entry.items() if key != "table"}
        for index, row in enumerate(rows):
            merged = {**shared, **row}
            if isinstance(shared.get("set"), dict) and isinstance(row.get("set"), dict):
                merged["set"] = {**shared["set"], **row["set"]}
            if "name" not in row:
                base = shared.get("name") or Path(str(merged.get("recipe", "entry"))).stem
                merged["name"] = f"{base}-{index + 1}"
            yield (*path, "table", index), merged


def _moved(fault: Fault, path: KeyPath, entries: Sequence[dict[str, Any]]) -> Fault:
    """Return a fault of an entry with its position in the manifest: in the table row that has the key, else in the entry."""
    if len(path) == 4 and fault.path:
        row = entries[int(path[1])]["table"][int(path[3])]
        if fault.path[0] not in row:
            path = path[:2]
    return Fault(path=(*path, *fault.path), what=fault.what, spot=fault.spot, secret=fault.secret)


def _spread(
    section: EntrySection, path: KeyPath, base: Path, faults: list[Fault]
) -> Iterator[tuple[str, Path | None, str | Reference | None]]:
    """Yield name, recipe and source of each entry that a section with globs expands to."""
    recipes: list[Path | None] = [None]
    if section.recipe is not None:
        recipes = [base / section.recipe]
    elif section.recipes is not None:
        recipes = list(_matches(section.recipes, (*path, "recipes"), base, faults, folders=False))
    sources: list[str | Reference | None] = [section.source]
    if isinstance(section.operator, str):
        _absolute(section.operator, (*path, "operator"), base, faults)
    # A path that does not exist and is not a Hub id may be the output of another entry.
    if isinstance(section.source, str) and (is_local(section.source, base) or not is_hub_id(section.source)):
        sources = [_absolute(section.source, (*path, "source"), base, faults)]
    if section.sources is not None:
        if section.source is not None:
            faults.append(Fault(path=(*path, "sources"), what="cannot be combined with source", spot="key"))
        sources = [str(folder) for folder in _matches(section.sources, (*path, "sources"), base, faults, folders=True)]
    elif section.operator is not None and section.source is None:
        faults.append(Fault(path=path, what="an operator needs a source: give `source` or `sources`"))
    for recipe in recipes:
        for source in sources:
            words = [section.name] if section.name else [recipe.stem] if recipe is not None else []
            words += [recipe.stem] if section.name and recipe is not None and len(recipes) > 1 else []
            words += [Path(str(source)).name] if section.sources is not None or not words else []
            yield "-".join(words), recipe, source


def _absolute(text: str, path: KeyPath, base: Path, faults: list[Fault]) -> str:
    """Return an absolute path. Adds a fault if no such path can exist."""
    if is_homeless(text):
        faults.append(Fault(path=path, what=f"no such home directory: {shown(text)}"))
        return text
    place = (base / Path(text).expanduser()).absolute()
    if _bytes(str(place)) > _PATH_BYTES or max(map(_bytes, place.parts)) > _NAME_BYTES:
        faults.append(Fault(path=path, what=f"the path is too long: {shown(text)}"))
    return str(place)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _matches(
    patterns: Sequence[str], path: KeyPath, base: Path, faults: list[Fault], *, folders: bool
) -> Iterator[Path]:
    visits = Visits()
    for index, pattern in enumerate(patterns):
        matches = [match for match in expand(pattern, base, visits) if match.is_dir() == folders]
        if not matches:
            kind = "directory" if folders else "file"
            faults.append(Fault(path=(*path, index), what=f"no {kind} matches {shown(pattern)}"))
        yield from (match.absolute() for match in matches)


def _place_of_publish(path: KeyPath, entries: Sequence[dict[str, Any]]) -> KeyPath:
    """Return where the `publish` section of an entry stands: in its table row, in the entry, or at the top of the manifest."""
    entry = entries[int(path[1])]
    if len(path) == 4 and "publish" in entry["table"][int(path[3])]:
        return (*path, "publish")
    return (*path[:2], "publish") if "publish" in entry else ("publish",)


def _published(section: EntrySection, publish: object, name: str, path: KeyPath, faults: list[Fault]) -> EntrySection:
    """Return a section with its publish settings, which stand at `path` in the manifest."""
    if publish is None or publish is False:
        return section
    if not isinstance(publish, dict):
        faults.append(Fault(path=path, what=f"should be a mapping, not {shown(publish)}"))
        return section
    settings = {**publish, "repo": str(publish.get("repo", "")).replace(_REPO_NAME, name)}
    try:
        return section.model_copy(update={"publish": PublishConfig.model_validate(settings)})
    except ValidationError as error:
        found = [
            Fault(path=(*path, *fault.path), what=fault.what, spot=fault.spot)
            for fault in findings(error, PublishConfig)
        ]
        # All entries may share the section at the top.
        faults += [fault for fault in found if fault not in faults]
        return section


def _out(section: EntrySection, top: ManifestSection, name: str) -> Path | None:
    if section.out is not None:
        return Path(section.out).absolute()
    return Path(top.out).absolute() / name if top.out is not None else None


# --- dependencies and conflicts -------------------------------------------------------------------------------------------


def _names_and_places(drafts: Mapping[KeyPath, _Draft], top: ManifestSection) -> list[Fault]:
    """Find invalid, duplicate and unknown names, outputs that two entries share, here or on the Hub, and circular dependencies."""
    faults, seen, places = [], dict[str, _Draft](), dict[str, str]()
    for draft in drafts.values():
        if not ENTRY_NAME.fullmatch(draft.name) or ".." in draft.name:
            faults.append(Fault(path=draft.path, what=f"{shown(draft.name)} is not a valid name: give `name`"))
        elif draft.name in seen:
            what = f"the name {draft.name} is used twice: give this entry another `name`"
            faults.append(Fault(path=draft.path, what=what))
        seen.setdefault(draft.name, draft)
        if draft.out is None and (draft.recipe is None or draft.section.sources is not None):
            faults.append(
                Fault(path=draft.path, what="has no output directory: give `out` in the entry or in the manifest")
            )
        for place, what, cure in _destinations(draft, top):
            if place in places:
                faults.append(Fault(path=draft.path, what=f"{draft.name} {what} {places[place]}; {cure}"))
            places.setdefault(place, draft.name)
    for draft in drafts.values():
        for name in _needs(draft):
            other = seen.get(name)
            if other is None:
                faults.append(Fault(path=draft.path, what=f"there is no entry {shown(name)}"))
            elif other.out is None and name not in draft.section.after:
                what = f"{name} has no output directory: give `out` in that entry or in the manifest"
                faults.append(Fault(path=draft.path, what=what))
    if not faults:
        faults += _circles({draft.name: _needs(draft) for draft in drafts.values()}, seen)
    return faults


def _destinations(draft: _Draft, top: ManifestSection) -> Iterator[tuple[str, str, str]]:
    """Yield each destination of an entry, from the entry or its recipe, with the words for a conflict and its remedy.

    Yields nothing for a recipe that cannot be read: that error is reported when the entry is checked.
    """
    out, publish = draft.out, draft.section.publish
    if draft.recipe is not None and (out is None or publish is None):
        source = draft.source if isinstance(draft.source, str) else None
        with contextlib.suppress(LigoError):
            recipe = load_recipe(draft.recipe, overrides=_overrides(draft.section, top), source=source, placed=False)
            out = out or Path(recipe.output.dir).absolute()
            publish = publish or recipe.publish
    if out is not None:
        yield os.path.realpath(out), "writes to the same output directory as", "give it another `out`"
    if publish is not None:
        # Publishing replaces what is there. Names on the Hub ignore case.
        place = f"{publish.repo.lower()} {publish.branch}"
        yield place, "is published to the same repository as", "give it another `publish.repo`, such as org/{name}"


def _overrides(section: EntrySection, top: ManifestSection) -> tuple[str, ...]:
    """Return the settings that override the recipe, in the form of `--set`."""
    settings = {**top.set, **section.set} if section.operator is None else {}
    if section.target is not None:
        settings["target"] = {"config": section.target}
    # JSON is YAML.
    return tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())


def _needs(draft: _Draft) -> tuple[str, ...]:
    """Return the entries that this one depends on."""
    named = [place.name for place in (draft.source, draft.section.operator) if isinstance(place, Reference)]
    return tuple(dict.fromkeys([*named, *draft.section.after]))


def _circles(needs: Mapping[str, Sequence[str]], drafts: Mapping[str, _Draft]) -> list[Fault]:
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = set(error.args[1])
        names = [name for name in needs if name in circle]
        return [Fault(path=drafts[names[0]].path, what=f"these entries depend on each other: {some(names, 20)}")]
    return []


def _entry(draft: _Draft, outs: Mapping[str, Path | None], top: ManifestSection, base: Path, where: str) -> BatchEntry:
    section = draft.section

    def made_by(place: str | Reference | None) -> str | None:
        return str(outs[place.name]) if isinstance(place, Reference) else place

    operator = made_by(section.operator)
    if operator is not None:
        made = isinstance(section.operator, Reference)
        operator = str(Path(operator) / OPERATOR_OF_OUTPUT if made else (base / Path(operator).expanduser()).absolute())
    publish = section.publish.model_dump(mode="json") if section.publish is not None else None
    own, shared = section.resources, top.resources
    return BatchEntry(
        name=draft.name,
        where=where,
        recipe=draft.recipe,
        overrides=_overrides(section, top),
        source=made_by(draft.source),
        operator=Path(operator) if operator is not None else None,
        out=draft.out,
        publish=publish,
        after=_needs(draft),
        resources=Resources(
            cpus=own.cpus if own.cpus is not None else shared.cpus,
            gpus=own.gpus if own.gpus is not None else shared.gpus,
            memory=own.memory if own.memory is not None else shared.memory,
        ),
    )

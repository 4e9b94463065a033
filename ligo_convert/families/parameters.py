"""Tell which rows of a family's table the parameters of the library's model hold, where its names are not those of its files.

Input: a family and a config. Output: for every parameter of the model, the tensors on disk that it is made of. No torch, no weights.

transformers renames, splits, stacks and concatenates tensors while it loads a checkpoint, and undoes it while it saves one. A family
says so in `Family.in_model`. The tensors that a table describes are those of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ligo_convert.families.notation import NotationError, expand, name_at
from ligo_convert.families.schema import Config, Family


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a parameter has of one tensor on disk.

    Attributes:
        tensor: the tensor's canonical name.
        begin, end: the range of its first dim; all of it where it is not fused.
    """

    tensor: str
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of the library's model.

    Attributes:
        name: its name in the model.
        shares: the tensors that it is made of, by block: blocks are concatenated; the tensors of one block are stacked where `stacked`.
        stacked: True if every block has a new first dim, along which its tensors (one for each expert) lie.
    """

    name: str
    shares: tuple[tuple[Share, ...], ...]
    stacked: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(share.tensor for block in self.shares for share in block)


def model_parameters(family: Family, config: Config) -> tuple[Parameter, ...]:
    """Return the parameters of a model of `config` and of the chosen class. Tied aliases are not among them.

    Raises:
        NotationError: `in_model` names a row that the table does not have.
    """
    sizes = family.sizes(config)
    rows = {row.pattern: row for row in family.rows_for(config)}
    known = {row.pattern for row in family.table}
    found: list[Parameter] = []
    taken: set[str] = set()
    for pattern, text in _expanded(family):
        blocks: list[tuple[tuple[str, int, int], ...]] = []
        layers: range | tuple[None] = (None,)
        for term in text.split(" + "):
            source, _, part = term.partition("/")
            block = []
            for row_pattern in family.of_each_expert(source):
                if row_pattern not in known:
                    raise NotationError(f"{family.name}: in_model: {row_pattern} is no row of the table")
                if (row := rows.get(row_pattern)) is None:
                    continue
                begin, end = 0, family.shape(row, sizes)[0]
                if part:
                    parts = row.layout.dims[0].parts
                    begin = sum(sizes[before] for before in parts[: parts.index(part)])
                    end = begin + sizes[part]
                layers = family.layers(row, config)
                taken.add(row_pattern)
                block.append((row_pattern, begin, end))
            blocks.append(tuple(block))
        if not all(blocks):
            # Of a part that the class lacks, or tied.
            continue
        for layer in layers:
            shares = tuple(
                tuple(Share(tensor=name_at(row, layer), begin=begin, end=end) for row, begin, end in block)
                for block in blocks
            )
            stacked = "{expert}" in text
            found.append(Parameter(name=family.written(name_at(pattern, layer)), shares=shares, stacked=stacked))
    for row in rows.values():
        if row.pattern not in taken:
            end = family.shape(row, sizes)[0]
            found += [
                Parameter(
                    name=family.written(row.name(layer)),
                    shares=((Share(tensor=row.name(layer), begin=0, end=end),),),
                    stacked=False,
                )
                for layer in family.layers(row, config)
            ]
    return tuple(found)


def _expanded(family: Family) -> list[tuple[str, str]]:
    """Return `in_model` with alternatives expanded: those of a parameter and of its rows stand for each other in order."""
    pairs = []
    for key, text in family.in_model.items():
        names, rows = expand(key), expand(text)
        if len(names) != len(rows):
            raise NotationError(f"{family.name}: in_model: {key} and {text} have other alternatives")
        pairs += list(zip(names, rows, strict=True))
    return pairs


def model_names(family: Family, config: Config) -> Mapping[str, str]:
    """Return canonical name -> the parameter of the model that holds the tensor, or the first part of it."""
    if not family.in_model:
        return {
            spec.name: family.written(spec.name) for _, _, spec in family.tensors_of(family.rows, config, dtype="F32")
        }
    names: dict[str, str] = {}
    for parameter in model_parameters(family, config):
        for tensor in parameter.tensors:
            names.setdefault(tensor, parameter.name)
    return names

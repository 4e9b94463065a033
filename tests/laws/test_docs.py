"""The pages: what is generated is current, what is named is there, what is linked exists, and the examples run.

`LIGO_UPDATE_DOCS=1 python -m pytest tests/laws/test_docs.py` writes the generated blocks anew.
"""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from laws.test_layering import FILES, LAYERS, ROOT_MODULES, ROOT_SENTENCES, sentence_of
from support.promises import PROMISES
from support.scripts import load_script

import ligo_convert
from ligo_convert import errors
from ligo_convert.batch.manifest_schema import EntrySection, ManifestSection
from ligo_convert.checkpoints.file_kinds import KINDS, FileKind
from ligo_convert.cli.inspect import families_list, starts_list
from ligo_convert.cli.main import cli
from ligo_convert.errors import Interrupted, LigoError, RecipeError
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import IMAGES, WITHOUT_LOSS, Family
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.growth_plan import GrowthSettings, plan_growth
from ligo_convert.growth.state_maps import POLICIES
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.outputs.carried import MODULES
from ligo_convert.recipes.recipe import json_schema, load_recipe
from ligo_convert.recipes.schema import Section

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
UPDATE = bool(os.environ.get("LIGO_UPDATE_DOCS"))

_BLOCK = re.compile(r"(<!-- generated: (?P<name>[^>]*?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


# --- what is generated ------------------------------------------------------------------------------------------------


def packages() -> str:
    rows = [
        (
            str(number),
            f"`{package}/`" if package in FILES else ", ".join(f"`{name}`" for name in ROOT_MODULES[package]),
            sentence_of(package) if package in FILES else ROOT_SENTENCES[package],
        )
        for number, layer in reversed(list(enumerate(LAYERS)))
        for package in layer
    ]
    return table(("layer", "package", "what it does"), rows)


def family_table() -> str:
    rows = [(f"`{found['name']}`", found["architecture"], found["task"], found["summary"]) for found in families_list()]
    return table(("family", "class", "task", "table"), rows)


def start_table() -> str:
    promises = {"yes": "promises the function", "no": "changes it", "see plan": "see plan"}
    rows = [
        (found["axis"], f"`{found['name']}`", promises[found["keeps the function"]], found["summary"], found["paper"])
        for found in starts_list()
    ]
    return table(("grows", "start", "the function", "in a line", "paper"), rows)


def policy_table() -> str:
    return table(
        ("`growth.state`", "what becomes of the state"),
        [(f"`{name}`", found.summary) for name, found in POLICIES.items()],
    )


def promise_tables() -> str:
    """Each promise with its guards, the tests that notice a broken guard, and what other tools do."""
    lines: list[str] = []
    for promise in PROMISES:
        lines += [f"### {promise.number}", "", f"**{promise.sentence}** Others: {promise.others}", ""]
        rows = [
            (guard.keeps, f"`{guard.file}`", "<br>".join(f"`{test.removeprefix('tests/')}`" for test in guard.tests))
            for guard in promise.guards
        ]
        lines += [table(("guard", "file", "tests that fail without it"), rows)]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A model that stands for a column of the verdict tables."""

    family: str
    tied: bool = False
    architecture: str | None = None


COLUMNS = {
    "LayerNorm, tied head": Column(family="gpt2", tied=True),
    "LayerNorm, untied head": Column(family="gpt2"),
    "RMSNorm, tied head": Column(family="llama", tied=True),
    "RMSNorm, untied head": Column(family="llama"),
    "post-norm, tied head": Column(family="bert", tied=True, architecture="BertForMaskedLM"),
    "post-norm, no head": Column(family="bert", tied=True, architecture="BertModel"),
    "LayerNorm and LayerScale": Column(family="cait"),
}
# Config keys by which every width grows, evenly or not.
TARGETS: dict[str, dict[str, dict[str, object]]] = {
    "gpt2": {
        "even": {"n_embd": 1536, "n_head": 24},
        "uneven": {"n_embd": 1024, "n_head": 16},
        "inner, even": {"n_inner": 6144},
        "inner, uneven": {"n_inner": 4096},
        "depth": {"n_layer": 24},
    },
    "llama": {
        "even": {"hidden_size": 8192, "intermediate_size": 22016, "num_attention_heads": 64},
        "uneven": {"hidden_size": 6144, "intermediate_size": 16384, "num_attention_heads": 48},
        "inner, even": {"intermediate_size": 22016},
        "inner, uneven": {"intermediate_size": 16384},
        "depth": {"num_hidden_layers": 48},
    },
    "bert": {
        "even": {"hidden_size": 1536, "intermediate_size": 6144, "num_attention_heads": 24},
        "uneven": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
        "inner, even": {"intermediate_size": 6144},
        "inner, uneven": {"intermediate_size": 4096},
        "depth": {"num_hidden_layers": 24},
    },
    "cait": {
        "even": {"embed_dim": 1536, "num_heads": 24},
        "uneven": {"embed_dim": 1024, "num_heads": 16},
        "inner, even": {"mlp_ratio": 8.0, "mlp_ratio_token_only": 8.0},
        "inner, uneven": {"mlp_ratio": 6.0, "mlp_ratio_token_only": 6.0},
        "depth": {"depth": 24, "depth_token_only": 4},
    },
}


def verdict(column: Column, *, target: str, width: str, depth: str) -> str:
    """What `plan` says of a start, or that it refuses."""
    found = FAMILIES[column.family].for_architecture(column.architecture)
    config = {**found.defaults, "model_type": column.family, found.tie_key: column.tied}
    growth = GrowthSettings(width=width, depth=depth, keying="shared", tie=None, seed=0)
    changes = TARGETS[column.family][target]
    try:
        return plan_growth(
            found, growth, config, found.resize(config, changes), asked=changes, where="recipe.yaml"
        ).verdict
    except RecipeError:
        return "refused"


def both(column: Column, *, even: str, uneven: str, width: str) -> str:
    """One cell: a single verdict where ratios do not matter, else that of whole multiples and that of others."""
    pair = [verdict(column, target=target, width=width, depth="copy") for target in (even, uneven)]
    return pair[0] if pair[0] == pair[1] else f"{pair[0]}; other ratios: {pair[1]}"


def width_verdicts() -> str:
    rows = [
        (f"`{width}`", *(both(column, even="even", uneven="uneven", width=width) for column in COLUMNS.values()))
        for width in WIDTHS
    ]
    return table(("width", *COLUMNS), rows)


def inner_verdicts() -> str:
    rows = []
    for width in WIDTHS:
        cells = {both(column, even="inner, even", uneven="inner, uneven", width=width) for column in COLUMNS.values()}
        (cell,) = cells  # no norm, no head: the same in every model
        rows.append((f"`{width}`", cell))
    return table(("width", "every model"), rows)


def depth_verdicts() -> str:
    rows = []
    for depth in DEPTHS:
        cells = {verdict(column, target="depth", width="copy", depth=depth) for column in COLUMNS.values()}
        (cell,) = cells
        rows.append((f"`{depth}`", cell))
    return table(("depth", "every model"), rows)


def code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# What the operator is learned by, one phrase a task.
LEARNED_BY = {
    "causal-lm": "next token",
    "masked-lm": "masked tokens",
    **dict.fromkeys(WITHOUT_LOSS, "agreement with the source"),
    "image-classification": "class of an image",
}


def by_phrase(tasks: Iterable[str]) -> dict[str, list[str]]:
    """What the operator is learned by -> the tasks."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(LEARNED_BY[task], []).append(task)
    return found


def family_support() -> str:
    """What each family can be grown by. Its case in `tiny.CASES` is what `test_parity` runs in float64, in the library's own model."""
    rows = []
    for name, family in FAMILIES.items():
        tasks = dict.fromkeys(head.task for head in family.heads)
        grown = [axis for axis in family.axes if axis not in (*family.never_grown, *family.rotary_axes)]
        rows.append(
            (
                f"`{name}`",
                family.library,
                "; ".join(f"{', '.join(found)}: {how}" for how, found in by_phrase(tasks).items()),
                code(grown),
                width_support(family, "even"),
                width_support(family, "uneven"),
                depth_support(family),
            )
        )
    head = ("family", "library", "task: what is learned by", "grows", "whole multiples", "other ratios", "depth")
    return table(head, rows)


def verdicts(family: Family, target: str, *, width: str, depth: str) -> tuple[str, ...]:
    """What `plan` says of the tiny case of a family: with its head tied, and untied, where it can be tied."""
    from support.tiny import TARGETS as tiny_targets
    from support.tiny import config_of, start_of

    found = []
    for tied in (True, False) if family.tied else (False,):
        config = config_of(family.name, tied=tied)
        try:
            start = start_of(family.name, config, tiny_targets[family.name][target], width=width, depth=depth)
            found.append(start.verdict)
        except RecipeError:
            found.append("refused")
    return tuple(found)


def width_support(family: Family, target: str) -> str:
    """The starts that keep the function when every width grows, and those that nearly do."""
    exact, near = [], []
    for width in WIDTHS:
        found = verdicts(family, target, width=width, depth="identity")
        if set(found) == {"exact"}:
            exact.append(f"`{width}`")
        elif "exact" in found:
            exact.append(f"`{width}` (untied head; tied: {found[0]})")
        elif set(found) == {"near"}:
            near.append(f"`{width}`")
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in (("exact", exact), ("near", near)) if names)


def depth_support(family: Family) -> str:
    exact = [name for name in DEPTHS if set(verdicts(family, "depth", width="copy", depth=name)) == {"exact"}]
    refused = f", refused where {code(family.layer_index_keys)}" if family.layer_index_keys else ""
    return f"exact: {code(exact)} along {code(family.depth_axes)}{refused}"


def family_notes() -> str:
    """What each family is: the first sentence of its definition."""
    rows = []
    for name in FAMILIES:
        module = importlib.import_module(f"ligo_convert.families.definitions.{name}")
        rows.append((f"`{name}`", " ".join((module.__doc__ or "").split("\n\n")[0].split())))
    return table(("family", "what it is"), rows)


def families_by_kind() -> str:
    """The names of all families, by what they read and how they are trained."""
    kinds: dict[str, list[str]] = {}
    for name, family in FAMILIES.items():
        kinds.setdefault(FAMILY_KINDS[family.heads[0].task], []).append(name)
    rows = [
        (kind, str(len(kinds[kind])), code(kinds[kind]))
        for kind in dict.fromkeys(FAMILY_KINDS.values())
        if kind in kinds
    ]
    return table(("kind", "number", "families"), rows)


# Task of a family's usual class -> the kind of family.
FAMILY_KINDS = {
    "causal-lm": "text decoders: language models, classifiers, question answering, bodies without a head",
    "masked-lm": "text encoders: masked language models, classifiers, question answering, multiple choice, bodies without a head",
    "text-to-text": "encoder-decoders for text",
    **dict.fromkeys(IMAGES, "vision transformers of timm and of transformers: classifiers, and models without a head"),
}


def family_classes() -> str:
    rows = [
        (
            f"`{name}`",
            f"`{head.architecture}`",
            head.task,
            code(head.parts) or ("none beside the body" if parts_of(family) else ""),
            f"`{head.loaded_by}`" if family.library == "transformers" else "`timm.create_model`",
        )
        for name, family in FAMILIES.items()
        for head in family.heads
    ]
    return table(("family", "class", "task", "parts", "loaded by"), rows)


def parts_of(family: Family) -> set[str]:
    return {row.layout.part for row in family.table} - {""}


def family_layouts() -> str:
    rows = []
    for name, family in FAMILIES.items():
        names = [f"`{family.optional_prefix}` may be left out"] if family.optional_prefix else []
        names += [f"`{wrapper}` before the name" for wrapper in dict.fromkeys(family.wrappers)]
        names += [f"`{old}` for `{new}`" for old, new in family.renamed.items()]
        names += [f"`{pattern}` as a matrix" for pattern in family.flattened]
        tied = [f"`{alias}` is `{canonical}`" for alias, canonical in family.tied.items()]
        needs = [
            f"`{key}`: {' or '.join(map(json.dumps, value if isinstance(value, tuple) else (value,)))}"
            for key, value in family.required_values.items()
        ]
        conditions = dict.fromkeys(condition.key for row in family.table for condition in row.layout.conditions)
        rows.append(
            (
                f"`{name}`",
                "; ".join(names),
                code(family.ignored),
                f"{'; '.join(tied)}, by `{family.tie_key}`" if tied else "",
                code(list(conditions)),
                ", ".join(needs),
            )
        )
    head = ("family", "names on disk", "passed over", "tied", "rows there or not by", "refused unless, where stated")
    return table(head, rows)


def timm_architectures() -> str:
    rows = [
        (f"`{name}`", code(list(family.architectures))) for name, family in FAMILIES.items() if family.architectures
    ]
    return table(("family", "architectures of timm"), rows)


def library_scan() -> str:
    """The record of the libraries' classes: `tests/families/test_library_scan.py` compares it with the libraries."""
    return load_script("scan_libraries").page_block()


def section_keys(section: type[Section]) -> str:
    schema = section.model_json_schema()
    # `publish` is a recipe's section, which has a page of its own.
    rows = [row for row in _keys(schema, schema.get("$defs", {}), "") if not row[0].startswith("`publish.")]
    return table(("key", "type", "default", "what it is"), rows)


def recipe_keys() -> str:
    schema = json_schema()
    return table(("key", "type", "default", "what it is"), list(_keys(schema, schema["$defs"], "")))


def _keys(section: Mapping[str, Any], sections: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    required = set(section.get("required", ()))
    for name, value in section["properties"].items():
        options = [option for option in value.get("anyOf", [value]) if option.get("type") != "null"]
        (option,) = options
        several = option.get("type") == "array" and "$ref" in option["items"]
        named = (option["items"] if several else option).get("$ref")
        inner = sections[named.rpartition("/")[2]] if named is not None else None
        # Bounds and choices may stand beside `anyOf`, or inside it.
        kind = "list of sections" if several else "section" if inner else _kind({**value, **option})
        default = "*required*" if name in required else _default(value, is_section=inner is not None)
        yield f"`{prefix}{name}`", kind, default, value.get("description", inner["description"] if inner else "")
        if inner is not None:
            yield from _keys(inner, sections, f"{prefix}{name}.")


_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
}


_PLURALS = {"object": "mappings", "string": "text", "integer": "whole numbers", "number": "numbers"}


def _kind(option: Mapping[str, Any]) -> str:
    if "const" in option:
        return f"`{option['const']}`"
    if "enum" in option:
        return ", ".join(f"`{choice}`" for choice in option["enum"])
    if option["type"] == "array":
        items = option["items"]
        return f"list of {_kind(items) if 'enum' in items else _PLURALS[items['type']]}"
    if isinstance(option["type"], list):
        return "size, such as " + ", ".join(f"`{example}`" for example in option["examples"])
    kind = _KINDS[option["type"]]
    least = option.get("minimum")
    return kind if least is None else f"{kind}, at least {least:g}"


def _default(value: Mapping[str, Any], *, is_section: bool) -> str:
    if is_section or "default:" in value.get("description", "") or value.get("default") is None:
        return ""  # the description says it; or there is none
    default = value["default"]
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def exit_codes() -> str:
    def tree(kind: type[LigoError]) -> Iterator[type[LigoError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    meanings: dict[str, list[str]] = {"0": ["done; what was written is verified"]}
    for kind in tree(LigoError):
        if kind.__module__ != errors.__name__ or kind is LigoError:
            continue
        code = "130, 143" if kind is Interrupted else str(kind.exit_code)
        assert kind.__doc__ is not None
        meanings.setdefault(code, []).append(lower(kind.__doc__.strip().splitlines()[0].rstrip(".")))
    meanings[str(LigoError.exit_code)] = ["a bug in ligo-convert; please report it"]
    meanings["141"] = ["the reader of the output closed the pipe"]
    rows = sorted(meanings.items(), key=lambda item: int(item[0].partition(",")[0]))
    return table(("code", "meaning"), [(f"`{code}`", "; ".join(texts)) for code, texts in rows])


def commands() -> str:
    top = click.Context(cli, info_name="ligo-convert", **{**cli.context_settings, "terminal_width": 100})
    text = f"```text\n{cli.get_help(top).strip()}\n```\n"
    for name in cli.list_commands(top):
        command = cli.commands[name]
        context = click.Context(command, info_name=name, parent=top, terminal_width=100)
        text += f"\n### `ligo-convert {name}`\n\n```text\n{command.get_help(context).strip()}\n```\n"
    return text


def python_api() -> str:
    """Every public name with its signature and docstring; functions first."""
    import inspect

    parts = []
    for name in sorted(
        ligo_convert.__all__, key=lambda name: (not inspect.isfunction(getattr(ligo_convert, name)), name)
    ):
        value = getattr(ligo_convert, name)
        if inspect.isfunction(value):
            arguments = ",\n".join(f"    {parameter}" for parameter in _parameters(value))
            head = f"{name}(\n{arguments},\n) -> {inspect.signature(value).return_annotation}"
        elif inspect.isclass(value):
            bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
            head = f"class {name}({bases})" if bases else f"class {name}"
        else:
            head = f"{name}: a mapping of name -> {type(next(iter(value.values()))).__name__}, {len(value)} entries"
        text = inspect.getdoc(value) if inspect.isfunction(value) or inspect.isclass(value) else None
        body = f"{head}\n\n{text}" if text else head
        parts.append(f"### `{name}`\n\n```text\n{body}\n```\n")
    return "\n".join(parts)


def _parameters(function: Callable[..., object]) -> Iterator[str]:
    """The parameters of a function as its source writes them, with a `*` before the first that is keyword-only."""
    import inspect

    star = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not star:
            star = True
            yield "*"
        default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
        yield f"{parameter.name}: {parameter.annotation}{default}"


def file_kinds() -> str:
    """Every kind of file beside the weights, in the order in which they are tried."""
    done = {
        "carry": "carried, up to {}",
        "module": "carried with its pipeline, up to {}",
        "ignore": "not a file of the model",
    }

    def row(kind: FileKind) -> str:
        shown = ", ".join(f"`{pattern}`" for pattern in kind.patterns[:8]) + (", ..." if kind.patterns[8:] else "")
        what = (
            done[kind.action].format(f"{kind.limit >> 20} MiB") if kind.action in done else f"left behind: {kind.why}"
        )
        return f"| {kind.what} | {shown} | {what} |\n"

    return "| file | names | what is done |\n| --- | --- | --- |\n" + "".join(map(row, KINDS))


def modules() -> str:
    """Every module of sentence-transformers that can be carried."""
    done = {
        "free": "carried byte for byte",
        "size": "{} is rewritten",
        "input": "{} is rewritten, and the input side of its weights grows",
        "never": "only where the width does not grow",
    }
    rows = [
        f"| `{name}` | {done[kind.grows].format(' or '.join(f'`{key}`' for key in kind.sizes))}"
        + (", and the number of layers stays" if kind.per_layer else "")
        + " |\n"
        for name, kind in MODULES.items()
    ]
    return "| module | its files |\n| --- | --- |\n" + "".join(rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "packages": packages,
    "promises": promise_tables,
    "families": family_table,
    "family support": family_support,
    "family classes": family_classes,
    "family layouts": family_layouts,
    "family notes": family_notes,
    "families by kind": families_by_kind,
    "timm architectures": timm_architectures,
    "library scan": library_scan,
    "starts": start_table,
    "state policies": policy_table,
    "verdicts by width start": width_verdicts,
    "verdicts of inner axes": inner_verdicts,
    "verdicts by depth start": depth_verdicts,
    "recipe keys": recipe_keys,
    "manifest keys": lambda: section_keys(ManifestSection),
    "entry keys": lambda: section_keys(EntrySection),
    "exit codes": exit_codes,
    "commands": commands,
    "file kinds": file_kinds,
    "modules": modules,
    "python api": python_api,
}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks_of(text: str) -> dict[str, str]:
    return {match["name"]: match["body"] for match in _BLOCK.finditer(text)}


def by_hand(text: str) -> str:
    """A page without its generated blocks."""
    return _BLOCK.sub("", text)


@pytest.mark.parametrize("name", BLOCKS)
def test_generated_blocks_are_current(name: str) -> None:
    expected = BLOCKS[name]()
    pages = [page for page in PAGES if name in blocks_of(text_of(page))]
    assert len(pages) == 1, f"no page, or several, have a block {name!r}"
    (page,) = pages
    if UPDATE:
        page.write_text(
            _BLOCK.sub(
                lambda match: match[1] + expected + match[4] if match["name"] == name else match[0], text_of(page)
            ),
            encoding="utf-8",
        )
    found = blocks_of(text_of(page))[name]
    assert found == expected, f"{page.name}: run LIGO_UPDATE_DOCS=1 python -m pytest tests/laws/test_docs.py"


def test_every_block_has_a_generator_and_an_end() -> None:
    for page in PAGES:
        text = text_of(page)
        assert set(blocks_of(text)) <= set(BLOCKS), page.name
        assert text.count("<!-- generated: ") == text.count("<!-- end -->") == len(blocks_of(text)), page.name


# --- what must be named -----------------------------------------------------------------------------------------------


def test_every_command_is_documented() -> None:
    text = text_of(DOCS / "guide" / "cli.md")
    for name in cli.commands:
        assert f"### `ligo-convert {name}`" in text
        assert cli.commands[name].help, f"{name} has no help"


def test_every_start_is_explained_by_hand() -> None:
    text = by_hand(text_of(DOCS / "reference" / "exact-starts.md"))
    for name in {*WIDTHS, *DEPTHS}:
        assert f"`{name}`" in text, name


def test_every_family_is_documented() -> None:
    for name, family in FAMILIES.items():
        row = next(line for line in text_of(DOCS / "README.md").splitlines() if line.startswith(f"| `{name}` "))
        assert family.architecture in row


def test_the_playbook_ends_in_the_command_that_proves_a_family() -> None:
    last = text_of(DOCS / "extending" / "adding-a-family.md").rstrip().splitlines()[-1]
    assert last.startswith("    python -m pytest tests/")
    for word in last.split():
        assert not word.startswith("tests/") or (ROOT / word).is_file(), word


def test_every_recipe_key_is_documented() -> None:
    """Counted from the models themselves, not from the schema that the page is made from."""
    from ligo_convert.recipes.recipe import Recipe
    from ligo_convert.recipes.schema import Section

    def sections(kind: object) -> Iterator[type[Section]]:
        if isinstance(kind, type) and issubclass(kind, Section):
            yield kind
        for argument in getattr(kind, "__args__", ()):
            yield from sections(argument)

    def keys(section: type[Section], prefix: str) -> Iterator[str]:
        for name, field in section.model_fields.items():
            yield prefix + name
            assert field.description, f"{prefix}{name} has no description"
            for inner in sections(field.annotation):
                yield from keys(inner, f"{prefix}{name}.")

    found = list(keys(Recipe, ""))
    assert "fit.learning_rate.width" in found
    text = text_of(DOCS / "guide" / "recipe.md")
    assert [key for key in found if f"| `{key}` |" not in text] == []


def test_the_recipe_in_the_docs_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", text_of(DOCS / "guide" / "recipe.md"), re.DOTALL | re.MULTILINE)
    path = tmp_path / "recipe.yaml"
    path.write_text(example)
    recipe = load_recipe(path)
    assert recipe.fit is not None
    family, changes = FAMILIES["gpt2"], recipe.target.config
    assert changes is not None
    growth = GrowthSettings(width=recipe.growth.width, depth=recipe.growth.depth, keying="shared", tie=None, seed=0)
    target = family.resize(family.defaults, changes)
    assert plan_growth(family, growth, family.defaults, target, asked=changes, where="").verdict == "exact"


def test_the_data_in_the_docs_is_valid() -> None:
    from ligo_convert.data.records import FORMATS, Records
    from ligo_convert.io.strict_yaml import parse_value
    from ligo_convert.recipes.schema import DataConfig

    text = text_of(DOCS / "guide" / "data.md")
    examples = re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    found = [DataConfig(**parse_value(example, label="docs").data["data"]) for example in examples]
    assert {data.format for data in found} >= {*FORMATS} - {"text"}
    assert {key for data in found for key in data.given} >= {"text", "hub", "dataset"}
    (record,) = re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert Records(format="chat").text(json.loads(record), where=lambda: "docs") == "How many?\nThree."
    for key in DataConfig.alternatives:
        assert f"| `{key}` |" in text


# --- examples, links, names -------------------------------------------------------------------------------------------


# peft asks transformers for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if ">>> " in text_of(page)], ids=lambda page: page.name)
def test_examples_run(page: Path) -> None:
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8", optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed


@pytest.mark.parametrize(
    "module", sorted(name for name, path in FILES.items() if ">>> " in path.read_text(encoding="utf-8"))
)
def test_examples_in_docstrings_run(module: str) -> None:
    import importlib

    failed, tried = doctest.testmod(importlib.import_module(f"ligo_convert.{module}"))
    assert tried
    assert not failed


def headings(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text_of(page)))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert target.exists(), link
        if anchor:
            assert anchor in headings(text_of(target)), link


def test_every_page_can_be_found() -> None:
    index = text_of(DOCS / "README.md")
    # index.md is the navigation of the web pages; `test_docs_build.py` checks that it names every page.
    roots = (DOCS / "README.md", DOCS / "index.md")
    pages = [page for page in DOCS.rglob("*.md") if not re.match(r"\d{4}-", page.name) and page not in roots]
    for page in pages:
        assert f"]({page.relative_to(DOCS).as_posix()})" in index, page.name


def test_pages_that_the_code_names_are_there() -> None:
    for module, path in FILES.items():
        for name in re.findall(r"docs/[\w./-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{module} names {name}"


def test_decisions_have_their_form() -> None:
    folder = DOCS / "development" / "adr"
    records = sorted(folder.glob("[0-9]*"))
    assert sorted(folder.iterdir()) == [*records, folder / "README.md"]
    listed = text_of(folder / "README.md")
    assert [record.name[:4] for record in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    for record in records:
        assert re.fullmatch(r"\d{4}-[a-z0-9]+(-[a-z0-9]+)*\.md", record.name)
        text = text_of(record)
        assert text.startswith(f"# {record.name[:4]}: ")
        title = text.partition("\n")[0].partition(": ")[2]
        assert f"| [{record.name[:4]}]({record.name}) | {title} |" in listed
        parts = re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequence"], record.name


# --- nothing of a machine ---------------------------------------------------------------------------------------------

# Places of a person or a machine. A place that everybody has (/dev/null, /proc) says nothing about anyone.
_PLACE = re.compile(
    r"(?<![\w.~/-])(/(home|Users|root|work|workspace|mnt|scratch|opt|srv|private/var)/[\w.-]+|[A-Za-z]:\\Users\\\w+)"
)
# People of our own making, in tests and examples.
_INVENTED = re.compile(r"/[\w/]+/(me|you|user|name|somebody|someone|alice|ana|bob|jane|jdoe|can|can_?ary\w*)\b")


def tracked_files() -> list[Path]:
    """Every file under version control, and those that are about to be; all files of an unpacked source archive."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def places_in(text: str) -> list[str]:
    return [match[0] for match in _PLACE.finditer(text) if not _INVENTED.match(match[0])]


def test_places_are_seen() -> None:
    assert places_in("see /home/" + "realname/project") == ["/home/" + "realname"]
    assert places_in("C:" + "\\Users\\realname")
    assert places_in("https://example.org/home/page, /home/alice/x, /dev/null, a/home/b") == []


def test_no_file_holds_a_place_of_a_machine() -> None:
    found = {}
    files = tracked_files()
    assert ROOT / "pyproject.toml" in files
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        if places := places_in(text):
            found[str(path.relative_to(ROOT))] = places[:3]
    assert found == {}

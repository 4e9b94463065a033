"""Complete names on the command line in a shell: keys of a recipe, growth methods, families, examples.

Input: what has been typed of a word. Output: the words that it may become. Slow imports happen only while a shell asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    import click

Complete = Callable[["click.Context", "click.Parameter", str], list[CompletionItem]]


def complete_keys(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete `--set KEY=VALUE`: dotted keys, and after `=` the values of a key that has a choice."""
    from ligo_convert.recipes.recipe import json_schema

    key, equals, value = typed.partition("=")
    keys = dict(_keys(json_schema()))
    if not equals:
        return [CompletionItem(f"{name}=", help=found.get("description")) for name, found in _starting(keys, typed)]
    choices = [*map(str, _choices(keys.get(key, {})))]
    return [CompletionItem(f"{key}={choice}") for choice in choices if choice.startswith(value)]


def complete_methods(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the last name of a list with commas: methods of `compare`."""
    from ligo_convert.comparison.methods import METHODS

    before, comma, last = typed.rpartition(",")
    return [CompletionItem(before + comma + name, help=found.summary) for name, found in _starting(METHODS, last)]


def complete_method(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the name of any method."""
    from ligo_convert.cli.inspect import methods_list

    return [
        CompletionItem(name, help=summary)
        for name, summary in _starting({one["name"]: one["summary"] for one in methods_list()}, typed)
    ]


def complete_families(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the name of a family."""
    from ligo_convert.families.registry import FAMILIES

    return [CompletionItem(name) for name, _ in _starting(FAMILIES, typed)]


def complete_examples(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the name of an example."""
    from ligo_convert.recipes.examples import examples, first_sentence

    return [CompletionItem(name, help=first_sentence(path)) for name, path in _starting(examples(), typed)]


def complete_loggers(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete `--logger NAME=`."""
    from ligo_convert.outputs.loggers import LOGGERS

    return [CompletionItem(f"{name}=") for name, _ in _starting(LOGGERS, typed)]


def _starting(known: Mapping[str, Any], typed: str) -> Iterator[tuple[str, Any]]:
    return ((name, found) for name, found in known.items() if name.startswith(typed))


def _keys(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the dotted keys of a recipe that hold values, and not sections."""
    sections = schema["$defs"]

    def inside(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, value in section["properties"].items():
            named = [option["$ref"] for option in value.get("anyOf", [value]) if "$ref" in option]
            if named:
                yield from inside(sections[named[0].rpartition("/")[2]], f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    yield from inside(schema, "")


def _choices(value: Mapping[str, Any]) -> Iterable[object]:
    """Return the values that a key may have, if it has a choice."""
    options = [value, *value.get("anyOf", ())]
    if any(option.get("type") == "boolean" for option in options):
        return ("true", "false")
    return (choice for option in options for choice in option.get("enum", ()) if choice is not None)

"""The notation: tables of what it means and of what it refuses."""

from __future__ import annotations

import pytest

from ligo_convert.families import notation as axes
from ligo_convert.families.notation import (
    Condition,
    NotationError,
    SizeError,
    evaluate,
    expand,
    matcher,
    name_at,
    parse_layout,
    parse_layouts,
)

LAYOUTS = [
    ("mlp <- embed", [("mlp", "write"), ("embed", "read")]),
    ("embed -> mlp", [("embed", "read"), ("mlp", "write")]),
    ("embed", [("embed", "write")]),
    ("embed gain", [("embed", "gain")]),
    ("embed shift", [("embed", "shift")]),
    ("query+key+value <- embed", [("query+key+value", "write"), ("embed", "read")]),
    ("embed -> query+key", [("embed", "read"), ("query+key", "write")]),
    ("1 position embed", [("1", "write"), ("position", "write"), ("embed", "write")]),
    ("embed <- rgb patch patch", [("embed", "write"), ("rgb", "read"), ("patch", "read"), ("patch", "read")]),
]


@pytest.mark.parametrize(("text", "expected"), LAYOUTS)
def test_a_layout_says_what_every_dim_does(text: str, expected: list[tuple[str, str]]) -> None:
    assert [("+".join(dim.parts), dim.role) for dim in parse_layout(text).dims] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "->",
        "embed ->",
        "-> embed",
        "a -> b -> c",
        "a -> b gain",
        "Embed",
        "a+ <- b",
        "a+b <- c+d",
        "a b! <- c",
        "gain",
    ],
)
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(NotationError):
        parse_layout(text)


def test_conditions_and_optional_rows() -> None:
    assert parse_layout("query if attention_bias").conditions == (Condition(key="attention_bias"),)
    assert parse_layout("vocab <- embed if not tied").conditions == (Condition(key="tied", negated=True),)
    assert parse_layout("embed <- embed in pooler").part == "pooler"
    assert parse_layout("embed <- embed").part == ""
    both = parse_layout("embed scale if init_values in head")
    assert (both.dims[0].role, both.conditions, both.part) == ("scale", (Condition(key="init_values"),), "head")


@pytest.mark.parametrize(
    ("text", "config", "exists"),
    [
        ("embed if pool=map", {"pool": "map"}, True),
        ("embed if pool=map", {"pool": "token"}, False),
        ("embed if pool=map", {}, False),
        ("embed if pool!=map", {"pool": "map"}, False),
        ("embed if pool!=map", {}, True),
        ("embed if tokens=4", {"tokens": 4}, True),
        ("embed if tokens", {"tokens": 0}, False),
        ("embed if a and not b", {"a": True}, True),
        ("embed if a and not b", {"a": True, "b": True}, False),
        ("embed if a and pool=map in head", {"a": 1, "pool": "map"}, True),
        ("embed if a and pool=map in head", {"pool": "map"}, False),
    ],
)
def test_a_condition_asks_the_config(text: str, config: dict[str, object], exists: bool) -> None:
    assert (parse_layout(text).failing(config) is None) == exists


@pytest.mark.parametrize(
    "text", ["not pool=map", "pool==map", "pool=", "=map", "a and", "a and and b", "Pool", "a or b"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(NotationError):
        parse_layout(f"embed if {text}")


def test_a_name_may_have_a_layout_for_each_part() -> None:
    both = parse_layouts("label <- pooled in one|label if named in other")
    assert [(layout.part, layout.streams, layout.conditions) for layout in both] == [
        ("one", ("label", "pooled"), ()),
        ("other", ("label",), (Condition(key="named"),)),
    ]
    assert [layout.part for layout in parse_layouts("embed <- embed")] == [""]
    for text in ("a <- b | a <- c in one", "a <- b in one | a <- c in one", "a in one |", "a | b"):
        with pytest.raises(NotationError):
            parse_layouts(text)


def test_fused_dims_come_apart_in_storage_order() -> None:
    layout = parse_layout("embed -> query+key+value")
    assert layout.fused_dim == 1
    assert [label for label, _ in layout.pieces()] == ["query", "key", "value"]
    assert [[dim.parts for dim in dims] for _, dims in layout.pieces()][1] == [("embed",), ("key",)]


def test_alternatives_expand_in_order() -> None:
    assert expand("(a|b).{layer}.(x|y)") == ("a.{layer}.x", "a.{layer}.y", "b.{layer}.x", "b.{layer}.y")


@pytest.mark.parametrize(
    ("name", "claimed"),
    [
        ("h.0.w", True),
        ("h.12.w", True),
        ("h.01.w", False),
        ("h..w", False),
        ("h.1.w.x", False),
        ("xh.1.w", False),
        ("h.1xw", False),
    ],
)
def test_a_pattern_claims_whole_names(name: str, claimed: bool) -> None:
    assert bool(matcher("h.{layer}.w").match(name)) == claimed


def test_names_and_patterns_invert_each_other() -> None:
    assert matcher("h.{layer}.w").match(name_at("h.{layer}.w", 7))[1] == "7"  # type: ignore[index]


SIZES = [
    ("n_inner or 4 * n_embd", {"n_embd": 8}, 32),
    ("n_inner or 4 * n_embd", {"n_embd": 8, "n_inner": 5}, 5),
    ("n_inner or 4 * n_embd", {"n_embd": 8, "n_inner": None}, 32),
    ("a / b", {"a": 12, "b": 3}, 4),
    ("a / b or 1", {"a": 12}, 1),
    ("a * 2 / b", {"a": 3, "b": 6}, 1),
    ("a[0] / b[0] * a[1] / b[1] + 1", {"a": [32, 64], "b": 16}, 9),
    ("a[0] * a[1]", {"a": (2, 3)}, 6),
    ("a[0] * a[1]", {"a": 3}, 9),
    ("#a", {"a": {"0": "x", "1": "y"}}, 2),
    ("#a", {"a": ["x", "y", "z"]}, 3),
    ("n or #a or 2", {"n": 5, "a": ["x"]}, 5),
    ("n or #a or 2", {"n": None, "a": ["x"]}, 1),
    ("n or #a or 2", {"a": {}}, 2),
    ("n or #a or 2", {}, 2),
]


@pytest.mark.parametrize(("text", "config", "expected"), SIZES)
def test_a_size_is_a_value_of_the_config(text: str, config: dict[str, object], expected: int) -> None:
    assert evaluate(text, config) == expected


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        ("a / b", {"a": 10, "b": 4}, "a / b is not a whole number .a = 10, b = 4."),
        ("a", {}, "a missing"),
        ("a", {"a": 0}, "a is 0"),
        ("a", {"a": -3}, "a is -3"),
        ("a", {"a": "3"}, "a is '3'"),
        ("a", {"a": True}, "a is True"),
        ("a", {"a": 3.0}, "a is 3.0"),
        ("a", {"a": [3, 3]}, r"a is \[3, 3\]"),
        ("a[0]", {"a": [1, 2, 3]}, "or a pair of them"),
        ("a[1]", {"a": [1, "2"]}, "'2', and must be a positive number, or a pair"),
    ],
)
def test_a_size_that_is_none_names_the_keys(text: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(SizeError, match=message):
        evaluate(text, config)


def test_the_examples_in_the_docstrings_hold() -> None:
    import doctest

    assert doctest.testmod(axes).failed == 0

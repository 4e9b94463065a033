"""What is new in a target: laws over every family and start, and the file beside the weights."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.source_models import GROWN, recipe_text, write_checkpoint
from support.tiny import CONFIGS, TARGETS, config_of, empty_model, family_of, grown_state, model_of, start_of, state_of

from ligo_convert.cli.inspect import inspect_path
from ligo_convert.conversion.apply import apply_operator
from ligo_convert.conversion.convert import convert
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.growth_plan import GrowthPlan, GrowthSettings, plan_growth
from ligo_convert.growth.initialize import initial_operator, learnable, random_operator
from ligo_convert.growth.new_parameters import Part, added_parts, new_parameters
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import family_of as stored_family
from ligo_convert.growth.operator_file import read_operator
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.outputs.layout import NEW_PARAMETERS
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe


def grown_parts(name: str, changes: dict[str, object], **growth: object) -> tuple[GrowthPlan, dict[str, Part]]:
    start = start_of(name, config_of(name, tied=True), changes, **growth)
    return start, added_parts(start.family, initial_operator(start))


def starts(name: str, target: str) -> list[GrowthPlan]:
    """Every pair of starts that does not refuse the target."""
    found = []
    for width, depth in itertools.product(WIDTHS, DEPTHS):
        for tied in (True, False):
            try:
                found.append(
                    start_of(name, config_of(name, tied=tied), TARGETS[name][target], width=width, depth=depth)
                )
            except RecipeError:
                continue
    return found


def source_parameters(start: GrowthPlan) -> int:
    return start.family.parameters(start.family.rows_for(start.source), start.source)


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "target"), list(enumerate(["even", "uneven", "depth", "both"])))
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.slow
def test_every_parameter_is_counted_once_and_the_old_ones_are_as_many_as_the_source_has(
    name: str, number: int, target: str
) -> None:
    """Slow: a third of the starts at each target, tied and not, and each start at one of the targets."""
    found = starts(name, target)[number % 3 :: 3]
    assert found
    for start in found:
        family, file = start.family, new_parameters(start.family, initial_operator(start))
        rows = family.rows_for(start.target)
        total = family.parameters(rows, start.target)
        assert sum(file["counts"].values()) == total
        names = [*file["old"], *file["new"], *file["mixed"]]
        assert sorted(names) == sorted(
            family.written(row.name(layer)) for row in rows for layer in family.layers(row, start.target)
        )
        if "random" not in (start.growth.width, start.growth.depth):
            assert file["counts"]["old"] == source_parameters(start), (start.growth.width, start.growth.depth)
        assert list(file) == ["format", "counts", "new", "mixed", "old"]
        assert file["new"] == sorted(file["new"])
        assert list(file["mixed"]) == sorted(file["mixed"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_names_and_shapes_are_those_of_the_library_s_parameters(name: str, tied: bool) -> None:
    start = start_of(name, config_of(name, tied=tied), TARGETS[name]["both"], width="zero", depth="identity")
    file = new_parameters(start.family, initial_operator(start))
    model = empty_model({**start.target, "architectures": [start.family.chosen.name]})
    target = {**start.target, "architectures": [start.family.chosen.name]}
    shapes = {key: list(tensor.shape) for key, tensor in state_of(target, model).items()}
    assert {*file["old"], *file["new"], *file["mixed"]} == set(shapes)
    assert {key: part["shape"] for key, part in file["mixed"].items()} == {key: shapes[key] for key in file["mixed"]}
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(file["counts"].values())


@pytest.mark.parametrize(
    "depth", ["stack", "top", "middle", "interpolate", "identity", "drawn", "silent-drawn", "direct"]
)
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_called_old_is_the_source_s(name: str, depth: str) -> None:
    """Grown by `direct`, which leaves the old block as it is: the old entries, in order, are the source tensor, bit for bit."""
    config = config_of(name)
    changes = {**TARGETS[name]["both"], **TARGETS[name]["depth"]}
    start = start_of(name, config, changes, width="direct", depth=depth)
    family, operator = start.family, initial_operator(start, dtype=np.float64)
    state = state_of(config, model_of(config))
    grown, parts = grown_state(operator, state), added_parts(family, operator)
    seen: set[str] = set()
    for row in family.rows_for(start.target):
        for layer in family.layers(row, start.target):
            part = parts[row.name(layer)]
            if part.kind == "new":
                continue
            source = row.name(None if layer is None else start.depths[str(row.depth)].source[layer])
            assert source not in seen, "two layers continue one"
            seen.add(source)
            before = state[family.written(source)]
            tensor = grown[family.written(row.name(layer))]
            after = tensor[torch.from_numpy(~part.mask())].view(before.shape)
            if family.scale_row(row, start.source) is None:
                assert torch.equal(after, before), row.name(layer)
            else:
                # Multiplied with the source's LayerScale, and divided by the target's.
                torch.testing.assert_close(after, before, rtol=1e-14, atol=0)
    assert seen == {row.name(layer) for row in family.rows_for(config) for layer in family.layers(row, config)}


@pytest.mark.parametrize("name", CONFIGS)
def test_growing_to_the_same_size_adds_nothing(name: str) -> None:
    for width, depth in (("copy", "copy"), ("lemon", "identity"), ("random", "random")):
        start, parts = grown_parts(name, {}, width=width, depth=depth)
        assert {part.kind for part in parts.values()} == {"old"}
        assert not any(part.mask().any() for part in parts.values())
        file = new_parameters(start.family, initial_operator(start))
        assert (file["counts"]["new"], file["new"], file["mixed"]) == (0, [], {})


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_and_ranges_say_the_same(name: str) -> None:
    _, parts = grown_parts(name, TARGETS[name]["both"], width="zero", depth="identity")
    kinds = set()
    for part in parts.values():
        mask = part.mask()
        assert (mask.shape, mask.dtype) == (part.shape, np.bool_)
        assert int(mask.sum()) == part.elements - part.old_elements
        assert part.kind == ("new" if mask.all() else "mixed" if mask.any() else "old")
        kinds.add(part.kind)
        for size, ranges in zip(part.shape, part.old, strict=True):
            edges = [edge for pair in ranges for edge in pair]
            assert edges == sorted(set(edges)), "in order, none empty, none beside another"
            assert not edges or (edges[0] >= 0 and edges[-1] <= size)
    assert {"new", "mixed"} <= kinds


@pytest.mark.parametrize(
    ("width", "keying", "tie"),
    [
        ("direct", "source", None),
        ("direct", "source", "paper"),
        ("net2net", "target", None),
        ("random", "shared", None),
    ],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_learning_changes_nothing_of_what_is_new(name: str, width: str, keying: str, tie: str | None) -> None:
    for depth in ("stack", "identity", "interpolate"):
        changes = {**TARGETS[name]["both"], **TARGETS[name]["depth"]}
        start = start_of(name, config_of(name), changes, width=width, depth=depth, keying=keying, tie=tie)
        initial = initial_operator(start)
        rng = np.random.default_rng(0)

        def learned(_: str, array: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
            return array + rng.normal(0, 0.1, size=array.shape)

        dense = learnable(initial, start.family).map_arrays(learned)
        assert added_parts(start.family, dense) == added_parts(start.family, initial)


# --- depth ------------------------------------------------------------------------------------------------------------


def layers_of(parts: dict[str, Part], pattern: str) -> list[str]:
    return [parts[name].kind for layer in range(9) if (name := pattern.format(layer)) in parts]


ORDERS = {
    "stack": ["old", "old", "new", "new", "new"],
    "interpolate": ["old", "new", "new", "old", "new"],
    "identity": ["old", "new", "new", "old", "new"],
    "drawn": ["old", "new", "new", "old", "new"],
    "silent-drawn": ["old", "new", "new", "old", "new"],
    "top": ["old", "old", "new", "new", "new"],
    "middle": ["old", "old", "new", "new", "new"],
    "direct": ["old", "old", "new", "new", "new"],
    "random": ["new"] * 5,
}


@pytest.mark.parametrize("depth", ORDERS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3"])
def test_one_layer_continues_an_old_one(name: str, depth: str) -> None:
    start, parts = grown_parts(name, TARGETS[name]["depth"], depth=depth)
    for row in start.family.rows_for(start.target):
        if row.depth is None:
            assert parts[row.pattern].kind == "old"
        else:
            assert [parts[row.name(layer)].kind for layer in range(5)] == ORDERS[depth], row.pattern
    if depth == "identity":
        assert [kind == "new" for kind in ORDERS[depth]] == list(start.depths["layer"].silent)


@pytest.mark.parametrize("depth", ["identity", "silent-drawn"])
@pytest.mark.parametrize("name", ["bert", "roberta", "bert encoder"])
def test_a_norm_that_moves_to_a_silent_layer_is_old_there(name: str, depth: str) -> None:
    """Post-norm: the layer that continues is left with a norm of ones, which is new; the last silent copy has the old one."""
    start, parts = grown_parts(name, TARGETS[name]["depth"], depth=depth)
    prefix = start.family.optional_prefix + "encoder.layer.{}."
    assert layers_of(parts, prefix + "output.dense.weight") == ["old", "new", "new", "old", "new"]
    assert layers_of(parts, prefix + "attention.output.LayerNorm.weight") == ["old", "new", "new", "old", "new"]
    for last in ("weight", "bias"):
        assert layers_of(parts, prefix + f"output.LayerNorm.{last}") == ["new", "new", "old", "new", "old"]


def test_two_depth_axes_deepen_each_by_its_own() -> None:
    start, parts = grown_parts("cait", TARGETS["cait"]["depth"], depth="identity")
    assert (start.target["depth"], start.target["depth_token_only"]) == (4, 2)
    assert layers_of(parts, "blocks.{}.attn.qkv.weight") == ["old", "new", "old", "new"]
    assert layers_of(parts, "blocks.{}.gamma_1") == ["old", "new", "old", "new"]
    assert layers_of(parts, "blocks_token_only.{}.attn.q.weight") == ["old", "new"]
    _, parts = grown_parts("cait", {"depth_token_only": 3}, depth="stack")
    assert layers_of(parts, "blocks.{}.attn.qkv.weight") == ["old", "old"]
    assert layers_of(parts, "blocks_token_only.{}.attn.q.weight") == ["old", "new", "new"]


# --- width ------------------------------------------------------------------------------------------------------------

# case, changes, tensor -> its old ranges
WIDE: dict[str, tuple[str, dict[str, object], dict[str, tuple[tuple[tuple[int, int], ...], ...]]]] = {
    "more heads, fused": (
        "gpt2",
        {"n_embd": 24, "n_head": 3},
        {
            "transformer.wte.weight": (((0, 29),), ((0, 16),)),
            "transformer.h.1.attn.c_attn.weight": (((0, 16),), ((0, 16), (24, 40), (48, 64))),
            "transformer.h.1.attn.c_attn.bias": (((0, 16), (24, 40), (48, 64)),),
            "transformer.h.0.mlp.c_fc.weight": (((0, 16),), ((0, 64),)),
            "transformer.ln_f.weight": (((0, 16),),),
        },
    ),
    "larger heads, fused": (
        "gpt2",
        {"n_embd": 24, "n_head": 2},
        {
            "transformer.h.0.attn.c_attn.weight": (
                ((0, 16),),
                ((0, 8), (12, 20), (24, 32), (36, 44), (48, 56), (60, 68)),
            ),
            "transformer.h.0.attn.c_proj.weight": (((0, 8), (12, 20)), ((0, 16),)),
        },
    ),
    "more groups": (
        "llama",
        {"hidden_size": 24, "num_attention_heads": 6},
        {
            "model.layers.0.self_attn.q_proj.weight": (((0, 8), (12, 20)), ((0, 16),)),
            "model.layers.0.self_attn.k_proj.weight": (((0, 8),), ((0, 16),)),
            "model.layers.0.self_attn.o_proj.weight": (((0, 16),), ((0, 8), (12, 20))),
        },
    ),
    "more groups, fused": (
        "phi3",
        {"hidden_size": 24, "num_attention_heads": 6, "intermediate_size": 40},
        {
            "model.layers.1.self_attn.qkv_proj.weight": (((0, 8), (12, 20), (24, 40)), ((0, 16),)),
            "model.layers.1.mlp.gate_up_proj.weight": (((0, 24), (40, 64)), ((0, 16),)),
        },
    ),
    "more heads of keys": (
        "qwen2",
        {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3},
        {
            "model.layers.0.self_attn.q_proj.bias": (((0, 16),),),
            "model.layers.0.self_attn.v_proj.bias": (((0, 8),),),
        },
    ),
    "talking heads, dummy dims": (
        "cait",
        {"embed_dim": 24, "num_heads": 3},
        {
            "cls_token": (((0, 1),), ((0, 1),), ((0, 16),)),
            "blocks.0.attn.proj_l.weight": (((0, 2),), ((0, 2),)),
            "blocks.0.gamma_1": (((0, 16),),),
            "head.weight": (((0, 5),), ((0, 16),)),
        },
    ),
}


@pytest.mark.parametrize("what", WIDE)
def test_ranges_of_wider_tensors(what: str) -> None:
    name, changes, expected = WIDE[what]
    for width in ("zero", "net2net", "direct"):
        _, parts = grown_parts(name, changes, width=width)
        assert {key: parts[key].old for key in expected} == expected


def test_of_an_axis_that_is_drawn_whole_nothing_is_old() -> None:
    _, parts = grown_parts("gpt2", {"n_inner": 100}, width="random")
    assert parts["transformer.h.0.mlp.c_fc.weight"].kind == "new"
    assert parts["transformer.h.0.mlp.c_proj.weight"].kind == "new"
    assert parts["transformer.h.0.mlp.c_proj.bias"].kind == "old"
    assert parts["transformer.h.0.attn.c_attn.weight"].kind == "old"


def test_a_target_drawn_at_random_is_all_new() -> None:
    start = start_of("gpt2", config_of("gpt2"), TARGETS["gpt2"]["both"], width="zero", depth="stack")
    assert {part.kind for part in added_parts(start.family, random_operator(start)).values()} == {"new"}


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 9])
@pytest.mark.parametrize("name", ["vit", "deit", "cait"])
def test_other_classes_are_a_new_head(name: str, classes: int) -> None:
    _, parts = grown_parts(name, {**TARGETS[name]["uneven"], "num_classes": classes}, width="zero")
    assert {part.kind for key, part in parts.items() if key.startswith("head")} == {"new"}
    assert {part.kind for key, part in parts.items() if not key.startswith("head")} <= {"old", "mixed"}
    _, parts = grown_parts(name, {"num_classes": classes})
    assert {part.kind for key, part in parts.items() if not key.startswith("head")} == {"old"}


def test_a_head_that_the_source_lacks_is_new() -> None:
    config = config_of("bert encoder")
    encoder = family_of(config)
    family = encoder.for_architecture("BertForMaskedLM")
    growth = GrowthSettings(width="copy", depth="copy", keying="shared", tie=None, seed=0)
    start = plan_growth(family, growth, config, config, asked={}, where="recipe", source_family=encoder)
    file = new_parameters(family, initial_operator(start))
    assert file["mixed"] == {}
    assert file["new"] == sorted(f"cls.predictions.{name}" for name in HEAD)
    assert all(name.startswith("bert.") for name in file["old"])


HEAD = (
    "bias",
    "transform.dense.weight",
    "transform.dense.bias",
    "transform.LayerNorm.weight",
    "transform.LayerNorm.bias",
)


def test_a_head_that_is_untied_is_the_source_s_still() -> None:
    config = config_of("gpt2", tied=True)
    _, parts = grown_parts("gpt2", {"tie_word_embeddings": False})
    assert parts["lm_head.weight"].kind == "old"
    assert "lm_head.weight" not in added_parts(family_of(config), initial_operator(start_of("gpt2", config, {})))


def test_a_layer_that_takes_nothing_is_new() -> None:
    """Only an operator that somebody made by hand has such a layer."""
    start = start_of("gpt2", config_of("gpt2"), TARGETS["gpt2"]["depth"], depth="stack")
    operator = initial_operator(start)

    def without_first(operator: Operator) -> Operator:
        (term,) = operator.terms
        depths = {
            key: array * (np.arange(len(array)) > 0)[:, None] if len(array) > 1 else array
            for key, array in term.depths.items()
        }
        return replace(operator, terms=(replace(term, depths=depths),))

    parts = added_parts(start.family, without_first(operator))
    assert layers_of(parts, "transformer.h.{}.ln_1.weight") == ["new", "old", "old", "new", "new"]


# --- the file ---------------------------------------------------------------------------------------------------------


def test_an_output_has_the_file_however_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_checkpoint(tmp_path / "model")
    for out in ("out", "again"):
        Path("recipe.yaml").write_text(recipe_text(model, GROWN["gpt2"], output={"dir": out}))
        convert(load_recipe(Path("recipe.yaml")))
    apply_operator(Path("out/ligo/operator.safetensors"), str(model), Path("applied"))
    data = Path("out", NEW_PARAMETERS).read_bytes()
    for out in ("out", "again", "applied"):
        assert Path(out, NEW_PARAMETERS).read_bytes() == data
        assert NEW_PARAMETERS in Path(out, "ligo/SHA256SUMS").read_text()
        statement = json.loads(Path(out, "ligo/provenance.json").read_text())
        assert NEW_PARAMETERS in [subject["name"] for subject in statement["subject"]]
        verify(Path(out), source=str(model))
    operator = read_operator(Path("out/ligo/operator.safetensors"))
    found = json.loads(data)
    assert found == new_parameters(stored_family(operator), operator)
    assert found["format"] == "ligo-new-parameters/1"
    assert sum(found["counts"].values()) == inspect_path(Path("out"))["parameters"]
    assert inspect_path(Path("out"))["new_parameters"] == found["counts"]["new"] > 0
    assert "new_parameters" not in inspect_path(model)
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    Path("recipe.yaml").write_text(recipe_text(model, GROWN["gpt2"], output={"dir": "out"}))
    assert not convert(load_recipe(Path("recipe.yaml"))).changed
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    # An output of an earlier version has no such file; another's may be anything.
    for text in ("{}", '{"counts": {"new": "many"}}', "[]", "no JSON"):
        Path("out", NEW_PARAMETERS).write_text(text)
        with pytest.raises(SourceError, match=r"new_parameters\.json"):
            inspect_path(Path("out"))
    Path("out", NEW_PARAMETERS).unlink()
    assert "new_parameters" not in inspect_path(Path("out"))

"""Silent layers can use their width: no entry of a new layer is a copy that training cannot tell apart."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.source_models import recipe_text, write_case
from support.tiny import (
    CASES,
    TARGETS,
    config_of,
    grown_state,
    inputs_of,
    logits,
    model_of,
    operator_family,
    start_of,
    state_of,
    target_model,
)

from ligo_convert.conversion.apply import apply_operator
from ligo_convert.conversion.convert import convert
from ligo_convert.errors import SourceError
from ligo_convert.families.parameters import model_parameters
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.initialize import initial_operator, learnable, symmetry
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import check_operator, describe, family_of, restore, stored_arrays
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe
from ligo_convert.training.fit import GrownTarget, fetch_from
from ligo_convert.training.model_tensors import tensors_of

# An even width takes every method.
BOTH = {name: {**targets["even"], **targets["depth"]} for name, targets in TARGETS.items()}


def inner_rows(family: Family, operator: Operator) -> list[tuple[Row, int, int]]:
    """Every matrix of a silent layer that writes an inner stream: (row, layer, written dim)."""
    return [
        (row, layer, position)
        for row in family.rows_for(operator.target)
        if row.depth is not None and len(row.layout.dims) > 1
        for position, dim in enumerate(row.layout.dims)
        if dim.role == "write" and dim.parts != (family.norm.stream,)
        for layer, silent in enumerate(operator.silent_layers[row.depth])
        if silent
    ]


def trained(operator: Operator, state: Mapping[str, torch.Tensor], steps: int) -> dict[str, torch.Tensor]:
    """Train for a few steps in float64; return every parameter beside its gradient of the next step: [2, ...]."""
    model = target_model(operator, state).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    inputs = inputs_of(model)
    for step in range(steps + 1):
        optimizer.zero_grad()
        found = model(**inputs)
        out = found if isinstance(found, torch.Tensor) else found[0]
        wanted = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        ((out - wanted) ** 2).mean().backward()
        if step < steps:
            optimizer.step()
    family, values, gradients = operator_family(operator), {}, {}
    for name, parameter in model.named_parameters():
        values[name] = parameter.detach()
        gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    rows = model_parameters(family, operator.target)
    values, gradients = tensors_of(rows, values), tensors_of(rows, gradients)
    return {family.written(name): torch.stack([values[name], gradients[name]]) for name in values}


def entries(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Weights and gradients of every entry along one dim, each scaled to one at most: [entries, coefficients]."""
    scale = values.flatten(1).abs().amax(1).clamp_min(1e-300).view(2, *[1] * (values.ndim - 1))
    return (values / scale).movedim(dim + 1, 0).flatten(1)


def twins(found: torch.Tensor) -> int:
    """The number of entries that have a twin: the same weights and the same gradients."""
    # By matrix products a distance of zero would come out as 1e-8.
    apart = torch.cdist(found, found, compute_mode="donot_use_mm_for_euclid_dist")
    return int((apart.fill_diagonal_(torch.inf).amin(1) < 1e-9).sum())


def twins_in_silent_layers(operator: Operator, state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Tensor -> the number of its inner rows that have a twin after two steps. Every row must have a gradient by then."""
    family = family_of(operator)
    after = trained(operator, state, steps=2)
    counts = {}
    for row, layer, position in inner_rows(family, operator):
        values = after[family.written(row.name(layer))]
        for kind, one in zip(("weights", "gradient"), values, strict=True):
            rows = one.movedim(position, 0).flatten(1)
            assert bool((rows.abs().amax(1) > 0).all()), f"{row.name(layer)}: an entry without {kind}"
        counts[row.name(layer)] = twins(entries(values, position))
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("family", CASES)
def test_no_twin_is_left_in_a_silent_layer_and_the_function_stays(family: str) -> None:
    config = config_of(family)
    model = model_of(config)
    state, before = state_of(config, model), logits(model)
    for width in ("lemon", "hyperclone", "zero"):
        start = start_of(family, config, BOTH[family], width=width, depth="identity")
        operator = initial_operator(start, dtype=np.float64)
        if start.verdict == "exact":
            apart = float((logits(target_model(operator, state)) - before).abs().max() / before.abs().max())
            assert apart < CASES[family].tolerance, width
        assert not twins_in_silent_layers(operator, state), width
    # The control: copies that are not parted are found. Where a norm silences a branch, the reads of `lemon` part them already.
    normed = any(row.layout.dims[0].role == "gain" for row in start.family.rows if start.family.is_residual_output(row))
    width, changes = (
        ("hyperclone", {**TARGETS[family]["even"], **TARGETS[family]["depth"]}) if normed else ("lemon", BOTH[family])
    )
    control = initial_operator(start_of(family, config, changes, width=width, depth="identity"), dtype=np.float64)
    assert len(twins_in_silent_layers(replace(control, parted={}), state)) >= 3


def test_an_operator_of_version_two_is_applied_as_it_was_written() -> None:
    start = start_of("llama", config_of("llama"), BOTH["llama"], width="lemon", depth="identity")
    operator = initial_operator(start)
    arrays = stored_arrays(operator)
    specs, data = {spec.name: spec for spec, _ in arrays}, {spec.name: bytes(view) for spec, view in arrays}
    metadata = describe(operator)
    assert "ligo-operator/3" in metadata["ligo"]
    older = metadata["ligo"].replace("ligo-operator/3", "ligo-operator/2").replace('"parted":["mlp","kv_heads"],', "")
    older = older.replace('"rewrites":[]', '"rewrites":["carry"]')
    assert "parted" not in older
    back = restore({"ligo": older}, specs, data.__getitem__, label="op")
    assert not back.parted
    assert back.rewrites == ("mean-preserving",), "a rewrite's old name is known"
    state = dict(model_of(config_of("llama")).state_dict())
    wanted = grown_state(replace(operator, parted={}), state)
    for name, tensor in grown_state(replace(back, rewrites=()), state).items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize(
    ("parted", "message"),
    [
        ({"wings": np.zeros(3, dtype=np.int64)}, "cannot be parted"),
        ({"embed": np.zeros(32, dtype=np.int64)}, "cannot be parted"),
        ({"mlp": np.zeros(47, dtype=np.int64)}, "another shape"),
        ({"mlp": np.zeros(48, dtype=np.float32)}, "another shape"),
        ({"mlp": np.full(48, 48, dtype=np.int64)}, "does not have"),
        ({"mlp": np.full(48, -2, dtype=np.int64)}, "does not have"),
    ],
)
def test_crafted_parted_entries_are_refused(parted: dict[str, np.ndarray], message: str) -> None:
    start = start_of("llama", config_of("llama"), BOTH["llama"], width="lemon", depth="identity")
    operator = replace(initial_operator(start), parted=parted)
    with pytest.raises(SourceError, match=message):
        check_operator(operator, family_of(operator), label="op")


@pytest.mark.parametrize(
    ("family", "keying"),
    [
        ("llama", "shared"),
        ("llama", "source"),
        ("llama", "target"),
        *((name, "source") for name in ("gpt2", "bert", "vit", "cait")),
    ],
)
def test_learning_begins_at_the_parted_start(family: str, keying: str) -> None:
    config = config_of(family)
    start = start_of(family, config, BOTH[family], width="mean-preserving", depth="identity", keying=keying)
    initial = initial_operator(start, dtype=np.float64)
    assert initial.parted
    state = state_of(config, model_of(config))
    wanted = grown_state(initial, state)
    unparted = grown_state(replace(initial, parted={}), state)
    assert any(not torch.equal(tensor, wanted[name]) for name, tensor in unparted.items())
    for name, tensor in grown_state(learnable(initial, start.family), state).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-12, atol=1e-12)


def entries_of(family: Family, after: Mapping[str, torch.Tensor], axis: str, sizes: Mapping[str, int]) -> torch.Tensor:
    """The entries of an axis in the first layer, which is never silent: MLP rows, values, or columns of the embedding."""
    stream = {"heads": "value", "kv_heads": "value"}.get(axis, axis)
    for row in family.rows:
        for position, dim in enumerate(row.layout.dims):
            if dim.role != "write" or stream not in dim.parts or len(row.layout.dims) < 2:
                continue
            first = sum(sizes[part] for part in dim.parts[: dim.parts.index(stream)])
            values = after[family.written(row.name(0 if row.depth else None))]
            values = values.narrow(position + 1, first, sizes[stream])
            return entries(values, position).reshape(sizes[axis], -1)
    raise AssertionError(axis)


@pytest.mark.parametrize("width", ["net2net", "hyperclone", "lemon", "sparkling", "zero", "aki", "direct"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "vit"])
def test_the_plan_counts_the_twins_and_the_dead_that_training_finds(family: str, width: str) -> None:
    config = config_of(family)
    start = start_of(family, config, BOTH[family], width=width, depth="identity")
    found = symmetry(start)
    operator = initial_operator(start, dtype=np.float64)
    after = trained(operator, state_of(config, model_of(config)), steps=3)
    for axis in ("embed", "mlp", "kv_heads" if "kv_heads" in start.family.axes else "heads"):
        rows = entries_of(start.family, after, axis, start.family.sizes(start.target))
        dead = ~(rows.abs().amax(1) > 0)
        assert int(dead.sum()) == found.dead.get(axis, 0), axis
        assert twins(rows[~dead]) == found.twins.get(axis, 0), axis


def test_queries_of_zeros_in_front_of_a_norm_are_steep() -> None:
    config = config_of("qwen3")
    start = start_of("qwen3", config, TARGETS["qwen3"]["more groups"], width="zero", depth="identity")
    assert symmetry(start).steep == {"group": 1}
    operator = initial_operator(start, dtype=np.float64)
    after = trained(operator, state_of(config, model_of(config)), steps=1)
    # Groups of three heads of eight, of which the third is new.
    query = after["model.layers.0.self_attn.q_proj.weight"][1].unflatten(0, (2, 3, 8))
    ends = after["model.layers.0.self_attn.o_proj.weight"][0].unflatten(1, (2, 3, 8))
    steepness = [float(query[:, head].norm() / ends[:, :, head].norm()) for head in (slice(0, 2), slice(2, 3))]
    assert steepness[1] > 20 * steepness[0]
    assert not symmetry(replace(start, growth=replace(start.growth, width="lemon"))).steep


@pytest.mark.parametrize("family", ["llama", "bert", "cait"])
def test_a_silent_layer_that_is_drawn_has_no_twins(family: str) -> None:
    config = config_of(family)
    state = state_of(config, model_of(config))
    start = start_of(family, config, BOTH[family], width="hyperclone", depth="silent-drawn")
    operator = initial_operator(start, dtype=np.float64)
    assert not operator.parted, "there is no copy to part"
    assert not symmetry(start).parted
    assert start.family.norm.stream not in symmetry(start).twins, "drawn rows read the stream apart"
    assert not twins_in_silent_layers(operator, state)
    grown = grown_state(operator, state)
    # Learning and streaming give the same, and begin at the same point.
    learned = grown_state(learnable(operator, start.family), state)
    for name, tensor in grown.items():
        torch.testing.assert_close(learned[name], tensor, rtol=1e-12, atol=1e-12, msg=name)
    for row, layer, _ in inner_rows(start.family, operator):
        deviation = float(grown[start.family.written(row.name(layer))].std())
        assert 0.005 < deviation < 0.05, f"{row.name(layer)} is not drawn as the library does it"
    for row in start.family.rows_for(operator.target):
        if row.depth is None or not (start.family.is_residual_output(row) or start.family.is_post_norm(row)):
            continue
        for layer, silent in enumerate(operator.silent_layers[row.depth]):
            assert not (silent and operator.draws(start.family, row, layer))
            if silent and start.family.is_residual_output(row):
                assert not grown[start.family.written(row.name(layer))].any(), row.name(layer)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "bert", "cait"])
def test_learning_and_streaming_part_the_same(family: str) -> None:
    config = config_of(family)
    start = start_of(family, config, BOTH[family], width="zero", depth="identity")
    operator, state = initial_operator(start, dtype=np.float64), state_of(config, model_of(config))
    rows = start.family.rows_for(operator.target)
    stacked = {
        row.pattern: torch.stack(
            [state[start.family.written(row.name(layer))] for layer in start.family.layers(row, operator.source)]
        )
        for row in rows
    }
    grower = Grower(operator, start.family, dtype=torch.float64, fetch=fetch_from(stacked), keep_drawn=True)
    streamed, changed = grown_state(operator, state), grown_state(replace(operator, parted={}), state)
    assert sum(not torch.equal(tensor, changed[name]) for name, tensor in streamed.items()) >= 6
    for _ in range(2):  # the second time with the signs that are kept
        for name, tensor in GrownTarget(grower, rows, stacked).tensors().items():
            written = start.family.written(name)
            torch.testing.assert_close(tensor, streamed[written], rtol=1e-12, atol=1e-12, msg=written)


@pytest.mark.parametrize("family", ["llama", "bert", "deit3"])
def test_a_parted_row_has_the_magnitudes_of_the_row_that_it_copies(family: str) -> None:
    config = config_of(family)
    state = state_of(config, model_of(config))
    start = start_of(family, config, BOTH[family], width="hyperclone", depth="identity")
    operator = initial_operator(start, dtype=np.float64)
    plain, parted = (grown_state(found, state) for found in (replace(operator, parted={}), operator))
    free = {
        start.family.written(row.name(layer)): position for row, layer, position in inner_rows(start.family, operator)
    }
    flipped = total = 0
    for name, tensor in parted.items():
        if name not in free:
            assert torch.equal(tensor, plain[name]), f"{name} is not free"
            continue
        assert torch.equal(tensor.abs(), plain[name].abs()), name
        rows = (tensor != plain[name]).movedim(free[name], 0).flatten(1)
        assert not rows[: len(rows) // 6].any(), f"{name}: the old block"
        flipped, total = flipped + int(rows.sum()), total + rows.numel() // 2
    assert 0.45 < flipped / total < 0.55


def test_without_growth_in_width_a_silent_layer_is_a_copy() -> None:
    start = start_of("llama", config_of("llama"), TARGETS["llama"]["depth"], width="lemon", depth="identity")
    assert not initial_operator(start).parted
    assert symmetry(start) == replace(symmetry(start), twins={}, dead={}, steep={}, parted={})
    # Two silent copies of one layer are no twins: the second reads what the first adds.
    operator = initial_operator(start, dtype=np.float64)
    after = trained(operator, dict(model_of(config_of("llama")).state_dict()), steps=2)
    first, second = (after[f"model.layers.{layer}.mlp.down_proj.weight"][0] for layer in (1, 2))
    assert (first - second).abs().max() > 1e-6 * first.abs().max()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "cait"])
def test_branch_ends_of_silent_layers_get_gradients_of_the_size_of_the_others(family: str) -> None:
    config = config_of(family)
    start = start_of(family, config, BOTH[family], width="lemon", depth="identity")
    operator = initial_operator(start, dtype=np.float64)
    after = trained(operator, state_of(config, model_of(config)), steps=0)
    for row in start.family.rows_for(operator.target):
        if row.depth is None or not start.family.is_residual_output(row) or len(row.layout.dims) < 2:
            continue
        sizes = [
            float(after[start.family.written(row.name(layer))][1].norm())
            for layer in start.family.layers(row, operator.target)
        ]
        silent = [size for size, quiet in zip(sizes, operator.silent_layers[row.depth], strict=True) if quiet]
        assert min(silent) / max(sizes) > 0.1, row.pattern
        assert max(silent) / min(sizes) < 10, row.pattern


def test_a_parted_model_is_the_same_at_any_number_of_threads_and_is_derived_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_case(tmp_path / "source", "llama")
    written = []
    for threads in (1, 2):
        recipe = tmp_path / f"{threads}.yaml"
        recipe.write_text(recipe_text("./source", BOTH["llama"], output={"dir": f"out{threads}"}))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            convert(load_recipe(recipe))
        finally:
            torch.set_num_threads(before)
        written.append((tmp_path / f"out{threads}" / "model.safetensors").read_bytes())
    assert written[0] == written[1]
    derived = verify(tmp_path / "out1", source="source")["derived"]
    assert derived["identical"] == derived["tensors"]
    applied = apply_operator(tmp_path / "out1" / "ligo" / "operator.safetensors", "source", tmp_path / "applied")
    assert (applied.out / "model.safetensors").read_bytes() == written[0]
    statement = json.loads((applied.out / "ligo" / "provenance.json").read_bytes())
    recorded = statement["predicate"]["buildDefinition"]["internalParameters"]["operator"]["parted"]
    assert recorded == {"mlp": 24, "kv_heads": 2}
    assert "signs of the weights of copied entries" in (applied.out / "README.md").read_text()


@pytest.mark.parametrize("width", ["zero", "aki"])
def test_counting_takes_no_memory_of_the_size_of_a_weight(width: str) -> None:
    """`plan` counts at the sizes of the target: maps of the MLP of a model of 8 billion parameters, dense, would take 2.5 GB."""
    config = {
        **FAMILIES["llama"].defaults,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
    }
    changes = {
        "hidden_size": 6144,
        "intermediate_size": 21504,
        "num_attention_heads": 48,
        "num_key_value_heads": 12,
        "num_hidden_layers": 48,
    }
    start = start_of("llama", config, changes, width=width, depth="identity")
    tracemalloc.start()
    try:
        assert symmetry(start).parted == {"mlp": 7168, "kv_heads": 4}
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("family", "changes", "axes"),
    [
        ("gpt2", TARGETS["gpt2"]["head size"], {"head_dim", "mlp"}),
        ("qwen3", TARGETS["qwen3"]["more groups"], {"group"}),
        ("phi3", {"intermediate_size": 40}, {"mlp"}),
    ],
)
@pytest.mark.parametrize("width", ["lemon", "zero"])
def test_no_twin_is_left_where_one_axis_grows(
    family: str, changes: Mapping[str, object], axes: set[str], width: str
) -> None:
    config = config_of(family, tied=False)
    model = model_of(config)
    both = {**changes, **TARGETS[family]["depth"]}
    start = start_of(family, config, both, width=width, depth="identity")
    operator, state = initial_operator(start, dtype=np.float64), state_of(config, model)
    assert set(operator.parted) == axes
    apart = float((logits(target_model(operator, state)) - logits(model)).abs().max())
    assert start.verdict == "exact"
    assert apart < CASES[family].tolerance * 10
    assert not twins_in_silent_layers(operator, state)

"""The factored operator against the explicit matrix M = L_depth R_width of the paper, element for element, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tiny import (
    CONFIGS,
    GRIDS,
    TARGETS,
    config_of,
    family_of,
    grown_state,
    model_of,
    operator_family,
    start_of,
    state_of,
)

from ligo_convert.checkpoints.writer import safetensors_bytes
from ligo_convert.errors import SourceError
from ligo_convert.families.registry import FAMILIES
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.initialize import initial_operator, learnable, learned_parameters, random_operator
from ligo_convert.growth.maps import ROLES, Axis, Map, kronecker
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import check_operator, describe, read_operator, restore, stored_arrays
from ligo_convert.training.fit import GrownTarget, fetch_from

KEYINGS = [("source", None), ("target", None), ("shared", None), ("source", "paper")]


def dense_operator(family: str, target: str, keying: str, tie: str | None) -> tuple[Operator, dict[str, torch.Tensor]]:
    """An operator in learned form with every coefficient random: no structure hides a wrong index."""
    config = config_of(family)
    start = start_of(family, config, TARGETS[family][target], width="net2net", depth="stack", keying=keying, tie=tie)
    operator = learnable(initial_operator(start, dtype=np.float64), family_of(config_of(family)))
    rng = np.random.default_rng(0)

    def noise(name: str, array: np.ndarray) -> np.ndarray:
        learned = name.endswith(".tail") or "/depth/" in name
        return rng.normal(size=array.shape) if learned else array

    return operator.map_arrays(noise), state_of(config, model_of(config))


def stream_matrix(
    operator: Operator, stream: str, role: str, axis: str | None, old: int | None, new: int | None, size: int
):
    factors = operator.stream(operator.terms[0], stream, axis, old, new)
    return kronecker([factor.role(role) for factor in factors]) if factors else np.eye(size)


def width_matrix(operator: Operator, row, old_layer: int | None, new_layer: int | None) -> np.ndarray:
    """R_width of one row at one layer: the Kronecker product over its stored dims, fused parts as diagonal blocks."""
    family = operator_family(operator)
    sizes = family.sizes(operator.source)
    product = np.ones((1, 1))
    for dim in row.layout.dims:
        blocks = [
            stream_matrix(operator, part, dim.role, row.depth, old_layer, new_layer, sizes.get(part, 1))
            for part in dim.parts
        ]
        along = np.zeros((sum(block.shape[0] for block in blocks), sum(block.shape[1] for block in blocks)))
        at = [0, 0]
        for block in blocks:
            along[at[0] : at[0] + block.shape[0], at[1] : at[1] + block.shape[1]] = block
            at = [at[0] + block.shape[0], at[1] + block.shape[1]]
        product = np.kron(product, along)
    return product


def depth_blocks(operator: Operator, row, new: int, old: int, new_shape: tuple[int, ...]) -> np.ndarray:
    """The diagonal of L_depth's block (new, old): one weight for every element, that of the part it lies in."""
    keys = row.piece_keys()
    weights = [operator.terms[0].depths[key][new, old] for key in keys]
    if len(keys) == 1:
        return np.full(int(np.prod(new_shape)), weights[0])
    family = operator_family(operator)
    sizes = family.sizes(operator.target)
    at = row.layout.fused_dim
    along = np.concatenate(
        [np.full(sizes[part], weight) for part, weight in zip(row.layout.dims[at].parts, weights, strict=True)]
    )
    view = [1] * len(new_shape)
    view[at] = -1
    return np.broadcast_to(along.reshape(view), new_shape).reshape(-1)


def explicit(operator: Operator, row, state: dict[str, torch.Tensor]) -> np.ndarray:
    """vec(target) = L_depth R_width vec(source) of one row, all layers stacked, by explicit matrices."""
    family = operator_family(operator)
    old, new = family.sizes(operator.source), family.sizes(operator.target)
    layers_old, layers_new = (old[row.depth], new[row.depth]) if row.depth else (1, 1)
    shape = family.shape(row, new)
    layers = [j if row.depth else None for j in range(row.first, layers_old)]
    source = [source_tensor(family, row, j, state, operator).reshape(-1) for j in layers]
    rows_, columns = int(np.prod(shape)), source[0].size
    matrix = np.zeros(((layers_new - row.first) * rows_, (layers_old - row.first) * columns))
    for i in range(row.first, layers_new):
        for j in range(row.first, layers_old):
            width = width_matrix(operator, row, j if row.depth else None, i if row.depth else None)
            block = depth_blocks(operator, row, i, j, shape)[:, None] * width
            m, n = i - row.first, j - row.first
            matrix[m * rows_ : (m + 1) * rows_, n * columns : (n + 1) * columns] = block
    # A gain that is stored less one grows as the gain itself.
    one = float(row.layout.less_one)
    return (matrix @ (np.concatenate(source) + one)).reshape(layers_new - row.first, *shape) - one


def source_tensor(family, row, layer: int | None, state: dict[str, torch.Tensor], operator: Operator) -> np.ndarray:
    """A source tensor; what a LayerScale multiplies, as it arrives in the stream."""
    tensor = state[family.written(row.name(layer))].numpy()
    scale = family.scale_row(row, operator.source)
    if scale is None:
        return tensor
    return tensor * state[family.written(scale.name(layer))].numpy().reshape(-1, *[1] * (tensor.ndim - 1))


@pytest.mark.parametrize(("keying", "tie"), KEYINGS)
@pytest.mark.parametrize("family", GRIDS)
def test_growth_is_the_explicit_matrix(family: str, keying: str, tie: str | None) -> None:
    operator, state = dense_operator(family, "both", keying, tie)
    grown = grown_state(operator, state)
    found = operator_family(operator)
    for row in found.rows_for(operator.target):
        if found.is_scale(row):
            continue  # no matrix: entries are copied, or means of absolute values (test_layer_scales...)
        expected = explicit(operator, row, state)
        scale = found.scale_row(row, operator.target)
        for at, layer in enumerate(found.layers(row, operator.target)):
            tensor = grown[found.written(row.name(layer))].numpy()
            if scale is not None:
                by = grown[found.written(scale.name(layer))].numpy()
                tensor = tensor * by.reshape(-1, *[1] * (tensor.ndim - 1))
            # float64: what is left is the order of summation.
            np.testing.assert_allclose(tensor, expected[at], rtol=0, atol=1e-11 * 100)


@pytest.mark.parametrize("width", ["lemon", "zero", "net2net"])
def test_layer_scales_follow_their_entries(width: str) -> None:
    """A copied entry keeps its scale; an entry that is a mixture or empty takes the mean of absolute values: never nothing."""
    config = config_of("cait")
    start = start_of("cait", config, TARGETS["cait"]["uneven"], width=width, depth="copy")
    state = state_of(config, model_of(config))
    grown = grown_state(initial_operator(start, dtype=np.float64), state)
    old, new = state["blocks.1.gamma_2"], grown["blocks.1.gamma_2"]
    torch.testing.assert_close(new[:16], old)
    if width == "net2net":
        assert all(any(value == known for known in old) for value in new[16:])
    else:
        torch.testing.assert_close(new[16:], old.abs().mean().expand(8))


@pytest.mark.parametrize(("keying", "tie"), KEYINGS)
@pytest.mark.parametrize("family", GRIDS)
def test_learning_and_streaming_grow_the_same(family: str, keying: str, tie: str | None) -> None:
    operator, state = dense_operator(family, "both", keying, tie)
    found = family_of(config_of(family))
    rows = found.rows_for(operator.target)
    stacked = {
        row.pattern: torch.stack(
            [state[found.written(row.name(layer))].double() for layer in found.layers(row, operator.source)]
        )
        for row in rows
    }
    grower = Grower(operator, found, dtype=torch.float64, fetch=fetch_from(stacked))
    learned = GrownTarget(grower, rows, stacked).tensors()
    learned = {found.written(name): tensor for name, tensor in learned.items()}
    for name, tensor in grown_state(operator, state).items():
        torch.testing.assert_close(learned[name], tensor, rtol=1e-12, atol=1e-11)


def test_the_paper_ties_reads_to_writes() -> None:
    operator, _ = dense_operator("gpt2", "uneven", "source", "paper")
    (term,) = operator.terms
    for factors in term.widths.values():
        for axis in factors:
            assert axis.read is axis.write
    weight, bias = "transformer.h.{layer}.attn.c_attn.weight/key", "transformer.h.{layer}.attn.c_attn.bias/key"
    assert term.depths[weight] is term.depths[bias], "the paper has one depth matrix a module"
    assert term.depths[weight] is not term.depths[weight.replace("/key", "/query")]
    # Eq. 6 and Algorithm 1: a map for every source layer, but for the embedding's.
    assert {key for key in term.widths if key.startswith("query")} == {"query@layer.0", "query@layer.1"}
    assert "embed" in term.widths
    maps = {id(term.widths[f"{stream}@layer.1"][0].write) for stream in ("query", "key", "value", "mlp")}
    assert len(maps) == 4, "B_Q, B_K, B_V and B_fc1 are learned apart"


def test_without_grouped_queries_the_context_reads_with_the_values_map() -> None:
    config = config_of("llama", num_key_value_heads=4)
    target = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 6}
    start = start_of("llama", config, target, width="net2net", depth="copy", keying="source", tie="paper")
    (term,) = learnable(initial_operator(start), FAMILIES["llama"]).terms
    assert term.widths["context@layer.1"][0].read is term.widths["value@layer.1"][0].write
    assert term.widths["context@layer.1"][0].read is not term.widths["context@layer.0"][0].read


@pytest.mark.parametrize("width", ["lemon", "net2net", "aki", "zero", "direct", "random", "hyperclone", "sparkling"])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_learned_form_begins_where_its_start_is(family: str, width: str) -> None:
    config = config_of(family)
    start = start_of(family, config, TARGETS[family]["even"], width=width, depth="stack")
    state = state_of(config, model_of(config))
    initial = initial_operator(start, dtype=np.float64)
    dense = learnable(initial, family_of(config_of(family)))
    assert any(len(axis.write.index) == 0 for factors in dense.terms[0].widths.values() for axis in factors)
    before, after = grown_state(initial, state), grown_state(dense, state)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("keying", "tie"), KEYINGS)
@pytest.mark.parametrize("family", GRIDS)
def test_the_count_of_learned_coefficients_is_what_the_plan_says(family: str, keying: str, tie: str | None) -> None:
    # `lemon` refuses a tied head behind a norm without a gain.
    config = config_of(family, tied=family_of(config_of(family)).norm.affine)
    start = start_of(family, config, TARGETS[family]["both"], width="lemon", depth="identity", keying=keying, tie=tie)
    operator = learnable(initial_operator(start), family_of(config))
    maps = {}
    for factors in (factors for term in operator.terms for factors in term.widths.values()):
        for found in (axis.role(role) for axis in factors for role in ROLES if role != "scale"):
            if len(found.index) == 0:
                maps[id(found)] = found.tail.size
    table = family_of(config)
    scales = {row.pattern for row in table.rows if table.is_scale(row)}
    matrices = {key: array for key, array in operator.terms[0].depths.items() if "{" in key and key not in scales}
    depths = sum({id(array): array.size for array in matrices.values()}.values())
    assert sum(maps.values()) + depths == learned_parameters(start)


def test_the_default_operator_of_gpt2_base_to_medium_is_small() -> None:
    config = {"model_type": "gpt2", **FAMILIES["gpt2"].defaults}
    target = {"n_layer": 24, "n_embd": 1024, "n_head": 16}
    counts = {}
    for keying in ("shared", "source", "target"):
        start = start_of("gpt2", config, target, width="lemon", depth="identity", keying=keying)
        counts[keying] = learned_parameters(start)
    assert 25e6 < counts["shared"] < 35e6
    assert counts["shared"] < counts["source"] < counts["target"]


@pytest.mark.parametrize("width", ["lemon", "aki", "direct"])
@pytest.mark.parametrize("family", CONFIGS)
def test_an_operator_survives_its_file(family: str, width: str) -> None:
    config = config_of(family)
    start = start_of(
        family, config, TARGETS[family]["both"], width="net2net" if width == "aki" else width, depth="identity"
    )
    operator = initial_operator(start)
    arrays = stored_arrays(operator)
    data = {spec.name: bytes(view) for spec, view in arrays}
    back = restore(describe(operator), {spec.name: spec for spec, _ in arrays}, data.__getitem__, label="op")
    assert describe(back) == describe(operator)
    state = state_of(config, model_of(config))
    before, after = grown_state(operator, state), grown_state(back, state)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def test_growing_to_the_same_size_changes_nothing() -> None:
    config = config_of("gpt2")
    operator = initial_operator(start_of("gpt2", config, {}, width="lemon", depth="stack"))
    state = dict(model_of(config, dtype=torch.float32).state_dict())
    for name, tensor in grown_state(operator, state, dtype=torch.float32).items():
        assert torch.equal(tensor, state[name]), name


def test_maps_are_what_their_matrix_is() -> None:
    rng = np.random.default_rng(0)
    found = Map(index=np.array([2, 0, 0]), weight=np.array([1.0, 0.5, 0.0]), tail=rng.normal(size=(2, 4)))
    axis = Axis(write=found, read=found, gain=found, shift=found, scale=found)
    assert (axis.old, axis.new) == (4, 5)
    matrix = found.matrix()
    assert matrix[0].tolist() == [0, 0, 1, 0]
    assert matrix[1].tolist() == [0.5, 0, 0, 0]
    assert not matrix[2].any()
    np.testing.assert_array_equal(matrix[3:], found.tail)


def stored(operator: Operator) -> tuple[dict, dict, dict]:
    arrays = stored_arrays(operator)
    return (
        describe(operator),
        {spec.name: spec for spec, _ in arrays},
        {spec.name: bytes(view) for spec, view in arrays},
    )


def _change(text: str, new: str):
    return lambda metadata: {**metadata, "ligo": metadata["ligo"].replace(text, new)}


CRAFTED = [
    (_change('"n_embd":24', '"n_embd":36'), "of another size|do not fit"),
    (_change('"n_layer":5', '"n_layer":6'), "another shape"),
    (_change('"drawn_layers":{', '"drawn_layers":[{'), "malformed JSON"),
    (_change('"drawn_layers":{"layer":[false,', '"drawn_layers":{"layer":['), "does not have"),
    (_change('"format":"ligo-operator/3"', '"format":"ligo-operator/9"'), "another version"),
    (_change('"seed"', '"sead"'), "field 'seed' is not what it should be"),
    (_change('"rewrites":[]', '"rewrites":["scramble"]'), "not known here"),
    (lambda metadata: {"format": "pt"}, "no growth operator"),
]


@pytest.mark.parametrize(("change", "message"), CRAFTED)
def test_a_crafted_operator_is_refused(change, message: str) -> None:
    target = {"n_embd": 24, "n_head": 3, "n_layer": 5}
    operator = initial_operator(start_of("gpt2", config_of("gpt2"), target, width="lemon", depth="identity"))
    metadata, specs, data = stored(operator)
    changed = change(metadata)
    assert changed != metadata
    with pytest.raises(SourceError, match=message):
        check_operator(restore(changed, specs, data.__getitem__, label="op"), FAMILIES["gpt2"], label="op")


def test_an_index_that_points_nowhere_is_refused() -> None:
    operator = initial_operator(
        start_of("gpt2", config_of("gpt2"), TARGETS["gpt2"]["uneven"], width="lemon", depth="identity")
    )
    metadata, specs, data = stored(operator)
    name = next(name for name in data if name.endswith("mlp/0/write.index"))
    data[name] = np.full(specs[name].shape, 10**6, dtype="<i8").tobytes()
    with pytest.raises(SourceError, match="a width map that is none"):
        check_operator(restore(metadata, specs, data.__getitem__, label="op"), FAMILIES["gpt2"], label="op")


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("target", ["depth", "both"])
def test_a_random_target_owes_nothing_to_its_source(family: str, target: str) -> None:
    config = config_of(family)
    operator = random_operator(start_of(family, config, TARGETS[family][target], width="lemon", depth="identity"))
    state = state_of(config, model_of(config))
    other = dict(model_of(config, seed=1).state_dict())
    one, two = grown_state(operator, state), grown_state(operator, other)
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
        assert tensor.ndim == 1 or float(tensor.std()) > 0, name


@pytest.mark.parametrize("width", ["direct", "random"])
@pytest.mark.parametrize("family", CONFIGS)
def test_silent_layers_are_silent_beside_drawn_widths(family: str, width: str) -> None:
    config = config_of(family)
    start = start_of(family, config, TARGETS[family]["both"], width=width, depth="identity")
    grown = grown_state(initial_operator(start), state_of(config, model_of(config)))
    layers_of = {axis: found.silent for axis, found in start.depths.items()}
    ends = [row for row in family_of(config).rows_for(start.target) if family_of(config).is_residual_output(row)]
    assert any(layers_of["layer"])
    for row in ends:
        for layer, is_silent in enumerate(layers_of[row.depth]):
            gain = grown[family_of(config).written(row.name(layer))] + float(row.layout.less_one)
            assert is_silent == (not gain.any()) or (row.layout.dims[0].role == "write" and len(row.layout.dims) == 1)


def test_an_operator_of_an_unknown_family_is_refused(tmp_path) -> None:
    operator = initial_operator(start_of("gpt2", config_of("gpt2"), {"n_layer": 3}, width="copy", depth="stack"))
    file = tmp_path / "operator.safetensors"
    renamed = replace(operator, family="gpt3")
    file.write_bytes(safetensors_bytes(stored_arrays(renamed), describe(renamed)))
    with pytest.raises(SourceError, match="unknown family 'gpt3'"):
        read_operator(file)

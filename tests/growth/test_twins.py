"""Silent layers can use their width: no entry of a new layer is a copy that training cannot tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tiny import CASES, TARGETS, config_of, grown_state, inputs_of, logits, model_of, start_of, target_model

from ligo_convert.errors import SourceError
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.initialize import initial_operator, learnable
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import check_operator, describe, family_of, restore, stored_arrays

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


def twins_after_training(operator: Operator, state: Mapping[str, torch.Tensor], steps: int = 2) -> dict[str, int]:
    """Train for a few steps in float64; return the inner rows of silent layers that have a twin: equal weights and gradients."""
    family = family_of(operator)
    model = target_model(operator, state).eval()
    parameters = dict(model.named_parameters())
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
    twins = {}
    for row, layer, position in inner_rows(family, operator):
        weight = parameters[family.written(row.name(layer))]
        assert weight.grad is not None
        for values in (weight, weight.grad):
            matrix = values.detach().movedim(position, 0).flatten(1)
            assert bool((matrix.abs().amax(1) > 0).all()), f"{row.name(layer)}: an entry without weights or gradient"
        both = torch.cat([weight, weight.grad / weight.grad.abs().max()], 1 - position).detach().movedim(position, 0)
        apart = torch.cdist(both, both).fill_diagonal_(torch.inf).amin(1)
        twins[row.name(layer)] = int((apart < 1e-9).sum())
    return {name: count for name, count in twins.items() if count}


@pytest.mark.parametrize("family", CASES)
def test_no_twin_is_left_in_a_silent_layer_and_the_function_stays(family: str) -> None:
    config = config_of(family)
    model = model_of(config)
    state, before = dict(model.state_dict()), logits(model)
    for width in ("lemon", "hyperclone", "zero"):
        start = start_of(family, config, BOTH[family], width=width, depth="identity")
        operator = initial_operator(start, dtype=np.float64)
        if start.verdict == "exact":
            apart = float((logits(target_model(operator, state)) - before).abs().max() / before.abs().max())
            assert apart < CASES[family].tolerance, width
        assert not twins_after_training(operator, state), width
    # The control: copies that are not parted are found.
    lemon = initial_operator(start_of(family, config, BOTH[family], width="lemon", depth="identity"), dtype=np.float64)
    assert len(twins_after_training(replace(lemon, parted={}), state)) >= 3


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


@pytest.mark.parametrize("keying", ["shared", "source", "target"])
def test_learning_begins_at_the_parted_start(keying: str) -> None:
    config = config_of("llama")
    start = start_of("llama", config, BOTH["llama"], width="lemon", depth="identity", keying=keying)
    initial = initial_operator(start, dtype=np.float64)
    state = dict(model_of(config).state_dict())
    wanted = grown_state(initial, state)
    for name, tensor in grown_state(learnable(initial, start.family), state).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-12, atol=1e-12)

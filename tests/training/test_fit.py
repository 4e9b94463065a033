"""Learning the operator: the gradient is the true one, the loss falls, the exact start is never made worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny import CONFIGS, TARGETS, config_of, family_of, model_of, start_of, state_of

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.checkpoints.torch_io import tensor_to_bytes
from ligo_convert.data.examples import ArrayExamples, Batch
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.initialize import initial_operator, learnable
from ligo_convert.training.fit import (
    FitSettings,
    GrownTarget,
    autocast_pays,
    fetch_from,
    fit,
    learned_arrays,
    named_source,
    stacked_source,
)
from ligo_convert.training.functional_model import LibraryModel, mean_loss
from ligo_convert.training.objectives import objective_of
from ligo_convert.training.preservation import MeasuredModel, certificate
from ligo_convert.training.tasks import on_device


def batch_of(blocks: np.ndarray, family: str) -> dict[str, np.ndarray]:
    """The blocks as a family's task wants them: every token asked for, or images whose pixels follow from the first tokens."""
    task = family_of(config_of(family)).task
    ids = blocks.astype(np.int64)
    if task == "image-classification":
        pixels = np.stack([np.random.default_rng(int(row[0]) % 5).normal(size=(3, 16, 16)) for row in ids])
        return {"pixel_values": pixels.astype(np.float32), "labels": ids[:, 0] % 5}
    return {"input_ids": ids} if task == "causal-lm" else {"input_ids": ids, "labels": ids}


class Slices:
    """Sequences that count up modulo the vocabulary: something to learn."""

    def __init__(self, family: str = "gpt2") -> None:
        rng = np.random.default_rng(0)
        blocks = (rng.integers(0, 29, size=(40, 1)) + np.arange(10)) % 29
        blocks = blocks.astype(np.uint32)
        self.train, self.validation, self.test = (
            ArrayExamples(arrays=batch_of(part, family)) for part in (blocks[:24], blocks[24:32], blocks[32:])
        )

    def batch(self, step: int, *, batch_size: int, seed: int) -> Batch:
        return self.train.take(
            np.random.default_rng([seed, step]).integers(0, len(self.train), size=batch_size).tolist()
        )


def settings(**changes: object) -> FitSettings:
    values: dict[str, object] = {
        "steps": 20,
        "batch_size": 8,
        "micro_batch_size": 8,
        "tokens_a_step": 80,
        "width_rate": 3e-3,
        "depth_rate": 1e-2,
        "weight_decay": 0.0,
        "warmup_steps": 2,
        "seed": 0,
        "evaluate_every": 5,
        "autocast": False,
    }
    return FitSettings(**{**values, **changes})  # type: ignore[arg-type]


def prepared(family: str, *, dtype: torch.dtype = torch.float32, **growth: object):
    config = config_of(family)
    found = family_of(config)
    state = state_of(config, model_of(config, dtype=dtype))
    code = {torch.float32: "F32", torch.float64: "F64"}[dtype]
    specs = {name: TensorSpec(name=name, dtype=code, shape=tuple(tensor.shape)) for name, tensor in state.items()}
    inventory = claim_tensors(found, config, specs, label="tiny")
    assert inventory.family.architecture == found.architecture
    # Where the norm comes after the sum only whole multiples are exact, and `both` is one there.
    start = start_of(family, config, TARGETS[family]["both"], **{"width": "lemon", "depth": "identity", **growth})

    def read(name: str) -> bytearray:
        return bytearray(tensor_to_bytes(state[name], specs[name]))

    rows = found.rows_for(start.target)
    return found, inventory, start, rows, stacked_source(read, found, inventory, rows, device="cpu", dtype=dtype)


def loss_of(found, inventory, start, stacked):
    """The loss that the target is learned by: without a head, agreement with its source."""
    dtype = next(iter(stacked.values())).dtype
    source = MeasuredModel(library=LibraryModel(found, start.source), parameters=named_source(inventory, stacked))
    return objective_of(LibraryModel(found, start.target), source, initial_operator(start), dtype=dtype)


@pytest.mark.parametrize(("keying", "tie"), [("shared", None), ("source", None), ("target", None), ("source", "paper")])
@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_row_by_row_are_those_of_the_whole(family: str, keying: str, tie: str | None) -> None:
    """The two-pass gradient against autograd through growth and model at once, in float64."""
    found, inventory, start, rows, stacked = prepared(
        family, dtype=torch.float64, keying=keying, tie=tie, depth="stack"
    )
    operator, parameters = learned_arrays(
        learnable(initial_operator(start, dtype=np.float64), found), found, "cpu", torch.float64
    )
    grower = Grower(operator, found, dtype=torch.float64, fetch=fetch_from(stacked))
    target, loss = GrownTarget(grower, rows, stacked), loss_of(found, inventory, start, stacked)
    tokens = on_device(Slices(family).train.take(range(4)), "cpu", torch.float64)
    leaves = target.tensors(leaves=True)
    loss(leaves, tokens).backward()
    target.backward(leaves)
    ours = {
        name: parameter.grad.clone() if parameter.grad is not None else torch.zeros_like(parameter)
        for name, parameter in parameters.items()
    }
    whole = {}
    for row in rows:
        layers = grower.grow_stacked(row, stacked[row.pattern])
        for at, layer in enumerate(found.layers(row, start.target)):
            whole[row.name(layer)] = layers[at]
    theirs = torch.autograd.grad(
        loss(whole, tokens), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    for (name, gradient), expected in zip(ours.items(), theirs, strict=True):
        # The library's own float32 steps (RMSNorm, softmax) leave float32 noise in a float64 model.
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max() + 1), msg=name)


@pytest.mark.parametrize("family", CONFIGS)
def test_learning_lowers_the_loss(family: str) -> None:
    # An encoder is learned to agree with its source: there is something to learn where it does not begin by agreeing.
    width = "net2net" if family_of(config_of(family)).task == "encoder" else "lemon"
    found, inventory, start, rows, stacked = prepared(family, width=width)
    slices, initial = Slices(family), initial_operator(start)
    loss = loss_of(found, inventory, start, stacked)
    learned, outcome = fit(initial, found, inventory, stacked, slices, settings(), objective=loss)
    before, after = (
        mean_loss(
            loss,
            GrownTarget(Grower(operator, found, fetch=fetch_from(stacked)), rows, stacked).tensors(),
            slices.test,
            batch_size=8,
            device="cpu",
            dtype=torch.float32,
        )
        for operator in (initial, learned)
    )
    # Nats, or, of an encoder, a share of its states' own size.
    assert after < (0.9 * before if found.task == "encoder" else before - 0.05)
    assert outcome.best_step > 0


def test_the_same_seed_learns_the_same_operator() -> None:
    found, inventory, start, _, stacked = prepared("gpt2")
    one, two, other = (
        dict(
            fit(initial_operator(start), found, inventory, stacked, Slices(), settings(seed=seed, steps=4))[0].arrays()
        )
        for seed in (0, 0, 1)
    )
    assert all(np.array_equal(array, two[name]) for name, array in one.items())
    assert any(not np.array_equal(array, other[name]) for name, array in one.items())


def test_micro_batches_sum_to_the_batch() -> None:
    found, inventory, start, _, stacked = prepared("gpt2")
    whole, parts = (
        fit(initial_operator(start), found, inventory, stacked, Slices(), settings(micro_batch_size=size, steps=3))[1]
        for size in (8, 3)
    )
    for one, two in zip(whole.log, parts.log, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)


def test_a_rate_that_destroys_leaves_the_start() -> None:
    found, inventory, start, _, stacked = prepared("gpt2")
    learned, outcome = fit(
        initial_operator(start),
        found,
        inventory,
        stacked,
        Slices(),
        settings(width_rate=30.0, depth_rate=30.0, steps=5),
    )
    assert outcome.best_step == 0
    assert outcome.best_loss is not None
    # Far worse, or no number at all.
    assert not outcome.log[-1]["validation_loss"] <= outcome.best_loss
    same = dict(learnable(initial_operator(start), found).arrays())
    assert all(np.array_equal(array, same[name]) for name, array in learned.arrays())


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.slow
def test_bfloat16_arithmetic_learns_too(family: str) -> None:
    width = "net2net" if family_of(config_of(family)).task == "encoder" else "lemon"
    found, inventory, start, _, stacked = prepared(family, width=width)
    loss = loss_of(found, inventory, start, stacked)
    _, outcome = fit(
        initial_operator(start), found, inventory, stacked, Slices(family), settings(autocast=True), objective=loss
    )
    assert outcome.log[-1]["loss"] < outcome.log[0]["loss"]


CERTIFICATES = [
    ("lemon", "identity", "exact", None),
    ("lemon", "stack", "lossy", 2),
    ("net2net", "identity", "lossy", 0),
]


@pytest.mark.parametrize(("width", "depth", "verdict", "departs"), CERTIFICATES)
def test_a_certificate_says_what_growth_kept_and_where_it_departs(
    width: str, depth: str, verdict: str, departs: int | None
) -> None:
    found, inventory, start, rows, stacked = prepared("gpt2", width=width, depth=depth)
    operator = initial_operator(start)
    old = MeasuredModel(library=LibraryModel(found, start.source), parameters=named_source(inventory, stacked))
    grown = GrownTarget(Grower(operator, found, fetch=fetch_from(stacked)), rows, stacked).tensors()
    new = MeasuredModel(library=LibraryModel(found, start.target), parameters=grown)
    depths = {axis: layers.source for axis, layers in start.depths.items()}
    result = certificate(old, new, operator, depths, Slices().test, batch_size=3, dtype=torch.float32)
    assert result["verdict"] == verdict == start.verdict
    assert result["tokens"] == 80
    assert (result["max_logit_difference"] <= 1e-4 * max(1, result["logit_scale"])) == (verdict == "exact")
    if departs is None or departs == 0:
        assert result["departs_at"] == departs
    else:
        assert result["departs_at"] is None or result["departs_at"] >= 1


def test_a_broken_weight_is_no_preservation() -> None:
    found, inventory, start, rows, stacked = prepared("gpt2")
    operator = initial_operator(start)
    grown = GrownTarget(Grower(operator, found, fetch=fetch_from(stacked)), rows, stacked).tensors()
    grown["transformer.h.0.mlp.c_fc.bias"] = grown["transformer.h.0.mlp.c_fc.bias"] * float("nan")
    old = MeasuredModel(library=LibraryModel(found, start.source), parameters=named_source(inventory, stacked))
    new = MeasuredModel(library=LibraryModel(found, start.target), parameters=grown)
    result = certificate(
        old, new, operator, {"layer": start.depths["layer"].source}, Slices().test, batch_size=8, dtype=torch.float32
    )
    assert result["verdict"] == "lossy"
    assert np.isnan(result["max_logit_difference"])


def test_when_bfloat16_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert autocast_pays("cpu", "auto", width=1024)
    assert not autocast_pays("cpu", "auto", width=64)
    assert autocast_pays("cpu", "bfloat16", width=64)
    assert not autocast_pays("cpu", "float32", width=1024)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert not autocast_pays("cpu", "auto", width=1024)


def test_a_masked_loss_is_the_same_whatever_the_batches() -> None:
    """A mean over masked tokens, not a mean of the batches' means: rows differ in how many tokens they ask for."""
    config = config_of("bert")
    model = LibraryModel(family_of(config), config)
    parameters = state_of(config, model_of(config, dtype=torch.float32))
    ids = np.random.default_rng(0).integers(3, 29, size=(6, 10))
    labels = np.where(np.arange(10) < np.array([[1], [9], [2], [10], [1], [5]]), ids, -100)
    examples = ArrayExamples(arrays={"input_ids": ids, "labels": labels})
    losses = [
        mean_loss(model.loss, parameters, examples, batch_size=size, device="cpu", dtype=torch.float32)
        for size in (1, 4, 6)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)

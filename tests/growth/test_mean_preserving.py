"""New entries that carry the mean: signs that balance, norms that find the old statistics, and how near the function stays."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import (
    config_of,
    empty_model,
    family_of,
    grown_state,
    logits,
    model_of,
    start_of,
    state_of,
    target_model,
)

from ligo_convert.growth.apply import Grower
from ligo_convert.growth.initialize import initial_operator, learnable
from ligo_convert.growth.maps import mean_preserving_cells, mean_preserving_signs, mean_preserving_weight
from ligo_convert.growth.width_methods import WidthRequest, preserves_mean, width_claim
from ligo_convert.training.fit import GrownTarget, fetch_from

# Wide enough for signs of their own in every norm of two layers, beside a head that changes nothing.
WIDER = {"hidden_size": 24, "num_attention_heads": 3}


@given(norms=st.integers(1, 60), sets=st.integers(1, 3))
def test_every_run_of_signs_sums_to_zero(norms: int, sets: int) -> None:
    new = sets << norms.bit_length()
    signs = mean_preserving_signs(norms, new)
    assert signs.shape == (norms, new)
    assert set(np.unique(signs)) <= {-1.0, 1.0}
    for first, last in itertools.combinations(range(norms + 1), 2):
        assert signs[first:last].prod(0).sum() == 0


def test_entries_of_one_cell_have_the_same_signs() -> None:
    cells = mean_preserving_cells(5, 24)
    assert cells is not None
    signs = mean_preserving_signs(5, 24)
    assert len(np.unique(cells)) == 8
    for one, other in itertools.combinations(range(24), 2):
        assert (cells[one] == cells[other]) == bool((signs[:, one] == signs[:, other]).all())


def test_rounding_grows_tenfold_at_most() -> None:
    for norms in (5, 13, 25, 49):
        assert (1 / mean_preserving_weight(norms)) ** norms == pytest.approx(10)


def source_like_a_trained_one(width: int = 64, layers: int = 3) -> tuple[dict[str, object], torch.nn.Module]:
    """A headless BERT whose gains differ by about a tenth, as those of trained encoders do."""
    sizes = {
        "hidden_size": width,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
    }
    config = {**config_of("bert encoder"), **sizes}
    model = model_of(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.copy_(0.6 + 0.08 * torch.randn_like(parameter))
            elif "LayerNorm.bias" in name:
                parameter.copy_(0.05 * torch.randn_like(parameter))
            elif parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)
    return config, model


def apart(width: str, target: dict[str, object], config: dict[str, object], model: torch.nn.Module) -> float:
    start = start_of("bert encoder", config, target, width=width, depth="identity")
    assert start.verdict == "near"
    grown = target_model(initial_operator(start, dtype=np.float64), state_of(config, model))
    return float((logits(grown) - logits(model)).abs().max())


@pytest.mark.parametrize("target", [{}, {"num_hidden_layers": 5}], ids=["wider", "deeper, too"])
def test_it_is_far_nearer_than_zero(target: dict[str, object]) -> None:
    """At 3/2, on cosines: the error of `zero` is of first order in the mean, this one's of second."""
    config, model = source_like_a_trained_one()
    changes = {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 160, **target}
    preserving, empty = (apart(width, changes, config, model) for width in ("mean-preserving", "zero"))
    assert preserving < 1e-3
    assert preserving < empty / 20


def test_the_first_norm_finds_the_old_mean_and_nearly_the_old_variance() -> None:
    config, model = source_like_a_trained_one()
    changes = {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 128}
    start = start_of("bert encoder", config, changes, width="mean-preserving", depth="copy")
    grown = target_model(initial_operator(start, dtype=np.float64), state_of(config, model))
    seen: dict[str, list[torch.Tensor]] = {"old": [], "new": []}
    for name, one in (("old", model), ("new", grown)):
        for module_name, module in one.named_modules():
            if module_name.endswith("LayerNorm"):
                module.register_forward_hook(lambda _m, inputs, _o, name=name: seen[name].append(inputs[0]))
        logits(one)
    for number, (old, new) in enumerate(zip(seen["old"], seen["new"], strict=True)):
        # Exact at the first norm; behind it up to what variances were off before.
        assert float((new.mean(-1) - old.mean(-1)).abs().max()) < (1e-12 if number == 0 else 1e-3)
        ratio = new.var(-1, correction=0) / old.var(-1, correction=0)
        assert float((ratio / (64 / 96) - 1).abs().max()) < 5e-3


def test_the_last_states_hold_nothing_new() -> None:
    config, model = source_like_a_trained_one()
    start = start_of(
        "bert encoder", config, {"hidden_size": 96, "num_attention_heads": 6}, width="mean-preserving", depth="copy"
    )
    grown = target_model(initial_operator(start, dtype=np.float64), state_of(config, model))
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        old, new = model(input_ids=ids).last_hidden_state, grown(input_ids=ids).last_hidden_state
    assert not new[..., 64:].any()
    torch.testing.assert_close(new[..., :64], old, rtol=0, atol=1e-3)


def test_copies_are_read_apart_and_change_nothing() -> None:
    config, model = source_like_a_trained_one()
    start = start_of(
        "bert encoder", config, {"hidden_size": 96, "num_attention_heads": 6}, width="mean-preserving", depth="copy"
    )
    operator = initial_operator(start, dtype=np.float64)
    reads = operator.terms[0].widths["embed"][0].read.tail
    assert len(np.unique(reads[:, 0])) == len(reads)
    state = state_of(config, model)
    louder = operator.map_arrays(lambda name, array: 3 * array if name == "0/width/embed/0/read.tail" else array)
    one, other = (logits(target_model(found, state)) for found in (operator, louder))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("old", "new", "place", "preserves"),
    [
        (64, 96, "post", True),
        (64, 128, "post", False),  # whole multiples are exact as they are
        (64, 96, "pre", False),  # mean rows are exact
        (64, 70, "post", False),  # fewer new entries than signs are needed
    ],
)
def test_where_the_mean_is_preserved(old: int, new: int, place: str, preserves: bool) -> None:
    asked = WidthRequest(
        axis="embed",
        old=old,
        new=new,
        norm="layernorm",
        tied_head=False,
        seed=0,
        place=place,  # type: ignore[arg-type]
        norms=7,
    )
    assert preserves_mean(asked) == preserves
    verdict = width_claim("mean-preserving", asked).verdict
    assert verdict == ("exact" if place == "pre" or new % old == 0 else "near")


def test_with_too_few_new_entries_it_is_zero() -> None:
    config = config_of("bert")
    changes = {"hidden_size": 18}
    model = model_of(config)
    grown = []
    for width in ("mean-preserving", "zero"):
        start = start_of("bert", config, changes, width=width, depth="copy")
        assert start.rewrites == ("centre",)
        grown.append(logits(target_model(initial_operator(start, dtype=np.float64), state_of(config, model))))
    torch.testing.assert_close(grown[0], grown[1], rtol=0, atol=1e-12)


def test_a_mean_preserving_model_is_the_librarys() -> None:
    config = config_of("bert encoder")
    start = start_of("bert encoder", config, WIDER, width="mean-preserving", depth="copy")
    assert start.rewrites == ("mean-preserving",)
    assert family_of(start.target).sizes(start.target)["embed"] == 24
    names = {name for name, _ in empty_model(start.target).named_parameters()}
    grown = target_model(initial_operator(start), dict(model_of(config, dtype=torch.float32).state_dict()))
    assert {name for name, _ in grown.named_parameters()} == names


@pytest.mark.parametrize("keying", ["shared", "source", "target"])
def test_learning_and_streaming_preserve_the_same(keying: str) -> None:
    """Whole rows at once, as the fit grows them, and tensor by tensor, as they are written; every coefficient random."""
    config, model = source_like_a_trained_one()
    family = family_of(config)
    changes = {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 160, "num_hidden_layers": 5}
    start = start_of("bert encoder", config, changes, width="mean-preserving", depth="stack", keying=keying)
    rng = np.random.default_rng(0)

    def noise(name: str, array: np.ndarray) -> np.ndarray:
        return array + 0.1 * rng.normal(size=array.shape) if name.endswith(".tail") or "/depth/" in name else array

    operator = learnable(initial_operator(start, dtype=np.float64), family).map_arrays(noise)
    state, rows = state_of(config, model), family.rows_for(operator.target)
    stacked = {
        row.pattern: torch.stack([state[family.written(row.name(layer))] for layer in family.layers(row, config)])
        for row in rows
    }
    grower = Grower(operator, family, dtype=torch.float64, fetch=fetch_from(stacked))
    learned = {family.written(name): found for name, found in GrownTarget(grower, rows, stacked).tensors().items()}
    for name, tensor in grown_state(operator, state).items():
        torch.testing.assert_close(learned[name], tensor, rtol=1e-12, atol=1e-11)
    # They are not zero: something is added, whatever was learned.
    plain = grown_state(replace(operator, rewrites=()), state)
    assert any(not torch.equal(plain[name], tensor) for name, tensor in learned.items())

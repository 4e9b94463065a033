"""Muon with batched products: the same step as torch's own, however the matrices are batched."""

from __future__ import annotations

import pytest
import torch

from ligo_convert.training import muon
from ligo_convert.training.muon import BatchedMuon

# Two shapes that are each other's transpose, in mixed order, and one matrix without a gradient.
SHAPES = [(8, 24), (24, 8), (8, 24), (16, 16), (8, 24), (24, 8), (4, 4)]


def parameters() -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    made = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    for parameter in made[:-1]:
        parameter.grad = torch.randn(parameter.shape, generator=draw)
    return made


def moved(optimizer: torch.optim.Optimizer, own: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Three steps with the same gradients; how far each matrix has moved."""
    before = [parameter.detach().clone() for parameter in own]
    for _ in range(3):
        optimizer.step()
    return [parameter.detach() - start for parameter, start in zip(own, before, strict=True)]


def batched(own: list[torch.nn.Parameter]) -> BatchedMuon:
    return BatchedMuon([{"params": own, "lr": 0.02, "weight_decay": 0.1}], momentum=0.9)


def test_a_step_is_that_of_torch() -> None:
    ours, theirs = parameters(), parameters()
    found = moved(batched(ours), ours)
    wanted = moved(
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"), theirs
    )
    for one, other in zip(found[:-1], wanted[:-1], strict=True):
        # torch takes the Newton-Schulz steps in bfloat16, which has eight bits: a step differs by about a hundredth of itself.
        assert (one - other).norm() < 0.03 * other.norm()
    assert not found[-1].any()


def test_the_state_is_that_of_torch() -> None:
    ours, theirs = parameters(), parameters()
    one, other = batched(ours), torch.optim.Muon(theirs, lr=0.02, momentum=0.9)
    one.step()
    other.step()
    for mine, its in zip(ours, theirs, strict=True):
        assert one.state[mine].keys() == other.state[its].keys()
        for key, value in one.state[mine].items():
            assert torch.equal(value, other.state[its][key]), key


@pytest.mark.parametrize("elements", [1, 200, 400])
def test_the_size_of_a_batch_changes_rounding_only(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parted = parameters(), parameters()
    wanted = moved(batched(whole), whole)
    monkeypatch.setattr(muon, "BATCH_ELEMENTS", elements)
    for one, other in zip(moved(batched(parted), parted), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_batch_stays_within_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "BATCH_ELEMENTS", 400)
    sizes = [[parameter.numel() for parameter in batch] for batch in muon._batches(list(parameters()))]
    assert sizes == [[192, 192], [192], [192, 192], [256], [16]]


def test_a_closure_is_refused() -> None:
    with pytest.raises(NotImplementedError):
        batched(parameters()).step(lambda: 0.0)

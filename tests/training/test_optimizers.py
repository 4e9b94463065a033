"""The optimizers of a run: Muon by its rule, AdamW beside it, their state stored and read."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ligo_convert.errors import MachineError
from ligo_convert.training.optimizers import (
    Group,
    Moments,
    Optimizers,
    read_moments,
    require_optimizer,
    stored_moments,
)
from ligo_convert.training.runs import OPTIMIZERS, OptimizerName, OptimizerSettings

RATE, DECAY = 0.02, 0.1
SETTINGS = OptimizerSettings(name="muon", weight_decay=DECAY)
# Coefficients of the Newton-Schulz iteration (Jordan et al., 2024).
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Five Newton-Schulz steps on the wider side, in float64: singular values near one."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    found = wide / max(np.linalg.norm(wide), 1e-7)
    for _ in range(5):
        gram = found @ found.T
        found = A * found + (B * gram + C * gram @ gram) @ found
    return found if matrix.shape[0] <= matrix.shape[1] else found.T


def muon_steps(start: np.ndarray, gradients: list[np.ndarray], factors: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Muon with Nesterov momentum, its update scaled to the root mean square of AdamW's: 0.2 sqrt(max(rows, columns))."""
    weight, momentum = start.astype(np.float64), np.zeros_like(start, dtype=np.float64)
    for gradient, factor in zip(gradients, factors, strict=True):
        momentum = SETTINGS.momentum * momentum + (1 - SETTINGS.momentum) * gradient
        update = orthogonal(SETTINGS.momentum * momentum + (1 - SETTINGS.momentum) * gradient)
        rate = RATE * factor
        weight = weight * (1 - rate * DECAY) - rate * 0.2 * math.sqrt(max(start.shape)) * update
    return weight, momentum


def group(name: str, rule: OptimizerName, *shapes: tuple[int, ...]) -> Group:
    draw = torch.Generator().manual_seed(len(name))
    parameters = {
        f"{name}.{number}": torch.nn.Parameter(torch.randn(shape, generator=draw))
        for number, shape in enumerate(shapes)
    }
    return Group(name=name, parameters=parameters, learning_rate=RATE, weight_decay=DECAY, rule=rule)


def groups() -> list[Group]:
    return [group("hidden", "muon", (6, 6), (4, 12), (9, 3)), group("others", "adamw", (5, 4), (7,))]


def gradients_of(parts: list[Group], step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    named = {name: parameter for part in parts for name, parameter in part.parameters.items()}
    return {name: torch.randn(parameter.shape, generator=draw) for name, parameter in named.items()}


def take(optimizers: Optimizers, parts: list[Group], steps: range, *, without: str = "") -> None:
    for step in steps:
        optimizers.zero_grad()
        drawn = gradients_of(parts, step)
        for part in parts:
            for name, parameter in part.parameters.items():
                parameter.grad = None if name == without else drawn[name].clone()
        optimizers.step(1 / (step + 1))


def test_muon_follows_its_rule() -> None:
    parts = groups()
    starts = {name: parameter.detach().numpy().copy() for name, parameter in parts[0].parameters.items()}
    optimizers = Optimizers(parts, SETTINGS, fused=False)
    take(optimizers, parts, range(4))
    for name, parameter in parts[0].parameters.items():
        gradients = [gradients_of(parts, step)[name].numpy() for step in range(4)]
        weight, momentum = muon_steps(starts[name], gradients, [1, 1 / 2, 1 / 3, 1 / 4])
        moved = np.abs(weight - starts[name]).max()
        np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=0, atol=1e-4 * moved, err_msg=name)
        np.testing.assert_allclose(optimizers.moments()[name]["momentum_buffer"].numpy(), momentum, atol=1e-6)


def test_adamw_beside_muon_is_adamw_alone() -> None:
    both, alone = groups(), groups()[1:]
    take(Optimizers(both, SETTINGS, fused=False), both, range(3))
    parameters = list(alone[0].parameters.values())
    plain = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY)
    for step in range(3):
        drawn = gradients_of(groups(), step)
        for name, parameter in alone[0].parameters.items():
            parameter.grad = drawn[name]
        for one in plain.param_groups:
            one["lr"] = RATE / (step + 1)
        plain.step()
    for name, parameter in alone[0].parameters.items():
        assert torch.equal(parameter, both[1].parameters[name]), name


@pytest.mark.parametrize("fused", [True, False])
def test_a_stored_state_goes_on_with_the_same_bits(fused: bool) -> None:
    """Through the arrays of a state file; a parameter without a gradient so far has no state, and keeps none."""
    whole, parts = groups(), groups()
    straight = Optimizers(whole, SETTINGS, fused=fused)
    take(straight, whole, range(3), without="others.1")
    take(straight, whole, range(3, 6))
    first = Optimizers(parts, SETTINGS, fused=fused)
    take(first, parts, range(3), without="others.1")
    arrays, steps = stored_moments(first.moments())
    assert set(steps) == {"others.0"}
    assert set(arrays) == {"first/others.0", "second/others.0", *(f"momentum/hidden.{number}" for number in range(3))}
    second = Optimizers(parts, SETTINGS, fused=fused)
    second.set_moments(read_moments({name: array.copy() for name, array in arrays.items()}, steps))
    take(second, parts, range(3, 6))
    for ours, theirs in zip(parts, whole, strict=True):
        for name in ours.parameters:
            assert torch.equal(ours.parameters[name], theirs.parameters[name]), name
    same(second.moments(), straight.moments())


def same(found: Moments, wanted: Moments) -> None:
    assert found.keys() == wanted.keys()
    for name, state in wanted.items():
        assert found[name].keys() == state.keys()
        assert all(torch.equal(found[name][key], value) for key, value in state.items()), name


def test_a_state_goes_through_a_file_unchanged() -> None:
    parts = groups()
    optimizers = Optimizers(parts, SETTINGS, fused=False)
    assert optimizers.moments() == {}
    take(optimizers, parts, range(2))
    same(read_moments(*stored_moments(optimizers.moments())), optimizers.moments())


def test_a_torch_without_muon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPTIMIZERS:
        require_optimizer(name)
    monkeypatch.delattr(torch.optim, "Muon")
    require_optimizer("adamw")
    for attempt in (lambda: require_optimizer("muon"), lambda: Optimizers(groups(), SETTINGS, fused=False)):
        with pytest.raises(MachineError, match="no Muon") as error:
            attempt()
        assert error.value.exit_code == 5
        assert "adamw" in error.value.hint

"""The training loop: it learns, keeps the best, and goes on after a stop as if there had been none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ligo_convert.training.loop import train
from ligo_convert.training.optimizers import Group
from ligo_convert.training.schedules import Schedule


class Stop(Exception):
    pass


class Kept:
    """A state store in memory that saves after every step, and stops the run after `limit` saves."""

    def __init__(self, limit: int | None = None) -> None:
        self.state: tuple[dict[str, np.ndarray], str] | None = None
        self.limit = limit

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        self.state = ({name: array.copy() for name, array in arrays.items()}, text)

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        return self.state


def problem(seed: int = 0) -> tuple[torch.nn.Parameter, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(4, generator=generator)), torch.randn(4, generator=generator)


def run(store: Kept | None = None, *, stop_at: int | None = None, steps: int = 12, **group: object):
    weights, goal = problem()

    def gradients(step: int) -> float:
        if step == stop_at:
            raise Stop
        noise = torch.Generator().manual_seed(step)
        loss = ((weights - goal + 0.1 * torch.randn(4, generator=noise)) ** 2).sum()
        loss.backward()
        return float(loss.detach())

    outcome = train(
        [Group(name="all", parameters={"weights": weights}, learning_rate=0.1, **group)],  # type: ignore[arg-type]
        gradients,
        schedule=Schedule(steps=steps, warmup=2),
        tokens_a_step=1,
        validate=lambda: float(((weights.detach() - goal) ** 2).sum()),
        validate_every=3,
        store=store,
    )
    return outcome, weights.detach().clone()


def test_it_learns_and_keeps_the_best() -> None:
    outcome, _ = run()
    _, goal = problem()
    losses = [line["validation_loss"] for line in outcome.log if "validation_loss" in line]
    assert len(outcome.log) == 12
    assert outcome.best_loss is not None
    assert outcome.best_loss <= min(losses)
    assert float(((outcome.best["weights"] - goal) ** 2).sum()) == pytest.approx(outcome.best_loss)


def test_a_start_that_nothing_beats_is_kept() -> None:
    weights = torch.nn.Parameter(torch.zeros(2))

    def gradients(step: int) -> float:
        weights.grad = torch.ones(2)
        return 0.0

    outcome = train(
        [Group(name="all", parameters={"weights": weights}, learning_rate=0.1)],
        gradients,
        schedule=Schedule(steps=5, warmup=0),
        tokens_a_step=1,
        validate=lambda: float(weights.detach().abs().sum()),
        validate_every=1,
    )
    assert outcome.best_step == 0
    assert not outcome.best["weights"].any()


def test_a_validation_loss_that_is_no_number_is_never_the_best() -> None:
    weights = torch.nn.Parameter(torch.zeros(2))
    losses = iter([1.0, float("nan"), 2.0])

    def gradients(step: int) -> float:
        weights.grad = torch.ones(2)
        return 0.0

    outcome = train(
        [Group(name="all", parameters={"weights": weights}, learning_rate=0.1)],
        gradients,
        schedule=Schedule(steps=2, warmup=0),
        tokens_a_step=1,
        validate=lambda: next(losses),
        validate_every=1,
    )
    assert (outcome.best_step, outcome.best_loss) == (0, 1.0)


@pytest.mark.parametrize("at", [1, 5, 11])
def test_stopped_and_gone_on_is_as_if_never_stopped(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ligo_convert.training.loop.SAVE_EVERY_SECONDS", -1.0)
    whole, weights = run(Kept())
    store = Kept()
    with pytest.raises(Stop):
        run(store, stop_at=at)
    again, resumed = run(store)
    assert torch.equal(resumed, weights)
    assert torch.equal(again.best["weights"], whole.best["weights"])
    assert (again.best_step, again.best_loss) == (whole.best_step, whole.best_loss)
    untimed = [{key: value for key, value in line.items() if key != "seconds"} for line in again.log]
    assert untimed == [{key: value for key, value in line.items() if key != "seconds"} for line in whole.log]


def test_decay_draws_to_the_anchor() -> None:
    weights = torch.nn.Parameter(torch.full((2,), 3.0))
    anchor = torch.ones(2)

    def gradients(step: int) -> float:
        weights.grad = torch.zeros(2)
        return 0.0

    train(
        [Group(name="a", parameters={"w": weights}, learning_rate=0.5, weight_decay=1.0, anchor={"w": anchor})],
        gradients,
        schedule=Schedule(steps=1, warmup=0),
        tokens_a_step=1,
    )
    assert torch.allclose(weights.detach(), torch.full((2,), 2.0)), "half way from 3 to 1"


def test_a_parameter_without_a_gradient_is_a_mistake() -> None:
    weights = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(AssertionError, match="no gradient reaches"):
        train(
            [Group(name="a", parameters={"w": weights}, learning_rate=0.5)],
            lambda step: 0.0,
            schedule=Schedule(steps=1, warmup=0),
            tokens_a_step=1,
        )


def test_schedules() -> None:
    cosine = [Schedule(steps=10, warmup=2).factor(step) for step in range(10)]
    assert cosine[0] == 0.5
    assert cosine[1] == cosine[2] == 1.0
    assert all(a > b for a, b in itertools.pairwise(cosine[2:]))
    stable = [Schedule(steps=10, warmup=0, shape="stable").factor(step) for step in range(10)]
    assert stable[:8] == [1.0] * 8
    assert stable[9] == pytest.approx(0.5)

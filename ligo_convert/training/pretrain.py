"""Train a small source from scratch, for recipes without a pretrained one.

Input: a family, a config, data splits.
Output: the trained tensors by name. Weights are initialised as the library does; the loss is the task's own; the schedule is
warmup-stable-decay (Hu et al., arXiv:2404.06395); there is no dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ligo_convert.data.examples import DataSplits
from ligo_convert.families.schema import Family
from ligo_convert.growth.apply import drawn_values
from ligo_convert.training.functional_model import LibraryModel, mean_loss
from ligo_convert.training.loop import StateStore, TrainResult, train
from ligo_convert.training.optimizers import Group
from ligo_convert.training.schedules import Schedule
from ligo_convert.training.tasks import on_device

WEIGHT_DECAY = 0.1


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Settings of the training of a source.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences or images per step.
        tokens_a_step: tokens of one step, for the log.
        learning_rate: AdamW's peak learning rate.
        seed: seed of the initial weights and of the data order.
        order: order of the data, see `DataSplits.batch`.
        autocast: whether to compute in bfloat16.
    """

    steps: int
    batch_size: int
    tokens_a_step: int
    learning_rate: float
    seed: int
    order: str
    autocast: bool


def drawn_model(family: Family, config: Mapping[str, object], *, seed: int) -> dict[str, np.ndarray]:
    """Return every tensor of a model of `config`, initialised as the library does."""
    return {
        spec.name: drawn_values(family, config, row, layer, spec.shape, seed)
        for row, layer, spec in family.tensors_of(family.rows_for(config), config, dtype="F32")
    }


def pretrain(
    family: Family,
    config: Mapping[str, object],
    slices: DataSplits,
    settings: PretrainSettings,
    *,
    device: str,
    store: StateStore | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[dict[str, torch.Tensor], TrainResult, float]:
    """Train a model of `config` on its task.

    Args:
        slices: training, validation and test data.
        store: where the training state is kept, so that a run can resume.
        on_step: called after every step with the number of finished steps and the log line.

    Returns:
        The tensors by canonical name (float32), how training went, and the mean loss on the validation slice, in nats.
    """
    model = LibraryModel(family, config, device=device)
    parameters = {
        name: torch.nn.Parameter(torch.tensor(values, device=device))
        for name, values in drawn_model(family, config, seed=settings.seed).items()
    }

    def gradients(step: int) -> float:
        batch = on_device(
            slices.batch(step, batch_size=settings.batch_size, seed=settings.seed, order=settings.order),
            device,
            torch.float32,
        )
        with torch.autocast(device, dtype=torch.bfloat16, enabled=settings.autocast):
            loss = model.loss(parameters, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    # Weight decay acts on matrices only, as is usual for transformers.
    matrices = {name: parameter for name, parameter in parameters.items() if parameter.ndim > 1}
    vectors = {name: parameter for name, parameter in parameters.items() if parameter.ndim == 1}
    outcome = train(
        [
            Group(
                name="matrices", parameters=matrices, learning_rate=settings.learning_rate, weight_decay=WEIGHT_DECAY
            ),
            Group(name="vectors", parameters=vectors, learning_rate=settings.learning_rate),
        ],
        gradients,
        schedule=Schedule(steps=settings.steps, warmup=max(1, min(100, settings.steps // 10)), shape="stable"),
        tokens_a_step=settings.tokens_a_step,
        store=store,
        on_step=on_step,
    )
    final = {name: parameter.detach() for name, parameter in parameters.items()}
    loss = mean_loss(
        model.loss,
        final,
        slices.validation,
        batch_size=settings.batch_size,
        device=device,
        dtype=torch.float32,
        autocast=settings.autocast,
    )
    return final, outcome, loss

"""Fit the growth operator M: min over M of E L(x; M(source)) (LiGO, arXiv:2303.00980, eq. 5).

Input: an initial operator, source tensors, data splits.
Output: the operator of the best step on the validation slice. The loss is the target's own, from the library's model; its gradient
reaches the operator through growth.

Memory: the target's weights and their gradients, the source, the operator with its two moments. Growth stores nothing for the
backward pass: rows are grown without a graph, and grown again, one row at a time, once their gradients are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ligo_convert.checkpoints.torch_io import tensor_from_bytes
from ligo_convert.data.examples import Batch, Examples
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.notation import first_layer
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.initialize import learnable
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.rewrites import Fetch
from ligo_convert.growth.stream import Read, source_name, stored_dtypes
from ligo_convert.training.functional_model import LibraryModel, Objective, backward_in_parts, mean_loss
from ligo_convert.training.loop import StateStore, TrainResult, train
from ligo_convert.training.optimizers import Group
from ligo_convert.training.schedules import Schedule
from ligo_convert.training.tasks import on_device

Tensors = dict[str, torch.Tensor]


class SplitSource(Protocol):
    """The part of `DataSplits` that a fit uses."""

    @property
    def validation(self) -> Examples: ...

    def batch(self, step: int, *, batch_size: int, seed: int) -> Batch: ...


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Settings of a fit.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences or images per step.
        micro_batch_size: sequences or images per forward pass.
        tokens_a_step: tokens of one step, for the log.
        width_rate: AdamW's peak learning rate of the width maps.
        depth_rate: AdamW's peak learning rate of the depth weights.
        weight_decay: decay of the width maps towards the initial operator.
        warmup_steps: steps of linear warmup.
        seed: seed of the data order.
        evaluate_every: steps between validation losses.
        autocast: whether to compute in bfloat16.
    """

    steps: int
    batch_size: int
    micro_batch_size: int
    tokens_a_step: int
    width_rate: float
    depth_rate: float
    weight_decay: float
    warmup_steps: int
    seed: int
    evaluate_every: int
    autocast: bool


def stacked_source(
    read: Read, family: Family, inventory: Inventory, rows: tuple[Row, ...], *, device: str, dtype: torch.dtype
) -> Tensors:
    """Load the source: row pattern -> [source layers, ...] ([1, ...] for a row without a depth axis).

    Args:
        rows: rows of the target. Those that the source can fill are loaded as well, such as an untied head from a tied embedding.
    """
    stacked = {}
    for row in dict.fromkeys((*inventory.rows, *rows)):
        if not stored_dtypes(family, inventory, row):
            continue
        layers = []
        for layer in family.layers(row, inventory.config):
            spec = source_name(family, inventory, row, layer)
            layers.append(tensor_from_bytes(read(spec.name), spec).to(device=device, dtype=dtype))
        stacked[row.pattern] = torch.stack(layers)
    return stacked


def fetch_from(stacked: Tensors) -> Fetch:
    """Return a function that looks up a tensor of a stacked source."""
    return lambda pattern, layer: stacked[pattern][(layer or 0) - first_layer(pattern)]


def named_source(inventory: Inventory, stacked: Tensors) -> Tensors:
    """Return the stacked source by canonical tensor name, as `LibraryModel` takes it."""
    return {
        row.name(layer): stacked[row.pattern][row.index(layer)]
        for row in inventory.rows
        for layer in inventory.family.layers(row, inventory.config)
    }


class LearnedTarget(Protocol):
    """The target's tensors as a function of parameters that are learned."""

    family: Family
    config: Mapping[str, object]
    rows: tuple[Row, ...]
    dtype: torch.dtype

    def tensors(self, *, leaves: bool = False) -> Tensors:
        """Return every target tensor by name. With `leaves`, each is a leaf that collects its own gradient."""
        ...

    def backward(self, leaves: Tensors) -> None:
        """Propagate the gradients of the target's tensors to the parameters, and free them."""
        ...


class GrownTarget:
    """The target's tensors as a function of the operator, computed row by row."""

    def __init__(self, grower: Grower, rows: tuple[Row, ...], stacked: Tensors) -> None:
        self.grower, self.rows, self.stacked = grower, rows, stacked
        self.family, self.config, self.dtype = grower.family, grower.operator.target, grower.dtype

    def _source(self, row: Row) -> torch.Tensor:
        # A row initialised at random uses nothing of the source.
        return self.stacked.get(row.pattern, torch.empty(0))

    def tensors(self, *, leaves: bool = False) -> Tensors:
        """Return every target tensor by name. With `leaves`, each is a leaf that collects its own gradient."""
        grown: Tensors = {}
        with torch.no_grad():
            for row in self.rows:
                layers = self.grower.grow_stacked(row, self._source(row))
                for at, layer in enumerate(self.family.layers(row, self.config)):
                    grown[row.name(layer)] = layers[at]
        if leaves:
            for tensor in grown.values():
                tensor.requires_grad_()
        return grown

    def backward(self, leaves: Tensors) -> None:
        """Propagate the gradients of the target's tensors to the operator, one row at a time, and free them."""
        for row in self.rows:
            gradients = []
            for layer in self.family.layers(row, self.config):
                tensor = leaves[row.name(layer)]
                # A tensor that the loss does not use has no gradient, such as the pooler of a masked language model.
                gradients.append(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)
                tensor.grad = None
            grown = self.grower.grow_stacked(row, self._source(row))
            if grown.requires_grad:
                grown.backward(torch.stack(gradients))  # type: ignore[no-untyped-call]


def learned_arrays(
    operator: Operator, family: Family, device: str, dtype: torch.dtype
) -> tuple[Operator, dict[str, torch.nn.Parameter]]:
    """Return the operator with its learned arrays as parameters: dense maps, and depth matrices of rows with a depth axis.

    A LayerScale is not learned: it only multiplies its branch, and the maps of the branch are learned.
    """
    scales = {row.pattern for row in family.rows if family.is_scale(row)}
    parameters: dict[str, torch.nn.Parameter] = {}

    def parameter(name: str, array: Any) -> Any:
        is_map = name.endswith(".tail") and not name.endswith("/scale.tail") and array.shape[0] > 0
        is_depth = "/depth/" in name and "{" in name and name.partition("/depth/")[2] not in scales
        if not (is_map or is_depth):
            return array
        parameters[name] = torch.nn.Parameter(torch.tensor(array, dtype=dtype, device=device))
        return parameters[name]

    return operator.map_arrays(parameter), parameters


def fit(
    initial: Operator,
    family: Family,
    inventory: Inventory,
    stacked: Tensors,
    slices: SplitSource,
    settings: FitSettings,
    *,
    objective: Objective | None = None,
    device: str = "cpu",
    store: StateStore | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[Operator, TrainResult]:
    """Fit the operator, starting from `initial`.

    Args:
        stacked: source tensors from `stacked_source`.
        objective: the loss; None for the target's task loss.
        store: where the training state is kept, so that a run can resume.
        on_step: called after every step with the number of finished steps and the log line.

    Returns:
        The operator with the lowest validation loss, in dense form, and how training went.
    """
    dtype = next(iter(stacked.values())).dtype
    dense, parameters = learned_arrays(learnable(initial, family), family, device, dtype)
    grower = Grower(dense, family, device=device, dtype=dtype, fetch=fetch_from(stacked), keep_drawn=True)
    target = GrownTarget(grower, family.rows_for(initial.target), stacked)
    depth = {name: parameter for name, parameter in parameters.items() if "/depth/" in name}
    width = {name: parameter for name, parameter in parameters.items() if name not in depth}
    outcome = learn(
        target, width, depth, slices, settings, objective=objective, device=device, store=store, on_step=on_step
    )
    best = outcome.best
    learned = learnable(initial, family).map_arrays(
        lambda name, array: best[name].cpu().numpy() if name in best else array
    )
    return learned, outcome


def learn(
    target: LearnedTarget,
    width: dict[str, torch.nn.Parameter],
    depth: dict[str, torch.nn.Parameter],
    slices: SplitSource,
    settings: FitSettings,
    *,
    objective: Objective | None,
    device: str,
    store: StateStore | None,
    on_step: Callable[[int, dict[str, Any]], None] | None,
) -> TrainResult:
    """Train the parameters that a target's tensors are a function of; the best of the validation split are in the result.

    Args:
        width: parameters of the maps of entries, trained at `settings.width_rate`.
        depth: parameters of the mixtures of layers and of modules, trained at `settings.depth_rate`.
    """
    if objective is None:
        model = LibraryModel(target.family, target.config, device=device)
        model.check_table(target.rows)
        objective = model.loss
    measured, dtype = objective, target.dtype

    def gradients(step: int) -> float:
        batch = on_device(slices.batch(step, batch_size=settings.batch_size, seed=settings.seed), device, dtype)
        leaves = target.tensors(leaves=True)
        total = backward_in_parts(
            measured,
            leaves,
            batch,
            micro_batch_size=settings.micro_batch_size,
            device=device,
            autocast=settings.autocast,
        )
        target.backward(leaves)
        return total

    def validate() -> float:
        return mean_loss(
            measured,
            target.tensors(),
            slices.validation,
            batch_size=settings.micro_batch_size,
            device=device,
            dtype=dtype,
            autocast=settings.autocast,
        )

    groups = [
        Group(
            name="width",
            parameters=width,
            learning_rate=settings.width_rate,
            weight_decay=settings.weight_decay,
            anchor={name: parameter.detach().clone() for name, parameter in width.items()}
            if settings.weight_decay
            else None,
        ),
        Group(name="depth", parameters=depth, learning_rate=settings.depth_rate),
    ]
    return train(
        [group for group in groups if group.parameters],
        gradients,
        schedule=Schedule(steps=settings.steps, warmup=settings.warmup_steps),
        tokens_a_step=settings.tokens_a_step,
        validate=validate,
        validate_every=settings.evaluate_every,
        store=store,
        on_step=on_step,
    )


# From this stream width on, a bfloat16 step is faster on a processor with AMX; below, there is no difference (docs/development/log.md).
AUTOCAST_WIDTH = 256


def autocast_pays(device: str, precision: str, *, width: int) -> bool:
    """Return whether to compute in bfloat16: as the recipe says, or, for `auto`, where it is faster.

    Args:
        precision: `fit.precision` of the recipe.
        width: width of the residual stream.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Older versions of torch do not report the processor's capabilities.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16")) and width >= AUTOCAST_WIDTH

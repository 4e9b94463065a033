"""Learning the operator: min over M of E L(x; M(source)), LiGO, arXiv:2303.00980, eq. 5.

What comes in: an initial operator, source tensors, a slice of data. What goes out: the operator of the best step on the validation
slice. The loss is the target's own, from the library's model; its gradient reaches the operator through growth.

Memory: the target's weights and their gradients, the source, the operator with its two moments. Growth keeps nothing for the backward
pass: rows are grown without a graph, and grown once more, one row at a time, when their gradients are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ligo_convert.checkpoints.torch_io import tensor_from_bytes
from ligo_convert.data.examples import Batch, Examples
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.initialize import learnable
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.rewrites import Fetch
from ligo_convert.growth.stream import Read, source_name, stored_dtypes
from ligo_convert.training.functional_model import LibraryModel, Objective, backward_in_parts, mean_loss
from ligo_convert.training.loop import Group, StateStore, TrainResult, train
from ligo_convert.training.schedules import Schedule
from ligo_convert.training.tasks import on_device

Tensors = dict[str, torch.Tensor]


class SplitSource(Protocol):
    """What learning needs of a data slice."""

    @property
    def validation(self) -> Examples: ...

    def batch(self, step: int, *, batch_size: int, seed: int) -> Batch: ...


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The recipe's `fit`, defaults filled in. Rates are AdamW's; one for width maps, one for depth weights."""

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
    """The source in memory: row pattern -> [old layers, ...] ([1, ...] for a row without a depth axis).

    Args:
        rows: the target's; those that the source has (an untied head too, which is its embedding) are there beside its own.
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
    """Any tensor of a stacked source."""
    return lambda pattern, layer: stacked[pattern][layer or 0]


def named_source(inventory: Inventory, stacked: Tensors) -> Tensors:
    """The stacked source by its canonical tensor names, as the library's model takes it."""
    return {
        row.name(layer): stacked[row.pattern][layer or 0]
        for row in inventory.rows
        for layer in inventory.family.layers(row, inventory.config)
    }


class GrownTarget:
    """The target as a function of the operator, row by row."""

    def __init__(self, grower: Grower, rows: tuple[Row, ...], stacked: Tensors) -> None:
        self.grower, self.rows, self.stacked = grower, rows, stacked
        self.family, self.config = grower.family, grower.operator.target

    def _source(self, row: Row) -> torch.Tensor:
        # A row that is drawn takes nothing from the source.
        return self.stacked.get(row.pattern, torch.empty(0))

    def tensors(self, *, leaves: bool = False) -> Tensors:
        """Every target tensor by name; with `leaves`, each asks for a gradient of its own."""
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
        """Carry the gradients of the target's tensors to the operator, one row at a time, dropping them on the way."""
        for row in self.rows:
            gradients = []
            for layer in self.family.layers(row, self.config):
                tensor = leaves[row.name(layer)]
                # What the loss does not look at, such as a pooler beside a masked language model's head, has no gradient.
                gradients.append(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)
                tensor.grad = None
            grown = self.grower.grow_stacked(row, self._source(row))
            if grown.requires_grad:
                grown.backward(torch.stack(gradients))  # type: ignore[no-untyped-call]


def learned_arrays(
    operator: Operator, family: Family, device: str, dtype: torch.dtype
) -> tuple[Operator, dict[str, torch.nn.Parameter]]:
    """The operator with its learned arrays as parameters: dense maps, and the depth matrices of rows with a depth axis.

    A LayerScale is not learned: what is learned is the branch as it arrives in the stream, scale and all.
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
    """Learn the operator, beginning at `initial`.

    Args:
        objective: the loss; None for the target's own.

    Returns:
        The operator of the best validated step (`initial`, in dense form, where nothing was better), and how it went.
    """
    dtype = next(iter(stacked.values())).dtype
    dense, parameters = learned_arrays(learnable(initial, family), family, device, dtype)
    grower = Grower(dense, family, device=device, dtype=dtype, fetch=fetch_from(stacked), keep_drawn=True)
    target = GrownTarget(grower, family.rows_for(initial.target), stacked)
    if objective is None:
        model = LibraryModel(family, initial.target, device=device)
        model.check_table(target.rows)
        objective = model.loss
    measured = objective

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

    depth = {name: parameter for name, parameter in parameters.items() if "/depth/" in name}
    width = {name: parameter for name, parameter in parameters.items() if name not in depth}
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
    outcome = train(
        [group for group in groups if group.parameters],
        gradients,
        schedule=Schedule(steps=settings.steps, warmup=settings.warmup_steps),
        tokens_a_step=settings.tokens_a_step,
        validate=validate,
        validate_every=settings.evaluate_every,
        store=store,
        on_step=on_step,
    )
    best = outcome.best
    learned = learnable(initial, family).map_arrays(
        lambda name, array: best[name].cpu().numpy() if name in best else array
    )
    return learned, outcome


# From this width on a bfloat16 step is faster on a processor with matrix units for it; below it is a wash (docs/development/log.md).
AUTOCAST_WIDTH = 256


def autocast_pays(device: str, precision: str, *, width: int) -> bool:
    """Whether bfloat16 arithmetic is used: as the recipe says, or, for `auto`, where it is faster.

    Args:
        width: of the residual stream.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Older versions of torch do not tell what the processor can.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16")) and width >= AUTOCAST_WIDTH

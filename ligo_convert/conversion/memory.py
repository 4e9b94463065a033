"""Choose the micro batch and estimate the peak memory of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.conversion.fit_plan import FitPlan
from ligo_convert.errors import RecipeError
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import WITHOUT_LOSS, Family
from ligo_convert.growth.growth_plan import GrowthPlan
from ligo_convert.growth.initialize import learned_parameters
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.recipes.schema import SEQUENCE_LENGTH

# Resident memory of a process after its imports, before it holds a tensor: with torch, and without.
BASE_BYTES = 850_000_000

COPY_BASE_BYTES = 120_000_000

# Memory budget for the activations of one micro batch.
ACTIVATION_BYTES = 1_500_000_000

# Sequences of one forward pass where nothing is fitted.
MEASURING_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class ModelLoad:
    """The models and data that a run may hold in memory.

    Attributes:
        family: the target's family.
        inventory: the source's tensors.
        specs: the target's tensors.
        micro_batch: sequences or images of one forward pass.
        fit: the fit of the operator; None where nothing is fitted.
    """

    family: Family
    inventory: Inventory
    start: GrowthPlan
    specs: tuple[TensorSpec, ...]
    micro_batch: int
    fit: FitPlan | None


def physical_memory() -> int:
    """Return the installed memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def activation_bytes(family: Family, config: Mapping[str, object], sequence_length: int) -> int:
    """Estimate the bytes held by the forward and backward pass of one sequence: logits, softmax, and saved activations."""
    sizes = family.sizes(config)
    layers = sum(sizes[axis] for axis in family.depth_axes)
    headed = any(
        family.vocabulary in dim.parts and dim.role == "write" for row in family.rows for dim in row.layout.dims
    )
    logits = 4 * 4 * sequence_length * sizes[family.vocabulary] if headed else 0
    inner = sum(sizes[stream] for stream in family.roles if stream in sizes and stream not in family.never_grown)
    # Fused attention stores no attention matrix. Talking heads do: six matrices per head, softmax included.
    mixed = [
        row for row in family.rows if len(row.layout.dims) == 2 and row.layout.dims[0].parts == row.layout.dims[1].parts
    ]
    matrices = 6 * max((sizes[row.layout.dims[0].parts[0]] for row in mixed), default=0)
    return logits + layers * (4 * sequence_length * 4 * inner + (8 + 4 * matrices) * sequence_length**2)


def choose_micro_batch(recipe: Recipe, family: Family, start: GrowthPlan) -> int:
    """Return the sequences or images of one forward pass. Raises RecipeError where the objective needs more than the recipe allows."""
    fit = recipe.fit
    if fit is None:
        return MEASURING_BATCH
    least = 2 if family.task in WITHOUT_LOSS else 1
    if fit.micro_batch_size is not None or fit.batch_size < least:
        asked = min(fit.micro_batch_size or fit.batch_size, fit.batch_size)
        if asked < least:
            key = "batch_size" if fit.batch_size < least else "micro_batch_size"
            raise RecipeError(
                f"fit.{key}: a model without a task loss is fitted by comparing sequences of a batch",
                where=recipe.where("fit", key),
                expected="at least 2",
                found=asked,
            )
        return asked
    one = activation_bytes(family, start.target, family.sequence(start.target, fit.sequence_length))
    return max(least, min(fit.batch_size, ACTIVATION_BYTES // one))


def estimate_memory(load: ModelLoad, *, measures: bool) -> int:
    """Return the peak resident memory of a run, in bytes: the larger of fitting, measuring and writing."""
    family, inventory, start, specs = load.family, load.inventory, load.start, load.specs
    largest = max(spec.elements for spec in specs)
    row = max(
        sum(inventory.stored[name].elements for name in _row_names(family, inventory, pattern))
        for pattern in (row.pattern for row in inventory.rows)
    )
    if not measures:
        return COPY_BASE_BYTES + 3 * largest * 4 if start.copies_only else BASE_BYTES + 4 * (row + 3 * largest)
    source = 4 * sum(spec.elements for spec in inventory.stored.values())
    target = 4 * sum(spec.elements for spec in specs)
    positions = load.fit.positions if load.fit else family.sequence(start.target, SEQUENCE_LENGTH)
    activations = load.micro_batch * activation_bytes(family, start.target, positions)
    if load.fit is None:
        # The cost of rounding is measured on a second copy of the target.
        copies = 2 if any(spec.dtype in ("F16", "BF16") for spec in specs) else 1
        return BASE_BYTES + source + copies * target + activations + 4 * (row + 2 * largest)
    # Parameters, gradients, two moments, the best and the initial operator. A saved state is written from them, not copied.
    operator = 4 * 6 * learned_parameters(start)
    return BASE_BYTES + source + 2 * target + operator + activations + 4 * 4 * row


def _row_names(family: Family, inventory: Inventory, pattern: str) -> list[str]:
    """Return the tensor names of one row of the source."""
    row = next(row for row in inventory.rows if row.pattern == pattern)
    return [row.name(layer) for layer in inventory.family.layers(row, inventory.config)]
